"""Quantize weights alone, to integers of 2, 4 or 8 bits with a scale; activations stay real.

    W  =>  s * Q,  Q integers;  a scale for each output channel, or for each `block` inputs of a Gemm or MatMul

gptq  from data: scales and integers of the least output error (`sites`)
rtn   without data: to the nearest integer, at the scale of the least squared weight error
hqq   without data: at the scale of the least sum of |error|^0.7, by half-quadratic splitting, which a few large errors
      bend less (`half_quadratic`)

bytes=x chooses 2, 4 or 8 bits for each layer instead, at least measured loss (`mixed`). `quantize-int8` behind it makes
activations 8-bit integers and keeps these weights, but for those in blocks (block=0): the file of few bits at the speed
of 8.

Legal when, fidelity, scopes and order: as for `ternarize`.
Sources: Frantar et al. 2022, https://arxiv.org/abs/2210.17323 (GPTQ); Badri & Shaji 2023, "Half-Quadratic
Quantization", https://mobiusml.github.io/hqq_blog (it moves a real zero point; runtimes take none, so that here it is
the scale).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic

from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Options
from onnxpress.passes.lowbit.alphabet import Alphabet
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.fit import nearest_codes, refit
from onnxpress.passes.lowbit.integers import Integers
from onnxpress.passes.lowbit.lowbit_pass import LowBitPass
from onnxpress.passes.lowbit.options import WidthOptions

__all__ = ["QuantizeWeights", "QuantizeWeightsOptions", "half_quadratic"]

_Float64: TypeAlias = npt.NDArray[np.float64]

_WIDTHS = (8, 4, 2)
# Of HQQ's reference implementation (github.com/mobiusml/hqq, hqq/core/optimize.py).
_NORM, _BETA, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 20
_TINY = 1e-12


class QuantizeWeightsOptions(WidthOptions):
    """Options of `quantize-weights`."""

    bits: Literal[2, 4, 8] | None = pydantic.Field(
        default=None, description="width of a weight; 4 where neither bits nor bytes is given"
    )
    method: Literal["gptq", "rtn", "hqq"] = pydantic.Field(
        default="gptq",
        description="gptq: second order, from data; rtn: to the nearest integer; hqq: half-quadratic, without data",
    )
    block: int = pydantic.Field(
        default=32, ge=0, description="inputs of a Gemm or MatMul that share a scale; 0 for one scale a channel"
    )


class QuantizeWeights(LowBitPass):
    """Make weights integers of 2, 4 or 8 bits with a scale, where the outputs miss it least; activations stay real."""

    name: ClassVar[str] = "quantize-weights"
    options_type: ClassVar[type[Options]] = QuantizeWeightsOptions
    options: QuantizeWeightsOptions

    def families(self) -> Sequence[Family]:
        """Return the integers of the width asked for, or of all widths where bytes are."""
        family = _HalfQuadratic if self.options.method == "hqq" else Integers
        widths = _WIDTHS if self.options.bytes is not None else (self.options.bits or 4,)
        return [family(bits, self.options.block or None) for bits in widths]


class _HalfQuadratic(Integers):
    """Integers whose scales are found by half-quadratic splitting, and stay."""

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        return half_quadratic(rows, super().start(layer, rows, importance))


def half_quadratic(rows: _Float64, alphabet: Alphabet) -> Alphabet:
    """Return the alphabet at which the sum of |rows - levels|^0.7 is small, not to be fitted further.

    rows: [R, K]. Splits the error e off the weights, with beta growing from round to round:

        e = argmin |e|^p + beta/2 (e - (w - q))^2          generalised soft thresholding
        q = the nearest levels to w, at the scales of the least (w - e - q)^2
    """
    # The reference's numbers are for weights of size 1: |e|^p over beta/2 e^2 keeps its meaning at this beta.
    beta = _BETA * max(float(np.sqrt(np.square(rows).mean())), _TINY) ** (_NORM - 2)
    target = rows[None]
    for _ in range(_ROUNDS):
        codes = nearest_codes(target, alphabet)
        off = target - alphabet.values(codes[0])[None]
        size = np.maximum(np.abs(off), _TINY)
        split = np.sign(off) * np.maximum(size - size ** (_NORM - 1) / beta, 0.0)
        moved = refit(target - split, None, codes, alphabet)
        if np.array_equal(moved.parameters, alphabet.parameters):
            break
        alphabet, beta = moved, beta * _GROWTH
    return dataclasses.replace(alphabet, fitted=False)
