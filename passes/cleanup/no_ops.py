"""Eliminate nodes whose output equals one of their inputs, element by element.

    Y = Identity(X), Dropout(X) at inference, Cast(X) to its own type, Transpose by the identity, Reshape,
    Expand or Flatten to X's own shape, Pad by nothing, Slice of everything, Concat, Sum, Mean, Max or Min of
    one input, X + 0, X - 0, X * 1, X / 1                                                              =>   X

Legal when: types and shapes are proven equal; no other output is read; the replacement keeps the name of a
graph output and any quantization note (`replacement_problem`).
Exact in bits, but for -0 + 0, which becomes -0 where it was +0.

onnx-ir's IdentityEliminationPass (1.1) is not used: it renames a graph output where two outputs are equal,
and an If branch that only passes an outer value on loses its last node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import onnx_ir

from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.passes.cleanup.graph_edits import (
    constant_ints,
    detach,
    is_default_domain,
    replacement_problem,
    take_over_output,
)
from onnxpress.passes.cleanup.slices import read_slice

__all__ = ["Bypass", "eliminate", "match"]

_Dims = Sequence[int | onnx_ir.SymbolicDim]
_Rule = Callable[[onnx_ir.Node, int], onnx_ir.Value | None]

_INT32_MAX = 2**31 - 1  # exporters write it, or the int64 one, for "to the end"


@dataclasses.dataclass(frozen=True)
class Bypass:
    """A node to drop, and the input that stands for its output."""

    node: onnx_ir.Node
    source: onnx_ir.Value


def match(node: onnx_ir.Node, opset: int) -> Bypass | None:
    """Reads only. None: the node computes something, or its output must stay."""
    find = _RULES.get(node.op_type)
    if find is None or not is_default_domain(node):
        return None
    source = find(node, opset)
    if source is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if replacement_problem(node.outputs[0], source) is not None:
        return None
    return Bypass(node, source)


def eliminate(found: Bypass) -> None:
    """Let the source stand for the node's output and remove the node."""
    take_over_output(found.node.outputs[0], found.source)
    detach(found.node)


def _first(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    return node.inputs[0]


def _only(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    if opset < 7:  # an attribute told training from inference, and training was the default
        return node.inputs[0] if node.attributes.get_int("is_test", 0) else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_tensor(node.inputs[2])
        if training is None or training.numpy().any():
            return None
    return node.inputs[0]


def _cast(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    source = node.inputs[0]
    target = node.attributes.get("to")
    if source is None or source.dtype is None or target is None:
        return None
    if target.type != onnx_ir.AttributeType.INT:  # opset below 6 named the type
        return None
    return source if source.dtype == target.as_int() else None


def _transpose(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    order = node.attributes.get_ints("perm")
    return node.inputs[0] if order is not None and list(order) == list(range(len(order))) else None


def _flatten(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    dims = _dims(node.inputs[0])
    is_same = dims is not None and len(dims) == 2 and node.attributes.get_int("axis", 1) in (1, -1)
    return node.inputs[0] if is_same else None


def _reshape(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    dims, wanted = _dims(node.inputs[0]), constant_ints(node, 1)
    if dims is None or wanted is None or len(dims) != len(wanted):
        return None
    # 0 copies the dimension; with all others equal, -1 can only stand for the one at its own place.
    copies = not node.attributes.get_int("allowzero", 0)
    pairs = zip(wanted, dims, strict=True)
    unproven = [size for size, dim in pairs if size != dim and not (size == 0 and copies)]
    return node.inputs[0] if unproven in ([], [-1]) else None


def _expand(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    dims, wanted = _dims(node.inputs[0]), constant_ints(node, 1)
    if dims is None or wanted is None or len(wanted) > len(dims):
        return None
    trailing = dims[len(dims) - len(wanted) :]
    is_same = all(size in (1, dim) for size, dim in zip(wanted, trailing, strict=True))
    return node.inputs[0] if is_same else None


def _pad(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    pads = constant_ints(node, 1) if opset >= 11 else node.attributes.get_ints("pads")
    return node.inputs[0] if pads is not None and not any(pads) else None


def _slice(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
    cut = read_slice(node, opset)
    if cut is None or any(cut.starts) or any(step != 1 for step in cut.steps):
        return None
    dims = _dims(node.inputs[0])
    is_whole = all(_reaches_end(end, dims, axis) for axis, end in zip(cut.axes, cut.ends, strict=True))
    return node.inputs[0] if is_whole else None


def _reaches_end(end: int, dims: _Dims | None, axis: int) -> bool:
    if dims is None or not -len(dims) <= axis < len(dims):
        return end >= _INT32_MAX
    dim = dims[axis]
    return end >= (dim if isinstance(dim, int) else _INT32_MAX)


def _neutral(number: int, *, either_side: bool) -> _Rule:
    """Return the rule for an operator that a constant `number` leaves as it was."""

    def find(node: onnx_ir.Node, opset: int) -> onnx_ir.Value | None:
        for index in (1, 0) if either_side else (1,):
            other, tensor = node.inputs[1 - index], constant_tensor(node.inputs[index])
            if other is None or tensor is None or tensor.size != 1 or tensor.numpy().item() != number:
                continue
            # A constant of higher rank would add dimensions: only a scalar is safe for an unknown rank.
            dims = _dims(other)
            if len(tensor.shape) <= (0 if dims is None else len(dims)):
                return other
        return None

    return find


def _dims(value: onnx_ir.Value | None) -> _Dims | None:
    shape = None if value is None else proven_shape(value)
    return None if shape is None else tuple(shape)


_RULES: dict[str, _Rule] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Expand": _expand,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _only,
    "Sum": _only,
    "Mean": _only,
    "Max": _only,
    "Min": _only,
    "Add": _neutral(0, either_side=True),
    "Sub": _neutral(0, either_side=False),
    "Mul": _neutral(1, either_side=True),
    "Div": _neutral(1, either_side=False),
}
