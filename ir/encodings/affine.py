"""Affine: integers with a scale, per tensor, channel or block, as ONNX DequantizeLinear reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxpress.ir.bitpack import code_type, pack_bits, unpack_bits
from onnxpress.ir.encodings.base import Array, Encoded, Floats, Parameter, entropy, frozen
from onnxpress.ir.encodings.sharing import checked_scale, parameter_shape, positive_axis, spread
from onnxpress.ir.quantization import affine_parameters, integer_range

__all__ = ["Affine"]


class Affine(Encoded):
    """Integers with scale and optional zero point, as ONNX DequantizeLinear reads them.

    codes: int8 or uint8 for 2, 4 and 8 bits, int16 or uint16 for 16.
    scale: float32, > 0, real units per step. Its shape says how it is shared:
        [] one for the tensor; [n] one for each index of `axis`; with `block_size`, the shape of the codes
        but for `axis`, which has one entry for each block of `block_size` indices (the last may be short).
    zero_point: codes' type, scale's shape; None means zero.

    >>> weight = Affine.quantize([[-1.4, 0.3, 3.5], [0.0, 0.7, -0.22]], bits=4)
    >>> weight.scale, weight.codes.tolist()                          # 3.5 / 7, 0.7 / 7
    (array([0.5, 0.1], dtype=float32), [[-3, 1, 7], [0, 7, -2]])
    >>> weight.dense()
    array([[-1.5,  0.5,  3.5],
           [ 0. ,  0.7, -0.2]], dtype=float32)
    """

    kind = "affine"

    def __init__(
        self,
        codes: Array,
        scale: npt.ArrayLike,
        zero_point: npt.ArrayLike | None = None,
        *,
        bits: int = 8,
        axis: int | None = None,
        block_size: int | None = None,
        name: str | None = None,
    ) -> None:
        """Check and keep. `axis` may be negative; whether codes are signed is read off their type.

        Raises:
            ValueError: codes outside the width, a scale or zero point whose shape does not fit, or a scale
                that is not positive and finite.
        """
        signed = bool(np.issubdtype(codes.dtype, np.signedinteger))
        if codes.dtype != code_type(bits, signed):
            raise ValueError(f"codes of {bits} bits must be {code_type(bits, signed)}, not {codes.dtype}")
        self._bits = bits
        self.signed = signed
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        self.block_size = block_size
        expected = parameter_shape(codes.shape, self.axis, block_size)
        self.scale: Floats = frozen(checked_scale(scale, expected))
        self.zero_point: Array | None = None
        if zero_point is not None:
            self.zero_point = frozen(np.asarray(zero_point, codes.dtype))
            if self.zero_point.shape != expected:
                raise ValueError(f"zero point has shape {list(self.zero_point.shape)}, needs {list(expected)}")
        qmin, qmax = integer_range(bits, signed)
        if bits < 8 and codes.size and (codes.min() < qmin or codes.max() > qmax):
            raise ValueError(f"codes of {bits} bits must lie in [{qmin}, {qmax}]")
        super().__init__(codes, name=name)

    @classmethod
    def quantize(
        cls,
        w: npt.ArrayLike,
        *,
        bits: int = 8,
        signed: bool = True,
        symmetric: bool = True,
        axis: int | None = 0,
        block_size: int | None = None,
        scale: npt.ArrayLike | None = None,
        narrow: bool = True,
        name: str | None = None,
    ) -> Self:
        """Round weights to the nearest code, ties to even.

        symmetric: scale = max|w| / (2**(bits-1) - 1), no zero point when signed. Otherwise scale and zero
            point cover [min(w, 0), max(w, 0)]. All-zero channels get scale 1.
        axis: one scale for each index of this axis; None for one in all. With `block_size`, one for each
            run of that many indices along `axis`, at every position of the other axes.
        scale: use this one (symmetric only), in the shape that `Affine` documents; codes are clipped.
        narrow: leave the code -2**(bits-1) of symmetric signed weights unused. Arm kernels add two int8
            products in 16 bits, and (-128) * (-128) twice would overflow them.

        Raises:
            ValueError: weights are not finite, or scale does not fit.
        """
        weights = np.asarray(w, np.float32)
        where = None if axis is None else positive_axis(axis, weights.ndim)
        shape = parameter_shape(weights.shape, where, block_size)
        if not np.isfinite(weights).all():
            raise ValueError("weights hold NaN or infinite values")
        if scale is None:
            low, high = _extremes(weights, where, block_size)
            scale, zero_point = affine_parameters(low, high, bits=bits, signed=signed, symmetric=symmetric)
        elif symmetric:
            scale = checked_scale(scale, shape)
            zero_point = np.full(shape, 0 if signed else 1 << (bits - 1), np.int32)
        else:
            raise ValueError("a given scale needs symmetric=True: there is no zero point beside it")
        qmin, qmax = integer_range(bits, signed)
        steps = np.asarray(weights / spread(scale, weights.shape, where, block_size))
        np.rint(steps, out=steps)
        steps += spread(zero_point, weights.shape, where, block_size)
        np.clip(steps, qmin + (symmetric and narrow), qmax, out=steps)
        codes = steps.astype(code_type(bits, signed))
        zeros = None if symmetric and signed else zero_point
        return cls(codes, scale, zeros, bits=bits, axis=where, block_size=block_size, name=name)

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def label(self) -> str:
        return f"{self.kind}{self.bits}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {
            "bits": self._bits,
            "signed": int(self.signed),
            "axis": self.axis,
            "block_size": self.block_size,
            "scale": self.scale,
            "zero_point": self.zero_point,
        }

    @property
    def parameter_bits(self) -> int:
        zero_points = 0 if self.zero_point is None else self.zero_point.size
        return 32 * self.scale.size + self._bits * zero_points

    @property
    def entropy_bits(self) -> float:
        qmin, _ = integer_range(self._bits, self.signed)
        return entropy(np.bincount(self.codes.reshape(-1).astype(np.int32) - qmin))

    def dense(self) -> Floats:
        weights = self.codes.astype(np.float32)
        if self.zero_point is not None:
            weights -= self._spread(self.zero_point)
        weights *= self._spread(self.scale)
        return weights

    def packed(self) -> bytes:
        return pack_bits(self.codes, self._bits)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        signed = bool(known.pop("signed"))
        return cls(unpack_bits(packed, shape, known["bits"], signed), **known)

    def _spread(self, parameter: Array) -> Array:
        return spread(parameter, self.codes.shape, self.axis, self.block_size)


def _extremes(weights: Floats, axis: int | None, block_size: int | None) -> tuple[Floats, Floats]:
    """Return (min, max) over each group of weights that shares a scale."""
    shape = parameter_shape(weights.shape, axis, block_size)
    if weights.size == 0:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if axis is None:
        return weights.min(keepdims=False), weights.max(keepdims=False)
    if block_size is None:
        others = tuple(other for other in range(weights.ndim) if other != axis)
        return weights.min(axis=others), weights.max(axis=others)
    starts = np.arange(0, weights.shape[axis], block_size)
    return np.minimum.reduceat(weights, starts, axis), np.maximum.reduceat(weights, starts, axis)
