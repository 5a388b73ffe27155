"""Lower affine 8-bit weights, and the biases beside them, to integers that runtimes take as they are.

    W of a node whose input is integers   =>   integer initializer -> DequantizeLinear (axis) -> weight input
    W of a node whose input is float      =>   integer initializer -> Cast -> Mul -> weight input
    W in half precision                   =>   float16 initializer -> Cast -> every reader
    B                                     =>   as it is, or int32 -> DequantizeLinear at scale x*w, as the scheme asks
    everything else                       =>   dense, and said so

onnxruntime fuses a Gemm only where its weight has an explicit zero point, and one that writes float only where its bias
is int32 as well; a Conv it fuses without either. Both were seen on the optimized graph of version 1.31.

The weight-only form is Cast and Mul because onnxruntime folds those once at load; a DequantizeLinear before a Conv
it would run each time, and lose its blocked layout besides.

Integer convolution kernels on x86 read input channels four at a time. A first layer of three falls back to a
path half as fast, and is therefore padded with channels of zeros (`input_channel_multiple`): a copy of integers, and
weights of zero, so that the sum is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import Affine, Float16, Sparse, encoding_of
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.report import LoweringReport

__all__ = ["Integers", "is_quantized", "lower_weights"]

_Array = npt.NDArray[Any]
_INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Integers:
    """The integers behind a dequantized value, and what they stand for."""

    value: onnx_ir.Value
    scale: float
    zero_point: int


def lower_weights(
    emit: Emitter,
    scheme: QuantizationScheme,
    integers: Mapping[onnx_ir.Value, Integers],
    report: LoweringReport,
) -> None:
    """Replace the encoded weights of the main graph. integers: what the node inputs that come from integers are."""
    weights = _Weights(emit, scheme, integers, report)
    for node in list(emit.graph):
        view = as_linear(node)
        if isinstance(view, Linear):
            weights.lower(view)
    _lower_half(emit, report)
    sparse: list[Sparse] = []
    for value in emit.graph.initializers.values():
        encoded = encoding_of(value)
        if encoded is not None:
            value.const_value = onnx_ir.tensor(encoded.dense(), name=value.name)
            report.forms[f"{encoded.label} -> dense"] += 1
            if isinstance(encoded, Sparse):
                sparse.append(encoded)
            else:
                report.notes.append(f"{value.name!r} ({encoded.label}) is stored dense: no smaller form is legal here")
    if sparse:
        report.notes.append(_say_dense(sparse))


def _lower_half(emit: Emitter, report: LoweringReport) -> None:
    """Store float16 weights as they are, with a Cast at the front of the graph that runtimes fold as they load."""
    casts = []
    for value in list(emit.graph.initializers.values()):
        encoded = encoding_of(value)
        if not isinstance(encoded, Float16):
            continue
        stored = emit.constant(f"{value.name}_half", encoded.codes)
        real = emit.value(f"{value.name}_dense", onnx_ir.DataType.FLOAT, encoded.codes.shape)
        casts.append(emit.node("Cast", [stored], real, {"to": onnx_ir.DataType.FLOAT.value}))
        for node, index in [(use.node, use.idx) for use in value.uses()]:
            emit.swap(node, index, real)
        report.forms[f"{encoded.label} -> Cast"] += 1
    if casts:
        first = next(iter(emit.graph))
        emit.graph.insert_before(first, casts)


def _say_dense(sparse: Sequence[Sparse]) -> str:
    """Say what zeros do not win here; once for all weights, as there is nothing to tell apart."""
    size, stored = sum(each.size for each in sparse), sum(each.stored for each in sparse)
    tensors = f"{len(sparse)} pruned weight tensors are" if len(sparse) > 1 else "1 pruned weight tensor is"
    return (
        f"{tensors} stored dense, {size - stored:,} zeros among {size:,} numbers: this runtime stores and multiplies "
        "zeros like other numbers, so they change neither the size of the file nor its speed"
    )


class _Weights:
    def __init__(
        self,
        emit: Emitter,
        scheme: QuantizationScheme,
        integers: Mapping[onnx_ir.Value, Integers],
        report: LoweringReport,
    ) -> None:
        self.emit = emit
        self.scheme = scheme
        self.integers = integers
        self.report = report
        self.done: dict[tuple[onnx_ir.Value, bool], onnx_ir.Value] = {}  # shared weights are lowered once a form

    def lower(self, view: Linear) -> None:
        encoded = encoding_of(view.weight_value)
        if not isinstance(encoded, Affine) or encoded.bits != 8 or encoded.block_size is not None:
            return
        data = self.integers.get(view.data)
        weight = view.weight_value
        if data is not None:
            self._lower_bias(view, encoded, data)
            encoded = self._pad_channels(view, encoded, data)
        key = (weight, data is not None)
        if key not in self.done:
            store = self._cast if data is None else self._dequantize
            self.done[key] = store(str(weight.name), encoded, view.node)
        self.emit.swap(view.node, view.weight_index, self.done[key])

    def _dequantize(self, name: str, encoded: Affine, before: onnx_ir.Node) -> onnx_ir.Value:
        self.report.forms[f"{encoded.label} -> DequantizeLinear"] += 1
        zero_point = encoded.zero_point
        if zero_point is None and before.op_type == "Gemm":
            zero_point = np.zeros(encoded.scale.shape, encoded.codes.dtype)
        return self._dequantized(name, encoded.codes, encoded.scale, zero_point, encoded.axis, before)

    def _dequantized(
        self,
        name: str,
        codes: _Array,
        scale: _Array,
        zero_point: _Array | None,
        axis: int | None,
        before: onnx_ir.Node,
    ) -> onnx_ir.Value:
        inputs = [self.emit.constant(f"{name}_q", codes), self.emit.constant(f"{name}_scale", scale)]
        if zero_point is not None:
            inputs.append(self.emit.constant(f"{name}_zero_point", zero_point))
        real = self.emit.value(f"{name}_dq", onnx_ir.DataType.FLOAT, codes.shape)
        attributes = {} if axis is None else {"axis": axis}
        before.graph.insert_before(before, [self.emit.node("DequantizeLinear", inputs, real, attributes)])  # type: ignore[union-attr]
        return real

    def _cast(self, name: str, encoded: Affine, before: onnx_ir.Node) -> onnx_ir.Value:
        self.report.forms[f"{encoded.label} -> Cast, Mul"] += 1
        shape = [1] * len(encoded.codes.shape)
        if encoded.axis is not None:
            shape[encoded.axis] = -1
        codes = encoded.codes if encoded.zero_point is None else encoded.codes.astype(np.int16)
        if encoded.zero_point is not None:
            codes = codes - encoded.zero_point.astype(np.int16).reshape(shape)
        integers = self.emit.constant(f"{name}_q", codes)
        scale = self.emit.constant(f"{name}_scale", encoded.scale.reshape(shape))
        cast = self.emit.value(f"{name}_cast", onnx_ir.DataType.FLOAT, codes.shape)
        real = self.emit.value(f"{name}_dense", onnx_ir.DataType.FLOAT, codes.shape)
        nodes = [
            self.emit.node("Cast", [integers], cast, {"to": onnx_ir.DataType.FLOAT.value}),
            self.emit.node("Mul", [cast, scale], real),
        ]
        before.graph.insert_before(before, nodes)  # type: ignore[union-attr]
        return real

    def _pad_channels(self, view: Linear, encoded: Affine, data: Integers) -> Affine:
        """Pad integers and weight of a Conv to the multiple of input channels that its kernel wants."""
        missing = -view.in_channels % self.scheme.input_channel_multiple
        if view.node.op_type != "Conv" or view.groups != 1 or missing == 0 or math.prod(view.kernel) == 1:
            return encoded
        if missing >= view.in_channels:
            return encoded  # one channel to four wins back no more than it costs (measured on lenet5)
        node, graph = view.node, self.emit.graph
        rank = len(view.kernel) + 2
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + 1] = missing
        name = f"{data.value.name}_padded"
        shape = list(data.value.shape) if data.value.shape is not None else None
        if shape is not None:
            shape[1] = view.in_channels + missing
        producer = view.data.producer()
        assert producer is not None and producer.op_type == "DequantizeLinear", "integers are read through a DQ"
        padded = self.emit.value(name, data.value.dtype or onnx_ir.DataType.UINT8, shape)
        real = self.emit.value(f"{name}_dq", onnx_ir.DataType.FLOAT, shape)
        widths = self.emit.constant(f"{name}_widths", pads)
        nodes = [
            self.emit.node("Pad", [data.value, widths, producer.inputs[2]], padded, {"mode": "constant"}),
            self.emit.node("DequantizeLinear", [padded, *producer.inputs[1:]], real),
        ]
        graph.insert_before(node, nodes)
        node.replace_input_with(node.inputs.index(view.data), real)
        self.report.notes.append(
            f"{node.name!r}: {view.in_channels} input channels padded to {view.in_channels + missing} with zeros, "
            "which the integer kernel runs faster"
        )
        codes = np.pad(encoded.codes, [(0, 0), (0, missing), *[(0, 0)] * len(view.kernel)])
        return Affine(codes, encoded.scale, encoded.zero_point, bits=encoded.bits, axis=encoded.axis)

    def _lower_bias(self, view: Linear, encoded: Affine, data: Integers) -> None:
        bias = view.bias()
        writes_float = view.node.op_type == "Gemm" and not is_quantized(view.output)
        if bias is None or not (self.scheme.bias == "int32" or writes_float):
            return
        # Kernels add the bias to the sum of products, so it must have exactly their scale.
        per_channel = np.resize(encoded.scale, bias.shape)  # [1] or [M/groups] repeats over the groups
        scale = np.float32(data.scale) * per_channel
        codes = np.rint(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0.0) > _INT32_MAX:
            self.report.notes.append(
                f"{view.node.name!r}: its bias overflows int32 at scale x*w and is stored in float"
            )
            return
        name = str(view.bias_value.name) if view.bias_value is not None else f"{view.node.name}_bias"
        zero_point = np.zeros(scale.shape, np.int32) if view.node.op_type == "Gemm" else None
        real = self._dequantized(name, codes.astype(np.int32), scale, zero_point, 0, view.node)
        self.emit.swap(view.node, 2, real)
        self.report.forms["bias -> int32 DequantizeLinear"] += 1


def is_quantized(value: onnx_ir.Value) -> bool:
    """Whether `value`, or the activation that alone reads it, goes into a QuantizeLinear."""
    readers = list(value.consumers())
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = list(readers[0].outputs[0].consumers())
    return any(reader.op_type == "QuantizeLinear" for reader in readers)
