"""What an encoded weight is: codes and parameters in place of numbers, and still a tensor to everyone else."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any, ClassVar, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

__all__ = [
    "Array",
    "Encoded",
    "Floats",
    "Parameter",
    "encode",
    "encoding_of",
    "entropy",
    "frozen",
    "is_encoded",
    "kind_named",
]

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]
Parameter: TypeAlias = "Array | int | None"

_KINDS: dict[str, type[Encoded]] = {}


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

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in vars(cls):
            _KINDS[cls.kind] = cls

    def __init__(self, codes: Array, *, name: str | None = None) -> None:
        self.raw: Any = frozen(codes)
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
        return entropy(np.unique(self.codes, return_counts=True)[1])

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


def kind_named(kind: str) -> type[Encoded]:
    """Return the encoding of that `kind`.

    Raises:
        ValueError: there is none.
    """
    if kind not in _KINDS:
        raise ValueError(f"there is no encoding {kind!r}. There are: {', '.join(sorted(_KINDS))}")
    return _KINDS[kind]


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


def frozen(array: Array) -> Array:
    """Return a read-only contiguous view; the array itself stays as writable as it was."""
    frozen = np.ascontiguousarray(array).reshape(array.shape).view()
    frozen.flags.writeable = False
    return frozen


def entropy(counts: npt.NDArray[np.integer[Any]]) -> float:
    """Shannon entropy in bits of a histogram; 0 for an empty one."""
    present = counts[counts > 0].astype(np.float64)
    if present.size < 2:
        return 0.0
    share = present / present.sum()
    return float(-(share * np.log2(share)).sum())
