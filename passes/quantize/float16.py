"""Store weights in half precision: the file shrinks to half, the runtime computes in float32 as before.

    W  =>  float32(float16(W)), as the encoding `Float16`; lowering stores it in float16 behind a Cast

Rounding to nearest keeps 11 bits of each weight: about 73 dB. Runtimes fold the Cast as they load the file, so that
speed and memory stay what they were.

Legal when: the constant is a FLOAT initializer of rank 2 or more and 256 numbers or more, not encoded otherwise, no
output of the model, within float16's range (65504), and the target can store it. Fidelity: lossy; each site records the
signal-to-noise ratio of its weight. Scopes: constants of the main graph, whoever reads them. Needs no data.
Runs after all passes that change weights; a second run finds every weight encoded.
Source: IEEE 754-2019, binary16.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir

from onnxpress.ir import encodings
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.passes.base import Amount, Context, Declined, Fidelity, Options, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.order import BEFORE_ENCODING, LOW_BIT
from onnxpress.passes.selectors import Selection

__all__ = ["Float16"]

_FEWEST = 256  # numbers of a weight that is worth a node


class Float16(Pass):
    """Store weights in float16, which halves the file; the runtime computes in float32 as before."""

    name: ClassVar[str] = "float16"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = SiteOptions
    after: ClassVar[tuple[str, ...]] = (*BEFORE_ENCODING, *LOW_BIT, "quantize-int8")
    options: SiteOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Encode weights of `model` in place.

        Raises:
            UsageError: a selector matches nothing.
        """
        record = Rewrites()
        selection = Selection.from_options(self.options, model, self.name)
        if "float16" not in context.constraints.encodings:
            record.declined.append(
                Declined("model", "model", f"{context.constraints.target} stores no float16 weights")
            )
            return record
        for value in list(model.graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or len(tensor.shape) < 2:
                continue
            readers = [use.node for use in value.uses()]
            kind = readers[0].op_type if readers else "initializer"
            reason = _why_not(value, tensor) or next(filter(None, map(selection.reason, readers)), None)
            if reason is not None:
                record.declined.append(Declined(value.name or "", kind, reason))
                continue
            weights = tensor.numpy()
            encoded = encodings.Float16.quantize(weights, name=value.name)
            value.const_value = encoded
            energy = float(np.square(weights, dtype=np.float64).sum())
            noise = float(np.square(weights - encoded.dense(), dtype=np.float64).sum())
            record.sites.append(
                Site(
                    value.name or "",
                    kind,
                    Amount(tensor.size, size_bytes=tensor.nbytes),
                    Amount(tensor.size, size_bytes=encoded.packed_bytes),
                    {"weight_sqnr_db": sqnr_db(energy, noise)},
                    f"read by {', '.join(node.name or node.op_type for node in readers[:3])}",
                )
            )
        return record


def _why_not(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> str | None:
    if encodings.is_encoded(value):
        return "it is encoded already"
    if tensor.size < _FEWEST:
        return f"it has {tensor.size} numbers, too few to be worth a node"
    if value.is_graph_input():
        return "it is a graph input, which the caller may set"
    if value.is_graph_output():
        return "it is an output of the model"
    if not value.uses():
        return "nothing reads it"
    largest = float(np.abs(tensor.numpy()).max())
    if not largest <= encodings.Float16.largest:
        return f"a magnitude of {largest:g} lies beyond float16's 65504"
    return None
