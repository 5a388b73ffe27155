"""What tells one low-bit encoding from another, for whoever fits and stores it."""

from __future__ import annotations

import abc
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.encodings import Encoded
from onnxpress.ir.linear import Linear
from onnxpress.passes.lowbit.alphabet import Alphabet

__all__ = ["Family"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]


class Family(abc.ABC):
    """An encoding with its options: where fitting begins, and how what was fitted is stored."""

    @property
    @abc.abstractmethod
    def encoding(self) -> str:
        """Its name in a target's list of encodings."""

    def problem(self, layer: Linear) -> str | None:
        """Say why `layer` cannot take it; None where it can."""
        if layer.node.op_type == "ConvTranspose" and layer.groups > 1:
            return "a transposed convolution in groups stores one scale for the same channel of all its groups"
        return None

    @abc.abstractmethod
    def start(self, layer: Linear, rows: _Float64, importance: _Float64) -> Alphabet:
        """Return the alphabet to begin with. rows, importance: [out, K], see `starts`."""

    @abc.abstractmethod
    def encode(self, layer: Linear, codes: _Array, alphabet: Alphabet) -> Encoded:
        """Return the stored weight. codes: in the operator's own layout, int64."""
