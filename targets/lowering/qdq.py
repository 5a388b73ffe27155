"""Lower quantization notes and encoded weights to QuantizeLinear / DequantizeLinear pairs that runtimes fuse.

    X noted [low, high]       =>   X -> Q -> X_q -> DQ -> X_dq, and every reader of X reads X_dq
    moves of noted values     =>   the same operator on the integers, and a DQ behind it; where the target asks, a pair
                                   (a Pad moves where it fills with zero, which the zero point stands for)
    Add(Conv(...), R) noted   =>   see `residuals`, where the target asks
    padding of noted values   =>   see `padding`, where the target asks
    W encoded                 =>   see `qdq_weights`

Forms that onnxruntime would leave unfused are never emitted (each was seen on its optimized graph): scales and
zero points of activations are true scalars, and the range of a Relu's output starts at the lowest integer.

A note of other than 8 bits is declined: its value stays float, and the report says so.

The result computes the noted model's function up to the float rounding of the rescaling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import onnx_ir

from onnxpress.ir.encodings import Float8, Sparse, encoding_of, is_encoded
from onnxpress.ir.errors import InputError
from onnxpress.ir.linear import ONNX_DOMAINS, constant_numbers
from onnxpress.ir.opset import default_opset, require_opset
from onnxpress.ir.quantization import Quantization, clear, integer_parameters, quantization_of
from onnxpress.passes.constraints import IntegerScheme, QuantizationScheme
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.int4 import takes_int4
from onnxpress.targets.lowering.padding import write_padding_out
from onnxpress.targets.lowering.qdq_weights import Integers, is_quantized, lower_weights
from onnxpress.targets.lowering.reals import FLOAT8_OPSET, INT4_OPSET
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.lowering.residuals import leave_accumulators
from onnxpress.targets.schema import ONNXRUNTIME_STORAGE, Storage

__all__ = ["lower_qdq"]

_QUANTIZED_BY_RUNTIME = frozenset({"Conv", "ConvTranspose", "Gemm"})
_BITS = 8  # of activations: the width of the types that QuantizeLinear is given here
_QDQ_OPSET = 13  # DequantizeLinear takes an axis; Pad, Slice, MaxPool and friends take 8-bit integers

# Operators that move or compare values without computing new ones: they do the same to integers.
_MOVES = frozenset({"Concat", "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


def lower_qdq(
    model: onnx_ir.Model, scheme: QuantizationScheme, storage: Storage | None = None, *, max_opset: int = _QDQ_OPSET
) -> LoweringReport:
    """Replace every note and every encoded weight of `model` by operators of its runtime, in place.

    Notes are read in the main graph only, weights in bodies of If, Loop and Scan too. storage: what decides the form of
    a weight; by default that of onnxruntime. max_opset: the model may be raised to this, for forms that need it.
    """
    storage = storage or ONNXRUNTIME_STORAGE
    report = LoweringReport()
    _decline_other_widths(model.graph, report)
    if not _has_work(model.graph):
        return report
    require_opset(model, _QDQ_OPSET, reason="QuantizeLinear stores a scale per channel from there on")
    _raise_opset(model, storage, max_opset)
    emit = Emitter(model.graph)
    if storage.adds_in_accumulator:
        leave_accumulators(model.graph, report)
    integers = _Values(emit, scheme.activation, report, moves=storage.integer_moves).lower()
    lower_weights(emit, scheme, integers, report, storage=storage, opset=default_opset(model))
    if not storage.exact_padding:
        write_padding_out(emit, integers, report)
    if storage.rounds_float_weights:
        _guard_float_weights(emit, scheme.activation, integers, report)
    _drop_unread(model.graph, integers)
    return report


def _decline_other_widths(graph: onnx_ir.Graph, report: LoweringReport) -> None:
    """Take the notes away that the integers of this lowering cannot stand for."""
    for value in _computed(graph):
        noted = quantization_of(value)
        if noted is not None and noted.bits != _BITS:
            clear(value)
            report.notes.append(f"{value.name!r} is noted with {noted.bits} bits, not {_BITS}: stays float")


def _has_work(graph: onnx_ir.Graph) -> bool:
    return any(map(quantization_of, _computed(graph))) or any(map(is_encoded, _constants(graph)))


def _computed(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """Return the inputs of a graph and the outputs of its nodes."""
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _constants(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """Return the initializers of a graph and of the bodies in it."""
    return [value for each in (graph, *graph.subgraphs()) for value in each.initializers.values()]


def _raise_opset(model: onnx_ir.Model, storage: Storage, max_opset: int) -> None:
    """Raise the opset where the form of a weight needs it and the target allows it; a model that cannot rise stays."""
    constants = [(value, encoding_of(value)) for value in _constants(model.graph)]
    encodings = [each.inner if isinstance(each, Sparse) else each for _, each in constants]
    needs = {FLOAT8_OPSET} if any(isinstance(each, Float8) for each in encodings) else set()
    if any(takes_int4(value, each, storage) for value, each in constants):
        needs.add(INT4_OPSET)
    for version in sorted(version for version in needs if version <= max_opset):
        with contextlib.suppress(InputError):
            require_opset(model, version, reason="the form of a weight")


def _guard_float_weights(
    emit: Emitter, scheme: IntegerScheme, integers: Mapping[onnx_ir.Value, Integers], report: LoweringReport
) -> None:
    """Keep a layer that was left in float between integers from being quantized after all.

    onnxruntime gives the float weight of DQ -> Conv -> Q one scale for the whole tensor, silently (its
    WeightBiasQuantization; seen on the optimized graph). A Clip to the range that the integers can stand for
    changes no value and stops it.
    """
    lowest, highest = (-128, 127) if scheme.signed else (0, 255)
    for node in list(emit.graph):
        data = integers.get(node.inputs[0]) if node.op_type in _QUANTIZED_BY_RUNTIME and node.inputs[0] else None
        if data is None or _is_dequantized(node.inputs[1]) or not is_quantized(node.outputs[0]):
            continue
        name = f"{data.value.name}_in_range"
        ends = [
            emit.constant(f"{name}_{end}", np.asarray(np.float32(data.scale) * (integer - data.zero_point), np.float32))
            for end, integer in (("low", lowest), ("high", highest))
        ]
        real = node.inputs[0]
        clipped = emit.value(name, onnx_ir.DataType.FLOAT, real.shape if real is not None else None)
        emit.graph.insert_before(node, emit.node("Clip", [real, *ends], clipped))
        node.replace_input_with(0, clipped)
        report.notes.append(
            f"{node.name!r} stays in float: a Clip that changes nothing keeps the runtime from rounding it"
        )


def _is_dequantized(value: onnx_ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _drop_unread(graph: onnx_ir.Graph, integers: Mapping[onnx_ir.Value, Integers]) -> None:
    """Remove the DequantizeLinear nodes whose readers all took the integers instead."""
    for real in integers:
        node = real.producer()
        if node is not None and not real.uses() and not real.is_graph_output():
            graph.remove(node, safe=True)


class _Values:
    """Gives noted values their integers, in graph order, so that a move finds its operands' integers ready."""

    def __init__(self, emit: Emitter, scheme: IntegerScheme, report: LoweringReport, *, moves: bool = True) -> None:
        """moves: operators that move values do so to integers; otherwise between Dequantize and Quantize."""
        self.emit = emit
        self.moves = moves
        self.graph = emit.graph
        self.scheme = scheme
        self.dtype = onnx_ir.DataType.INT8 if scheme.signed else onnx_ir.DataType.UINT8
        self.report = report
        self.integers: dict[onnx_ir.Value, Integers] = {}

    def lower(self) -> dict[onnx_ir.Value, Integers]:
        """Return, for each float value that now comes from integers, those integers."""
        nodes = list(self.graph)
        for value in self.graph.inputs:
            self._insert_pair(value, None)
        for node in nodes:
            if self._is_move(node):
                self._move_integers(node)
                continue
            for value in node.outputs:
                self._insert_pair(value, node)
        return self.integers

    def _insert_pair(self, value: onnx_ir.Value, producer: onnx_ir.Node | None) -> None:
        noted = quantization_of(value)
        if noted is None:
            return
        integers = self.emit.value(f"{value.name}_q", self.dtype, value.shape)
        dequantize = self._dequantize(value, integers, noted)
        quantize = self.emit.node("QuantizeLinear", [value, *dequantize.inputs[1:]], integers)
        if producer is not None:
            self.graph.insert_after(producer, [quantize, dequantize])
        else:
            self.graph.insert_before(self.graph[0], [quantize, dequantize])
        self.report.forms["value -> QuantizeLinear, DequantizeLinear"] += 1

    def _is_move(self, node: onnx_ir.Node) -> bool:
        """Whether `node` moves integers that already have the scale which its result is noted with."""
        if not self.moves or node.op_type not in _MOVES or node.domain not in ONNX_DOMAINS or len(node.outputs) != 1:
            return False
        noted = quantization_of(node.outputs[0])
        operands = _operands(node)
        if noted is None or not all(value in self.integers for value in operands) or not _pads_with_zero(node):
            return False
        scale, zero_point = self._numbers(noted)
        return all(
            self.integers[value].scale == scale and self.integers[value].zero_point == zero_point for value in operands
        )

    def _move_integers(self, node: onnx_ir.Node) -> None:
        value = node.outputs[0]
        noted = quantization_of(value)
        assert noted is not None, "a move is recognised by the note on its result"
        for index, operand in enumerate(node.inputs):
            if operand in self.integers:
                node.replace_input_with(index, self.integers[operand].value)
        name = str(value.name)
        dequantize = self._dequantize(value, value, noted)
        if _fills(node) or (node.op_type == "Pad" and _input(node, 2) is not None):  # unread, but of the data's type
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, dequantize.inputs[2])  # real zero is the zero point
        self.graph.insert_after(node, dequantize)
        value.name, value.type = self.emit.fresh(f"{name}_q"), onnx_ir.TensorType(self.dtype)
        self.report.forms[f"{node.op_type} -> {node.op_type} on integers"] += 1

    def _dequantize(self, value: onnx_ir.Value, integers: onnx_ir.Value, noted: Quantization) -> onnx_ir.Node:
        """Return a DequantizeLinear of `integers`, not yet placed, whose result every reader of `value` now reads."""
        scale, zero_point = self._numbers(noted)
        parameters = [
            self.emit.constant(f"{value.name}_scale", np.asarray(scale, np.float32)),
            self.emit.constant(f"{value.name}_zero_point", np.asarray(zero_point, self.dtype.numpy())),
        ]
        readers = tuple(value.uses())
        real = self.emit.value(f"{value.name}_dq", onnx_ir.DataType.FLOAT, value.shape)
        for reader, index in readers:
            reader.replace_input_with(index, real)
        node = self.emit.node("DequantizeLinear", [integers, *parameters], real)
        self._take_over_output(value, real)
        clear(value)
        self.integers[real] = Integers(integers, scale, zero_point)
        return node

    def _take_over_output(self, value: onnx_ir.Value, real: onnx_ir.Value) -> None:
        """Let `real` be the graph output in place of `value`, under the name that callers know."""
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                name = value.name
                value.name = self.emit.fresh(f"{name}_float")
                real.name = name
                self.graph.outputs[index] = real

    def _numbers(self, noted: Quantization) -> tuple[float, int]:
        scale, zero_point = integer_parameters(noted, signed=self.scheme.signed, symmetric=self.scheme.symmetric)
        return float(scale), int(zero_point)


def _fills(node: onnx_ir.Node) -> bool:
    """Whether `node` is a Pad that writes a number of its own, and no copies of its input."""
    return node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant"


def _pads_with_zero(node: onnx_ir.Node) -> bool:
    """Whether a Pad fills with zero, which the zero point stands for, or with nothing; True for other operators."""
    fill = _input(node, 2) if _fills(node) else None
    if fill is None:
        return True
    number = constant_numbers(fill)
    return number is not None and not number.any()


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _operands(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    inputs = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in inputs if value is not None]
