"""Integer codes as bytes: C order, low bits first inside a byte, little endian over bytes.

Codes of 2 and 4 bits lie 4 and 2 in a byte, in two's complement where signed, and the last byte is padded
with zeros: the form of ONNX's INT4 and UINT4 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.quantization import integer_range

__all__ = ["code_type", "from_bytes", "pack_bits", "unpack_bits"]

Array: TypeAlias = npt.NDArray[Any]


def pack_bits(codes: Array, bits: int) -> bytes:
    """Pack integer codes of 2, 4, 8 or 16 bits into ceil(size * bits / 8) bytes.

    >>> pack_bits(np.array([1, 2, -1], np.int8), 4).hex()
    '210f'
    """
    if bits >= 8:
        return codes.astype(codes.dtype.newbyteorder("<"), copy=False).tobytes()
    slots = 8 // bits
    flat = codes.reshape(-1).astype(np.uint8) & np.uint8((1 << bits) - 1)
    lanes = np.zeros((-(-flat.size // slots), slots), np.uint8)
    lanes.reshape(-1)[: flat.size] = flat
    packed = lanes[:, 0].copy()
    for slot in range(1, slots):
        packed |= lanes[:, slot] << np.uint8(slot * bits)
    return packed.tobytes()


def unpack_bits(packed: bytes, shape: Sequence[int], bits: int, signed: bool) -> Array:
    """Return the codes that `pack_bits` packed.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    kind = code_type(bits, signed)
    if bits >= 8:
        return from_bytes(packed, kind.newbyteorder("<"), shape).astype(kind, copy=False)
    size, slots = math.prod(shape), 8 // bits
    _check_length(packed, -(-size // slots), shape)
    lanes = np.frombuffer(packed, np.uint8)[:, None] >> (np.arange(slots, dtype=np.uint8) * bits)
    # Moving a code to the byte's top and back down as int8 extends its sign.
    top = (lanes << np.uint8(8 - bits)).astype(np.uint8).reshape(-1)[:size]
    codes: Array = top.view(kind) >> np.array(8 - bits, kind)
    return codes.reshape(tuple(shape))


def code_type(bits: int, signed: bool) -> np.dtype[Any]:
    """Return the type that holds unpacked codes: the narrowest of 8 or 16 bits."""
    integer_range(bits, signed)  # refuses odd widths
    width = max(bits, 8)
    return np.dtype(f"int{width}" if signed else f"uint{width}")


def from_bytes(packed: bytes, kind: npt.DTypeLike, shape: Sequence[int]) -> Array:
    """Return a read-only array over `packed`.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    _check_length(packed, math.prod(shape) * np.dtype(kind).itemsize, shape)
    return np.frombuffer(packed, kind).reshape(tuple(shape))


def _check_length(packed: bytes, expected: int, shape: Sequence[int]) -> None:
    if len(packed) != expected:
        raise ValueError(f"shape {list(shape)} needs {expected} packed bytes, got {len(packed)}")
