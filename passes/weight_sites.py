"""Which layers can have an encoded weight, how it takes its place, and what they weigh: for passes that encode."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.encodings import Dense, Encoded, Sparse, encoding_of
from onnxpress.ir.linear import Linear, constant_tensor
from onnxpress.ir.quantization import note_weight_only
from onnxpress.passes.base import Amount
from onnxpress.passes.cleanup.graph_edits import drop_unused_constant, fresh_name

__all__ = ["layer_amount", "replace_weight", "stored_bytes", "why_not_encodable"]


def replace_weight(
    model: onnx_ir.Model, layer: Linear, weight: Encoded, names: set[str | None], *, weight_only: bool = False
) -> None:
    """Give the node the encoded weight, in the operator's own layout; other readers of the old one keep it.

    names: those that are taken (`fresh_name`). weight_only: whether the layer is to compute in float, also where its
    input is made of integers (`ir.quantization`).
    """
    _place(model, layer, weight, names)
    note_weight_only(layer.weight_value, weight_only)


def _place(model: onnx_ir.Model, layer: Linear, weight: Encoded, names: set[str | None]) -> None:
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


def why_not_encodable(layer: Linear, model: onnx_ir.Model, fewest: int) -> str | None:
    """Say why the weight of `layer` must stay plain numbers of its own; None where it may be encoded.

    fewest: numbers that a weight needs to be worth it.
    """
    value = layer.weight_value
    encoded = encoding_of(value)
    tensor = constant_tensor(value)
    assert tensor is not None, "a linear operator has a constant weight"
    if layer.node.graph is not model.graph:
        return "inside a subgraph body: its input has no statistics, and its weight may belong to the outer graph"
    if encoded is not None and not (isinstance(encoded, Sparse) and isinstance(encoded.inner, Dense)):
        return f"weight {value.name!r} is already encoded as {encoded.label}"
    if tensor.dtype != onnx_ir.DataType.FLOAT:
        return f"weight {value.name!r} is {tensor.dtype.name}, and only FLOAT is encoded"
    if value.is_graph_output():
        return f"weight {value.name!r} is an output of the graph"
    if len(value.uses()) > 1:
        return f"weight {value.name!r} is shared by {len(value.uses())} readers, each with an input of its own"
    if tensor.size < fewest:
        return f"too small: {tensor.size} weights, fewer than {fewest}"
    return None


def stored_bytes(tensor: onnx_ir.TensorProtocol) -> int:
    """Return what a tensor takes in a file: packed, where it is encoded."""
    return tensor.packed_bytes if isinstance(tensor, Encoded) else int(tensor.nbytes)


def layer_amount(layer: Linear) -> Amount:
    """Return what a layer weighs, its bias included, an encoded weight by its packed size."""
    held = [constant_tensor(value) for value in (layer.weight_value, layer.bias_value)]
    tensors = [tensor for tensor in held if tensor is not None]
    return Amount(sum(each.size for each in tensors), node_macs(layer.node) or 0, sum(map(stored_bytes, tensors)))
