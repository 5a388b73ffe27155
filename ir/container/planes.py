"""A plane of bytes: nothing where it is noise, a frequency table where it is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder
from onnxpress.ir.container.tables import frequencies, read_table, write_table

__all__ = ["read_plane", "write_plane"]

Bytes = npt.NDArray[np.uint8]

_NOISE_BITS = 7.95  # entropy of a byte from which it is stored as it is
_SAMPLE = 1 << 16


def write_plane(encoder: Encoder, plane: Bytes) -> None:
    """Write bytes: coded where that is shorter, else as they are."""
    counts = np.bincount(plane[:: max(1, plane.size // _SAMPLE)], minlength=256)
    share = counts / max(1, int(counts.sum()))
    entropy = -float((share * np.log2(np.maximum(share, 1e-12))).sum())
    # A small sample looks less even than it is, by half a nat for each symbol (Miller 1955).
    is_noise = entropy + 255 / (2 * np.log(2) * max(1, plane.size)) > _NOISE_BITS
    encoder.number(int(is_noise))
    if is_noise:
        encoder.plain(plane.tobytes())
    else:
        levels = write_table(encoder, np.bincount(plane, minlength=256))
        encoder.symbols(plane, frequencies(levels))


def read_plane(decoder: Decoder, count: int) -> Bytes:
    """Read `count` bytes."""
    if decoder.number(1):
        return np.frombuffer(decoder.plain(count), np.uint8)
    return decoder.symbols(count, frequencies(read_table(decoder, 256))).astype(np.uint8)
