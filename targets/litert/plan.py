"""What is written of a graph: which nodes, fused with which activations, in integers or in float.

Only what the outputs depend on through data is written: nodes that compute shapes fall away, for all shapes are
known. What cannot be written was found before (`problems`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.ir.opset import default_opset
from onnxpress.targets.litert.layout import is_image
from onnxpress.targets.litert.problems import needed_nodes
from onnxpress.targets.litert.rules.base import Rule, Unit, shape
from onnxpress.targets.litert.rules.elementwise import Clipping, Function, Same, covers, fused_name
from onnxpress.targets.litert.rules.moves import Reshape
from onnxpress.targets.litert.rules.products import takes_columns
from onnxpress.targets.litert.rules.table import rule_of
from onnxpress.targets.litert.values import is_noted

__all__ = ["find_flattened", "layered_values", "plan_units"]


def plan_units(model: onnx_ir.Model) -> list[Unit]:
    """Return the units of the main graph in its order. It was checked to have no problems."""
    return list(_units(needed_nodes(model.graph), default_opset(model)))


def find_flattened(units: Sequence[Unit], outputs: Sequence[onnx_ir.Value]) -> dict[onnx_ir.Value, tuple[int, ...]]:
    """Return the values [N, C*H*W] whose columns can have any order, with (C, H, W): products alone read them."""
    found: dict[onnx_ir.Value, tuple[int, ...]] = {}
    for unit in units:
        if isinstance(unit.rule, Reshape):
            (data,) = unit.rule.data(unit.node)
            sizes = shape(data)
            flat = shape(unit.result)
            if len(sizes) == 4 and len(flat) == 2 and flat[0] == sizes[0]:
                chain = _column_chain(unit.result, outputs)
                found.update(dict.fromkeys(chain or (), sizes[1:]))
    return found


def _column_chain(value: onnx_ir.Value, outputs: Sequence[onnx_ir.Value]) -> list[onnx_ir.Value] | None:
    """Return `value` and what is computed of it number by number, where products alone read them in the end."""
    if value in outputs or not value.uses():
        return None
    chain = [value]
    for reader, _ in value.uses():
        if takes_columns(reader, value):
            continue
        rule = rule_of(reader)
        if not isinstance(rule, Function | Clipping | Same) or len(reader.outputs) != 1:
            return None
        rest = _column_chain(reader.outputs[0], outputs)
        if rest is None:
            return None
        chain += rest
    return chain


def _units(nodes: Sequence[onnx_ir.Node], opset: int) -> Iterator[Unit]:
    taken: set[onnx_ir.Node] = set()
    for node in nodes:
        if node in taken:
            continue
        rule = rule_of(node)
        assert rule is not None, "checked above"
        unit = _fused(node, rule, opset)
        if unit is not None and unit.activation is not None:
            taken.add(unit.activation)
            yield unit
        else:
            yield Unit(node, rule, opset, rule.is_integer(node, node.outputs))


def _fused(node: onnx_ir.Node, rule: Rule, opset: int) -> Unit | None:
    """Return the node together with the activation that alone reads it, where its kernel computes that as well."""
    value = node.outputs[0]
    if len(node.outputs) != 1 or value.is_graph_output() or len(value.uses()) != 1 or is_noted(value):
        return None
    (activation,) = value.consumers()
    if not isinstance(rule_of(activation), Clipping) or constant_numbers(value) is not None:
        return None
    integer = rule.is_integer(node, activation.outputs)
    name = fused_name(activation) if rule.fuses(node) else None
    if name is None and not (integer and covers(activation)):
        return None
    return Unit(node, rule, opset, integer, activation, name)


def layered_values(units: Sequence[Unit], inputs: Sequence[onnx_ir.Value]) -> set[onnx_ir.Value]:
    """Return the images among what is written."""
    made = [value for unit in units for value in unit.results]
    return {value for value in [*inputs, *made] if is_image(value)}
