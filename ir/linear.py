"""Linear operators through one view: a constant weight `W[out, in/groups, *kernel]`.

| operator | stored weight | view |
|---|---|---|
| Conv | [M, C/groups, *k] | as stored |
| ConvTranspose | [C, M/groups, *k] | groups apart, the two channel axes swapped: [M, C/groups, *k] |
| Gemm, transB=0 | [K, N] | transposed: [N, K] |
| Gemm, transB=1 | [N, K] | as stored |
| MatMul, constant on the right | [K, N] | transposed: [N, K] |
| MatMul, constant on the left | [M, K] | as stored |

Linear when: the weight is constant (an initializer or a Constant node, and no graph input that a caller may
override), floating point, of the rank above; a bias input is constant with one value per output channel;
Gemm has transA=0, alpha=1 and, with a bias, beta=1. An Add behind a MatMul is not part of the view.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

__all__ = ["LINEAR_OPS", "ONNX_DOMAINS", "Linear", "as_linear", "constant_numbers", "constant_tensor", "linear_ops"]

LINEAR_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ONNX_DOMAINS = ("", "ai.onnx")  # the two spellings of the standard's domain

Array: TypeAlias = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Linear:
    """One linear operator. It only reads, and reads the node at each call, so it follows when constants are replaced.

    weight_index: the node input that holds the weight.
    groups: independent channel groups. kernel: spatial extents. Gemm and MatMul have 1 and ().
    out_axis: axis of the STORED weight that counts output channels, the axis of per-channel quantization.
        ConvTranspose stores M/groups there: with groups > 1, channel j of every group shares parameters.
    data_axis: axis of `data` that counts input channels. output_axis: that of `output` for output channels.
    """

    node: onnx_ir.Node
    weight_index: int
    groups: int
    out_axis: int
    kernel: tuple[int, ...]
    out_channels: int
    in_channels: int
    data_axis: int
    output_axis: int

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has one input channel (a channel multiplier is allowed)."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def data(self) -> onnx_ir.Value:
        """The activation that is multiplied."""
        return _given(self.node, 1 - self.weight_index)

    @property
    def weight_value(self) -> onnx_ir.Value:
        """The constant that holds the weight."""
        return _given(self.node, self.weight_index)

    @property
    def bias_value(self) -> onnx_ir.Value | None:
        """The constant that holds the bias, or None where the operator has none."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def output(self) -> onnx_ir.Value:
        """What the operator computes."""
        return self.node.outputs[0]

    def weight(self) -> Array:
        """Return the dense weight [out_channels, in_channels/groups, *kernel] in its stored float type.

        Read-only unless a copy had to be made: copy before changing it, and store it through `to_stored`.
        """
        return self.from_stored(_tensor(self.weight_value).numpy())

    def from_stored(self, stored: Array) -> Array:
        """Return an array in the operator's own layout as [out, in/groups, *kernel]; a view where possible.

        Serves whatever lies along the stored weight: values, integer codes, masks.
        """
        if self.node.op_type == "ConvTranspose":
            return _swap_grouped(stored, self.groups)
        return stored if self.out_axis == 0 else stored.T

    def to_stored(self, weight: Array) -> Array:
        """Return `weight` [out, in/groups, *kernel] in the operator's own layout, contiguous.

        The inverse of `from_stored`; out and in/groups may differ from the present ones.
        """
        if self.node.op_type == "ConvTranspose":
            return np.ascontiguousarray(_swap_grouped(weight, self.groups))
        return np.ascontiguousarray(weight if self.out_axis == 0 else weight.T)

    def bias(self) -> Array | None:
        """Return the bias [out_channels], a copy, or None where the operator has none."""
        value = self.bias_value
        if value is None:
            return None
        stored = _tensor(value).numpy()
        return np.broadcast_to(stored.reshape(-1), (self.out_channels,)).copy()


def linear_ops(model: onnx_ir.Model | onnx_ir.Graph | onnx_ir.GraphView, *, subgraphs: bool = True) -> Iterator[Linear]:
    """Yield the linear operators in graph order; with `subgraphs`, those in If, Loop and Scan bodies too.

    The graph may be changed between steps as onnx-ir allows while iterating.
    """
    graph = model.graph if isinstance(model, onnx_ir.Model) else model
    nodes = onnx_ir.traversal.RecursiveGraphIterator(graph) if subgraphs else iter(graph)
    for node in nodes:
        found = as_linear(node)
        if isinstance(found, Linear):
            yield found


def as_linear(node: onnx_ir.Node) -> Linear | str | None:
    """Return the view of `node`; the reason why it has none; or None where it is no linear operator."""
    if node.domain not in ONNX_DOMAINS or node.op_type not in LINEAR_OPS:
        return None
    if node.op_type == "MatMul":
        return _matmul(node)
    return _gemm(node) if node.op_type == "Gemm" else _convolution(node)


def constant_tensor(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """Return the tensor of an initializer or Constant node; None where a caller or a node may change it."""
    if value is None or value.is_graph_input():
        return None
    if value.is_initializer():
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain not in ONNX_DOMAINS:
        return None
    if value.const_value is not None:
        return value.const_value
    held = producer.attributes.get("value")
    if held is not None:
        return None if held.is_ref() else held.as_tensor()
    if "sparse_value" in producer.attributes:
        return None
    return onnx_ir.convenience.get_const_tensor(value)  # which would rename the tensor of a `value`


def constant_numbers(value: onnx_ir.Value | None) -> Array | None:
    """Return the numbers of what `constant_tensor` finds."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def _convolution(node: onnx_ir.Node) -> Linear | str:
    data, weight, bias = _inputs(node)
    if data is None or weight is None:
        return "an input is missing"
    shape = _weight_shape(weight)
    if isinstance(shape, str):
        return shape
    if len(shape) < 3:
        return f"weight {weight.name!r} has rank {len(shape)}, needs 3 or more"
    groups = node.attributes.get_int("group", 1)
    transposed = node.op_type == "ConvTranspose"
    channels = shape[1] * groups
    if groups < 1 or shape[0] % groups:
        return f"weight {weight.name!r} {list(shape)} does not divide into group={groups}"
    out_channels, in_channels = (channels, shape[0]) if transposed else (shape[0], channels)
    problem = _bias_problem(bias, out_channels)
    if problem:
        return problem
    return Linear(
        node, weight_index=1, groups=groups, out_axis=int(transposed), kernel=shape[2:],
        out_channels=out_channels, in_channels=in_channels, data_axis=1, output_axis=1,
    )  # fmt: skip


def _gemm(node: onnx_ir.Node) -> Linear | str:
    data, weight, bias = _inputs(node)
    if data is None or weight is None:
        return "an input is missing"
    if node.attributes.get_int("transA", 0):
        return "transA=1: its first input lies transposed"
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    if alpha != 1.0:
        return f"alpha={alpha:g}, needs 1"
    if bias is not None and beta != 1.0:
        return f"beta={beta:g}, needs 1"
    shape = _weight_shape(weight)
    if isinstance(shape, str):
        return shape
    if len(shape) != 2:
        return f"weight {weight.name!r} has rank {len(shape)}, needs 2"
    out_axis = 0 if node.attributes.get_int("transB", 0) else 1
    problem = _bias_problem(bias, shape[out_axis])
    if problem:
        return problem
    return Linear(
        node, weight_index=1, groups=1, out_axis=out_axis, kernel=(),
        out_channels=shape[out_axis], in_channels=shape[1 - out_axis], data_axis=-1, output_axis=-1,
    )  # fmt: skip


def _matmul(node: onnx_ir.Node) -> Linear | str:
    left, right, _ = _inputs(node)
    if left is None or right is None:
        return "an input is missing"
    on_left = constant_tensor(left) is not None
    if on_left and constant_tensor(right) is not None:
        return "both operands are constant: fold constants first"
    weight, data = (left, right) if on_left else (right, left)
    shape = _weight_shape(weight)
    if isinstance(shape, str):
        return shape
    if len(shape) != 2:
        return f"weight {weight.name!r} has rank {len(shape)}, needs 2"
    out_axis, channel_axis = (0, -2) if on_left else (1, -1)
    if on_left:
        if data.shape is None:
            return f"the rank of {data.name!r} is unknown, so its channel axis is too"
        channel_axis = -2 if data.shape.rank() > 1 else -1
    return Linear(
        node, weight_index=0 if on_left else 1, groups=1, out_axis=out_axis, kernel=(),
        out_channels=shape[out_axis], in_channels=shape[1 - out_axis],
        data_axis=channel_axis, output_axis=channel_axis,
    )  # fmt: skip


def _inputs(node: onnx_ir.Node) -> tuple[onnx_ir.Value | None, ...]:
    return (*node.inputs, None, None, None)[:3]


def _weight_shape(weight: onnx_ir.Value) -> tuple[int, ...] | str:
    """Return the stored shape of a usable weight, or the reason why it is none."""
    tensor = constant_tensor(weight)
    if tensor is None:
        return f"weight {weight.name!r} {_why_not_constant(weight)}"
    if not tensor.dtype.is_floating_point():
        return f"weight {weight.name!r} is {tensor.dtype.name}, needs a floating point type"
    shape = tuple(tensor.shape.numpy())
    return shape if math.prod(shape) else f"weight {weight.name!r} {list(shape)} is empty"


def _bias_problem(bias: onnx_ir.Value | None, out_channels: int) -> str | None:
    if bias is None:
        return None
    tensor = constant_tensor(bias)
    if tensor is None:
        return f"bias {bias.name!r} {_why_not_constant(bias)}"
    shape = tuple(tensor.shape.numpy())
    # Gemm broadcasts its bias: [N], [1, N], [1] and [] all mean one value per output channel.
    if any(extent != 1 for extent in shape[:-1]) or (shape and shape[-1] not in (1, out_channels)):
        return f"bias {bias.name!r} {list(shape)} is not one value per output channel ({out_channels})"
    return None


def _why_not_constant(value: onnx_ir.Value) -> str:
    if value.is_graph_input():
        return "is a graph input, which the caller may set"
    producer = value.producer()
    if producer is None:
        return "is not constant"
    return f"is not constant: node {producer.name!r} ({producer.op_type}) computes it"


def _given(node: onnx_ir.Node, index: int) -> onnx_ir.Value:
    value = node.inputs[index]
    assert value is not None, f"input {index} of {node.name!r} was there when its operator was viewed"
    return value


def _tensor(value: onnx_ir.Value) -> onnx_ir.TensorProtocol:
    tensor = constant_tensor(value)
    assert tensor is not None, f"{value.name!r} was constant when its operator was viewed"
    return tensor


def _swap_grouped(weight: Array, groups: int) -> Array:
    """Swap the two channel axes inside each group: [g*a, b, *k] to [g*b, a, *k]; its own inverse."""
    if groups == 1:
        return weight.swapaxes(0, 1)
    rows, columns, *kernel = weight.shape
    apart = weight.reshape(groups, rows // groups, columns, *kernel)
    return apart.swapaxes(1, 2).reshape(groups * columns, rows // groups, *kernel)
