"""Weights of few levels as small integers times a scale for each output channel: what integer kernels multiply.

    encoded weight   =   integer * scale[output channel]        bit for bit, or it is not on an integer grid

Affine codes, one-scale ternary and binary weights and powers of two lie on such a grid by themselves. Other tables do
by luck, or after `on_integer_grid` rounded them: by at most half a step of the channel's largest level / `limit`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

from onnxpress.ir.encodings.affine import Affine
from onnxpress.ir.encodings.base import Array, Encoded, Floats
from onnxpress.ir.encodings.levels import Codebook, Levels
from onnxpress.ir.encodings.sparse import Sparse

__all__ = ["IntegerTable", "as_levels", "integer_table", "on_integer_grid"]

_TINY = float(np.finfo(np.float32).tiny)
_MOST_LEVELS = 256  # the grid has no more integers


@dataclasses.dataclass(frozen=True)
class IntegerTable:
    """table: [groups, levels] int8, in the encoding's order of levels. scale: float32, > 0, [] or [n] output channels.

    `table * scale` of the group that a channel belongs to is the encoding's own table, bit for bit.
    """

    table: npt.NDArray[np.int8]
    scale: Floats


def as_levels(encoded: Encoded) -> Levels | None:
    """Return a weight as indices into tables of levels, None where it is none.

    None too for one without numbers. Narrow affine codes with one scale for the tensor or for each channel are such
    indices. Of a sparse weight, what is not stored becomes a level of its own where no level of every group is zero.
    """
    encoded = _without_mask(encoded)
    if encoded.size == 0:
        return None
    if isinstance(encoded, Levels):
        return encoded
    if isinstance(encoded, Affine) and encoded.bits < 8 and encoded.block_size is None:
        return _affine_levels(encoded)
    if isinstance(encoded, Sparse):
        inner = as_levels(encoded.inner)
        return None if inner is None else _with_zero(inner, encoded.mask)
    return None


def integer_table(encoded: Encoded, out_axis: int, limit: int = 127) -> IntegerTable | None:
    """Return the levels of `encoded` as integers and scales, the smallest integers that do.

    None where there are none within [-limit, limit]: the encoding has no table (see `as_levels`), its groups do not
    lie along `out_axis`, or its levels are no multiples of one float32 number.
    """
    levels = as_levels(encoded)
    if levels is None or not _fits(levels, out_axis):
        return None
    table = levels.table
    found = _multiples(table, limit)
    if found is None:
        return None
    integers, scale = found
    if len(table) == 1:
        return IntegerTable(integers, scale.reshape(()))
    return IntegerTable(integers, np.repeat(scale, levels.shape.numpy()[out_axis] // len(table)))


def on_integer_grid(encoded: Encoded, out_axis: int, limit: int = 127) -> Encoded:
    """Return `encoded` itself where integers within [-limit, limit] stand for it exactly, else the nearest that do.

    Sparse codes that read zero where nothing is stored come without their mask, which says nothing more then. Tables
    along the output channels are rounded in place: a `Codebook` of the same indices, each level off by at most
    half of (the largest magnitude of its group) / limit. Everything else (blocks, groups along another axis, more than
    256 levels, floats) becomes 8-bit `Affine` with a scale for each output channel. Zero stays zero.
    """
    encoded = _without_mask(encoded)
    if encoded.size == 0:
        return encoded
    if isinstance(encoded, Affine) and encoded.bits == 8:
        if _is_plain(encoded, out_axis) and np.abs(encoded.codes.astype(np.int16)).max(initial=0) <= limit:
            return encoded
    elif integer_table(encoded, out_axis, limit) is not None:
        return encoded
    levels = as_levels(encoded)
    if levels is None or not _fits(levels, out_axis):
        return _affine(encoded, out_axis, limit)
    table = levels.table
    scale = _scale(np.abs(table).max(axis=1, keepdims=True), limit)
    rounded = np.clip(np.rint(table / scale), -limit, limit).astype(np.float32) * scale
    axis = None if len(table) == 1 else out_axis
    return Codebook(levels.indices, rounded[0] if axis is None else rounded, axis=axis, name=encoded.name)


def _without_mask(encoded: Encoded) -> Encoded:
    """Return what a sparse weight holds where its codes are zero, and mean zero, outside the mask anyway."""
    if not isinstance(encoded, Sparse) or not isinstance(encoded.inner, Affine):
        return encoded
    zero_point = encoded.inner.zero_point
    return encoded.inner if zero_point is None or not zero_point.any() else encoded


def _fits(levels: Levels, out_axis: int) -> bool:
    """Whether there are no more levels than integers, and groups lie along the output channels."""
    groups, count = levels.table.shape
    return count <= _MOST_LEVELS and (groups == 1 or levels.axis == out_axis % len(levels.shape))


def _is_plain(encoded: Affine, out_axis: int) -> bool:
    """Whether the codes are the integers: signed, no zero points, one scale for the tensor or for a channel."""
    shared = encoded.axis in (None, out_axis % encoded.codes.ndim) and encoded.block_size is None
    return shared and encoded.signed and (encoded.zero_point is None or not encoded.zero_point.any())


def _affine(encoded: Encoded, out_axis: int, limit: int) -> Affine:
    dense = encoded.dense()
    axis = out_axis % dense.ndim
    others = tuple(other for other in range(dense.ndim) if other != axis)
    scale = _scale(np.abs(dense).max(axis=others, initial=0.0), limit)
    return Affine.quantize(dense, bits=8, axis=axis, scale=scale, name=encoded.name)


def _scale(largest: Floats, limit: int) -> Floats:
    return np.asarray(np.where(largest > 0, np.maximum(largest / limit, _TINY), 1.0), np.float32)


def _affine_levels(encoded: Affine) -> Levels:
    lowest = -(1 << (encoded.bits - 1)) if encoded.signed else 0
    steps = np.arange(lowest, lowest + (1 << encoded.bits), dtype=np.float32)
    scale = encoded.scale.reshape(-1, 1)
    zero_point = np.zeros_like(scale) if encoded.zero_point is None else encoded.zero_point.reshape(-1, 1)
    with np.errstate(over="ignore"):
        table = (steps - zero_point.astype(np.float32)) * scale
    table[~np.isfinite(table)] = 0.0  # of codes that no finite weight has
    indices = (encoded.codes.astype(np.int16) - lowest).astype(np.uint8)
    return Codebook(indices, table[0] if encoded.axis is None else table, axis=encoded.axis, name=encoded.name)


def _with_zero(levels: Levels, mask: npt.NDArray[np.bool_]) -> Levels | None:
    """Return `levels` with those outside `mask` pointing at zero, None where there is no room for one more level."""
    table, indices = levels.table, levels.indices
    zeros = np.flatnonzero((table == 0).all(axis=0))
    if not zeros.size:
        if table.shape[1] == 1 << 16:
            return None
        table = np.hstack([table, np.zeros((len(table), 1), np.float32)])
    zero = int(zeros[0]) if zeros.size else table.shape[1] - 1
    kind = np.uint8 if table.shape[1] <= _MOST_LEVELS else np.uint16
    codes: Array = np.where(mask, indices.astype(kind), kind(zero))
    return Codebook(codes, table[0] if levels.axis is None else table, axis=levels.axis, name=levels.name)


def _multiples(table: Floats, limit: int) -> tuple[npt.NDArray[np.int8], Floats] | None:
    """Return integers [groups, levels] and scales [groups] whose products are `table`, bit for bit, or None.

    The largest level is some integer up to `limit` times the scale, so each is tried, the smallest first. Division
    and product both round, hence the neighbours of each quotient.
    """
    integers = np.zeros(table.shape, np.int8)
    scales = np.ones(len(table), np.float32)
    largest = np.abs(table).max(axis=1)
    open_groups = np.flatnonzero(largest > 0)
    for multiple, neighbour in itertools.product(range(1, limit + 1), (None, 0, np.inf)):
        if not open_groups.size:
            break
        scale = largest[open_groups] / np.float32(multiple)
        if neighbour is not None:
            scale = np.nextafter(scale, np.float32(neighbour))
        scale = np.where(scale > 0, scale, np.float32(1))[:, None]
        steps = np.rint(table[open_groups] / scale)
        fits = (np.abs(steps) <= limit).all(axis=1) & (steps * scale == table[open_groups]).all(axis=1)
        integers[open_groups[fits]] = steps[fits].astype(np.int8)
        scales[open_groups[fits]] = scale[fits, 0]
        open_groups = open_groups[~fits]
    return None if open_groups.size else (integers, scales)
