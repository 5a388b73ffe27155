"""Make weights signed powers of two, or zero, so that a product is a shift.

    W  =>  sign * 2^(e - i),  i = 0 ... 2^(bits-1) - 2, and 0;  e an exponent of the output channel

The codes are those of the least output error (`sites`); the exponent is that of the least weight error, as a power of
two leaves nothing to fit. Runtimes on CPUs and GPUs multiply by it as by any number: the gain there is the file.

Legal when, fidelity, scopes and order: as for `ternarize`.
Sources: Zhou et al. 2017, section 2.1, https://arxiv.org/abs/1702.03044 (INQ, without its training); Miyashita et al.
2016, https://arxiv.org/abs/1603.01025 (LogNet).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pydantic

from onnxpress.ir import encodings
from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Options
from onnxpress.passes.lowbit.alphabet import Alphabet
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.lowbit_pass import LowBitPass
from onnxpress.passes.lowbit.options import FittedOptions
from onnxpress.passes.lowbit.starts import exponents

__all__ = ["PowerOfTwo", "PowerOfTwoOptions"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


class PowerOfTwoOptions(FittedOptions):
    """Options of `power-of-two`."""

    bits: int = pydantic.Field(default=4, ge=2, le=6, description="width of a code: 2^(bits-1) - 1 powers, and zero")


class PowerOfTwo(LowBitPass):
    """Make each weight a signed power of two or zero, where the outputs miss it least."""

    name: ClassVar[str] = "power-of-two"
    options_type: ClassVar[type[Options]] = PowerOfTwoOptions
    options: PowerOfTwoOptions

    def families(self) -> Sequence[Family]:
        """Return the one encoding."""
        return [_Powers(self.options.bits)]


@dataclasses.dataclass(frozen=True)
class _Powers(Family):
    bits: int

    encoding: ClassVar[str] = "power-of-two"

    @property
    def largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        powers = np.ldexp(1.0, np.arange(1 - self.largest, 1))
        basis = np.concatenate([-powers[::-1], [0.0], powers])
        tops = np.ldexp(1.0, exponents(rows, importance, self.largest))
        return Alphabet(basis[:, None], tops[:, None], fitted=False)

    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> encodings.PowerOfTwo:
        _, tops = np.frexp(alphabet.parameters[:, 0])  # 2^e is 0.5 * 2^(e + 1)
        signed = (codes - self.largest).astype(np.int8)
        return encodings.PowerOfTwo(signed, (tops - 1).astype(np.int32), bits=self.bits, axis=layer.out_axis)
