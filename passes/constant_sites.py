"""Encode constants where they stand, whoever reads them: the walk that `float16` and `pack` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import Dense, Encoded, Sparse, is_encoded
from onnxpress.ir.quantization import note_weight_only
from onnxpress.passes.base import Amount, Declined, Rewrites, Site
from onnxpress.passes.selectors import Selection

__all__ = ["Encoder", "encode_constants"]

Floats: TypeAlias = npt.NDArray[np.float32]
Encoder: TypeAlias = Callable[[onnx_ir.Value, Floats, Sequence[onnx_ir.Node]], "Encoded | str"]

_FEWEST = 256  # numbers of a constant that is worth nodes of its own


def encode_constants(
    model: onnx_ir.Model,
    selection: Selection,
    encode: Encoder,
    error: Callable[[Floats, Encoded], Mapping[str, float]] = lambda weights, encoded: {},
) -> Rewrites:
    """Encode FLOAT initializers of rank 2 and more of the main graph in place; layers that read them compute in float.

    encode: (value, its numbers, its readers) -> what it becomes, or why it stays. error: for the record of a site.
    """
    record = Rewrites()
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        readers = [use.node for use in value.uses()]
        kind = readers[0].op_type if readers else "initializer"
        reason = _why_not(value, tensor) or next(filter(None, map(selection.reason, readers)), None)
        weights = tensor.numpy()
        found = reason or encode(value, weights, readers)
        if isinstance(found, str):
            record.declined.append(Declined(value.name or "", kind, found))
            continue
        found.name = value.name
        value.const_value = found
        note_weight_only(value)
        named = ", ".join(node.name or node.op_type for node in readers[:3])
        record.sites.append(
            Site(
                value.name or "",
                kind,
                Amount(tensor.size, size_bytes=tensor.nbytes),
                Amount(tensor.size, size_bytes=found.packed_bytes),
                error(weights, found),
                f"{found.label}, {found.bits_per_weight:.2f} bits a weight; read by {named}",
            )
        )
    return record


def _why_not(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> str | None:
    """Say why a constant is not ours to encode; pruned ones of plain numbers are."""
    if is_encoded(value) and not (isinstance(tensor, Sparse) and isinstance(tensor.inner, Dense)):
        return "it is encoded already"
    if tensor.size < _FEWEST:
        return f"it has {tensor.size} numbers, too few to be worth a node"
    if value.is_graph_input():
        return "it is a graph input, which the caller may set"
    if value.is_graph_output():
        return "it is an output of the model"
    return None if value.uses() else "nothing reads it"
