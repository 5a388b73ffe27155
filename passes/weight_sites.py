"""Put an encoded weight in the place of a layer's own, and weigh the layer: what passes that encode weights share."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.encodings import Encoded
from onnxpress.ir.linear import Linear, constant_tensor
from onnxpress.passes.base import Amount
from onnxpress.passes.cleanup.graph_edits import drop_unused_constant, fresh_name

__all__ = ["layer_amount", "replace_weight"]


def replace_weight(model: onnx_ir.Model, layer: Linear, weight: Encoded, names: set[str | None]) -> None:
    """Give the node the encoded weight, in the operator's own layout; other readers of the old one keep it.

    names: those that are taken (`fresh_name`).
    """
    old = layer.weight_value
    if len(old.uses()) == 1 and old.is_initializer() and not old.is_graph_output():
        weight.name = old.name
        old.const_value = weight
        return
    weight.name = fresh_name(f"{old.name}_{layer.node.name}", names)
    value = onnx_ir.val(weight.name, onnx_ir.DataType.FLOAT, weight.shape.numpy(), const_value=weight)
    model.graph.register_initializer(value)
    layer.node.replace_input_with(layer.weight_index, value)
    drop_unused_constant(old)


def layer_amount(layer: Linear) -> Amount:
    """Return what a layer weighs, its bias included, an encoded weight by its packed size."""
    held = [constant_tensor(value) for value in (layer.weight_value, layer.bias_value)]
    tensors = [tensor for tensor in held if tensor is not None]
    size = sum(each.packed_bytes if isinstance(each, Encoded) else int(each.nbytes) for each in tensors)
    return Amount(sum(each.size for each in tensors), node_macs(layer.node) or 0, size)
