"""If and Loop: what goes into a body and what comes out is what stands outside."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Relation, bodies, describe

__all__ = ()  # rules register themselves


@rule("If")
def _if(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = what the branch that runs gives back."""
    relation.free(*relation.input(node, 0).axes())
    for index, value in enumerate(node.outputs):
        result = relation.value(value)
        for body in bodies(node):
            _join(relation, node, body.outputs[index], result.axes())


@rule("Loop")
def _loop(relation: Relation, node: onnx_ir.Node) -> None:
    """The body takes trip, condition and states; it gives condition, states, and what the trips stack up."""
    (body,) = bodies(node)
    count = len(node.inputs) - 2
    for index in (0, 1):
        if index < len(node.inputs) and node.inputs[index] is not None:
            relation.free(*relation.input(node, index).axes())
    for value in (*body.inputs[:2], *body.outputs[:1]):
        if value.shape is not None:
            relation.freeze(relation.value(value).axes(), f"steers {describe(node)}")
    for index in range(count):
        start = relation.input(node, index + 2)
        for value in (body.inputs[index + 2], body.outputs[index + 1], node.outputs[index]):
            _join(relation, node, value, start.axes())
    for index in range(count, len(node.outputs)):
        if node.outputs[index].name:
            stacked = relation.value(node.outputs[index])
            relation.freeze([stacked[0]], f"trips of {describe(node)}")
            _join(relation, node, body.outputs[index + 1], stacked.axes(1))


def _join(relation: Relation, node: onnx_ir.Node, value: onnx_ir.Value, axes: range) -> None:
    if not value.name and value.producer() is not None:
        return
    place = relation.value(value)
    if place.rank != len(axes):
        raise NoRule(f"{value.name!r} in its body has another rank than outside")
    relation.same_axes(place.axes(), axes)
