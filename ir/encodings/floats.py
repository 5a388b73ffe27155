"""Floating point encodings: float32 as it is, and the narrower formats that runtimes know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxpress.ir.bitpack import from_bytes
from onnxpress.ir.encodings.base import Array, Encoded, Floats, Parameter, frozen
from onnxpress.ir.encodings.sharing import checked_scale, parameter_shape, positive_axis, spread

__all__ = ["BFloat16", "Dense", "Float8", "Float16"]


class Dense(Encoded):
    """Plain float32 numbers: the encoding of a weight that no pass has touched."""

    kind = "dense"

    def __init__(self, values: npt.ArrayLike, *, name: str | None = None) -> None:
        super().__init__(np.asarray(values, np.float32), name=name)

    @property
    def bits(self) -> int:
        return 32

    def dense(self) -> Floats:
        values: Floats = self.codes
        return values

    def packed(self) -> bytes:
        return self.tobytes()

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        return cls(from_bytes(packed, "<f4", shape))


class _Half(Encoded):
    """16 bits a weight; the codes are numbers of the narrow type."""

    number: ClassVar[npt.DTypeLike]
    largest: ClassVar[float]

    def __init__(self, codes: Array, *, name: str | None = None) -> None:
        super().__init__(np.asarray(codes, self.number), name=name)

    @classmethod
    def quantize(cls, w: npt.ArrayLike, *, name: str | None = None) -> Self:
        """Round to nearest, ties to even.

        Raises:
            ValueError: a finite weight lies beyond the type's range.
        """
        weights = np.asarray(w)
        with np.errstate(over="ignore"):
            codes = weights.astype(cls.number)
        if np.any(np.isinf(codes) & np.isfinite(weights)):
            raise ValueError(f"a magnitude of {np.abs(weights).max():g} lies beyond {cls.kind}'s {cls.largest:g}")
        return cls(codes, name=name)

    @property
    def bits(self) -> int:
        return 16

    def dense(self) -> Floats:
        return self.codes.astype(np.float32)

    def packed(self) -> bytes:
        return self.codes.view(np.uint16).astype("<u2", copy=False).tobytes()

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        return cls(from_bytes(packed, "<u2", shape).astype(np.uint16, copy=False).view(cls.number))


class Float16(_Half):
    """IEEE 754 half precision: 11 bits of precision, magnitudes to 65504, which `quantize` keeps to."""

    kind = "float16"
    number = np.float16
    largest = 65504.0


class BFloat16(_Half):
    """bfloat16: float32's range with 8 bits of precision."""

    kind = "bfloat16"
    number = ml_dtypes.bfloat16
    largest = 255 * 2.0**120


class Float8(Encoded):
    """8-bit floating point with a scale: real = float32(code) * scale.

    format: "e4m3fn" (magnitudes to 448, 4 bits of precision) or "e5m2" (to 57344, 3 bits), as ONNX's FLOAT8E4M3FN and
    FLOAT8E5M2. scale: as for `Affine`, per tensor ([]) or per index of `axis` ([n]).
    Source: Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433
    """

    kind = "float8"
    formats: ClassVar[tuple[str, ...]] = ("e4m3fn", "e5m2")
    largest: ClassVar[tuple[float, ...]] = (448.0, 57344.0)

    def __init__(self, codes: Array, scale: npt.ArrayLike, *, axis: int | None = None, name: str | None = None) -> None:
        """Check and keep. The format is read off the codes' type.

        Raises:
            ValueError: codes of another type, or a scale that does not fit.
        """
        known = {np.dtype(getattr(ml_dtypes, f"float8_{each}")): each for each in self.formats}
        if codes.dtype not in known:
            raise ValueError(f"codes must be of {' or '.join(map(str, known))}, not {codes.dtype}")
        self.format = known[codes.dtype]
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        self.scale: Floats = frozen(checked_scale(scale, parameter_shape(codes.shape, self.axis, None)))
        super().__init__(codes, name=name)

    @classmethod
    def quantize(
        cls, w: npt.ArrayLike, *, format: str = "e4m3fn", axis: int | None = 0, name: str | None = None
    ) -> Self:
        """Round to nearest, the largest magnitude of each channel on the format's largest number.

        Raises:
            ValueError: weights are not finite, or there is no such format.
        """
        if format not in cls.formats:
            raise ValueError(f"format must be one of {', '.join(cls.formats)}, not {format!r}")
        weights = np.asarray(w, np.float32)
        if not np.isfinite(weights).all():
            raise ValueError("weights hold NaN or infinite values")
        number = np.dtype(getattr(ml_dtypes, f"float8_{format}"))
        where = None if axis is None else positive_axis(axis, weights.ndim)
        others = tuple(other for other in range(weights.ndim) if other != where)
        peak = np.abs(weights).max(axis=others, initial=0.0) / cls.largest[cls.formats.index(format)]
        scale = np.maximum(np.where(peak > 0, peak, 1.0), np.finfo(np.float32).tiny).astype(np.float32)
        codes = np.asarray(weights / spread(scale, weights.shape, where, None)).astype(number)
        return cls(codes, scale, axis=where, name=name)

    @property
    def bits(self) -> int:
        return 8

    @property
    def label(self) -> str:
        return f"{self.kind}{self.format}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"format": self.formats.index(self.format), "axis": self.axis, "scale": self.scale}

    @property
    def parameter_bits(self) -> int:
        return 32 * self.scale.size

    def dense(self) -> Floats:
        weights: Floats = self.codes.astype(np.float32) * spread(self.scale, self.codes.shape, self.axis, None)
        return weights

    def packed(self) -> bytes:
        return self.codes.view(np.uint8).tobytes()

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        number = getattr(ml_dtypes, f"float8_{cls.formats[known.pop('format')]}")
        return cls(from_bytes(packed, np.uint8, shape).view(number), **known)
