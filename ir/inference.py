"""Types and shapes of inner values, found by onnx's own inference and tolerant of its gaps.

A file's own annotations of inner values prove nothing: a batch that was made dynamic by hand leaves the old one in
them, and onnx's inference prefers a number to the symbol that it found itself. So a model is inferred without
them first, from its inputs, weights and operators alone, and what that gives is proven (`proven_shape`). Only
where it leaves gaps (behind custom operators, where shapes are computed) are annotations taken, as far as they do not
contradict each other.

onnx refuses a model as a whole. Here a refusal costs only what cannot be known. Pools that round up get the sizes that
runtimes compute (see `pooling`).

What the model's own inputs and outputs declare is never changed. What outputs declare proves nothing either, for
runtimes only warn of others; what inputs declare does, for runtimes refuse others.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir

from onnxpress.ir import onnx_file
from onnxpress.ir.pooling import settle_pools

__all__ = ["infer_shapes", "is_beyond", "is_consistent", "proven_shape", "take_shape"]

_INCONSISTENT = "onnxpress.inconsistent"
_BEYOND = "onnxpress.beyond-inference"
_PROVEN = "onnxpress.proven-shape"
_BEYOND_ONNX_IR = (None, "map_type", "opaque_type")  # it has no such types
_GENERATED_SYMBOL = "unk__"  # onnx/defs/shape_inference.h, SymbolTable


def infer_shapes(model: onnx_ir.Model) -> None:
    """Infer types and shapes of all inner values in place, subgraphs included. Weights are not touched."""
    annotated = onnx_file.probe(onnx_file.of_model(model))
    settle_pools(annotated, lambda proto: _try_infer(_without_annotations(proto), strict=False))
    bare = _without_annotations(annotated)
    strict = _try_infer(bare, strict=True)
    found = strict or _try_infer(bare, strict=False)
    model.graph.meta[_INCONSISTENT] = strict is None or not _accepts_interfaces(annotated, strict)
    values = [value for graph in model.graphs() for node in graph for value in node.outputs]
    proven = {} if found is None else dict(_types(model.graph, found.graph))
    claimed: dict[onnx_ir.Value, onnx.TypeProto] = {}
    if _has_annotations(annotated.graph) and not all(_is_complete(proven.get(value)) for value in values if value.name):
        found = _try_infer(annotated, strict=True)
        claimed = {} if found is None else dict(_types(model.graph, found.graph))
    declared = frozenset(model.graph.outputs)
    for value in values:
        _annotate(value, proven.get(value), claimed.get(value), value in declared)
    for value in (value for graph in model.graphs() if graph is not model.graph for value in graph.inputs):
        value.meta[_PROVEN] = None


def proven_shape(value: onnx_ir.Value) -> onnx_ir.Shape | None:
    """Return as much of a value's shape as follows from the model's inputs, weights and operators alone.

    `value.shape` may know more, from annotations that nothing but their author vouches for.
    """
    shape: onnx_ir.Shape | None = value.meta.get(_PROVEN, value.shape)
    return shape


def take_shape(new: onnx_ir.Value, old: onnx_ir.Value) -> None:
    """Give `new`, which equals `old` element by element, the shape of `old`, and what of it is proven."""
    if _PROVEN in old.meta:
        new.meta[_PROVEN] = old.meta[_PROVEN]
    else:
        new.meta.pop(_PROVEN, None)
    new.shape = old.shape


def _try_infer(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto | None:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None


def is_consistent(model: onnx_ir.Model) -> bool:
    """Tell whether strict inference accepted the model when it was last inferred.

    A model that came in with contradictions of its own cannot be held to strict checks later.
    """
    return not model.graph.meta.get(_INCONSISTENT)


def is_beyond(value: onnx_ir.Value) -> bool:
    """Tell whether inference could not find the type of a value when the model was last inferred."""
    return bool(value.meta.get(_BEYOND))


def _without_annotations(model: onnx.ModelProto, *, keep_interfaces: bool = False) -> onnx.ModelProto:
    """Return a copy without what the file says of shapes, but for those of the model's inputs.

    keep_interfaces: keep those of the model's outputs and of the inputs of bodies.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    _, *bodies = onnx_file.graphs_of(bare.graph)
    for graph in (bare.graph, *bodies):
        del graph.value_info[:]
    for output in (output for body in bodies for output in body.output):
        output.ClearField("type")
    given = {value.name for value in bare.graph.input}  # onnx takes the shape of an output that is one from there
    for value in (*bare.graph.output, *(value for body in bodies for value in body.input)):
        if value.name not in given and value.type.HasField("tensor_type") and not keep_interfaces:
            value.type.tensor_type.ClearField("shape")
    return bare


def _has_annotations(graph: onnx.GraphProto) -> bool:
    _, *bodies = onnx_file.graphs_of(graph)
    return bool(graph.value_info or bodies)


def _accepts_interfaces(annotated: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    """Whether strict inference would accept what outputs of the model, and inputs of its bodies, declare too."""
    pairs = zip(annotated.graph.output, inferred.graph.output, strict=True)
    if not all(_agree(declared.type, found.type) for declared, found in pairs):
        return False
    _, *bodies = onnx_file.graphs_of(annotated.graph)
    if not any(body.input for body in bodies):
        return True
    return _try_infer(_without_annotations(annotated, keep_interfaces=True), strict=True) is not None


def _agree(one: onnx.TypeProto, other: onnx.TypeProto) -> bool:
    shapes = [kind.tensor_type.shape for kind in (one, other) if kind.tensor_type.HasField("shape")]
    if len(shapes) < 2:
        return True
    first, second = (shape.dim for shape in shapes)
    return len(first) == len(second) and all(
        a.dim_value == b.dim_value
        for a, b in zip(first, second, strict=True)
        if a.HasField("dim_value") and b.HasField("dim_value")
    )


def _types(graph: onnx_ir.Graph, inferred: onnx.GraphProto) -> Iterator[tuple[onnx_ir.Value, onnx.TypeProto]]:
    """Yield what `inferred` knows of the values that the nodes of `graph` make, and of those in their bodies."""
    infos = (*inferred.value_info, *inferred.output)
    found = {info.name: info.type for info in infos if info.type.WhichOneof("value") not in _BEYOND_ONNX_IR}
    for node, node_proto in zip(graph, inferred.node, strict=True):
        yield from ((value, found[value.name]) for value in node.outputs if value.name in found)
        for name, attribute in node.attributes.items():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                yield from _types(attribute.as_graph(), _attribute(node_proto, name).g)
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                protos = _attribute(node_proto, name).graphs
                for inner, inner_proto in zip(attribute.as_graphs(), protos, strict=True):
                    yield from _types(inner, inner_proto)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    found: onnx.AttributeProto = next(a for a in node.attribute if a.name == name)
    return found


def _is_complete(found: onnx.TypeProto | None) -> bool:
    """Whether inference knows the rank, and a number or name of every dimension."""
    if found is None or not found.tensor_type.HasField("shape"):
        return False
    return all(
        dim.HasField("dim_value") or (dim.dim_param and not dim.dim_param.startswith(_GENERATED_SYMBOL))
        for dim in found.tensor_type.shape.dim
    )


def _annotate(
    value: onnx_ir.Value, proven: onnx.TypeProto | None, claimed: onnx.TypeProto | None, declared: bool
) -> None:
    """Take over what is known of a value; of a `declared` one only where that says nothing."""
    kind = claimed if proven is None else proven
    sure = None if proven is None else _shape(proven)
    if kind is not None:
        if not declared and (value.type is None or value.shape is None):
            onnx_file.mark_inferred(value)
        if value.type is None or not declared:
            value.type = onnx_ir.serde.deserialize_type_proto_for_type(kind)
        if value.shape is None or not declared:
            shape = _joined(sure, None if claimed is None else _shape(claimed))
            value.shape = value.shape if shape is None else shape
    if value.type is None:
        value.meta[_BEYOND] = True
    if sure == value.shape:
        value.meta.pop(_PROVEN, None)
    else:
        value.meta[_PROVEN] = sure


def _shape(kind: onnx.TypeProto) -> onnx_ir.Shape | None:
    """Return the shape, its sizes unknown for the symbols that onnx makes up (`unk__0`, anew at each run)."""
    shape = onnx_ir.serde.deserialize_type_proto_for_shape(kind)
    if shape is None or not any(map(_is_generated, shape)):
        return shape
    return onnx_ir.Shape((None if _is_generated(dim) else dim for dim in shape), frozen=True)


def _joined(sure: onnx_ir.Shape | None, guess: onnx_ir.Shape | None) -> onnx_ir.Shape | None:
    """Return `sure`, its unknown dimensions filled from `guess`."""
    if sure is None or guess is None or len(sure) != len(guess):
        return guess if sure is None else sure
    return onnx_ir.Shape((b if _is_unknown(a) else a for a, b in zip(sure, guess, strict=True)), frozen=True)


def _is_unknown(dim: int | onnx_ir.SymbolicDim) -> bool:
    return isinstance(dim, onnx_ir.SymbolicDim) and dim.value is None


def _is_generated(dim: int | onnx_ir.SymbolicDim) -> bool:
    return isinstance(dim, onnx_ir.SymbolicDim) and (dim.value or "").startswith(_GENERATED_SYMBOL)
