"""Is a model whole? The checks that run after every pass, and the ones that a model must meet to come in.

The structural check walks the graph once. It reads objects and names both, because a pass can break either:
a node that still refers to a value of a removed node, or two values that will be one after serialization.

    names      node names are there and unique in the model, value names unique in their scope
    order      every input is a graph input, an initializer, an outer value, or made by an earlier node
    constants  every initializer has numbers
    types      graph inputs and outputs have one, and so does what standard operators make of typed inputs
               (but for what onnx's inference could not tell)
    checker    with full=True: onnx's checker, with its strict inference where the model passed that coming in
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir

from onnxpress.ir import inference, onnx_file
from onnxpress.ir.errors import InputError, InternalError

__all__ = [
    "Interface",
    "InterfaceValue",
    "VerifyError",
    "check_finite",
    "checker_complaint",
    "interface",
    "verify",
]

_SHOWN = 5  # problems in one message
_CHUNK = 1 << 20  # elements looked at together, so that a mask of a large weight stays small
_CONTEXT = "==> Context:"  # of the line in which the checker names the node
_STANDARD_DOMAINS = ("", "ai.onnx.ml")

# Where an infinite number is a broken weight. Elsewhere it is a bound (Clip) or a mask (attention).
_WEIGHTED = frozenset(
    {
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "GRU",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "PRelu",
        "RNN",
    }
)


class VerifyError(InternalError):
    """A model that is not whole: the pass that just ran broke it."""


@dataclasses.dataclass(frozen=True)
class InterfaceValue:
    """A graph input or output. dims: sizes, symbol names, None where unknown; None when even the rank is."""

    name: str
    type: str
    dims: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.dims is None:
            return f"{self.name}: {self.type}"
        return f"{self.name}: {self.type}[{','.join('?' if dim is None else str(dim) for dim in self.dims)}]"


@dataclasses.dataclass(frozen=True)
class Interface:
    """What callers of a model rely on, in order. Compare two with `==`."""

    inputs: tuple[InterfaceValue, ...]
    outputs: tuple[InterfaceValue, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"


def interface(model: onnx_ir.Model) -> Interface:
    """Return names, types and dimensions of the graph's inputs and outputs."""
    graph = model.graph
    return Interface(
        tuple(_interface_value(value) for value in graph.inputs),
        tuple(_interface_value(value) for value in graph.outputs),
    )


def _interface_value(value: onnx_ir.Value) -> InterfaceValue:
    dims = None
    if value.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return InterfaceValue(value.name or "", _type_name(value.type), dims)


def _type_name(kind: onnx_ir.TypeProtocol | None) -> str:
    if kind is None:
        return "?"
    if isinstance(kind, onnx_ir.SequenceType):
        return f"sequence({_type_name(kind.elem_type)})"
    if isinstance(kind, onnx_ir.OptionalType):
        return f"optional({_type_name(kind.elem_type)})"
    if isinstance(kind, onnx_ir.SparseTensorType):
        return f"sparse({kind.dtype.name.lower()})"
    return kind.dtype.name.lower()


def verify(model: onnx_ir.Model, *, full: bool = True) -> None:
    """Check that `model` is whole. full: onnx's checker too, which serializes the model without its weights.

    Raises:
        VerifyError: the first problems, each with its node and value.
    """
    found = _problems(model)
    if not found and full:
        complaint = checker_complaint(onnx_file.of_model(model), strict=inference.is_consistent(model))
        if complaint:
            found = [complaint]
    if found:
        shown = "; ".join(found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise VerifyError(f"the model is not whole: {shown}{more}.")


def checker_complaint(skeleton: onnx_file.Skeleton, *, strict: bool) -> str | None:
    """Return the first thing that onnx's checker has against a model, or None. strict: infer shapes too."""
    try:
        onnx.checker.check_model(onnx_file.probe(skeleton), full_check=strict)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
    ) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        contexts = [line.removeprefix(_CONTEXT) for line in lines if line.startswith(_CONTEXT)]
        where = f" ({contexts[0].strip()})" if contexts else ""
        # The checker breaks its line before the node; inference has a line for each of many errors.
        told = lines if isinstance(error, onnx.checker.ValidationError) else lines[:1]
        said = " ".join(line for line in told if not line.startswith(_CONTEXT)).rstrip(".") or "no reason given"
        return f"onnx's checker says: {said}{where}"
    return None


def _problems(model: onnx_ir.Model) -> list[str]:
    walk = _Walk()
    walk.graph(model.graph, "")
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.type is None:
            kind = "input" if value.is_graph_input() else "output"
            walk.problems.append(f"graph {kind} {value.name!r} has no type")
    return walk.problems


class _Walk:
    """One pass over all graphs in order, with what is known at each point.

    values: what nodes may use here, the values of enclosing graphs included. names: theirs.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.values: set[onnx_ir.Value] = set()
        self.names: set[str | None] = set()
        self.node_names: set[str] = set()

    def graph(self, graph: onnx_ir.Graph, where: str) -> None:
        own: list[onnx_ir.Value] = []
        for value in graph.inputs:
            self._define(value, own, f"{where}graph input")
        for name, value in graph.initializers.items():
            if value.name != name:
                self.problems.append(f"{where}initializer {name!r} holds a value named {value.name!r}")
            if value.const_value is None:
                self.problems.append(f"{where}initializer {name!r} has no numbers")
            if not value.is_graph_input():
                self._define(value, own, f"{where}initializer")
        for node in graph:
            self._node(node, own)
        for value in graph.outputs:
            if value not in self.values:
                self.problems.append(f"{where}graph output {value.name!r} is made by no node")
        self.values.difference_update(own)
        self.names.difference_update(value.name for value in own)

    def _define(self, value: onnx_ir.Value, own: list[onnx_ir.Value], what: str) -> None:
        if not value.name:
            self.problems.append(f"{what} has no name")
        elif value.name in self.names:
            self.problems.append(f"{what} {value.name!r}: another value has this name")
        else:
            own.append(value)
            self.names.add(value.name)
        self.values.add(value)

    def _node(self, node: onnx_ir.Node, own: list[onnx_ir.Value]) -> None:
        where = f"node {node.name!r} ({node.op_type})"
        if not node.name:
            made = [value.name for value in node.outputs]
            self.problems.append(f"a node ({node.op_type}) that makes {made} has no name")
        elif node.name in self.node_names:
            self.problems.append(f"{where}: another node has this name")
        else:
            self.node_names.add(node.name)
        for index, value in enumerate(node.inputs):
            if value is not None and value not in self.values:
                self.problems.append(f"{where}: input {index} {value.name!r} {self._why_unknown(value)}")
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                self.graph(attribute.as_graph(), f"{where}: {attribute.name}: ")
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    self.graph(graph, f"{where}: {attribute.name}: ")
        for value in node.outputs:
            if not value.name:  # an optional output that is left out
                continue
            if value.type is None and _must_be_typed(node) and not inference.is_beyond(value):
                self.problems.append(f"{where}: output {value.name!r} has no type")
            self._define(value, own, f"{where}: output")

    def _why_unknown(self, value: onnx_ir.Value) -> str:
        if value.name in self.names:
            return "is not the value that has this name: the node refers to one that was replaced"
        producer = value.producer()
        if producer is not None and producer.graph is not None:
            return f"is made by node {producer.name!r}, which does not come before it"
        return "is made by no node, and is neither graph input nor initializer"


def _must_be_typed(node: onnx_ir.Node) -> bool:
    return node.domain in _STANDARD_DOMAINS and all(v is None or v.type is not None for v in node.inputs)


def check_finite(model: onnx_ir.Model) -> None:
    """Refuse constants that hold NaN, and weights that hold infinity. Reads them all once.

    Infinity is lawful elsewhere: as a bound of Clip, in an attention mask.

    Raises:
        InputError: the first such tensor, with counts.
    """
    for value, tensor in _constants(model):
        if not tensor.dtype.is_floating_point():
            continue
        nans, infinities = _count_not_finite(tensor.numpy())
        if nans or (infinities and any(use.node.op_type in _WEIGHTED for use in value.uses())):
            counts = [f"{count} {name}" for count, name in ((nans, "NaN"), (infinities, "infinite")) if count]
            raise InputError(
                f"weight {value.name!r} {list(tensor.shape.numpy())} {tensor.dtype.name.lower()} holds "
                f"{' and '.join(counts)} of {tensor.size} numbers. No pass can mend that: retrain the model."
            )


def _constants(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Yield initializers and the outputs of Constant nodes, subgraphs included, with their tensors."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value
        for node in graph:
            if node.op_type == "Constant" and node.domain == "":
                attribute = node.attributes.get("value")
                if attribute is not None and attribute.type == onnx_ir.AttributeType.TENSOR:
                    yield node.outputs[0], attribute.as_tensor()


def _count_not_finite(array: npt.NDArray[np.generic]) -> tuple[int, int]:
    """Return how many NaN and how many infinite numbers `array` holds."""
    nans = infinities = 0
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if not np.isfinite(part).all():
            found = int(np.isnan(part).sum())
            nans += found
            infinities += int((~np.isfinite(part)).sum()) - found
    return nans, infinities
