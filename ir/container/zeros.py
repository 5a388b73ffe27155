"""Which elements of a sparse tensor are zero, from how dense their row, column and kernel are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder
from onnxpress.ir.container.factors import Factors
from onnxpress.ir.container.flags import (
    FEATURE_LIMIT,
    fit_weights,
    read_flags,
    read_weights,
    write_flags,
    write_weights,
)
from onnxpress.ir.container.folds import Fold, Kernel

__all__ = ["read_zeros", "write_zeros"]

Mask = npt.NDArray[np.bool_]

_FACTORS_FROM = 100  # elements to each row and column from which their densities are stored


def write_zeros(encoder: Encoder, kept: Mask, kernel: Kernel) -> None:
    """Code which elements of [M, C, S] are not zero."""
    factors = Factors.none(kept.shape)
    if kept.size >= _FACTORS_FROM * (kept.shape[0] + kept.shape[1]):
        factors = Factors.fit(kept.view(np.uint8))
    fold = Fold.of(kept.shape, kernel)
    flags, kernel = fold.planes(kept), fold.kernel
    known = np.where(flags, 64, -64).astype(np.int32)
    weights, _ = fit_weights(flags, None, _density_facts(factors, fold), known, kernel)
    factors.write(encoder)
    write_weights(encoder, weights)
    write_flags(encoder, flags, None, _density_facts(factors, fold), known, kernel, weights)


def read_zeros(decoder: Decoder, planes: tuple[int, int, int], kernel: Kernel) -> Mask:
    """Read which elements of [M, C, S] are not zero."""
    fold = Fold.of(planes, kernel)
    facts = _density_facts(Factors.read(decoder, planes), fold)
    weights = read_weights(decoder, len(facts))
    known = fold.planes(np.full(planes, -64, np.int32))
    if_set = np.broadcast_to(np.int32(64), known.shape)
    return fold.cube(read_flags(decoder, None, facts, if_set, known, fold.kernel, weights))


def _density_facts(factors: Factors, fold: Fold) -> list[npt.NDArray[np.int32]]:
    each = (factors.rows[:, None, None], factors.columns[None, :, None], factors.positions[None, None, :])
    return [fold.planes(np.clip(8 * factor, -FEATURE_LIMIT, FEATURE_LIMIT)) for factor in each]
