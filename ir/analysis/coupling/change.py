"""What a removal keeps, and the edits that operators' rewrites make with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.coupling.relation import Ints
from onnxpress.ir.linear import constant_tensor

__all__ = ["Change", "constant_ints", "drop_unused", "has_input", "ints_of"]


class Change:
    """What is kept of the axes that lose indices, before anything is sliced: shapes are the old ones.

    kept: of activations, by value and axis, the sorted indices that stay; axes that keep all are not there.
    """

    def __init__(self, model: onnx_ir.Model, kept: Mapping[onnx_ir.Value, Mapping[int, Ints]]) -> None:
        self.model = model
        self._kept = kept
        self._names: set[str | None] | None = None

    def touches(self, node: onnx_ir.Node) -> bool:
        """Whether an activation that `node` reads or makes loses indices."""
        return any(v in self._kept for v in node.inputs if v is not None) or any(v in self._kept for v in node.outputs)

    def indices(self, value: onnx_ir.Value, axis: int) -> Ints | None:
        """Return the kept indices of an axis, or None where all stay."""
        found = self._kept.get(value)
        return None if found is None else found.get(axis)

    def kept(self, value: onnx_ir.Value, axis: int) -> Ints:
        """Return the kept indices of an axis of fixed size, all of them where it does not change."""
        found = self.indices(value, axis)
        if found is not None:
            return found
        assert value.shape is not None
        size = value.shape[axis]
        assert isinstance(size, int), (value.name, axis)
        return np.arange(size)

    def size(self, value: onnx_ir.Value, axis: int) -> int | None:
        """Return the new size of an axis, None where it has no fixed one."""
        found = self.indices(value, axis)
        if found is not None:
            return len(found)
        assert value.shape is not None
        size = value.shape[axis]
        return size if isinstance(size, int) else None

    def sizes(self, value: onnx_ir.Value) -> list[int | None]:
        """Return the new shape of `value`."""
        assert value.shape is not None
        return [self.size(value, axis) for axis in range(len(value.shape))]

    # Edits.

    def set_ints(self, node: onnx_ir.Node, index: int, name: str, numbers: Sequence[int]) -> None:
        """Give `node` new integers at input `index`; as its attribute `name` where it has them there.

        Other readers of a constant keep what they read. The type of the constant stays.
        """
        given = node.inputs[index] if 0 <= index < len(node.inputs) else None
        if given is None and name in node.attributes:
            node.attributes[name] = onnx_ir.AttrInt64s(name, list(numbers))
            return
        tensor = constant_tensor(given)
        dtype = np.dtype(np.int64) if tensor is None else tensor.dtype.numpy()
        shape = tuple(tensor.shape.numpy()) if tensor is not None and tensor.size == len(numbers) else (-1,)
        self.set_input(node, index, np.asarray(numbers, dtype).reshape(shape))

    def set_input(self, node: onnx_ir.Node, index: int, array: npt.NDArray[np.generic]) -> onnx_ir.Value:
        """Give `node` a constant of its own at input `index`, and drop the old one where nothing reads it."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old = node.inputs[index]
        stem = f"{node.name}_{index}" if old is None or not old.name else old.name
        made = self.add(node, stem, onnx_ir.tensor(array))
        node.replace_input_with(index, made)
        if old is not None:
            drop_unused(old)
        return made

    def add(self, node: onnx_ir.Node, stem: str, tensor: onnx_ir.TensorProtocol) -> onnx_ir.Value:
        """Add a constant to the graph of `node` under a name like `stem`, and return it."""
        if self._names is None:
            self._names = _names(self.model)
        name, count = stem, 0
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        tensor.name = name
        shape = onnx_ir.Shape(tuple(tensor.shape.numpy()))
        value = onnx_ir.Value(name=name, type=onnx_ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        assert node.graph is not None
        node.graph.register_initializer(value)
        return value


def drop_unused(value: onnx_ir.Value) -> None:
    """Take away a constant that nothing reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    if value.is_initializer():
        assert value.graph is not None and value.name is not None
        value.graph.initializers.pop(value.name)
        return
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.graph is not None:
        producer.graph.remove(producer, safe=True)


def constant_ints(node: onnx_ir.Node, index: int) -> list[int] | None:
    """Return the integers of a constant input, flat; None where it is left out or not constant."""
    tensor = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
    return None if tensor is None else [int(number) for number in tensor.numpy().ravel()]


def ints_of(node: onnx_ir.Node, index: int, name: str) -> list[int] | None:
    """Return integers that an operator takes as an attribute or, in later opsets, as an input.

    Returns:
        None where neither is there, or the input is not constant: `has_input` tells which.
    """
    if name in node.attributes:
        return [int(number) for number in node.attributes[name].as_ints()]
    return constant_ints(node, index)


def has_input(node: onnx_ir.Node, index: int) -> bool:
    """Whether an optional input is given."""
    return index < len(node.inputs) and node.inputs[index] is not None


def _names(model: onnx_ir.Model) -> set[str | None]:
    taken: set[str | None] = set()
    for graph in model.graphs():
        taken.update(value.name for value in graph.inputs)
        taken.update(graph.initializers)
        taken.update(output.name for node in graph for output in node.outputs)
    return taken
