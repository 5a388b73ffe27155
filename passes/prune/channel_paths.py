"""In which order the slots of a channel group can go, what that costs its consumers, and how they make good for it.

Everything here follows from the moments of the consumers' inputs in the original model; nothing is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.channels import ChannelGroup
from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.linear import Linear
from onnxpress.passes.least_squares import least_squares_of
from onnxpress.passes.prune.elimination import Consumer

__all__ = ["columns_without", "consumers_of", "reading_consumers", "refitted_without", "silenced", "slot_columns"]

_Array: TypeAlias = npt.NDArray[Any]
_Ints: TypeAlias = npt.NDArray[np.int64]


def reading_consumers(group: ChannelGroup) -> list[Linear]:
    """Return the linear operators that mix the group's channels, and lose inputs and no outputs with them.

    A grouped convolution whose slots are whole groups of it, as in a depthwise one, passes its channels on to others.
    """
    return [op for op in group.consumers if op.groups == 1 or _takes_from_every_group(group, op)]


def _takes_from_every_group(group: ChannelGroup, op: Linear) -> bool:
    channels = group.positions(op.data, op.data_axis)
    if channels is None:
        return False
    counts = (channels[:, :, None] // (op.in_channels // op.groups) == np.arange(op.groups)).sum(axis=1)
    return bool((counts == counts[0, 0]).all()) and counts[0, 0] > 0


def consumers_of(group: ChannelGroup, moments: Mapping[str, Moments]) -> list[Consumer]:
    """Return what `elimination` needs to know of the group's readers, grouped convolutions as one for each group."""
    found = []
    for op in reading_consumers(group):
        of_op = moments[op.node.name or ""]
        second = of_op.gram if op.node.op_type == "MatMul" else of_op.covariance()  # without a bias, means count
        rows = op.weight().reshape(op.groups, op.out_channels // op.groups, -1).astype(np.float64)
        for number, columns in enumerate(slot_columns(group, op)):
            found.append(Consumer(rows[number], second[number], columns))
    return found


def refitted_without(
    group: ChannelGroup, slots: Sequence[int], moments: Mapping[str, Moments], ridge: float
) -> dict[str, tuple[_Array, _Array | None]]:
    """Return weight and bias of each reader, by node name, once it reads zeros from `slots`: least squares.

    The weights keep their shapes, zeros where the slots were: the same function as after the removal.
    """
    fitted: dict[str, tuple[_Array, _Array | None]] = {}
    for op in reading_consumers(group):
        weight, bias = op.weight(), op.bias()
        of_op = moments[op.node.name or ""].with_target(weight, bias)
        fitted[op.node.name or ""] = least_squares_of(
            columns_without(group, op, slots), of_op, weight, bias, ridge=ridge, fit_bias=op.node.op_type != "MatMul"
        )
    return fitted


def silenced(group: ChannelGroup, slots: Sequence[int]) -> dict[str, tuple[_Array, _Array | None]]:
    """Return weight and bias of each reader, by node name, with zeros where it reads `slots` and no refit."""
    found: dict[str, tuple[_Array, _Array | None]] = {}
    for op in reading_consumers(group):
        weight = op.weight().copy()
        rows = weight.reshape(op.groups, op.out_channels // op.groups, -1)
        for number, columns in enumerate(slot_columns(group, op)):
            rows[number][:, columns[list(slots)].ravel()] = 0
        found[op.node.name or ""] = weight, op.bias()
    return found


def columns_without(group: ChannelGroup, op: Linear, slots: Sequence[int]) -> _Ints:
    """Return the columns of `op`'s moments that are left without `slots`, [groups, kept], ascending."""
    width = op.in_channels // op.groups * math.prod(op.kernel)
    gone = [columns[list(slots)].ravel() for columns in slot_columns(group, op)]
    return np.stack([np.setdiff1d(np.arange(width), each) for each in gone])


def slot_columns(group: ChannelGroup, op: Linear) -> list[_Ints]:
    """Return for each group of `op` the columns of its moments that belong to each slot, [slots, each]."""
    channels = group.positions(op.data, op.data_axis)
    assert channels is not None, "a consumer reads the group's channels"
    taps = math.prod(op.kernel)
    per_group = op.in_channels // op.groups
    expanded = (channels[:, :, None] % per_group * taps + np.arange(taps)).reshape(
        len(channels), channels.shape[1], taps
    )
    found = []
    for number in range(op.groups):
        inside = channels // per_group == number
        each = int(inside[0].sum())
        found.append(expanded[inside].reshape(len(channels), each * taps))
    return found
