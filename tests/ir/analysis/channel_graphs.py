"""Random graphs for the tests of channel removal: blocks in a row, each small, with sizes that all differ.

A block takes an image [N, C, H, W] and returns one. Weights are random and nowhere zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from onnx import TensorProto, helper, numpy_helper

from onnxpress.ir import model_io

__all__ = ["BLOCKS", "Builder", "random_model"]


class Builder:
    """Nodes and weights of a graph under way."""

    def __init__(self, seed: int, *, opset: int = 17, batch: int | str = "N") -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.known: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, *shape: int | str) -> str:
        """Add a float input."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def annotate(self, name: str, *shape: int | str) -> None:
        """Write down the shape of a value that onnx does not infer."""
        self.known.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, *shape: int) -> str:
        """Add a weight whose product with a unit input is of unit size."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32))

    def positive(self, *shape: int) -> str:
        """Add a weight of positive numbers."""
        return self.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def constant(self, array: npt.NDArray[Any] | np.generic) -> str:
        """Add an initializer."""
        self._count += 1
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{self._count}"))
        return f"w{self._count}"

    def ints(self, *numbers: int) -> str:
        """Add an int64 initializer of rank 1."""
        return self.constant(np.asarray(numbers, np.int64))

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output; the others have its name with .1, .2 and so on."""
        self._count += 1
        name = f"{op_type.lower()}{self._count}"
        made = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op_type, inputs, made, name=name, **attributes))
        return name

    def conv(self, x: str, into: int, out_of: int, kernel: int = 1, group: int = 1, *, bias: bool = True) -> str:
        """Add a Conv that keeps the image size."""
        weights = [self.weight(out_of, into // group, kernel, kernel), *([self.weight(out_of)] if bias else [])]
        return self.node("Conv", x, *weights, group=group, pads=[kernel // 2] * 4)

    def norm(self, x: str, channels: int) -> str:
        """Add a BatchNormalization."""
        parameters = [self.positive(channels), *(self.weight(channels) for _ in range(2)), self.positive(channels)]
        return self.node("BatchNormalization", x, *parameters)

    def model(self, output: str, rank: int) -> onnx_ir.Model:
        """Return the model, loaded as users' models are."""
        found = [helper.make_tensor_value_info(output, TensorProto.FLOAT, [f"d{axis}" for axis in range(rank)])]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, found, self.weights, value_info=self.known)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return model_io.load(proto)


@dataclasses.dataclass(frozen=True)
class Image:
    """A value [N, channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int


Block = Callable[[Builder, Image], Image]
BLOCKS: dict[str, Block] = {}


def _block(function: Block) -> Block:
    BLOCKS[function.__name__.strip("_")] = function
    return function


def random_model(blocks: Sequence[str], seed: int, *, head: str = "conv", batch: int | str = "N") -> onnx_ir.Model:
    """Return a model of the named blocks with a head: `conv`, `flatten`, `pool` or `reshape`."""
    build = Builder(seed, batch=batch)
    image = Image(build.conv(build.input(batch, 3, 4, 6), 3, 12, 3), 12, 4, 6)
    for block in blocks:
        image = BLOCKS[block](build, image)
    return build.model(_head(build, image, head), 4 if head == "conv" else 2)


def _head(build: Builder, image: Image, kind: str) -> str:
    if kind == "conv":
        return build.conv(image.name, image.channels, 2)
    if kind == "pool":
        pooled = build.node("GlobalAveragePool", image.name)
        flat = build.node("Flatten", pooled)
        return build.node("Gemm", flat, build.weight(5, image.channels), build.weight(5), transB=1)
    width = image.channels * image.height * image.width
    if kind == "flatten":
        flat = build.node("Flatten", image.name)
    else:  # channels last, as TensorFlow's exporters write it
        last = build.node("Transpose", image.name, perm=[0, 2, 3, 1])
        flat = build.node("Reshape", last, build.ints(0, -1))
    hidden = build.node("Relu", build.node("Gemm", flat, build.weight(width, 7), build.weight(7)))
    return build.node("MatMul", hidden, build.weight(7, 5))


@_block
def _plain(build: Builder, x: Image) -> Image:
    out_of = int(build.rng.integers(4, 9)) * 2
    made = build.node("Relu", build.norm(build.conv(x.name, x.channels, out_of, 3), out_of))
    return dataclasses.replace(x, name=made, channels=out_of)


@_block
def _residual(build: Builder, x: Image) -> Image:
    inner = build.node("Relu", build.conv(x.name, x.channels, 10, 3))
    made = build.node("Add", build.conv(inner, 10, x.channels, 3), x.name)
    return dataclasses.replace(x, name=build.node("Relu", made))


@_block
def _widening_residual(build: Builder, x: Image) -> Image:
    before, after = (int(n) for n in build.rng.integers(1, 4, 2))
    short = build.node("Slice", x.name, build.ints(0), build.ints(99), build.ints(2), build.ints(1))
    short = build.node("Pad", short, build.ints(0, before, 0, 0, 0, after, 0, 0))
    wide = x.channels + before + after
    made = build.node("Add", short, build.conv(x.name, x.channels, wide, 3))
    return dataclasses.replace(x, name=build.node("Relu", made), channels=wide)


@_block
def _concat(build: Builder, x: Image) -> Image:
    parts = [build.node("Relu", build.conv(x.name, x.channels, size)) for size in (4, 6)]
    made = build.node("Concat", parts[0], x.name, parts[1], axis=1)
    return dataclasses.replace(x, name=made, channels=x.channels + 10)


@_block
def _grouped(build: Builder, x: Image) -> Image:
    groups = int(build.rng.choice([2, 4]))
    wide = build.conv(x.name, x.channels, 16)
    made = build.node("Relu", build.conv(wide, 16, 8 * groups, 3, groups))
    return dataclasses.replace(x, name=made, channels=8 * groups)


@_block
def _many_groups(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 12)
    return dataclasses.replace(x, name=build.conv(wide, 12, 18, 3, 6), channels=18)


@_block
def _depthwise(build: Builder, x: Image) -> Image:
    multiplier = int(build.rng.integers(1, 3))
    made = build.conv(x.name, x.channels, x.channels * multiplier, 3, x.channels)
    made = build.node("Clip", made, build.constant(np.float32(0)), build.constant(np.float32(6)))
    return dataclasses.replace(x, name=made, channels=x.channels * multiplier)


@_block
def _shuffle(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 12, 1)
    split = build.node("Reshape", wide, build.ints(0, 3, 4, x.height, x.width))
    turned = build.node("Transpose", split, perm=[0, 2, 1, 3, 4])
    made = build.node("Reshape", turned, build.ints(0, -1, x.height, x.width))
    return dataclasses.replace(x, name=build.conv(made, 12, 12, 3, 3), channels=12)


@_block
def _split(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 11)
    left = build.node("Split", wide, build.ints(4, 7), outputs=2, axis=1)
    made = build.node("Concat", build.node("Tanh", f"{left}.1"), build.conv(left, 4, 5), axis=1)
    return dataclasses.replace(x, name=made, channels=12)


@_block
def _slice_channels(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 12)
    low = build.node("Slice", wide, build.ints(0), build.ints(5), build.ints(1))
    high = build.node("Slice", wide, build.ints(-1), build.ints(6), build.ints(1), build.ints(-1))
    return dataclasses.replace(x, name=build.node("Mul", low, high), channels=5)


@_block
def _gather_channels(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 10)
    return dataclasses.replace(x, name=build.node("Gather", wide, build.ints(7, 0, 3, -1, 5), axis=1), channels=5)


@_block
def _gate(build: Builder, x: Image) -> Image:
    pooled = build.node("ReduceMean", x.name, axes=[2, 3], keepdims=1)
    inner = build.node("Relu", build.conv(pooled, x.channels, 6))
    gate = build.node("Sigmoid", build.conv(inner, 6, x.channels))
    return dataclasses.replace(x, name=build.node("Mul", x.name, gate))


@_block
def _scale(build: Builder, x: Image) -> Image:
    made = build.node("Mul", x.name, build.weight(x.channels, 1, 1))
    made = build.node("PRelu", made, build.weight(x.channels, 1, 1))
    return dataclasses.replace(x, name=build.node("Add", made, build.weight(1, x.channels, 1, 1)))


@_block
def _transposed_conv(build: Builder, x: Image) -> Image:
    groups = int(build.rng.choice([1, 2, 8]))
    wide = build.conv(x.name, x.channels, 8)
    made = build.node(
        "ConvTranspose", wide, build.weight(8, 4, 3, 3), build.weight(4 * groups), group=groups, pads=[1] * 4
    )
    return dataclasses.replace(x, name=made, channels=4 * groups)


@_block
def _pixel_shuffle(build: Builder, x: Image) -> Image:
    mode = str(build.rng.choice(["DCR", "CRD"]))
    deep = build.conv(x.name, x.channels, 20)
    made = build.node("DepthToSpace", deep, blocksize=2, mode=mode)
    back = build.node("SpaceToDepth", made, blocksize=2)
    return dataclasses.replace(x, name=build.node("Relu", back), channels=20)


@_block
def _resize(build: Builder, x: Image) -> Image:
    scales = build.constant(np.asarray([1, 1, 2, 2], np.float32))
    large = build.node("Resize", x.name, "", scales, mode="nearest")
    return dataclasses.replace(x, name=build.node("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]))


@_block
def _group_norm(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 12)
    split = build.node("Reshape", wide, build.ints(0, 4, -1))
    normed = build.node("InstanceNormalization", split, build.positive(4), build.weight(4))
    made = build.node("Reshape", normed, build.ints(0, 12, x.height, x.width))
    return dataclasses.replace(x, name=build.node("Mul", made, build.weight(12, 1, 1)), channels=12)


@_block
def _attention(build: Builder, x: Image) -> Image:
    heads, width, tokens = 3, 4, x.height * x.width
    flat = build.node("Reshape", x.name, build.ints(0, x.channels, tokens))
    sequence = build.node("Transpose", flat, perm=[0, 2, 1])
    parts = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        projected = build.node("MatMul", sequence, build.weight(x.channels, heads * width))
        projected = build.node("Add", projected, build.weight(heads * width))
        split = build.node("Reshape", projected, build.ints(0, tokens, heads, width))
        parts.append(build.node("Transpose", split, perm=order))
    score = build.node("Mul", build.node("MatMul", parts[0], parts[1]), build.constant(np.float32(0.5)))
    context = build.node("MatMul", build.node("Softmax", score, axis=-1), parts[2])
    merged = build.node("Transpose", context, perm=[0, 2, 1, 3])
    merged = build.node("Reshape", merged, build.ints(0, tokens, heads * width))
    stream = build.node("Add", build.node("MatMul", merged, build.weight(heads * width, x.channels)), sequence)
    normed = build.node("LayerNormalization", stream, build.positive(x.channels), build.weight(x.channels))
    hidden = build.node(
        "Erf", build.node("Add", build.node("MatMul", normed, build.weight(x.channels, 9)), build.weight(9))
    )
    stream = build.node("Add", build.node("MatMul", hidden, build.weight(9, x.channels)), stream)
    back = build.node("Transpose", stream, perm=[0, 2, 1])
    made = build.node("Reshape", back, build.ints(0, x.channels, x.height, x.width))
    return dataclasses.replace(x, name=made)


@_block
def _fused_attention(build: Builder, x: Image) -> Image:
    heads, width, tokens = 2, 5, x.height * x.width
    sequence = build.node("Transpose", build.node("Reshape", x.name, build.ints(0, 0, -1)), perm=[0, 2, 1])
    projected = build.node("MatMul", sequence, build.weight(x.channels, 3 * heads * width))
    split = build.node("Reshape", projected, build.ints(0, tokens, 3, heads, width))
    turned = build.node("Transpose", split, perm=[2, 0, 3, 1, 4])
    query, key, value = (build.node("Gather", turned, build.constant(np.int64(index)), axis=0) for index in range(3))
    score = build.node("MatMul", query, build.node("Transpose", key, perm=[0, 1, 3, 2]))
    context = build.node("MatMul", build.node("Softmax", score, axis=-1), value)
    merged = build.node("Reshape", build.node("Transpose", context, perm=[0, 2, 1, 3]), build.ints(0, tokens, -1))
    made = build.node(
        "Transpose", build.node("MatMul", merged, build.weight(heads * width, x.channels)), perm=[0, 2, 1]
    )
    made = build.node("Reshape", made, build.ints(0, x.channels, x.height, x.width))
    return dataclasses.replace(x, name=build.node("Add", made, x.name))


@_block
def _computed_shape(build: Builder, x: Image) -> Image:
    wide = build.conv(x.name, x.channels, 10)
    shape = build.node("Shape", wide)
    batch = build.node("Unsqueeze", build.node("Gather", shape, build.constant(np.int64(0)), axis=0), build.ints(0))
    target = build.node("Concat", batch, build.ints(10), build.ints(-1), axis=0)
    flat = build.node("Relu", build.node("Reshape", wide, target))
    made = build.node("Reshape", flat, build.node("Concat", batch, build.ints(10, x.height, x.width), axis=0))
    like = build.node("Expand", build.weight(10, 1, 1), shape)
    return dataclasses.replace(x, name=build.node("Add", made, like), channels=10)


@_block
def _recurrent(build: Builder, x: Image) -> Image:
    kind, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[int(build.rng.integers(3))]
    directions, hidden, tokens = 2, 4, x.height * x.width
    flat = build.node("Reshape", x.name, build.ints(0, x.channels, tokens))
    steps = build.node("Transpose", flat, perm=[2, 0, 1])
    made = build.node(
        kind, steps, build.weight(directions, gates * hidden, x.channels),
        build.weight(directions, gates * hidden, hidden), build.weight(directions, 2 * gates * hidden),
        hidden_size=hidden, direction="bidirectional",
    )  # fmt: skip
    merged = build.node(
        "Reshape", build.node("Transpose", made, perm=[0, 2, 1, 3]), build.ints(tokens, -1, directions * hidden)
    )
    back = build.node("Transpose", build.node("MatMul", merged, build.weight(directions * hidden, 6)), perm=[1, 2, 0])
    made = build.node("Reshape", back, build.ints(0, 6, x.height, x.width))
    return dataclasses.replace(x, name=made, channels=6)


@_block
def _einsum(build: Builder, x: Image) -> Image:
    wide = [build.conv(x.name, x.channels, 6) for _ in range(2)]
    made = build.node("Einsum", *wide, equation="nchw,ndhw->ncd")
    made = build.node(
        "Reshape", build.node("MatMul", made, build.weight(6, x.height * x.width)), build.ints(0, 6, x.height, x.width)
    )
    return dataclasses.replace(x, name=made, channels=6)


@_block
def _shared(build: Builder, x: Image) -> Image:
    weight, bias = build.weight(x.channels, x.channels, 1, 1), build.weight(x.channels)
    once = build.node("Relu", build.node("Conv", x.name, weight, bias))
    other = build.conv(x.name, x.channels, x.channels)
    return dataclasses.replace(x, name=build.node("Conv", build.node("Sub", once, other), weight, bias))


@_block
def _shared_vector(build: Builder, x: Image) -> Image:
    bias = build.weight(8)
    inner = build.node("Relu", build.node("Conv", x.name, build.weight(8, x.channels, 1, 1), bias))
    return dataclasses.replace(x, name=build.node("Conv", inner, build.weight(8, 8, 1, 1), bias), channels=8)


@_block
def _branches(build: Builder, x: Image) -> Image:
    def body(op_type: str) -> onnx.GraphProto:
        name = build.node(op_type, wide)
        node = build.nodes.pop()
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [build.batch, 6, x.height, x.width])
        return helper.make_graph([node], f"body_{name}", [], [info])

    wide = build.conv(x.name, x.channels, 6)
    size = build.node("ReduceSum", build.node("Shape", x.name, end=1))
    condition = build.node("Greater", size, build.constant(np.int64(0)))
    made = build.node("If", condition, then_branch=body("Relu"), else_branch=body("Neg"))
    return dataclasses.replace(x, name=made, channels=6)
