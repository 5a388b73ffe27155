"""Recognise float weights that already lie on an integer grid."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.quantization import integer_range

__all__ = ["grid_scale"]

Floats: TypeAlias = npt.NDArray[np.float32]

# Decoded integers code * scale are off by two float32 roundings, 1.2e-7. Of other numbers, one in 4,000 comes
# this close to a given grid of 127 steps.
_TOLERANCE = 1e-6  # of the channel's largest magnitude


def grid_scale(w: npt.ArrayLike, axis: int | None, bits: int = 8, *, narrow: bool = True) -> Floats | None:
    """Return the scale of the symmetric integer grid that weights already lie on, or None.

    Models decoded from integers (TFLite, fake-quantized training) hold code * scale in float32. With that
    scale, `Affine.quantize(w, scale=...)` gives them back, to the last bit where some scale does, also in channels
    whose largest code is small, where max|w| / 127 would be another grid.

    For each channel: the smallest k in 1..qmax for which |w| / (max|w| / k) are all integers, within 1e-6 of
    max|w|. A channel of one magnitude has k = 1; one of zeros gets scale 1.

    axis: as in `Affine.quantize`; there are no blocks. bits: 2, 4 or 8; float32 cannot tell finer grids.
    narrow: as in `Affine.quantize`: without it, a channel may also hold the code -2**(bits-1).
    Returns: float32 [n] or [], or None when one channel lies on no grid or is not finite, or w is empty.

    >>> grid_scale([[0.5, -1.0, 1.5], [0.3, 0.0, 0.3]], axis=0)
    array([0.5, 0.3], dtype=float32)
    """
    if bits > 8:
        raise ValueError(f"grids are told for up to 8 bits, not {bits}")
    weights = np.asarray(w, np.float32)
    if weights.size == 0:
        return None
    rows = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0)
    rows = rows.reshape(len(rows), -1)
    _, qmax = integer_range(bits, signed=True)
    limit = qmax if narrow else qmax + 1
    # A few channels tell almost every model that lies on no grid, for next to nothing.
    if len(rows) > 16 and _grid_levels(rows[:8], limit) is None:
        return None
    levels = _grid_levels(rows, limit)
    if levels is None:
        return None
    peak = np.abs(rows).max(axis=1)
    if not narrow and np.any((levels > qmax) & (rows.max(axis=1) == peak)):
        return None  # 128 fits the type below zero only
    scale = np.where(peak > 0, peak / levels.astype(np.float32), np.float32(1)).astype(np.float32)
    if np.any(scale < np.finfo(np.float32).tiny):
        return None  # denormal: 1 / scale would be infinite
    return _exact(rows, scale).reshape(() if axis is None else -1)


def _exact(rows: Floats, scale: Floats) -> Floats:
    """Return the scales, or a neighbour where its products are the weights to the last bit and the scale's are not.

    The largest magnitude was rounded, so that dividing it may miss the scale that it came from by one step.
    """
    codes = np.rint(rows / scale[:, None])
    found = scale
    for towards in (np.inf, -np.inf):
        off = (codes * found[:, None] != rows).any(axis=1)
        found = np.where(off, np.nextafter(scale, np.float32(towards)), found)
    off = (codes * found[:, None] != rows).any(axis=1)
    return np.where(off, scale, found).astype(np.float32)


def _grid_levels(rows: Floats, limit: int) -> npt.NDArray[np.int64] | None:
    """Return for each row the smallest k <= limit whose grid max|row| / k holds it; None where one has none.

    rows: [channels, weights]. A few probes rule out most k, then each k that fails on a whole row adds the
    weight that fails worst to the row's probes.
    """
    relative = np.abs(rows)
    peak = relative.max(axis=1, keepdims=True)
    if not np.isfinite(peak).all():
        return None
    relative /= np.where(peak > 0, peak, np.float32(1))
    stride = max(1, rows.shape[1] // 8)
    possible = _fitting(relative[:, ::stride], limit)
    levels = np.zeros(len(rows), np.int64)
    pending = np.arange(len(rows))
    while pending.size:
        if not possible[pending].any(axis=1).all():
            return None
        first = possible[pending].argmax(axis=1)
        candidate = (first + 1).astype(np.float32)
        misses = relative[pending] * candidate[:, None]
        misses -= np.rint(misses)
        np.abs(misses, out=misses)
        worst = misses.argmax(axis=1)
        fails = misses[np.arange(len(pending)), worst] > _TOLERANCE * candidate
        levels[pending[~fails]] = first[~fails] + 1
        possible[pending[fails], first[fails]] = False
        pending, worst = pending[fails], worst[fails]
        possible[pending] &= _fitting(relative[pending, worst][:, None], limit)
    return levels


def _fitting(relative: Floats, limit: int) -> npt.NDArray[np.bool_]:
    """Return [channels, limit]: whether all `relative` [channels, probes] are multiples of 1 / k, k >= 1."""
    levels = np.arange(1, limit + 1, dtype=np.float32)
    steps = relative[:, :, None] * levels
    fits: npt.NDArray[np.bool_] = (np.abs(steps - np.rint(steps)) <= _TOLERANCE * levels).all(axis=1)
    return fits
