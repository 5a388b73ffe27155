"""Frequency tables: measured, rounded to quarter octaves so that they store in a few bits, and varied by class.

The frequency of a symbol is 2 ** (level / 4). A class of symbols has the same table, with gains on buckets of symbols
that are powers of two as well. All powers are integers that decimal arithmetic made, so they are the same everywhere.
"""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import FLAG_ONE, Decoder, Encoder, Integers, StreamError, flag_share
from onnxpress.ir.container.logs import LOG_BITS, entropy_bits, log2_parts

__all__ = ["SCORE_NAT", "flag_chances", "flag_moments", "frequencies", "gained", "read_table", "write_table"]

_LEVEL = 4  # levels to the octave: off by an eighth at most, which costs 0.002 bits a symbol
_TOP = 16  # octaves between the rarest frequency and all of them
# Symbols to a level, and levels to a step.
_GRAINS: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (1, 3), (2, 2), (4, 1), (8, 1), (16, 1), (64, 1))
_FULL = 64  # occurrences of a symbol on average from which the four finest grains are enough; below 1, the coarsest two
_SHORT = 32  # tables that coarse blocks gain nothing on
_TOTAL = 1 << 20  # about what a table sums to
SCORE_NAT = 1024  # a score counts log-odds in parts of this
_SCORE_SHIFT = 6  # chances are tabled every 1/16 nat
_SCORE_REACH = 160  # up to 10 nats: a chance of 1 in 22,000


def write_table(encoder: Encoder, measured: Integers) -> npt.NDArray[np.int32]:
    """Write the table of measured counts, as coarse as pays, and return the levels that it has for the decoder."""
    counts = np.asarray(measured, np.int64)
    total = int(counts.sum())
    grains = _GRAINS
    if counts.size <= _SHORT:
        grains = _GRAINS[:1]
    elif total >= _FULL * counts.size:
        grains = _GRAINS[:4]
    elif total < counts.size:
        grains = _GRAINS[-2:]
    best = min((_coarse(counts, *grain) for grain in grains), key=lambda each: each.bits)
    encoder.number(_GRAINS.index((best.block, best.step)))
    used = best.steps > 0
    encoder.number(int(used.all()))
    if not used.all():
        share = max(1, min(FLAG_ONE - 1, round(FLAG_ONE * float(used.mean()))))
        encoder.number(share)
        encoder.flags(used, flag_share(share, used.size))
    encoder.small(np.diff(best.steps[used], prepend=0))
    return best.levels(counts.size)


def read_table(decoder: Decoder, size: int) -> npt.NDArray[np.int32]:
    """Read the levels of a table of `size` symbols: 0 for one that never occurs, else 1 or more."""
    block, step = _GRAINS[decoder.number(len(_GRAINS) - 1)]
    used = np.ones(-(-size // block), np.bool_)
    if not decoder.number(1):
        used = decoder.flags(flag_share(decoder.number(FLAG_ONE - 1), used.size)) == 1
    steps = np.zeros(used.size, np.int32)
    steps[used] = np.cumsum(decoder.small(int(used.sum())))
    if used.any() and not (steps[used].min() >= 1 and steps.max() <= 1 + _LEVEL * _TOP):
        raise StreamError("a frequency is out of range")
    return _Coarse(block, step, steps, 0).levels(size)


class _Coarse(NamedTuple):
    """Frequencies of blocks of symbols in steps of so many levels, and the bits that they and the symbols take."""

    block: int
    step: int
    steps: npt.NDArray[np.int32]
    bits: int

    def levels(self, size: int) -> npt.NDArray[np.int32]:
        """Return the level of each of `size` symbols."""
        levels = np.where(self.steps > 0, 1 + self.step * (self.steps - 1), 0)
        return np.repeat(levels, self.block)[:size].astype(np.int32)


def _coarse(counts: npt.NDArray[np.int64], block: int, step: int) -> _Coarse:
    blocks = np.add.reduceat(counts, np.arange(0, counts.size, block)) if block > 1 else counts
    logs = _LEVEL * (log2_parts(blocks) - log2_parts(blocks.sum()) + (_TOP << LOG_BITS))
    rounded = np.clip((logs // step + (1 << (LOG_BITS - 1))) >> LOG_BITS, 0, _LEVEL * _TOP // step)
    steps = np.where(blocks > 0, 1 + rounded, 0).astype(np.int32)
    table = frequencies(_Coarse(block, step, steps, 0).levels(counts.size))
    coded = int((counts * (log2_parts(table.sum()) - log2_parts(table))).sum()) >> LOG_BITS
    used = steps[steps > 0]
    jumps = np.bincount(np.abs(used[1:] - used[:-1]), minlength=1)
    return _Coarse(block, step, steps, coded + entropy_bits(jumps) + used.size + steps.size // 3)


def frequencies(levels: Integers) -> npt.NDArray[np.int64]:
    """Return the table of some levels: 1 or more for each symbol, about 2 ** 20 in all."""
    exponent = np.maximum(levels - 1, 0).astype(np.int64)
    raw = (_powers(_LEVEL)[exponent % _LEVEL] << (exponent // _LEVEL)) >> 4
    return _normalised(np.where(levels > 0, raw, 0))


def gained(table: Integers, gains: Integers, parts: int) -> npt.NDArray[np.int64]:
    """Return the table with each frequency multiplied by 2 ** (gain / parts). gains: one for each symbol."""
    bounded = np.clip(gains, -8 * parts, 8 * parts).astype(np.int64) + 8 * parts
    raw = table * ((_powers(parts)[bounded % parts] << (bounded // parts)) >> 4)
    return _normalised(raw >> 4)


def flag_moments(scores: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return chances of a 1 in parts of FLAG_ONE, and chance * (1 - chance) in parts of 1024: whole numbers.

    scores: in parts of a nat; they are overwritten.
    """
    steps = _score_steps(scores)
    return _logistic().parts[steps], _logistic().spreads[steps]


def flag_chances(scores: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Return the probability of a 1 for scores in parts of a nat. `scores` is overwritten."""
    return _logistic().chances[_score_steps(scores)]


def _score_steps(scores: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    scores += 1 << (_SCORE_SHIFT - 1)
    scores >>= _SCORE_SHIFT
    np.maximum(scores, -_SCORE_REACH, out=scores)
    np.minimum(scores, _SCORE_REACH, out=scores)
    scores += _SCORE_REACH
    return scores


def _normalised(raw: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    total = max(1, int(raw.sum()))
    if total >= 1 << 42:  # what follows stays within 63 bits
        raw, total = raw >> 20, max(1, total >> 20)
    return raw * _TOTAL // total + 1


@functools.cache
def _powers(parts: int) -> npt.NDArray[np.int64]:
    """Return 2 ** (i / parts) for i below `parts`, in parts of 2 ** 10."""
    with localcontext() as context:
        context.prec = 30
        return np.array([int(Decimal(2) ** (Decimal(i) / parts) * 1024) for i in range(parts)], np.int64)


class _Logistic(NamedTuple):
    """The logistic function of scores in steps. parts: of FLAG_ONE. chances: as the coder takes them."""

    parts: npt.NDArray[np.float64]
    chances: npt.NDArray[np.float32]
    spreads: npt.NDArray[np.float64]


@functools.cache
def _logistic() -> _Logistic:
    with localcontext() as context:
        context.prec = 30
        step = Decimal(1 << _SCORE_SHIFT) / SCORE_NAT
        scores = [step * i for i in range(-_SCORE_REACH, _SCORE_REACH + 1)]
        parts = np.array([int(FLAG_ONE / (1 + (-score).exp())) for score in scores], np.int64)
    spreads = (parts * (FLAG_ONE - parts) >> 22).astype(np.float64)
    return _Logistic(parts.astype(np.float64), parts.astype(np.float32) / np.float32(FLAG_ONE), spreads)
