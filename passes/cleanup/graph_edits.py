"""Small edits and questions that the exact rewrites share: names, initializers, dead nodes, notes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.inference import take_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Amount

__all__ = [
    "add_initializer",
    "allow_initializers",
    "amount",
    "constant_ints",
    "detach",
    "drop_unused_constant",
    "fresh_name",
    "inherit",
    "is_default_domain",
    "is_removable",
    "quote_names",
    "release_bodies",
    "replace_constant",
    "replacement_problem",
    "set_bias",
    "subgraphs_of",
    "take_over_output",
    "value_names",
]

Array = npt.NDArray[np.generic]

_IR_VERSION_WITH_INITIALIZERS = 4  # before, every initializer had to be a graph input too


def is_default_domain(node: onnx_ir.Node) -> bool:
    """Whether the node's operator is ONNX's own; what others compute is not known here."""
    return node.domain in ("", "ai.onnx")


def constant_ints(node: onnx_ir.Node, index: int) -> tuple[int, ...] | None:
    """Return the integers of a constant input, flat; None where it is omitted or not constant."""
    tensor = constant_tensor(node.inputs[index]) if index < len(node.inputs) else None
    return None if tensor is None else tuple(tensor.numpy().ravel().tolist())


def subgraphs_of(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """Yield the graphs in the node's attributes: branches of If, bodies of Loop and Scan."""
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def value_names(model: onnx_ir.Model) -> set[str | None]:
    """Return the names of all values of all graphs, for `fresh_name`."""
    taken: set[str | None] = set()
    for graph in model.graphs():
        taken.update(value.name for value in graph.inputs)
        taken.update(graph.initializers)
        taken.update(output.name for node in graph for output in node.outputs)
    return taken


def fresh_name(stem: str, taken: set[str | None]) -> str:
    """Return `stem`, or `stem_1`, `stem_2` ...: the first that is not taken; and take it."""
    name, count = stem, 0
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name)
    return name


def allow_initializers(model: onnx_ir.Model) -> None:
    """Raise the IR version to the first that has initializers apart from inputs, as most models do."""
    model.ir_version = max(model.ir_version, _IR_VERSION_WITH_INITIALIZERS)


def add_initializer(model: onnx_ir.Model, graph: onnx_ir.Graph, name: str, array: Array) -> onnx_ir.Value:
    """Add a new constant to `graph` and return it. `name` must be free: see `fresh_name`."""
    allow_initializers(model)
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.Value(
        name=name, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def is_removable(node: onnx_ir.Node) -> bool:
    """Whether nothing reads any output. A node without outputs acts in ways we cannot see: it stays."""
    return bool(node.outputs) and not any(output.is_graph_output() or output.uses() for output in node.outputs)


def detach(node: onnx_ir.Node) -> None:
    """Take `node` out of its graph, and its bodies' nodes off the values they read.

    onnx-ir forgets the second half: a value that a removed branch reads would count as used for ever.
    """
    release_bodies(node)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def release_bodies(node: onnx_ir.Node) -> None:
    """Make the nodes inside `node`'s subgraphs, at any depth, read nothing."""
    for graph in subgraphs_of(node):
        for inner in graph.all_nodes():
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)


def replacement_problem(old: onnx_ir.Value, new: onnx_ir.Value) -> str | None:
    """Say why `new`, which equals `old`, cannot stand for it everywhere; None when it can.

    A graph output keeps its name, so `new` must be a node's output in the same graph that is no output yet.
    A quantization note is part of what a value means: it must not get lost.
    """
    note = quantization_of(old)
    if note is not None and note != quantization_of(new):
        return f"value {old.name!r} carries a quantization note that {new.name!r} lacks"
    if not old.is_graph_output():
        return None
    producer = new.producer()
    if producer is None or producer.graph is not old.graph:
        return f"graph output {old.name!r} needs a node of its own graph behind it"
    if new.is_graph_output():
        return f"graph output {old.name!r} would be the same value as output {new.name!r}"
    return None


def take_over_output(old: onnx_ir.Value, new: onnx_ir.Value) -> None:
    """Let `new`, which equals `old`, stand for it everywhere; as a graph output with the face of `old`."""
    if old.is_graph_output():
        inherit(new, old)
    new.type = new.type or old.type
    if new.shape is None:
        take_shape(new, old)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def inherit(new: onnx_ir.Value, old: onnx_ir.Value) -> None:
    """Give `new` what is known of `old`: name, type, shape, doc string, metadata, notes. `old` is to go."""
    new.name, new.type, new.doc_string = old.name, old.type, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    take_shape(new, old)


def replace_constant(
    node: onnx_ir.Node, index: int, array: Array, model: onnx_ir.Model, names: set[str | None]
) -> onnx_ir.Value:
    """Make the constant at input `index` of `node` hold `array`, and return it.

    The initializer is changed where only this input reads it; others keep what they read, and the node gets a
    constant of its own. names: see `fresh_name`.
    """
    old = node.inputs[index]
    assert old is not None and node.graph is not None
    if old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        old.const_value = onnx_ir.tensor(array, name=old.name)
        old.shape = onnx_ir.Shape(array.shape)
        return old
    new = add_initializer(model, node.graph, fresh_name(f"{old.name}_{node.name}", names), array)
    node.replace_input_with(index, new)
    drop_unused_constant(old)
    return new


def drop_unused_constant(value: onnx_ir.Value) -> None:
    """Remove an initializer or Constant node if nothing reads it any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input() or value.graph is None:
        return
    producer = value.producer()
    if producer is not None:
        detach(producer)
    else:
        value.graph.initializers.pop(value.name or "")


def set_bias(node: onnx_ir.Node, bias: Array, model: onnx_ir.Model, names: set[str | None]) -> onnx_ir.Value:
    """Make `bias` the bias of a Conv, ConvTranspose or Gemm, which may have none yet, and return its value.

    names: see `fresh_name`.
    """
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return replace_constant(node, 2, bias, model, names)
    assert node.graph is not None
    value = add_initializer(model, node.graph, fresh_name(f"{node.name}_bias", names), bias)
    node.resize_inputs(3)
    node.replace_input_with(2, value)
    node.attributes.pop("beta", None)  # Gemm: without a bias it could be anything
    return value


def amount(constants: Iterable[onnx_ir.Value]) -> Amount:
    """Return what constants weigh, removed ones too: floating point numbers of rank 1 and up, stored bytes."""
    found = [constant_tensor(value) if value.const_value is None else value.const_value for value in constants]
    tensors = [tensor for tensor in found if tensor is not None]
    params = sum(tensor.size for tensor in tensors if tensor.dtype.is_floating_point() and len(tensor.shape))
    return Amount(params=params, size_bytes=sum(tensor.nbytes for tensor in tensors))


def quote_names(names: Sequence[str], *, limit: int = 3) -> str:
    """Write names for people.

    >>> quote_names(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
