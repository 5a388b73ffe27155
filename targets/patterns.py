"""How quantization looks in a graph: the small questions that legality and runtimes both ask.

X -> QuantizeLinear -> integers -> DequantizeLinear -> reader          a quantized activation
stored integers -> [decoding] -> DequantizeLinear -> reader            a quantized weight
"""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.linear import constant_tensor

__all__ = ["MOVES", "computed_nodes", "dequantize_of", "is_quantize", "is_stored", "quantizers_of"]

# Operators that hand on the numbers they get.
MOVES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "ReorderInput", "Squeeze", "Transpose", "Unsqueeze"})

# And those that weights are decoded with besides; others are taken for computation.
_DECODING = MOVES | {"BitShift", "BitwiseAnd", "DequantizeLinear", "Gather", "Mul", "QuantizeLinear", "Sub"}
_LONGEST_DECODING = 12  # operators in a row: unpack, shift, mask, cast, subtract, reshape, scale, with room to spare


def is_quantize(node: onnx_ir.Node) -> bool:
    """Whether `node` turns real numbers into integers."""
    return node.op_type == "QuantizeLinear"


def dequantize_of(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """Return the DequantizeLinear that makes `value`, None where none does."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def quantizers_of(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Return the QuantizeLinear nodes that read `value`; none where anything else reads it too."""
    readers = [use.node for use in value.uses()]
    return readers if all(map(is_quantize, readers)) and not value.is_graph_output() else []


def is_stored(value: onnx_ir.Value | None, _depth: int = _LONGEST_DECODING) -> bool:
    """Whether `value` is a constant, or decoded from constants alone, as packed weights are."""
    if value is None or constant_tensor(value) is not None:
        return True
    node = value.producer()
    if node is None or node.op_type not in _DECODING or _depth == 0:
        return False
    return all(is_stored(each, _depth - 1) for each in node.inputs)


def computed_nodes(graph: onnx_ir.Graph) -> list[onnx_ir.Node]:
    """Return the nodes that data lead to, in order: not a Constant, nor the DequantizeLinear of a weight."""
    constant = {value for value in graph.initializers.values() if not value.is_graph_input()}
    found = []
    for node in graph:
        if all(value is None or value in constant for value in node.inputs):
            constant.update(node.outputs)
        else:
            found.append(node)
    return found
