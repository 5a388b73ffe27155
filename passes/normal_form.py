"""The output error of a layer as a quadratic form of its weights, which second-order methods work on.

    E||W x + b - y||^2 = (w - u)^T H (w - u) + constant, row by row, with the best bias for w
    H  = covariance of x (second moment where the operator takes no bias) + ridge
    u  = the weights of least squares (`least_squares`)

Source: Hassibi & Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.linear import Linear
from onnxpress.passes.least_squares import DEFAULT_RIDGE, least_squares

__all__ = ["best_bias", "inverse_of", "normal_form", "with_ridge"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


def normal_form(
    layer: Linear, moments: Moments, prior: _Array | None = None, *, ridge: float = DEFAULT_RIDGE
) -> tuple[_Float64, _Float64]:
    """Return H [G, K, K] and u [G, out/G, K].

    moments: with targets. prior: [out, in/groups, *kernel], the weights that the ridge holds u near; those of `layer`.
    """
    takes_bias = layer.node.op_type != "MatMul"
    weight = layer.weight() if prior is None else prior
    best, _ = least_squares(moments, weight, layer.bias(), ridge=ridge, fit_bias=takes_bias)
    gram = with_ridge(moments.covariance() if takes_bias else moments.gram, ridge)
    return gram, best.reshape(moments.groups, -1, moments.width).astype(np.float64)


def best_bias(layer: Linear, moments: Moments, weight: _Array) -> _Array | None:
    """Return the bias [out], float32, of the least error beside `weight`; None where the operator takes none."""
    if layer.node.op_type == "MatMul":
        return None
    assert moments.target_mean is not None, "the moments must have targets"
    rows = weight.reshape(moments.groups, -1, moments.width).astype(np.float64)
    return (moments.target_mean - (rows @ moments.mean[:, :, None]).reshape(-1)).astype(np.float32)


def with_ridge(gram: _Float64, ridge: float) -> _Float64:
    """Return gram [G, K, K] + ridge * mean(diag) * I: positive definite for ridge > 0, also where an input is dead."""
    damped = gram.copy()
    diagonal = np.arange(gram.shape[-1])
    mean = np.trace(gram, axis1=1, axis2=2)[:, None] / max(1, gram.shape[-1])
    damped[:, diagonal, diagonal] += np.where(mean > 0, ridge * mean, 1.0)  # all inputs dead: any weight is as good
    return damped


def inverse_of(matrix: _Float64) -> _Float64:
    """Return the inverse of a positive definite matrix [K, K], symmetric to the last bit."""
    from scipy import linalg

    factor = linalg.cho_factor(matrix, lower=True, check_finite=False)
    inverse: _Float64 = linalg.cho_solve(factor, np.eye(len(matrix)), check_finite=False)
    return (inverse + inverse.T) / 2
