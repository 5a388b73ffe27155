"""Integer codes as bytes: C order, low bits first inside a byte, little endian over bytes.

Codes follow each other without a gap, in two's complement where signed, and the last byte is padded with zeros. For 2
and 4 bits that is the form of ONNX's INT2, UINT2, INT4 and UINT4 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["code_type", "from_bytes", "pack_bits", "unpack_bits"]

Array: TypeAlias = npt.NDArray[Any]

_WIDEST = 16
_WHOLE = (8, 16)  # bytes as they are


def pack_bits(codes: Array, bits: int) -> bytes:
    """Pack integer codes of 1 to 16 bits into ceil(size * bits / 8) bytes; wider codes as their type has them.

    >>> pack_bits(np.array([1, 2, -1], np.int8), 4).hex()
    '210f'
    >>> pack_bits(np.array([1, 2, 7], np.uint8), 3).hex()         # 001, 010, 111, from the lowest bit on
    'd101'
    """
    if bits in _WHOLE or bits > _WIDEST:
        return codes.astype(codes.dtype.newbyteorder("<"), copy=False).tobytes()
    flat = codes.reshape(-1, 1).astype("<u2" if bits > 8 else np.uint8, copy=False).view(np.uint8)
    return np.packbits(np.unpackbits(flat, axis=1, count=bits, bitorder="little"), bitorder="little").tobytes()


def unpack_bits(packed: bytes, shape: Sequence[int], bits: int, signed: bool) -> Array:
    """Return the codes that `pack_bits` packed.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    kind = code_type(bits, signed)
    if bits in _WHOLE:
        return from_bytes(packed, kind.newbyteorder("<"), shape).astype(kind, copy=False)
    size = math.prod(shape)
    _check_length(packed, -(-size * bits // 8), shape)
    lanes = np.unpackbits(np.frombuffer(packed, np.uint8), count=size * bits, bitorder="little").reshape(size, bits)
    # A code at the top of its type, moved back down as a signed one, extends its sign.
    free = 8 * kind.itemsize - bits
    top = np.packbits(np.pad(lanes, [(0, 0), (free, 0)]), axis=1, bitorder="little").reshape(-1)
    codes: Array = top.view(kind.newbyteorder("<")).astype(kind, copy=False) >> np.array(free, kind)
    return codes.reshape(tuple(shape))


def code_type(bits: int, signed: bool) -> np.dtype[Any]:
    """Return the type that holds unpacked codes: the narrowest of 8 or 16 bits."""
    if not 1 <= bits <= _WIDEST:
        raise ValueError(f"bits must be 1 to {_WIDEST}, not {bits}")
    width = 8 if bits <= 8 else 16
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
