"""Add nodes and constants to a graph under fresh names; equal constants are stored once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.onnx_file import mark_inferred

__all__ = ["Emitter"]

_MOST_SHARED_BYTES = 4096  # holds every table of what a byte means; hashing more than that would cost, and find nothing


class Emitter:
    """Names are derived from the value that a new one stands for, so that graphs stay readable."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self.graph = graph
        self._values = {value.name for node in graph.all_nodes() for value in node.outputs}
        for each in (graph, *graph.subgraphs()):
            self._values |= {value.name for value in each.inputs} | set(each.initializers)
        self._nodes = {node.name for node in graph.all_nodes()}
        self._shared: dict[tuple[np.dtype[Any], tuple[int, ...], bytes], onnx_ir.Value] = {}

    def fresh(self, name: str) -> str:
        """Return `name`, or `name.1`, `name.2` ... where it is taken, and take it."""
        return _take(name, self._values)

    def node(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value | None],
        output: onnx_ir.Value,
        attributes: Mapping[str, Any] | None = None,
    ) -> onnx_ir.Node:
        """Return a node, not yet placed in the graph, that is named after its output."""
        name = _take(str(output.name), self._nodes)
        return onnx_ir.node(op_type, inputs, attributes, outputs=[output], name=name)

    def value(self, name: str, dtype: onnx_ir.DataType, shape: Any) -> onnx_ir.Value:
        """Return a new value under a fresh name; its type and shape follow from the graph, and are not written."""
        value = onnx_ir.val(self.fresh(name), dtype, shape)
        mark_inferred(value)
        return value

    def constant(self, name: str, array: npt.NDArray[Any], *, share: bool = False) -> onnx_ir.Value:
        """Return an initializer that holds `array`; one that is there already, for equal arrays.

        share: look for an equal one whatever its size.
        """
        look = share or array.nbytes <= _MOST_SHARED_BYTES
        key = (array.dtype, array.shape, array.tobytes()) if look else None
        if key is not None and key in self._shared:
            return self._shared[key]
        name = self.fresh(name)
        value = onnx_ir.val(
            name, const_value=onnx_ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        )
        self.graph.register_initializer(value)
        if key is not None:
            self._shared[key] = value
        return value

    def swap(self, node: onnx_ir.Node, index: int, value: onnx_ir.Value) -> None:
        """Make `value` input `index` of `node`, and drop the initializer that nobody reads any more."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        node.replace_input_with(index, value)
        if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
            (old.graph or self.graph).initializers.pop(str(old.name))


def _take(name: str, taken: set[str | None]) -> str:
    unique, count = name, 1
    while unique in taken:
        unique, count = f"{name}.{count}", count + 1
    taken.add(unique)
    return unique
