"""Compute in float16 between float16 weights: real types and Casts in the graph, float32 at its interface.

    W encoded as float16      =>   a float16 initializer
    X -> node                 =>   X -> Cast(float16) -> node     where X is the model's input, or stays float32
    node -> Y                 =>   node -> Cast(float32) -> Y     where Y is the model's output, or its reader stays
    float constants           =>   float16 copies of them
    W in blocks of int4       =>   INT4 -> DequantizeLinear with float16 scales, where the target takes that form

A model without a float16 weight is left alone: no lowering rounds what no pass was asked to.

A node stays in float32 when
    its operator has no float16 form in ONNX, makes floats from nothing (Cast, ConstantOfShape, Range), or is one of
    the target's `float32_ops`; it has a body, or reads what is quantized, or makes it of float32;
    a number in it was measured (`ir.magnitudes`) beyond a quarter of 65504: samples that were not seen may be larger;
    it reads a constant that float16 cannot hold: beyond 65504, or so small that it would become zero.
The last two are told with the numbers. Nodes in bodies of If, Loop and Scan stay.

Error: each value is rounded to 11 bits, 2^-11 of it; the rounding of sums is the runtime's.
Source of the idea, and of what blocks: ONNX Runtime's and ModelOpt's float16 converters.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.encodings import Affine, Float16, Sparse, encoding_of
from onnxpress.ir.encodings.base import Array
from onnxpress.ir.errors import InputError
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.linear import ONNX_DOMAINS, constant_tensor
from onnxpress.ir.magnitudes import magnitude_of
from onnxpress.ir.opset import default_opset, require_opset
from onnxpress.ir.quantization import clear, note, quantization_of
from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.int4 import takes_int4
from onnxpress.targets.lowering.reals import INT4_OPSET
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.schema import Storage

__all__ = ["lower_float16_graph"]

_FLOAT, _HALF = onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16
_HALF_TYPE = "tensor(float16)"
_LARGEST = 65504.0
_SMALLEST = 2.0**-24  # below half of it, a number becomes zero
_MARGIN = 4.0  # how much larger than all calibration data an unseen sample may be
_KEPT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}  # region and scales: float32 whatever the data is
_NEVER = frozenset({"Cast", "CastLike", "Constant", "DequantizeLinear", "QuantizeLinear"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclasses.dataclass(frozen=True)
class _Ports:
    """Positions of a node's inputs and outputs that change from float32 to float16 together."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def lower_float16_graph(
    model: onnx_ir.Model, scheme: QuantizationScheme, storage: Storage, *, max_opset: int
) -> LoweringReport:
    """Convert the main graph of `model`, in place, where a weight of it is float16.

    scheme: not needed; every lowering is called alike. max_opset: the model may be raised to this, for int4.
    """
    report = LoweringReport()
    constants = list(model.graph.initializers.values())
    if not any(_half_codes(value) is not None for value in constants):
        return report
    if max_opset >= INT4_OPSET and any(takes_int4(value, encoding_of(value), storage) for value in constants):
        with contextlib.suppress(InputError):  # a model that cannot rise stays
            require_opset(model, INT4_OPSET, reason="the form of a weight")
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        infer_shapes(model)
    chosen: dict[onnx_ir.Node, _Ports] = {}
    for node in model.graph:
        found = _ports(node, model.opset_imports.get("", 1), storage)
        if isinstance(found, _Ports):
            if not _is_fused_into_integers(node, found, chosen):
                chosen[node] = found
        elif found:
            report.notes.append(f"{node.name!r} ({node.op_type}) stays in float32: {found}")
    _Converter(model, chosen, storage, report).convert()
    _say_measured(model.graph, report)
    return report


def _is_fused_into_integers(node: onnx_ir.Node, ports: _Ports, chosen: Collection[onnx_ir.Node]) -> bool:
    """Whether the result is quantized and float32 data go in, as into the activation behind a quantized Conv.

    A float16 weight says that the node was meant to compute in float16.
    """
    if all(quantization_of(node.outputs[index]) is None for index in ports.outputs):
        return False
    data = [value for index in ports.inputs if (value := node.inputs[index]) is not None]
    if any(_half_codes(value) is not None for value in data):
        return False
    return any(constant_tensor(value) is None and value.producer() not in chosen for value in data)


def _say_measured(graph: onnx_ir.Graph, report: LoweringReport) -> None:
    values = [value for node in graph for value in node.outputs]
    if not any(magnitude_of(value) is not None for value in (*graph.inputs, *values)):
        report.notes.append("nothing was measured: values that pass 65504 become infinite. Give calibration data")


def _ports(node: onnx_ir.Node, opset: int, storage: Storage) -> _Ports | str:
    """Return what changes type, or why the node stays in float32; an empty reason goes without saying."""
    if node.domain not in ONNX_DOMAINS or node.op_type in _NEVER:
        return ""
    if any(attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS) for attribute in
           node.attributes.values()):  # fmt: skip
        return "it has a body"
    ports = _half_ports(node, opset)
    if ports is None:
        return ""
    if node.op_type in storage.float32_ops:
        return "the target computes this operator in float32"
    inputs, outputs = [node.inputs[index] for index in ports.inputs], [node.outputs[index] for index in ports.outputs]
    if any(quantization_of(value) is not None for value in inputs):
        return ""
    for value in (*inputs, *outputs):
        largest = magnitude_of(value)
        if value is not None and largest is not None and largest > _LARGEST / _MARGIN:
            return f"{value.name!r} reached {largest:.4g} on calibration data, and float16 ends at 65504"
    for index in ports.inputs:
        reason = _why_not_constant(node, index)
        if reason is not None:
            return reason
    return ports


def _half_ports(node: onnx_ir.Node, opset: int) -> _Ports | None:
    """Return the float32 inputs and outputs whose type may be float16, where the former decide the latter."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {each.type_param_str for each in schema.type_constraints if _HALF_TYPE in each.allowed_type_strs}
    kept = _KEPT_INPUTS.get(node.op_type, ())
    inputs = [
        (index, name)
        for index, (value, name) in enumerate(_typed(node.inputs, schema.inputs))
        if value is not None and value.dtype == _FLOAT and index not in kept
    ]
    outputs = [
        (index, name)
        for index, (value, name) in enumerate(_typed(node.outputs, schema.outputs))
        if value is not None and value.dtype == _FLOAT
    ]
    ports = [(index, name) for index, name in inputs if name in allowed]
    bound = {name for _, name in ports}
    if not ports or any(name not in bound for _, name in outputs) or len(ports) != len(inputs):
        return None
    return _Ports(tuple(index for index, _ in ports), tuple(index for index, _ in outputs))


def _typed(values: object, formal: object) -> Iterator[tuple[onnx_ir.Value | None, str]]:
    """Yield values with the type parameters of a schema; the last one may stand for many."""
    for index, value in enumerate(values):  # type: ignore[arg-type, var-annotated]
        yield value, formal[min(index, len(formal) - 1)].type_str  # type: ignore[arg-type, index]


def _why_not_constant(node: onnx_ir.Node, index: int) -> str | None:
    value = node.inputs[index]
    assert value is not None, "ports are inputs that are given"
    if _half_codes(value) is not None:
        return None
    tensor = constant_tensor(value)
    if tensor is None or tensor.size == 0:
        return None
    magnitudes = np.abs(tensor.numpy().astype(np.float64))
    largest = float(magnitudes.max())
    if not largest <= _LARGEST:
        return f"its constant {value.name!r} holds {largest:.4g}, and float16 ends at 65504"
    if node.op_type in _PRODUCTS:
        return None  # a term of a sum that vanishes beside the others
    vanishing = magnitudes[(magnitudes > 0) & (magnitudes < _SMALLEST)]
    if vanishing.size:
        return f"its constant {value.name!r} holds {vanishing.min():.4g}, which is zero in float16"
    return None


def _half_codes(value: onnx_ir.Value) -> Array | None:
    """Return the float16 numbers of a weight that is encoded so, pruned or not; None for others."""
    encoded = encoding_of(value)
    if isinstance(encoded, Sparse):
        encoded = encoded.filled()
    return encoded.codes if isinstance(encoded, Float16) else None


class _Converter:
    def __init__(
        self, model: onnx_ir.Model, chosen: dict[onnx_ir.Node, _Ports], storage: Storage, report: LoweringReport
    ) -> None:
        self.graph = model.graph
        self.opset = default_opset(model)
        self.chosen = chosen
        self.storage = storage
        self.report = report
        self.emit = Emitter(model.graph)
        self.halves: dict[onnx_ir.Value, onnx_ir.Value] = {}  # float32 value -> its float16 copy
        self.made: set[onnx_ir.Value] = set()  # values that chosen nodes compute, float16 now

    def convert(self) -> None:
        """Give chosen nodes float16 inputs, then everything else float32 again."""
        for node, ports in self.chosen.items():
            for index in ports.inputs:
                value = node.inputs[index]
                if value is not None and value not in self.made:
                    self._read_half(node, index, value)
            for index in ports.outputs:
                node.outputs[index].type = onnx_ir.TensorType(_HALF)
                self.made.add(node.outputs[index])
            self.report.forms["node -> float16"] += 1
        for value in self.made:
            self._restore(value)

    def _read_half(self, node: onnx_ir.Node, index: int, value: onnx_ir.Value) -> None:
        if value not in self.halves:
            self.halves[value] = self._half_of(value)
        if constant_tensor(value) is not None and value.is_initializer():
            self.emit.swap(node, index, self.halves[value])
        else:
            node.replace_input_with(index, self.halves[value])

    def _half_of(self, value: onnx_ir.Value) -> onnx_ir.Value:
        codes = _half_codes(value)
        if codes is not None:
            self.report.forms["float16 -> initializer"] += 1
            return self.emit.constant(f"{value.name}_half", codes)
        encoded, tensor = encoding_of(value), constant_tensor(value)
        if isinstance(encoded, Affine) and self.opset >= INT4_OPSET and takes_int4(value, encoded, self.storage):
            return self._dequantize(str(value.name), encoded)
        if tensor is not None and (encoded is None or not self.storage.folds):
            if encoded is not None:
                self.report.forms[f"{encoded.label} -> dense float16"] += 1
                self.report.notes.append(
                    f"{value.name!r} ({encoded.label}) is stored dense in float16: nothing decodes it"
                )
            return self.emit.constant(f"{value.name}_half", tensor.numpy().astype(np.float16))
        half = self.emit.value(f"{value.name}_half", _HALF, value.shape)
        cast = self.emit.node("Cast", [value], half, {"to": _HALF.value})
        producer = value.producer()
        if producer is None or producer.graph is not self.graph:
            self.graph.insert_before(self.graph[0], cast)
        else:
            self.graph.insert_after(producer, cast)
        self.report.forms["Cast to float16"] += 1
        return half

    def _dequantize(self, name: str, encoded: Affine) -> onnx_ir.Value:
        """Emit 4-bit integers with scales in float16, the type of the products that read them."""
        parameters = [
            self.emit.constant(f"{name}_q", encoded.codes.astype(ml_dtypes.int4)),
            self.emit.constant(f"{name}_scale", np.maximum(encoded.scale, _SMALLEST).astype(np.float16)),
        ]
        real = self.emit.value(f"{name}_half", _HALF, encoded.codes.shape)
        attributes = {"axis": encoded.axis, "block_size": encoded.block_size}
        given = {key: number for key, number in attributes.items() if number is not None}
        self.graph.insert_before(self.graph[0], self.emit.node("DequantizeLinear", parameters, real, given))
        self.report.forms[f"{encoded.label} -> DequantizeLinear in float16"] += 1
        return real

    def _restore(self, value: onnx_ir.Value) -> None:
        """Give the readers of a float16 value that stay in float32, and the model's caller, a float32 copy."""
        readers = [
            (use.node, use.idx)
            for use in value.uses()
            if use.node not in self.chosen or use.idx not in self.chosen[use.node].inputs
        ]
        outputs = [index for index, output in enumerate(self.graph.outputs) if output is value]
        if not readers and not outputs:
            return
        real = self.emit.value(f"{value.name}_float", _FLOAT, value.shape)
        producer = value.producer()
        assert producer is not None, "chosen nodes compute it"
        noted = quantization_of(value)
        if noted is not None:  # no chosen node reads it
            note(real, noted)
            clear(value)
        self.graph.insert_after(producer, self.emit.node("Cast", [value], real, {"to": _FLOAT.value}))
        for node, index in readers:
            node.replace_input_with(index, real)
        if outputs:
            name = value.name
            value.name = self.emit.fresh(f"{name}_half")
            real.name = name
        for index in outputs:
            self.graph.outputs[index] = real
        self.report.forms["Cast to float32"] += 1
