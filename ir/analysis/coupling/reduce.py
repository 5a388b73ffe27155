"""Operators that mix along axes: norms, pooling, reductions, Softmax. What they mix over freezes.

A mean, a norm or a maximum over channels would be another number with some of them gone, even if they are 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change, has_input, ints_of
from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Place, Relation, describe

__all__ = ()  # rules register themselves

_SOFTMAX_OVER_ONE_AXIS = 13  # the opset from which Softmax takes one axis, not all from it on


@rule("BatchNormalization")
def _batch_norm(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X * scale[c] + shift[c], from four vectors along axis 1."""
    data = relation.input(node, 0)
    for place in relation.outputs(node):
        if place.rank == data.rank:
            relation.same_axes(data.axes(), place.axes())
        else:
            relation.same(data[1], place[0])
    for index in range(1, 5):
        relation.same(relation.input(node, index)[0], data[1])
    if node.attributes.get_int("training_mode", 0):
        relation.freeze((data[0], *data.axes(2)), f"normalised over by {describe(node)}")
    relation.free(*data.axes())


@rule("InstanceNormalization")
def _instance_norm(relation: Relation, node: onnx_ir.Node) -> None:
    """Each channel is normalised over space, by itself."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same_axes(data.axes(), result.axes())
    for index in (1, 2):
        relation.same(relation.input(node, index)[0], data[1])
    relation.freeze(data.axes(2), f"normalised over by {describe(node)}")


def _rewrite_group_norm(change: Change, node: onnx_ir.Node) -> None:
    data = node.inputs[0]
    assert data is not None and data.shape is not None
    groups = node.attributes.get_int("num_groups")
    kept, size = change.kept(data, 1), data.shape[1]
    assert isinstance(size, int)
    node.attributes["num_groups"] = onnx_ir.AttrInt64("num_groups", len(kept) * groups // size)


@rule("GroupNormalization", rewrite=_rewrite_group_norm)
def _group_norm(relation: Relation, node: onnx_ir.Node) -> None:
    """The channels of a group are normalised together: they go together."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same_axes(data.axes(), result.axes())
    relation.freeze(data.axes(2), f"normalised over by {describe(node)}")
    groups, channels = node.attributes.get_int("num_groups", 0), data.sizes[1]
    if channels is None or groups < 1 or channels % groups:
        raise NoRule("its groups are unknown")
    first = np.arange(groups) * (channels // groups)
    for offset in range(1, channels // groups):
        relation.tie(data[1], first, data[1], first + offset)
    for index in (1, 2):
        parameter = relation.input(node, index)
        if parameter.sizes[0] == channels:
            relation.same(parameter[0], data[1])
        else:  # before opset 21: one number a group
            relation.tie(parameter[0], np.arange(groups), data[1], first)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(relation: Relation, node: onnx_ir.Node) -> None:
    """All axes from `axis` on are normalised together."""
    data = relation.input(node, 0)
    axis = node.attributes.get_int("axis", -1) % data.rank
    for place in relation.outputs(node):
        relation.same_axes(data.axes(0, axis), place.axes(0, axis))
        relation.freeze(place.axes(axis), f"normalised over by {describe(node)}")
    relation.freeze(data.axes(axis), f"normalised over by {describe(node)}")
    for index in range(1, len(node.inputs)):
        parameter = relation.optional(node, index)
        if parameter is not None:
            relation.freeze(parameter.axes(), f"normalised over by {describe(node)}")


@rule("LpNormalization", "MeanVarianceNormalization", "CumSum", "Trilu", "LRN")
def _mix(relation: Relation, node: onnx_ir.Node) -> None:
    """Y has the axes of X, and mixes along some of them."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same_axes(data.axes(), result.axes())
    for axis in _mixed(node, data.rank):
        relation.freeze([data[axis]], f"{describe(node)} mixes along it")


def _mixed(node: onnx_ir.Node, rank: int) -> tuple[int, ...]:
    if node.op_type == "LRN":
        return (1,)
    if node.op_type == "LpNormalization":
        return (node.attributes.get_int("axis", -1),)
    if node.op_type == "MeanVarianceNormalization":
        return tuple(node.attributes.get_ints("axes", (0, 2, 3)))
    if node.op_type == "Trilu":
        return (-2, -1)
    axes = ints_of(node, 1, "axis")
    return tuple(range(rank)) if axes is None else (axes[0],)


@rule("Softmax", "LogSoftmax", "Hardmax")
def _softmax(relation: Relation, node: onnx_ir.Node) -> None:
    """Y sums to 1 along `axis`, before opset 13 along all axes from it on."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same_axes(data.axes(), result.axes())
    if relation.opset >= _SOFTMAX_OVER_ONE_AXIS:
        mixed = [data[node.attributes.get_int("axis", -1)]]
    else:
        mixed = list(data.axes(node.attributes.get_int("axis", 1) % data.rank))
    relation.freeze(mixed, f"normalised over by {describe(node)}")


@rule(
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"
)  # fmt: skip
def _pool(relation: Relation, node: onnx_ir.Node) -> None:
    """Each channel by itself, over windows of space."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same_axes(data.axes(0, 2), result.axes(0, 2))
    relation.freeze((*data.axes(2), *result.axes(2)), f"spatial axis of {describe(node)}")
    if len(node.outputs) > 1 and node.outputs[1].name and node.outputs[1].uses():
        raise NoRule("its indices count over all channels")
    for other in relation.outputs(node)[1:]:
        relation.freeze(other.axes(), f"indices of {describe(node)}")


_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)


@rule(*_REDUCTIONS.split())
def _reduce(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X summed up along some axes, which stay with size 1 or go."""
    data, result = relation.input(node, 0), relation.output(node)
    axes = ints_of(node, 1, "axes")
    if axes is None and has_input(node, 1):
        raise NoRule("its axes are computed")
    if not axes:
        nothing = node.attributes.get_int("noop_with_empty_axes", 0)
        axes = [] if nothing else list(range(data.rank))
    _freeze_reduced(relation, node, data, result, {axis % data.rank for axis in axes})


@rule("ArgMax", "ArgMin")
def _arg_max(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = where along one axis X is largest."""
    data, result = relation.input(node, 0), relation.output(node)
    _freeze_reduced(relation, node, data, result, {node.attributes.get_int("axis", 0) % data.rank})


def _freeze_reduced(relation: Relation, node: onnx_ir.Node, data: Place, result: Place, axes: set[int]) -> None:
    relation.freeze((data[axis] for axis in axes), f"{describe(node)} reduces it")
    keep = node.attributes.get_int("keepdims", 1)
    left = [axis for axis in range(data.rank) if axis not in axes]
    onto = left if keep else range(result.rank)
    relation.same_axes((data[axis] for axis in left), (result[axis] for axis in onto))
    relation.free(*result.axes())


@rule("TopK")
def _top_k(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = the largest of X along one axis, and where they are."""
    data = relation.input(node, 0)
    chosen = node.attributes.get_int("axis", -1) % data.rank
    for result in relation.outputs(node):
        for axis in range(data.rank):
            if axis != chosen:
                relation.same(data[axis], result[axis])
        relation.freeze((data[chosen], result[chosen]), f"{describe(node)} picks along it")


@rule("RoiAlign", "GridSample")
def _sample(relation: Relation, node: onnx_ir.Node) -> None:
    """Each channel of X by itself, at given points of space."""
    data, result = relation.input(node, 0), relation.output(node)
    relation.same(data[1], result[1])
    for place in (data, result):
        relation.freeze((place[0], *place.axes(2)), f"{describe(node)} samples it")
    for index in range(1, len(node.inputs)):
        other = relation.optional(node, index)
        if other is not None:
            relation.freeze(other.axes(), f"points of {describe(node)}")
