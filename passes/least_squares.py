"""Least squares from moments: the weights whose output is nearest to a target, in closed form.

    W', b' = argmin  E||W' x + b' - y||^2  +  ridge * mean(diag C) * ||W' - W||^2
    C = E[(x - Ex)(x - Ex)^T],  D = E[(y - Ey)(x - Ex)^T]
    =>  W' = W + (D - W C) (C + ridge * mean(diag C) * I)^-1        b' = Ey - W' Ex

The bias is free, so it centres the problem. `ridge` holds the weights near what they were where the data says nothing.
Source: He et al. 2017, section 3.1, https://arxiv.org/abs/1707.06168 (reconstruction, without ridge and bias).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.ir.analysis.moments import Moments

__all__ = ["DEFAULT_RIDGE", "least_squares", "least_squares_of", "solve_symmetric"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]

# Channels removed by activation energy, every layer refitted, top-1 at a ridge of 1e-3 / 1e-2 / 0.1 / 0.3 / 1:
# mobilenetv2 with a quarter of its hidden channels gone, 100 images: 53.3 / 53.5 / 57.0 / 59.0 / 56.8 (standard error
# 2.5); resnet56 with half of its inner channels gone, 512 images: 77.7 / 77.9 / 77.9 / 77.6 / - (0.9). Choosing it
# layer by layer on held-out halves gave 56.5 and 77.2, in up to twice the time.
DEFAULT_RIDGE = 0.1

_BATCHED_WIDTH = 64  # systems up to this size are solved many at once
_SMALLEST_PIVOT = 1e-11  # of a Cholesky factor's squared diagonal against its largest: below, rounding decides


def least_squares(
    moments: Moments,
    weight: _Array,
    bias: _Array | None = None,
    *,
    ridge: float = DEFAULT_RIDGE,
    prior: _Array | None = None,
    fit_bias: bool = True,
) -> tuple[_Array, _Array | None]:
    """Return the weight and bias of the least squared output error, near `prior` by `ridge`; new arrays.

    moments: with targets. weight: [out, in/groups, *kernel], which gives shape, type and the default prior. bias:
    [out], which gives its type, or None. ridge: >= 0, in units of the mean variance of the inputs. fit_bias: False
    where the operator can take none; then nothing is centred, a given bias is held, and None stays None.

    Where the moments do not determine the weight and `ridge` is 0, it moves from the prior as little as possible.
    """
    rows = (weight if prior is None else prior).reshape(moments.groups, -1, moments.width).astype(np.float64)
    cross, target_mean = moments.cross, moments.target_mean
    assert cross is not None and target_mean is not None, "least_squares needs moments with targets"
    with one_blas_thread():
        if fit_bias:
            gram, wanted = moments.covariance(), moments.cross_covariance()
        else:
            offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
            gram = moments.gram
            wanted = cross - offset.reshape(moments.groups, -1, 1) * moments.mean[:, None, :]
        fitted = rows + _solve(gram, wanted - rows @ gram, ridge)
        shift = target_mean - (fitted @ moments.mean[:, :, None]).reshape(-1)
    found = fitted.reshape(weight.shape).astype(weight.dtype)
    if not fit_bias:
        return found, None if bias is None else bias.copy()
    return found, shift.astype(weight.dtype if bias is None else bias.dtype)


def least_squares_of(
    columns: npt.ArrayLike | None,
    moments: Moments,
    weight: _Array,
    bias: _Array | None = None,
    *,
    ridge: float = DEFAULT_RIDGE,
    fit_bias: bool = True,
) -> tuple[_Array, _Array | None]:
    """Return what `least_squares` does, of the weights that are zero but at `columns` of x; None: all."""
    if columns is None:
        return least_squares(moments, weight, bias, ridge=ridge, fit_bias=fit_bias)
    at = _columns_by_group(columns, moments)
    rows = weight.reshape(moments.groups, -1, moments.width)
    left = np.take_along_axis(rows, at, axis=2)
    found, shift = least_squares(
        moments.keep_inputs(columns), left.reshape(len(weight), -1), bias, ridge=ridge, fit_bias=fit_bias
    )
    full = np.zeros_like(rows)
    np.put_along_axis(full, at, found.reshape(left.shape), axis=2)
    return full.reshape(weight.shape), shift


def _columns_by_group(columns: npt.ArrayLike, moments: Moments) -> npt.NDArray[np.int64]:
    """Return `columns` as [groups, 1, kept], to index [groups, out/groups, K]."""
    given = np.asarray(columns, np.int64)
    return np.broadcast_to(given, (moments.groups, given.shape[-1]))[:, None, :]


# The linear systems.


def _solve(gram: _Float64, right: _Float64, ridge: float) -> _Float64:
    """Return X [G, out, K] with X (gram + ridge * mean(diag) I) = right, of least norm where that is singular."""
    groups, width, _ = gram.shape
    damped = gram.copy()
    diagonal = np.arange(width)
    damped[:, diagonal, diagonal] += ridge * np.trace(gram, axis1=1, axis2=2)[:, None] / width
    if groups > 1 and width <= _BATCHED_WIDTH:
        return _solve_many(damped, right)
    return np.stack([solve_symmetric(matrix, wanted) for matrix, wanted in zip(damped, right, strict=True)])


def _solve_many(matrices: _Float64, right: _Float64) -> _Float64:
    """Symmetric systems of small matrices through their eigenvectors, which need no second way for singular ones."""
    values, vectors = np.linalg.eigh(matrices)
    inverse = _inverted(values)
    result: _Float64 = ((right @ vectors) * inverse[:, None, :]) @ vectors.transpose(0, 2, 1)
    return result


def solve_symmetric(matrix: _Float64, right: _Float64) -> _Float64:
    """Return X [out, K] with X matrix = right, of least norm where the matrix [K, K] is singular but for rounding.

    By Cholesky, or through eigenvectors where that breaks down; those below zero count as zero.
    """
    from scipy import linalg

    try:
        factor, lower = linalg.cho_factor(matrix, lower=True, check_finite=False)
        pivots = np.square(np.diag(factor))
        sound = bool(pivots.min() > _SMALLEST_PIVOT * pivots.max())
    except linalg.LinAlgError:
        sound = False
    solved: _Float64
    if sound:
        solved = linalg.cho_solve((factor, lower), right.T, check_finite=False).T
    else:
        (solved,) = _solve_many(matrix[None], right[None])
    return solved


def _inverted(values: _Float64) -> _Float64:
    """Invert eigenvalues [G, K], those that are zero but for rounding to zero."""
    floor = _SMALLEST_PIVOT * np.abs(values).max(axis=1, keepdims=True)
    result: _Float64 = np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
    return result
