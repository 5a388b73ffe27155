"""Which channels live or die together, and how to remove them.

Every index of every axis is an *atom*. Operators' rules (in `coupling`) say which atoms are the same: Add ties
elementwise, Concat joins end to end, Flatten repeats, Transpose permutes, a depthwise Conv ties input to
output, a grouped Conv its groups, Split and Slice select. The connected components of that relation are the
*slots*: what must be kept or removed together. Slots of one kind form a `ChannelGroup`, such as the inner
channels of one block, or a residual stream. An operator without a rule freezes what it touches, with a reason.

    coupling = couple(model)
    for group in coupling.groups:
        if group.frozen is None:
            removals[group] = [0, 3, 5]
    remove(model, removals)

Removing slots whose activations are zero changes no output (up to rounding). Operators that mix along an axis
in any other way than by weights (means, norms, Softmax) freeze it. The product of two activations is the one
exception: the axis it sums over may lose indices, which is exact when one factor is zero there.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.coupling.components import Kind, kinds
from onnxpress.ir.analysis.coupling.relation import Ints, Relation
from onnxpress.ir.analysis.coupling.removal import remove_indices
from onnxpress.ir.analysis.coupling.walk import relate
from onnxpress.ir.errors import InternalError
from onnxpress.ir.linear import Linear, constant_tensor, linear_ops

__all__ = ["ChannelGroup", "Coupling", "Member", "couple", "remove", "removed_indices"]

# Operators with weights, and the axis of their first output that counts channels. (MatMul may have none.)
_CHANNEL_AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "RNN": -1, "GRU": -1, "LSTM": -1}


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """An axis of a value that holds a part of every slot of a group.

    positions: [slots, each]: the indices along `axis` that each slot takes, ascending.
    constant: whether the value holds numbers of the model (a weight, a bias, a parameter of a norm).
    use: the only reader (node, input index) that this speaks of, where each reader of a constant may keep a part of
        its own; None: all readers.
    groups: above 1 for axis 1 of a grouped weight. Its positions count over all groups: index // n is the
        group, index % n the position along the stored axis, which has size n.
    """

    value: onnx_ir.Value
    axis: int
    positions: Ints
    constant: bool
    use: tuple[onnx_ir.Node, int] | None = None
    groups: int = 1

    @property
    def params_each(self) -> int:
        """How many numbers of the model each slot holds in this value; 0 for an activation."""
        tensor = constant_tensor(self.value) if self.constant else None
        if tensor is None:
            return 0
        length = int(tensor.shape.numpy()[self.axis]) * self.groups
        return int(tensor.size * self.positions.shape[1] // length)


@dataclasses.dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Slots of one kind: units that can be removed one by one, each with all its atoms.

    name: unique in the model; that of the first producer, or the first value where there is none.
    size: number of slots. frozen: why none may be removed, or None.
    producers: linear operators whose output channels (some or all) are slots; consumers: those whose input
        channels are. A depthwise convolution is both.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    frozen: str | None
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]

    def __repr__(self) -> str:
        state = "" if self.frozen is None else f", frozen: {self.frozen}"
        return f"ChannelGroup({self.name!r}, {self.size}{state})"

    @property
    def constants(self) -> tuple[Member, ...]:
        """The members that hold numbers of the model."""
        return tuple(member for member in self.members if member.constant)

    def positions(self, value: onnx_ir.Value, axis: int) -> Ints | None:
        """Return the indices [slots, each] of the slots along an axis of an activation; None if it has none.

        A negative axis counts from the end. For a linear operator's channels see `Linear.data_axis` and
        `Linear.output_axis`.
        """
        if value.shape is None:
            return None
        at = axis % len(value.shape)
        found = (m.positions for m in self.members if m.value is value and m.axis == at and m.use is None)
        return next(found, None)


@dataclasses.dataclass(frozen=True, eq=False)
class Coupling:
    """The groups of a model that linear operators or constants have a part in, in graph order."""

    groups: tuple[ChannelGroup, ...]

    @property
    def removable(self) -> tuple[ChannelGroup, ...]:
        """The groups that are not frozen."""
        return tuple(group for group in self.groups if group.frozen is None)


def couple(model: onnx_ir.Model) -> Coupling:
    """Find which channels of `model` belong together. It reads shapes (which must be inferred), no weights.

    The result speaks of the model as it is: couple again after any change.
    """
    relation = relate(model)
    found = kinds(relation)
    members: dict[int, list[int]] = defaultdict(list)
    for axis in range(len(relation.owners)):
        members[relation.root(axis)].append(axis)
    producers, consumers = _linear_axes(model, relation)
    made_by = _makers(model, relation)
    names: dict[str, int] = {}
    groups = []
    for kind in found:
        into = _unique(op for root in kind.positions for op in producers.get(root, ()))
        out_of = _unique(op for root in kind.positions for op in consumers.get(root, ()))
        parts = tuple(_members(relation, kind, members))
        maker = next((made_by[root] for root in kind.positions if root in made_by), None)
        if not maker and not out_of and not (kind.frozen is None and any(part.constant for part in parts)):
            continue
        stem = (into[0].node.name if into else maker) or parts[0].value.name or "channels"
        names[stem] = names.get(stem, 0) + 1
        name = stem if names[stem] == 1 else f"{stem}#{names[stem]}"
        groups.append(ChannelGroup(name, kind.size, parts, _reason(relation, kind), into, out_of))
    return Coupling(tuple(groups))


def _reason(relation: Relation, kind: Kind) -> str | None:
    if kind.frozen is not None or kind.size > 1:
        return kind.frozen
    if any(positions.size == relation.size(root) for root, positions in kind.positions.items()):
        return "all its channels hang together"
    return None


def _members(relation: Relation, kind: Kind, axes: Mapping[int, Sequence[int]]) -> Iterable[Member]:
    numbered = sorted((axis, root) for root in kind.positions for axis in axes[root])
    for number, root in numbered:
        owner = relation.owners[number]
        place = owner.place
        constant = constant_tensor(place.value) is not None
        yield Member(place.value, owner.axis, kind.positions[root], constant, place.use, owner.groups)


def _linear_axes(model: onnx_ir.Model, relation: Relation) -> tuple[dict[int, list[Linear]], dict[int, list[Linear]]]:
    """Return linear operators by the class of their output channels and of their input channels."""
    producers: dict[int, list[Linear]] = defaultdict(list)
    consumers: dict[int, list[Linear]] = defaultdict(list)
    for op in linear_ops(model):
        for table, value, axis in (
            (producers, op.output, op.output_axis),
            (consumers, op.data, op.data_axis),
        ):
            number = relation.find(value, axis)
            if number is not None:
                table[relation.root(number)].append(op)
    return producers, consumers


def _makers(model: onnx_ir.Model, relation: Relation) -> dict[int, str]:
    """Return by class of axes the first node that makes such channels, of computed weights too."""
    found: dict[int, str] = {}
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in _CHANNEL_AXES:
            number = relation.find(node.outputs[0], _CHANNEL_AXES[node.op_type])
            if number is not None:
                found.setdefault(relation.root(number), node.name or "")
    return found


def _unique(ops: Iterable[Linear]) -> tuple[Linear, ...]:
    return tuple({op.node: op for op in ops}.values())


def removed_indices(
    removals: Mapping[ChannelGroup, Sequence[int]],
) -> dict[tuple[onnx_ir.Value, int], Ints]:
    """Return the sorted indices that `remove` takes from each axis of each activation."""
    return {
        (member.value, member.axis): indices
        for member, indices in _removed(removals)
        if member.use is None and not member.constant
    }


def _removed(removals: Mapping[ChannelGroup, Sequence[int]]) -> list[tuple[Member, Ints]]:
    """Return one member for each axis that loses indices, with the sorted indices that go."""
    gathered: dict[tuple[object, ...], tuple[Member, list[Ints]]] = {}
    for group, slots in removals.items():
        chosen = np.unique(np.asarray(slots, np.int64))
        if not len(chosen):
            continue
        if group.frozen is not None:
            raise InternalError(f"channels of {group.name!r} cannot be removed: {group.frozen}.")
        if chosen[0] < 0 or chosen[-1] >= group.size:
            raise InternalError(f"{group.name!r} has {group.size} slots, and {chosen[-1]} is none of them.")
        for member in group.members:
            key = (member.value, member.axis, member.use, member.groups)
            gathered.setdefault(key, (member, []))[1].append(member.positions[chosen].ravel())
    return [(member, np.sort(np.concatenate(parts))) for member, parts in gathered.values()]


def remove(model: onnx_ir.Model, removals: Mapping[ChannelGroup, Sequence[int]]) -> None:
    """Remove slots from `model` in place: constants are sliced, shapes, sizes and group counts rewritten.

    removals: slots by group, of this very model as it is. At least one index must stay on every axis.

    Raises:
        InternalError: a frozen group, an unknown slot, nothing left of an axis, or a model that is not whole
            afterwards. But for the last, nothing was changed.
    """
    removed = _removed(removals)
    if removed:
        remove_indices(model, [(part.value, part.axis, part.use, part.groups, gone) for part, gone in removed])
