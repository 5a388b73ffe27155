"""Predict the time of a whole model from a profile's roofline: each node once, as its runtime will run it.

The cost of single operators is `costmodel`'s. What this adds is what depends on neighbours:

- precision: between DequantizeLinear and QuantizeLinear an operator with an integer kernel computes in integers, and
  the conversions around it cost nothing; the others are paid, once for each value;
- fusion: activations go into what makes their input, a sum into the later of its two convolutions;
- layout: float convolutions want images in blocks of channels. Where a runtime has such a layout (`layout_ns`), values
  change it between a convolution and an operator that has no blocked kernel, and a sum is fused in blocks only.

One thread executes one node after the other, so the total is the sum. What constants alone lead to is computed as the
model loads, and costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import onnx_ir

from onnxpress.passes.constraints import Precision
from onnxpress.targets.costmodel import CostBreakdown, RooflineCost
from onnxpress.targets.patterns import computed_nodes, dequantize_of
from onnxpress.targets.schema import Profile

__all__ = ["Charge", "Charges", "Prediction", "charges", "predict"]

_INTEGERS = (onnx_ir.DataType.UINT8, onnx_ir.DataType.INT8)
_BORDERS = ("QuantizeLinear", "DequantizeLinear")
# Operators that onnxruntime computes on blocks of channels where their inputs are in them (NchwcTransformer).
_BLOCKED = frozenset(
    ("Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "GlobalAveragePool", "GlobalMaxPool",
     "HardSigmoid", "LeakyRelu", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid", "Sum", "Tanh", "Upsample")
)  # fmt: skip

# What multiplies, or holds nodes that may, and has no price of its own.
_UNPRICED = re.compile(
    r"Integer|^QLinear(Conv|MatMul)|^QGemm|MatMulNBits|^(LSTM|GRU|RNN|Einsum|If|Loop|Scan|DeformConv)$|Attention"
)

Charge = Callable[[RooflineCost], CostBreakdown]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A model's predicted time, one thread, batch 1.

    nodes: by the model's names; a node that vanishes into another costs 0. conversions: of changing a value's layout,
    by the value's name, which no node of the model accounts for. call_seconds: of running a model at all. unpriced:
    names of nodes that multiply and have no price of their own, such as QLinearConv: they count as if they moved data.
    """

    nodes: dict[str, CostBreakdown]
    conversions: dict[str, CostBreakdown]
    call_seconds: float = 0.0
    unpriced: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of the whole model."""
        return self.call_seconds + sum(each.seconds for each in (*self.nodes.values(), *self.conversions.values()))


@dataclasses.dataclass(frozen=True)
class Charges:
    """What a model pays for, whatever the prices: by node and by value, as `Prediction`.

    unpriced: see there. working_set_bytes: all its weights. From run to run, a core's cache keeps them or does not.
    """

    nodes: dict[str, Charge]
    conversions: dict[str, Charge]
    working_set_bytes: int
    unpriced: tuple[str, ...] = ()

    def at(self, costs: RooflineCost) -> Prediction:
        """Return the prediction at the prices of `costs`."""
        return Prediction(
            {name: charge(costs) for name, charge in self.nodes.items()},
            {name: charge(costs) for name, charge in self.conversions.items()},
            costs.call_seconds,
            self.unpriced,
        )


def predict(model: onnx_ir.Model, profile: Profile) -> Prediction | None:
    """Return the predicted time of `model` as it is written; None where the profile has no roofline.

    Nodes of bodies of If, Loop and Scan are left out.
    """
    if profile.roofline is None:
        return None
    paid = charges(model, profile)
    return paid.at(RooflineCost(profile.roofline, profile.quantization, paid.working_set_bytes))


def charges(model: onnx_ir.Model, profile: Profile) -> Charges:
    """Return what `model` pays for on a target that has a roofline."""
    return _Graph(model.graph, profile).charges()


class _Graph:
    def __init__(self, graph: onnx_ir.Graph, profile: Profile) -> None:
        self._scheme = profile.quantization
        assert profile.roofline is not None, "there are prices"
        self._has_blocks = profile.roofline.blocked_layout
        self._roofline = profile.roofline
        tensors = (value.const_value for value in graph.initializers.values())
        self._weight_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        self._nodes = computed_nodes(graph)
        self._data = {value for node in self._nodes for value in node.outputs} | set(graph.inputs)
        self._integer = {node for node in self._nodes if self._is_integer(node)}
        self._blocked: set[onnx_ir.Value] = set()
        self._moved: dict[str, Charge] = {}

    def charges(self) -> Charges:
        found = {node.name or "": self._charge(node) for node in self._nodes}
        unpriced = tuple(node.name or "" for node in self._nodes if _UNPRICED.search(node.op_type))
        return Charges(found, self._moved, self._weight_bytes, unpriced)

    def _charge(self, node: onnx_ir.Node) -> Charge:
        if node.op_type == "QuantizeLinear":
            return self._quantize(node)
        if node.op_type == "DequantizeLinear":
            return self._dequantize(node)
        if node in self._integer:
            return functools.partial(RooflineCost.explain, node=node, precision="int8")
        if _on_integers(node):
            return functools.partial(_on_its_own_integers, node=node)
        if self._is_into_range(node):
            return _free
        fuses = self._lay_out(node)
        return functools.partial(RooflineCost.explain, node=node, precision="float32", fuses_add=fuses)

    # Precision.

    def _is_integer(self, node: onnx_ir.Node) -> bool:
        scheme = self._scheme
        if node.op_type not in scheme.compute | scheme.carry or node.op_type in _BORDERS:
            return False
        data = [value for value in node.inputs[:2] if value in self._data and _is_float(value)]
        if not data or any(dequantize_of(value) is None for value in data):
            return False
        return node.op_type in scheme.float_outputs or _is_quantized(_behind(node, scheme.fused_activations))

    def _is_into_range(self, node: onnx_ir.Node) -> bool:
        """Whether an activation goes into the range of the integers that its producer writes."""
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return producer in self._integer and node.op_type in self._scheme.fused_activations

    def _quantize(self, node: onnx_ir.Node) -> Charge:
        value = node.inputs[0]
        assert value is not None
        made = _in_front(value, self._scheme.fused_activations)
        return _free if made in self._integer else functools.partial(_convert, value=value, to="int8")

    def _dequantize(self, node: onnx_ir.Node) -> Charge:
        readers = node.outputs[0].consumers()
        if readers and all(reader in self._integer for reader in readers):
            return _free
        return functools.partial(_convert, value=node.outputs[0], to="float32")

    # Layout.

    def _lay_out(self, node: onnx_ir.Node) -> bool:
        """Note which layout the node's output has, pay for those of its inputs; return whether it is a fused sum."""
        if not self._has_blocks:
            return True
        data = [value for value in node.inputs if value in self._data]
        is_conv = node.op_type == "Conv" and self._takes_blocks(node)
        blocked = [value in self._blocked for value in data]
        runs_blocked = is_conv or (node.op_type in _BLOCKED and bool(blocked) and all(blocked))
        for value, has_blocks in zip(data, blocked, strict=True):
            wants = runs_blocked and (not is_conv or self._reads_blocks(node))
            if has_blocks != wants:
                self._pay(value)
        if runs_blocked:
            self._blocked.update(node.outputs)
            for value in (output for output in node.outputs if output.is_graph_output()):
                self._pay(value)
        return runs_blocked

    def _takes_blocks(self, node: onnx_ir.Node) -> bool:
        rank = len(node.outputs[0].shape) if node.outputs[0].shape is not None else 4
        inputs, outputs = _channels(node.inputs[0]), _channels(node.outputs[0])
        step, made_in = self._roofline.aligned_channels, self._roofline.aligned_outputs.float32
        takes = inputs is None or inputs < step or inputs % step == 0
        return rank == 4 and takes and (outputs is None or outputs % made_in == 0)

    def _reads_blocks(self, node: onnx_ir.Node) -> bool:
        """Whether a Conv wants its input in blocks: those of few channels take images as they are."""
        channels = _channels(node.inputs[0])
        return channels is None or channels >= _LEAST_BLOCKED or node.attributes.get_int("group", 1) > 1

    def _pay(self, value: onnx_ir.Value) -> None:
        """Change the layout of a value, once."""
        key = value.name or ""
        if key not in self._moved:
            self._moved[key] = functools.partial(_change_layout, value=value)


_LEAST_BLOCKED = 16


def _channels(value: onnx_ir.Value | None) -> int | None:
    shape = None if value is None else value.shape
    found = shape[1] if shape is not None and len(shape) > 1 else None
    return found if isinstance(found, int) else None


def _behind(node: onnx_ir.Node, activations: frozenset[str]) -> onnx_ir.Value:
    """Return the value of `node` behind an activation that alone reads it."""
    value = node.outputs[0]
    readers = value.consumers()
    if len(readers) == 1 and readers[0].op_type in activations:
        return readers[0].outputs[0]
    return value


def _in_front(value: onnx_ir.Value, activations: frozenset[str]) -> onnx_ir.Node | None:
    producer = value.producer()
    if producer is not None and producer.op_type in activations and producer.inputs[0] is not None:
        return producer.inputs[0].producer()
    return producer


def _is_quantized(value: onnx_ir.Value) -> bool:
    readers = value.consumers()
    return bool(readers) and not value.is_graph_output() and all(node.op_type == "QuantizeLinear" for node in readers)


def _is_float(value: onnx_ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _on_integers(node: onnx_ir.Node) -> bool:
    value = node.inputs[0] if node.inputs else None
    return value is not None and value.dtype in _INTEGERS


def _on_its_own_integers(costs: RooflineCost, node: onnx_ir.Node) -> CostBreakdown:
    """Price an operator that integers are handed to. It runs, whether or not a pass may make such ones."""
    found = costs.explain(node, "int8")
    return found if math.isfinite(found.seconds) else costs.explain(node, "float32")


def _free(costs: RooflineCost) -> CostBreakdown:
    return CostBreakdown("absorbed", 0.0)


def _convert(costs: RooflineCost, value: onnx_ir.Value, to: Precision) -> CostBreakdown:
    seconds = costs.convert_seconds(value, to)
    return CostBreakdown("conversion", seconds, memory=seconds)


def _change_layout(costs: RooflineCost, value: onnx_ir.Value) -> CostBreakdown:
    seconds = costs.layout_seconds(value)
    return CostBreakdown("layout", seconds, memory=seconds)
