"""Sparse: only some weights are stored, whatever encodes them; the others are zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxpress.ir.bitpack import from_bytes, pack_bits, unpack_bits
from onnxpress.ir.encodings.affine import Affine
from onnxpress.ir.encodings.base import Array, Encoded, Floats, Parameter, entropy, kind_named
from onnxpress.ir.encodings.floats import Dense
from onnxpress.ir.encodings.sharing import spread

__all__ = ["Sparse"]


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

    def filled(self) -> Encoded:
        """Return what it holds, with the code that means zero where nothing is stored: the same weight, no mask."""
        inner = self.inner
        if not isinstance(inner, Affine) or inner.zero_point is None:
            return inner  # code 0, which stands outside the mask, means zero
        zeros = spread(inner.zero_point, inner.codes.shape, inner.axis, inner.block_size)
        return _with_codes(inner, np.where(self.mask, inner.codes, zeros))

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
        of_mask = entropy(np.array([stored, self.size - stored]))
        return of_mask + stored / self.size * entropy(np.unique(self.codes[self.mask], return_counts=True)[1])

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
            if bits == 8 * kind.itemsize
            else unpack_bits(packed[length:], count, bits, kind.kind == "i")
        )
        inner = {name.removeprefix("inner."): value for name, value in known.items() if name.startswith("inner.")}
        return cls(mask, kind_named(str(known["inner"])).unpack(pack_bits(codes, bits), shape, inner))


def _with_codes(encoded: Encoded, codes: Array) -> Encoded:
    """Return the encoding with other codes of the same type and shape, and its parameters."""
    return type(encoded).unpack(pack_bits(codes, encoded.bits), codes.shape, encoded.parameters)
