"""Give a Reshape whose shape is computed the constant shape that it is known to have.

    Y[N, 512] = Reshape(X[N, 8, 8, 8], Concat(Gather(Shape(X), 0), [-1]))   =>   Y = Reshape(X, [0, 512])

Exporters write such chains for `x.view(x.size(0), -1)`; every rewrite that follows channels stops at them.
A dimension that is known by name only is copied (0) where X has that name at the same place.

Legal when: the shape is computed by a node; no dimension of Y is inferred as 0; at most one is neither a
number nor a copy; inference found no contradiction in the model. Only what inference proves counts, not what
the file says of Y: see `ir.inference`.
Fidelity: exact in bits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir

from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.graph_edits import add_initializer, fresh_name, is_default_domain

__all__ = ["Settle", "match", "settle"]


@dataclasses.dataclass(frozen=True)
class Settle:
    """A Reshape and the shape to give it: numbers, 0 for copies, -1 for at most one dimension."""

    node: onnx_ir.Node
    shape: tuple[int, ...]


def match(node: onnx_ir.Node, *, consistent: bool) -> Settle | Declined | None:
    """Reads only. None: no Reshape by a computed shape. Declined: a stated legality clause fails.

    consistent: what `ir.inference.is_consistent` says of the model.
    """
    if node.op_type != "Reshape" or not is_default_domain(node) or len(node.inputs) != 2:
        return None
    data, wanted = node.inputs
    if data is None or wanted is None or wanted.is_graph_input() or constant_tensor(wanted) is not None:
        return None
    output = node.outputs[0]
    if not consistent:
        return _declined(node, "shapes in the model contradict each other")
    dims, sources = proven_shape(output), proven_shape(data)
    if dims is None:
        return _declined(node, f"the rank of {output.name!r} is unknown")
    shape = tuple(_entry(axis, dim, tuple(sources or ())) for axis, dim in enumerate(dims))
    if any(dim == 0 for dim in dims):
        return _declined(node, f"{output.name!r} is empty")
    unknown = shape.count(-1)
    if unknown > 1:
        return _declined(node, f"{unknown} dimensions of {output.name!r} are unknown, at most 1 may be")
    return Settle(node, shape)


def settle(found: Settle, model: onnx_ir.Model, names: set[str | None]) -> onnx_ir.Value:
    """Give the Reshape its constant shape, and return that. What computed it may be left without use.

    names: see `fresh_name`.
    """
    node = found.node
    assert node.graph is not None
    name = fresh_name(f"{node.outputs[0].name}_shape", names)
    shape = add_initializer(model, node.graph, name, np.array(found.shape, np.int64))
    node.replace_input_with(1, shape)
    node.attributes.pop("allowzero", None)  # every 0 is a copy now
    return shape


def _entry(axis: int, dim: int | onnx_ir.SymbolicDim, sources: tuple[int | onnx_ir.SymbolicDim, ...]) -> int:
    if isinstance(dim, int):
        return dim
    is_copy = dim.value is not None and axis < len(sources) and sources[axis] == dim
    return 0 if is_copy else -1


def _declined(node: onnx_ir.Node, reason: str) -> Declined:
    return Declined(node.name or "", "Reshape", reason)
