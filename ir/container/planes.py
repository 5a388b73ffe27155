"""A plane of bytes: nothing where it is noise, a frequency table where it is not."""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder
from onnxpress.ir.container.logs import entropy_bits
from onnxpress.ir.container.tables import frequencies, read_table, write_table

__all__ = ["read_plane", "write_plane"]

Bytes = npt.NDArray[np.uint8]

_NOISE_PERCENT = 795  # of a bit: the entropy of a byte from which it is stored as it is
_SEEMING_BITS = 184  # 255 / (2 ln 2)
_SAMPLE = 1 << 16
_FEWEST = 16  # bytes that a table may pay for


class _Kind(enum.IntEnum):
    CODED = 0
    PLAIN = 1
    CONSTANT = 2


def write_plane(encoder: Encoder, plane: Bytes) -> None:
    """Write bytes: coded where that is shorter, else as they are."""
    kind = _kind(plane)
    encoder.number(kind)
    if kind is _Kind.CONSTANT:
        encoder.plain(plane[:1].tobytes())
    elif kind is _Kind.PLAIN:
        encoder.plain(plane.tobytes())
    else:
        levels = write_table(encoder, np.bincount(plane, minlength=256))
        encoder.symbols(plane, frequencies(levels))


def read_plane(decoder: Decoder, count: int) -> Bytes:
    """Read `count` bytes."""
    kind = decoder.number(max(_Kind))
    if kind == _Kind.CONSTANT:
        return np.full(count, decoder.plain(1)[0], np.uint8)
    if kind == _Kind.PLAIN:
        return np.frombuffer(decoder.plain(count), np.uint8)
    return decoder.symbols(count, frequencies(read_table(decoder, 256))).astype(np.uint8)


def _kind(plane: Bytes) -> _Kind:
    if plane.size and plane[0] == plane[-1] and (plane == plane[0]).all():
        return _Kind.CONSTANT
    if plane.size < _FEWEST:
        return _Kind.PLAIN
    counts = np.bincount(plane[:: max(1, plane.size // _SAMPLE)], minlength=256)
    # A small sample looks less even than it is, by half a nat for each symbol (Miller 1955).
    is_noise = 100 * (entropy_bits(counts) + _SEEMING_BITS) > _NOISE_PERCENT * int(counts.sum())
    return _Kind.PLAIN if is_noise else _Kind.CODED
