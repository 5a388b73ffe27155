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

from onnxpress.ir.analysis.execute import BatchRunner, Session, batch_size_within
from onnxpress.ir.data import DataSource, bind
from onnxpress.ir.encodings import Encoded
from onnxpress.ir.linear import Linear
from onnxpress.ir.opset import default_opset
from onnxpress.ir.quantization import Quantization, integer_parameters

__all__ = ["LayerError", "RoundedLayer", "measure_layer_errors"]

_Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class RoundedLayer:
    """A linear operator as it would be after quantization. signed, symmetric: how its input's integers would be."""

    linear: Linear
    data: Quantization
    weight: Encoded
    signed: bool = False
    symmetric: bool = False


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
    model: onnx_ir.Model,
    layers: Sequence[RoundedLayer],
    data: DataSource,
    *,
    samples: int,
    limit_bytes: int = 4 << 20,
) -> list[LayerError]:
    """Return the error of each layer of `model`, in order. The model is not changed.

    samples: how many calibration samples to run; the cost is about twice the float model's on them.
    limit_bytes: roughly what inner values may take at once; one sample (or the model's fixed batch) runs whatever
        its size.
    """
    if not layers:
        return []
    size = batch_size_within(model, [layer.linear.output.name or "" for layer in layers], limit_bytes)
    probe = model.clone()
    nodes = {node.name: node for node in probe.graph}
    names = [_add_twin(probe, nodes[layer.linear.node.name], layer, index) for index, layer in enumerate(layers)]
    _keep_only(probe.graph, [name for triple in names for name in triple])
    session = Session(probe, optimize=True, fold_quantization=False)
    runner = BatchRunner(probe, session)
    sums = [_Sums() for _ in layers]
    for batch in bind(data, model).batches(size, limit=samples):
        outputs = runner.run(batch)
        for total, triple in zip(sums, names, strict=True):
            total.add(*(outputs[name] for name in triple))
    return [total.result() for total in sums]


class _Sums:
    def __init__(self) -> None:
        self.noise = 0.0
        self.signal = 0.0
        self.means: list[_Array] = []

    def add(self, noise: _Array, signal: _Array, means: _Array) -> None:
        self.noise += float(noise.sum(dtype=np.float64))
        self.signal += float(signal.sum(dtype=np.float64))
        # Samples may be spread over several axes, as in [N, T, C] before a Gemm on [N*T, C].
        self.means.append(means.reshape(-1, means.shape[-1]).astype(np.float64))

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
    """Append the twin of `node`; return the names of its noise [N], signal [N] and mean errors [N, out_channels]."""
    graph, view = model.graph, layer.linear
    prefix = f"onnxpress.layer_error.{index}"
    scale, zero_point = integer_parameters(layer.data, signed=layer.signed, symmetric=layer.symmetric)
    tape = onnx_ir.tape.Tape()
    data = node.inputs[view.node.inputs.index(view.data)]
    parameters = [
        _constant(graph, f"{prefix}.scale", np.asarray(scale, np.float32)),
        _constant(graph, f"{prefix}.zero_point", np.asarray(zero_point, np.int8 if layer.signed else np.uint8)),
    ]
    integers = tape.op("QuantizeLinear", [data, *parameters])
    rounded = tape.op("DequantizeLinear", [integers, *parameters])
    inputs = list(node.inputs)
    inputs[view.node.inputs.index(view.data)] = rounded
    inputs[view.weight_index] = _constant(graph, f"{prefix}.weight", layer.weight.dense())
    twin = tape.op(node.op_type, inputs, attributes=node.attributes)
    error = tape.op("Sub", [node.outputs[0], twin])
    rank = view.output.shape.rank() if view.output.shape is not None else len(view.kernel) + 2
    inner = list(range(1, rank))
    positions = [axis for axis in inner if axis != view.output_axis % rank]
    noise = _reduce(tape, model, "ReduceSumSquare", error, inner)
    signal = _reduce(tape, model, "ReduceSumSquare", node.outputs[0], inner)
    means = _reduce(tape, model, "ReduceMean", error, positions) if positions else tape.op("Identity", [error])
    for value, suffix in ((noise, "noise"), (signal, "signal"), (means, "means")):
        value.name = f"{prefix}.{suffix}"
        value.dtype = onnx_ir.DataType.FLOAT
    graph.insert_after(node, tape.nodes)  # next to its original, so that no output has to wait for the last layer
    return noise.name or "", signal.name or "", means.name or ""


def _reduce(
    tape: onnx_ir.tape.Tape, model: onnx_ir.Model, op: str, value: onnx_ir.Value, axes: list[int]
) -> onnx_ir.Value:
    """Reduce `value` over `axes`, which became an input in opset 18."""
    if default_opset(model) < 18:
        return tape.op(op, [value], attributes={"axes": axes, "keepdims": 0})
    name = f"onnxpress.layer_error.axes.{'.'.join(map(str, axes))}"
    held = model.graph.initializers.get(name) or _constant(model.graph, name, np.asarray(axes, np.int64))
    return tape.op(op, [value, held], attributes={"keepdims": 0})


def _constant(graph: onnx_ir.Graph, name: str, array: _Array) -> onnx_ir.Value:
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _keep_only(graph: onnx_ir.Graph, names: Sequence[str]) -> None:
    wanted: Mapping[str | None, onnx_ir.Value] = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(wanted[name] for name in names)
