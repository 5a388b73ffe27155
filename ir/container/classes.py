"""Symbols in classes: one frequency table for the tensor, bent for each class of elements by a few gains.

A class is a range of factor sums (see `factors`). The table's symbols are cut into buckets of about equal mass, and a
class says how much more or less often than overall each bucket occurs in it. That costs a class a few bytes where a
table of its own would cost hundreds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder, Integers, StreamError
from onnxpress.ir.container.factors import Factors
from onnxpress.ir.container.tables import gained

__all__ = ["best_factors", "buckets_of", "read_classed", "write_classed"]

_BUCKETS = 8
_GAIN = 4  # stored gains to the octave
_MOST_CLASSES = 64
_SAMPLE = 1 << 16  # elements that the choice of factors looks at
_GAIN_BITS = 2.5  # about what a stored gain costs


def buckets_of(table: Integers, order: Integers) -> npt.NDArray[np.int32]:
    """Return the bucket of each symbol: equal mass, in the order of the keys `order`; equal keys stay together."""
    keys, inverse = np.unique(order, return_inverse=True)
    mass = np.zeros(keys.size, np.int64)
    np.add.at(mass, inverse, table)
    before = np.cumsum(mass) - mass
    return (before * _BUCKETS // int(mass.sum())).astype(np.int32)[inverse]


def best_factors(fitted: Factors, of_symbol: Integers, kept: npt.NDArray[np.bool_] | None) -> Factors:
    """Return the fitted factors, or some of them, by what they cost and what they gain.

    of_symbol: [M, C, S], the bucket of each element's symbol. kept: [M, C, S]; None for all.
    """
    if of_symbol.size == max(of_symbol.shape):
        return fitted.without("rows", "columns", "positions")  # a vector's factor would be as long as it is
    step = -(-of_symbol.size // _SAMPLE) if len(of_symbol) > 1 else 1
    seen = of_symbol[::step].reshape(-1) if kept is None else of_symbol[::step][kept[::step]]
    candidates = [fitted, fitted.without("columns"), fitted.without("rows"), fitted.without("rows", "columns")]
    candidates.append(fitted.without("rows", "columns", "positions"))

    def cost(factors: Factors) -> float:
        sums = factors.every(step).sums
        counts = _joint(sums.reshape(-1) if kept is None else sums[kept[::step]], seen)[1]
        return min(_class_bits(_merged(counts, width), step) for width in (1, 2, 4)) + _stored_bits(factors)

    return min(candidates, key=cost)


def write_classed(encoder: Encoder, symbols: Integers, sums: Integers, table: Integers, buckets: Integers) -> None:
    """Code `symbols` under `table`, in classes by `sums`, one for each symbol. buckets: of the table's symbols."""
    lowest, counts = _joint(sums, buckets[symbols])
    width = min((1, 2, 4, 8, _MOST_CLASSES), key=lambda each: _class_bits(_merged(counts, each)))
    merged = _merged(counts, width)
    gains = _gains(merged) if len(merged) > 1 else np.zeros((1, _BUCKETS), np.int32)
    encoder.signed(lowest)
    encoder.number(width)
    encoder.number(len(merged))
    if len(merged) > 1:  # else the class is the whole, and gains nothing over it
        encoder.small(gains.reshape(-1))
    for own, members in zip(gains, _members(sums, lowest, width, len(merged)), strict=True):
        encoder.symbols(symbols[members], gained(table, own[buckets], _GAIN))


def read_classed(decoder: Decoder, sums: Integers, table: Integers, buckets: Integers) -> npt.NDArray[np.int32]:
    """Read a symbol for each of `sums`."""
    lowest, width, classes = decoder.signed(), decoder.number(_MOST_CLASSES), decoder.number(_MOST_CLASSES)
    if width < 1:
        raise StreamError("classes have no width")
    gains = np.zeros((classes, _BUCKETS), np.int32)
    if classes > 1:
        gains = decoder.small(gains.size).reshape(gains.shape)
    symbols = np.empty(sums.size, np.int32)
    for own, members in zip(gains, _members(sums, lowest, width, classes), strict=True):
        symbols[members] = decoder.symbols(_count(members, sums.size), gained(table, own[buckets], _GAIN))
    return symbols


def _count(members: npt.NDArray[np.intp] | slice, size: int) -> int:
    return size if isinstance(members, slice) else members.size


def _members(sums: Integers, lowest: int, width: int, classes: int) -> Iterator[npt.NDArray[np.intp] | slice]:
    """Yield for each class where its elements are; all belong to one."""
    if classes == 1:
        yield slice(None)
        return
    of_sum = np.clip((sums.astype(np.int32) - np.int32(lowest)) // np.int32(width), 0, max(0, classes - 1))
    order = np.argsort(of_sum.astype(np.uint8), kind="stable")
    ends = np.cumsum(np.bincount(of_sum, minlength=classes))
    for start, end in itertools.pairwise([0, *ends.tolist()]):
        yield order[start:end]


def _joint(sums: Integers, of_symbol: Integers) -> tuple[int, npt.NDArray[np.int64]]:
    """Return the lowest sum, and counts [sum - lowest, bucket]; sums at the far ends share a row."""
    if not sums.size:
        return 0, np.zeros((1, _BUCKETS), np.int64)
    lowest = int(sums.min())
    if int(sums.max()) - lowest >= _MOST_CLASSES:  # leave out the tails, which clipping sorts into the end classes
        lowest = int(np.median(sums)) - _MOST_CLASSES // 2
    row = np.clip(sums - lowest, 0, _MOST_CLASSES - 1).astype(np.int32)
    rows = int(row.max()) + 1
    counts = np.bincount(row * np.int32(_BUCKETS) + of_symbol, minlength=rows * _BUCKETS)
    return lowest, counts.reshape(rows, _BUCKETS)


def _merged(counts: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
    return np.add.reduceat(counts, np.arange(0, len(counts), width), axis=0)


def _gains(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return gains [class, bucket] against the distribution over all classes."""
    overall = (counts.sum(axis=0) + 0.5) / (counts.sum() + 0.5 * _BUCKETS)
    own = (counts + 2 * overall) / (counts.sum(axis=1, keepdims=True) + 2)
    gains: npt.NDArray[np.float64] = np.rint(_GAIN * np.log2(own / overall))
    return np.clip(gains, -5 * _GAIN, 5 * _GAIN).astype(np.int32)


def _class_bits(counts: npt.NDArray[np.int64], weight: int = 1) -> float:
    """Return what the buckets cost when each class has its own distribution, and the gains.

    weight: how many elements each one that was counted stands for.
    """
    share = np.maximum(counts, 1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    stored = 0.0 if len(counts) == 1 else _GAIN_BITS * counts.size
    return -weight * float((counts * np.log2(share)).sum()) + stored


def _stored_bits(factors: Factors) -> float:
    bits = 0.0
    for factor in (factors.rows, factors.columns, factors.positions):
        if factor.any():
            counts = np.bincount(factor - factor.min())
            bits += 40 - float((counts * np.log2(np.maximum(counts, 1) / factor.size)).sum())
    return bits
