"""The frame of the passes that give each layer the same low-bit encoding."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir

from onnxpress.passes.base import Context, Fidelity, Pass, Rewrites
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.options import LowBitOptions
from onnxpress.passes.lowbit.sites import Chosen, encode_layers, find_layers
from onnxpress.passes.order import BEFORE_ENCODING

__all__ = ["LowBitPass"]


class LowBitPass(Pass):
    """Encodes the weights of all layers in one family, sensitive ones at 8 bits. Subclasses say which family."""

    fidelity: ClassVar[Fidelity] = "lossy"
    after: ClassVar[tuple[str, ...]] = BEFORE_ENCODING
    options: LowBitOptions

    @abc.abstractmethod
    def family(self) -> Family:
        """Return the encoding of the layers that are not sensitive."""

    def choose(self, model: onnx_ir.Model, chosen: Sequence[Chosen], context: Context) -> Sequence[Chosen]:
        """Return the layers with the encodings that they get; here each keeps its own."""
        return chosen

    @property
    def needs_data(self) -> bool:
        """With method=gptq."""
        return self.options.method == "gptq"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Encode weights of `model` in place.

        Raises:
            UsageError: method=gptq without calibration data, or a selector that matches nothing.
        """
        if self.needs_data:
            context.require_data(self.name)
        chosen, declined = find_layers(model, self.options, context, self.name, self.family())
        record = encode_layers(model, self.choose(model, chosen, context), self.options, context, self.name)
        record.declined += declined
        return record
