"""Binarize weights: each becomes plus or minus a scale of its output channel, or a sum of such signs.

    W  =>  s_1 B_1 + ... + s_n B_n,  B_i in {-1, 1}

One base is a bit a weight; n bases are n bits, and 2^n levels. Signs and scales are those of the least output error
(`sites`). `spatial_only` binarizes kernels of k x k alone and leaves 1 x 1 ones as they are: the patterns of SEP-Net.

Legal when, fidelity, scopes and order: as for `ternarize`.
Sources: Rastegari et al. 2016, section 3.1, https://arxiv.org/abs/1603.05279 (XNOR-Net's weights); Lin et al. 2017,
section 3.1, https://arxiv.org/abs/1711.11294 (ABC-Net); Li et al. 2017, https://arxiv.org/abs/1706.03912 (SEP-Net);
without their training, activations stay real.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic

from onnxpress.ir.encodings import Binary
from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Options
from onnxpress.passes.lowbit.alphabet import Alphabet
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.lowbit_pass import LowBitPass
from onnxpress.passes.lowbit.options import CoarseOptions
from onnxpress.passes.lowbit.starts import binary_scales

__all__ = ["Binarize", "BinarizeOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


class BinarizeOptions(CoarseOptions):
    """Options of `binarize`."""

    bases: int = pydantic.Field(default=1, ge=1, le=4, description="signs of a weight, each with a scale: its bits")
    spatial_only: bool = pydantic.Field(
        default=False, description="kernels of more than one position alone; others stay as they are"
    )


class Binarize(LowBitPass):
    """Make each weight a sign times a scale of its channel, or a sum of several, where the outputs miss it least."""

    name: ClassVar[str] = "binarize"
    options_type: ClassVar[type[Options]] = BinarizeOptions
    options: BinarizeOptions

    def families(self) -> Sequence[Family]:
        """Return the one encoding."""
        return [_Binary(self.options.bases, self.options.spatial_only)]


@dataclasses.dataclass(frozen=True)
class _Binary(Family):
    bases: int
    spatial_only: bool

    encoding: ClassVar[str] = "binary"

    def problem(self, layer: Linear) -> str | None:
        if self.spatial_only and math.prod(layer.kernel) == 1:
            return "its kernel has one position, and spatial_only=true takes larger ones"
        return super().problem(layer)

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        bits = np.arange(1 << self.bases)[:, None] >> np.arange(self.bases) & 1
        return Alphabet(2 * bits.astype(np.float64) - 1, binary_scales(rows, importance, self.bases))

    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> Binary:
        scales = np.ascontiguousarray(alphabet.parameters.T, np.float32)
        return Binary(codes.astype(np.uint8), scales, axis=layer.out_axis)
