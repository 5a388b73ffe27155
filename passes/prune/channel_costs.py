"""What a model costs when its channel groups have given widths, without building it.

Removing slots of a group takes a share of some axes. Multiply-accumulates of an operator with weights are proportional
to the elements that are left of its weight, parameters are those elements, and time comes from the target's cost
estimate of the node at its new shapes. All of it follows from the widths, so that thousands of allocations can be
compared.

Two things it does not follow: operators that multiply two activations (attention scores) keep their cost, and a
constant of which several readers keep different parts is counted once. Price what is left in the end on the model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import onnx_ir

from onnxpress.ir.analysis.channels import ChannelGroup
from onnxpress.ir.analysis.cost import cost, node_macs
from onnxpress.ir.linear import Linear, as_linear, constant_tensor
from onnxpress.passes.base import Amount
from onnxpress.passes.constraints import CostEstimator

__all__ = ["Budget", "ChannelCosts"]

Budget = Literal["channels", "macs", "params", "latency"]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """An axis that groups take shares of. parts: (group, indices that each of its slots takes)."""

    size: int
    parts: tuple[tuple[int, int], ...]

    def left(self, removed: Sequence[int]) -> int:
        return self.size - sum(removed[group] * each for group, each in self.parts)


class ChannelCosts:
    """Costs of `model` as functions of how many slots each of `groups` loses."""

    def __init__(self, model: onnx_ir.Model, groups: Sequence[ChannelGroup], estimator: CostEstimator | None) -> None:
        """Read shapes and weights' sizes; nothing is executed."""
        self.groups = groups
        self._estimator = estimator
        self._axes = _axes(groups)
        self._all_axes = {axis for of_value in self._axes.values() for axis in of_value.values()}
        # Read now: the model may have changed by the time of a question.
        tensors = {value: tensor for value in self._axes if (tensor := constant_tensor(value)) is not None}
        self._sizes = {value: (int(tensor.size), tensor.dtype.bitwidth / 8) for value, tensor in tensors.items()}
        nodes = list(onnx_ir.traversal.RecursiveGraphIterator(model.graph))
        self._linear = [op for node in nodes if isinstance(op := as_linear(node), Linear)]
        self._touched: dict[onnx_ir.Node, list[int]] = {}
        for node in nodes:
            found = {
                group
                for value in (*node.inputs, *node.outputs)
                if value is not None
                for axis in self._axes.get(value, {}).values()
                for group, _ in axis.parts
            }
            if found:
                self._touched[node] = sorted(found)
        total = cost(model)
        self._base = {"macs": float(total.macs), "params": float(total.params)}
        self._base["channels"] = float(sum(group.size for group in groups))
        self._macs = {op.node: (op.weight_value, node_macs(op.node) or 0) for op in self._linear}
        self._times: dict[tuple[onnx_ir.Node, tuple[int, ...]], float] = {}
        self._weights_of: list[set[onnx_ir.Value]] = [set() for _ in groups]
        for value in self._sizes:
            for axis in self._axes[value].values():
                for group, _ in axis.parts:
                    self._weights_of[group].add(value)
        self._nodes_of: list[list[onnx_ir.Node]] = [
            [node for node, found in self._touched.items() if group in found] for group in range(len(groups))
        ]
        if estimator is not None:
            self._base["latency"] = sum(self._seconds_of(node, [0] * len(groups)) for node in nodes)

    def total(self, budget: Budget) -> float:
        """Return what the whole model costs as it is."""
        return self._base[budget]

    def cost_of(self, budget: Budget, removed: Sequence[int]) -> float:
        """Return what the model costs after the groups lost `removed` slots each."""
        none = [0] * len(removed)
        if budget == "channels":
            return self._base["channels"] - sum(removed)
        if budget == "params":
            saved = sum(self._size(value, none) - self._size(value, removed) for value in self._sizes)
        elif budget == "macs":
            saved = sum(self._macs_of(op, none) - self._macs_of(op, removed) for op in self._linear)
        else:
            saved = sum(self._seconds_of(node, none) - self._seconds_of(node, removed) for node in self._touched)
        return self._base[budget] - saved

    def saved_by(self, budget: Budget, removed: Sequence[int], group: int, more: int) -> float:
        """Return what is saved when `group` loses `more` slots on top of `removed`; only what it touches is priced."""
        after = list(removed)
        after[group] += more
        if budget == "channels":
            return float(more)
        if budget == "params":
            return float(sum(self._size(v, removed) - self._size(v, after) for v in self._weights_of[group]))
        nodes = self._nodes_of[group]
        if budget == "latency":
            return sum(self._seconds_of(node, removed) - self._seconds_of(node, after) for node in nodes)
        touched = set(nodes)
        return float(
            sum(self._macs_of(op, removed) - self._macs_of(op, after) for op in self._linear if op.node in touched)
        )

    def amount_of(self, group: int, removed: Sequence[int]) -> Amount:
        """Return what the nodes and constants that `group` has a part in weigh."""
        params = sum(self._size(value, removed) for value in self._weights_of[group])
        touched = set(self._nodes_of[group])
        macs = sum(self._macs_of(op, removed) for op in self._linear if op.node in touched)
        size_bytes = sum(self._size(value, removed) * self._sizes[value][1] for value in self._weights_of[group])
        return Amount(round(params), round(macs), round(size_bytes))

    def seconds(self, removed: Sequence[int], group: int) -> float | None:
        """Return the predicted time of all nodes that `group` touches; None without an estimate."""
        if self._estimator is None:
            return None
        return sum(self._seconds_of(node, removed) for node in self._nodes_of[group])

    def keeps_multiple(self, group: int, count: int, multiple: int) -> bool:
        """Whether the axes that `group` has a part in are multiples of `multiple` once it lost `count` slots.

        An axis that is none now, as where a part of it is frozen, asks for nothing but that the slots left are one.
        """
        removed = [count if index == group else 0 for index in range(len(self.groups))]
        none = [0] * len(self.groups)
        axes = [axis for axis in self._all_axes if any(each == group for each, _ in axis.parts)]
        aligned = [axis for axis in axes if axis.left(none) % multiple == 0]
        if any(axis.left(removed) % multiple for axis in aligned):
            return False
        return len(aligned) == len(axes) or (self.groups[group].size - count) % multiple == 0

    def _size(self, value: onnx_ir.Value, removed: Sequence[int]) -> float:
        share = math.prod(axis.left(removed) / axis.size for axis in self._axes[value].values())
        return self._sizes[value][0] * share

    def _macs_of(self, op: Linear, removed: Sequence[int]) -> float:
        weight, macs = self._macs[op.node]
        axes = self._axes.get(weight, {})
        return macs * math.prod(axis.left(removed) / axis.size for axis in axes.values())

    def _seconds_of(self, node: onnx_ir.Node, removed: Sequence[int]) -> float:
        assert self._estimator is not None
        key = node, tuple(removed[group] for group in self._touched.get(node, ()))
        if key not in self._times:
            self._times[key] = self._measure(node, removed) if any(key[1]) else self._estimator.node_seconds(node)
        return self._times[key]

    def _measure(self, node: onnx_ir.Node, removed: Sequence[int]) -> float:
        """Price a stand-in of `node` with the shapes that it would have."""
        assert self._estimator is not None
        if self._seconds_of(node, [0] * len(removed)) == 0.0:
            return 0.0  # it vanishes into its producer, whatever its size
        made: dict[onnx_ir.Value, onnx_ir.Value] = {}
        inputs = [None if value is None else self._stand_in(value, removed, made) for value in node.inputs]
        outputs = [self._stand_in(value, removed, made) for value in node.outputs]
        attributes = [*node.attributes.values()]
        if node.op_type in ("Conv", "ConvTranspose") and node.attributes.get_int("group", 1) > 1:
            attributes = [each for each in attributes if each.name != "group"]
            attributes.append(onnx_ir.AttrInt64("group", self._groups_left(node, removed)))
        copy = onnx_ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs)
        return self._estimator.node_seconds(copy)

    def _groups_left(self, node: onnx_ir.Node, removed: Sequence[int]) -> int:
        """Return the group count of a depthwise convolution that loses channels; other grouped ones keep theirs."""
        groups = node.attributes.get_int("group", 1)
        data, weight = node.inputs[0], node.inputs[1]
        axis = self._axes.get(data, {}).get(1) if data is not None else None
        is_depthwise = weight is not None and weight.shape is not None and weight.shape[1] == 1
        return axis.left(removed) if axis is not None and axis.size == groups and is_depthwise else groups

    def _stand_in(
        self, value: onnx_ir.Value, removed: Sequence[int], made: dict[onnx_ir.Value, onnx_ir.Value]
    ) -> onnx_ir.Value:
        if value not in made:
            shape = value.shape
            if shape is not None:
                dims = list(shape.dims)
                for axis, change in self._axes.get(value, {}).items():
                    held = dims[axis]
                    if isinstance(held, int):
                        dims[axis] = max(1, held * change.left(removed) // change.size)
                shape = onnx_ir.Shape(dims)
            made[value] = onnx_ir.Value(name=value.name, shape=shape, type=value.type)
        return made[value]


def _axes(groups: Sequence[ChannelGroup]) -> dict[onnx_ir.Value, dict[int, _Axis]]:
    """Return every axis of every value that a group has a part in.

    A constant whose readers keep different parts is counted once, by its first reader.
    """
    parts: dict[tuple[onnx_ir.Value, int], tuple[int, object, list[tuple[int, int]]]] = {}
    for index, group in enumerate(groups):
        for member in group.members:
            shape = member.value.shape
            length = shape[member.axis] if shape is not None else None
            if not isinstance(length, int):
                continue
            key = member.value, member.axis
            size, use, found = parts.setdefault(key, (length * member.groups, member.use, []))
            if use == member.use and size == length * member.groups:
                found.append((index, member.positions.shape[1]))
    axes: dict[onnx_ir.Value, dict[int, _Axis]] = {}
    for (value, axis), (size, _, found) in parts.items():
        axes.setdefault(value, {})[axis] = _Axis(size, tuple(found))
    return axes
