"""Build the relation of a whole model: every node's rule, or what it reads and makes frozen."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.analysis.coupling import control, elementwise, layout, linear, recurrent, reduce
from onnxpress.ir.analysis.coupling.registry import RULES, Rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Relation, Size, describe
from onnxpress.ir.analysis.coupling.sizes import computed_sizes, freeze_readers

__all__ = ["relate", "rule_of"]

_MODULES = (control, elementwise, layout, linear, recurrent, reduce)  # imported for the rules they register


def rule_of(node: onnx_ir.Node) -> Rule | None:
    """Return the rule of a node's operator, or None."""
    return RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def relate(model: onnx_ir.Model, *, interface: bool = True) -> Relation:
    """Let every node of `model`, bodies included, say what it ties. Shapes must be inferred.

    interface: keep graph inputs and outputs as they are. Without it, they may lose indices as all else.
    """
    relation = Relation(model)
    if interface:
        _freeze_interface(relation, model)
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Constant":
            _relate(relation, node)
    for graph in model.graphs():
        for value in graph.outputs:
            axes = [number.axis for number in relation.computed.get(value, ()) if isinstance(number, Size)]
            relation.freeze(axes, f"its size is output {value.name!r}", interface=True)
    return relation


def _freeze_interface(relation: Relation, model: onnx_ir.Model) -> None:
    for value in model.graph.inputs:
        if value.shape is not None:
            relation.freeze(relation.value(value).axes(), f"graph input {value.name!r}", interface=True)
    for value in model.graph.outputs:
        if value.shape is not None:
            relation.freeze(relation.value(value).axes(), f"graph output {value.name!r}", interface=True)


def _relate(relation: Relation, node: onnx_ir.Node) -> None:
    relation.begin()
    freeze_readers_needed = bool(relation.computed)
    try:
        sizes = computed_sizes(relation, node)
        if sizes is not None:
            relation.computed[node.outputs[0]] = sizes
            relation.free(*relation.value(node.outputs[0]).axes())
            relation.freeze(relation.value(node.outputs[0]).axes(), "a shape")
            return
        if freeze_readers_needed:
            freeze_readers(relation, node)
        found = rule_of(node)
        if found is None:
            what = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
            raise NoRule(f"operator {what!r} has no rule")
        found.couple(relation, node)
    except NoRule as problem:
        relation.freeze_node(node, f"{describe(node)}: {problem}")
        return
    relation.finish(node)
