"""Leave at most n weights in each run of m input channels, as sparse tensor cores read them.

    W[o, c, *k]  =>  W' with at most n nonzero among W'[o, m*i : m*(i+1), *k], for every o, i and kernel position k

Runs lie along the input channels of each group: axis 1 of a Conv's weight, the axis of reduction of Gemm and MatMul.
TensorRT runs 2:4 faster on GPUs since Ampere, where the builder's flag for sparse weights is set.

obs        from data: second-order selection and update of the rest, the bias fitted anew (`sparse_update`,
           `sparse_sites`). MatMul has no bias to fit.
magnitude  without data: of each run, the m - n smallest |w| go, and the rest stays as it is.

Legal when: as for `prune-weights`, and the input channels of a group are a multiple of m.
Fidelity: lossy; each site records the signal-to-noise ratio of its output, or of its weight where there is no data.
With obs and `repair` it is against the original's output, behind the layers pruned before it.
Scopes: the main graph. After the passes that fold or resize weights. Equal runs give equal models. A second run finds
every layer in the pattern.

Sources: Mishra et al. 2021, https://arxiv.org/abs/2104.08378 (2:4); Frantar & Alistarh 2023, section 3.4,
https://arxiv.org/abs/2301.00774 (SparseGPT, n:m).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Context, Fidelity, Options, Pass, Rewrites
from onnxpress.passes.order import STRUCTURE
from onnxpress.passes.prune.sparse_sites import SparseOptions, find_layers, sparsify
from onnxpress.passes.prune.sparse_update import Runs, magnitude_runs_mask, obs_runs_mask

__all__ = ["PruneNm", "PruneNmOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Mask: TypeAlias = npt.NDArray[np.bool_]


class PruneNmOptions(SparseOptions):
    """Options of `prune-nm`."""

    n: int = pydantic.Field(default=2, ge=1, description="most weights that stay in each run")
    m: int = pydantic.Field(default=4, ge=2, le=32, description="length of a run of input channels")

    @pydantic.model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"n={self.n} of m={self.m} leaves nothing to prune. Give n < m")
        return self


class PruneNm(Pass):
    """Leave at most n weights in each run of m input channels, and update the rest; the file stays as large."""

    name: ClassVar[str] = "prune-nm"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = PruneNmOptions
    after: ClassVar[tuple[str, ...]] = (*STRUCTURE, "equalize")
    options: PruneNmOptions

    @property
    def needs_data(self) -> bool:
        """With method=obs."""
        return self.options.method == "obs"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Prune weights of `model` in place.

        Raises:
            UsageError: method=obs without calibration data, or a selector that matches nothing.
        """
        if self.needs_data:
            context.require_data(self.name)
        layers, declined = find_layers(model, self.options, self.name, self._problem)
        chooser = _Chooser(self.options.n, self.options.m)
        return Rewrites(sparsify(model, layers, chooser, self.options, context), declined)

    def _problem(self, layer: Linear) -> str | None:
        n, m = self.options.n, self.options.m
        channels = layer.in_channels // layer.groups
        if channels % m:
            of_group = " of a group" if layer.groups > 1 else ""
            return f"its {channels} input channels{of_group} are no multiple of m={m}"
        return f"already {n}:{m}" if _most_in_a_run(layer, m) <= n else None


class _Chooser:
    """Takes m - n weights of each run."""

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m

    def by_magnitude(self, linear: Linear) -> _Mask:
        weight = linear.weight()
        return magnitude_runs_mask(weight.reshape(len(weight), -1), self._runs(linear)).reshape(weight.shape)

    def by_error(self, linear: Linear, rows: _Float64, gram: _Float64) -> tuple[_Mask, _Float64]:
        return obs_runs_mask(rows, gram, self._runs(linear))

    def _runs(self, linear: Linear) -> Runs:
        return Runs(self.n, self.m, math.prod(linear.kernel))


def _most_in_a_run(layer: Linear, m: int) -> int:
    weight: _Array = layer.weight()
    present = (weight != 0).reshape(len(weight), -1, m, *weight.shape[2:])
    return int(np.max(present.sum(axis=2)))
