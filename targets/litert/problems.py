"""Find everything that cannot be written of a model, before a byte is: what the writer refuses, and `check` reports.

A .tflite file holds a whole model, so that one such place is enough for none to be written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.ir.opset import default_opset
from onnxpress.targets.litert.gelu import fuse_gelu
from onnxpress.targets.litert.rules.base import Rule, computed, is_read, shape
from onnxpress.targets.litert.rules.table import rule_of
from onnxpress.targets.litert.static_shapes import fix_batch, open_inputs, shape_of
from onnxpress.targets.litert.values import FILE_TYPES

__all__ = ["Problem", "describe_problems", "fix_and_check", "needed_nodes"]

_SHOWN = 5  # problems in one message
_ONNX = ("", "ai.onnx")
# What quantizers write beside those that begin with QLinear.
_QUANTIZED = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "QuantizeLinear"}
)
# XNNPACK, which LiteRT loads a model with, has a limit of axes (XNN_MAX_TENSOR_DIMS, xnnpack.h). With more of them it
# refuses these operators and the model, and others are left to LiteRT's kernels: measured on each that is written here.
_MOST_AXES = 6
_LIMITED = frozenset(
    {"Concat", "Gemm", "LayerNormalization", "MatMul", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax",
     "Split"}
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    """One place that cannot be written. node: its name, and op_type its operator; "" where the whole model is meant."""

    node: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.op_type}): {self.reason}" if self.node else self.reason


def fix_and_check(model: onnx_ir.Model, batch: int = 1) -> tuple[list[str], list[Problem]]:
    """Make `model` ready to be written, in place. Return what was fixed, and what cannot be written.

    Every size becomes a number, open batches `batch`; parts of a GELU become one node. Where other sizes are open no
    shape follows from them, so that operators alone are looked at.
    """
    found = [Problem("", "", reason) for reason in (*open_inputs(model), *_overridable(model), *_untyped(model))]
    quantized = _quantized(model)
    if quantized is not None:
        return [], [*found, quantized]
    if found:
        fuse_gelu(model)
        return [], found + [_problem(node, "no LiteRT operator is known for it") for node in _unknown(model)]
    notes = fix_batch(model, batch)
    fuse_gelu(model)
    return notes, [*_of_nodes(model), *_outputs(model.graph)]


def describe_problems(problems: Sequence[Problem]) -> str:
    """Return one line that tells what cannot be written, and what helps."""
    listed = "; ".join(map(str, problems[:_SHOWN]))
    if len(problems) > _SHOWN:
        listed += f"; and {len(problems) - _SHOWN} more"
    if not any(problem.node for problem in problems):
        return f"LiteRT cannot run this model: {listed}"
    places, what = (f"{len(problems)} places", "them") if len(problems) > 1 else ("1 place", "it")
    return (
        f"LiteRT cannot run {places} of this model: {listed}. Replace {what}, or choose a target that runs ONNX, such "
        "as mobile-cpu"
    )


def needed_nodes(graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """Return the nodes that outputs depend on through data, in order: all shapes are known, and need no nodes."""
    pending = [value.producer() for value in graph.outputs]
    seen: set[onnx_ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen or _is_constant(node):
            continue
        seen.add(node)
        rule = rule_of(node)
        pending += [value.producer() for value in (computed(node) if rule is None else rule.data(node))]
    return [node for node in graph if node in seen]


def _is_constant(node: onnx_ir.Node | None) -> bool:
    return node is not None and node.op_type == "Constant" and node.domain in _ONNX


def _problem(node: onnx_ir.Node, reason: str) -> Problem:
    return Problem(node.name or str(node.outputs[0].name), node.op_type, reason)


# The whole model.


def _overridable(model: onnx_ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        if value.is_initializer() and is_read(value):
            yield (
                f"input {value.name!r} has a default value, and those of a .tflite file have none: leave it out of the "
                "model's inputs, which makes it a constant, or drop the initializer of that name"
            )


def _untyped(model: onnx_ir.Model) -> Iterator[str]:
    for value in model.graph.inputs:
        kind = "unknown" if value.dtype is None else value.dtype.name
        if not value.is_initializer() and kind not in FILE_TYPES:
            yield f"input {value.name!r} is {kind}, and a .tflite file takes {', '.join(FILE_TYPES)}: cast it outside"


def _quantized(model: onnx_ir.Model) -> Problem | None:
    found = [node for node in model.graph if node.op_type in _QUANTIZED or node.op_type.startswith("QLinear")]
    if not found:
        return None
    count = f"{len(found)} nodes" if len(found) > 1 else "1 node"
    first = found[0].name or found[0].outputs[0].name
    return Problem(
        "",
        "",
        f"it is quantized already ({count}, the first {first!r}, {found[0].op_type}): give `compress` the float model, "
        "which it quantizes for LiteRT",
    )


def _unknown(model: onnx_ir.Model) -> list[onnx_ir.Node]:
    return [node for node in needed_nodes(model.graph) if rule_of(node) is None]


def _outputs(graph: onnx_ir.Graph) -> Iterator[Problem]:
    for value in graph.outputs:
        what = "an input" if value.is_graph_input() else "a constant"
        if value.producer() is None or constant_numbers(value) is not None:
            yield Problem(
                "", "", f"output {value.name!r} is {what}, which no operator makes: leave it out of the outputs"
            )


# Single nodes.


def _of_nodes(model: onnx_ir.Model) -> Iterator[Problem]:
    opset = default_opset(model)
    stuck: set[onnx_ir.Node | None] = set()
    for node in needed_nodes(model.graph):
        reason = _reason(node, opset)
        if reason is None:
            continue
        if not any(value.producer() in stuck and shape_of(value) is None for value in computed(node)):
            yield _problem(node, reason)
        stuck.add(node)  # readers of a result that nobody knows are not to blame


def _reason(node: onnx_ir.Node, opset: int) -> str | None:
    rule = rule_of(node)
    if rule is None:
        is_foreign = node.domain not in _ONNX
        return f"its domain {node.domain!r} is not ONNX's own" if is_foreign else "no LiteRT operator is known for it"
    for value, kinds in (*((value, rule.takes) for value in rule.data(node)), (node.outputs[0], rule.makes)):
        reason = _reason_of_value(value, kinds)
        if reason is not None:
            return reason
    return rule.problem(node, opset) or _reason_of_axes(node, rule) or _reason_of_data(node, rule)


def _reason_of_axes(node: onnx_ir.Node, rule: Rule) -> str | None:
    most = max((len(shape(value)) for value in (*rule.data(node), node.outputs[0])), default=0)
    if node.op_type not in _LIMITED or most <= _MOST_AXES:
        return None
    return f"its data have {most} axes, and XNNPACK takes {_MOST_AXES}"


def _reason_of_data(node: onnx_ir.Node, rule: Rule) -> str | None:
    if not rule.data(node):
        return "its data are constant: fold constants first (pass cleanup)"
    reasons = (_reason_of_value(value, rule.makes) for value in node.outputs[1:] if is_read(value))
    return next(filter(None, reasons), None)


def _reason_of_value(value: onnx_ir.Value, kinds: frozenset[str]) -> str | None:
    if shape_of(value) is None:
        return f"the shape of {value.name!r} does not follow from the model's inputs"
    kind = "unknown" if value.dtype is None else value.dtype.name
    if kind not in kinds:
        return f"{value.name!r} is {kind}, and only {' or '.join(sorted(kinds))} is written here"
    return f"{value.name!r} {list(shape(value))} is empty" if 0 in shape(value) else None
