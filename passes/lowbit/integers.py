"""Integers with a scale, the encoding `Affine`: a scale for each output channel, or for each block of its inputs."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.bitpack import code_type
from onnxpress.ir.encodings import Affine
from onnxpress.ir.linear import Linear
from onnxpress.passes.lowbit.alphabet import Alphabet, Grouping
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.starts import integer_scales

__all__ = ["Integers"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Integers(Family):
    """Signed integers in [-m, m], m = 2^(bits-1) - 1, without a zero point.

    The integer -2^(bits-1) stays unused but for 2 bits, where it is one of four levels.
    block: inputs of a Gemm or MatMul that share a scale; None for all. A convolution has one scale for each output
    channel: integer kernels take no others.
    """

    bits: int
    block: int | None = None

    @property
    def encoding(self) -> str:
        return f"affine{self.bits}"

    @property
    def lowest(self) -> int:
        """The smallest integer in use."""
        return -2 if self.bits == 2 else -self.largest

    @property
    def largest(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1

    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        grouping = Grouping(block=self._block(layer))
        scales = integer_scales(rows, importance, grouping, self.largest)
        basis = np.arange(self.lowest, self.largest + 1, dtype=np.float64)
        return Alphabet(basis[:, None], scales[:, None], grouping)

    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> Affine:
        integers = (codes + self.lowest).astype(code_type(self.bits, signed=True))
        scales = alphabet.parameters.astype(np.float32)
        block = self._block(layer)
        if block is None:
            return Affine(integers, scales[:, 0], bits=self.bits, axis=layer.out_axis)
        by_row = scales.reshape(layer.out_channels, -1)
        stored = by_row if layer.out_axis == 0 else np.ascontiguousarray(by_row.T)
        return Affine(integers, stored, bits=self.bits, axis=1 - layer.out_axis, block_size=block)

    def _block(self, layer: Linear) -> int | None:
        """Return the block of inputs, where `layer` has more than one."""
        if self.block is None or layer.node.op_type not in ("Gemm", "MatMul") or layer.in_channels <= self.block:
            return None
        return self.block
