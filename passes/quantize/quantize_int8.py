"""Quantize activations and weights to 8 bits, statically, from calibration data.

    Y = op(X, W, B)   =>   Y = op(X on [low, high] in 8 bits, W as int8 with a scale per output channel, B')

The pass decides what is quantized: it notes a clipping range on activations and encodes weights. What operators
that becomes is the target's lowering.

1. place    which units run in integers, at least predicted time for the whole graph (`placement`)
2. observe  one streaming pass over the calibration data, a histogram per value (`ir.analysis.histogram`)
3. range    a clipping range per value, shared where the target's kernels need it (`ir.analysis.ranges`)
4. encode   weights, symmetric; a weight that already lies on an integer grid keeps that grid and loses nothing, one of
            few bits keeps its bits, its levels rounded to a grid of 8; where the target's kernels add two products in
            16 bits, so that they cannot saturate (`pair_sums`)
5. correct  biases for the mean error of each layer (`ir.analysis.layer_error`), where it is more than chance

Legal when: values are FLOAT and not quantized before, weights constant; opset 13 or later (the model is raised to it).
A MatMul has no bias, so its mean error stays. Fidelity: lossy; each site records the measured signal-to-noise ratio
of its own output.
Sources: Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (scheme); Nagel et al. 2021, section 3,
https://arxiv.org/abs/2106.08295 (ranges, bias correction).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.analysis.layer_error import LayerError, RoundedLayer, measure_layer_errors
from onnxpress.ir.analysis.ranges import RangeMethod
from onnxpress.ir.encodings import Affine, Encoded, Levels, Sparse, encoding_of, grid_scale
from onnxpress.ir.encodings.integer_grid import integer_table, on_integer_grid
from onnxpress.ir.linear import Linear
from onnxpress.ir.opset import require_opset
from onnxpress.ir.quantization import Quantization, integer_parameters, note
from onnxpress.passes.base import (
    Amount,
    Context,
    Declined,
    Fidelity,
    Options,
    Pass,
    Rewrites,
    Site,
    SiteOptions,
)
from onnxpress.passes.cleanup.graph_edits import set_bias, value_names
from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.passes.order import BEFORE_ENCODING, LOW_BIT
from onnxpress.passes.quantize.calibration import observe_ranges
from onnxpress.passes.quantize.pair_sums import within_pair_limit
from onnxpress.passes.quantize.placement import place, values_between
from onnxpress.passes.quantize.units import Unit, find_units, nodes_before_last_linear
from onnxpress.passes.selectors import Selection
from onnxpress.passes.weight_sites import layer_amount, replace_weight

__all__ = ["QuantizeInt8", "QuantizeInt8Options"]

_PER_CHANNEL_OPSET = 13  # DequantizeLinear takes an axis from here on
_LARGEST_BIAS = 2**30  # half the int32 range: the accumulator needs the rest


class QuantizeInt8Options(SiteOptions):
    """Options of `quantize-int8`."""

    method: RangeMethod = pydantic.Field(
        default="mse", description="how ranges are chosen: minmax, percentile, mse or entropy"
    )
    percentile: float = pydantic.Field(
        default=99.99, gt=50, le=100, description="share of values kept by method=percentile, in percent"
    )
    samples: int | None = pydantic.Field(default=None, ge=1, description="calibration samples to use; all by default")
    bias_correction: bool = pydantic.Field(default=True, description="remove the mean error of each layer's output")
    tail: Literal["float", "int8"] = pydantic.Field(
        default="float", description="precision of what follows the last weighted layer"
    )
    placement: Literal["cost", "all"] = pydantic.Field(
        default="cost", description="quantize where the target's cost estimate gains, or all that can be"
    )
    error_samples: int = pydantic.Field(
        default=16, ge=2, description="samples that measure each layer's error and bias shift"
    )


@dataclasses.dataclass
class _Plan:
    """What will be quantized and with which parameters; everything before the first change of the model."""

    units: list[Unit]
    ranges: dict[onnx_ir.Value, Quantization]
    weights: dict[Unit, Encoded]
    widened: dict[Unit, str]
    errors: dict[Unit, LayerError]


class QuantizeInt8(Pass):
    """Quantize activations and weights to 8 bits from calibration data, where the target gains by it."""

    name: ClassVar[str] = "quantize-int8"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = QuantizeInt8Options
    after: ClassVar[tuple[str, ...]] = (*BEFORE_ENCODING, *LOW_BIT)
    options: QuantizeInt8Options

    @property
    def needs_data(self) -> bool:
        """Always: ranges come from real samples."""
        return True

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Quantize `model` in place.

        Raises:
            UsageError: no calibration data, or a selector that matches nothing.
        """
        data = context.require_data(self.name)
        rewrites = Rewrites()
        if "affine8" not in context.constraints.encodings:
            rewrites.declined.append(Declined("model", "model", f"{context.constraints.target} stores no int8 weights"))
            return rewrites
        if not context.constraints.quantization.compute:
            reason = f"{context.constraints.target} computes no operator in integers"
            rewrites.declined.append(Declined("model", "model", reason))
            return rewrites
        units = self._choose(model, context, rewrites)
        if not units:
            return rewrites
        if require_opset(model, _PER_CHANNEL_OPSET, reason=f"{self.name} stores a scale per channel"):
            rewrites = Rewrites()  # its nodes are others now, and so may be what can be quantized
            units = self._choose(model, context, rewrites)
        scheme = context.constraints.quantization
        ranges = observe_ranges(
            model, units, data, values_between(units), method=self.options.method,
            percentile=self.options.percentile, samples=self.options.samples, progress=context.progress,
        )  # fmt: skip
        encoded = {unit: _encode(unit.linear, ranges[unit.linear.data], scheme) for unit in units if unit.linear}
        weights = {unit: weight for unit, (weight, _) in encoded.items()}
        activation = scheme.activation
        layers = [
            RoundedLayer(unit.linear, ranges[unit.linear.data], weights[unit], activation.signed, activation.symmetric)
            for unit in units
            if unit.linear
        ]
        errors = measure_layer_errors(model, layers, data, samples=self.options.error_samples)
        widened = {unit: told for unit, (_, told) in encoded.items()}
        plan = _Plan(units, ranges, weights, widened, dict(zip(weights, errors, strict=True)))
        names = value_names(model)
        for unit in units:
            rewrites.sites.append(self._apply(model, unit, plan, names))
        for value, quantization in ranges.items():
            note(value, quantization)
        return rewrites

    def _choose(self, model: onnx_ir.Model, context: Context, rewrites: Rewrites) -> list[Unit]:
        """Return the units to quantize, and record why the others are not."""
        units, rewrites.declined = find_units(model.graph, context.constraints.quantization)
        selection = Selection.from_options(self.options, model, self.name)
        before_last = nodes_before_last_linear(model.graph, units)
        candidates: list[Unit] = []
        for unit in units:
            reason = selection.reason(unit.node)
            if reason is None and self.options.tail == "float" and unit.node not in before_last:
                reason = "follows the last weighted layer; tail=int8 would quantize it"
            if reason is None:
                candidates.append(unit)
            else:
                rewrites.declined.append(_declined(unit, reason))
        costs = context.constraints.costs
        if costs is None or self.options.placement == "all":
            return candidates
        reasons = place(candidates, costs)
        rewrites.declined.extend(_declined(unit, reason) for unit, reason in reasons.items())
        return [unit for unit in candidates if unit not in reasons]

    def _apply(self, model: onnx_ir.Model, unit: Unit, plan: _Plan, names: set[str | None]) -> Site:
        amount, detail = _amount(unit), _describe(unit, plan.ranges)
        if unit.linear is None:
            return Site(unit.name, unit.node.op_type, amount, amount, detail=detail)
        error = plan.errors[unit]
        detail += plan.widened.get(unit, "")
        replace_weight(model, unit.linear, plan.weights[unit], names)
        if self.options.bias_correction:
            _shift_bias(model, unit.linear, error.significant_shift(), names)
        return Site(unit.name, unit.node.op_type, amount, _amount(unit), {"sqnr_db": error.sqnr_db}, detail)


def _declined(unit: Unit, reason: str) -> Declined:
    return Declined(unit.name, unit.node.op_type, reason)


def _encode(linear: Linear, data: Quantization, scheme: QuantizationScheme) -> tuple[Encoded, str]:
    """Encode the stored weight of `linear`, its sums of products within what the accumulators hold.

    Returns: the weight, and for the record why one of few bits could not keep them; empty where that is not so.
    """
    encoded = encoding_of(linear.weight_value)
    narrow = encoded.inner if isinstance(encoded, Sparse) else encoded
    if encoded is None or not (isinstance(narrow, Levels) or (isinstance(narrow, Affine) and narrow.bits < 8)):
        return _in_eight_bits(linear, data, scheme), ""
    kept = _in_few_bits(linear, encoded, data, scheme)
    if not isinstance(kept, str):
        return kept, ""
    return _in_eight_bits(linear, data, scheme), f"; its {encoded.label} weight became affine8: {kept}"


def _in_few_bits(linear: Linear, encoded: Encoded, data: Quantization, scheme: QuantizationScheme) -> Encoded | str:
    """Return a weight of few bits as it can stay beside integers, or why it cannot."""
    limit = 127 if scheme.weight_pair_limit is None else scheme.weight_pair_limit // 2
    kept = on_integer_grid(encoded, linear.out_axis, limit)
    table = integer_table(kept, linear.out_axis, limit)
    if table is None:
        return "integer kernels take one scale for an output channel, and no blocks or groups of inputs"
    if table.scale.ndim and not scheme.weight_per_channel:
        return "the target's kernels take one scale for the whole weight"
    bias = linear.bias()
    if bias is not None:
        least = _least_scale(linear, bias.astype(np.float64), _data_scale(data, scheme), table.scale)
        if np.any(table.scale < least):
            return "its bias would overflow 32 bits at the scale of a channel that is almost zero"
    return kept


def _in_eight_bits(linear: Linear, data: Quantization, scheme: QuantizationScheme) -> Affine:
    stored = linear.to_stored(linear.weight())
    axis = linear.out_axis if scheme.weight_per_channel else None
    bits = scheme.weight.bits
    scale = grid_scale(stored, axis, bits)
    encoded = Affine.quantize(stored, bits=bits, axis=axis, scale=scale)
    bias = linear.bias()
    if bias is not None:
        least = _least_scale(linear, bias.astype(np.float64), _data_scale(data, scheme), encoded.scale)
        if np.any(encoded.scale < least):
            encoded = Affine.quantize(stored, bits=bits, axis=axis, scale=np.maximum(encoded.scale, least))
    limit = scheme.weight_pair_limit
    if limit is None or linear.node.op_type == "ConvTranspose" or _is_one_by_one(linear):
        return encoded  # no integer kernel; and those of depthwise convolutions add products in 32 bits
    codes, scale = within_pair_limit(linear.weight(), encoded.scale, limit)
    return Affine(linear.to_stored(codes), scale, bits=bits, axis=axis)


def _data_scale(data: Quantization, scheme: QuantizationScheme) -> float:
    activation = scheme.activation
    scale, _ = integer_parameters(data, signed=activation.signed, symmetric=activation.symmetric)
    return float(scale)


def _is_one_by_one(linear: Linear) -> bool:
    """Whether each output channel reads one input channel of its own."""
    return linear.is_depthwise and linear.out_channels == linear.in_channels


def _least_scale(
    linear: Linear, bias: npt.NDArray[np.float64], data_scale: float, scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Smallest weight scales at which `bias / (data_scale * scale)` stays inside the int32 accumulator.

    A channel of almost no weight has almost no scale, and its bias would overflow: 8 bits of nothing are
    given up for it.
    """
    least = np.abs(bias) / (data_scale * _LARGEST_BIAS)
    if scale.ndim == 0:
        return np.asarray(least.max(initial=0.0), np.float32)
    # ConvTranspose stores one scale for the same channel of every group.
    by_scale = least.reshape(linear.groups if scale.size < least.size else 1, -1)
    return np.asarray(by_scale.max(axis=0), np.float32)


def _shift_bias(model: onnx_ir.Model, linear: Linear, shift: npt.NDArray[np.float64], names: set[str | None]) -> None:
    """Add `shift` [out_channels] to the bias. A MatMul has none to take it, and is left as it is."""
    if linear.node.op_type == "MatMul" or not np.any(shift):
        return
    assert shift.shape == (linear.out_channels,), "layer errors have one mean per output channel"
    bias = linear.bias()
    corrected = (shift if bias is None else bias + shift).astype(np.float32)
    set_bias(linear.node, corrected, model, names)


def _amount(unit: Unit) -> Amount:
    return Amount(macs=node_macs(unit.node) or 0) if unit.linear is None else layer_amount(unit.linear)


def _describe(unit: Unit, ranges: Mapping[onnx_ir.Value, Quantization]) -> str:
    inputs = ", ".join(_interval(ranges[value]) for value in unit.inputs)
    output = ranges.get(unit.output)
    return f"in {inputs}; out {_interval(output) if output else 'float'}"


def _interval(quantization: Quantization) -> str:
    return f"[{quantization.low:.4g}, {quantization.high:.4g}]"
