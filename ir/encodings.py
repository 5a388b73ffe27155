"""Encodings: how the numbers of a weight are represented, apart from where they are stored.

An encoded weight stands in a graph as any other tensor (it meets onnx-ir's `TensorProtocol`): code that asks
for `.numpy()` gets dense float32, code that knows encodings gets codes and parameters. It survives
`Model.clone()` and onnx-ir's passes; saving it writes the dense values, so lowering replaces it by real
nodes first.

    Affine:   real = (code - zero_point) * scale
    Float16:  real = float32(code)
    Dense:    real = code
    Sparse:   real = what another encoding stores where the mask is set, 0 elsewhere

The packed form is that of `bitpack`; `unpack(packed(), shape, parameters)` gives back the same bits.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.bitpack import code_type, from_bytes, pack_bits, unpack_bits
from onnxpress.ir.grid import grid_scale
from onnxpress.ir.quantization import affine_parameters, integer_range

__all__ = [
    "Affine",
    "Dense",
    "Encoded",
    "Float16",
    "Parameter",
    "Sparse",
    "encode",
    "encoding_of",
    "grid_scale",
    "is_encoded",
]

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Parameter: TypeAlias = "Array | int | None"


class Encoded(abc.ABC):
    """A weight as codes and parameters; dense float32 to everyone who does not ask.

    Immutable but for `name`, `doc_string` and the metadata that onnx-ir's protocol asks for. Subclasses
    set `kind` (which registers them) and implement `bits`, `dense`, `packed` and `unpack`; those with
    parameters also `parameters` and `parameter_bits`.
    """

    kind: ClassVar[str]

    name: str | None
    doc_string: str | None
    shape: onnx_ir.ShapeProtocol
    dtype: onnx_ir.DataType

    def __init__(self, codes: Array, *, name: str | None = None) -> None:
        self.raw: Any = _frozen(codes)
        self.name = name
        self.doc_string = None
        self.shape = onnx_ir.Shape(codes.shape, frozen=True)
        self.dtype = onnx_ir.DataType.FLOAT
        self.metadata_props: Any = {}
        self.meta: Any = {}

    # What an encoding knows.

    @property
    def codes(self) -> Array:
        """The codes, read-only, in the weight's shape."""
        codes: Array = self.raw
        return codes

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """Everything besides codes and shape that `unpack` needs."""
        return {}

    @property
    @abc.abstractmethod
    def bits(self) -> int:
        """Width of a code."""

    @property
    def parameter_bits(self) -> int:
        """Stored size of the parameters that grow with the weight (scales, codebooks), in bits."""
        return 0

    @abc.abstractmethod
    def dense(self) -> Floats:
        """Return the weights as float32 in the weight's shape: computed at each call, never kept."""

    @abc.abstractmethod
    def packed(self) -> bytes:
        """Return the codes as bytes, in the module's packed form."""

    @classmethod
    @abc.abstractmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        """Return the encoding that `packed` came from.

        Raises:
            ValueError: the number of bytes does not fit the shape.
        """

    @property
    def label(self) -> str:
        """Name for tables: the kind, and the width where it varies, such as "affine8"."""
        return self.kind

    @property
    def packed_bytes(self) -> int:
        """Stored size of codes and parameters; what `len(packed())` plus the parameters would be."""
        return -(-self.size * self.bits // 8) + -(-self.parameter_bits // 8)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for a weight, parameters included; 0 for an empty weight."""
        return (self.size * self.bits + self.parameter_bits) / self.size if self.size else 0.0

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the codes' histogram, in bits per weight: what an ideal order-0 coder needs."""
        return _entropy(np.unique(self.codes, return_counts=True)[1])

    # What onnx-ir asks of a tensor.

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape.numpy())

    @property
    def nbytes(self) -> int:
        """Size of the dense value; `packed_bytes` is what the encoding needs."""
        return 4 * self.size

    def numpy(self) -> Floats:
        """Return the dense weights."""
        return self.dense()

    def tobytes(self) -> bytes:
        """Return the dense weights as little endian bytes."""
        return self.dense().astype("<f4", copy=False).tobytes()

    def tofile(self, file: IO[bytes]) -> None:
        """Write what `tobytes` returns."""
        file.write(self.tobytes())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        dense = self.dense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.dense().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.label},{list(self.shape.numpy())}>(name={self.name!r})"


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


class Float16(Encoded):
    """IEEE half precision. Magnitudes beyond 65504 become infinite: `quantize` refuses them."""

    kind = "float16"

    def __init__(self, codes: npt.NDArray[np.float16], *, name: str | None = None) -> None:
        super().__init__(np.asarray(codes, np.float16), name=name)

    @classmethod
    def quantize(cls, w: npt.ArrayLike, *, name: str | None = None) -> Self:
        """Round to nearest, ties to even.

        Raises:
            ValueError: a finite weight lies beyond float16's range.
        """
        weights = np.asarray(w)
        with np.errstate(over="ignore"):
            codes = weights.astype(np.float16)
        if np.any(np.isinf(codes) & np.isfinite(weights)):
            raise ValueError(f"a magnitude of {np.abs(weights).max():g} lies beyond float16's 65504")
        return cls(codes, name=name)

    @property
    def bits(self) -> int:
        return 16

    def dense(self) -> Floats:
        return self.codes.astype(np.float32)

    def packed(self) -> bytes:
        return self.codes.astype("<f2", copy=False).tobytes()

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        return cls(from_bytes(packed, "<f2", shape))


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
        self.axis = None if axis is None else _positive_axis(axis, codes.ndim)
        self.block_size = block_size
        expected = _parameter_shape(codes.shape, self.axis, block_size)
        self.scale: Floats = _frozen(_checked_scale(scale, expected))
        self.zero_point: Array | None = None
        if zero_point is not None:
            self.zero_point = _frozen(np.asarray(zero_point, codes.dtype))
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
        where = None if axis is None else _positive_axis(axis, weights.ndim)
        shape = _parameter_shape(weights.shape, where, block_size)
        if not np.isfinite(weights).all():
            raise ValueError("weights hold NaN or infinite values")
        if scale is None:
            low, high = _extremes(weights, where, block_size)
            scale, zero_point = affine_parameters(low, high, bits=bits, signed=signed, symmetric=symmetric)
        elif symmetric:
            scale = _checked_scale(scale, shape)
            zero_point = np.full(shape, 0 if signed else 1 << (bits - 1), np.int32)
        else:
            raise ValueError("a given scale needs symmetric=True: there is no zero point beside it")
        qmin, qmax = integer_range(bits, signed)
        steps = np.asarray(weights / _spread(scale, weights.shape, where, block_size))
        np.rint(steps, out=steps)
        steps += _spread(zero_point, weights.shape, where, block_size)
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
        return _entropy(np.bincount(self.codes.reshape(-1).astype(np.int32) - qmin))

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
        return _spread(parameter, self.codes.shape, self.axis, self.block_size)


class Sparse(Encoded):
    """Weights of which only some are stored: the others are exactly zero, whatever encodes those that are.

    mask: bool, in the weight's shape: which are stored. inner: their encoding, in the weight's shape too, so that a
    scale per channel keeps its axis; what it holds outside the mask is forgotten, its codes read 0 there.

    Packed: a bit for each weight (1: stored), C order, low bits first, then the stored codes in `bitpack`'s form. A
    list of 32-bit positions would be shorter below one stored weight in 32, for which no pass asks.

    >>> weight = Sparse.of([[0.0, 1.5, 0.0], [-2.0, 0.0, 0.0]])
    >>> weight.packed().hex(), weight.bits_per_weight          # mask 001010, then 1.5 and -2.0
    ('0a0000c03f000000c0', 11.666666666666666)
    >>> Sparse(weight.mask, Affine.quantize(weight.dense())).label
    'sparse+affine8'
    """

    kind = "sparse"

    def __init__(self, mask: npt.ArrayLike, inner: Encoded, *, name: str | None = None) -> None:
        """Check and keep.

        Raises:
            ValueError: `inner` has another shape than `mask`, or is sparse itself.
        """
        stored = np.asarray(mask, np.bool_)
        if isinstance(inner, Sparse):
            raise ValueError("a sparse encoding cannot hold another one")
        if tuple(inner.shape.numpy()) != stored.shape:
            raise ValueError(f"mask has shape {list(stored.shape)}, the inner encoding {list(inner.shape.numpy())}")
        super().__init__(stored, name=name)
        if not stored.all():
            inner = _with_codes(inner, np.where(stored, inner.codes, np.zeros((), inner.codes.dtype)))
        self.inner = inner

    @classmethod
    def of(cls, w: npt.ArrayLike, *, name: str | None = None) -> Self:
        """Store the weights that are not zero, as plain float32; -0.0 becomes 0.0."""
        weights = np.asarray(w, np.float32)
        return cls(weights != 0, Dense(weights), name=name)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Which weights are stored, read-only, in the weight's shape."""
        mask: npt.NDArray[np.bool_] = self.raw
        return mask

    @property
    def codes(self) -> Array:
        """The inner codes, read-only, in the weight's shape; 0 where nothing is stored."""
        return self.inner.codes

    @property
    def stored(self) -> int:
        """Number of weights that are stored."""
        return int(np.count_nonzero(self.mask))

    @property
    def bits(self) -> int:
        return self.inner.bits

    @property
    def label(self) -> str:
        return self.kind if isinstance(self.inner, Dense) else f"{self.kind}+{self.inner.label}"

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        inner = {f"inner.{name}": value for name, value in self.inner.parameters.items()}
        kinds = {"inner": np.array(self.inner.kind), "code_type": np.array(self.codes.dtype.str)}
        return {**kinds, "code_bits": self.bits, **inner}

    @property
    def parameter_bits(self) -> int:
        return self.inner.parameter_bits

    @property
    def packed_bytes(self) -> int:
        return -(-self.size // 8) + -(-self.stored * self.bits // 8) + -(-self.parameter_bits // 8)

    @property
    def bits_per_weight(self) -> float:
        return (self.size + self.stored * self.bits + self.parameter_bits) / self.size if self.size else 0.0

    @property
    def entropy_bits(self) -> float:
        """Entropy of the mask, and for the stored share that of its codes: bits per weight of an order-0 coder."""
        if self.size == 0:
            return 0.0
        stored = self.stored
        of_mask = _entropy(np.array([stored, self.size - stored]))
        return of_mask + stored / self.size * _entropy(np.unique(self.codes[self.mask], return_counts=True)[1])

    def dense(self) -> Floats:
        dense: Floats = np.where(self.mask, self.inner.dense(), np.float32(0))
        return dense

    def packed(self) -> bytes:
        mask = np.packbits(self.mask.reshape(-1), bitorder="little").tobytes()
        return mask + pack_bits(self.codes[self.mask], self.bits)

    @classmethod
    def unpack(cls, packed: bytes, shape: Sequence[int], parameters: Mapping[str, Parameter]) -> Self:
        known: dict[str, Any] = dict(parameters)
        kind, bits = np.dtype(str(known["code_type"])), int(known["code_bits"])
        size = math.prod(shape)
        length = -(-size // 8)
        flags = np.unpackbits(from_bytes(packed[:length], np.uint8, [length]), count=size, bitorder="little")
        mask = flags.astype(np.bool_).reshape(tuple(shape))
        count = [int(np.count_nonzero(mask))]
        codes = np.zeros(mask.shape, kind)
        codes[mask] = (
            from_bytes(packed[length:], kind.newbyteorder("<"), count)
            if bits >= 8
            else unpack_bits(packed[length:], count, bits, kind.kind == "i")
        )
        inner = {name.removeprefix("inner."): value for name, value in known.items() if name.startswith("inner.")}
        of_kind = next(each for each in Encoded.__subclasses__() if each.kind == str(known["inner"]))
        return cls(mask, of_kind.unpack(pack_bits(codes, bits), shape, inner))


def encode(value: onnx_ir.Value, encoded: Encoded) -> None:
    """Make `encoded` the constant of an initializer, under the value's name.

    Raises:
        ValueError: `value` is no initializer, or has another shape.
    """
    if not value.is_initializer() or value.const_value is None:
        raise ValueError(f"{value.name!r} is not an initializer")
    before, after = tuple(value.const_value.shape.numpy()), tuple(encoded.shape.numpy())
    if before != after:
        raise ValueError(f"{value.name!r} has shape {list(before)}, the encoded weight {list(after)}")
    encoded.name = value.name
    value.const_value = encoded


def encoding_of(value: onnx_ir.Value | None) -> Encoded | None:
    """Return the encoding of a constant, or None where it is plain or no constant."""
    found = None if value is None else value.const_value
    return found if isinstance(found, Encoded) else None


def is_encoded(value: onnx_ir.Value | None) -> bool:
    """Whether the value is a constant that carries an encoding."""
    return encoding_of(value) is not None


def _with_codes(encoded: Encoded, codes: Array) -> Encoded:
    """Return the encoding with other codes of the same type and shape, and its parameters."""
    return type(encoded).unpack(pack_bits(codes, encoded.bits), codes.shape, encoded.parameters)


def _extremes(weights: Floats, axis: int | None, block_size: int | None) -> tuple[Floats, Floats]:
    """Return (min, max) over each group of weights that shares a scale."""
    shape = _parameter_shape(weights.shape, axis, block_size)
    if weights.size == 0:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    if axis is None:
        return weights.min(keepdims=False), weights.max(keepdims=False)
    if block_size is None:
        others = tuple(other for other in range(weights.ndim) if other != axis)
        return weights.min(axis=others), weights.max(axis=others)
    starts = np.arange(0, weights.shape[axis], block_size)
    return np.minimum.reduceat(weights, starts, axis), np.maximum.reduceat(weights, starts, axis)


def _parameter_shape(shape: Sequence[int], axis: int | None, block_size: int | None) -> tuple[int, ...]:
    """Return the shape of scale and zero point for codes of `shape`, as ONNX DequantizeLinear has it."""
    if axis is None:
        if block_size is not None:
            raise ValueError("block_size needs an axis")
        return ()
    if block_size is None:
        return (shape[axis],)
    if block_size < 1:
        raise ValueError(f"block_size must be positive, not {block_size}")
    return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])


def _checked_scale(scale: npt.ArrayLike, expected: tuple[int, ...]) -> Floats:
    checked = np.asarray(scale, np.float32)
    if checked.shape != expected:
        raise ValueError(f"scale has shape {list(checked.shape)}, needs {list(expected)}")
    if not np.all((checked > 0) & np.isfinite(checked)):
        raise ValueError("scale must be positive and finite")
    return checked


def _spread(parameter: Array, shape: Sequence[int], axis: int | None, block_size: int | None) -> Array:
    """Return scale or zero point so that it broadcasts against codes of `shape`."""
    if axis is None:
        return parameter
    if block_size is None:
        return parameter.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    blocks = np.repeat(parameter, block_size, axis)  # reaches beyond a short last block
    return blocks.swapaxes(0, axis)[: shape[axis]].swapaxes(0, axis)


def _positive_axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is outside a weight of rank {rank}")
    return axis % rank


def _frozen(array: Array) -> Array:
    """Return a read-only contiguous view; the array itself stays as writable as it was."""
    frozen = np.ascontiguousarray(array).reshape(array.shape).view()
    frozen.flags.writeable = False
    return frozen


def _entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Shannon entropy in bits of a histogram; 0 for an empty one."""
    present = counts[counts > 0].astype(np.float64)
    if present.size < 2:
        return 0.0
    share = present / present.sum()
    return float(-(share * np.log2(share)).sum())
