"""Where fitting begins: parameters of the least squared weight error, each weight counted by its importance.

All take rows [R, K] and their importance, of the same shape and >= 0: the mean square of the input that a weight is
multiplied with, or 1 where no data says it. A weight of importance 0, or outside a mask, has no say.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.passes.lowbit.alphabet import Grouping

__all__ = ["binary_scales", "codebook_levels", "exponents", "integer_scales", "ternary_scales"]

_Float64: TypeAlias = npt.NDArray[np.float64]

_SMALLEST = float(np.finfo(np.float32).tiny)  # a scale must be above zero, also that of a row of zeros
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -126, 127  # of normal float32 numbers
_FRACTIONS = np.linspace(0.3, 1.0, 36)  # of max|w| / largest integer: below, clipping costs more than it wins
_ALTERNATIONS = 8
_LLOYD_ROUNDS = 64
_PART_WEIGHTS = 1 << 18


def integer_scales(rows: _Float64, importance: _Float64, grouping: Grouping, largest: int) -> _Float64:
    """Return the scale of each group, [groups], for integers in [-largest, largest]: the best of some fractions.

    A row of zeros gets scale 1.
    """
    index = grouping.index(*rows.shape)
    group = np.broadcast_to(grouping.spread(index, rows.shape[1]), rows.shape)
    flat, count = group.reshape(-1), int(index.max()) + 1
    peak = np.zeros(count)
    np.maximum.at(peak, flat, np.abs(rows).reshape(-1))
    peak = np.where(peak > 0, peak / largest, 1.0)
    best, least = peak, np.full(count, np.inf)
    for fraction in _FRACTIONS:
        scale = np.maximum(peak * fraction, _SMALLEST)
        of_weight = scale[group]
        off = np.clip(np.rint(rows / of_weight), -largest, largest) * of_weight - rows
        error = np.bincount(flat, (np.square(off) * importance).reshape(-1), count)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    found: _Float64 = np.where(least > 0, best, peak)
    return found


def ternary_scales(rows: _Float64, importance: _Float64) -> _Float64:
    """Return the scale of each row, [R], at which -1, 0 and 1 times it are nearest: the optimum, not a rule of thumb.

    With the n largest magnitudes nonzero, the best scale is their weighted mean, and the error falls by
    (sum h|w|)^2 / (sum h); n is the best of all (Li et al. 2016, section 2.2, solved exactly).
    """
    magnitude = np.abs(rows)
    order = np.argsort(-magnitude, axis=1, kind="stable")
    weight = np.take_along_axis(importance, order, axis=1)
    sums = np.cumsum(weight * np.take_along_axis(magnitude, order, axis=1), axis=1)
    weights = np.maximum(np.cumsum(weight, axis=1), _SMALLEST)
    best = np.argmax(np.square(sums) / weights, axis=1)[:, None]
    scale = np.take_along_axis(sums, best, axis=1) / np.take_along_axis(weights, best, axis=1)
    found: _Float64 = np.maximum(scale[:, 0], _SMALLEST)
    return found


def binary_scales(rows: _Float64, importance: _Float64, bases: int) -> _Float64:
    """Return the scales of each row, [R, bases]: one base after the other on what is left, then all of them together.

    Sources: Guo et al. 2017, https://arxiv.org/abs/1706.02021 (greedy), and Xu et al. 2018,
    https://arxiv.org/abs/1802.00150 (alternating).
    """
    parts = [_binary_scales(rows[part], importance[part], bases) for part in _parts(rows)]
    return np.concatenate(parts)


def _binary_scales(rows: _Float64, importance: _Float64, bases: int) -> _Float64:
    left, signs = rows.copy(), []
    total = np.maximum(importance.sum(axis=1), _SMALLEST)
    for _ in range(bases):
        scale = (importance * np.abs(left)).sum(axis=1) / total
        signs.append(np.where(left >= 0, 1.0, -1.0))
        left -= scale[:, None] * signs[-1]
    patterns = 2.0 * (np.arange(1 << bases)[:, None] >> np.arange(bases) & 1) - 1
    stacked = np.stack(signs, axis=2)  # [R, K, bases]
    scales: _Float64 = np.ones((len(rows), bases))
    for _ in range(_ALTERNATIONS):
        gram = np.einsum("rkb,rk,rkc->rbc", stacked, importance, stacked, optimize=True)
        right = np.einsum("rkb,rk,rk->rb", stacked, importance, rows, optimize=True)
        gram += np.eye(bases) * (1e-9 * total[:, None, None] + _SMALLEST)
        scales = np.maximum(np.linalg.solve(gram, right[:, :, None])[:, :, 0], _SMALLEST)
        levels = scales @ patterns.T
        nearest = np.argmin(np.abs(rows[:, :, None] - levels[:, None, :]), axis=2)
        stacked = patterns[nearest]
    return scales


def codebook_levels(numbers: _Float64, importance: _Float64, count: int) -> _Float64:
    """Return `count` levels [count] for numbers [N]: weighted k-means on the line, ascending.

    Begins at quantiles of the importance, where one number that many weights share counts for one level at most: half
    of the levels would begin, and stay, on the zeros of a pruned weight.
    """
    values, inverse = np.unique(numbers, return_inverse=True)
    weights = np.bincount(inverse, importance, len(values))
    if not weights.any():
        weights = np.ones_like(weights)
    below = np.cumsum(np.minimum(weights, weights.sum() / count))
    at = np.searchsorted(below, (np.arange(count) + 0.5) / count * below[-1])
    levels: _Float64 = values[np.minimum(at, len(values) - 1)]
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * values)])
    for _ in range(_LLOYD_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(values, (levels[1:] + levels[:-1]) / 2), [len(values)]])
        share = mass[ends[1:]] - mass[ends[:-1]]
        middle = (moment[ends[1:]] - moment[ends[:-1]]) / np.where(share > 0, share, 1.0)
        moved = np.sort(np.where(share > 0, middle, levels))
        if np.array_equal(moved, levels):
            break
        levels = moved
    return levels


def exponents(rows: _Float64, importance: _Float64, largest: int) -> npt.NDArray[np.int64]:
    """Return the exponent of the largest power of two for each row, [R]: the best of four below its largest magnitude.

    largest: how many powers there are.
    """
    found = np.concatenate([_exponents(rows[part], importance[part], largest) for part in _parts(rows)])
    clipped: npt.NDArray[np.int64] = np.clip(found, _LOWEST_EXPONENT + largest - 1, _HIGHEST_EXPONENT)
    return clipped


def _exponents(rows: _Float64, importance: _Float64, largest: int) -> npt.NDArray[np.int64]:
    peak = np.maximum(np.abs(rows).max(axis=1, initial=0.0), _SMALLEST)
    mantissa, above = np.frexp(peak)
    top: npt.NDArray[np.int64] = above.astype(np.int64) - (mantissa == 0.5)
    best, least = top, np.full(len(rows), np.inf)
    for lower in range(4):
        levels = np.ldexp(1.0, (top - lower)[:, None] - np.arange(largest))
        signed = np.sort(np.concatenate([-levels, np.zeros((len(rows), 1)), levels], axis=1), axis=1)
        middles = (signed[:, 1:] + signed[:, :-1]) / 2
        at = (rows[:, :, None] > middles[:, None, :]).sum(axis=2)
        off = np.take_along_axis(signed, at, axis=1) - rows
        error = (np.square(off) * importance).sum(axis=1)
        best, least = np.where(error < least, top - lower, best), np.minimum(error, least)
    return best


def _parts(rows: _Float64) -> list[slice]:
    """Divide rows so that work over all levels of a part takes some tens of megabytes."""
    step = max(1, _PART_WEIGHTS // max(1, rows.shape[1]))
    return [slice(first, first + step) for first in range(0, len(rows), step)]
