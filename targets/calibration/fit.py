"""Fit the numbers of a roofline to measured times.

Each sample's residual is the logarithm of predicted over measured time, so that a factor of two counts alike for small
and large layers; steps that the clock cannot resolve count less. The sum of the residuals' soft absolute values is
minimized (Huber's idea: what the formula cannot explain does not drag the rest along), over the logarithms of the
numbers, which keeps them above zero. Steps and shapes of the formula stay those of the profile that is fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.passes.constraints import Precision
from onnxpress.targets.calibration.measure import Measurement, Sample
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.schema import Profile, Rates, Roofline

__all__ = ["Fit", "fit"]

_Array = npt.NDArray[np.float64]

_CLOCK_SECONDS = 1.0e-6  # what the runtime's profiler resolves
_SCALE = 0.15  # residuals above this share count by their size, not by its square
_DIGITS = 3
_STEPS = 40  # of the minimization, at most
# Numbers for each precision, with where a fit of float32 and of int8 starts that knows nothing: GFLOP/s, nanoseconds,
# microseconds, channels, rows. None: it is not fitted where the profile has none.
_RATES: dict[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(("conv", "pointwise", "depthwise", "grouped", "gemm"), (None, None)),
    "overhead_us": (None, None),
    "light_overhead_us": (0.5, 0.5),
    "half_peak_channels": (2.0, 2.0),
    "half_peak_rows": (None, 6.0),  # in float32 a product of one row is bound by its weights
    "set_channels": (4.0, 4.0),
    "border": (0.3, 0.3),
    "output_ns": (0.1, 0.1),
    "tap_ns": (0.1, 0.5),
    "activation_ns": (0.1, None),
    "unaligned_factor": (None, None),
    "unaligned_tap_ns": (1.0, 1.0),
    "unaligned_copy_ns": (0.1, 0.1),
    "unaligned_group_ns": (0.5, 0.5),
    "unaligned_depthwise_ns": (0.1, 0.1),
    "convert_ns": (0.1, 0.1),
    "layout_ns": (0.15, 0.15),
}
_SINGLE = ("bandwidth_gb_per_s", "cache_gb_per_s", "fused_add_ns")
_RANGE = 20.0  # a number may become so many times larger or smaller than where it started


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted roofline. errors: of each sample, predicted over measured time less 1. samples: in the same order."""

    roofline: Roofline
    errors: tuple[float, ...]
    samples: tuple[Sample, ...]

    @property
    def median_error(self) -> float:
        """Median of the errors' sizes."""
        return float(np.median(np.abs(self.errors)))

    def errors_by_kind(self) -> dict[str, tuple[int, float]]:
        """Return how many samples there are of each kernel, and the median of their errors' sizes."""
        found: dict[str, list[float]] = {}
        for sample, error in zip(self.samples, self.errors, strict=True):
            found.setdefault(sample.kind, []).append(abs(error))
        return {kind: (len(errors), float(np.median(errors))) for kind, errors in sorted(found.items())}


@dataclasses.dataclass(frozen=True)
class _Number:
    """One number of a roofline: a field, and its precision or operator."""

    field: str
    precision: Precision | None = None
    operator: str | None = None
    start: float = 1.0


def fit(profile: Profile, measurement: Measurement) -> Fit:
    """Return the roofline of `profile` with its numbers fitted; those that no sample needs are kept."""
    from scipy.optimize import least_squares

    assert profile.roofline is not None, "a roofline says what there is to fit"
    roofline, samples = profile.roofline, measurement.samples
    weights = np.array([each.seconds / (each.seconds + _CLOCK_SECONDS) for each in samples])
    measured = np.array([each.seconds for each in samples])
    enters = {each: _enters(each, roofline, profile, samples) for each in _numbers(roofline)}
    numbers = [each for each, where in enters.items() if where.any()]  # others would wander

    def residuals(logs: _Array) -> _Array:
        predicted = _predicted(_changed(roofline, numbers, np.exp(logs)), profile, samples)
        found: _Array = weights * np.log(np.maximum(predicted, 1e-9) / measured)
        return found

    start = np.log([each.start for each in numbers])
    found = least_squares(
        residuals, start, bounds=(start - np.log(_RANGE), start + np.log(_RANGE)), loss="soft_l1", f_scale=_SCALE,
        jac_sparsity=np.stack([enters[each] for each in numbers], axis=1), max_nfev=_STEPS,
    )  # fmt: skip
    fitted = _changed(roofline, numbers, np.exp(found.x), round_off=True)
    fitted = fitted.model_copy(update={"call_us": _rounded(measurement.call_ms * 1e3)})
    predicted = _predicted(fitted, profile, samples)
    return Fit(fitted, tuple((predicted / measured - 1).tolist()), tuple(samples))


def _predicted(roofline: Roofline, profile: Profile, samples: Sequence[Sample]) -> _Array:
    costs = {
        size: RooflineCost(roofline, profile.quantization, size)
        for size in {each.working_set_bytes for each in samples}
    }
    return np.array([sum(charge(costs[each.working_set_bytes]).seconds for charge in each.charges) for each in samples])


def _numbers(roofline: Roofline) -> Iterator[_Number]:
    precisions: tuple[Precision, ...] = ("float32", "int8")
    for field, guesses in _RATES.items():
        held: Rates | None = getattr(roofline, field)
        for precision, guess in zip(precisions, guesses, strict=True):
            value = None if held is None else held.kernel(precision)
            if value is not None and (value or guess):
                yield _Number(field, precision, start=value or guess or 1.0)
    for field in _SINGLE:
        if (value := getattr(roofline, field)) is not None:
            yield _Number(field, start=value)
    for operator, rates in roofline.elements.items():
        for precision in precisions:
            if value := rates.kernel(precision):
                yield _Number("elements", precision, operator, value)


def _enters(number: _Number, roofline: Roofline, profile: Profile, samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
    """Return which samples' times a number enters, [samples]."""
    changed = [_changed(roofline, [number], np.array([number.start * factor])) for factor in (1 / _RANGE, _RANGE)]
    low, high = (_predicted(each, profile, samples) for each in changed)
    found: npt.NDArray[np.bool_] = low != high
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _changed(roofline: Roofline, numbers: Sequence[_Number], values: _Array, *, round_off: bool = False) -> Roofline:
    update: dict[str, Any] = {}
    for number, value in zip(numbers, values.tolist(), strict=True):
        rounded = _rounded(value) if round_off else value
        if number.operator is not None:
            elements = update.setdefault("elements", dict(roofline.elements))
            held = elements[number.operator]
            elements[number.operator] = held.model_copy(update={number.precision: rounded})
        elif number.precision is not None:
            held = update.get(number.field, getattr(roofline, number.field))
            update[number.field] = held.model_copy(update={number.precision: rounded})
        else:
            update[number.field] = rounded
    return roofline.model_copy(update=update)
