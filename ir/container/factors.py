"""Scale factors: how large the numbers of a row, a column and a kernel position tend to be.

    log2 of the expected magnitude at (m, c, s) = a scale + rows[m] + columns[c] + positions[s]   (quarter octaves)

Each is the mean magnitude of its row, column or position over that of the whole, which is the best fit where the
magnitudes are such a product. Sums and logarithms are whole numbers, so that equal tensors have equal factors on every
machine. A factor is kept where it shortens the tensor by more than it costs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Array, Decoder, Encoder, Integers
from onnxpress.ir.container.logs import quarter_octaves

__all__ = ["Factors", "Planes", "fit_fullness", "fullness", "planes_of"]

Planes = tuple[int, int, int]

# Numbers coded as if they were 2 ** (q / 4) times as large cost I / 2 * (q * ln 2 / 4) ** 2 nats more each, with I the
# Fisher information of scale: 2 for a normal distribution, 1 for a Laplace distribution. In between: 0.03 q ** 2 bits.
_GAIN_PARTS = 33
_TABLE_BITS = 40  # about what the table of a factor costs
_ENTRY_BITS = 3  # about what an entry of a factor costs
_REACH = 40  # quarter octaves that sums of factors span to each side, about
_FEWEST = 4  # numbers to an entry of a factor, below which it would cost more than it tells


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

    @staticmethod
    def may_pay(planes: Planes) -> bool:
        """Tell whether there are numbers enough for any factor of a tensor of these planes."""
        return any(size > 1 and math.prod(planes) >= _FEWEST * size for size in planes)

    @classmethod
    def fit(cls, magnitudes: Integers, kept: Array | None = None) -> Factors:
        """Return the factors of whole magnitudes [M, C, S], 0 or more, that pay.

        kept: which magnitudes count; the others are 0. None for all.
        """
        if not cls.may_pay(magnitudes.shape):
            return cls.none(magnitudes.shape)
        sums = _sums(magnitudes)
        if kept is None:
            counts = [np.full(size, magnitudes.size // size, np.int64) for size in magnitudes.shape]
        else:
            counts = _sums(kept)
        total, count = int(sums[2].sum()), max(1, int(counts[2].sum()))
        mean = max(1, (total << 8) // count)
        of_joined = np.concatenate(counts)
        every = quarter_octaves(((np.concatenate(sums) << 8) + mean) // (of_joined + 1), mean)
        gains = np.cumsum(of_joined * every.astype(np.int64) ** 2)
        found, start, before = [], 0, 0
        for own in counts:
            end = start + own.size
            gain = (int(gains[end - 1]) - before) * _GAIN_PARTS >> 10
            pays = own.size > 1 and gain > _TABLE_BITS + _ENTRY_BITS * own.size and count >= _FEWEST * own.size
            found.append(every[start:end] if pays else np.zeros(own.size, np.int32))
            start, before = end, int(gains[end - 1])
        return cls(*found)

    @property
    def sums(self) -> npt.NDArray[np.int32]:
        """The sum of the factors of each element, [M, C, S]."""
        inner = self.columns[:, None] + self.positions
        if not inner.any():
            return np.broadcast_to(self.rows[:, None, None], (self.rows.size, *inner.shape))
        return self.rows[:, None, None] + inner

    def write(self, encoder: Encoder) -> None:
        """Write the factors that say something."""
        present = [bool(factor.any()) for factor in self.each()]
        encoder.number(sum(1 << index for index, is_present in enumerate(present) if is_present))
        for factor, is_present in zip(self.each(), present, strict=True):
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

    def each(self) -> tuple[npt.NDArray[np.int32], ...]:
        """Return rows, columns and positions."""
        return self.rows, self.columns, self.positions


def fullness(kept: Array, places: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    """Return how many of its kernel are kept, for each that is. kept: [M, C, S]. places: where it is set, flat."""
    counts = kept.sum(axis=2, dtype=np.int32).reshape(-1)
    found: npt.NDArray[np.int32] = counts[places // kept.shape[2]]
    return found


def fit_fullness(magnitudes: Integers, full: npt.NDArray[np.int32], sums: Integers, size: int) -> Integers:
    """Return how much larger numbers are, beyond what `sums` say, by how full their kernels are.

    magnitudes, full and sums: of each number. Returns: `size` quarter octaves, zeros where they do not pay.
    """
    observed = np.bincount(full, magnitudes, size).astype(np.int64)  # sums of whole numbers: exact
    steps = np.minimum(np.maximum(sums + np.int32(_REACH), 0), 2 * _REACH)
    joint = np.bincount(full * np.int32(2 * _REACH + 1) + steps, minlength=size * (2 * _REACH + 1)).reshape(size, -1)
    powers = np.array([[1024, 1218, 1448, 1722]], np.int64) << np.arange(_REACH // 2 + 1)[:, None]  # 2 ** (i / 4)
    expected = joint @ powers.reshape(-1)[: 2 * _REACH + 1] >> (_REACH // 4)
    overall = quarter_octaves(observed.sum(keepdims=True) << 8, np.maximum(expected.sum(), 1))
    factor = quarter_octaves(observed << 8, np.maximum(expected, 1)) - overall
    counts = joint.sum(axis=1)
    factor[counts == 0] = 0
    gain = int((counts * factor.astype(np.int64) ** 2).sum()) * _GAIN_PARTS >> 10
    return factor if gain > _TABLE_BITS + _ENTRY_BITS * size else np.zeros(size, np.int32)


def _sums(cube: Array) -> list[npt.NDArray[np.int64]]:
    size_m, size_c, size_s = cube.shape
    flat = cube.reshape(size_m, size_c * size_s)
    inner = flat.sum(axis=0, dtype=np.int64).reshape(size_c, size_s)
    return [flat.sum(axis=1, dtype=np.int64), inner.sum(axis=1), inner.sum(axis=0)]
