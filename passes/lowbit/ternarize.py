"""Ternarize weights: each becomes -1, 0 or 1 times a scale of its output channel.

    W  =>  s * T,  T in {-1, 0, 1}                  scales=1 (TWN)
    W  =>  s+ where T = 1, -s- where T = -1          scales=2 (TTQ)

With data (method=gptq), T and s are those of the least output error behind the layers ternarized before (`sites`);
without (rtn), of the least weight error, which costs most of the accuracy of a trained network. T takes 1.6 bits where
the target unpacks five digits from a byte.

Legal when: the weight is a constant FLOAT of 128 numbers or more with one reader, not encoded otherwise, and no
transposed convolution in groups. First and last layers and depthwise convolutions get 8-bit integers (`sensitive`).
Fidelity: lossy; each site records the signal-to-noise ratio of its output. Scopes: the main graph. After the passes
that change operators or fold weights. A second run finds every weight encoded.

Sources: Li et al. 2016, https://arxiv.org/abs/1605.04711 (TWN); Zhu et al. 2017, https://arxiv.org/abs/1612.01064
(TTQ); without their training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic

from onnxpress.ir.encodings import Ternary
from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Options
from onnxpress.passes.lowbit.alphabet import Alphabet
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.lowbit_pass import LowBitPass
from onnxpress.passes.lowbit.options import CoarseOptions
from onnxpress.passes.lowbit.starts import ternary_scales

__all__ = ["Ternarize", "TernarizeOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


class TernarizeOptions(CoarseOptions):
    """Options of `ternarize`."""

    scales: Literal[1, 2] = pydantic.Field(
        default=1, description="scales of an output channel: one, or one for each sign"
    )


class Ternarize(LowBitPass):
    """Make each weight -1, 0 or 1 times a scale of its channel, where the outputs miss it least."""

    name: ClassVar[str] = "ternarize"
    options_type: ClassVar[type[Options]] = TernarizeOptions
    options: TernarizeOptions

    def families(self) -> Sequence[Family]:
        """Return the one encoding."""
        return [_Ternary(self.options.scales)]


@dataclasses.dataclass(frozen=True)
class _Ternary(Family):
    scales: int

    encoding: ClassVar[str] = "ternary"

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        scale = ternary_scales(rows, importance)
        basis = (
            np.array([[-1.0], [0.0], [1.0]]) if self.scales == 1 else np.array([[0.0, -1.0], [0.0, 0.0], [1.0, 0.0]])
        )
        return Alphabet(basis, np.repeat(scale[:, None], self.scales, axis=1))

    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> Ternary:
        scale = alphabet.parameters.astype(np.float32)
        negative = scale[:, 1] if self.scales == 2 else None
        return Ternary((codes - 1).astype(np.int8), scale[:, 0], negative, axis=layer.out_axis)
