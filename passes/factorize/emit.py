"""The chain of operators that a form stands for: as nodes, and in the place of a linear operator.

Branches of a sum run side by side and are added: on every runtime that was measured, one grouped convolution with
several outputs for each input is slower than as many depthwise ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import Linear
from onnxpress.passes.cleanup.graph_edits import (
    allow_initializers,
    drop_unused_constant,
    fresh_name,
    take_over_output,
    value_names,
)
from onnxpress.passes.factorize.forms import Extent, Stage

__all__ = ["Chain", "build", "replace"]

_Array: TypeAlias = npt.NDArray[Any]
_FIRST_GEMM_WITHOUT_BIAS = 11  # opset


@dataclasses.dataclass(frozen=True)
class Chain:
    """Nodes in their order, the constants that they read, and what the last of them gives. In no graph, unnamed."""

    nodes: list[onnx_ir.Node]
    constants: list[onnx_ir.Value]
    output: onnx_ir.Value


def build(linear: Linear, data: onnx_ir.Value, chains: Sequence[Sequence[Stage]], bias: _Array | None) -> Chain:
    """Return what computes the sum of `chains` from `data`, in place of `linear`, with shapes.

    bias: [out], of the last operator of the last chain; no other has one. The values have no names yet.
    """
    nodes: list[onnx_ir.Node] = []
    constants: list[onnx_ir.Value] = []
    results: list[onnx_ir.Value] = []
    for chain in chains:
        value = data
        for stage in chain:
            is_last = stage is chain[-1] and chain is chains[-1]
            node = _operator(linear, stage, value, bias if is_last else None, constants)
            nodes.append(node)
            value = node.outputs[0]
        results.append(value)
    total = results[0]
    for result in results[1:]:
        node = onnx_ir.Node("", "Add", [total, result])
        node.outputs[0].shape, node.outputs[0].type = result.shape, _copied(result)
        nodes.append(node)
        total = node.outputs[0]
    return Chain(nodes, constants, total)


def replace(model: onnx_ir.Model, linear: Linear, chains: Sequence[Sequence[Stage]], bias: _Array | None) -> None:
    """Put `chains` in the place of `linear` in the graph of `model`.

    The last node keeps the name, and what it gives the name of what it gave.
    """
    node, graph = linear.node, linear.node.graph
    assert isinstance(graph, onnx_ir.Graph)
    made = build(linear, linear.data, chains, bias)
    values, nodes = value_names(model), {each.name for each in graph.all_nodes()}
    for number, each in enumerate(made.nodes, 1):
        each.name = fresh_name(f"{node.name}_{number}", nodes)
        each.outputs[0].name = fresh_name(each.name, values)
    allow_initializers(model)
    for number, constant in enumerate(made.constants, 1):
        constant.name = fresh_name(
            f"{node.name}_{number}_{'weight' if len(constant.shape or ()) > 1 else 'bias'}", values
        )
        assert constant.const_value is not None
        constant.const_value.name = constant.name
        graph.register_initializer(constant)
    held = [value for value in (linear.weight_value, linear.bias_value) if value is not None]
    old, name = node.outputs[0], node.name
    graph.insert_before(node, made.nodes)
    output_name = old.name
    take_over_output(old, made.output)
    graph.remove(node, safe=True)
    old.name = None
    made.output.name, made.nodes[-1].name = output_name, name
    for value in held:
        drop_unused_constant(value)


def _operator(
    linear: Linear, stage: Stage, data: onnx_ir.Value, bias: _Array | None, constants: list[onnx_ir.Value]
) -> onnx_ir.Node:
    node, weight = linear.node, stage.weight
    dtype = linear.weight().dtype
    # Gemm and MatMul have no kernel, a Conv over time has rows alone.
    weight = weight.reshape(*weight.shape[:2], *weight.shape[2 : 2 + len(linear.kernel)])
    held = _constant(linear.to_stored(np.ascontiguousarray(weight, dtype)))
    inputs = [data, held] if linear.weight_index == 1 else [held, data]
    constants.append(held)
    if bias is None and _needs_bias(node):
        bias = np.zeros(1)
    if bias is not None:
        inputs.append(_constant(bias.astype(dtype)))
        constants.append(inputs[-1])
    attributes = _attributes(linear, stage)
    made = onnx_ir.Node(node.domain, node.op_type, inputs, attributes)
    made.outputs[0].shape = _shape_behind(linear, stage, data)
    made.outputs[0].type = _copied(linear.output)
    return made


def _copied(value: onnx_ir.Value) -> onnx_ir.TensorType | None:
    """Return the type of a value, for another: a type object belongs to one value, which may change it."""
    return None if value.dtype is None else onnx_ir.TensorType(value.dtype)


def _needs_bias(node: onnx_ir.Node) -> bool:
    """Whether the operator must have a third input: Gemm before opset 11."""
    graph = node.graph
    return node.op_type == "Gemm" and graph is not None and graph.opset_imports.get("", 0) < _FIRST_GEMM_WITHOUT_BIAS


def _constant(array: _Array) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(array)
    return onnx_ir.Value(type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape), const_value=tensor)


def _attributes(linear: Linear, stage: Stage) -> list[onnx_ir.Attr]:
    """Return what a stage takes of the operator's attributes: along the axes where it has more than a point."""
    given, axes = linear.node.attributes, len(linear.kernel)
    if not axes:
        return [each for each in given.values() if each.name != "beta"]  # 1 with a bias, and nothing without
    taken = _axes_of(stage.extent, axes)
    found = [onnx_ir.AttrInt64s("kernel_shape", [linear.kernel[axis] if axis in taken else 1 for axis in range(axes)])]
    for name in ("strides", "dilations"):
        numbers = given.get_ints(name)
        if numbers is not None:
            found.append(onnx_ir.AttrInt64s(name, [numbers[axis] if axis in taken else 1 for axis in range(axes)]))
    pads = given.get_ints("pads")
    if pads is not None:
        found.append(onnx_ir.AttrInt64s("pads", [pads[at] if at % axes in taken else 0 for at in range(2 * axes)]))
    if stage.groups > 1:
        found.append(onnx_ir.AttrInt64("group", stage.groups))
    return found


def _shape_behind(linear: Linear, stage: Stage, data: onnx_ir.Value) -> onnx_ir.Shape | None:
    """Return the shape that a stage gives: the operator's output extents along the axes that it takes."""
    before, after = data.shape, linear.output.shape
    if before is None or after is None:
        return None
    dims = list(before.dims)
    for axis in _axes_of(stage.extent, len(linear.kernel)):
        dims[2 + axis] = after.dims[2 + axis]
    dims[linear.output_axis] = len(stage.weight)
    return onnx_ir.Shape(dims)


def _axes_of(extent: Extent, axes: int) -> range:
    """Return the spatial axes along which a stage has more than a point."""
    if extent == "point":
        return range(0)
    if extent == "full":
        return range(axes)
    return range(1) if extent == "rows" else range(1, 2)
