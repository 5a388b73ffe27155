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
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir import encodings
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import ProgressLike, stream
from onnxpress.ir.data import DataSource
from onnxpress.ir.magnitudes import note_magnitude
from onnxpress.passes.base import Context, Declined, Fidelity, Options, Pass, Rewrites, SiteOptions
from onnxpress.passes.constant_sites import encode_constants
from onnxpress.passes.order import BEFORE_ENCODING, LOW_BIT
from onnxpress.passes.selectors import Selection

__all__ = ["Float16"]

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
        selection = Selection.from_options(self.options, model, self.name)
        if "float16" not in context.constraints.encodings:
            return Rewrites(
                declined=[Declined("model", "model", f"{context.constraints.target} stores no float16 weights")]
            )
        record = encode_constants(model, selection, _in_half, _error)
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


def _in_half(
    value: onnx_ir.Value, weights: npt.NDArray[np.float32], readers: Sequence[onnx_ir.Node]
) -> encodings.Encoded | str:
    """Return a weight in half precision, a pruned one with its mask; or why it cannot be."""
    largest = float(np.abs(weights).max())
    if not largest <= encodings.Float16.largest:
        return f"a magnitude of {largest:g} lies beyond float16's 65504"
    half: encodings.Encoded = encodings.Float16.quantize(weights)
    kept = _error(weights, half)["weight_sqnr_db"]
    if kept < _LEAST_SQNR_DB:
        return f"float16 would keep {kept:.1f} dB of it: most of its magnitudes lie below 6e-5, where precision ends"
    pruned = value.const_value
    return encodings.Sparse(pruned.mask, half) if isinstance(pruned, encodings.Sparse) else half


def _error(weights: npt.NDArray[np.float32], encoded: encodings.Encoded) -> dict[str, float]:
    return {"weight_sqnr_db": sqnr_db(_energy(weights), _energy(weights - encoded.dense()))}


def _energy(array: npt.NDArray[np.float32]) -> float:
    return float(np.square(array, dtype=np.float64).sum())
