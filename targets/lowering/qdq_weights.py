"""Lower encoded weights, and the biases beside them, to what runtimes take or fold as they load.

    W of a node whose input is integers   =>   int8 -> DequantizeLinear (axis) -> weight input
    W in blocks, of a product of one row  =>   MatMulNBits (`nbits`)
    W of everything else                  =>   float32 (`reals`) -> every reader
    B                                     =>   as it is, or int32 -> DequantizeLinear at scale x*w, as the scheme asks
    what no form takes                    =>   dense, and said so

The int8 is an initializer where codes have 8 bits, and unpacked from fewer where they do not (`unpack`): onnxruntime
folds that before it looks for DequantizeLinear -> Conv, so a file of 2 bits a weight runs at the speed of int8.
Tables of levels need integers that stand for them exactly (`integer_table`); without, the layer computes in float.

onnxruntime fuses a Gemm only where its weight has an explicit zero point, and one that writes float only where its bias
is int32 as well; a Conv it fuses without either. Both were seen on the optimized graph of version 1.31.

Integer convolution kernels on x86 read input channels four at a time. A first layer of three falls back to a
path half as fast, and is therefore padded with channels of zeros (`input_channel_multiple`): a copy of integers, and
weights of zero, so that the sum is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import (
    Affine,
    Dense,
    Encoded,
    Levels,
    Sparse,
    as_levels,
    encoding_of,
    integer_table,
)
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.ir.quantization import is_weight_only
from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.int4 import takes_int4
from onnxpress.targets.lowering.nbits import fits_nbits, lower_to_nbits
from onnxpress.targets.lowering.reals import INT4_OPSET, lower_to_float, lower_to_int4
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.lowering.unpack import Chain, Unpacker, compact, look_up, shape_of, shared_row
from onnxpress.targets.schema import Storage

__all__ = ["Integers", "is_quantized", "lower_weights"]

_Array = npt.NDArray[Any]
_INT32_MAX = 2**31 - 1
_SHOWN = 3  # names in one note


@dataclasses.dataclass(frozen=True)
class Integers:
    """The integers behind a dequantized value, and what they stand for."""

    value: onnx_ir.Value
    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class _IntegerWeight:
    """A weight as integers: `real = (integer - zero_point) * scale`.

    source: the 8-bit codes themselves, or the levels and the int8 table that they index.
    """

    label: str
    source: _Array | tuple[Levels, _Array]
    scale: npt.NDArray[np.float32]
    zero_point: _Array | None
    axis: int | None


def lower_weights(
    emit: Emitter,
    scheme: QuantizationScheme,
    integers: Mapping[onnx_ir.Value, Integers],
    report: LoweringReport,
    *,
    storage: Storage,
    opset: int,
) -> None:
    """Replace the encoded weights of the main graph and of bodies in it.

    integers: what the node inputs that come from integers are. opset: the model's.
    """
    weights = _Weights(emit, scheme, integers, report, storage, opset)
    for node in list(emit.graph):
        view = as_linear(node)
        if isinstance(view, Linear):
            weights.lower(view)
    graphs = [emit.graph, *emit.graph.subgraphs()]
    for value in [value for graph in graphs for value in graph.initializers.values()]:
        weights.lower_readers(value)
    weights.place()
    _store_dense(graphs, report, storage)


def _store_dense(graphs: Iterable[onnx_ir.Graph], report: LoweringReport, storage: Storage) -> None:
    sparse: list[Sparse] = []
    rounded: dict[str, list[str]] = {}
    for value in [value for graph in graphs for value in graph.initializers.values()]:
        encoded = encoding_of(value)
        if encoded is None:
            continue
        value.const_value = onnx_ir.tensor(encoded.dense(), name=value.name)
        report.forms[f"{encoded.label} -> dense"] += 1
        if isinstance(encoded, Sparse):
            sparse.append(encoded)
        elif not isinstance(encoded, Dense):
            rounded.setdefault(encoded.label, []).append(str(value.name))
    for label, names in rounded.items():
        report.notes.append(_say_rounded(label, names, storage))
    if sparse:
        report.notes.append(_say_dense(sparse, storage.two_of_four))


def _say_rounded(label: str, names: Sequence[str], storage: Storage) -> str:
    """Say that weights lost precision and take what they took before, and what would be smaller."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    named = ", ".join(map(repr, names[:_SHOWN])) + more
    cure = "Leave the pass out"
    if storage.int4_dequantize and label.startswith("affine4") and storage.int4_blocks:
        blocks, readers = " or ".join(map(str, storage.int4_blocks)), " or ".join(sorted(storage.int4_readers))
        cure = (
            f"4 bits are for {readers} whose input channels are whole blocks of {blocks}: give quantize-weights block="
        )
        cure += str(storage.int4_blocks[0])
    return f"stored dense, for lack of a smaller form beside float data: {len(names)} of {label}: {named}. {cure}"


def _say_dense(sparse: Sequence[Sparse], two_of_four: bool) -> str:
    """Say what zeros do not win here; once for all weights, as there is nothing to tell apart."""
    size, stored = sum(each.size for each in sparse), sum(each.stored for each in sparse)
    tensors = f"{len(sparse)} pruned weight tensors are" if len(sparse) > 1 else "1 pruned weight tensor is"
    if two_of_four:
        return (
            f"{tensors} stored dense, {size - stored:,} zeros among {size:,} numbers: where two of every four input "
            "channels are zero, the runtime leaves them out if it is built to look for them"
        )
    return (
        f"{tensors} stored dense, {size - stored:,} zeros among {size:,} numbers: this runtime stores and multiplies "
        "zeros like other numbers, so they change neither the size of the file nor its speed"
    )


def _integer_weight(encoded: Encoded, out_axis: int) -> _IntegerWeight | None:
    """Return `encoded` as integers, bit for bit, or None where no 8-bit integers stand for it."""
    label = encoded.label
    if isinstance(encoded, Sparse) and isinstance(encoded.inner, Affine):
        encoded = encoded.filled()
    if isinstance(encoded, Affine) and encoded.bits == 8:
        if encoded.block_size is not None or encoded.axis not in (None, out_axis):
            return None
        return _IntegerWeight(label, encoded.codes, encoded.scale, encoded.zero_point, encoded.axis)
    levels = as_levels(encoded)
    if levels is None:
        return None
    levels = compact(levels)
    found = integer_table(levels, out_axis)
    if found is None:
        return None
    axis = out_axis if found.scale.ndim else None
    return _IntegerWeight(label, (levels, shared_row(found.table)), found.scale, None, axis)


class _Weights:
    def __init__(
        self,
        emit: Emitter,
        scheme: QuantizationScheme,
        integers: Mapping[onnx_ir.Value, Integers],
        report: LoweringReport,
        storage: Storage,
        opset: int,
    ) -> None:
        self.emit = emit
        self.scheme = scheme
        self.integers = integers
        self.report = report
        self.storage = storage
        self.opset = opset
        self.unpacker = Unpacker(emit)
        self.nodes: list[onnx_ir.Node] = []  # for the front of the graph
        self.done: dict[tuple[onnx_ir.Value, int, int, bool], onnx_ir.Value] = {}  # shared weights: once a form

    def lower(self, view: Linear) -> None:
        """Lower the weight of a layer whose input is integers; leave others to `lower_readers`."""
        encoded, data = encoding_of(view.weight_value), self.integers.get(view.data)
        if is_weight_only(view.weight_value):
            data = None
        if data is None and isinstance(encoded, Affine) and fits_nbits(view, encoded, self.storage.matmul_nbits):
            lower_to_nbits(self.emit, view, encoded)
            self.report.forms[f"{encoded.label} -> MatMulNBits"] += 1
        if encoded is None or data is None:
            return
        weight = _integer_weight(encoded, view.out_axis)
        if weight is None:
            if not isinstance(encoded, Dense):
                self.report.notes.append(
                    f"{view.node.name!r} computes in float: no 8-bit integers stand for its weight "
                    f"{view.weight_value.name!r} ({encoded.label})"
                )
            return
        self._lower_bias(view, weight.scale, data)
        missing = self._pad_channels(view, data)
        key = (view.weight_value, view.out_axis, missing, view.node.op_type == "Gemm")
        if key not in self.done:
            self.done[key] = self._dequantize(str(view.weight_value.name), weight, missing, view.node)
        self.emit.swap(view.node, view.weight_index, self.done[key])

    def lower_readers(self, value: onnx_ir.Value) -> None:
        """Give every reader of an encoded constant its numbers in float32, computed at the front of the main graph."""
        encoded = encoding_of(value)
        if encoded is None or value.is_graph_output() or not value.uses():
            return
        chain = Chain(self.unpacker, str(value.name))
        lowered = None
        if self.opset >= INT4_OPSET and takes_int4(value, encoded, self.storage):
            lowered = lower_to_int4(chain, encoded)
        if lowered is None and self.storage.folds:
            lowered = lower_to_float(chain, encoded, self.opset)
        if lowered is None:
            return
        real, form = chain.finish(lowered[0]), lowered[1]
        self.nodes += chain.nodes
        for node, index in [(use.node, use.idx) for use in value.uses()]:
            self.emit.swap(node, index, real)
        self.report.forms[f"{encoded.label} -> {form}"] += 1

    def place(self) -> None:
        """Put what unpacks weights at the front of the graph, so that every reader comes behind."""
        nodes = [*self.unpacker.place(), *self.nodes]
        if nodes:
            self.emit.graph.insert_before(self.emit.graph[0], nodes)

    def _dequantize(self, name: str, weight: _IntegerWeight, missing: int, before: onnx_ir.Node) -> onnx_ir.Value:
        zero_point = weight.zero_point
        if zero_point is None and before.op_type == "Gemm":
            zero_point = np.zeros(weight.scale.shape, np.int8)
        codes = self._codes(name, weight, missing)
        packed = "" if codes.is_initializer() else "unpacked, "
        self.report.forms[f"{weight.label} -> {packed}DequantizeLinear"] += 1
        return self._dequantized(name, codes, weight.scale, zero_point, weight.axis, before)

    def _codes(self, name: str, weight: _IntegerWeight, missing: int) -> onnx_ir.Value:
        """Return the integers, with `missing` more input channels of zeros (of a Conv)."""
        if isinstance(weight.source, np.ndarray):
            codes = weight.source
            if missing:
                codes = np.pad(codes, [(0, missing if axis == 1 else 0) for axis in range(codes.ndim)])
            return self.emit.constant(f"{name}_q", codes)
        levels, table = weight.source
        chain = Chain(self.unpacker, name)
        integers = look_up(
            chain, levels, table, onnx_ir.DataType.INT8, packed=self.storage.folds and self.storage.folds_integers
        )
        if missing:
            shape = list(shape_of(integers))
            shape[1] += missing
            integers = chain.add("Pad", [integers, self._widths(len(shape), missing)], onnx_ir.DataType.INT8, shape)
        self.nodes += chain.nodes
        return integers

    def _widths(self, rank: int, missing: int) -> onnx_ir.Value:
        """Return what Pad reads: `missing` more channels at the end of axis 1."""
        pads = np.zeros(2 * rank, np.int64)
        pads[rank + 1] = missing
        return self.emit.constant(f"pad_{missing}_channels", pads)

    def _dequantized(
        self,
        name: str,
        integers: onnx_ir.Value,
        scale: _Array,
        zero_point: _Array | None,
        axis: int | None,
        before: onnx_ir.Node,
    ) -> onnx_ir.Value:
        inputs = [integers, self.emit.constant(f"{name}_scale", scale)]
        if zero_point is not None:
            inputs.append(self.emit.constant(f"{name}_zero_point", zero_point))
        real = self.emit.value(f"{name}_dq", onnx_ir.DataType.FLOAT, integers.shape)
        attributes = {} if axis is None else {"axis": axis}
        before.graph.insert_before(before, [self.emit.node("DequantizeLinear", inputs, real, attributes)])  # type: ignore[union-attr]
        return real

    def _pad_channels(self, view: Linear, data: Integers) -> int:
        """Pad the integers that a Conv reads to the multiple of channels that its kernel wants; return how many more.

        The weight must then be padded likewise, with zeros.
        """
        missing = -view.in_channels % self.scheme.input_channel_multiple
        if view.node.op_type != "Conv" or view.groups != 1 or missing == 0 or math.prod(view.kernel) == 1:
            return 0
        if missing >= view.in_channels:
            return 0  # one channel to four wins back no more than it costs (measured on lenet5)
        node, graph = view.node, self.emit.graph
        name = f"{data.value.name}_padded"
        shape = list(data.value.shape) if data.value.shape is not None else None
        if shape is not None:
            shape[1] = view.in_channels + missing
        producer = view.data.producer()
        assert producer is not None and producer.op_type == "DequantizeLinear", "integers are read through a DQ"
        padded = self.emit.value(name, data.value.dtype or onnx_ir.DataType.UINT8, shape)
        real = self.emit.value(f"{name}_dq", onnx_ir.DataType.FLOAT, shape)
        widths = self._widths(len(view.kernel) + 2, missing)
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
        return missing

    def _lower_bias(self, view: Linear, weight_scale: _Array, data: Integers) -> None:
        bias = view.bias()
        writes_float = view.node.op_type == "Gemm" and not is_quantized(view.output) and self.storage.integer_gemm_bias
        if bias is None or not (self.scheme.bias == "int32" or writes_float):
            return
        # Kernels add the bias to the sum of products, so it must have exactly their scale.
        per_channel = np.resize(weight_scale, bias.shape)  # [1] or [M/groups] repeats over the groups
        scale = np.float32(data.scale) * per_channel
        codes = np.rint(bias.astype(np.float64) / scale)
        if np.abs(codes).max(initial=0.0) > _INT32_MAX:
            self.report.notes.append(
                f"{view.node.name!r}: its bias overflows int32 at scale x*w and is stored in float"
            )
            return
        name = str(view.bias_value.name) if view.bias_value is not None else f"{view.node.name}_bias"
        zero_point = np.zeros(scale.shape, np.int32) if view.node.op_type == "Gemm" else None
        integers = self.emit.constant(f"{name}_q", codes.astype(np.int32))
        real = self._dequantized(name, integers, scale, zero_point, 0, view.node)
        self.emit.swap(view.node, 2, real)
        self.report.forms["bias -> int32 DequantizeLinear"] += 1


def is_quantized(value: onnx_ir.Value) -> bool:
    """Whether `value`, or the activation that alone reads it, goes into a QuantizeLinear."""
    readers = list(value.consumers())
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip"):
        readers = list(readers[0].outputs[0].consumers())
    return any(reader.op_type == "QuantizeLinear" for reader in readers)
