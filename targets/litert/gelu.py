"""Fuse the operators that exporters write for GELU, because LiteRT has GELU and no Erf.

    y = x * (Erf(x / sqrt(2)) + 1) * 0.5    =>    y = Gelu(x)          in any order of the products
Legal when: the numbers are those, up to 2e-5, and broadcast nothing; each value between, but for a half of x, is read
once and is no output. Notes on them are
dropped: the kernel rounds nothing in between. LiteRT's own erf is off by at most 1e-4 (version 2.3.0, XNNPACK).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.litert.rules.base import is_read
from onnxpress.targets.litert.static_shapes import shape_of

__all__ = ["fuse_gelu"]

_CLOSE = 2e-5  # of its size: exporters write 1.4142


def fuse_gelu(model: onnx_ir.Model) -> None:
    """Put Gelu in the place of its parts in the main graph, in place, whatever the opset. Shapes were inferred."""
    for node in list(model.graph):
        root, data = _find(node) if node.op_type == "Erf" else (None, None)
        if root is None or data is None or shape_of(root.outputs[0]) != shape_of(data):
            continue
        before = list(root.inputs)
        root.op_type = "Gelu"
        root.replace_input_with(0, data)
        root.resize_inputs(1)
        _remove_unread(model.graph, before)


def _find(erf: onnx_ir.Node) -> tuple[onnx_ir.Node | None, onnx_ir.Value | None]:
    """Return the node that makes the GELU around an Erf, and what it is of; None for both where there is none."""
    data = _divided(erf.inputs[0], math.sqrt(2))
    moved = _reader(erf, "Add")
    if data is None or moved is None or _operand(moved, 1.0) is not erf.outputs[0]:
        return None, None
    product = _reader(moved, "Mul")
    if product is None:
        return None, None
    other = _other(product, moved.outputs[0])
    if _divided(other, 2.0) is data:
        return product, data
    last = _reader(product, "Mul")
    if last is None:
        return None, None
    if other is data:
        return (last, data) if _operand(last, 0.5) is product.outputs[0] else (None, None)
    is_half = _operand(product, 0.5) is moved.outputs[0]
    return (last, data) if is_half and _other(last, product.outputs[0]) is data else (None, None)


def _remove_unread(graph: onnx_ir.Graph, values: Iterable[onnx_ir.Value | None]) -> None:
    """Remove the nodes that make `values`, and then what made theirs, as far as nothing reads them any more."""
    pending = [value.producer() for value in values if value is not None]
    while pending:
        node = pending.pop()
        if node is None or node.graph is None or any(map(is_read, node.outputs)):
            continue
        pending += [value.producer() for value in node.inputs if value is not None]
        graph.remove(node, safe=True)


def _reader(node: onnx_ir.Node, op_type: str) -> onnx_ir.Node | None:
    """Return the node that alone reads what `node` makes, where it is of that operator."""
    value = node.outputs[0]
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    (reader,) = value.consumers()
    return reader if reader.op_type == op_type and len(reader.inputs) == 2 else None


def _other(node: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _operand(node: onnx_ir.Node, number: float) -> onnx_ir.Value | None:
    """Return the operand beside a constant of about that number; None where there is no such constant."""
    for value, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        held = constant_numbers(other)
        if held is not None and held.size == 1 and math.isclose(float(held.reshape(())), number, rel_tol=_CLOSE):
            return value
    return None


def _divided(value: onnx_ir.Value | None, number: float) -> onnx_ir.Value | None:
    """Return what `value` is the quotient of, by that number; None where it is none."""
    node = None if value is None else value.producer()
    if node is None or len(node.inputs) != 2:
        return None
    if node.op_type == "Mul":
        return _operand(node, 1 / number)
    found = _operand(node, number) if node.op_type == "Div" else None
    return found if found is node.inputs[0] else None
