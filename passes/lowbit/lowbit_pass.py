"""The frame of the passes to low-bit weights: which layers, which encoding for each, and the fitting."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir

from onnxpress.passes.base import Context, Declined, Fidelity, Pass, Rewrites
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.mixed import choose_widths
from onnxpress.passes.lowbit.options import LowBitOptions, WidthOptions
from onnxpress.passes.lowbit.sites import encode_layers, find_layers
from onnxpress.passes.order import BEFORE_ENCODING

__all__ = ["LowBitPass"]


class LowBitPass(Pass):
    """Encodes the weights of all layers, sensitive ones at 8 bits. Subclasses say in which encoding."""

    fidelity: ClassVar[Fidelity] = "lossy"
    after: ClassVar[tuple[str, ...]] = BEFORE_ENCODING
    options: LowBitOptions

    @abc.abstractmethod
    def families(self) -> Sequence[Family]:
        """Return the encoding of layers that are not sensitive; several widths, the widest first, for a byte budget."""

    @property
    def needs_data(self) -> bool:
        """With method=gptq."""
        return self.options.method == "gptq"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Encode weights of `model` in place.

        Raises:
            UsageError: method=gptq without calibration data, or a selector that matches nothing.
            BudgetError: the bytes asked for cannot be reached.
        """
        if self.needs_data:
            context.require_data(self.name)
        families = [each for each in self.families() if each.encoding in context.constraints.encodings]
        if not families:
            missing = " or ".join(dict.fromkeys(each.encoding for each in self.families()))
            return Rewrites(
                declined=[Declined("model", "model", f"{context.constraints.target} stores no {missing} weights")]
            )
        chosen, declined = find_layers(model, self.options, context, self.name, families[0])
        if isinstance(self.options, WidthOptions) and self.options.bytes is not None:
            chosen = choose_widths(model, chosen, families, self.options.bytes, self.options, context, self.name)
        record = encode_layers(model, chosen, self.options, context, self.name)
        record.declined += declined
        return record
