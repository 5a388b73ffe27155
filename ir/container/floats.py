"""Floating-point numbers: exponent and leading bits by how large the number is expected to be, the rest as it is.

Row, column and kernel position tell in part how large a weight is (see `factors`). Its exponent is counted from that
expectation, a multiple of a quarter octave, so that one table for each of four quarters serves tensors of all scales:
many are coded in one call. Within an octave small numbers are a little more frequent than large ones, and the shape of
that is in the four leading bits of the mantissa. The sign and all other bits are noise, but for tensors that were
converted from a narrower type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.factors import Factors, planes_of
from onnxpress.ir.container.folds import kernel_of
from onnxpress.ir.container.logs import quarter_octaves
from onnxpress.ir.container.planes import read_plane, write_plane
from onnxpress.ir.container.tables import frequencies, read_table, write_table
from onnxpress.ir.container.zeros import read_zeros, write_zeros

__all__ = ["FORMATS", "Format", "read_floats", "read_sparse_floats", "write_floats", "write_sparse_floats"]

Bits = npt.NDArray[np.unsignedinteger[Any]]
Mask = npt.NDArray[np.bool_]

_LEADING = 4  # bits of the mantissa that the exponent says something about
_BELOW, _ABOVE = 24, 6  # octaves about the expectation; numbers farther off have their exponents written out
_OCTAVES = _BELOW + _ABOVE + 2
_SYMBOLS = _OCTAVES << _LEADING
_QUARTERS = ((1, 0), (2, 12_000), (4, 40_000))  # tables, and the numbers from which they pay
_UNIT_BITS = 14  # magnitudes count the largest power of two in parts of this, so that int16 holds them


class Format(NamedTuple):
    """A floating-point type: its width and its mantissa, in bits."""

    width: int
    mantissa: int

    @property
    def exponent(self) -> int:
        """Bits of the exponent."""
        return self.width - 1 - self.mantissa

    @property
    def rest(self) -> int:
        """Bits below the leading ones of the mantissa."""
        return self.mantissa - _LEADING


FORMATS = {"FLOAT": Format(32, 23), "DOUBLE": Format(64, 52), "FLOAT16": Format(16, 10), "BFLOAT16": Format(16, 7)}


def write_floats(
    encoder: Encoder, bits: Bits, shapes: Sequence[Sequence[int]], kind: Format, kept: Mask | None = None
) -> None:
    """Code floats, given as unsigned integers: tensors of these shapes, one after the other.

    kept: [M, C, S], those that are coded of the only tensor; None for all.
    """
    flat = bits.reshape(-1)
    leading = (flat >> np.asarray(kind.rest, flat.dtype)).astype(np.int16) & (1 << (kind.exponent + _LEADING)) - 1
    sizes = [math.prod(shape) for shape in shapes]
    scales = _fit(leading, shapes, sizes, kept)
    scales.write(encoder)
    if kept is not None:
        flat, leading = flat[kept.reshape(-1)], leading[kept.reshape(-1)]
    expected = scales.expected(sizes, kept)
    octaves = (leading >> _LEADING) - (expected >> 2) + (_BELOW + 1)
    far = (octaves < 1) | (octaves >= _OCTAVES - 1)
    symbols = (np.clip(octaves, 0, _OCTAVES - 1) << _LEADING) | (leading & (1 << _LEADING) - 1)
    tables = next(count for count, least in reversed(_QUARTERS) if flat.size >= least)
    encoder.number(tables)
    parts = [symbols[members] for members in _quarters(expected, tables)]
    counts = [np.bincount(own, minlength=_SYMBOLS) for own in parts]
    levels = write_table(encoder, np.concatenate(counts)).reshape(tables, _SYMBOLS)
    for own, of_own in zip(parts, levels, strict=True):
        encoder.symbols(own, frequencies(of_own))
    exponents = (leading[far] >> _LEADING).astype(np.uint16)
    for plane in (exponents & 0xFF, exponents >> 8)[: 1 + (kind.exponent > 8)]:
        write_plane(encoder, plane.astype(np.uint8))
    _write_rest(encoder, flat, kind)


def read_floats(decoder: Decoder, shapes: Sequence[Sequence[int]], kind: Format, kept: Mask | None = None) -> Bits:
    """Read floats of tensors of these shapes, flat; those that are not kept are zero."""
    unsigned = np.dtype(f"u{kind.width // 8}")
    expected = _Scales.read(decoder, shapes).expected([math.prod(shape) for shape in shapes], kept)
    tables = decoder.number(4)
    if tables not in (1, 2, 4):
        raise StreamError(f"there are no {tables} tables of floats")
    symbols = np.empty(expected.size, np.int16)
    levels = read_table(decoder, tables * _SYMBOLS).reshape(tables, _SYMBOLS)
    for members, own in zip(_quarters(expected, tables), levels, strict=True):
        symbols[members] = decoder.symbols(expected[members].size, frequencies(own))
    octaves = symbols >> _LEADING
    exponents = octaves + (expected >> 2) - np.int16(_BELOW + 1)
    far = (octaves < 1) | (octaves >= _OCTAVES - 1)
    count = int(np.count_nonzero(far))
    written = read_plane(decoder, count).astype(np.int16)
    if kind.exponent > 8:
        written |= read_plane(decoder, count).astype(np.int16) << 8
    exponents[far] = written
    if exponents.size and not (exponents.min() >= 0 and exponents.max() < 1 << kind.exponent):
        raise StreamError("an exponent is out of range")
    leading = (exponents << _LEADING) | (symbols & (1 << _LEADING) - 1)
    flat: Bits = leading.astype(unsigned) << np.asarray(kind.rest, unsigned)
    _read_rest(decoder, flat, kind)
    if kept is None:
        return flat
    found: Bits = np.zeros(kept.size, unsigned)
    found[kept.reshape(-1)] = flat
    return found


def write_sparse_floats(encoder: Encoder, bits: Bits, kind: Format) -> None:
    """Code floats of which many are zero: first which, then the others."""
    kept = (bits != 0).reshape(planes_of(bits.shape))
    write_zeros(encoder, kept, kernel_of(bits.shape))
    write_floats(encoder, bits, [bits.shape], kind, kept)


def read_sparse_floats(decoder: Decoder, shape: Sequence[int], kind: Format) -> Bits:
    """Read what `write_sparse_floats` wrote, flat."""
    return read_floats(decoder, [shape], kind, read_zeros(decoder, planes_of(shape), kernel_of(shape)))


# How large the numbers are expected to be.


class _Scales(NamedTuple):
    """The expected magnitudes of some tensors. scales: quarter octaves, one each. factors: what varies within each."""

    scales: npt.NDArray[np.int32]
    factors: list[Factors | None]

    def expected(self, sizes: Sequence[int], kept: Mask | None) -> npt.NDArray[np.int16]:
        """Return the expected magnitude of each number, in quarter octaves."""
        found = np.repeat(self.scales.astype(np.int16), sizes)
        start = 0
        for own, size in zip(self.factors, sizes, strict=True):
            if own is not None:
                part = found[start : start + size].reshape(own.rows.size, -1)
                part += own.rows.astype(np.int16)[:, None]
                inner = (own.columns[:, None] + own.positions).astype(np.int16).reshape(-1)
                if inner.any():
                    part += inner
            start += size
        return found if kept is None else found[kept.reshape(-1)]

    def write(self, encoder: Encoder) -> None:
        """Write the factors of all tensors, those of a kind together."""
        encoder.small(self.scales)
        parts: list[list[npt.NDArray[np.int32]]] = [[], [], []]
        present = np.zeros(len(self.factors), np.int32)
        for index, own in enumerate(self.factors):
            for axis, factor in enumerate(own.each() if own is not None else ()):
                if factor.any():
                    present[index] |= 1 << axis
                    parts[axis].append(factor)
        encoder.small(present)
        for each in parts:
            encoder.small(np.concatenate(each) if each else np.zeros(0, np.int32))

    @classmethod
    def read(cls, decoder: Decoder, shapes: Sequence[Sequence[int]]) -> _Scales:
        """Read what `write` wrote for tensors of these shapes."""
        scales, present = decoder.small(len(shapes)), decoder.small(len(shapes)).tolist()
        planes = [planes_of(shape) for shape in shapes]
        found: list[list[npt.NDArray[np.int32]] | None] = [
            [np.zeros(size, np.int32) for size in own] if any_present else None
            for own, any_present in zip(planes, present, strict=True)
        ]
        for axis in range(3):
            members = [(planes[index][axis], each) for index, each in enumerate(found) if present[index] >> axis & 1]
            joined, start = decoder.small(sum(size for size, _ in members)), 0
            for size, each in members:
                if each is not None:
                    each[axis] = joined[start : start + size]
                start += size
        return cls(scales, [None if each is None else Factors(*each) for each in found])


def _fit(
    leading: npt.NDArray[np.int16], shapes: Sequence[Sequence[int]], sizes: Sequence[int], kept: Mask | None
) -> _Scales:
    if not leading.size:
        return _Scales(np.zeros(len(shapes), np.int32), [None] * len(shapes))
    starts = np.cumsum([0, *sizes[:-1]])
    exponents = leading >> _LEADING
    highest = np.maximum.reduceat(exponents, starts)
    magnitudes = ((leading & (1 << _LEADING) - 1) | 1 << _LEADING) << (_UNIT_BITS - _LEADING)
    magnitudes >>= np.minimum(np.repeat(highest, sizes) - exponents, 15)
    counts = np.array(sizes, np.int64)
    if kept is not None:
        magnitudes *= kept.reshape(-1)
        counts[0] = max(1, int(np.count_nonzero(kept)))
    means = np.maximum((np.add.reduceat(magnitudes, starts, dtype=np.int64) << 8) // counts, 1)
    scales = quarter_octaves(means, 256) + 4 * (highest.astype(np.int32) - _UNIT_BITS)
    factors: list[Factors | None] = []
    for shape, start, size in zip(shapes, starts.tolist(), sizes, strict=True):
        planes = planes_of(shape)
        fitted = (
            Factors.fit(magnitudes[start : start + size].reshape(planes), kept) if Factors.may_pay(planes) else None
        )
        factors.append(fitted if fitted is not None and any(each.any() for each in fitted.each()) else None)
    return _Scales(scales, factors)


def _quarters(expected: npt.NDArray[np.int16], tables: int) -> list[npt.NDArray[np.intp] | slice]:
    """Return which numbers each table is for, by where in its octave the expectation lies."""
    if tables == 1:
        return [slice(None)]
    quarters = (expected & 3) >> (1 if tables == 2 else 0)
    return [np.flatnonzero(quarters == table) for table in range(tables)]


# The sign and what is below the leading bits.


def _write_rest(encoder: Encoder, flat: Bits, kind: Format) -> None:
    """Write whole bytes from below, then the bits that are left with the sign above them."""
    for byte in range(kind.rest // 8):
        write_plane(encoder, (flat >> np.asarray(8 * byte, flat.dtype)).astype(np.uint8))
    low = kind.rest // 8 * 8
    top = (flat >> np.asarray(low, flat.dtype)).astype(np.uint8) & np.uint8((1 << kind.rest - low) - 1)
    top |= (flat >> np.asarray(kind.width - 1, flat.dtype)).astype(np.uint8) << np.uint8(kind.rest - low)
    if kind.rest - low < 4:  # two to a byte
        top = np.append(top, np.zeros(flat.size % 2, np.uint8))
        top = top[::2] | top[1::2] << np.uint8(4)
    write_plane(encoder, top)


def _read_rest(decoder: Decoder, flat: Bits, kind: Format) -> None:
    """Add what `_write_rest` wrote."""
    for byte in range(kind.rest // 8):
        flat |= read_plane(decoder, flat.size).astype(flat.dtype) << np.asarray(8 * byte, flat.dtype)
    low = kind.rest // 8 * 8
    if kind.rest - low < 4:
        pairs = read_plane(decoder, -(-flat.size // 2))
        top = np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=1).reshape(-1)[: flat.size]
    else:
        top = read_plane(decoder, flat.size)
    flat |= (top & np.uint8((1 << kind.rest - low) - 1)).astype(flat.dtype) << np.asarray(low, flat.dtype)
    flat |= (top >> np.uint8(kind.rest - low)).astype(flat.dtype) << np.asarray(kind.width - 1, flat.dtype)
