"""Observe activations on calibration data and choose their clipping ranges, shared where kernels need it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir

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
    derived = {unit.output for unit in units if unit.same_scale}
    histograms = {value: Histogram() for value in values if value not in derived}
    by_name = {value.name or "": histogram for value, histogram in histograms.items()}
    for batch in stream(model, data, list(by_name), samples=samples, progress=progress, limit_bytes=_LIMIT_BYTES):
        for name, array in batch.items():
            _update(by_name[name], name, array)
    ranges: dict[onnx_ir.Value, Quantization] = {}
    for number, group in enumerate(_groups(values, units)):
        total = Histogram.of(histograms[value] for value in group if value in histograms)
        low, high = clipping_range(total, method, percentile=percentile)
        label = f"scale{number}" if len(group) > 1 else None
        ranges.update((value, Quantization(low, high, group=label)) for value in group)
    return {value: ranges[value] for value in values}


def _update(histogram: Histogram, name: str, array: object) -> None:
    try:
        histogram.update(array)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(
            f"calibration: value {name!r}: {error} on the calibration data. Check the samples' preprocessing"
        ) from None


def _groups(values: Iterable[onnx_ir.Value], units: Iterable[Unit]) -> list[list[onnx_ir.Value]]:
    """Return the values in groups that share one range, in order of first appearance."""
    group_of = {value: [value] for value in values}
    for unit in units:
        for value in unit.inputs if unit.same_scale else ():
            into, joined = group_of[unit.output], group_of[value]
            if into is not joined:
                into.extend(joined)
                group_of.update((member, into) for member in joined)
    return list({id(group): group for group in group_of.values()}.values())
