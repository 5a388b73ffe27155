"""Choose the range that an activation is clipped to, from its histogram.

minmax      the extremes of the calibration data
percentile  the smallest range that holds a share of the values (each tail loses half of the rest)
mse         the range of least expected squared error: rounding inside, clipping outside
entropy     the range whose quantized histogram diverges least from the original (Migacz 2017, "8-bit
            inference with TensorRT", slides 27-38), generalized to two-sided ranges by shrinking both ends

The expected squared error of a uniform quantizer with step s is s^2/12 for a value inside the range (Widrow &
Kollar 2008, ch. 1) and (x - end)^2 outside. Zeros cost nothing: zero is on every grid.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.histogram import Histogram

__all__ = ["RangeMethod", "clipping_range", "expected_squared_error"]

RangeMethod = Literal["minmax", "percentile", "mse", "entropy"]
_Array = npt.NDArray[np.float64]

_CANDIDATES = 128
_SMALLEST_SHARE = 0.05  # of the extreme: no layer that we met is best clipped harder


def clipping_range(
    histogram: Histogram, method: RangeMethod, *, bits: int = 8, percentile: float = 99.99
) -> tuple[float, float]:
    """Return `(low, high)`, `low <= 0 <= high`, in real units.

    percentile: in percent, used by that method alone.

    Raises:
        ValueError: the histogram is empty.
    """
    if histogram.size == 0:
        raise ValueError("empty histogram: no value was seen")
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "minmax" or histogram.counts.size == 0:
        return low, high
    if method == "percentile":
        return _percentile_range(histogram, low, high, percentile)
    if method == "mse":
        return _least_error_range(histogram, low, high, bits)
    return _least_divergence_range(histogram, low, high, bits)


def expected_squared_error(histogram: Histogram, low: float, high: float, *, bits: int = 8) -> float:
    """Return the mean squared error of quantizing the stream to `bits` on `[low, high]`, in squared real units."""
    if histogram.size == 0:
        return 0.0
    tails = _Tails(histogram)
    total = float(histogram.counts.sum() + histogram.zeros)
    return float(tails.error(np.array([low]), np.array([high]), bits)[0]) / max(total, 1.0)


class _Tails:
    """Sums over the bins beyond a threshold in O(log B), for many thresholds at once."""

    def __init__(self, histogram: Histogram) -> None:
        self.centers = histogram.centers
        counts = histogram.counts
        zero = np.zeros(1)
        self.sums = [np.concatenate([zero, np.cumsum(counts * self.centers**power)]) for power in range(3)]

    def _below(self, threshold: _Array) -> list[_Array]:
        index = np.searchsorted(self.centers, threshold)
        return [sums[index] for sums in self.sums]

    def error(self, low: _Array, high: _Array, bits: int) -> _Array:
        """Sum of expected squared errors for each pair of ends, [K]."""
        step = (high - low) / (2**bits - 1)
        n0, n1, n2 = self._below(low)
        h0, h1, h2 = self._below(high)
        t0, t1, t2 = (sums[-1] for sums in self.sums)
        clipped_low = n2 - 2 * low * n1 + low**2 * n0
        clipped_high = (t2 - h2) - 2 * high * (t1 - h1) + high**2 * (t0 - h0)
        result: _Array = (h0 - n0) * step**2 / 12 + clipped_low + clipped_high
        return result


def _percentile_range(histogram: Histogram, low: float, high: float, percentile: float) -> tuple[float, float]:
    # The zeros lie between the tails: they count towards the share but are never clipped.
    counts, edges = histogram.counts, histogram.first + np.arange(histogram.counts.size + 1)
    outside = (counts.sum() + histogram.zeros) * (1 - percentile / 100)
    two_sided = low < 0 < high
    each = outside / 2 if two_sided else outside
    below = np.concatenate([[0.0], np.cumsum(counts)])
    keep_from = int(np.searchsorted(below, each, side="right")) - 1
    keep_to = int(np.searchsorted(below, below[-1] - each, side="left"))
    new_low = max(low, float(edges[keep_from] * histogram.width)) if low < 0 else 0.0
    new_high = min(high, float(edges[keep_to] * histogram.width)) if high > 0 else 0.0
    return min(new_low, 0.0), max(new_high, 0.0)


def _least_error_range(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    # Shrink both ends together, then each end alone: the error is smooth and nearly separable.
    tails = _Tails(histogram)
    shares = np.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES)
    best = int(np.argmin(tails.error(low * shares, high * shares, bits)))
    best_low, best_high = low * shares[best], high * shares[best]
    for _ in range(2):
        if low < 0:
            ends = low * shares
            best_low = ends[int(np.argmin(tails.error(ends, np.full_like(ends, best_high), bits)))]
        if high > 0:
            ends = high * shares
            best_high = ends[int(np.argmin(tails.error(np.full_like(ends, best_low), ends, bits)))]
    return float(best_low), float(best_high)


def _least_divergence_range(histogram: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
    shares = np.linspace(_SMALLEST_SHARE, 1.0, _CANDIDATES)
    divergences = [_divergence(histogram, low * share, high * share, 2**bits) for share in shares]
    share = float(shares[int(np.argmin(divergences))])
    return low * share, high * share


def _divergence(histogram: Histogram, low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped, quantized histogram from the original, in nats."""
    centers = histogram.centers
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return float("inf")
    kept = histogram.counts[inside].copy()
    level = np.minimum(((centers[inside] - low) / (high - low) * levels).astype(np.int64), levels - 1)
    occupied = kept > 0
    mass = np.bincount(level, weights=kept, minlength=levels)
    spread = np.bincount(level, weights=occupied.astype(np.float64), minlength=levels)
    quantized = np.where(occupied, mass[level] / np.maximum(spread[level], 1), 0.0)
    reference = kept
    reference[0] += histogram.counts[centers < low].sum()
    reference[-1] += histogram.counts[centers > high].sum()
    p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1e-30)
    shown = p > 0
    return float(np.sum(p[shown] * np.log(p[shown] / np.maximum(q[shown], 1e-12))))
