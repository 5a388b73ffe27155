"""Small models that hold one kind of work each, at sizes that real networks have.

A chain repeats a pair of layers, there and back, so that each runs as it does inside a network: behind a layer of its
kind, in that one's layout. Several chains lie in one model, side by side, and are timed by node in one session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import TensorProto, helper

from onnxpress.ir.model_io import load

__all__ = [
    "CONV_CHAINS",
    "ELEMENTWISE",
    "ONCE",
    "PRODUCT_CHAINS",
    "Chain",
    "Elementwise",
    "batches",
    "chain_model",
    "elementwise_model",
]

ONCE = "once"  # how names of chains of a single layer begin
_OPSET = 17
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Chain:
    """Layers from `inputs` to `outputs` channels and back, on images of `side`, or on `rows` vectors where side is 0.

    kernel: height and width. groups: of the way there; "depthwise" has one for each channel. residual: the last layer's
    result is added to the chain's input. once: a single layer. activation: of each layer.
    """

    inputs: int
    outputs: int
    side: int = 0
    kernel: tuple[int, int] = (1, 1)
    groups: int = 1
    stride: int = 1
    rows: int = 1
    residual: bool = False
    once: bool = False
    activation: str = "Relu"

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.inputs > 1


def _square(*sizes: tuple[int, int, int], kernel: int) -> tuple[Chain, ...]:
    return tuple(Chain(a, b, side, (kernel, kernel)) for a, b, side in sizes)


CONV_CHAINS: tuple[Chain, ...] = (
    *_square((16, 16, 32), (32, 32, 16), (64, 64, 8), (64, 64, 28), (128, 128, 8), (128, 128, 14), (256, 256, 7),
             (24, 40, 20), (10, 20, 24), (50, 30, 12), (16, 48, 28), (96, 32, 14), (12, 12, 32), (40, 80, 10),
             (20, 36, 16), (64, 256, 13), (7, 14, 16), (32, 64, 28), (48, 192, 13), (13, 27, 16),
             (22, 45, 14), kernel=3),
    *_square((20, 50, 12), (32, 32, 14), (16, 16, 28), kernel=5),
    *_square((32, 32, 56), (24, 24, 48), (8, 12, 32), (8, 24, 16), (8, 8, 20), (48, 24, 8), (56, 56, 8), kernel=3),
    *(Chain(a, b, side, kernel) for a, b, side in ((16, 8, 32), (32, 16, 16), (64, 24, 8), (64, 32, 28), (20, 12, 16))
      for kernel in ((3, 1), (1, 3))),
    *_square((16, 96, 56), (24, 144, 28), (32, 192, 28), (64, 384, 14), (96, 576, 14), (160, 960, 7), (320, 1280, 7),
             (64, 16, 56), (48, 192, 27), (32, 128, 28), (512, 64, 13), (16, 16, 32), (24, 40, 20), (10, 30, 24),
             (64, 128, 8), (16, 8, 32), (12, 20, 28), (256, 48, 13), (16, 96, 112), (32, 16, 112),
             (37, 91, 14), (8, 12, 32), (8, 24, 16), (48, 48, 16), (64, 64, 8), (6, 32, 112),
             kernel=1),
    *(Chain(c, c, side, (k, k), groups=c) for c, side, k in (
        (32, 112, 3), (96, 112, 3), (96, 56, 3), (144, 56, 3), (144, 28, 3), (192, 28, 3), (384, 14, 3), (576, 14, 3),
        (960, 7, 3), (16, 32, 3),
        (40, 20, 3), (64, 14, 5), (24, 16, 3), (64, 8, 3), (6, 112, 3), (10, 56, 3), (14, 28, 3))),
    *(Chain(a, b, side, (k, k), groups=a if a == b else 1, activation="Clip") for a, b, side, k in (
        (24, 96, 28, 1), (32, 64, 20, 1), (64, 64, 28, 3), (128, 128, 14, 3), (16, 32, 24, 3))),
    *(Chain(a, b, side, (3, 3), groups=g) for a, b, side, g in ((64, 64, 14, 4), (32, 32, 28, 2), (48, 48, 14, 4))),
    *(Chain(c, c, side, (3, 3), residual=True) for c, side in ((16, 32), (32, 16), (64, 8), (64, 28))),
    *(Chain(3, b, side, (k, k), stride=s, once=True) for b, side, k, s in (
        (16, 32, 3, 1), (32, 112, 3, 2), (32, 32, 3, 1), (64, 112, 7, 2), (96, 111, 7, 2), (16, 120, 3, 2))),
    *(Chain(3, b, side, once=True) for b, side in ((6, 112), (16, 64))),
    *(Chain(1, b, side, (k, k), once=True) for b, side, k in ((20, 28, 5), (16, 28, 3), (16, 16, 3))),
)  # fmt: skip

PRODUCT_CHAINS: tuple[Chain, ...] = (
    *(Chain(a, b, rows=rows) for a, b, rows in (
        (784, 300, 1), (300, 100, 1), (512, 512, 1), (64, 10, 1), (1280, 1000, 1), (1024, 512, 1), (800, 500, 1),
        (128, 128, 1), (256, 40, 1), (2048, 1000, 1), (64, 64, 16), (256, 256, 32), (512, 128, 64), (384, 1536, 49),
        (128, 512, 197))),
    # Alone, so that a core's cache holds weights of up to its size.
    *(Chain(a, b, once=True) for a, b in ((784, 300), (300, 300), (512, 512), (400, 1000), (256, 256))),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Elementwise:
    """An operator that is paid by element. copies: how often it takes its input. widens: channels out, times those in.

    constants: its further inputs. after_conv: whether float layers hand it blocks of channels, and do not absorb it.
    """

    operator: str
    copies: int = 1
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    constants: tuple[tuple[int, ...], ...] = ()
    after_conv: bool = True
    widens: int = 1


_WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
ELEMENTWISE: dict[str, Elementwise] = {
    "Add": Elementwise("Add", copies=2, after_conv=False),
    "AveragePool": Elementwise("AveragePool", attributes=_WINDOW),
    "Concat": Elementwise("Concat", copies=2, attributes={"axis": 1}, widens=2),
    "GlobalAveragePool": Elementwise("GlobalAveragePool"),
    "LeakyRelu": Elementwise("LeakyRelu", after_conv=False),
    "MaxPool": Elementwise("MaxPool", attributes={**_WINDOW, "strides": [2, 2]}),
    "Mul": Elementwise("Mul", copies=2),
    "Pad": Elementwise("Pad", constants=((0, 4, 0, 0, 0, 4, 0, 0),), after_conv=False, widens=0),
    "Relu": Elementwise("Relu", after_conv=False),
    "Sigmoid": Elementwise("Sigmoid", after_conv=False),
    "Slice": Elementwise("Slice", constants=((0, 0), (1 << 30, 1 << 30), (2, 3), (2, 2)), after_conv=False),
    "Softmax": Elementwise("Softmax", attributes={"axis": -1}, after_conv=False),
    "Transpose": Elementwise("Transpose", attributes={"perm": [0, 1, 3, 2]}, after_conv=False),
    "default": Elementwise("Exp", after_conv=False),
}


def chain_model(chains: Sequence[Chain]) -> onnx_ir.Model:
    """Return a model of one input and one output for each chain. Weights are seeded; nodes are named `c3_0_there`."""
    parts = [_Part(f"{ONCE if chain.once else 'c'}{index}", chain) for index, chain in enumerate(chains)]
    graph = helper.make_graph(
        [node for part in parts for node in part.nodes],
        "chains",
        [part.given for part in parts],
        [part.made for part in parts],
        [tensor for part in parts for tensor in part.weights],
    )
    return _load(graph)


def elementwise_model(name: str, sizes: Iterable[tuple[int, int]], *, between_convs: bool) -> onnx_ir.Model:
    """Return a model that applies an operator to an image of each size (channels, side), node `n0` to the first.

    between_convs: it stands between two 1x1 convolutions, as integers need it; else between two other operators.
    """
    work = ELEMENTWISE[name]
    nodes, inputs, outputs, weights = [], [], [], []
    for index, (channels, side) in enumerate(sizes):
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, [1, channels, side, side]))
        read = f"x{index}"
        constants = [f"k{index}_{place}" for place in range(len(work.constants))]
        weights += [onnx.numpy_helper.from_array(np.array(each, np.int64), key)
                    for key, each in zip(constants, work.constants, strict=True)]  # fmt: skip
        if between_convs:
            weights.append(_eye(f"a{index}_w", channels, channels))
            nodes.append(helper.make_node("Conv", [read, f"a{index}_w"], [f"a{index}"], name=f"a{index}_conv"))
        else:
            nodes.append(helper.make_node("Abs", [read], [f"a{index}"], name=f"a{index}_abs"))
        read = f"a{index}"
        made = f"y{index}"
        nodes.append(
            helper.make_node(
                work.operator, [read] * work.copies + constants, [made], name=f"n{index}", **work.attributes
            )
        )
        if between_convs:
            wide = channels * work.widens if work.widens else channels + 8
            weights.append(_eye(f"b{index}_w", 16, wide))
            nodes.append(helper.make_node("Conv", [made, f"b{index}_w"], [f"z{index}"], name=f"b{index}_conv"))
        else:
            nodes.append(helper.make_node("Neg", [made], [f"z{index}"], name=f"b{index}_neg"))
        made = f"z{index}"
        outputs.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, None))
    return _load(helper.make_graph(nodes, "elements", inputs, outputs, weights))


def _eye(name: str, outputs: int, inputs: int) -> onnx.TensorProto:
    array = np.eye(outputs, inputs, dtype=np.float32).reshape(outputs, inputs, 1, 1)
    return onnx.numpy_helper.from_array(array, name)


class _Part:
    """The nodes and weights of one chain."""

    def __init__(self, name: str, chain: Chain) -> None:
        self._name, self._chain = name, chain
        self._rng = np.random.default_rng([_SEED, *name.encode()])
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        shape = [chain.rows, chain.inputs] if not chain.side else [1, chain.inputs, chain.side, chain.side]
        self.given = helper.make_tensor_value_info(f"{name}_x", TensorProto.FLOAT, shape)
        last = self._write()
        self.made = helper.make_tensor_value_info(last, TensorProto.FLOAT, None)

    def _write(self) -> str:
        chain, value = self._chain, f"{self._name}_x"
        if chain.once:
            return self._layer(value, 0, "there", chain.inputs, chain.outputs)
        for repeat in range(2):
            first = value
            value = self._layer(value, repeat, "there", chain.inputs, chain.outputs)
            value = self._layer(
                value, repeat, "back", chain.outputs, chain.inputs, added=first if chain.residual else None
            )
        return value

    def _layer(self, value: str, repeat: int, way: str, inputs: int, outputs: int, added: str | None = None) -> str:
        chain, name = self._chain, f"{self._name}_{repeat}_{way}"
        if chain.side:
            groups = chain.groups
            self._weight(f"{name}_w", (outputs, inputs // groups, *chain.kernel))
            pads = [side // 2 for side in chain.kernel] * 2
            attributes: dict[str, Any] = {"group": groups, "pads": pads, "strides": [chain.stride, chain.stride]}
        else:
            self._weight(f"{name}_w", (inputs, outputs))
            attributes = {}
        read = [value, f"{name}_w", self._bias(name, outputs)]
        kind = "Conv" if chain.side else "Gemm"
        self.nodes.append(helper.make_node(kind, read, [f"{name}_y"], name=name, **attributes))
        made = f"{name}_y"
        if added is not None:
            self.nodes.append(helper.make_node("Add", [made, added], [f"{name}_s"], name=f"{name}_add"))
            made = f"{name}_s"
        bounds = [self._bound(0.0), self._bound(6.0)] if chain.activation == "Clip" else []
        name_of_last = f"{name}_{chain.activation.lower()}"
        self.nodes.append(helper.make_node(chain.activation, [made, *bounds], [f"{name}_r"], name=name_of_last))
        return f"{name}_r"

    def _bound(self, value: float) -> str:
        name = f"{self._name}_{value:g}"
        if all(tensor.name != name for tensor in self.weights):
            self.weights.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def _weight(self, name: str, shape: tuple[int, ...]) -> None:
        scale = np.sqrt(2.0 / np.prod(shape[1:] if len(shape) > 2 else shape[:1]))
        array = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(onnx.numpy_helper.from_array(array, name))

    def _bias(self, name: str, size: int) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.full(size, 0.01, np.float32), f"{name}_b"))
        return f"{name}_b"


def _load(graph: onnx.GraphProto) -> onnx_ir.Model:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)
    return load(onnx.shape_inference.infer_shapes(model))


def batches(chains: Sequence[Chain], size: int) -> Iterator[Sequence[Chain]]:
    """Yield the chains in groups that fit one session."""
    for start in range(0, len(chains), size):
        yield chains[start : start + size]
