"""Tensors of few different values: a sorted codebook, and for each element its rank there.

Values are told apart by their bits, so -0.0 is not 0.0 and every NaN is itself. They are sorted as numbers, by a key
that orders the bits of floats; the rank counts from the value zero, so that it carries a sign and a magnitude as the
value does. The codebook is stored as the steps between keys: how many bits a step has, and those bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.codes import read_codes, write_codes

__all__ = ["MOST_VALUES", "codebook_of", "read_codebook", "values_of", "write_codebook"]

Bits = npt.NDArray[np.unsignedinteger[Any]]

MOST_VALUES = 4096
_HASH_BITS, _LONG_HASH_BITS = 16, 20  # a short table stays in the cache
_MULTIPLIERS = (2654435769, 2246822519, 3266489917, 668265263, 374761393, 1)  # odd; Knuth's and xxHash's
_PARTS = 16  # of a running mean
_PROBE = 2048  # elements that tell most tensors of many values


def codebook_of(bits: Bits, is_float: bool) -> npt.NDArray[np.uint64] | None:
    """Return the sorted keys of the different values; None where they are too many for a codebook to pay."""
    flat = bits.reshape(-1)
    limit = min(MOST_VALUES, flat.size // 4 + 1)
    probe = flat[:: max(1, flat.size // _PROBE)]
    if flat.size > _PROBE and _distinct(probe).size > min(limit, probe.size // 2 + 16):
        return None
    values = _distinct(flat)
    return np.sort(_keys(values, is_float)) if values.size <= limit else None


def _distinct(flat: Bits) -> Bits:
    """Return the different values, sorted; np.unique hashes, at several times the time."""
    ordered = np.sort(flat)
    found: Bits = ordered[np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]
    return found


def write_codebook(encoder: Encoder, bits: Bits, is_float: bool, codebook: npt.NDArray[np.uint64]) -> None:
    """Code a tensor of any shape by the `codebook` of its values."""
    encoder.number(codebook.size)
    _write_keys(encoder, codebook.tolist(), bits.dtype.itemsize, _exponent_shift(bits.dtype, is_float))
    ranks = np.arange(codebook.size) - _zero_rank(codebook, bits.dtype.itemsize, is_float)
    codes = _skipping_zero(ranks, codebook, bits.dtype.itemsize, is_float)
    coded = _looked_up(bits.reshape(-1), values_of(codebook, bits.dtype, is_float), codes)
    write_codes(encoder, coded.reshape(bits.shape))


def read_codebook(decoder: Decoder, shape: Sequence[int], kind: np.dtype[Any], is_float: bool) -> Bits:
    """Read a tensor of this shape and unsigned type."""
    count = decoder.number(MOST_VALUES)
    codebook = np.array(_read_keys(decoder, count, _exponent_shift(kind, is_float), kind.itemsize), np.uint64)
    codes = read_codes(decoder, shape)
    zero, has_zero = _zero_rank(codebook, kind.itemsize, is_float), _has_zero(codebook, kind.itemsize, is_float)
    ranks = codes + np.int32(zero)
    if not has_zero:
        ranks -= codes > 0
        if np.any(codes == 0):
            raise StreamError("a codebook without zero is asked for it")
    if ranks.size and not (ranks.min() >= 0 and ranks.max() < count):
        raise StreamError("a rank lies outside the codebook")
    found: Bits = values_of(codebook, kind, is_float)[ranks]
    return found


def _write_keys(encoder: Encoder, keys: list[int], width: int, shift: int) -> None:
    """Write ascending keys: the bits that each step to the next has, and these bits but the leading 1.

    Values that lie evenly have longer steps between keys where the exponent is smaller: its sum with the length of a
    step is about the same everywhere. What is coded is how far it is off from what those before it make likely.
    """
    encoder.plain(keys[0].to_bytes(width, "little"))
    steps = [after - before for before, after in itertools.pairwise(keys)]
    likely, surprises = None, []
    for before, step in zip(keys, steps, strict=False):
        evenness = step.bit_length() + _exponent(before, shift)
        surprises.append(evenness - _whole(likely))
        likely = _learned(likely, evenness)
    encoder.small(np.array(surprises, np.int32))
    joined = total = 0
    for step in steps:
        length = step.bit_length() - 1
        joined |= (step - (1 << length)) << total
        total += length
    encoder.plain(joined.to_bytes(-(-total // 8), "little"))


def _read_keys(decoder: Decoder, count: int, shift: int, width: int) -> list[int]:
    if count < 1:
        raise StreamError("a codebook is empty")
    keys, total = [int.from_bytes(decoder.plain(width), "little")], 0
    surprises = decoder.small(count - 1).tolist()
    likely = None
    # The lengths depend on the keys, and the keys on bits of these lengths: the bits are taken as they are needed.
    rest = decoder.rest()
    joined = int.from_bytes(rest, "little")
    for surprise in surprises:
        evenness = surprise + _whole(likely)
        likely = _learned(likely, evenness)
        length = evenness - _exponent(keys[-1], shift) - 1
        if not 0 <= length < 64:
            raise StreamError("the step of a codebook is out of range")
        keys.append(keys[-1] + (1 << length) + (joined >> total & (1 << length) - 1))
        total += length
    decoder.plain(-(-total // 8))
    if keys[-1] >= 1 << 8 * width:
        raise StreamError("a value of a codebook is out of range")
    return keys


def _learned(mean: int | None, number: int) -> int:
    """Return a running mean, in parts, moved half of the way to a number, by one at most: outliers carry it nowhere."""
    if mean is None:
        return number * _PARTS
    return mean + max(-2 * _PARTS, min(2 * _PARTS, number * _PARTS - mean)) // 2


def _whole(mean: int | None) -> int:
    return 0 if mean is None else (mean + _PARTS // 2) // _PARTS


def _exponent_shift(kind: np.dtype[Any], is_float: bool) -> int:
    """Return how many bits lie below the exponent in a key; 0 for integers, which have none."""
    return {2: 10, 4: 23, 8: 52}[kind.itemsize] if is_float else 0


def _exponent(key: int, shift: int) -> int:
    """Return the exponent of a float by its key; those of negative ones run down."""
    if not shift:
        return 0
    top = 1 << (shift + (8 if shift == 23 else 11 if shift == 52 else 5))
    return (key - top if key >= top else top - 1 - key) >> shift


def _looked_up(flat: Bits, values: Bits, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the code of each element; `codes` are those of `values`.

    A multiplication hashes the values into a table; with the first multiplier that keeps them apart, a look-up
    replaces a search, at a tenth of the time.
    """
    if flat.dtype.itemsize == 4 and values.size <= 1024:
        bits = _HASH_BITS if values.size <= 256 else _LONG_HASH_BITS
        for multiplier in _MULTIPLIERS:
            hashed = (values * np.uint32(multiplier)) >> np.uint32(32 - bits)
            if np.unique(hashed).size == values.size:
                table = np.zeros(1 << bits, np.int32)
                table[hashed] = codes
                places = flat * np.uint32(multiplier)
                places >>= np.uint32(32 - bits)
                coded: npt.NDArray[np.int32] = table[places]
                return coded
    order = np.argsort(values)
    return codes[order[np.searchsorted(values[order], flat)]]


def _skipping_zero(
    ranks: npt.NDArray[np.int64], codebook: npt.NDArray[np.uint64], width: int, is_float: bool
) -> npt.NDArray[np.int32]:
    """Return codes: 0 only ever stands for the value zero."""
    codes = ranks if _has_zero(codebook, width, is_float) else ranks + (ranks >= 0)
    return codes.astype(np.int32)


def _zero_key(width: int, is_float: bool) -> int:
    return 1 << (8 * width - 1) if is_float else 0


def _zero_rank(codebook: npt.NDArray[np.uint64], width: int, is_float: bool) -> int:
    return int(np.searchsorted(codebook, np.uint64(_zero_key(width, is_float))))


def _has_zero(codebook: npt.NDArray[np.uint64], width: int, is_float: bool) -> bool:
    rank = _zero_rank(codebook, width, is_float)
    return rank < codebook.size and int(codebook[rank]) == _zero_key(width, is_float)


def _keys(values: Bits, is_float: bool) -> npt.NDArray[np.uint64]:
    """Return keys that order floats as numbers: the sign bit turned, and of negative ones all bits."""
    if not is_float:
        return values.astype(np.uint64)
    top = np.asarray(1 << (8 * values.dtype.itemsize - 1), values.dtype)
    return np.where(values & top, ~values, values | top).astype(np.uint64)


def values_of(keys: npt.NDArray[np.uint64], kind: np.dtype[Any], is_float: bool) -> Bits:
    """Return the values of keys, as unsigned integers of their type."""
    narrow: Bits = keys.astype(kind)
    if not is_float:
        return narrow
    top = np.asarray(1 << (8 * kind.itemsize - 1), kind)
    return np.where(narrow & top, narrow & ~top, ~narrow).astype(kind)
