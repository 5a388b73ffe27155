"""Leave one operand of an Add in float where the runtime adds in the accumulator of the Conv before it.

    Conv(X_dq, W_dq) -> Q -> DQ -> Add <- DQ <- Q <- R    =>    Conv(X_dq, W_dq) -> Add <- DQ <- Q <- R

Two quantized operands would be two roundings and an Add of its own. The result has one rounding less than was noted.
Source: TensorRT documentation, "Q/DQ Layer-Placement Recommendations": quantize the residual input in skip connections.
"""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.ir.quantization import clear, quantization_of
from onnxpress.targets.lowering.report import LoweringReport

__all__ = ["leave_accumulators"]


def leave_accumulators(graph: onnx_ir.Graph, report: LoweringReport) -> None:
    """Take the note off one operand of every quantized Add: what a quantized layer alone computes, the later one."""
    places = {node: place for place, node in enumerate(graph)}
    for node in graph:
        operands = [value for value in node.inputs if value is not None]
        if node.op_type != "Add" or len(operands) != 2 or not all(map(quantization_of, operands)):
            continue
        fused = [value for value in operands if _is_accumulator(value)]
        if operands[0] is operands[1] or not fused:
            continue
        last = max(fused, key=lambda value: places[value.producer()])  # type: ignore[index]
        clear(last)
        report.forms["operand of an Add -> float, in its layer's accumulator"] += 1


def _is_accumulator(value: onnx_ir.Value) -> bool:
    """Whether a quantized layer computes `value`, for this Add alone."""
    producer = value.producer()
    view = None if producer is None else as_linear(producer)
    if not isinstance(view, Linear) or len(value.uses()) != 1 or value.is_graph_output():
        return False
    return quantization_of(view.data) is not None and is_encoded(view.weight_value)
