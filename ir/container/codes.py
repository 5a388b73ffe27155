"""Signed whole numbers of a weight tensor: codes on a grid, or ranks in a codebook with 0 for the value zero.

Three things are coded where each pays: which elements are zero, from their surroundings (sparse tensors); what the
others are, in classes by row, column and kernel position; and the signs, from the signs and sizes of neighbours in
the same kernel (smooth kernels), in place of the sign within the symbol.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.classes import buckets_of, read_classed, write_classed
from onnxpress.ir.container.coder import Decoder, Encoder, Integers, StreamError
from onnxpress.ir.container.factors import Factors, fit_fullness, fullness, planes_of
from onnxpress.ir.container.folds import kernel_of
from onnxpress.ir.container.signs import Signs, read_signs
from onnxpress.ir.container.tables import frequencies, read_table, write_table
from onnxpress.ir.container.zeros import read_zeros, write_zeros

__all__ = ["read_codes", "write_codes"]

Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_SPARSE_FROM = 0.1  # share of zeros from which they are told apart first
_WIDEST = 1 << 13  # different codes


def write_codes(encoder: Encoder, codes: Codes) -> None:
    """Code a tensor of whole numbers, [M, C, kernel...] or any other shape, whose range is below 8,192."""
    planes, kernel = planes_of(codes.shape), kernel_of(codes.shape)
    cube = codes.reshape(planes)
    lowest = min(0, int(cube.min(initial=0)))
    size = max(0, int(cube.max(initial=0))) - lowest + 1
    kept = cube != 0
    is_sparse = float(kept.mean()) < 1 - _SPARSE_FROM if cube.size else False
    encoder.number(-lowest)
    encoder.number(size)
    mask = kept if is_sparse else None
    places = np.flatnonzero(kept) if is_sparse else slice(None)
    symbols = cube.reshape(-1)[places] - np.int32(lowest)
    levels = write_table(encoder, np.bincount(symbols, minlength=size))
    signs = Signs(cube, lowest, levels, kernel, is_sparse)
    encoder.number(is_sparse + 2 * signs.pay)
    if is_sparse:
        write_zeros(encoder, kept, kernel)
    order = np.abs(np.arange(size) + lowest)
    table = frequencies(levels)
    buckets = buckets_of(table, order)
    magnitudes = np.abs(cube)
    factors = Factors.fit(magnitudes, mask)
    factors.write(encoder)
    sums: Integers = factors.sums.reshape(-1)[places]
    if not isinstance(places, slice) and planes[2] > 1:
        full = fullness(kept, places)
        factor = fit_fullness(magnitudes.reshape(-1)[places], full, sums, planes[2] + 1)
        encoder.number(int(factor.any()))
        if factor.any():
            encoder.small(factor)
            sums = sums + factor[full]
    if signs.pay:
        folded, fold_buckets = _folded(table, lowest, size)
        write_classed(encoder, np.abs(symbols + lowest), sums, folded, fold_buckets)
        signs.write(encoder)
    else:
        write_classed(encoder, symbols, sums, table, buckets)


def read_codes(decoder: Decoder, shape: Sequence[int]) -> Codes:
    """Read the codes of a tensor of this shape."""
    planes, kernel = planes_of(shape), kernel_of(shape)
    lowest, size = -decoder.number(_WIDEST), decoder.number(_WIDEST)
    if size < 1 - lowest:
        raise StreamError("the range of codes does not hold zero")
    levels = read_table(decoder, size)
    signs_pay, is_sparse = divmod(decoder.number(3), 2)
    kept = read_zeros(decoder, planes, kernel) if is_sparse else None
    table = frequencies(levels)
    factors = Factors.read(decoder, planes)
    places = slice(None) if kept is None else np.flatnonzero(kept)
    sums: Integers = factors.sums.reshape(-1)[places]
    if kept is not None and not isinstance(places, slice) and planes[2] > 1 and decoder.number(1):
        sums = sums + decoder.small(planes[2] + 1)[fullness(kept, places)]
    if signs_pay:
        folded, fold_buckets = _folded(table, lowest, size)
        sized = _placed(read_classed(decoder, sums, folded, fold_buckets), kept, planes)
        return read_signs(decoder, sized, lowest, levels, kernel).reshape(shape)
    buckets = buckets_of(table, np.abs(np.arange(size) + lowest))
    return _placed(read_classed(decoder, sums, table, buckets) + np.int32(lowest), kept, planes).reshape(shape)


def _placed(values: Codes, kept: Mask | None, planes: tuple[int, int, int]) -> Codes:
    if kept is None:
        return values.reshape(planes)
    cube = np.zeros(planes, np.int32)
    cube[kept] = values
    return cube


def _folded(table: Integers, lowest: int, size: int) -> tuple[Integers, Integers]:
    """Return the table of magnitudes, and its buckets."""
    order = np.abs(np.arange(size) + lowest)
    folded = np.zeros(int(order.max()) + 1, np.int64)
    np.add.at(folded, order, table)
    return folded, buckets_of(folded, np.arange(folded.size))
