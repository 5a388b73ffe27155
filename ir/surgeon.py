"""Models to onnx-graphsurgeon graphs and back, so that existing graphsurgeon scripts run as passes.

Weights travel by reference: a `gs.Constant` of the graph reads its numbers only when a script asks for
`.values`, and one that no script replaced comes back as the very tensor it was, encoding and all. What
graphsurgeon has no place for (metadata, doc strings, clipping ranges noted on values) waits outside and is
put back by name.

What it can carry: tensor types, and attributes that are numbers, strings, tensors or graphs. The rest it
drops with a warning or fails on, so it is refused here first.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import model_io, onnx_file
from onnxpress.ir.errors import InputError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["from_surgeon", "to_surgeon"]

_SOURCE = "onnxpress_source"  # attribute of a gs.Graph: the model that it was made from
_KEY = "onnxpress"  # of the external_data entry that stands for a weight during our own export

# While our own export runs, weights are declared and put here; a script's own export gets the numbers.
_EXPORTED: contextvars.ContextVar[dict[str, onnx_ir.TensorProtocol] | None] = contextvars.ContextVar(
    "exported", default=None
)

_CARRIED_ATTRIBUTES = frozenset(
    {
        onnx_ir.AttributeType.FLOAT,
        onnx_ir.AttributeType.FLOATS,
        onnx_ir.AttributeType.GRAPH,
        onnx_ir.AttributeType.INT,
        onnx_ir.AttributeType.INTS,
        onnx_ir.AttributeType.STRING,
        onnx_ir.AttributeType.STRINGS,
        onnx_ir.AttributeType.TENSOR,
    }
)


def to_surgeon(model: onnx_ir.Model) -> gs.Graph:
    """Return `model` as an onnx-graphsurgeon graph. The model is not changed, and its weights are not copied.

    Raises:
        InputError: the model holds something that graphsurgeon cannot carry; which, and where.
    """
    import onnx_graphsurgeon as gs

    complaint = next(_complaints(model), None)
    if complaint:
        raise InputError(f"graphsurgeon cannot carry {complaint}. Leave this model out of graphsurgeon passes.")
    skeleton = onnx_file.of_model(model, inline_bytes=0, with_inferred=True)
    with _quiet():
        graph = gs.import_onnx(skeleton.proto)
    values_type = _values_type()
    for part in (graph, *graph.subgraphs(recursive=True)):
        for tensor in part.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name in skeleton.weights:
                tensor.values = values_type(skeleton.weights[tensor.name])
    setattr(graph, _SOURCE, model)
    return graph


def from_surgeon(graph: gs.Graph, *, source: onnx_ir.Model | None = None) -> onnx_ir.Model:
    """Return an onnx-graphsurgeon graph as a model: checked, with named nodes and inferred shapes.

    source: the model whose metadata, doc strings and notes go to namesakes; by default the one that
    `to_surgeon` made this very graph from.

    Raises:
        InputError: the graph cannot be exported, or the checker refuses the result.
    """
    import onnx_graphsurgeon as gs

    source = source or vars(graph).get(_SOURCE)
    where = f"graphsurgeon graph {graph.name!r}"
    exported: dict[str, onnx_ir.TensorProtocol] = {}
    token = _EXPORTED.set(exported)
    try:
        with _quiet():
            proto = gs.export_onnx(graph)
    except Exception as error:  # graphsurgeon raises what it meets
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{where}: cannot be exported: {lines[0].rstrip('.')}. Mend the script.") from error
    finally:
        _EXPORTED.reset(token)
    if graph.ir_version is None:  # made by hand: onnx's default is its newest version, which few runtimes know
        proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    _gather_initializers(proto, source)
    weights = _take_weights(proto, exported)
    if source is not None:
        _drop_inferred(proto, source)
        _restore_order(proto, source)
    model = model_io.adopt(onnx_file.Skeleton(proto, weights), where)
    if source is not None:
        _carry_over(source, model)
    return model


def _complaints(model: onnx_ir.Model) -> Iterator[str]:
    """Yield what graphsurgeon would lose or fail on."""
    for value in model.graph.outputs:
        if value.is_initializer():
            yield f"graph output {value.name!r}, which is an initializer"
    for graph in model.graphs():
        for value in graph.inputs:
            yield from _type_complaints(value, "graph input")
        for node in graph:
            where = f"node {node.name!r} ({node.op_type})"
            for value in node.outputs:
                yield from _type_complaints(value, f"{where}, output")
            for attribute in node.attributes.values():
                if attribute.type not in _CARRIED_ATTRIBUTES or isinstance(attribute.value, bytes):
                    yield f"{where}, attribute {attribute.name!r} of type {attribute.type.name}"
                elif isinstance(attribute.value, tuple) and not attribute.value:
                    yield f"{where}, attribute {attribute.name!r}, which is an empty list"


def _type_complaints(value: onnx_ir.Value, what: str) -> Iterator[str]:
    if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower()
        yield f"{what} {value.name!r}, which is of type {kind}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep graphsurgeon's remarks off stdout, where it prints them; errors are exceptions anyhow."""
    from onnx_graphsurgeon.logger import G_LOGGER

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL + 1
    try:
        yield
    finally:
        G_LOGGER.severity = severity


@functools.cache
def _values_type() -> type[Any]:
    """Return the class of a constant's values that are still ours."""
    from onnx_graphsurgeon.importers.onnx_importer import get_itemsize, get_onnx_tensor_dtype
    from onnx_graphsurgeon.ir.tensor import LazyValues

    class Values(LazyValues):  # type: ignore[misc]
        def __init__(self, original: onnx_ir.TensorProtocol) -> None:
            self.original = original
            self.shape = list(original.shape.numpy())
            self.dtype = get_onnx_tensor_dtype(self._declaration())
            self.nbytes = original.size * get_itemsize(self.dtype)

        @property
        def tensor(self) -> onnx.TensorProto:
            """What graphsurgeon writes when nobody has replaced the numbers; it sets the name."""
            proto = self._declaration()
            exported = _EXPORTED.get()
            if exported is None:
                proto.raw_data = self.original.tobytes()
                return proto
            key = str(id(self.original))
            exported[key] = self.original
            proto.raw_data = b""
            proto.external_data.add(key=_KEY, value=key)
            return proto

        def load(self) -> np.ndarray[Any, Any]:
            """Return the numbers for a script, which may write into them."""
            return np.array(self.original.numpy())

        def _declaration(self) -> onnx.TensorProto:
            return onnx.TensorProto(data_type=self.original.dtype.value, dims=self.original.shape.numpy())

    return Values


def _gather_initializers(proto: onnx.ModelProto, source: onnx_ir.Model | None) -> None:
    """Bring initializers of the main graph back there: graphsurgeon puts copies where they are used."""
    main = {tensor.name for tensor in proto.graph.initializer}
    known = main.union(() if source is None else source.graph.initializers)
    _, *inner = onnx_file.graphs_of(proto.graph)
    for graph in inner:
        for tensor in [tensor for tensor in graph.initializer if tensor.name in known]:
            if tensor.name not in main:
                proto.graph.initializer.append(tensor)
                main.add(tensor.name)
            graph.initializer.remove(tensor)


def _take_weights(
    proto: onnx.ModelProto, exported: dict[str, onnx_ir.TensorProtocol]
) -> dict[str, onnx_ir.TensorProtocol]:
    """Clear the marks that stand for weights, and return these by name."""
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    for tensor in proto.graph.initializer:
        for key in [entry.value for entry in tensor.external_data if entry.key == _KEY]:
            del tensor.external_data[:]
            weights[tensor.name] = exported[key]
    return weights


def _drop_inferred(proto: onnx.ModelProto, source: onnx_ir.Model) -> None:
    """Drop inner types and shapes that were inferred from the source: the script may have made them stale."""
    inferred = {
        value.name
        for graph in source.graphs()
        for node in graph
        for value in node.outputs
        if onnx_file.is_inferred(value)
    }
    for graph in onnx_file.graphs_of(proto.graph):
        kept = [info for info in graph.value_info if info.name not in inferred]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _restore_order(proto: onnx.ModelProto, source: onnx_ir.Model) -> None:
    """Bring initializers back into the source's order; new ones follow."""
    places = {name: place for place, name in enumerate(source.graph.initializers)}
    initializers = sorted(proto.graph.initializer, key=lambda tensor: places.get(tensor.name, len(places)))
    ordered = onnx.GraphProto(initializer=initializers)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(ordered.initializer)


def _carry_over(source: onnx_ir.Model, model: onnx_ir.Model) -> None:
    """Put back by name what graphsurgeon has no place for."""
    model.domain, model.model_version = source.domain, source.model_version
    model.doc_string = source.doc_string
    model.metadata_props.update(source.metadata_props)
    model.graph.metadata_props.update(source.graph.metadata_props)
    values = {value.name: value for graph in source.graphs() for value in onnx_file.own_values(graph)}
    nodes = {node.name: node for node in source.graph.all_nodes()}
    for graph in model.graphs():
        for value in onnx_file.own_values(graph):
            before = values.get(value.name)
            if before is not None:
                onnx_file.inherit(value, before)
        for node in graph:
            namesake = nodes.get(node.name)
            if namesake is not None and namesake.op_type == node.op_type:
                onnx_file.inherit(node, namesake)
