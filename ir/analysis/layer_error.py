"""What quantizing one layer alone does to that layer's output, measured for many layers in one run.

The float model is extended, for each linear operator, by a twin that reads the rounded input and uses the
rounded weight:

    x -> QuantizeLinear -> DequantizeLinear -> op(rounded weight, same bias) -> y'        error = y - y'

so every error is local: inputs are those of the float model. From the error come the signal-to-noise ratio and
the mean shift per output channel, which is what bias correction removes (Nagel et al. 2019, section 4.2,
"empirical bias correction", https://arxiv.org/abs/1906.04721).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import Session, batch_size_within
from onnxpress.ir.data import DataSource
from onnxpress.ir.encodings import Encoded
from onnxpress.ir.linear import Linear
from onnxpress.ir.opset import default_opset
from onnxpress.ir.quantization import Quantization, integer_parameters
from onnxpress.ir.shapes import batch_dimension

__all__ = ["LayerError", "RoundedLayer", "measure_layer_errors"]

_Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class RoundedLayer:
    """A linear operator as it would be after quantization."""

    linear: Linear
    data: Quantization
    weight: Encoded


@dataclasses.dataclass(frozen=True)
class LayerError:
    """sqnr_db: output signal-to-noise ratio in dB, inf where nothing changed.

    shift: [out_channels] float64, mean of (float output - rounded output) over samples and positions.
    shift_variance: [out_channels] float64, variance of that mean as an estimate from the samples seen.
    """

    sqnr_db: float
    shift: npt.NDArray[np.float64]
    shift_variance: npt.NDArray[np.float64]

    def significant_shift(self) -> npt.NDArray[np.float64]:
        """[out_channels]: the shift shrunk towards zero by what chance explains of it (James-Stein, positive part)."""
        square = np.square(self.shift)
        share = np.divide(self.shift_variance, square, out=np.ones_like(square), where=square > 0)
        result: npt.NDArray[np.float64] = self.shift * np.maximum(0.0, 1.0 - share)
        return result


def measure_layer_errors(
    model: onnx_ir.Model, layers: Sequence[RoundedLayer], data: DataSource, *, samples: int, limit_bytes: int = 4 << 20
) -> list[LayerError]:
    """Return the error of each layer of `model`, in order. The model is not changed.

    samples: how many calibration samples to run; the cost is about twice the float model's on them.
    limit_bytes: roughly what inner values may take at once; one sample (or the model's fixed batch) runs whatever
        its size. A fixed batch that the samples do not fill is left out.
    """
    if not layers:
        return []
    fixed = batch_dimension(model)
    batch_size = fixed or batch_size_within(model, [layer.linear.output.name or "" for layer in layers], limit_bytes)
    probe = model.clone()
    nodes = {node.name: node for node in probe.graph}
    names = [_add_twin(probe, nodes[layer.linear.node.name], layer, index) for index, layer in enumerate(layers)]
    _keep_only(probe.graph, [name for triple in names for name in triple])
    session = Session(probe, optimize=True, fold_quantization=False)
    sums = [_Sums() for _ in layers]
    for batch in data.batches(batch_size, limit=max(samples, batch_size)):
        if fixed is not None and batch.size != fixed:
            continue
        outputs = session.run(batch.feeds)
        for total, triple in zip(sums, names, strict=True):
            total.add(*(outputs[name] for name in triple))
    return [total.result() for total in sums]


class _Sums:
    def __init__(self) -> None:
        self.noise = 0.0
        self.signal = 0.0
        self.means: list[_Array] = []

    def add(self, noise: _Array, signal: _Array, means: _Array) -> None:
        self.noise += float(noise)
        self.signal += float(signal)
        self.means.append(means.astype(np.float64))

    def result(self) -> LayerError:
        means = np.concatenate(self.means)  # [samples, out_channels]
        count = len(means)
        variance = means.var(axis=0, ddof=1) / count if count > 1 else np.full(means.shape[1], np.inf)
        return LayerError(_decibels(self.signal, self.noise), means.mean(axis=0), variance)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def _add_twin(model: onnx_ir.Model, node: onnx_ir.Node, layer: RoundedLayer, index: int) -> tuple[str, str, str]:
    """Append the twin of `node` and three reductions; return the names of noise, signal and mean per channel."""
    graph, view = model.graph, layer.linear
    prefix = f"onnxpress.layer_error.{index}"
    scale, zero_point = integer_parameters(layer.data, signed=False, symmetric=False)
    tape = onnx_ir.tape.Tape()
    data = node.inputs[view.node.inputs.index(view.data)]
    parameters = [
        _constant(graph, f"{prefix}.scale", np.asarray(scale, np.float32)),
        _constant(graph, f"{prefix}.zero_point", np.asarray(zero_point, np.uint8)),
    ]
    integers = tape.op("QuantizeLinear", [data, *parameters])
    rounded = tape.op("DequantizeLinear", [integers, *parameters])
    inputs = list(node.inputs)
    inputs[view.node.inputs.index(view.data)] = rounded
    inputs[view.weight_index] = _constant(graph, f"{prefix}.weight", layer.weight.dense())
    twin = tape.op(node.op_type, inputs, attributes=node.attributes)
    error = tape.op("Sub", [node.outputs[0], twin])
    noise = tape.op("ReduceSumSquare", [error], attributes={"keepdims": 0})
    signal = tape.op("ReduceSumSquare", [node.outputs[0]], attributes={"keepdims": 0})
    means = _channel_means(tape, model, error, view, prefix)
    for value, suffix in ((noise, "noise"), (signal, "signal"), (means, "means")):
        value.name = f"{prefix}.{suffix}"
        value.dtype = onnx_ir.DataType.FLOAT
    graph.insert_after(node, tape.nodes)  # next to its original, so that no output has to wait for the last layer
    return noise.name or "", signal.name or "", means.name or ""


def _channel_means(tape: Any, model: onnx_ir.Model, error: onnx_ir.Value, view: Linear, prefix: str) -> onnx_ir.Value:
    """Mean of `error` over everything but sample and channel: [N, out_channels]."""
    rank = view.output.shape.rank() if view.output.shape is not None else len(view.kernel) + 2
    channel = view.output_axis % rank
    axes = [axis for axis in range(1, rank) if axis != channel]
    if not axes:
        return tape.op("Identity", [error])  # type: ignore[no-any-return]
    if default_opset(model) >= 18:
        positions = _constant(model.graph, f"{prefix}.axes", np.asarray(axes, np.int64))
        return tape.op("ReduceMean", [error, positions], attributes={"keepdims": 0})  # type: ignore[no-any-return]
    return tape.op("ReduceMean", [error], attributes={"axes": axes, "keepdims": 0})  # type: ignore[no-any-return]


def _constant(graph: onnx_ir.Graph, name: str, array: _Array) -> onnx_ir.Value:
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _keep_only(graph: onnx_ir.Graph, names: Sequence[str]) -> None:
    wanted: Mapping[str | None, onnx_ir.Value] = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(wanted[name] for name in names)
