"""Find what could run in integers: one node, together with the activation that folds into its output range.

A unit reads quantized activations and may write one. Everything else in the graph is float and stays so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir

from onnxpress.ir.activations import activation_limits
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Declined
from onnxpress.passes.constraints import QuantizationScheme

__all__ = ["Unit", "find_units", "nodes_before_last_linear"]


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """A node that a target can run in integers.

    inputs: the activations that must be quantized for it. output: its result, after the fused activation.
    linear: the view of its weight, None for operators without one.
    same_scale: whether output and inputs must share one range. writes_float: whether its kernel can give float.
    """

    node: onnx_ir.Node
    inputs: tuple[onnx_ir.Value, ...]
    output: onnx_ir.Value
    activation: onnx_ir.Node | None = None
    linear: Linear | None = None
    same_scale: bool = False
    writes_float: bool = False

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def must_quantize_output(self) -> bool:
        """A kernel that cannot write float needs integers, and so does every activation."""
        return not self.writes_float or self.activation is not None


def find_units(graph: onnx_ir.Graph, scheme: QuantizationScheme) -> tuple[list[Unit], list[Declined]]:
    """Return the units of `graph` in its order, and the nodes of the scheme's operators that cannot be one.

    Nodes inside If, Loop and Scan bodies are declined: their values cannot be observed during calibration.
    """
    units: list[Unit] = []
    declined: list[Declined] = []
    for node in graph.all_nodes():
        if node.domain not in ("", "ai.onnx") or node.op_type not in scheme.compute | scheme.carry:
            continue
        found = (
            _as_unit(node, scheme) if node.graph is graph else "inside a subgraph body: its values have no statistics"
        )
        if isinstance(found, Unit):
            units.append(found)
        else:
            declined.append(Declined(name=node.name or "", kind=node.op_type, reason=found))
    return units, declined


def nodes_before_last_linear(graph: onnx_ir.Graph, units: Sequence[Unit]) -> set[onnx_ir.Node]:
    """Return the nodes that some weighted unit depends on, those units included. The others form the tail."""
    pending = [unit.node for unit in units if unit.linear is not None]
    seen: set[onnx_ir.Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending.extend(producer for producer in _producers(node) if producer not in seen)
    return seen


def _producers(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None:
            yield producer


def _as_unit(node: onnx_ir.Node, scheme: QuantizationScheme) -> Unit | str:
    if len(node.outputs) != 1:
        return f"{len(node.outputs)} outputs: only single-output forms have an integer kernel"
    same_scale = node.op_type in scheme.same_scale
    linear: Linear | None = None
    inputs: tuple[onnx_ir.Value, ...]
    if node.op_type in scheme.compute:
        view = as_linear(node)
        if not isinstance(view, Linear):
            return _ALREADY if _reads_dequantized(node) else view or "no constant weight"
        if node.op_type == "MatMul" and view.weight_index == 0:
            return "its constant is the left operand, which no integer kernel takes"
        linear, inputs = view, (view.data,)
    else:
        operands = _operands(node)
        if isinstance(operands, str):
            return operands
        inputs = operands
    for value in (*inputs, *node.outputs):
        if quantization_of(value) is not None:
            return _ALREADY
        if value.dtype != onnx_ir.DataType.FLOAT:
            dtype = value.dtype.name if value.dtype is not None else "unknown"
            return f"value {value.name!r} is {dtype}, and only FLOAT is quantized"
    activation = None if same_scale else _fused_activation(node.outputs[0], scheme.fused_activations)
    output = activation.outputs[0] if activation is not None else node.outputs[0]
    return Unit(node, inputs, output, activation, linear, same_scale, node.op_type in scheme.float_outputs)


_ALREADY = "already quantized"
_FIRST_INPUT_ONLY = frozenset(
    {"AveragePool", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)  # their further inputs are shapes, bounds or fill values


def _operands(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...] | str:
    given: Iterable[onnx_ir.Value | None] = node.inputs[:1] if node.op_type in _FIRST_INPUT_ONLY else node.inputs
    operands = tuple(value for value in given if value is not None)
    if _reads_dequantized(node):
        return _ALREADY
    for value in operands:
        if _is_constant(value):
            return f"operand {value.name!r} is a constant"
    if node.op_type == "Pad" and not _pads_with_zero(node):
        return "pads with another value than zero"
    return operands


def _reads_dequantized(node: onnx_ir.Node) -> bool:
    """Whether an operand of `node` comes out of a DequantizeLinear: somebody has quantized here before."""
    producers = (value.producer() for value in node.inputs if value is not None)
    return any(producer is not None and producer.op_type == "DequantizeLinear" for producer in producers)


def _is_constant(value: onnx_ir.Value) -> bool:
    producer = value.producer()
    return value.const_value is not None or (producer is not None and producer.op_type == "Constant")


def _pads_with_zero(node: onnx_ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return True  # edge, reflect and wrap copy values that are in range already
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is None:
        return True
    return fill.const_value is not None and not fill.const_value.numpy().any()


def _fused_activation(value: onnx_ir.Value, activations: frozenset[str]) -> onnx_ir.Node | None:
    """Return the activation that is the only reader of `value`, if it is one that folds into a range."""
    if value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = next(iter(value.consumers()))
    if node.op_type not in activations or node.domain not in ("", "ai.onnx"):
        return None
    low, high = activation_limits(node)
    return node if low <= 0.0 <= high else None  # a quantized range always holds zero
