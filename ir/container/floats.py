"""Floating-point numbers: exponents by class, the leading bits of the mantissa by exponent, the rest as it is.

A trained weight's exponent says how large it is, which its row, column and kernel position tell in part (see
`factors`). Within an octave small numbers are a little more frequent than large ones: that is in the three leading
bits of the mantissa. The sign and all other bits are noise, but for tensors that were converted from a narrower type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.classes import best_factors, buckets_of, read_classed, write_classed
from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.factors import Factors, planes_of
from onnxpress.ir.container.folds import kernel_of
from onnxpress.ir.container.planes import read_plane, write_plane
from onnxpress.ir.container.tables import frequencies, read_table, write_table
from onnxpress.ir.container.zeros import read_zeros, write_zeros

__all__ = [
    "FORMATS",
    "Format",
    "can_pool",
    "read_floats",
    "read_pooled_floats",
    "read_sparse_floats",
    "write_floats",
    "write_pooled_floats",
    "write_sparse_floats",
]

Bits = npt.NDArray[np.unsignedinteger[Any]]

_EMPTIEST = 64  # elements of a table of joined tensors for each one that is there
_LEADING = 3  # bits of the mantissa that the exponent says something about
_MODELLED_FROM = 2_000  # numbers of an exponent from which its leading bits have a table


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
        """Bits below the leading seven of the mantissa."""
        return self.mantissa - 7


FORMATS = {"FLOAT": Format(32, 23), "DOUBLE": Format(64, 52), "FLOAT16": Format(16, 10), "BFLOAT16": Format(16, 7)}


def write_floats(encoder: Encoder, bits: Bits, kind: Format, kept: npt.NDArray[np.bool_] | None = None) -> None:
    """Code floats of any shape, given as unsigned integers. kept: [M, C, S], those that are coded; None for all."""
    planes = planes_of(bits.shape)
    cube = bits.reshape(planes)
    flat = cube.reshape(-1) if kept is None else cube[kept]
    exponents = (flat >> np.asarray(kind.mantissa, flat.dtype)).astype(np.int32) & (1 << kind.exponent) - 1
    lowest = int(exponents.min(initial=(1 << kind.exponent) - 1))
    encoder.number(lowest)
    size = int(exponents.max(initial=lowest)) - lowest + 1
    encoder.number(size)
    counts = np.bincount(exponents - lowest, minlength=size)
    table = frequencies(write_table(encoder, counts))
    buckets = buckets_of(table, np.arange(size))
    of_symbol = buckets[exponents - lowest]
    if kept is not None:
        of_symbol = _placed(of_symbol, kept)
    factors = best_factors(Factors.fit(_magnitudes(cube, kind), kept), of_symbol.reshape(planes), kept)
    factors.write(encoder)
    sums = factors.sums.reshape(-1) if kept is None else factors.sums[kept]
    write_classed(encoder, exponents - lowest, sums, table, buckets)
    _write_leading(encoder, _leading_byte(flat, kind), exponents - lowest, counts)
    for byte in range(-(-kind.rest // 8)):
        write_plane(encoder, (flat >> np.asarray(8 * byte, flat.dtype)).astype(np.uint8) & _plane_mask(kind, byte))


def read_floats(
    decoder: Decoder, shape: Sequence[int], kind: Format, kept: npt.NDArray[np.bool_] | None = None
) -> Bits:
    """Read floats of this shape; those that are not kept are zero."""
    planes = planes_of(shape)
    unsigned = np.dtype(f"u{kind.width // 8}")
    lowest, size = decoder.number(1 << kind.exponent), decoder.number(1 << kind.exponent)
    if size < 1 or lowest + size > 1 << kind.exponent:
        raise StreamError("the range of exponents is none")
    table = frequencies(read_table(decoder, size))
    buckets = buckets_of(table, np.arange(size))
    factors = Factors.read(decoder, planes)
    sums = factors.sums.reshape(-1) if kept is None else factors.sums[kept]
    exponents = read_classed(decoder, sums, table, buckets)
    counts = np.bincount(exponents, minlength=size)
    leading = _read_leading(decoder, exponents, counts)
    flat = (exponents + np.int32(lowest)).astype(unsigned) << np.asarray(kind.mantissa, unsigned)
    flat |= (leading >> 7).astype(unsigned) << np.asarray(kind.width - 1, unsigned)
    flat |= (leading & 0x7F).astype(unsigned) << np.asarray(kind.rest, unsigned)
    for byte in range(-(-kind.rest // 8)):
        flat |= read_plane(decoder, flat.size).astype(unsigned) << np.asarray(8 * byte, unsigned)
    return (flat if kept is None else _placed(flat, kept)).reshape(shape)


def write_sparse_floats(encoder: Encoder, bits: Bits, kind: Format) -> None:
    """Code floats of which many are zero: first which, then the others."""
    kept = (bits != 0).reshape(planes_of(bits.shape))
    write_zeros(encoder, kept, kernel_of(bits.shape))
    write_floats(encoder, bits, kind, kept)


def read_sparse_floats(decoder: Decoder, shape: Sequence[int], kind: Format) -> Bits:
    """Read what `write_sparse_floats` wrote."""
    return read_floats(decoder, shape, kind, read_zeros(decoder, planes_of(shape), kernel_of(shape)))


def can_pool(lengths: Sequence[int]) -> bool:
    """Tell whether joined tensors of these lengths fit in a table, a row each, that is not mostly empty."""
    return len(lengths) > 1 and len(lengths) * max(lengths) <= _EMPTIEST * sum(lengths)


def write_pooled_floats(encoder: Encoder, bits: Bits, lengths: Sequence[int], kind: Format) -> None:
    """Code joined tensors of these lengths, each a row with a factor of its own."""
    kept = _rows_of(lengths)
    write_floats(encoder, _placed(bits.reshape(-1), kept), kind, kept)


def read_pooled_floats(decoder: Decoder, lengths: Sequence[int], kind: Format) -> Bits:
    """Read what `write_pooled_floats` wrote."""
    if not can_pool(lengths):
        raise StreamError("these tensors are not joined")
    kept = _rows_of(lengths)
    return read_floats(decoder, kept.shape, kind, kept)[kept]


def _rows_of(lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which elements of a table [tensors, longest, 1] are there."""
    return (np.arange(max(lengths)) < np.array(lengths)[:, None])[:, :, None]


def _placed(values: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    cube = np.zeros(kept.shape, values.dtype)
    cube[kept] = values
    return cube


def _magnitudes(cube: Bits, kind: Format) -> npt.NDArray[np.float32]:
    """Return about how large the numbers are, on a scale that float32 holds whatever their type."""
    exponents = (cube >> np.asarray(kind.mantissa, cube.dtype)).astype(np.int32) & (1 << kind.exponent) - 1
    highest = int(exponents.max(initial=0))
    magnitudes: npt.NDArray[np.float32] = np.ldexp(np.float32(1), np.maximum(exponents - highest, -40))
    return magnitudes


def _leading_byte(flat: Bits, kind: Format) -> npt.NDArray[np.uint8]:
    """Return the sign and the seven leading bits of the mantissa."""
    sign = (flat >> np.asarray(kind.width - 1, flat.dtype)).astype(np.uint8) << np.uint8(7)
    return sign | ((flat >> np.asarray(kind.rest, flat.dtype)).astype(np.uint8) & np.uint8(0x7F))


def _write_leading(
    encoder: Encoder, leading: npt.NDArray[np.uint8], exponents: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
) -> None:
    order = np.argsort(exponents.astype(np.uint16), kind="stable")
    ordered, start = leading[order], 0
    noise = []
    for count in counts.tolist():
        group = ordered[start : start + count]
        start += count
        if count >= _MODELLED_FROM:
            table = write_table(encoder, np.bincount(group >> 4 & 7, minlength=1 << _LEADING))
            encoder.symbols(group, _spread(table))
        else:
            noise.append(group)
    write_plane(encoder, np.concatenate(noise) if noise else ordered[:0])


def _read_leading(
    decoder: Decoder, exponents: npt.NDArray[np.int32], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    order = np.argsort(exponents.astype(np.uint16), kind="stable")
    ordered = np.empty(exponents.size, np.uint8)
    start, noise = 0, []
    for count in counts.tolist():
        if count >= _MODELLED_FROM:
            table = _spread(read_table(decoder, 1 << _LEADING))
            ordered[start : start + count] = decoder.symbols(count, table)
        elif count:
            noise.append(slice(start, start + count))
        start += count
    found, start = read_plane(decoder, sum(part.stop - part.start for part in noise)), 0
    for part in noise:
        ordered[part] = found[start : start + part.stop - part.start]
        start += part.stop - part.start
    leading = np.empty_like(ordered)
    leading[order] = ordered
    return leading


def _spread(levels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the table of the leading byte: its sign and its low bits are noise."""
    return np.tile(np.repeat(frequencies(levels) >> 5, 16) + 1, 2)


def _plane_mask(kind: Format, byte: int) -> np.uint8:
    return np.uint8((1 << min(8, kind.rest - 8 * byte)) - 1)
