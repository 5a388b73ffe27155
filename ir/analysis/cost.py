"""What a model costs to store and to run: parameters, multiply-accumulates, bytes and peak memory.

Everything is counted from shapes and types at batch 1 (or at the batch that the model fixes); no weight is
read. Nodes of If, Loop and Scan bodies are counted once, whatever the number of trips.

    Conv, QLinearConv, ...   MACs = elements of the output * elements of one output channel's weight
    ConvTranspose            MACs = elements of the input * elements of one input channel's weight
    Gemm, MatMul, ...        MACs = elements of the output * K, the length of the sum
    RNN, GRU, LSTM           MACs = steps * batch * elements of W and R

Parameters are the elements of constants that hold weights: floats, and integers of at most 16 bits, of rank 1
or more. Indices, shapes and int32 biases are not among them. Packed codes count as what they unpack to: where a runtime
looks them up in a constant table as it loads, the numbers that it finds are the parameters, and neither the bytes nor
the table. MatMulNBits has its K * N weights.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import onnx_ir

from onnxpress.ir.encodings import Encoded
from onnxpress.ir.linear import ONNX_DOMAINS, constant_tensor
from onnxpress.ir.shapes import size_bytes, static_shape

__all__ = ["ModelCost", "NodeCost", "cost", "node_macs"]


@dataclasses.dataclass(frozen=True)
class NodeCost:
    """What one node costs.

    params, weight_bytes: of the constants it reads, also through nodes that the runtime folds at load
        (a DequantizeLinear of a constant). A constant with many users counts at the first.
    macs: 0 for operators that do not multiply and for those in `ModelCost.unknown`.
    activation_bytes: what its outputs take of their own: 0 for a view or a folded constant, integers' size
        where a quantized kernel writes integers.
    """

    name: str
    op_type: str
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """What a model costs; the totals of params and weight_bytes also hold constants that no node reads.

    bytes_by_type: stored bytes of constants by ONNX type name; encoded weights by the encoding's label, at
        their packed size.
    peak_activation_bytes: the most that values alive at one moment take, in the graph's order; a lower bound
        where `unsized` > 0.
    unsized: number of values whose size is unknown, counted as 0 bytes.
    unknown: nodes whose MACs are unknown and counted as 0, each with its reason.
    """

    params: int
    macs: int
    weight_bytes: int
    bytes_by_type: dict[str, int]
    peak_activation_bytes: int
    nodes: tuple[NodeCost, ...]
    unsized: int = 0
    unknown: tuple[str, ...] = ()


def cost(model: onnx_ir.Model) -> ModelCost:
    """Count what `model` costs. Its shapes must be inferred; what has none is reported as unknown."""
    tensors = _tensors(model)
    memory = _Memory(tensors)
    owed = {value: _Weight.of(tensor) for value, tensor in tensors.items()}
    nodes: list[NodeCost] = []
    unknown: list[str] = []
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        macs = _count_macs(node)
        if isinstance(macs, str):
            unknown.append(f"node {node.name!r} ({node.op_type}): {macs}")
            macs = 0
        unpacks = _unpacks(node, owed)
        read = [owed.pop(value) for value in node.inputs if value in owed]
        weight = _Weight(sum(one.params for one in read), sum(one.size_bytes for one in read))
        if memory.fold(node):
            owed.update(_share(weight, node, unpacks))  # for the first nodes that are not folded away
            weight = _Weight()
        elif node.op_type == "MatMulNBits":
            weight = dataclasses.replace(weight, params=weight.params + _packed_params(node))
        activation_bytes = sum(memory.own_bytes(output) for output in node.outputs)
        nodes.append(NodeCost(node.name or "", node.op_type, weight.params, macs, weight.size_bytes, activation_bytes))
    unread = [weight for value, weight in owed.items() if value in tensors or value.is_graph_output()]
    return ModelCost(
        params=sum(node.params for node in nodes) + sum(weight.params for weight in unread),
        macs=sum(node.macs for node in nodes),
        weight_bytes=sum(map(_stored_bytes, tensors.values())),
        bytes_by_type=_bytes_by_type(tensors.values()),
        peak_activation_bytes=memory.peak(model.graph),
        nodes=tuple(nodes),
        unsized=memory.unsized,
        unknown=tuple(unknown),
    )


def node_macs(node: onnx_ir.Node) -> int | None:
    """Return the multiply-accumulates of one run of `node`; None where a shape they need is unknown.

    A node with subgraphs counts 0 of its own: its bodies' nodes count.
    """
    macs = _count_macs(node)
    return None if isinstance(macs, str) else macs


# Constants.


@dataclasses.dataclass(frozen=True)
class _Weight:
    params: int = 0
    size_bytes: int = 0

    @staticmethod
    def of(tensor: onnx_ir.TensorProtocol) -> _Weight:
        return _Weight(tensor.size if _holds_weights(tensor) else 0, _stored_bytes(tensor))


def _tensors(model: onnx_ir.Model) -> dict[onnx_ir.Value, onnx_ir.TensorProtocol]:
    """Return every constant of the model, subgraphs' too, by the value that stands for it."""
    found: dict[onnx_ir.Value, onnx_ir.TensorProtocol] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                found[value] = value.const_value
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            tensor = constant_tensor(node.outputs[0])
            if tensor is not None:
                found[node.outputs[0]] = tensor
    return found


def _unpacks(node: onnx_ir.Node, owed: Mapping[onnx_ir.Value, _Weight]) -> bool:
    """Whether `node`, if it is folded, makes numbers out of codes: looks them up, or sums their digits."""
    coded = [value is not None and value in owed and owed[value].params > 0 for value in node.inputs]
    if node.op_type in ("Gather", "GatherElements"):
        return coded[1]
    kind = node.outputs[0].dtype
    return node.op_type == "Add" and all(coded) and kind is not None and kind.is_integer()


def _share(weight: _Weight, node: onnx_ir.Node, unpacks: bool) -> dict[onnx_ir.Value, _Weight]:
    """Return what each output of a folded node stands for: all of `weight`, or its part by elements."""
    if len(node.outputs) == 1:
        elements = _elements(node.outputs[0]) if unpacks else None
        return {node.outputs[0]: weight if elements is None else dataclasses.replace(weight, params=elements)}
    sizes = [_elements(output) for output in node.outputs]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or sum(known) == 0:
        return {node.outputs[0]: weight}
    ends = [0, *itertools.accumulate(known)]
    return {
        output: _Weight(
            *(total * end // ends[-1] - total * start // ends[-1] for total in (weight.params, weight.size_bytes))
        )
        for output, start, end in zip(node.outputs, ends[:-1], ends[1:], strict=True)
    }


def _packed_params(node: onnx_ir.Node) -> int:
    """Return how many weights the bytes of MatMulNBits hold beyond those counted, a byte each."""
    packed = _elements(_input(node, 1)) or 0
    return node.attributes.get_int("K", 0) * node.attributes.get_int("N", 0) - packed


def _holds_weights(tensor: onnx_ir.TensorProtocol) -> bool:
    if len(tensor.shape) == 0:
        return False
    kind = tensor.dtype
    return kind.is_floating_point() or (kind.is_integer() and kind.bitwidth <= 16)


def _stored_bytes(tensor: onnx_ir.TensorProtocol) -> int:
    return tensor.packed_bytes if isinstance(tensor, Encoded) else tensor.nbytes


def _bytes_by_type(tensors: Iterable[onnx_ir.TensorProtocol]) -> dict[str, int]:
    """Return stored bytes by type name, the largest first."""
    total: Counter[str] = Counter()
    for tensor in tensors:
        label = tensor.label if isinstance(tensor, Encoded) else tensor.dtype.name
        total[label] += _stored_bytes(tensor)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


# Multiply-accumulates.

_KNOWN_DOMAINS = (*ONNX_DOMAINS, "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")

# The input that holds the weight.
_CONVOLUTIONS = {
    "Conv": 1, "ConvInteger": 1, "DeformConv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "QLinearConv": 3,
}  # fmt: skip
# The input that is the second factor.
_PRODUCTS = {
    "DynamicQuantizeMatMul": 1, "FusedGemm": 1, "FusedMatMul": 1, "Gemm": 1, "MatMul": 1, "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1, "QGemm": 3, "QLinearMatMul": 3,
}  # fmt: skip
_BLOCKED_PRODUCTS = frozenset({"MatMulBnb4", "MatMulNBits"})
_RECURRENT = frozenset({"DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"})
_UNCOUNTED = frozenset(
    {"Attention", "DFT", "Einsum", "GroupQueryAttention", "MultiHeadAttention", "QAttention", "STFT"}
)
_FOLDED_INTO_RANGE = frozenset({"Clip", "Relu"})  # integer kernels clip as they round
_KEEPS_SHAPE = frozenset({"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"})


def _count_macs(node: onnx_ir.Node) -> int | str:
    """Return the MACs of `node`, or why they are unknown."""
    kind = node.op_type
    if node.domain not in _KNOWN_DOMAINS:
        return f"what operators of domain {node.domain!r} compute is unknown"
    if kind in _CONVOLUTIONS:
        return _scaled(_elements(node.outputs[0]), _shape(_input(node, _CONVOLUTIONS[kind])), slice(1, None))
    if kind == "ConvTranspose":
        return _scaled(_elements(_input(node, 0)), _shape(_input(node, 1)), slice(1, None))
    if kind in _PRODUCTS:
        return _product_macs(node, _PRODUCTS[kind])
    if kind in _BLOCKED_PRODUCTS:
        return _scaled(_elements(node.outputs[0]), (node.attributes.get_int("K", 0),), slice(None))
    if kind in _RECURRENT:
        return _recurrent_macs(node)
    return "its multiplies are not counted" if kind in _UNCOUNTED else 0


def _product_macs(node: onnx_ir.Node, second: int) -> int | str:
    left, right = _shape(_input(node, 0)), _shape(_input(node, second))
    if left:
        length = left[-2] if _is_set(node, "transA") else left[-1]
    elif right:
        length = right[-1] if len(right) == 1 or _is_set(node, "transB") else right[-2]
    else:
        return _NO_SHAPE
    return _scaled(_elements(node.outputs[0]), (length,), slice(None))


def _is_set(node: onnx_ir.Node, flag: str) -> bool:
    return node.attributes.get_int(flag, 0) != 0


def _recurrent_macs(node: onnx_ir.Node) -> int | str:
    weights = [_elements(_input(node, index)) for index in (1, 2)]
    if weights[0] is None or weights[1] is None:
        return _NO_SHAPE
    return _scaled(weights[0] + weights[1], _shape(_input(node, 0)), slice(2))  # X: [steps, batch, size]


_NO_SHAPE = "a shape is unknown"


def _scaled(elements: int | None, shape: tuple[int, ...] | None, axes: slice) -> int | str:
    return _NO_SHAPE if elements is None or shape is None else elements * math.prod(shape[axes])


def _elements(value: onnx_ir.Value | None) -> int | None:
    shape = _shape(value)
    return None if shape is None else math.prod(shape)


def _shape(value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape at batch 1, looking through nodes that keep it."""
    while value is not None:
        tensor = value.const_value
        shape = static_shape(value) if tensor is None else tuple(tensor.shape.numpy())
        producer = value.producer()
        if shape is not None or producer is None or producer.op_type not in _KEEPS_SHAPE:
            return shape
        value = producer.inputs[0]
    return None


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


# Memory.

_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


class _Memory:
    """Which values take memory of their own while a model runs, and the most that they take together.

    Free of charge, because runtimes make it so: constants and what is computed from them alone (folded at
    load); views of the same elements; and, around an integer kernel (DequantizeLinear before, QuantizeLinear
    behind), the float values that stand for its integers.
    """

    def __init__(self, constants: Iterable[onnx_ir.Value]) -> None:
        self.unsized = 0
        self._constants = set(constants)
        self._bytes: dict[onnx_ir.Value, int] = {}

    def fold(self, node: onnx_ir.Node) -> bool:
        """Return whether `node` computes with constants alone, and remember it. Call in graph order."""
        given = [value for value in node.inputs if value is not None]
        if not given or any(value not in self._constants for value in given) or _bodies(node):
            return False
        if any(output.is_graph_output() for output in node.outputs):
            return False
        self._constants.update(node.outputs)
        return True

    def own_bytes(self, value: onnx_ir.Value) -> int:
        """Return the bytes that `value` adds, 0 where it is free of charge or its size is unknown."""
        if value in self._bytes:
            return self._bytes[value]
        size: int | None = 0
        if value not in self._constants and self._owner(value) is value:
            size = size_bytes(_stored_as(value))
        self.unsized += size is None
        return self._bytes.setdefault(value, size or 0)

    def peak(self, graph: onnx_ir.Graph) -> int:
        """Return the most bytes alive at one moment of a run of `graph` in its order, bodies included."""
        last: dict[onnx_ir.Value, int] = {}
        for step, node in enumerate(graph):
            for value in _reads(node):
                last[self._owner(value)] = step
        for output in graph.outputs:
            last[self._owner(output)] = len(graph)
        freed: Counter[int] = Counter()
        alive = most = 0
        for value in graph.inputs:
            alive += self.own_bytes(value)
            freed[last.get(value, -1)] += self.own_bytes(value)
        for step, node in enumerate(graph):
            for value in node.outputs:
                alive += self.own_bytes(value)
                freed[last.get(value, step)] += self.own_bytes(value)
            inside = max((self.peak(body) for body in _bodies(node)), default=0)
            most = max(most, alive + inside)
            alive -= freed[step]
        return max(most, alive)

    def _owner(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Return the value whose memory `value` lies in: itself, or what it is a view of."""
        while True:
            node = value.producer()
            source = None if node is None or not node.inputs else node.inputs[0]
            if node is None or source is None:
                return value
            if node.op_type == "DequantizeLinear":
                through = not value.is_graph_output() and all(_is_integer_kernel(use.node) for use in value.uses())
            elif node.op_type == "QuantizeLinear":
                through = _integer_kernel_behind(source) is not None
            elif node.op_type in _FOLDED_INTO_RANGE:
                through = _integer_kernel_behind(value) is not None
            else:
                through = node.op_type in _VIEWS
            if not through:
                return value
            value = source


def _is_integer_kernel(node: onnx_ir.Node) -> bool:
    """Whether runtimes compute `node` in integers: dequantized data goes in, all it gives is quantized."""
    producers = (None if value is None else value.producer() for value in node.inputs[:1])
    if not any(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers):
        return False
    return node.op_type != "QuantizeLinear" and all(
        _quantized(output) is not None for output in node.outputs if output.uses()
    )


def _quantized(value: onnx_ir.Value) -> onnx_ir.Value | None:
    """Return the output of the QuantizeLinear that alone reads `value`, an activation between them or not."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader = next(iter(uses)).node
    if reader.op_type in _FOLDED_INTO_RANGE:
        return _quantized(reader.outputs[0])
    return reader.outputs[0] if reader.op_type == "QuantizeLinear" else None


def _integer_kernel_behind(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """Return the integer kernel that makes `value`, an activation between them or not."""
    node = value.producer()
    if node is not None and node.op_type in _FOLDED_INTO_RANGE and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and _is_integer_kernel(node) else None


def _stored_as(value: onnx_ir.Value) -> onnx_ir.Value:
    """Return the value whose type says how the elements of `value` lie in memory."""
    producer = value.producer()
    if producer is None or not _is_integer_kernel(producer):
        return value
    return _quantized(value) or value


def _reads(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """Yield what `node` reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for body in _bodies(node):
        yield from body.outputs
        for inner in body:
            yield from _reads(inner)


def _bodies(node: onnx_ir.Node) -> list[onnx_ir.Graph]:
    bodies: list[onnx_ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies
