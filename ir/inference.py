"""Types and shapes of inner values, found by onnx's own inference and tolerant of its gaps.

onnx infers a model as a whole and refuses it as a whole. Here a refusal (mostly stale shapes that an
exporter or a hand edit left behind) costs only what cannot be known: the model is inferred again without
its inner annotations, and where inference then stays silent the annotations are kept.

What the model's own inputs and outputs declare is never changed.
"""

from __future__ import annotations

import onnx
import onnx_ir

from onnxpress.ir import onnx_file

__all__ = ["infer_shapes", "is_beyond", "is_consistent"]

_INCONSISTENT = "onnxpress.inconsistent"
_BEYOND = "onnxpress.beyond-inference"
_GENERATED_SYMBOL = "unk__"  # onnx/defs/shape_inference.h, SymbolTable


def infer_shapes(model: onnx_ir.Model) -> None:
    """Infer types and shapes of all inner values in place, subgraphs included. Weights are not touched."""
    proto = onnx_file.probe(onnx_file.of_model(model))
    inferred = _try_infer(proto, strict=True)
    if inferred is None:
        _, *inner = onnx_file.graphs_of(proto.graph)
        for graph in (proto.graph, *inner):
            del graph.value_info[:]
        for output in (output for graph in inner for output in graph.output):
            output.ClearField("type")
        inferred = _try_infer(proto, strict=True)
    model.graph.meta[_INCONSISTENT] = inferred is None
    inferred = inferred or _try_infer(proto, strict=False)
    if inferred is not None:
        _merge(model.graph, inferred.graph, frozenset(model.graph.outputs))


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


def _merge(graph: onnx_ir.Graph, inferred: onnx.GraphProto, declared: frozenset[onnx_ir.Value]) -> None:
    """Take over what `inferred` knows of the values that nodes make; `declared` ones only where unknown."""
    found = {info.name: info.type for info in inferred.value_info}
    found.update((info.name, info.type) for info in inferred.output)
    for node, node_proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            if value.name in found:
                _annotate(value, found[value.name], value in declared)
            if value.type is None:
                value.meta[_BEYOND] = True
        for name, attribute in node.attributes.items():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                _merge(attribute.as_graph(), _attribute(node_proto, name).g, declared)
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                protos = _attribute(node_proto, name).graphs
                for inner, inner_proto in zip(attribute.as_graphs(), protos, strict=True):
                    _merge(inner, inner_proto, declared)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    found: onnx.AttributeProto = next(a for a in node.attribute if a.name == name)
    return found


def _annotate(value: onnx_ir.Value, found: onnx.TypeProto, declared: bool) -> None:
    if found.WhichOneof("value") in (None, "map_type", "opaque_type"):  # onnx-ir has no such types
        return
    if not declared and (value.type is None or value.shape is None):
        onnx_file.mark_inferred(value)
    if value.type is None or not declared:
        value.type = onnx_ir.serde.deserialize_type_proto_for_type(found)
    if value.shape is None or not declared:
        shape = onnx_ir.serde.deserialize_type_proto_for_shape(found)
        value.shape = value.shape if shape is None else _without_generated_symbols(shape)


def _without_generated_symbols(shape: onnx_ir.Shape) -> onnx_ir.Shape:
    """Return the shape with unknown sizes for the symbols that onnx makes up (`unk__0`, anew at each run)."""
    if not any(map(_is_generated, shape)):
        return shape
    return onnx_ir.Shape((None if _is_generated(dim) else dim for dim in shape), frozen=True)


def _is_generated(dim: int | onnx_ir.SymbolicDim) -> bool:
    return isinstance(dim, onnx_ir.SymbolicDim) and (dim.value or "").startswith(_GENERATED_SYMBOL)
