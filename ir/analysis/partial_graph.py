"""Serialize the part of a model that some values need, without changing the model or copying its weights.

onnx-ir's own serialization takes whole models, and its copies of every weight are what the memory of a small
compiler run consists of. Here large weights go straight from where they are into a file beside the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx_ir
from onnx_ir import serde

from onnxpress.ir.errors import InputError

__all__ = ["serialize_partial"]

_MAPPED_MODEL_BYTES = 4 << 20  # weights above this in all go into a file
_MAPPED_TENSOR_BYTES = 16 << 10  # those below this each stay in the graph: shapes and scales, mostly
_PAGE_BYTES = 4096
_WEIGHTS_NAME = "weights"


def serialize_partial(model: onnx_ir.Model, outputs: Sequence[str], folder: Path) -> bytes | Path:
    """Return a model that computes `outputs`, names of values that nodes of the main graph produce.

    All inputs of the model stay. folder: where weights go that are too large to hand over in bytes.

    Returns:
        The serialized model; or the path of a file in `folder` with its weights beside it.

    Raises:
        OSError: `folder` has no room.
    """
    nodes = _needed_nodes(model, set(outputs))
    weights = _needed_initializers(model, nodes)
    mapped = [value for value in weights if _tensor(value).nbytes >= _MAPPED_TENSOR_BYTES]
    if sum(_tensor(value).nbytes for value in mapped) <= _MAPPED_MODEL_BYTES:
        mapped = []
    proto = _model_proto(model, nodes, outputs)
    for value in weights:
        if value not in mapped:
            _embed(proto.graph.initializer.add(), value.name, _tensor(value))
    if not mapped:
        return bytes(proto.SerializeToString())
    _write_weights(proto.graph, mapped, folder / _WEIGHTS_NAME)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def _needed_nodes(model: onnx_ir.Model, outputs: Collection[str]) -> list[onnx_ir.Node]:
    """Return the nodes of the main graph that `outputs` depend on, in order."""
    pending = [node for node in model.graph if any(value.name in outputs for value in node.outputs)]
    needed = set(pending)
    while pending:
        for value in _used_values(pending.pop()):
            node = value.producer()
            if node is not None and node.graph is model.graph and node not in needed:
                needed.add(node)
                pending.append(node)
    return [node for node in model.graph if node in needed]


def _used_values(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """Yield the inputs of a node, and everything that its bodies use or give, whichever graph it is from."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for graph in _graphs(attribute):
            yield from graph.outputs
            for inner in graph:
                yield from _used_values(inner)


def _graphs(attribute: onnx_ir.Attr) -> Sequence[onnx_ir.Graph]:
    if attribute.type == onnx_ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == onnx_ir.AttributeType.GRAPHS else []


def _needed_initializers(model: onnx_ir.Model, nodes: Iterable[onnx_ir.Node]) -> list[onnx_ir.Value]:
    """Return the initializers that `nodes` use, and those that are defaults of inputs."""
    used = {value for node in nodes for value in _used_values(node)} | set(model.graph.inputs)
    return [value for value in model.graph.initializers.values() if value in used]


def _tensor(value: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    if value.const_value is None:
        raise InputError(f"initializer {value.name!r} has no data")
    return value.const_value


def _model_proto(model: onnx_ir.Model, nodes: Iterable[onnx_ir.Node], outputs: Iterable[str]) -> onnx.ModelProto:
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        serde.serialize_function_into(proto.functions.add(), function)
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for value in model.graph.inputs:
        serde.serialize_value_into(graph.input.add(), value)
    produced: dict[str | None, onnx_ir.Value] = {}
    for node in nodes:
        serde.serialize_node_into(graph.node.add(), node)
        _embed_attributes(graph.node[-1], node)
        produced.update((value.name, value) for value in node.outputs)
    for name in outputs:
        # The declared shape stays out: a wrong one would be refused, and the runtime infers its own.
        info = graph.output.add(name=name)
        dtype = produced[name].dtype
        if dtype is not None:
            info.type.tensor_type.elem_type = dtype.value
    return proto


def _embed_attributes(proto: onnx.NodeProto, node: onnx_ir.Node) -> None:
    """Put tensors of bodies and attributes that lie in external files into the graph."""
    for attribute_proto in proto.attribute:
        attribute = node.attributes[attribute_proto.name]
        if attribute_proto.HasField("t") and attribute_proto.t.data_location == onnx.TensorProto.EXTERNAL:
            _embed(attribute_proto.t, attribute_proto.t.name, attribute.as_tensor())
        bodies = [attribute_proto.g] if attribute_proto.HasField("g") else attribute_proto.graphs
        for body_proto, body in zip(bodies, _graphs(attribute), strict=True):
            for tensor_proto in body_proto.initializer:
                if tensor_proto.data_location == onnx.TensorProto.EXTERNAL:
                    _embed(tensor_proto, tensor_proto.name, _tensor(body.initializers[tensor_proto.name]))
            for inner_proto, inner in zip(body_proto.node, body, strict=True):
                _embed_attributes(inner_proto, inner)


def _embed(proto: onnx.TensorProto, name: str | None, tensor: onnx_ir.TensorProtocol) -> None:
    proto.Clear()
    _describe(proto, name, tensor)
    if tensor.dtype == onnx_ir.DataType.STRING:
        proto.string_data.extend(cast(onnx_ir.StringTensor, tensor).string_data())
    else:
        proto.raw_data = tensor.tobytes()


def _describe(proto: onnx.TensorProto, name: str | None, tensor: onnx_ir.TensorProtocol) -> None:
    proto.name = name or ""
    proto.data_type = tensor.dtype.value
    proto.dims.extend(tensor.shape.numpy())


def _write_weights(graph: onnx.GraphProto, values: Iterable[onnx_ir.Value], path: Path) -> None:
    with path.open("wb") as file:
        for value in values:
            tensor = _tensor(value)
            file.seek(-file.tell() % _PAGE_BYTES, 1)  # where onnxruntime can map it
            proto = graph.initializer.add()
            _describe(proto, value.name, tensor)
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, entry in (("location", path.name), ("offset", file.tell()), ("length", tensor.nbytes)):
                proto.external_data.add(key=key, value=str(entry))
            file.write(_raw(tensor))


def _raw(tensor: onnx_ir.TensorProtocol) -> bytes | memoryview:
    """Return the stored bytes, as a view where numpy's layout is the stored one."""
    if tensor.dtype.bitwidth < 8 or not np.little_endian:
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
