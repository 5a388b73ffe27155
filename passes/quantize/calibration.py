"""Observe activations on calibration data and choose their clipping ranges, shared where kernels need it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir

from onnxpress.ir.activations import activation_limits
from onnxpress.ir.analysis.execute import ProgressLike, stream
from onnxpress.ir.analysis.histogram import Histogram
from onnxpress.ir.analysis.ranges import RangeMethod, clipping_range
from onnxpress.ir.data import DataSource
from onnxpress.ir.errors import InputError
from onnxpress.ir.quantization import Quantization
from onnxpress.passes.quantize.units import Unit

__all__ = ["observe_ranges"]

_LIMIT_BYTES = 6 << 20  # of observed values at a time: a few samples of a small net, one of a large one


def observe_ranges(
    model: onnx_ir.Model,
    units: Sequence[Unit],
    data: DataSource,
    values: Sequence[onnx_ir.Value],
    *,
    method: RangeMethod,
    percentile: float = 99.99,
    samples: int | None = None,
    progress: ProgressLike | None = None,
) -> dict[onnx_ir.Value, Quantization]:
    """Return a clipping range for each of `values`, from one streaming pass over `data`.

    Values joined by a same-scale unit get one range. Of such a group only the values that other operators
    compute are observed: the outputs of pooling or reshaping hold nothing new.

    Raises:
        InputError: a value turns NaN or infinite on the calibration data.
    """
    derived = {unit.output: unit.inputs for unit in units if unit.same_scale}
    histograms = {value: Histogram() for value in values if value not in derived}
    by_name = {value.name or "": histogram for value, histogram in histograms.items()}
    for batch in stream(model, data, list(by_name), samples=samples, progress=progress, limit_bytes=_LIMIT_BYTES):
        for name, array in batch.items():
            _update(by_name[name], name, array)

    def choose(tied: Sequence[Unit]) -> dict[onnx_ir.Value, Quantization]:
        ranges: dict[onnx_ir.Value, Quantization] = {}
        for number, group in enumerate(_groups(values, tied)):
            total = Histogram.of(histograms[value] for value in _sources(group, derived))
            low, high = clipping_range(total, method, percentile=percentile)
            label = f"scale{number}" if len(group) > 1 else None
            ranges.update((value, Quantization(low, high, group=label)) for value in group)
        return ranges

    tied = [unit for unit in units if unit.same_scale]
    ranges = choose(tied)
    loose = _beyond_activation(units, ranges)
    if loose:
        # Only joins of several values can do that, and those have kernels that re-scale.
        ranges = choose([unit for unit in tied if len(unit.inputs) == 1 or ranges[unit.output].group not in loose])
    return {value: ranges[value] for value in values}


def _sources(
    group: Iterable[onnx_ir.Value], derived: Mapping[onnx_ir.Value, Sequence[onnx_ir.Value]]
) -> list[onnx_ir.Value]:
    """Return the observed values whose numbers make up those of `group`, once each."""
    pending, found = list(group), dict[onnx_ir.Value, None]()
    while pending:
        value = pending.pop()
        if value in derived:
            pending.extend(derived[value])
        else:
            found[value] = None
    return list(found)


def _beyond_activation(units: Iterable[Unit], ranges: Mapping[onnx_ir.Value, Quantization]) -> set[str | None]:
    """Return the groups whose shared range lies beyond the limits of an activation that folds into a member's range.

    A Relu whose output is quantized below zero, because it is joined with a value that is negative, would not fold,
    and the Conv before it would be computed in float.
    """
    found = set()
    for unit in units:
        noted = ranges.get(unit.output)
        if unit.activation is not None and noted is not None:
            low, high = activation_limits(unit.activation)
            if noted.low < low or noted.high > high:
                found.add(noted.group)
    return found


def _update(histogram: Histogram, name: str, array: object) -> None:
    try:
        histogram.update(array)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(
            f"calibration: value {name!r}: {error} on the calibration data. Check the samples' preprocessing"
        ) from None


def _groups(values: Iterable[onnx_ir.Value], units: Iterable[Unit]) -> list[list[onnx_ir.Value]]:
    """Return the values in groups that `units` tie to one range, in order of first appearance."""
    group_of = {value: [value] for value in values}
    for unit in units:
        for value in unit.inputs:
            into, joined = group_of[unit.output], group_of[value]
            if into is not joined:
                into.extend(joined)
                group_of.update((member, into) for member in joined)
    return list({id(group): group for group in group_of.values()}.values())
