"""A histogram of a stream: one pass, bounded memory, exact extremes, mergeable whatever the ranges.

Bins have a power-of-two width `w` and edges at multiples of it, so bin `i` holds `[i*w, (i+1)*w)`. When the
stream leaves the span that the bins cover, pairs of bins are joined (`w` doubles, `i` becomes `i >> 1`): no
value is ever counted twice or moved across an edge. Two histograms join the same way.

Zeros are counted apart: real zero is exactly representable in every scheme of ours, so the zeros that a Relu
leaves behind (often half of all values) say nothing about where to clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["Histogram"]

_MAX_BINS = 4096
_EXACT_VALUES = 1 << 18  # counted one by one before sampling starts: small streams keep their tails
_SAMPLES_PER_UPDATE = 1 << 12


class Histogram:
    """Counts of a stream of float values. Empty until the first `update`.

    counts: [B] float64, B <= 4096; bin i of it covers `[(first + i) * width, (first + i + 1) * width)`.
    low, high: exact extremes of all values seen, zero included.
    size: number of values seen. zeros: estimated number of exact zeros among them.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.float64] = np.zeros(0)
        self.first = 0
        self.width = 0.0
        self.low = math.inf
        self.high = -math.inf
        self.size = 0
        self.zeros = 0.0

    def update(self, values: npt.NDArray[np.floating]) -> None:
        """Add all of `values` (any shape) to the extremes, and all or a regular sample of them to the counts.

        Raises:
            ValueError: a value is NaN or infinite.
        """
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values hold NaN or infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        step = 1 if self.size < _EXACT_VALUES else _odd_step(flat.size)
        self.size += flat.size
        sample = flat[::step]
        nonzero = sample[sample != 0]
        self.zeros += float(sample.size - nonzero.size) * step
        if nonzero.size == 0:
            return
        if self.width == 0.0:
            self.width = _width_for(max(abs(low), abs(high)))
        self._cover(low, high)
        index = np.floor(nonzero.astype(np.float64) / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(index, minlength=self.counts.size) * float(step)

    def merge(self, other: Histogram) -> None:
        """Add what `other` counted. `other` is left as it was."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.size += other.size
        self.zeros += other.zeros
        if other.width == 0.0:
            return
        if self.width == 0.0:
            self.width = other.width
        counts, first, width = other.counts, other.first, other.width
        while self.width < width:
            self._double()
        while width < self.width:
            counts, first = _halve(counts, first)
            width *= 2
        self._cover(first * width, (first + counts.size - 1) * width)
        while width < self.width:
            counts, first = _halve(counts, first)
            width *= 2
        start = first - self.first
        self.counts[start : start + counts.size] += counts

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """[B] float64: the middle of each bin, in real units."""
        bins = self.first + np.arange(self.counts.size, dtype=np.float64)
        return (bins + 0.5) * self.width

    def _cover(self, low: float, high: float) -> None:
        while True:
            first, last = math.floor(low / self.width), math.floor(high / self.width)
            if self.counts.size:
                first, last = min(first, self.first), max(last, self.first + self.counts.size - 1)
            if last - first < _MAX_BINS:
                break
            self._double()
        if (first, last) == (self.first, self.first + self.counts.size - 1):
            return
        before = self.first - first if self.counts.size else 0
        after = last - first + 1 - self.counts.size - before
        self.counts = np.pad(self.counts, (before, after))
        self.first = first

    def _double(self) -> None:
        self.counts, self.first = _halve(self.counts, self.first)
        self.width *= 2

    @classmethod
    def of(cls, parts: Iterable[Histogram]) -> Histogram:
        """Return a new histogram of everything that `parts` counted."""
        total = cls()
        for part in parts:
            total.merge(part)
        return total


def _halve(counts: npt.NDArray[np.float64], first: int) -> tuple[npt.NDArray[np.float64], int]:
    lead = first & 1  # bin 2k pairs with 2k+1: start at an even index
    padded = np.pad(counts, (lead, (counts.size + lead) & 1))
    return padded.reshape(-1, 2).sum(axis=1), first >> 1


def _width_for(magnitude: float) -> float:
    return 2.0 ** math.ceil(math.log2(magnitude / (_MAX_BINS / 4)))


def _odd_step(size: int) -> int:
    """A stride that leaves about `_SAMPLES_PER_UPDATE` values and rarely divides a row or a channel."""
    step = max(1, size // _SAMPLES_PER_UPDATE)
    while step > 1 and (step % 2 == 0 or step % 3 == 0 or step % 5 == 0 or step % 7 == 0):
        step += 1
    return step
