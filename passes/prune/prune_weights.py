"""Set single weights to zero, wherever they stand, where the layer's output misses them least.

    W  =>  W' with `ratio` of its weights exactly zero, as the encoding `Sparse`

obs        from data: second-order selection and update of the rest, the bias fitted anew (`sparse_update`,
           `sparse_sites`). MatMul has no bias to fit.
magnitude  without data: the smallest |w| go, the rest stays as it is. Then the squared Frobenius error of W' is the sum
           of the dropped weights' squares. With data at hand, the output's error is measured besides.

allocation=uniform takes the same share of each layer. global takes the least of all layers together by one threshold,
`ratio` of them in all: |w| / rms(W) for magnitude, u^2 / [H^-1]_cc / E||y - Ey||^2 for obs; no layer loses more than
(1 + ratio) / 2.

Legal when: the weight is a constant FLOAT of 128 numbers or more with one reader, not encoded otherwise, not depthwise.
Fidelity: lossy; each site records the signal-to-noise ratio of its output, or of its weight where there is no data.
With obs and `repair` it is against the original's output, behind the layers pruned before it.
Scopes: the main graph. After the passes that fold or resize weights. Equal runs give equal models. A second run finds
every layer as sparse as it asks for.

Sources: Han et al. 2015, https://arxiv.org/abs/1506.02626 (magnitude); Frantar & Alistarh 2023,
https://arxiv.org/abs/2301.00774 (SparseGPT); Frantar & Alistarh 2022, https://arxiv.org/abs/2208.11580 (OBC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Context, Declined, Fidelity, Options, Pass, Rewrites
from onnxpress.passes.normal_form import normal_form
from onnxpress.passes.order import STRUCTURE
from onnxpress.passes.prune.sparse_sites import (
    SparseOptions,
    count_zeros,
    find_layers,
    sparse_moments,
    sparsify,
)
from onnxpress.passes.prune.sparse_update import count_of, magnitude_mask, obs_costs, obs_mask

__all__ = ["PruneWeights", "PruneWeightsOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Mask: TypeAlias = npt.NDArray[np.bool_]


class PruneWeightsOptions(SparseOptions):
    """Options of `prune-weights`."""

    ratio: float = pydantic.Field(default=0.5, ge=0, lt=1, description="share of the weights that become zero")
    allocation: Literal["uniform", "global"] = pydantic.Field(
        default="uniform", description="the same share of each layer, or one threshold over all of them"
    )


class PruneWeights(Pass):
    """Set single weights to zero where the output misses them least, and update the rest; the file stays as large."""

    name: ClassVar[str] = "prune-weights"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = PruneWeightsOptions
    after: ClassVar[tuple[str, ...]] = (*STRUCTURE, "equalize")
    options: PruneWeightsOptions

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
        rewrites = Rewrites(declined=declined)
        drops = self._drops(model, layers, context)
        left = []
        for layer in layers:
            if drops[layer.node] > count_zeros(layer):
                left.append(layer)
            else:
                rewrites.declined.append(Declined(layer.node.name or "", layer.node.op_type, _already(layer)))
        rewrites.sites = sparsify(model, left, _Chooser(drops), self.options, context)
        return rewrites

    def _problem(self, layer: Linear) -> str | None:
        """Say that a layer is sparse enough; with allocation=global, only all of them together can be."""
        if self.options.allocation == "global":
            return None
        return _already(layer) if count_zeros(layer) >= count_of(self.options.ratio, layer.weight().size) else None

    def _drops(self, model: onnx_ir.Model, layers: Sequence[Linear], context: Context) -> dict[onnx_ir.Node, int]:
        """Return how many weights of each layer become zero."""
        ratio = self.options.ratio
        if self.options.allocation == "uniform":
            return {layer.node: count_of(ratio, layer.weight().size) for layer in layers}
        total = count_of(ratio, sum(layer.weight().size for layer in layers))
        if sum(map(count_zeros, layers)) >= total:
            return {layer.node: 0 for layer in layers}
        if self.options.method == "magnitude":
            scores = [_relative(np.abs(layer.weight().astype(np.float64))) for layer in layers]
        else:
            scores = self._relative_costs(model, layers, context)
        counts = _share_out([each.reshape(-1) for each in scores], total, (1 + ratio) / 2)
        return {layer.node: count for layer, count in zip(layers, counts, strict=True)}

    def _relative_costs(self, model: onnx_ir.Model, layers: Sequence[Linear], context: Context) -> list[_Array]:
        """Return each weight's cost, relative to the variance of its layer's output."""
        found = []
        for layer, moments in sparse_moments(model, layers, context, self.options.samples, asymmetric=False):
            assert moments is not None, "layers without columns were declined"
            gram, rows = normal_form(layer, moments)
            energy = float(np.einsum("gok,gkl,gol->", rows, gram, rows, optimize=True))
            found.append((obs_costs(rows, gram) / (energy or 1.0)).astype(np.float32))
        return found


class _Chooser:
    """Takes a known number of weights of each layer."""

    def __init__(self, drops: Mapping[onnx_ir.Node, int]) -> None:
        self.drops = drops

    def by_magnitude(self, linear: Linear) -> _Mask:
        return magnitude_mask(linear.weight(), self.drops[linear.node])

    def by_error(self, linear: Linear, rows: _Float64, gram: _Float64) -> tuple[_Mask, _Float64]:
        return obs_mask(rows, gram, self.drops[linear.node])


def _already(layer: Linear) -> str:
    zeros, size = count_zeros(layer), layer.weight().size
    return f"already that sparse: {zeros:,} of {size:,} weights are zero"


def _relative(magnitudes: _Float64) -> _Float64:
    rms = float(np.sqrt(np.mean(np.square(magnitudes))))
    return magnitudes / (rms or 1.0)


def _share_out(scores: Sequence[_Array], total: int, most: float) -> list[int]:
    """Return how many of each layer's scores are among the `total` least; of no layer more than the share `most`.

    >>> _share_out([np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0, 8.0])], 4, 0.75)
    [3, 1]
    """
    open_ = [np.sort(each)[: int(most * each.size)] for each in scores]
    layer = np.repeat(np.arange(len(open_)), [each.size for each in open_])
    least = np.argsort(np.concatenate(open_), kind="stable")[:total]
    return [int(count) for count in np.bincount(layer[least], minlength=len(open_))]
