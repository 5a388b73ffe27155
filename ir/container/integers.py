"""Narrow integers and packed codes, and whatever else is bytes.

A byte may hold one number, two of 4 bits or four of 2 bits, and neither the type nor the name says which: the encoder
tries them all. Wide integers are coded a byte of their width at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.codes import read_codes, write_codes
from onnxpress.ir.container.planes import read_plane, write_plane

__all__ = ["read_fields", "read_planes", "write_fields", "write_planes"]

Bytes = npt.NDArray[np.uint8]

_WIDTHS = (8, 4, 2)


def write_fields(encoder: Encoder, data: Bytes, shape: Sequence[int], width: int) -> None:
    """Code bytes as numbers of `width` bits, low bits first, that gather about some value.

    shape: of the tensor. Where its innermost axis holds the numbers, their rows and columns are told apart.
    """
    fields = _split(data, width)
    centre = int(np.median(fields)) if fields.size else 0
    encoder.number(width)
    encoder.number(centre)
    write_codes(encoder, (fields - centre).reshape(_field_shape(shape, fields.size)))


def read_fields(decoder: Decoder, size: int, shape: Sequence[int]) -> Bytes:
    """Read `size` bytes."""
    width = decoder.number(8)
    if width not in _WIDTHS:
        raise StreamError(f"fields of {width} bits are none")
    centre = decoder.number(1 << width)
    count = size * 8 // width
    fields = read_codes(decoder, _field_shape(shape, count)).reshape(size, 8 // width) + np.int32(centre)
    if fields.size and not (fields.min() >= 0 and fields.max() < 1 << width):
        raise StreamError("a field is out of range")
    shifts = np.arange(0, 8, width, dtype=np.int32)
    joined: npt.NDArray[np.int32] = np.bitwise_or.reduce(fields << shifts, axis=1)
    return joined.astype(np.uint8)


def write_planes(encoder: Encoder, data: Bytes, width: int) -> None:
    """Code elements of `width` bytes, a plane of bytes at a time."""
    for plane in data.reshape(-1, width).T:
        write_plane(encoder, np.ascontiguousarray(plane))


def read_planes(decoder: Decoder, size: int, width: int) -> Bytes:
    """Read `size` bytes."""
    planes = [read_plane(decoder, size // width) for _ in range(width)]
    return np.stack(planes, axis=1).reshape(-1)


def _split(data: Bytes, width: int) -> npt.NDArray[np.int32]:
    if width == 8:
        return data.astype(np.int32)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    return (data[:, None] >> shifts & np.uint8((1 << width) - 1)).astype(np.int32).reshape(-1)


def _field_shape(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the tensor's shape, stretched along its last axis where that gives so many fields; else a vector."""
    size = math.prod(shape)
    if len(shape) < 2 or size == 0 or count % size:
        return (count,)
    return (*shape[:-1], shape[-1] * (count // size))
