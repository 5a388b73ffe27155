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

from onnxpress.ir.container.coder import FLAG_ONE, Decoder, Encoder, Integers, StreamError

__all__ = ["SCORE_NAT", "flag_chances", "frequencies", "gained", "read_table", "write_table"]

_LEVEL = 4  # levels to the octave: off by an eighth at most, which costs 0.002 bits a symbol
_TOP = 16  # octaves between the rarest frequency and all of them
_GRAINS = ((1, 1), (1, 2), (1, 3), (2, 2), (4, 1), (8, 1), (16, 1), (64, 1))  # symbols to a level, levels to a step
_SHORT = 32  # tables that coarse blocks gain nothing on
_TOTAL = 1 << 20  # about what a table sums to
SCORE_NAT = 1024  # a score counts log-odds in parts of this
_SCORE_SHIFT = 6  # chances are tabled every 1/16 nat
_SCORE_REACH = 160  # up to 10 nats: a chance of 1 in 22,000


def write_table(encoder: Encoder, counts: Integers) -> npt.NDArray[np.int32]:
    """Write the table of measured counts, as coarse as pays, and return the levels that it has for the decoder."""
    grains = _GRAINS if counts.size > _SHORT else _GRAINS[:1]
    best = min((_coarse(counts, *grain) for grain in grains), key=lambda each: each.bits)
    encoder.number(_GRAINS.index((best.block, best.step)))
    used = best.steps > 0
    encoder.number(int(used.all()))
    if not used.all():
        share = max(1, min(FLAG_ONE - 1, round(FLAG_ONE * float(used.mean()))))
        encoder.number(share)
        encoder.flags(used, np.full(used.size, share))
    encoder.small(np.diff(best.steps[used], prepend=0))
    return best.levels(counts.size)


def read_table(decoder: Decoder, size: int) -> npt.NDArray[np.int32]:
    """Read the levels of a table of `size` symbols: 0 for one that never occurs, else 1 or more."""
    block, step = _GRAINS[decoder.number(len(_GRAINS) - 1)]
    used = np.ones(-(-size // block), np.bool_)
    if not decoder.number(1):
        used = decoder.flags(np.full(used.size, decoder.number(FLAG_ONE - 1))) == 1
    steps = np.zeros(used.size, np.int32)
    steps[used] = np.cumsum(decoder.small(int(used.sum())))
    if used.any() and not (steps[used].min() >= 1 and steps.max() <= 1 + _LEVEL * _TOP):
        raise StreamError("a frequency is out of range")
    return _Coarse(block, step, steps, 0.0).levels(size)


class _Coarse(NamedTuple):
    """Frequencies of blocks of symbols in steps of so many levels, and the bits that they and the symbols take."""

    block: int
    step: int
    steps: npt.NDArray[np.int32]
    bits: float

    def levels(self, size: int) -> npt.NDArray[np.int32]:
        """Return the level of each of `size` symbols."""
        levels = np.where(self.steps > 0, 1 + self.step * (self.steps - 1), 0)
        return np.repeat(levels, self.block)[:size].astype(np.int32)


def _coarse(counts: Integers, block: int, step: int) -> _Coarse:
    padded = np.zeros(-(-counts.size // block) * block, np.int64)
    padded[: counts.size] = counts
    blocks = padded.reshape(-1, block).sum(axis=1)
    logs = _LEVEL * (np.log2(np.maximum(blocks, 1) / max(1, int(blocks.sum()))) + _TOP)
    steps = np.where(blocks > 0, 1 + np.clip(np.rint(logs / step), 0, _LEVEL * _TOP // step), 0).astype(np.int32)
    table = frequencies(_Coarse(block, step, steps, 0.0).levels(counts.size))
    coded = float((counts * (np.log2(table.sum()) - np.log2(table))).sum())
    used = steps[steps > 0]
    jumps = np.bincount(np.abs(np.diff(used))) if used.size > 1 else np.zeros(1, np.int64)
    stored = -float((jumps * np.log2(np.maximum(jumps, 1) / max(1, used.size))).sum()) + used.size + steps.size * 0.3
    return _Coarse(block, step, steps, coded + stored)


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


def flag_chances(scores: Integers) -> Integers:
    """Return the probability of a 1 for scores in parts of a nat, in parts of FLAG_ONE."""
    steps = (scores + (1 << (_SCORE_SHIFT - 1))) >> _SCORE_SHIFT
    chances: Integers = _logistic()[np.clip(steps, -_SCORE_REACH, _SCORE_REACH) + _SCORE_REACH]
    return chances


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


@functools.cache
def _logistic() -> npt.NDArray[np.int32]:
    with localcontext() as context:
        context.prec = 30
        step = Decimal(1 << _SCORE_SHIFT) / SCORE_NAT
        scores = [step * i for i in range(-_SCORE_REACH, _SCORE_REACH + 1)]
        return np.array([int(FLAG_ONE / (1 + (-score).exp())) for score in scores], np.int32)
