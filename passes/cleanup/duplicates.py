"""Compute once what is computed twice, and store once what is stored twice.

    Y1 = Op(X, ...), Y2 = Op(X, ...)   =>   Y1 = Op(X, ...), and Y1 for Y2

Nodes merge when: operator, attributes, inputs and outputs asked for are equal (small constants are equal when
their numbers are); the operator is ONNX's own, has no body and draws no random numbers; both lie in one
graph; no output of the later node is a graph output; quantization notes are equal. QuantizeLinear and
DequantizeLinear never merge: runtimes fuse one pair per consumer.

Initializers merge when type, shape and bytes are equal and they take 4 KiB or more each. Smaller ones save
less than the tie costs the passes that treat each weight for itself. Encoded weights, and those that a caller
can see or override, stay apart.

Fidelity: exact in bits. onnx-ir's CommonSubexpressionEliminationPass (1.1) is not used: it also merges
Bernoulli, Dropout in training, operators of unknown domains, and Q/DQ pairs.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.inference import take_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.cleanup.graph_edits import detach, is_default_domain

__all__ = [
    "QUANTIZERS",
    "RANDOM",
    "duplicate_initializers",
    "duplicate_nodes",
    "share_initializer",
    "share_node",
]

QUANTIZERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
RANDOM = frozenset(
    {
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)

_BODIES = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
_COMPARED_BYTES = 1024  # constants up to here are compared by content, larger ones by identity
_SHARED_BYTES = 4096
_SAMPLE_BYTES = 64  # tell most tensors of one shape apart without reading the rest


def duplicate_nodes(graph: onnx_ir.Graph) -> Iterator[tuple[onnx_ir.Node, onnx_ir.Node]]:
    """Yield (node, earlier node that computes the same). Merge each pair before taking the next."""
    seen: dict[Hashable, onnx_ir.Node] = {}
    for node in graph:
        key = _node_key(node)
        if key is None:
            continue
        earlier = seen.setdefault(key, node)
        if earlier is not node and not any(output.is_graph_output() for output in node.outputs):
            yield node, earlier


def share_node(node: onnx_ir.Node, earlier: onnx_ir.Node) -> None:
    """Let the outputs of `earlier` stand for those of `node`, and remove `node`."""
    for old, new in zip(node.outputs, earlier.outputs, strict=True):
        new.type = new.type or old.type
        if new.shape is None:
            take_shape(new, old)
        old.replace_all_uses_with(new)
    detach(node)


def duplicate_initializers(graph: onnx_ir.Graph) -> list[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """Return (initializer, earlier one with the same bytes). Reads no more of them than it must."""
    groups = [list(graph.initializers.values())]
    for key_of in (_kind_key, _sample_key, _content_key):
        groups = [alike for group in groups for alike in _groups(group, key_of)]
    return [(later, twins[0]) for twins in groups for later in twins[1:]]


def share_initializer(value: onnx_ir.Value, earlier: onnx_ir.Value) -> None:
    """Let `earlier` stand for `value` in its graph and all inside it, and remove `value`."""
    assert value.graph is not None and value.name is not None
    value.replace_all_uses_with(earlier)
    value.graph.initializers.pop(value.name)


def _node_key(node: onnx_ir.Node) -> Hashable:
    """Return what makes two nodes compute the same; None for a node that stands for itself."""
    if not is_default_domain(node) or node.op_type in RANDOM or node.op_type in QUANTIZERS:
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref() or attribute.type in _BODIES:
            return None
        attributes.append((name, attribute.type, _attribute_key(attribute)))
    inputs = tuple(_input_key(value) for value in node.inputs)
    outputs = tuple((bool(output.name), quantization_of(output)) for output in node.outputs)
    return node.op_type, tuple(attributes), inputs, outputs


def _attribute_key(attribute: onnx_ir.Attr) -> Hashable:
    value = attribute.value
    if attribute.type == onnx_ir.AttributeType.TENSOR:
        return _content(attribute.as_tensor()) or id(value)
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if isinstance(value, int | float | str) else id(value)


def _input_key(value: onnx_ir.Value | None) -> Hashable:
    tensor = None if is_encoded(value) else constant_tensor(value)
    return (_content(tensor) if tensor is not None else None) or id(value)


def _content(tensor: onnx_ir.TensorProtocol) -> Hashable:
    """Return what tells a small tensor's numbers; None for a large one."""
    if tensor.dtype == onnx_ir.DataType.STRING or tensor.nbytes > _COMPARED_BYTES:
        return None
    return tensor.dtype, tuple(tensor.shape), tensor.tobytes()


def _groups(values: Iterable[onnx_ir.Value], key_of: Callable[[onnx_ir.Value], Hashable]) -> list[list[onnx_ir.Value]]:
    """Return the values that share a key with others, in order; those without a key stand alone."""
    groups: defaultdict[Hashable, list[onnx_ir.Value]] = defaultdict(list)
    for value in values:
        key = key_of(value)
        if key is not None:
            groups[key].append(value)
    return [group for group in groups.values() if len(group) > 1]


def _kind_key(value: onnx_ir.Value) -> Hashable:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype == onnx_ir.DataType.STRING or tensor.nbytes < _SHARED_BYTES:
        return None
    return None if value.is_graph_output() or is_encoded(value) else (tensor.dtype, tuple(tensor.shape))


def _sample_key(value: onnx_ir.Value) -> Hashable:
    return _raw(value)[:_SAMPLE_BYTES].tobytes()


def _content_key(value: onnx_ir.Value) -> Hashable:
    return hashlib.sha256(_raw(value).data).digest()


def _raw(value: onnx_ir.Value) -> npt.NDArray[np.uint8]:
    """Return the tensor's bytes, [n]; a view where it lies in order, so that mapped files are not read through."""
    tensor = constant_tensor(value)
    assert tensor is not None
    numbers = tensor.numpy_packed() if isinstance(tensor, onnx_ir.PackedTensor) else tensor.numpy()
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
