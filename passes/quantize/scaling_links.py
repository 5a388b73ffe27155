"""Find pairs of linear operators between which each channel may be scaled freely.

    first -> between ... -> second        f(s x) = s f(x) for s > 0 and every operator f between

What the first divides its output channel by, the second may multiply its input channel with. Reads only.

Between may stand: Relu, LeakyRelu, PRelu, Identity; Clip that has no bound but 0; MaxPool, AveragePool,
GlobalAveragePool, GlobalMaxPool, and ReduceMean over positions (padding adds zeros or nothing, so it scales
too); Flatten, Reshape and Squeeze that lay the positions of a channel side by side. A depthwise Conv is a
linear operator of its own, linked on both sides.

A pair is a link when, all along the way: every value has one use, in the graph of the first, is no graph
output and carries no quantization note; no operator stands between that bends (Sigmoid), bounds (Clip at 6)
or mixes (Add, Concat); the channels of the one are provably those of the other. And both weights are
float32, float64 or bfloat16 constants with one reader and no encoding, the second's not on an int8 grid
that scaled columns would leave.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.grid import grid_scale
from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import Linear, as_linear, constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.graph_edits import constant_ints

__all__ = ["Link", "find_links"]

_Place = tuple[int, bool]  # axis and flat, as in _Way

_LARGEST = float(np.finfo(np.float32).max)  # exporters write it for "no bound"
_OTHER_AXIS = "works along another axis than the channels"
_TYPES = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE, onnx_ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A pair whose channels scale together.

    between: the nodes on the way, in order. repeat: input channels of `second` that stand for one output
    channel of `first`, side by side: the positions that a Flatten laid out, or 1.
    """

    first: Linear
    second: Linear
    between: tuple[onnx_ir.Node, ...]
    repeat: int

    @property
    def channels(self) -> int:
        """Output channels of the first."""
        return self.first.out_channels


@dataclasses.dataclass(frozen=True)
class _Way:
    """How far channels were followed. axis: theirs in `value`. flat: positions lie along it too."""

    value: onnx_ir.Value
    axis: int
    flat: bool = False


def find_links(model: onnx_ir.Model) -> Iterator[Link | Declined]:
    """Yield for every linear operator the link to the next one, or the reason why there is none."""
    for node in model.graph.all_nodes():
        view = as_linear(node)
        if view is None:
            continue
        found = view if isinstance(view, str) else _follow(view)
        yield Declined(node.name or "", node.op_type, found) if isinstance(found, str) else found


def _follow(first: Linear) -> Link | str:
    reason = _weight_reason(first)
    if reason is not None:
        return reason
    way = _Way(first.output, first.output_axis)
    between: list[onnx_ir.Node] = []
    while True:
        user = _only_user(way.value, first.node.graph)
        if isinstance(user, str):
            return user
        second = as_linear(user)
        if isinstance(second, str):
            return f"{user.op_type} {user.name!r}: {second}"
        if second is not None:
            return _link(first, second, way, tuple(between))
        step = _step(user, way)
        if isinstance(step, str):
            return step
        between.append(user)
        way = step


def _only_user(value: onnx_ir.Value, graph: onnx_ir.Graph | None) -> onnx_ir.Node | str:
    if value.is_graph_output():
        return f"{value.name!r} is a graph output"
    uses = tuple(value.uses())
    if len(uses) != 1:
        return f"{value.name!r} has {len(uses)} uses, needs 1"
    if quantization_of(value) is not None:
        return f"{value.name!r} carries a quantization note: equalize before quantizing"
    if uses[0].node.graph is not graph:
        return f"{value.name!r} is read in a body of another node"
    return uses[0].node


def _link(first: Linear, second: Linear, way: _Way, between: tuple[onnx_ir.Node, ...]) -> Link | str:
    where = f"{second.node.op_type} {second.node.name!r}"
    if second.data is not way.value:
        return f"{where} reads {way.value.name!r} as a parameter"
    if _place(way.axis, way.value) != _place(second.data_axis, way.value):
        return f"{where} reads channels along another axis of {way.value.name!r}"
    repeat, rest = divmod(second.in_channels, first.out_channels)
    if rest or not repeat or (repeat > 1 and not way.flat):
        return f"{where} reads {second.in_channels} channels where {first.out_channels} are written"
    reason = _weight_reason(second)
    if reason is None and not second.is_depthwise and grid_scale(second.weight(), axis=0) is not None:
        reason = "its weight lies on an int8 grid, which scaled columns would leave"
    return Link(first, second, between, repeat) if reason is None else f"{where}: {reason}"


def _weight_reason(linear: Linear) -> str | None:
    value, bias = linear.weight_value, linear.bias_value
    if is_encoded(value):
        return f"weight {value.name!r} is encoded"
    if bias is not None and is_encoded(bias):
        return f"bias {bias.name!r} is encoded"
    if len(value.uses()) != 1 or value.is_graph_output():
        return f"weight {value.name!r} is shared"
    tensor = constant_tensor(value)
    if tensor is not None and tensor.dtype not in _TYPES:
        return f"weight {value.name!r} is {tensor.dtype.name}, whose range is too small to scale in"
    return None


def _place(axis: int, value: onnx_ir.Value) -> int:
    """Return the axis counted from the front where the rank is known."""
    shape = proven_shape(value)
    return axis if axis >= 0 or shape is None else axis + len(shape)


def _step(node: onnx_ir.Node, way: _Way) -> _Way | str:
    """Follow the channels through one node, or say why that cannot be."""
    where = f"{node.op_type} {node.name!r}"
    rule = _STEPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        return f"{where} is not positively homogeneous, or mixes channels"
    if node.inputs[0] is not way.value:
        return f"{where} reads {way.value.name!r} as a parameter"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return f"{where} has more than one output"
    place = rule(node, way)
    if isinstance(place, str):
        return f"{where} {place}"
    axis, flat = place
    return _Way(node.outputs[0], axis, flat)


def _elementwise(node: onnx_ir.Node, way: _Way) -> _Place | str:
    return way.axis, way.flat


def _clip(node: onnx_ir.Node, way: _Way) -> _Place | str:
    low, high = (_bound(node, name, index) for index, name in ((1, "min"), (2, "max")))
    for bound, free in ((low, -math.inf), (high, math.inf)):
        if bound is None:
            return "has a bound that is not constant"
        if bound not in (0.0, free):
            return f"bounds at {bound:g}, which scaling would move"
    return way.axis, way.flat


def _pool(node: onnx_ir.Node, way: _Way) -> _Place | str:
    return (1, False) if _place(way.axis, way.value) == 1 else _OTHER_AXIS


def _reduce(node: onnx_ir.Node, way: _Way) -> _Place | str:
    return (1, False) if _are_positions(node, way) else "is not known to reduce positions alone"


def _squeeze(node: onnx_ir.Node, way: _Way) -> _Place | str:
    return (1, way.flat) if _are_positions(node, way) else "is not known to keep the channels where they are"


def _are_positions(node: onnx_ir.Node, way: _Way) -> bool:
    """Whether the channels lie on axis 1 and the node's axes, attribute or input, all behind them."""
    axes = node.attributes.get_ints("axes") or constant_ints(node, 1)
    shape = proven_shape(way.value)
    if not axes or shape is None or _place(way.axis, way.value) != 1:
        return False
    return min(axis % len(shape) for axis in axes) > 1


def _flatten(node: onnx_ir.Node, way: _Way) -> _Place | str:
    if _place(way.axis, way.value) != 1 or node.attributes.get_int("axis", 1) != 1:
        return _OTHER_AXIS
    return 1, True


def _reshape(node: onnx_ir.Node, way: _Way) -> _Place | str:
    """[N, C, ...] to [N, the rest], as Flatten does."""
    dims, wanted = proven_shape(way.value), constant_ints(node, 1)
    if dims is not None and wanted is not None and len(wanted) == 2 and _place(way.axis, way.value) == 1:
        copies = wanted[0] == 0 and not node.attributes.get_int("allowzero", 0)
        rest = math.prod(dim if isinstance(dim, int) else 0 for dim in dims[1:])
        if copies or wanted[0] == dims[0] or 0 < rest == wanted[1]:
            return 1, True
    return "is not known to lay out each channel by itself"


def _bound(node: onnx_ir.Node, name: str, index: int) -> float | None:
    """Return a bound of Clip, infinite where there is none in effect, or None where it is not constant."""
    nothing = -math.inf if name == "min" else math.inf
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        bound = node.attributes.get_float(name, nothing)
    else:
        tensor = constant_tensor(value)
        if tensor is None:
            return None
        bound = float(tensor.numpy().item())
    return nothing if abs(bound) >= _LARGEST else bound


_STEPS: dict[str, Callable[[onnx_ir.Node, _Way], _Place | str]] = {
    "Relu": _elementwise,
    "LeakyRelu": _elementwise,
    "PRelu": _elementwise,
    "Identity": _elementwise,
    "Clip": _clip,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalMaxPool": _pool,
    "GlobalAveragePool": _pool,
    "ReduceMean": _reduce,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
}
