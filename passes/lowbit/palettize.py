"""Palettize weights: each becomes one of 2^bits numbers of a codebook that its layer, or a run of channels, shares.

    W  =>  codebook[index]

The codebook starts from weighted k-means, where `weighting=hessian` counts a weight's error by the mean square of the
input that it is multiplied with. Indices and codebook are then those of the least output error (`sites`). A pruned
weight keeps its zeros beside 2^bits - 1 other levels, so that zero and they fit the width together: Deep Compression's
form.

bytes=x chooses a width of 1 to 8 bits for each layer instead, at least measured loss (`mixed`).

Legal when, fidelity, scopes and order: as for `ternarize`.
Sources: Han et al. 2016, section 3, https://arxiv.org/abs/1510.00149 (Deep Compression, without its training); Choi et
al. 2017, https://arxiv.org/abs/1612.01543 (Hessian-weighted k-means).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic

from onnxpress.ir.encodings import Codebook, Sparse, encoding_of
from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Options
from onnxpress.passes.lowbit.alphabet import Alphabet, Grouping
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.lowbit_pass import LowBitPass
from onnxpress.passes.lowbit.options import FittedOptions, WidthOptions
from onnxpress.passes.lowbit.starts import codebook_levels

__all__ = ["Palettize", "PalettizeOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]

_WIDTHS = (8, 7, 6, 5, 4, 3, 2, 1)


class PalettizeOptions(FittedOptions, WidthOptions):
    """Options of `palettize`."""

    bits: int | None = pydantic.Field(
        default=None, ge=1, le=8, description="width of an index; 4 where neither bits nor bytes is given"
    )
    weighting: Literal["hessian", "none"] = pydantic.Field(
        default="hessian", description="how k-means, the start, counts weights: by their inputs, or all alike"
    )
    group_size: int | None = pydantic.Field(
        default=None, ge=1, description="output channels that share a codebook; all of a layer by default"
    )


class Palettize(LowBitPass):
    """Make each weight one of a few numbers of its layer's codebook, where the outputs miss it least."""

    name: ClassVar[str] = "palettize"
    options_type: ClassVar[type[Options]] = PalettizeOptions
    options: PalettizeOptions

    def families(self) -> Sequence[Family]:
        """Return the palette of the width asked for, or of all widths where bytes are."""
        widths = _WIDTHS if self.options.bytes is not None else (self.options.bits or 4,)
        is_weighted = self.options.weighting == "hessian"
        return [_Palette(bits, self.options.group_size, is_weighted) for bits in widths]


@dataclasses.dataclass(frozen=True)
class _Palette(Family):
    bits: int
    group_size: int | None
    weighted: bool

    encoding: ClassVar[str] = "codebook"

    def problem(self, layer: Linear) -> str | None:
        if self.group_size is not None and layer.out_channels % self.group_size:
            return f"{layer.out_channels} output channels do not divide into groups of {self.group_size}"
        return super().problem(layer) if self.group_size is not None else None

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        pruned = isinstance(encoding_of(layer.weight_value), Sparse)
        count = max(1, (1 << self.bits) - pruned)
        weights = importance if self.weighted else (importance > 0).astype(np.float64)
        share = len(rows) if self.group_size is None else self.group_size
        runs = [slice(first, first + share) for first in range(0, len(rows), share)]
        levels = [codebook_levels(rows[run].reshape(-1), weights[run].reshape(-1), count) for run in runs]
        return Alphabet(np.eye(count), np.stack(levels), Grouping(rows=share), positive=False)

    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> Codebook:
        levels = alphabet.parameters.astype(np.float32)
        if self.group_size is None:
            return Codebook(codes.astype(np.uint8), levels[0])
        return Codebook(codes.astype(np.uint8), levels, axis=layer.out_axis)
