"""Fit the factors of a form to data: the least output error among the weights that the form can express.

    minimise  tr(P C P^T) - 2 tr(P D^T)    over P = product of the factors, [out, K]

C [K, K] and D [out, K] are the second moments of the input and its products with the wanted output
(`ir.analysis.moments`), with a ridge towards the original weight W: C + h I and D + h W. With D = W C that is
E||W x - P x||^2; with D of the original's outputs and C of a compressed model's inputs it makes good for earlier losses
too (the asymmetric form).

Alternating least squares: each factor in turn, the others held. A factor that alone has output channels is solved
exactly, from the moments of what it reads; any other by conjugate gradients, as the gradient of a factor is an einsum
of the others with P C - D. Every step lowers the error.

Starts: the closed forms. `channel`: the exact optimum, from the eigenvectors of W C W^T (reduced-rank regression);
`spatial`, `tucker`: singular vectors of the weight, unfolded, its inputs scaled by their deviation; `separable`, `cp`:
those of each input channel's [out, taps], for `cp` the largest of all channels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.passes.factorize.forms import EINSUM_PATH, Factors, Form, Kernel, Ranks
from onnxpress.passes.least_squares import solve_symmetric

__all__ = ["Objective", "fit"]

_Array: TypeAlias = npt.NDArray[Any]
_Float32: TypeAlias = npt.NDArray[np.float32]
_Float64: TypeAlias = npt.NDArray[np.float64]

_STEPS = 12  # of conjugate gradients for one factor in one sweep
_SMALL = 1e-10  # of a squared gradient, relative to the first: the factor is solved


@dataclasses.dataclass(frozen=True)
class Objective:
    """A quadratic error of weights P [out, K]: tr(P C P^T) - 2 tr(P D^T) + constant.

    gram: C [K, K]. cross: D [out, K]. energy: the constant, so that the error of what fits exactly is 0.
    """

    gram: _Float64
    cross: _Float64
    energy: float

    def error(self, weight: _Array) -> float:
        """Return the error of `weight` [out, inputs, rows, columns], relative to what zeros would do."""
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        found = float(((rows @ self.gram - 2 * self.cross) * rows).sum()) + self.energy
        return max(found, 0.0) / self.energy if self.energy > 0 else 0.0

    @functools.cached_property
    def optimum(self) -> _Float64:
        """The weight of least error, unrestricted, [out, K]."""
        return solve_symmetric(self.gram, self.cross)

    @functools.cached_property
    def single(self) -> tuple[_Float32, _Float32]:
        """C and D in float32, for descent: directions need no more."""
        return self.gram.astype(np.float32), self.cross.astype(np.float32)


def fit(
    form: Form, kernel: Kernel, ranks: Ranks, objective: Objective, *, start: Factors | None = None, sweeps: int = 4
) -> Factors:
    """Return factors of `form` at `ranks` whose product is near the least error of `objective`, float64.

    start: factors to go on from; a closed form by default. sweeps: rounds of alternation, none for `channel`, which is
    exact.
    """
    if form.name == "channel":
        return _reduced_rank(kernel, ranks[0], objective)
    factors = [np.asarray(each, np.float64) for each in (start or _start(form, kernel, ranks, objective))]
    for _ in range(sweeps):
        for index in reversed(range(len(factors))):
            if _has_outputs_alone(form, index):
                factors[index] = _solve_rows(form, kernel, factors, index, objective)
            else:
                factors[index] = _descend(form, kernel, factors, index, objective)
    return tuple(factors)


def _reduced_rank(kernel: Kernel, rank: int, objective: Objective) -> Factors:
    """Return U [out, r], V [r, ...] of the least error: the optimum, projected on its outputs' main directions."""
    best = objective.optimum
    _, vectors = np.linalg.eigh(best @ objective.gram @ best.T)
    outer = vectors[:, ::-1][:, :rank]
    return outer, (outer.T @ best).reshape(rank, kernel.inputs, kernel.rows, kernel.columns)


# Alternation.


def _has_outputs_alone(form: Form, index: int) -> bool:
    return [number for number, letters in enumerate(form.inputs) if "o" in letters] == [index]


def _solve_rows(form: Form, kernel: Kernel, factors: Sequence[_Array], index: int, objective: Objective) -> _Array:
    """Return the factor, of which each output's numbers are a least-squares problem of their own, all alike."""
    own = form.inputs[index].replace("o", "")
    others = [(letters, factor) for number, (letters, factor) in enumerate(zip(form.inputs, factors, strict=True))
              if number != index]  # fmt: skip
    # Letters that the factor shares with the weight select: a unit matrix holds them apart.
    sizes = {"i": kernel.inputs, "a": kernel.rows, "b": kernel.columns}
    shared = [letter for letter in own if letter in sizes]
    terms = [letters for letters, _ in others] + [letter + letter.upper() for letter in shared]
    features = "".join(letter.upper() if letter in shared else letter for letter in own)
    operands = [factor for _, factor in others] + [np.eye(sizes[letter]) for letter in shared]
    basis = np.einsum(f"{','.join(terms)}->{features}iab", *operands, optimize=EINSUM_PATH)
    shape = basis.shape[: len(features)]
    basis = basis.reshape(int(np.prod(shape)), -1)
    gram = basis @ objective.gram @ basis.T
    solved = solve_symmetric(gram, objective.cross @ basis.T)  # [out, features]
    return np.moveaxis(solved.reshape(kernel.outputs, *shape), 0, form.inputs[index].index("o"))


def _descend(form: Form, kernel: Kernel, factors: Sequence[_Array], index: int, objective: Objective) -> _Array:
    """Return the factor after some steps of conjugate gradients from where it is."""
    gram, cross = objective.single
    factors = [factor.astype(np.float32) for factor in factors]
    inputs, weight_letters = form.inputs, form.spec.split("->")[1]
    others = [factor for number, factor in enumerate(factors) if number != index]
    other_letters = [letters for number, letters in enumerate(inputs) if number != index]
    forward_spec = f"{inputs[index]},{','.join(other_letters)}->{weight_letters}"
    back_spec = f"{weight_letters},{','.join(other_letters)}->{inputs[index]}"
    shape = (kernel.outputs, kernel.inputs, kernel.rows, kernel.columns)
    forward_path = np.einsum_path(forward_spec, factors[index], *others, optimize=EINSUM_PATH)[0]
    back_path = np.einsum_path(back_spec, np.empty(shape), *others, optimize=EINSUM_PATH)[0]

    def product(factor: _Array) -> _Array:
        result: _Array = np.einsum(forward_spec, factor, *others, optimize=forward_path)
        return result.reshape(kernel.outputs, -1)

    def gradient(rows: _Array) -> _Array:
        result: _Array = np.einsum(back_spec, rows.reshape(shape), *others, optimize=back_path)
        return result

    found = factors[index].copy()
    residual = gradient(cross - product(found) @ gram)
    direction = residual
    size = first = float(np.square(residual).sum())
    for _ in range(_STEPS):
        if size <= _SMALL * first or size == 0:
            break
        moved = product(direction)
        pushed = moved @ gram
        curvature = float((moved * pushed).sum())
        if not curvature > 0:
            break
        step = size / curvature
        found = found + np.float32(step) * direction
        residual = residual - np.float32(step) * gradient(pushed)
        size, before = float(np.square(residual).sum()), size
        direction = residual + np.float32(size / before) * direction
    result: _Array = found.astype(np.float64)
    return result


# Starts.


def _start(form: Form, kernel: Kernel, ranks: Ranks, objective: Objective) -> Factors:
    """Return factors of the weight of least error, fitted with each input channel scaled by its deviation."""
    weight = objective.optimum.reshape(kernel.outputs, kernel.inputs, kernel.rows, kernel.columns)
    energy = np.diagonal(objective.gram).reshape(kernel.inputs, -1).mean(axis=1)
    scale = np.sqrt(np.maximum(energy, np.finfo(np.float64).tiny))
    scaled = weight * scale[:, None, None]
    if form.name == "spatial":
        return _start_spatial(scaled, ranks[0], scale)
    if form.name == "tucker":
        return _start_tucker(weight, scaled, ranks, scale, objective)
    if form.name in ("cp", "cp-rows"):
        outer, kernels, inner = _start_cp(scaled, ranks[0], scale)
        return (outer, kernels, inner) if form.name == "cp" else (outer, *_rows_and_columns(kernels), inner)
    points, kernels = _start_separable(weight, ranks[0])
    return (points, kernels) if form.name == "separable" else (points, *_rows_and_columns(kernels))


def _start_spatial(scaled: _Array, rank: int, scale: _Array) -> Factors:
    outputs, inputs, rows, columns = scaled.shape
    left, values, right = np.linalg.svd(
        scaled.transpose(0, 3, 1, 2).reshape(outputs * columns, inputs * rows), full_matrices=False
    )
    outer = (left[:, :rank] * values[:rank]).reshape(outputs, columns, -1).transpose(0, 2, 1)
    inner = right[:rank].reshape(-1, inputs, rows) / scale[:, None]
    return _padded(outer, 1, rank), _padded(inner, 0, rank)


def _start_tucker(weight: _Array, scaled: _Array, ranks: Ranks, scale: _Array, objective: Objective) -> Factors:
    outputs, inputs = weight.shape[:2]
    flat = weight.reshape(outputs, -1)
    outer = np.linalg.eigh(flat @ objective.gram @ flat.T)[1][:, ::-1][:, : ranks[1]]
    across = scaled.transpose(1, 0, 2, 3).reshape(inputs, -1)
    basis = np.linalg.eigh(across @ across.T)[1][:, ::-1][:, : ranks[0]]  # [inputs, r], of the scaled inputs
    core = np.einsum("os,oiab,ir->srab", outer, scaled, basis, optimize=EINSUM_PATH)
    return outer, core, basis.T / scale


def _start_cp(scaled: _Array, rank: int, scale: _Array) -> tuple[_Array, _Array, _Array]:
    """Return [out, r], [r, rows, columns], [r, in]."""
    outputs, inputs, rows, columns = scaled.shape
    # One channel after the other as terms of `separable`, the largest singular values first: rank by rank.
    left, values, right = np.linalg.svd(
        scaled.transpose(1, 0, 2, 3).reshape(inputs, outputs, rows * columns), full_matrices=False
    )
    chosen = np.argsort(-values, axis=None, kind="stable")[:rank]
    channel, term = np.unravel_index(chosen, values.shape)
    outer = (left[channel, :, term] * values[channel, term][:, None]).T
    kernels = right[channel, term].reshape(-1, rows, columns)
    inner = np.eye(inputs)[channel] / scale
    return _padded(outer, 1, rank), _padded(kernels, 0, rank), _padded(inner, 0, rank)


def _start_separable(weight: _Array, terms: int) -> tuple[_Array, _Array]:
    """Singular vectors of each input channel's [out, taps]."""
    outputs, inputs, rows, columns = weight.shape
    left, values, right = np.linalg.svd(
        weight.transpose(1, 0, 2, 3).reshape(inputs, outputs, rows * columns), full_matrices=False
    )
    points = _padded((left * values[:, None, :])[:, :, :terms].transpose(2, 1, 0), 0, terms)
    kernels = _padded(right[:, :terms].transpose(1, 0, 2).reshape(-1, inputs, rows, columns), 0, terms)
    return points, kernels


def _rows_and_columns(kernels: _Array) -> tuple[_Array, _Array]:
    """The outer product nearest to each kernel [..., rows, columns]."""
    left, values, right = np.linalg.svd(kernels, full_matrices=False)
    return left[..., 0] * values[..., :1], right[..., 0, :]


def _padded(array: _Array, axis: int, size: int) -> _Array:
    """Fill up an axis with small numbers where the singular vectors did not reach, as zeros would never grow."""
    missing = size - array.shape[axis]
    if missing <= 0:
        return array
    shape = [*array.shape]
    shape[axis] = missing
    spread = np.random.default_rng(0).standard_normal(shape) * 1e-3 * (float(np.abs(array).max()) or 1.0)
    return np.concatenate([array, spread], axis=axis)
