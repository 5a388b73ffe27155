"""Write the padding of quantized data out, for runtimes that pad integers with another number than zero.

    X_q -> DQ -> AveragePool<pads, count_include_pad = 1>   =>   X_q -> Pad -> DQ -> AveragePool
    X_q -> DQ -> Conv<kernel 1, strides, pads>              =>   X_q -> Pad -> DQ -> Conv

The Pad fills with the zero point. What auto_pad adds stays as it is, and the target's rules tell of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.padding import averages_padding, steps_over_padding
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.qdq_weights import Integers
from onnxpress.targets.lowering.report import LoweringReport

__all__ = ["write_padding_out"]


def write_padding_out(emit: Emitter, integers: Mapping[onnx_ir.Value, Integers], report: LoweringReport) -> None:
    """Give nodes of the main graph that pad quantized data a Pad of integers before them.

    integers: for each float value that comes out of a DequantizeLinear, the integers that go into it.
    """
    for node in list(emit.graph):
        if not averages_padding(node) and not steps_over_padding(node):
            continue
        data = integers.get(node.inputs[0]) if node.inputs[0] is not None else None
        pads = node.attributes.get_ints("pads", ())
        if data is not None and any(pads):
            _pad_before(emit, node, data.value, pads)
            report.notes.append(f"{node.name!r}: its padding is a Pad of its own, since the runtime's is not zero")


def _pad_before(emit: Emitter, node: onnx_ir.Node, integers: onnx_ir.Value, pads: Sequence[int]) -> None:
    dequantize = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert dequantize is not None and node.graph is not None, "integers are read through a DequantizeLinear"
    count = len(pads) // 2
    begin, end = [0, 0, *pads[:count]], [0, 0, *pads[count:]]
    widths = emit.constant(f"{node.name}_pads", np.array([*begin, *end], np.int64))
    name, shape = f"{integers.name}_padded", _grown(integers.shape, begin, end)
    padded = emit.value(name, integers.dtype or onnx_ir.DataType.UINT8, shape)
    real = emit.value(f"{name}_dq", onnx_ir.DataType.FLOAT, shape)
    node.graph.insert_before(
        node,
        [
            emit.node("Pad", [integers, widths, dequantize.inputs[2]], padded, {"mode": "constant"}),
            emit.node("DequantizeLinear", [padded, *dequantize.inputs[1:]], real),
        ],
    )
    node.replace_input_with(0, real)
    node.attributes["pads"] = onnx_ir.AttrInt64s("pads", [0] * len(pads))


def _grown(shape: onnx_ir.Shape | None, begin: Sequence[int], end: Sequence[int]) -> list[int | None] | None:
    if shape is None:
        return None
    return [
        size + before + after if isinstance(size, int) else None
        for size, before, after in zip(shape, begin, end, strict=True)
    ]
