"""Types and shapes of inner values, found by onnx's own inference and tolerant of its gaps.

onnx infers a model as a whole and refuses it as a whole. Here a refusal (mostly stale shapes that an
exporter or a hand edit left behind) costs only what cannot be known: the model is inferred again without
its inner annotations, and where inference then stays silent the annotations are kept.

What is declared at the interface (graph inputs and outputs) is never changed.
"""

from __future__ import annotations

import onnx
import onnx_ir

from onnxpress.ir import onnx_file

__all__ = ["infer_shapes", "is_consistent"]

_INCONSISTENT = "onnxpress.inconsistent"


def infer_shapes(model: onnx_ir.Model) -> None:
    """Infer types and shapes of all inner values in place, subgraphs included. Weights are not touched."""
    proto = onnx_file.probe(onnx_file.of_model(model))
    inferred = _try_infer(proto, strict=True)
    if inferred is None:
        for graph in onnx_file.graphs_of(proto.graph):
            del graph.value_info[:]
        inferred = _try_infer(proto, strict=True)
    model.graph.meta[_INCONSISTENT] = inferred is None
    inferred = inferred or _try_infer(proto, strict=False)
    if inferred is not None:
        _merge(model.graph, inferred.graph)


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


def _merge(graph: onnx_ir.Graph, inferred: onnx.GraphProto) -> None:
    """Take over what `inferred` knows of the values that the nodes of `graph` produce."""
    infos = {info.name: info.type for info in inferred.value_info}
    infos.update((info.name, info.type) for info in inferred.output)
    for node, node_proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            if value.name in infos:
                _annotate(value, infos[value.name])
        for name, attribute in node.attributes.items():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                proto = next(a for a in node_proto.attribute if a.name == name)
                _merge(attribute.as_graph(), proto.g)
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                proto = next(a for a in node_proto.attribute if a.name == name)
                for inner, inner_proto in zip(attribute.as_graphs(), proto.graphs, strict=True):
                    _merge(inner, inner_proto)


def _annotate(value: onnx_ir.Value, found: onnx.TypeProto) -> None:
    if found.WhichOneof("value") in (None, "map_type", "opaque_type"):  # onnx-ir has no such types
        return
    new_type = onnx_ir.serde.deserialize_type_proto_for_type(found)
    new_shape = onnx_ir.serde.deserialize_type_proto_for_shape(found)
    declared = value.is_graph_output()
    was_known = value.type is not None and value.shape is not None
    if new_type is not None and (value.type is None or not declared):
        value.type = new_type
    if new_shape is not None and (value.shape is None or not declared):
        value.shape = new_shape
    if not was_known and not declared:
        onnx_file.mark_inferred(value)
