"""Logarithms in whole numbers, so that an encoder chooses the same on every machine.

log2 and sums of floats differ in their last bits between processors and libraries, and a choice that hangs on them
would too. Here a logarithm is a look-up in a table that squaring made, and costs are sums of integers.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Array, Integers

__all__ = ["LOG_BITS", "entropy_bits", "log2_parts", "quarter_octaves"]

LOG_BITS = 16  # a logarithm counts octaves in parts of 2 ** 16
_INDEX_BITS = 12


def log2_parts(values: Array | int) -> npt.NDArray[np.int64]:
    """Return log2 of whole numbers of any type, 1 or more (0 counts as 1), to 12 bits of their mantissa."""
    # The bits of a float64 are its exponent and mantissa: a logarithm but for a bulge of the mantissa.
    linear = np.maximum(values, 1).astype(np.float64).view(np.int64) >> (52 - LOG_BITS)
    found: npt.NDArray[np.int64] = linear + _bulge()[linear >> (LOG_BITS - _INDEX_BITS) & (1 << _INDEX_BITS) - 1]
    return found


def quarter_octaves(part: Integers, whole: Integers | int) -> npt.NDArray[np.int32]:
    """Return 4 * log2(part / whole), rounded."""
    steps = (4 * (log2_parts(part) - log2_parts(whole)) + (1 << (LOG_BITS - 1))) >> LOG_BITS
    return np.asarray(steps, np.int32)


def entropy_bits(counts: Integers) -> int:
    """Return what symbols of these counts cost under their own frequencies, in bits.

    counts: [symbols], or [classes, symbols], each class with frequencies of its own.
    """
    own = np.asarray(counts, np.int64)
    totals = own.sum(axis=-1)
    parts = totals * log2_parts(totals) - (own * log2_parts(own)).sum(axis=-1)
    return int(parts.sum()) >> LOG_BITS


@functools.cache
def _bulge() -> npt.NDArray[np.int64]:
    """Return log2(1 + m) - m, and the bias of exponents off, for m = i / 4096 to the middle of the next step."""
    square = ((2 * np.arange(1 << _INDEX_BITS, dtype=np.int64) + 1) << (29 - _INDEX_BITS)) + (1 << 30)
    found = np.zeros(square.size, np.int64)
    for _ in range(LOG_BITS):
        square = (square * square) >> 30
        above = square >= 1 << 31
        square = np.where(above, square >> 1, square)
        found = 2 * found + above
    steps = np.arange(1 << _INDEX_BITS, dtype=np.int64) << (LOG_BITS - _INDEX_BITS)
    found -= steps + (1 << (LOG_BITS - _INDEX_BITS - 1))
    found[0] = 0  # powers of two are exact
    return found - (1023 << LOG_BITS)
