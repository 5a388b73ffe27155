"""Scale factors: how large the numbers of a row, a column and a kernel position tend to be.

    log2 of the expected magnitude at (m, c, s) = rows[m] + columns[c] + positions[s]   (quarter octaves, integers)

The three are fitted to the tensor by alternating means, stored beside it, and sort its elements into classes, each
with a frequency table of its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Array, Decoder, Encoder

__all__ = ["Factors", "Planes", "planes_of"]

Floats = npt.NDArray[np.float32]
Planes = tuple[int, int, int]

_PARTS = 4  # to the octave
_ROUNDS = 4  # of alternating means; more change nothing that rounding keeps


def planes_of(shape: Sequence[int]) -> Planes:
    """Return a shape as (rows, columns, positions): [M, C, kernel...]; a vector is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape), 1
    return shape[0], shape[1], math.prod(shape[2:])


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of one tensor, each in quarter octaves; one that is left out is all zeros."""

    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]

    @classmethod
    def none(cls, planes: Planes) -> Factors:
        """Return factors that say nothing."""
        rows, columns, positions = (np.zeros(size, np.int32) for size in planes)
        return cls(rows, columns, positions)

    @classmethod
    def fit(cls, magnitudes: Floats, weights: Array | None = None) -> Factors:
        """Return the factors of magnitudes [M, C, S], 0 or more. weights: 1 where a magnitude counts, else 0."""
        size_m, size_c, size_s = magnitudes.shape
        kept = magnitudes if weights is None else magnitudes * weights
        if weights is None:
            counts = [np.float64(magnitudes.size / max(1, size)) for size in magnitudes.shape]
        else:
            counts = [weights.sum(axis=axes, dtype=np.float64) for axes in ((1, 2), (0, 2), (0, 1))]
        total = np.float32(kept.sum() / max(1.0, float(np.sum(counts[2]) * (size_s if weights is None else 1))) or 1.0)
        flat = kept.reshape(size_m, size_c * size_s) / total
        found = [np.ones(size, np.float32) for size in magnitudes.shape]

        def mean(sums: npt.NDArray[Any], axis: int) -> None:
            if sums.size > 1:  # one more element of the expected size keeps rare rows near the others
                found[axis] = np.maximum((sums + 1) / (counts[axis] + 1), 1e-4).astype(np.float32)

        for _ in range(_ROUNDS):
            mean(flat @ np.outer(1 / found[1], 1 / found[2]).reshape(-1), 0)
            over_rows = ((1 / found[0]) @ flat).reshape(size_c, size_s)
            mean(over_rows @ (1 / found[2]), 1)
            mean((1 / found[1]) @ over_rows, 2)
        rows, columns, positions = (np.rint(_PARTS * np.log2(factor)).astype(np.int32) for factor in found)
        return cls(rows, columns, positions)

    def without(self, *names: str) -> Factors:
        """Return the factors with some of them left out."""
        return dataclasses.replace(self, **{name: np.zeros_like(getattr(self, name)) for name in names})

    @property
    def sums(self) -> npt.NDArray[np.int32]:
        """The sum of the factors of each element, [M, C, S]."""
        return self.rows[:, None, None] + self.columns[None, :, None] + self.positions[None, None, :]

    def every(self, step: int) -> Factors:
        """Return the factors of every so many rows."""
        return dataclasses.replace(self, rows=self.rows[::step])

    def write(self, encoder: Encoder) -> None:
        """Write the factors that say something."""
        present = [bool(factor.any()) for factor in self._each()]
        encoder.number(sum(1 << index for index, is_present in enumerate(present) if is_present))
        for factor, is_present in zip(self._each(), present, strict=True):
            if is_present:
                encoder.small(factor)

    @classmethod
    def read(cls, decoder: Decoder, planes: Planes) -> Factors:
        """Read the factors of a tensor of these planes."""
        present = decoder.number(7)
        rows, columns, positions = (
            decoder.small(size) if present >> index & 1 else np.zeros(size, np.int32)
            for index, size in enumerate(planes)
        )
        return cls(rows, columns, positions)

    def _each(self) -> tuple[npt.NDArray[np.int32], ...]:
        return self.rows, self.columns, self.positions
