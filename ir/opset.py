"""Raise a model to the opset that a rewrite needs.

onnx's version converter does the conversion, on the model without its weights. It knows nodes and values
only, so what else hangs on them (metadata, doc strings, notes, known shapes, encodings of weights) is
carried over by name. Where it puts another operator in a node's place (Upsample, now Resize), it makes up
names for the new one and for what it makes; they get the old names back.

It also gets one conversion wrong: Upsample, and Resize before opset 11, place samples "asymmetric" and
round down, and it leaves Resize's later defaults ("half_pixel", round half down) in their place.
"""

from __future__ import annotations

import re

import onnx
import onnx.version_converter
import onnx_ir

from onnxpress.ir import inference, onnx_file
from onnxpress.ir.errors import InputError
from onnxpress.ir.model_io import name_nodes
from onnxpress.ir.verify import checker_complaint

__all__ = ["default_opset", "require_opset"]

_FIRST_OPSET_WITH_RESIZE_MODES = 11
_ASSERTION = re.compile(r"^.*Assertion `.*?` failed: ")  # the converter's source line, before its reason


def default_opset(model: onnx_ir.Model) -> int:
    """Return the version of the default domain that a model imports; 0 where it imports none."""
    return model.graph.opset_imports.get("", 0)


def require_opset(model: onnx_ir.Model, version: int, *, reason: str) -> bool:
    """Upgrade `model` in place to opset `version` or leave it, and tell whether it changed.

    The IR version rises only as far as the opset demands. After an upgrade the graph is a new object: look
    up nodes and values again. reason: what needs the opset, such as "quantize-int8 per channel", for the
    message.

    Raises:
        InputError: a node of the model has no counterpart, or onnx is too old for `version`.
    """
    current = default_opset(model)
    if current >= version:
        return False
    if version > onnx.defs.onnx_opset_version():
        raise InputError(
            f"{reason} needs opset {version}, and the installed onnx {onnx.__version__} knows opsets up to "
            f"{onnx.defs.onnx_opset_version()}. Install a newer onnx."
        )
    if current == 0:
        graph = model.graph
        graph.opset_imports[""] = version
    else:
        graph = _convert(model, current, version, reason)
    needed = [onnx.helper.make_opsetid(domain, number) for domain, number in graph.opset_imports.items()]
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(needed, ignore_unknown=True))
    model.graph = graph
    name_nodes(model)
    inference.infer_shapes(model)
    return True


def _convert(model: onnx_ir.Model, current: int, version: int, reason: str) -> onnx_ir.Graph:
    skeleton = onnx_file.of_model(model)
    proto, complaint = _try_convert(skeleton, version)
    if proto is None:
        raise InputError(
            f"{reason} needs opset {version}, and the model's opset {current} cannot be upgraded: "
            f"{complaint}. Export the model with opset {version} or higher."
        )
    upgraded = onnx_ir.from_proto(proto)
    for name, value in model.graph.initializers.items():
        if name in upgraded.graph.initializers:
            upgraded.graph.initializers[name].const_value = value.const_value
    _restore_names(model, upgraded)
    for old, new in zip(model.graphs(), upgraded.graphs(), strict=True):
        _carry_over(old, new)
        if current < _FIRST_OPSET_WITH_RESIZE_MODES <= version:
            _restore_resize_modes(new)
    return upgraded.graph


def _try_convert(skeleton: onnx_file.Skeleton, version: int) -> tuple[onnx.ModelProto | None, str | None]:
    """Return the converted skeleton, or what went wrong."""
    try:
        proto = onnx.version_converter.convert_version(onnx_file.probe(skeleton), version)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, _ASSERTION.sub("", lines[-1]).strip().rstrip(".")
    inputs = {value.name for value in skeleton.proto.graph.input}
    real_inputs = [value for value in proto.graph.input if value.name in inputs]
    initializers = {tensor.name: tensor for tensor in skeleton.proto.graph.initializer}
    initializers.update((tensor.name, tensor) for tensor in proto.graph.initializer)
    converted = onnx.ModelProto()
    converted.CopyFrom(proto)
    del converted.graph.input[:]
    converted.graph.input.extend(real_inputs)
    del converted.graph.initializer[:]
    converted.graph.initializer.extend(initializers.values())
    for graph in onnx_file.graphs_of(converted.graph):  # it guesses wrong shapes for values of its own
        del graph.value_info[:]
    complaint = checker_complaint(onnx_file.Skeleton(converted, skeleton.weights), strict=False)
    return (None, complaint) if complaint else (converted, None)


def _restore_names(model: onnx_ir.Model, upgraded: onnx_ir.Model) -> None:
    """Give nodes that took another's place its name, and what they make the name that its users knew.

    Walks backwards: a replaced node is known by the names of what it makes, and those by who uses them.
    """
    old_nodes = {node.name: node for node in model.graph.all_nodes()}
    old_values = {value.name: value for graph in model.graphs() for value in onnx_file.own_values(graph)}
    nodes = {node.name for node in upgraded.graph.all_nodes()}
    values = {value.name for graph in upgraded.graphs() for value in onnx_file.own_values(graph)}
    for graph in reversed(list(upgraded.graphs())):  # inner graphs first: they use values of outer ones
        for node in reversed(list(graph)):
            before = old_nodes.get(node.name)
            if before is None and node.outputs and node.outputs[0].name in old_values:
                before = old_values[node.outputs[0].name].producer()
                if before is None or before.name in nodes:
                    continue
                node.name = before.name
                nodes.add(node.name)
            for was, now in zip(before.inputs, node.inputs, strict=False) if before else ():
                if was is None or now is None or now.name in old_values or was.name in values:
                    continue
                now.name = was.name
                values.add(now.name)


def _carry_over(old: onnx_ir.Graph, new: onnx_ir.Graph) -> None:
    """Give nodes and values of `new` what their namesakes in `old` carried."""
    onnx_file.inherit(new, old)
    old_values = {value.name: value for value in onnx_file.own_values(old)}
    for value in onnx_file.own_values(new):
        before = old_values.get(value.name)
        if before is not None:
            value.type, value.shape = before.type or value.type, before.shape or value.shape
            onnx_file.inherit(value, before)
    old_nodes = {node.name: node for node in old}
    for node in new:
        namesake = old_nodes.get(node.name)
        if namesake is not None:
            onnx_file.inherit(node, namesake)


def _restore_resize_modes(graph: onnx_ir.Graph) -> None:
    """Spell out how Resize worked before its modes were attributes."""
    for node in graph:
        if node.op_type == "Resize" and node.domain == "":
            for name, mode in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[name] = onnx_ir.AttrString(name, mode)
