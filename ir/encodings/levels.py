"""Encodings of few levels: each weight is one of a short list of numbers, which may differ from channel to channel.

    Codebook    real = codebook[group, code]                            any levels, as k-means finds them
    Ternary     real = positive, 0 or -negative                         codes 1, 0, -1
    Binary      real = sum over bases b of  +scale_b or -scale_b        bit b of the code: 1 is +
    PowerOfTwo  real = sign(code) * 2^(exponent - largest + |code|)     0 for code 0

All of them are a table look-up: `table` [groups, levels] holds the numbers, `indices` says which of a weight's group.
Groups are runs of equal length along `axis`, or the whole tensor.

Sources: Han et al. 2016, section 3, https://arxiv.org/abs/1510.00149 (codebook); Li et al. 2016,
https://arxiv.org/abs/1605.04711 and Zhu et al. 2017, https://arxiv.org/abs/1612.01064 (ternary, one scale and two);
Rastegari et al. 2016, section 3.1, https://arxiv.org/abs/1603.05279 and Lin et al. 2017, section 3.1,
https://arxiv.org/abs/1711.11294 (binary, one base and several); Zhou et al. 2017, section 2.1,
https://arxiv.org/abs/1702.03044 (powers of two).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxpress.ir.bitpack import pack_bits, unpack_bits
from onnxpress.ir.encodings.base import Array, Encoded, Floats, Parameter, frozen
from onnxpress.ir.encodings.sharing import checked_scale, parameter_shape, positive_axis

__all__ = ["Binary", "Codebook", "Levels", "PowerOfTwo", "Ternary"]

_MOST_LEVELS = 1 << 16
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -126, 127  # of normal float32 numbers


class Levels(Encoded):
    """A weight whose numbers come from a table."""

    axis: int | None

    @property
    @abc.abstractmethod
    def table(self) -> Floats:
        """The numbers that a weight may be, [groups, levels]; one group where `axis` is None."""

    @property
    @abc.abstractmethod
    def indices(self) -> Array:
        """Which level of its group each weight is, unsigned, in the weight's shape."""

    def dense(self) -> Floats:
        return self.look_up(self.table)

    def look_up(self, table: Array) -> Array:
        """Return the numbers of another table at the weight's indices, in the weight's shape.

        table: [groups, levels], of any type, or [1, levels] where all groups have the same.
        """
        indices = self.indices
        if indices.size == 0 or len(table) == 1:
            return np.asarray(table.reshape(-1)[indices], table.dtype)
        assert self.axis is not None, "several groups lie along an axis"
        group = np.repeat(np.arange(len(table)), indices.shape[self.axis] // len(table))
        first = (group * table.shape[1]).reshape([-1 if at == self.axis else 1 for at in range(indices.ndim)])
        numbers: Array = table.reshape(-1)[indices + first]
        return numbers


class Codebook(Levels):
    """Indices into a list of numbers.

    codes: uint8, or uint16 above 256 levels. codebook: float32, [levels] for the whole tensor, or [groups, levels]
    along `axis`, whose length is a multiple of `groups`.

    >>> weight = Codebook(np.array([[0, 1], [2, 2]], np.uint8), [-0.5, 0.0, 0.25])
    >>> weight.dense().tolist(), weight.bits
    ([[-0.5, 0.0], [0.25, 0.25]], 2)
    """

    kind = "codebook"

    def __init__(
        self, codes: Array, codebook: npt.ArrayLike, *, axis: int | None = None, name: str | None = None
    ) -> None:
        """Check and keep.

        Raises:
            ValueError: a codebook of a shape that does not fit, numbers that are not finite, or codes beyond it.
        """
        numbers = np.asarray(codebook, np.float32)
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        if numbers.ndim != (1 if axis is None else 2) or not 1 <= numbers.shape[-1] <= _MOST_LEVELS:
            wanted = "[levels]" if axis is None else "[groups, levels]"
            raise ValueError(f"codebook has shape {list(numbers.shape)}, needs {wanted} of 1 to {_MOST_LEVELS} levels")
        if self.axis is not None and (len(numbers) == 0 or codes.shape[self.axis] % len(numbers)):
            raise ValueError(f"{codes.shape[self.axis]} channels cannot share {len(numbers)} codebooks equally")
        if not np.isfinite(numbers).all():
            raise ValueError("the codebook holds NaN or infinite values")
        kind = np.uint8 if numbers.shape[-1] <= 256 else np.uint16
        if codes.dtype != kind:
            raise ValueError(f"codes of {numbers.shape[-1]} levels must be {np.dtype(kind)}, not {codes.dtype}")
        if codes.size and codes.max() >= numbers.shape[-1]:
            raise ValueError(f"code {codes.max()} lies beyond a codebook of {numbers.shape[-1]} levels")
        self.codebook: Floats = frozen(numbers)
        super().__init__(codes, name=name)

    @property
    def table(self) -> Floats:
        return np.atleast_2d(self.codebook)

    @property
    def indices(self) -> Array:
        return self.codes

    @property
    def bits(self) -> int:
        return _width(self.codebook.shape[-1])

    @property
    def label(self) -> str:
        return f"{self.kind}{self.bits}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"codebook": self.codebook, "axis": self.axis}

    @property
    def parameter_bits(self) -> int:
        return 32 * self.codebook.size

    def packed(self) -> bytes:
        return pack_bits(self.codes, self.bits)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        levels = known["codebook"].shape[-1]
        codes = unpack_bits(packed, shape, _width(levels), False)
        return cls(codes.astype(np.uint8 if levels <= 256 else np.uint16, copy=False), **known)


def _width(levels: int) -> int:
    """Return the bits of an index."""
    return max(1, (levels - 1).bit_length())


class Ternary(Levels):
    """-1, 0 or 1 times a scale; `negative` is the scale of -1 where it is another than that of 1.

    codes: int8. positive, negative: float32, > 0, [] for the tensor or [n] for each index of `axis`.

    >>> Ternary(np.array([1, 0, -1], np.int8), 0.5, 0.25).dense().tolist()
    [0.5, 0.0, -0.25]
    """

    kind = "ternary"

    def __init__(
        self,
        codes: Array,
        positive: npt.ArrayLike,
        negative: npt.ArrayLike | None = None,
        *,
        axis: int | None = None,
        name: str | None = None,
    ) -> None:
        """Check and keep.

        Raises:
            ValueError: codes other than int8 -1, 0 and 1, or scales that do not fit.
        """
        if codes.dtype != np.int8 or (codes.size and (codes.min() < -1 or codes.max() > 1)):
            raise ValueError("ternary codes must be int8 -1, 0 or 1")
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        shape = parameter_shape(codes.shape, self.axis, None)
        self.positive: Floats = frozen(checked_scale(positive, shape))
        self.negative: Floats | None = None if negative is None else frozen(checked_scale(negative, shape))
        super().__init__(codes, name=name)

    @property
    def table(self) -> Floats:
        positive = self.positive.reshape(-1)
        negative = positive if self.negative is None else self.negative.reshape(-1)
        return np.stack([-negative, np.zeros_like(positive), positive], axis=1)

    @property
    def indices(self) -> Array:
        return (self.codes + 1).astype(np.uint8)

    @property
    def bits(self) -> int:
        return 2

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"positive": self.positive, "negative": self.negative, "axis": self.axis}

    @property
    def parameter_bits(self) -> int:
        return 32 * self.positive.size * (1 if self.negative is None else 2)

    def packed(self) -> bytes:
        return pack_bits(self.codes, 2)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        return cls(unpack_bits(packed, shape, 2, True), **known)


class Binary(Levels):
    """A sum of signs, each times a scale of its own: one base is the sign alone, n bases are 2^n levels.

    codes: uint8; bit b says the sign of base b, 1 for +. scale: float32, > 0, [bases] for the tensor or [bases, n] for
    each index of `axis`; 1 to 8 bases.

    >>> Binary(np.array([0, 1, 2, 3], np.uint8), [1.0, 0.25]).dense().tolist()
    [-1.25, 0.75, -0.75, 1.25]
    """

    kind = "binary"

    def __init__(self, codes: Array, scale: npt.ArrayLike, *, axis: int | None = None, name: str | None = None) -> None:
        """Check and keep.

        Raises:
            ValueError: codes of more bits than bases, or scales that do not fit.
        """
        scales = np.asarray(scale, np.float32)
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        bases = len(scales) if scales.ndim else 0
        if not 1 <= bases <= 8:
            raise ValueError(f"scale has shape {list(scales.shape)}: its first dimension must be 1 to 8 bases")
        self.scale: Floats = frozen(checked_scale(scales, (bases, *parameter_shape(codes.shape, self.axis, None))))
        if codes.dtype != np.uint8 or (codes.size and int(codes.max()) >> bases):
            raise ValueError(f"codes of {bases} bases must be uint8 below {1 << bases}")
        super().__init__(codes, name=name)

    @property
    def table(self) -> Floats:
        codes = np.arange(1 << len(self.scale))
        numbers = np.zeros((self.scale[0].size, len(codes)), np.float32)
        for base, scale in enumerate(self.scale):  # one after the other: the sum's rounding must not depend on BLAS
            numbers += np.where(codes >> base & 1, 1, -1) * scale.reshape(-1, 1)
        return numbers

    @property
    def indices(self) -> Array:
        return self.codes

    @property
    def bits(self) -> int:
        return len(self.scale)

    @property
    def label(self) -> str:
        return self.kind if self.bits == 1 else f"{self.kind}{self.bits}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"scale": self.scale, "axis": self.axis}

    @property
    def parameter_bits(self) -> int:
        return 32 * self.scale.size

    def packed(self) -> bytes:
        return pack_bits(self.codes, self.bits)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        return cls(unpack_bits(packed, shape, len(known["scale"]), False), **known)


class PowerOfTwo(Levels):
    """Signed powers of two, and zero: products become shifts.

    codes: int8 in [-m, m], m = 2^(bits-1) - 1. exponent: int, [] for the tensor or [n] for each index of `axis`: code m
    is 2^exponent, code m - 1 half of it, and so on.

    >>> PowerOfTwo(np.array([3, 2, 1, 0, -3], np.int8), 0, bits=3).dense().tolist()
    [1.0, 0.5, 0.25, 0.0, -1.0]
    """

    kind = "power-of-two"

    def __init__(
        self, codes: Array, exponent: npt.ArrayLike, *, bits: int, axis: int | None = None, name: str | None = None
    ) -> None:
        """Check and keep.

        Raises:
            ValueError: codes outside the width, or exponents whose powers float32 does not hold exactly.
        """
        if not 2 <= bits <= 6:
            raise ValueError(f"bits must be 2 to 6, not {bits}")
        self._bits = bits
        self.axis = None if axis is None else positive_axis(axis, codes.ndim)
        if codes.dtype != np.int8 or (codes.size and np.abs(codes.astype(np.int16)).max() > self.largest):
            raise ValueError(f"codes of {bits} bits must be int8 in [{-self.largest}, {self.largest}]")
        expected = parameter_shape(codes.shape, self.axis, None)
        exponents = np.asarray(exponent, np.int32)
        if exponents.shape != expected:
            raise ValueError(f"exponent has shape {list(exponents.shape)}, needs {list(expected)}")
        lowest = _SMALLEST_EXPONENT + self.largest - 1
        if exponents.size and not (lowest <= exponents.min() and exponents.max() <= _LARGEST_EXPONENT):
            raise ValueError(f"exponents of {bits} bits must lie in [{lowest}, {_LARGEST_EXPONENT}]")
        self.exponent: npt.NDArray[np.int32] = frozen(exponents)
        super().__init__(codes, name=name)

    @property
    def largest(self) -> int:
        """The code of the largest magnitude."""
        return (1 << (self._bits - 1)) - 1

    @property
    def table(self) -> Floats:
        magnitude = np.ldexp(np.float32(1), self.exponent.reshape(-1, 1) + np.arange(1 - self.largest, 1))
        return np.hstack([-magnitude[:, ::-1], np.zeros((len(magnitude), 1)), magnitude]).astype(np.float32)

    @property
    def indices(self) -> Array:
        return (self.codes + self.largest).astype(np.uint8)

    @property
    def bits(self) -> int:
        return self._bits

    @property
    def label(self) -> str:
        return f"{self.kind}{self.bits}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {"bits": self._bits, "exponent": self.exponent, "axis": self.axis}

    @property
    def parameter_bits(self) -> int:
        return 8 * self.exponent.size  # they span 254 values

    def packed(self) -> bytes:
        return pack_bits(self.codes, self._bits)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        return cls(unpack_bits(packed, shape, known["bits"], True), **known)
