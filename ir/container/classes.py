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
from onnxpress.ir.container.logs import entropy_bits, quarter_octaves
from onnxpress.ir.container.tables import gained

__all__ = ["buckets_of", "read_classed", "write_classed"]

_BUCKETS = 8
_GAIN = 4  # stored gains to the octave
_MOST_CLASSES = 64
_GAIN_HALF_BITS = 5  # about what a stored gain costs


def buckets_of(table: Integers, order: Integers) -> npt.NDArray[np.int32]:
    """Return the bucket of each symbol: equal mass, in the order of the keys `order`; equal keys stay together."""
    keys, inverse = np.unique(order, return_inverse=True)
    mass = np.zeros(keys.size, np.int64)
    np.add.at(mass, inverse, table)
    before = np.cumsum(mass) - mass
    return (before * _BUCKETS // int(mass.sum())).astype(np.int32)[inverse]


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
    overall = 2 * counts.sum(axis=0) + 1
    total = int(overall.sum())
    # Eight more elements, spread as over all classes, keep rare classes near the others.
    own = counts * total + 8 * overall
    steps = quarter_octaves(own, (counts.sum(axis=1, keepdims=True) + 8) * overall)
    return np.clip(steps, -5 * _GAIN, 5 * _GAIN)


def _class_bits(counts: npt.NDArray[np.int64]) -> int:
    """Return what the buckets cost when each class has its own distribution, and the gains."""
    return entropy_bits(counts) + (0 if len(counts) == 1 else _GAIN_HALF_BITS * counts.size // 2)
