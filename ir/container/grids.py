"""Float32 weights that are whole numbers times a scale, as dequantized and fake-quantized models hold them.

    w[i] = float32(code[i]) * scale[channel]        in float32, rounded once

The scale of a channel is its largest magnitude over a whole number, rounded to float32: 127 for most int8 schemes.
The formula is checked on every element; the few that it misses are stored beside the codes. Rounding a small negative
number gives -0.0, and so does fake quantization: the signs of zeros are coded where there are such.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import FLAG_ONE, Decoder, Encoder, StreamError, flag_share
from onnxpress.ir.container.codes import read_codes, write_codes
from onnxpress.ir.container.floats import FORMATS, read_floats, write_floats

__all__ = ["Grid", "grid_of", "may_have_grid", "read_grid", "write_grid"]

Floats = npt.NDArray[np.float32]

_LEVELS = (127, 128, 7, 8, 63, 31, 15, 3, 1, 255)  # codes of the largest magnitude, by how common the schemes are
_MISSES = 0.001  # share of elements that may lie off the grid
_ROW_FITS = 0.9  # share of a row on its grid: a wrong scale gets nowhere near
_PREFIX = 64  # elements of a row that tell most wrong scales
_PROBED = 8  # channels that tell most tensors on no grid


class Grid(NamedTuple):
    """A tensor on a grid. axis: of the channels; None: one scale. codes: as the tensor. missed: flat places."""

    axis: int | None
    scales: Floats
    codes: npt.NDArray[np.int32]
    missed: npt.NDArray[np.intp]


def grid_of(weights: Floats, values: Floats | None = None) -> Grid | None:
    """Return the grid that float32 weights lie on, by channel or as a whole, or None.

    values: the different ones, where they are few.
    """
    if weights.ndim == 0 or weights.size < 2:
        return None
    axes: list[int | None] = [None, 0, weights.ndim - 1] if weights.ndim > 1 else [None]
    for axis in axes:
        moved = weights.reshape(1, -1) if axis is None else np.moveaxis(weights, axis, 0)
        if moved[:1].size < 2:
            continue
        if values is not None and axis is None:
            levels = _likely_levels(values[None, :], has_few=True)
        else:  # a look at two rows spares most tensors the copy of all
            levels = _likely_levels(moved[:2].reshape(len(moved[:2]), -1))
        if not levels:
            continue
        rows = moved.reshape(len(moved), -1)
        levels = levels if axis is None else _likely_levels(rows[:: max(1, len(rows) // _PROBED)])
        scales = _scales(rows, levels) if levels else None
        if scales is None:
            continue
        found = _codes(rows, scales)
        codes = found.reshape(weights.shape) if axis is None else np.moveaxis(found.reshape(moved.shape), 0, axis)
        again = _decoded(codes, scales, axis)
        missed = np.flatnonzero(again.reshape(-1) != weights.reshape(-1))  # NaN is never equal; the sign of 0 is apart
        if missed.size <= _MISSES * weights.size:
            return Grid(axis, scales, np.ascontiguousarray(codes), missed)
    return None


def may_have_grid(weights: Floats) -> bool:
    """Tell whether a look at some of the weights says that they may lie on a grid."""
    if weights.ndim < 2:
        return bool(weights.size > 1 and _likely_levels(weights.reshape(1, -1)))
    sides = (
        weights.reshape(1, -1),
        weights.reshape(len(weights), -1)[:2],
        weights.reshape(-1, weights.shape[-1]).T[:2],
    )
    return any(side.shape[1] > 1 and _likely_levels(side) for side in sides)


def write_grid(encoder: Encoder, weights: Floats, grid: Grid) -> None:
    """Code the weights by the grid that `grid_of` found."""
    encoder.number(0 if grid.axis is None else grid.axis + 1)
    write_floats(encoder, grid.scales.view(np.uint32), [grid.scales.shape], FORMATS["FLOAT"])
    write_codes(encoder, grid.codes)
    negative = np.signbit(weights)[grid.codes == 0]
    share = min(FLAG_ONE - 1, -(-int(negative.sum()) * FLAG_ONE // max(1, negative.size)))
    encoder.number(share)  # 0: no zero is negative
    if share:
        encoder.flags(negative, flag_share(share, negative.size))
    encoder.number(grid.missed.size)
    for step in np.diff(grid.missed, prepend=0).tolist():
        encoder.number(step)
    encoder.plain(weights.reshape(-1)[grid.missed].astype("<f4").tobytes())


def read_grid(decoder: Decoder, shape: Sequence[int]) -> Floats:
    """Read weights of this shape."""
    axis = decoder.number(len(shape)) - 1
    channels = 1 if axis < 0 else shape[axis]
    scales = read_floats(decoder, [(channels,)], FORMATS["FLOAT"]).view(np.float32)
    codes = read_codes(decoder, shape)
    weights = _decoded(codes, scales, None if axis < 0 else axis)
    share = decoder.number(FLAG_ONE - 1)
    if share:
        zeros = codes == 0
        weights[zeros] = np.where(
            decoder.flags(flag_share(share, int(zeros.sum()))) == 1, np.float32(-0.0), np.float32(0)
        )
    missed = np.cumsum([decoder.number() for _ in range(decoder.number(weights.size))], dtype=np.int64)
    if missed.size and int(missed[-1]) >= weights.size:
        raise StreamError("an element off the grid lies outside the tensor")
    weights.reshape(-1)[missed] = np.frombuffer(decoder.plain(4 * missed.size), "<f4")
    return weights


def _decoded(codes: npt.NDArray[np.int32], scales: Floats, axis: int | None) -> Floats:
    shape = [-1 if each == axis else 1 for each in range(codes.ndim)]
    with np.errstate(all="ignore"):
        return np.multiply(codes.astype(np.float32), scales.reshape(shape), order="C")


def _codes(rows: Floats, scales: Floats) -> npt.NDArray[np.int32]:
    with np.errstate(all="ignore"):
        ratio = np.rint(rows / scales[:, None])
    return np.where(np.abs(ratio) < 1 << 12, ratio, 0).astype(np.int32)


def _scales(rows: Floats, levels: Sequence[int]) -> Floats | None:
    """Return the scale of each row, 1 for rows of zeros; None where too many elements lie on no grid of the row's."""
    peaks = np.abs(rows).max(axis=1)
    if not np.isfinite(peaks).all():
        return None
    scales = np.ones(len(rows), np.float32)
    pending = np.flatnonzero(peaks > 0)
    allowed = _MISSES * rows.size
    for level, towards in itertools.product(levels, (None, np.inf, -np.inf)):
        if not pending.size:
            break
        tried = peaks[pending] / np.float32(level)
        if towards is not None:  # the largest magnitude was rounded: the scale may be the next number
            tried = np.nextafter(tried, np.float32(towards))
        likely = _fits(rows[pending, :_PREFIX], tried)
        likely[likely] = _fits(rows[pending[likely]], tried[likely])
        scales[pending[likely]] = tried[likely]
        pending = pending[~likely]
    lost = pending.size * rows.shape[1]
    scales[pending] = np.maximum(peaks[pending], np.float32(1e-30))
    return scales if lost <= allowed else None


def _fits(rows: Floats, scales: Floats) -> npt.NDArray[np.bool_]:
    """Tell which rows lie on their grid, but for the few that may miss it."""
    again = _codes(rows, scales).astype(np.float32) * scales[:, None]
    fits: npt.NDArray[np.bool_] = (again == rows).mean(axis=1) >= _ROW_FITS
    return fits


def _likely_levels(rows: Floats, *, has_few: bool = False) -> list[int]:
    """Return the levels that fit the beginning of some of the rows; all of them where the rows are zero."""
    beginning = np.sort(np.abs(rows[:, :_PREFIX]), axis=1)
    if not has_few and rows.shape[1] >= _PREFIX and (beginning[:, 1:] == beginning[:, :-1]).any(axis=1).mean() < 0.5:
        return []  # of 64 numbers on a grid of 255, some are the same
    peaks = np.abs(rows).max(axis=1)
    rows, peaks = rows[peaks > 0, :_PREFIX], peaks[peaks > 0]
    if not np.isfinite(peaks).all():
        return []
    if not peaks.size:
        return list(_LEVELS)
    scales = peaks[:, None] / np.array(_LEVELS, np.float32)
    wanted = np.repeat(rows, len(_LEVELS), axis=0)
    fits = _fits(wanted, scales.reshape(-1)).reshape(scales.shape)
    if fits.any(axis=1).mean() < 0.5:
        return []
    return [_LEVELS[index] for index in np.flatnonzero(fits.any(axis=0))]
