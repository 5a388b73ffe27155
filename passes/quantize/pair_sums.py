"""Keep sums of two neighbouring integer weights within a limit, for kernels that add two products in 16 bits.

VPMADDUBSW computes saturate16(x0 * w0 + x1 * w1) of unsigned x and signed w. It never saturates where

    w0 + w1 <= limit   and   -(w0 + w1) <= limit,   limit = floor(32767 / 255) = 128

(two weights of opposite signs cannot exceed it alone). The common cure halves all weights, to seven bits. Few pairs
need it: here, each output channel takes the scale at which rounding its weights and moving the pairs that are still
beyond the limit to it costs the least squared error together. On weights of bell shape that is 2 to 3 dB instead of 6.

A pair is any two weights that are neighbours in the order in which kernels sum products: kernel positions outside,
input channels inside. Kernels start pairs at even places of a position or of a whole patch, so both parities count.

Source: Intel, "Lower Numerical Precision Deep Learning Inference and Training" (2018), on 7-bit weights before VNNI.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["within_pair_limit"]

_Array: TypeAlias = npt.NDArray[Any]
_STEPS = 9  # scales tried between "all pairs moved" and "no pair moved"; more win less than 0.05 dB


def within_pair_limit(
    weight: _Array, scale: npt.NDArray[np.float32], limit: int, *, largest: int = 127
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return codes (int8, the weight's shape) and scales such that no pair of codes sums up beyond `limit`.

    weight: [out, in/groups, *kernel], finite. scale: [out] or [], > 0: the least scales to use. Channels whose codes
    keep the limit at these scales keep them, and their codes are those of plain rounding.
    limit: at least `largest`, the largest magnitude of a code.
    """
    # [channels with a scale of their own, outputs of each, terms in the order of summation]
    ordered = np.moveaxis(weight.astype(np.float64), 1, -1)
    rows = ordered.reshape(scale.size, -1, int(np.prod(ordered.shape[1:])))
    least = scale.astype(np.float64).reshape(-1)
    best_codes = np.empty(rows.shape, np.int8)
    best_scale, best_error = least.copy(), np.full(len(rows), np.inf)
    most = np.maximum(1.0, _largest_sum(np.rint(rows / least[:, None, None])) / limit)
    for step in range(_STEPS):
        tried = (least * (1 + (most - 1) * step / (_STEPS - 1))).astype(np.float32)
        codes = _move_pairs(_round(rows, tried, largest), limit)
        error = np.square(codes * tried.astype(np.float64)[:, None, None] - rows).sum(axis=(1, 2))
        better = error < best_error
        best_codes[better], best_scale[better], best_error[better] = codes[better], tried[better], error[better]
    found: npt.NDArray[np.int8] = np.ascontiguousarray(np.moveaxis(best_codes.reshape(ordered.shape), -1, 1))
    return found, best_scale.astype(np.float32).reshape(scale.shape)


def _round(rows: _Array, scale: npt.NDArray[np.float32], largest: int) -> npt.NDArray[np.int16]:
    codes: npt.NDArray[np.int16] = np.rint(rows / scale[:, None, None]).clip(-largest, largest).astype(np.int16)
    return codes


def _largest_sum(codes: _Array) -> npt.NDArray[np.float64]:
    """Return the largest |sum| of two neighbours in each row, [rows]; 0 where there are none."""
    sums: npt.NDArray[np.float64] = np.abs(codes[..., 1:] + codes[..., :-1]).max(axis=(1, 2), initial=0.0)
    return sums


def _move_pairs(codes: npt.NDArray[np.int16], limit: int) -> npt.NDArray[np.int16]:
    """Move each pair beyond the limit to it, both codes by half the excess. No other pair gets worse by that."""
    moved = codes.copy()
    for start in (0, 1):
        length = (moved.shape[-1] - start) // 2 * 2
        pairs = moved[..., start : start + length].reshape(*moved.shape[:2], -1, 2)
        sums = pairs.sum(axis=-1)
        excess = np.maximum(np.abs(sums) - limit, 0)
        sign = np.sign(sums)
        pairs[..., 0] -= (sign * (excess // 2)).astype(np.int16)
        pairs[..., 1] -= (sign * (excess - excess // 2)).astype(np.int16)
        moved[..., start : start + length] = pairs.reshape(*moved.shape[:2], length)
    return moved
