"""Store weights in half precision: the file shrinks to half, and most runtimes compute in float32 as before.

    W  =>  float32(float16(W)), as the encoding `Float16`; lowering stores it in float16 behind a Cast

Rounding to nearest keeps 11 bits of each weight: about 73 dB. A pruned weight keeps its zeros. Runtimes fold the Cast
as they load the file, so that speed and memory stay what they were. A target whose constraints say so computes in
float16 between them: then, where there is data, the largest magnitude of every value is measured and noted
(`ir.magnitudes`), for the lowering leaves in float32 what would overflow.

Legal when: the constant is a FLOAT initializer of rank 2 or more and 256 numbers or more, not encoded otherwise, no
output of the model, within float16's range (65504) and precision (50 dB), and the target can store it. Fidelity: lossy;
each site records the signal-to-noise ratio of its weight. Scopes: constants of the main graph, whoever reads them.
Needs no data, and uses it only for that.
Runs after all passes that change weights; a second run finds every weight encoded.
Source: IEEE 754-2019, binary16.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir import encodings
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import ProgressLike, stream
from onnxpress.ir.data import DataSource
from onnxpress.ir.magnitudes import note_magnitude
from onnxpress.passes.base import Amount, Context, Declined, Fidelity, Options, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.order import BEFORE_ENCODING, LOW_BIT
from onnxpress.passes.selectors import Selection

__all__ = ["Float16"]

_FEWEST = 256  # numbers of a weight that is worth a node
_SAMPLES = 128  # that magnitudes are measured on
_LEAST_SQNR_DB = 50.0  # 73 is usual; numbers below float16's normal range have less precision, or none


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
            encoded = _in_half(tensor, weights)
            encoded.name = value.name
            value.const_value = encoded
            record.sites.append(
                Site(
                    value.name or "",
                    kind,
                    Amount(tensor.size, size_bytes=tensor.nbytes),
                    Amount(tensor.size, size_bytes=encoded.packed_bytes),
                    {"weight_sqnr_db": sqnr_db(_energy(weights), _energy(weights - encoded.dense()))},
                    f"read by {', '.join(node.name or node.op_type for node in readers[:3])}",
                )
            )
        if record.sites and context.constraints.float16_activations and context.data is not None:
            _note_magnitudes(model, context.data, context.progress)
        return record


def _note_magnitudes(model: onnx_ir.Model, data: DataSource, progress: ProgressLike | None) -> None:
    """Note the largest magnitude of every float32 value of the main graph; inf where a number is not finite."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    by_name = {
        value.name: value
        for value in values
        if value.name and value.dtype == onnx_ir.DataType.FLOAT and value.const_value is None
    }
    largest = dict.fromkeys(by_name, 0.0)
    for batch in stream(model, data, list(by_name), samples=_SAMPLES, progress=progress, label="measuring magnitudes"):
        for name, array in batch.items():
            found = float(np.abs(array).max(initial=0.0))
            largest[name] = max(largest[name], found if math.isfinite(found) else math.inf)
    for name, value in by_name.items():
        note_magnitude(value, largest[name])


def _why_not(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> str | None:
    if encodings.is_encoded(value) and not _is_pruned(tensor):
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
    weights = tensor.numpy()
    ratio = sqnr_db(_energy(weights), _energy(weights - _in_half(tensor, weights).dense()))
    if ratio < _LEAST_SQNR_DB:
        return f"float16 would keep {ratio:.1f} dB of it: most of its magnitudes lie below 6e-5, where precision ends"
    return None


def _is_pruned(tensor: onnx_ir.TensorProtocol) -> bool:
    return isinstance(tensor, encodings.Sparse) and isinstance(tensor.inner, encodings.Dense)


def _in_half(tensor: onnx_ir.TensorProtocol, weights: npt.NDArray[np.float32]) -> encodings.Encoded:
    """Return the weight in half precision; a pruned one keeps its mask."""
    half = encodings.Float16.quantize(weights)
    return encodings.Sparse(tensor.mask, half) if isinstance(tensor, encodings.Sparse) else half


def _energy(array: npt.NDArray[np.float32]) -> float:
    return float(np.square(array, dtype=np.float64).sum())
