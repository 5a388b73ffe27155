"""Which single weights of a linear operator go, and what the others become: Optimal Brain Surgeon row by row.

Row w [K] of the weight, the input's second moment H [K, K] (centred where the bias is free, ridge included) and the
weights u [K] that would be best if none had to go give the output error

    E(w) = (w - u)^T H (w - u) + constant
    u_c = 0 at least cost:   E grows by u_c^2 / [H^-1]_cc,   w = u - [H^-1]_:c u_c / [H^-1]_cc          (OBS)
    a whole set D:           w_S = u_S + inv(H_SS) H_SD u_D,   S the rest                               (refit)

Selection, exact where K is small: one weight after the other, each time the cheapest of its row, with the rest and
H^-1 updated; the rows' traces are merged by cost (Optimal Brain Compression). Otherwise one sweep over the columns for
all rows together, with the Cholesky factor of H^-1 and a mask chosen per block of columns (SparseGPT).
Whatever chose them, the weights that stay are then solved for exactly (refit), where that is affordable; SparseGPT
itself updates only those to the right of the column at hand.

Patterns: `drop` weights in all, anywhere; or at most n left in each run of m input channels, at every kernel position.

Sources: Hassibi & Stork 1993 (OBS); Frantar & Alistarh 2022, sections 4 and 5, https://arxiv.org/abs/2208.11580 (OBC);
Frantar & Alistarh 2023, sections 3.2 to 3.4, https://arxiv.org/abs/2301.00774 (SparseGPT).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.passes.normal_form import inverse_of

__all__ = [
    "Runs",
    "count_of",
    "magnitude_mask",
    "magnitude_runs_mask",
    "obs_costs",
    "obs_mask",
    "obs_runs_mask",
    "refit",
]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Mask: TypeAlias = npt.NDArray[np.bool_]

_EXACT_UPDATES = 5e8  # rows * K^3 up to which selection is exact: about 2 s on one core
_EXACT_BYTES = 32 << 20  # of inverse matrices, one for each row at hand
_REFIT_FLOPS = 5e10  # about 5 s on one core
_BLOCK = 128  # columns of one mask decision, SparseGPT section 3.3


@dataclasses.dataclass(frozen=True)
class Runs:
    """At most `n` weights in each run of `m` neighbouring input channels, at every one of `taps` kernel positions.

    >>> Runs(1, 2, taps=3).index(12)                 # K = 4 channels * 3 taps: channels 0 and 1 share runs 0, 1, 2
    array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])
    """

    n: int
    m: int
    taps: int = 1

    def index(self, width: int) -> npt.NDArray[np.int64]:
        """Return the run of each column, [K]; K = channels * taps, channels a multiple of m."""
        column = np.arange(width, dtype=np.int64)
        return column // self.taps // self.m * self.taps + column % self.taps

    def order(self, width: int) -> npt.NDArray[np.int64]:
        """Return the columns such that each run's m stand side by side, [K]."""
        order: npt.NDArray[np.int64] = np.argsort(self.index(width), kind="stable")
        return order


# By magnitude.


def magnitude_mask(scores: _Array, drop: int) -> _Mask:
    """Return which weights stay when the `drop` least |scores| go; of equal ones, the first go. Any shape."""
    kept = np.ones(scores.size, np.bool_)
    kept[np.argsort(np.abs(scores).reshape(-1), kind="stable")[:drop]] = False
    return kept.reshape(scores.shape)


def magnitude_runs_mask(rows: _Array, runs: Runs) -> _Mask:
    """Return which weights of rows [..., K] stay: the n largest magnitudes of each run."""
    order = runs.order(rows.shape[-1])
    grouped = np.abs(rows[..., order]).reshape(*rows.shape[:-1], -1, runs.m)
    smallest = np.argsort(grouped, axis=-1, kind="stable")[..., : runs.m - runs.n]
    left = np.ones(grouped.shape, np.bool_)
    np.put_along_axis(left, smallest, False, axis=-1)
    kept = np.empty(rows.shape, np.bool_)
    kept[..., order] = left.reshape(rows.shape)
    return kept


# By second order.


def obs_costs(rows: _Float64, gram: _Float64) -> _Float64:
    """Return what each weight alone would cost, u^2 / [H^-1]_cc, [G, out/G, K]."""
    diagonals = np.stack([np.diagonal(inverse_of(matrix)) for matrix in gram])
    costs: _Float64 = np.square(rows) / diagonals[:, None, :]
    return costs


def obs_mask(rows: _Float64, gram: _Float64, drop: int) -> tuple[_Mask, _Float64]:
    """Choose `drop` weights that go, at little output error. Return (which stay, weights), [G, out/G, K] both.

    rows: u, [G, out/G, K]. gram: H, [G, K, K], positive definite.
    """
    with one_blas_thread():
        if _is_small(rows):
            kept = _merge(*_traces(rows, gram, None), rows.shape, drop)
            return kept, np.where(kept, rows, 0.0)
        shares = np.diff(np.round(np.linspace(0, drop, len(rows) + 1)).astype(np.int64))
        swept = [
            _sweep(one, inverse_of(matrix), int(share), None)
            for one, matrix, share in zip(rows, gram, shares, strict=True)
        ]
    return np.stack([kept for kept, _ in swept]), np.stack([left for _, left in swept])


def obs_runs_mask(rows: _Float64, gram: _Float64, runs: Runs) -> tuple[_Mask, _Float64]:
    """Choose n of m weights in each run. rows, gram and what is returned: as for `obs_mask`."""
    width = rows.shape[-1]
    with one_blas_thread():
        if _is_small(rows):
            order, _ = _traces(rows, gram, runs)
            flat = np.ones((len(order), width), np.bool_)
            np.put_along_axis(flat, order, False, axis=1)
            kept: _Mask = flat.reshape(rows.shape)
            return kept, np.where(kept, rows, 0.0)
        swept = [_sweep(one, inverse_of(matrix), 0, runs) for one, matrix in zip(rows, gram, strict=True)]
    return np.stack([kept for kept, _ in swept]), np.stack([left for _, left in swept])


def refit(rows: _Float64, gram: _Float64, kept: _Mask, fallback: _Float64) -> _Float64:
    """Return the weights of least error that are zero outside `kept`; `fallback` where solving would take too long.

    rows: u. All [G, out/G, K]; gram: H, [G, K, K].
    """
    fewer = np.minimum(kept.sum(axis=2), (~kept).sum(axis=2)).astype(np.float64)
    if (fewer**3 / 3 + fewer * kept.shape[2]).sum() > _REFIT_FLOPS:
        return fallback
    with one_blas_thread():
        return np.stack([_refit_group(*each) for each in zip(rows, gram, kept, strict=True)])


def _is_small(rows: _Float64) -> bool:
    groups, count, width = rows.shape
    return bool(groups * count * float(width) ** 3 <= _EXACT_UPDATES)


def _refit_group(rows: _Float64, gram: _Float64, kept: _Mask) -> _Float64:
    inverse = inverse_of(gram) if (kept.sum(axis=1) * 2 > kept.shape[1]).any() else None
    return np.stack([_refit_row(row, gram, inverse, stay) for row, stay in zip(rows, kept, strict=True)])


def _refit_row(row: _Float64, gram: _Float64, inverse: _Float64 | None, kept: _Mask) -> _Float64:
    """Solve for the weights that stay, or for the multipliers of those that go: whichever are fewer."""
    from scipy import linalg

    stay, gone = np.flatnonzero(kept), np.flatnonzero(~kept)
    result = np.zeros_like(row)
    if not stay.size or not gone.size:
        result[stay] = row[stay]
        return result
    if inverse is not None and gone.size < stay.size:
        multipliers = linalg.solve(inverse[np.ix_(gone, gone)], row[gone], assume_a="pos", check_finite=False)
        result[stay] = row[stay] - inverse[np.ix_(stay, gone)] @ multipliers
        return result
    wanted = gram[np.ix_(stay, gone)] @ row[gone]
    result[stay] = row[stay] + linalg.solve(gram[np.ix_(stay, stay)], wanted, assume_a="pos", check_finite=False)
    return result


# Exact selection.


def _traces(rows: _Float64, gram: _Float64, runs: Runs | None) -> tuple[npt.NDArray[np.int64], _Float64]:
    """Return, for each row, columns in the order in which they go and what each adds to the error, [G * out/G, steps].

    All of them; with runs, only until each run has n left.
    """
    parts = []
    chunk = max(1, int(_EXACT_BYTES / (8 * gram.shape[-1] ** 2)))
    for group, matrix in zip(rows, gram, strict=True):
        inverse = inverse_of(matrix)
        parts += [_trace(group[start : start + chunk], inverse, runs) for start in range(0, len(group), chunk)]
    return np.concatenate([order for order, _ in parts]), np.concatenate([costs for _, costs in parts])


def _trace(rows: _Float64, inverse: _Float64, runs: Runs | None) -> tuple[npt.NDArray[np.int64], _Float64]:
    count, width = rows.shape
    run_of = np.arange(width) if runs is None else runs.index(width)
    spare = np.full((count, int(run_of.max()) + 1), 1 if runs is None else runs.m - runs.n)
    steps = int(spare[0].sum())
    order, costs = np.empty((count, steps), np.int64), np.empty((count, steps))
    left, inverses = rows.copy(), np.repeat(inverse[None], count, axis=0)
    here, open_ = np.arange(count), np.ones((count, width), np.bool_)
    for step in range(steps):
        pivots = np.where(open_, np.einsum("rkk->rk", inverses), 1.0)
        scores = np.where(open_, np.square(left) / pivots, np.inf)
        chosen = scores.argmin(axis=1)
        order[:, step], costs[:, step] = chosen, scores[here, chosen]
        scaled = inverses[here, chosen] / pivots[here, chosen][:, None]
        left -= scaled * left[here, chosen][:, None]
        inverses -= inverses[here, chosen][:, :, None] * scaled[:, None, :]
        open_[here, chosen] = False
        spare[here, run_of[chosen]] -= 1
        open_ &= spare[:, run_of] > 0
    return order, costs


def _merge(order: npt.NDArray[np.int64], costs: _Float64, shape: tuple[int, ...], drop: int) -> _Mask:
    """Take the `drop` cheapest steps of all rows. A row's later steps cost no less than its earlier ones."""
    steps = np.maximum.accumulate(costs, axis=1)  # rounding can make them fall
    taken = np.zeros(steps.size, np.bool_)
    taken[np.argsort(steps.reshape(-1), kind="stable")[:drop]] = True
    row, step = np.nonzero(taken.reshape(steps.shape))
    kept = np.ones((len(order), shape[-1]), np.bool_)
    kept[row, order[row, step]] = False
    return kept.reshape(shape)


# Selection in one sweep.


def _sweep(rows: _Float64, inverse: _Float64, drop: int, runs: Runs | None) -> tuple[_Mask, _Float64]:
    """Return (which stay, updated weights) of rows [out, K]: SparseGPT's algorithm 1, here with `drop` exact."""
    count, width = rows.shape
    columns = np.arange(width) if runs is None else runs.order(width)
    left = rows[:, columns]
    upper = np.linalg.cholesky(inverse[np.ix_(columns, columns)]).T
    kept = np.ones((count, width), np.bool_)
    size = _BLOCK if runs is None else max(1, _BLOCK // runs.m) * runs.m
    dropped = 0
    for start in range(0, width, size):
        stop = min(start + size, width)
        choice = stop - start if runs is None else runs.m
        errors = np.zeros((count, stop - start))
        for first in range(start, stop, choice):
            scores = np.square(left[:, first : first + choice] / np.diagonal(upper)[first : first + choice])
            if runs is None:
                goal = round(drop * stop / width)
                stay = magnitude_mask(scores, goal - dropped)
                dropped = goal
            else:
                stay = magnitude_runs_mask(scores, Runs(runs.n, runs.m))
            kept[:, first : first + choice] = stay
            for column in range(first, first + choice):
                error = np.where(kept[:, column], 0.0, left[:, column] / upper[column, column])
                left[:, column:stop] -= error[:, None] * upper[column, column:stop]
                errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    back = np.argsort(columns)
    kept = kept[:, back]
    return kept, np.where(kept, left[:, back], 0.0)


def count_of(ratio: float, size: int) -> int:
    """Return how many of `size` weights a ratio means, to the nearest."""
    return math.floor(ratio * size + 0.5)
