"""Write an ONNX model as a .tflite file for LiteRT (TensorFlow Lite), without TensorFlow.

    fix the batch and all shapes   =>   units (`plan`)   =>   orders of images (`layout`)   =>   operators (`rules`)

The model keeps its interface: inputs and outputs have ONNX's order [N, C, H, W] (a TRANSPOSE stands behind an input
that is an image), unless it is asked for channels last. Notes on activations and encodings of weights become int8,
signed, weights with a scale for each output channel; what is not noted, or has no int8 kernel, stays float between
QUANTIZE and DEQUANTIZE. The file computes the noted model's function up to rounding: kernels round the products of
integers, at most by one step of each result.

The model is read, never changed. Bodies of If, Loop and Scan have no form here, and are refused like any operator
without a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.targets.litert.flatbuffer import FlatGraph, Tensor
from onnxpress.targets.litert.layout import Demand, Layouts, plan_layouts
from onnxpress.targets.litert.plan import find_flattened, layered_values, plan_units
from onnxpress.targets.litert.problems import describe_problems, fix_and_check
from onnxpress.targets.litert.rules.base import Site, Unit
from onnxpress.targets.litert.rules.linear import LinearRule
from onnxpress.targets.litert.static_shapes import shape_of
from onnxpress.targets.litert.values import Values
from onnxpress.targets.litert.weights import describe_form
from onnxpress.targets.lowering.report import LoweringReport

__all__ = ["Emitted", "emit", "emit_tflite"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # forms that say how layers compute, not how weights are stored


@dataclasses.dataclass(frozen=True)
class Emitted:
    """A .tflite file and how it came to be.

    operators: count by LiteRT name. transposes: how many images are read in both orders, the fewest possible.
    constant_bytes: what all constants take, weights above all.
    integer, real: names of convolutions and products that compute in int8, and of those in float.
    report: forms of weights and values, and what a user should know.
    """

    content: bytes
    operators: Mapping[str, int]
    transposes: int
    constant_bytes: int
    integer: tuple[str, ...]
    real: tuple[str, ...]
    report: LoweringReport


def emit_tflite(model: onnx_ir.Model, *, batch: int = 1, channels_last: bool = False) -> bytes:
    """Return `model` as a .tflite file. batch: what an open batch becomes. channels_last: images of the interface are
    [N, H, W, C], which saves their transposes.

    Raises:
        UsageError: LiteRT or flatbuffers is not installed.
        InputError: sizes are open, or an operator has no form in LiteRT; nothing is written then.
    """
    return emit(model, batch=batch, channels_last=channels_last).content


def emit(model: onnx_ir.Model, *, batch: int = 1, channels_last: bool = False) -> Emitted:
    """Return `model` as a .tflite file with its record. Arguments and errors: see `emit_tflite`."""
    graph = FlatGraph()
    copy = model.clone()
    notes, problems = fix_and_check(copy, batch)
    if problems:
        raise InputError(describe_problems(problems))
    report = LoweringReport(notes=notes)
    units = plan_units(copy)
    inputs = [value for value in copy.graph.inputs if not value.is_initializer()]  # the others are read by none
    outputs = list(copy.graph.outputs)
    flattened = find_flattened(units, outputs)
    layered = dict.fromkeys([*layered_values(units, inputs), *flattened])
    touches = [unit.rule.touch(unit, layered) for unit in units]
    interface = Demand.LAST if channels_last else Demand.PLAIN
    layouts = plan_layouts(
        touches,
        [value for value in inputs if value in layered],
        [value for value in outputs if value in layered],
        interface=interface,
    )
    values = Values(graph)
    values.flattened.update(flattened)
    given = {str(value.name): _take(values, value, channels_last) for value in inputs}
    for unit in units:
        _write(unit, values, layouts, report)
    last = {value: channels_last and len(shape_of(value) or ()) == 4 for value in outputs}
    made = {str(value.name): values.get(value, last[value]) for value in outputs}
    report.notes += [*_interface_notes(inputs, channels_last), *_form_notes(report)]
    content = graph.finish(given, made, f"{copy.graph.name or 'model'}, written by onnxpress")
    linear = {unit: unit.node.name or str(unit.result.name) for unit in units if isinstance(unit.rule, LinearRule)}
    return Emitted(
        content=content,
        operators=dict(graph.counts),
        transposes=layouts.transposes,
        constant_bytes=graph.constant_bytes,
        integer=tuple(name for unit, name in linear.items() if unit.integer),
        real=tuple(name for unit, name in linear.items() if not unit.integer),
        report=report,
    )


def _take(values: Values, value: onnx_ir.Value, channels_last: bool) -> Tensor:
    last = channels_last and len(shape_of(value) or ()) == 4
    tensor = values.new(value, last)
    values.put(value, tensor, last)
    return tensor


def _write(unit: Unit, values: Values, layouts: Layouts, report: LoweringReport) -> None:
    site = Site(unit, values, unit.node in layouts.agree_last, frozenset(layouts.made_last))
    unit.rule.write(site)
    linear = as_linear(unit.node)
    if isinstance(linear, Linear):
        form = describe_form(linear, integer=unit.integer)
        if form is not None:
            report.forms[form] += 1
        report.forms[f"{unit.node.op_type} -> {'int8' if unit.integer else 'float32'}"] += 1


def _form_notes(report: LoweringReport) -> list[str]:
    """Say once which weights of few bits take more in the file."""
    forms = {form: count for form, count in report.forms.items() if " -> int8" in form or form.endswith(" -> dense")}
    wider = {
        form.split(" -> ")[0]: count for form, count in forms.items() if not form.startswith(("affine8", *_LAYERS))
    }
    if not wider:
        return []
    counted = ", ".join(f"{count} of {label}" for label, count in sorted(wider.items()))
    return [
        f"{sum(wider.values())} weights are stored wider than they are encoded ({counted}): int8 where their levels "
        "lie on a grid of integers, else float32. The format has no narrower form that the fast kernels take"
    ]


def _interface_notes(inputs: list[onnx_ir.Value], channels_last: bool) -> list[str]:
    images = [str(value.name) for value in inputs if len(shape_of(value) or ()) == 4]
    if not images:
        return []
    order = "[N, H, W, C]" if channels_last else "[N, C, H, W] as in ONNX"
    return [f"images of the interface are {order}: {', '.join(images)}"]
