"""The relation that operators' rules build: which index of which axis is which other.

Most of it is said of whole axes ("axis 1 of the output is axis 1 of the input"), so axes are united first, in
a forest of integers. Only what is left (Concat, Split, Reshape, ...) ties single indices, and only axes that
nothing froze as a whole (as batch, as space, as a graph input) get atoms, one for each index of a class of
equal axes. So the cost grows with the edges of the graph, and memory with the channels, not the pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.linear import constant_tensor

__all__ = ["Block", "Ints", "NoRule", "Owner", "Place", "Relation", "Size", "Tie", "bodies", "describe"]

Ints: TypeAlias = npt.NDArray[np.int64]
Use: TypeAlias = tuple[onnx_ir.Node, int]

# How much a reason tells: of several, the least number stays.
_INTERFACE, _OPERATOR, _SIZE = 0, 1, 2


class NoRule(Exception):  # noqa: N818 - it is caught where the node is frozen, and never seen outside
    """Raised by a rule that cannot follow this node: all its axes freeze, with this reason."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A value where indices can be removed. `place[k]` is the number of its axis k.

    use: for a vector of constants, the one input that reads it: each reader may keep a part of its own.
    sizes: of the axes; None where the model does not fix one.
    """

    value: onnx_ir.Value
    use: Use | None
    sizes: tuple[int | None, ...]
    first: int

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.sizes)

    @property
    def dims(self) -> tuple[int | str | None, ...]:
        """The sizes, by their names where they have no number."""
        shape = self.value.shape
        assert shape is not None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)

    def __getitem__(self, axis: int) -> int:
        rank = len(self.sizes)
        if not -rank <= axis < rank:
            raise NoRule(f"axis {axis} is beyond the rank of {self.value.name!r}")
        return self.first + axis % rank

    def axes(self, start: int = 0, stop: int | None = None) -> range:
        """Return the numbers of axes `start` to `stop`."""
        return range(self.first, self.first + self.rank)[start:stop]


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """What an axis number stands for. groups > 1: a grouped weight's axis 1, counted over all groups."""

    place: Place
    axis: int
    groups: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """An integer in a computed shape: the size of this axis."""

    axis: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tie:
    """Index `left_at[i]` of one axis is index `right_at[i]` of another."""

    left: int
    left_at: Ints
    right: int
    right_at: Ints


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Axes that a Reshape folds into others of the same product. where: the node, for messages."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    where: str


class Relation:
    """What rules write: axes that are the same, indices that are, and what may not change."""

    def __init__(self, model: onnx_ir.Model) -> None:
        self.model = model
        self.opset = model.graph.opset_imports.get("", 0)
        self.owners: list[Owner] = []
        self.ties: list[Tie] = []
        self.blocks: list[Block] = []
        self.balances: list[tuple[int, int]] = []
        self.frozen_parts: list[tuple[int, Ints, str]] = []
        self.computed: dict[onnx_ir.Value, list[int | Size | None]] = {}
        self.batches: list[int] = []
        self._parents: list[int] = []
        self._sizes: list[int | None] = []
        self._reasons: dict[int, tuple[int, int, str]] = {}
        self._places: dict[onnx_ir.Value | tuple[onnx_ir.Value, onnx_ir.Node, int], Place] = {}
        self._vectors: dict[onnx_ir.Value, bool] = {}
        self._grouped: dict[tuple[Place, int], int] = {}
        self._mentioned: set[int] = set()
        self._count = 0

    # Places.

    def input(self, node: onnx_ir.Node, index: int) -> Place:
        """Return the place of an input. Raises NoRule where it is missing or has no known rank."""
        found = self.optional(node, index)
        if found is None:
            raise NoRule(f"its input {index} is missing")
        return found

    def optional(self, node: onnx_ir.Node, index: int) -> Place | None:
        """Return the place of an input, or None where it is left out."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or (not value.name and value.producer() is None and not value.is_graph_input()):
            return None
        vector = self._vectors.get(value)
        if vector is None:
            vector = self._vectors[value] = _is_vector(value)
        return self._place(value, (node, index) if vector else None)

    def output(self, node: onnx_ir.Node, index: int = 0) -> Place:
        """Return the place of an output."""
        return self.value(node.outputs[index])

    def value(self, value: onnx_ir.Value) -> Place:
        """Return the place of an activation, or of a constant that all readers share."""
        return self._place(value, None)

    def outputs(self, node: onnx_ir.Node) -> list[Place]:
        """Return the places of the outputs that are there; of those that nothing reads, where they are known."""
        return [
            self.value(value)
            for value in node.outputs
            if value.name and (value.shape is not None or value.uses() or value.is_graph_output())
        ]

    def has_rank(self, value: onnx_ir.Value) -> bool:
        """Whether the rank of `value` is known."""
        return value.shape is not None

    def _place(self, value: onnx_ir.Value, use: Use | None) -> Place:
        key = value if use is None else (value, *use)
        found = self._places.get(key)
        if found is not None:
            return found
        if value.shape is None:
            raise NoRule(f"the rank of {value.name!r} is unknown")
        sizes = tuple([dim if isinstance(dim, int) else None for dim in value.shape])
        place = self._places[key] = Place(value, use, sizes, len(self._parents))
        for axis, size in enumerate(sizes):
            number = self._add(Owner(place, axis), size)
            if size is None:
                self._hold(number, _SIZE, f"axis {axis} of {value.name!r} has no fixed size")
            elif size <= 1:
                self._hold(number, _SIZE, f"axis {axis} of {value.name!r} has size {size}")
        tensor = constant_tensor(value)
        if tensor is not None or value.is_initializer():
            self._check_constant(place, tensor)
        return place

    def _check_constant(self, place: Place, tensor: onnx_ir.TensorProtocol | None) -> None:
        if place.value.is_graph_output():
            self.freeze(place.axes(), f"graph output {place.value.name!r}", interface=True)
        elif tensor is None:
            self.freeze(place.axes(), f"a caller may replace {place.value.name!r}", interface=True)
        elif is_encoded(place.value):
            self.freeze(place.axes(), f"{place.value.name!r} is an encoded weight")

    def _add(self, owner: Owner, size: int | None) -> int:
        number = len(self._parents)
        self._parents.append(number)
        self._sizes.append(size)
        self.owners.append(owner)
        return number

    def grouped(self, weight: Place, groups: int) -> int:
        """Return the number that stands for axis 1 of a grouped weight, counted over all groups.

        Group g's index i is g * size + i. Rows of a group are sliced by what is kept of that group.
        """
        key = (weight, groups)
        if key not in self._grouped:
            per_group = weight.sizes[1]
            size = None if per_group is None else per_group * groups
            number = self._grouped[key] = self._add(Owner(weight, 1, groups), size)
            self.freeze([weight[1]], f"{weight.value.name!r} counts it per group")
            if constant_tensor(weight.value) is None:
                self.freeze([number], f"{weight.value.name!r} is computed")
            if size is None or len({g for place, g in self._grouped if place is weight}) > 1:
                self.freeze([number], f"{weight.value.name!r} is read with different groups")
            for node, index in _uses(weight.value):
                if index != 1 or node.attributes.get_int("group", 1) != groups:
                    self.freeze([number], f"{weight.value.name!r} is read by {describe(node)} too")
        self._mentioned.update((weight[1], self._grouped[key]))
        return self._grouped[key]

    # What rules say.

    def same(self, left: int, right: int) -> None:
        """Say that two axes are one: index i of the one is index i of the other."""
        self._mentioned.update((left, right))
        a, b = self.root(left), self.root(right)
        if a == b:
            return
        sizes = self._sizes[a], self._sizes[b]
        if None not in sizes and sizes[0] != sizes[1]:
            reason = f"sizes {sizes[0]} and {sizes[1]} meet at {self._name(left)} and {self._name(right)}"
            self.freeze((left, right), reason)
            return
        first, second = (a, b) if a < b else (b, a)
        self._parents[second] = first
        if self._sizes[first] is None:
            self._sizes[first] = self._sizes[second]
        reasons = [self._reasons.pop(root) for root in (first, second) if root in self._reasons]
        if reasons:
            self._reasons[first] = min(reasons)

    def same_axes(self, left: Iterable[int], right: Iterable[int]) -> None:
        """Say of several axes, in order, that each is the other."""
        for a, b in zip(left, right, strict=True):
            self.same(a, b)

    def tie(self, left: int, left_at: npt.ArrayLike, right: int, right_at: npt.ArrayLike) -> None:
        """Say which indices of two axes are the same."""
        self._mentioned.update((left, right))
        one, other = np.asarray(left_at, np.int64).ravel(), np.asarray(right_at, np.int64).ravel()
        assert one.shape == other.shape, (one.shape, other.shape)
        if self._is_beyond(left, one) or self._is_beyond(right, other):
            self.freeze((left, right), f"the sizes of {self._name(left)} and {self._name(right)} contradict each other")
            return
        self.ties.append(Tie(left, one, right, other))

    def _is_beyond(self, axis: int, indices: Ints) -> bool:
        size = self.size(axis)
        return size is not None and len(indices) > 0 and not 0 <= indices.min() <= indices.max() < size

    def freeze(self, axes: Iterable[int], reason: str, *, interface: bool = False) -> None:
        """Say that no index of these axes may go."""
        for axis in axes:
            self._mentioned.add(axis)
            self._hold(self.root(axis), _INTERFACE if interface else _OPERATOR, reason)

    def freeze_at(self, axis: int, indices: npt.ArrayLike, reason: str) -> None:
        """Say that some indices of an axis may not go."""
        self._mentioned.add(axis)
        self.frozen_parts.append((axis, np.asarray(indices, np.int64).ravel(), reason))

    def free(self, *axes: int) -> None:
        """Say that an axis has nothing to do with others here, and that this is right."""
        self._mentioned.update(axes)

    def balance(self, axis: int, groups: int) -> None:
        """Say that each of `groups` equal parts of an axis must lose as many indices as the others."""
        self.balances.append((axis, groups))

    def batch(self, axes: Iterable[int]) -> None:
        """Say that a product of two activations runs over these axes one by one, as over attention heads."""
        self.batches.extend(axes)

    def block(self, before: Sequence[int], after: Sequence[int], where: str) -> None:
        """Say that axes are folded row-major into others. One on each side can lose indices: see `carriers`."""
        self._mentioned.update((*before, *after))
        self.blocks.append(Block(tuple(before), tuple(after), where))

    def _hold(self, root: int, weight: int, reason: str) -> None:
        held = self._reasons.get(root)
        if held is None or weight < held[0]:
            self._count += 1
            self._reasons[root] = (weight, self._count, reason)

    # What is known.

    def root(self, axis: int) -> int:
        """Return the number that stands for the class of equal axes: the first of them."""
        parents = self._parents
        while parents[axis] != axis:
            parents[axis] = parents[parents[axis]]
            axis = parents[axis]
        return axis

    def size(self, axis: int) -> int | None:
        """Return the size of an axis, or None where it is not fixed."""
        return self._sizes[self.root(axis)]

    def reason(self, axis: int) -> str | None:
        """Say why the whole axis is frozen, or return None."""
        held = self._reasons.get(self.root(axis))
        return None if held is None else held[2]

    def find(self, value: onnx_ir.Value, axis: int) -> int | None:
        """Return the number of an activation's axis, None where nothing was said of it."""
        place = self._places.get(value)
        return None if place is None or not -place.rank <= axis < place.rank else place[axis]

    def _name(self, axis: int) -> str:
        owner = self.owners[axis]
        return f"axis {owner.axis} of {owner.place.value.name!r}"

    # Nodes.

    def begin(self) -> None:
        """Forget which axes were mentioned: a rule is about to run."""
        self._mentioned.clear()

    def finish(self, node: onnx_ir.Node) -> None:
        """Freeze what the rule of `node` passed over, so that a gap of ours can never break a model."""
        for place in self._touched(node):
            for axis in place.axes():
                if axis not in self._mentioned:
                    self.freeze([axis], f"{describe(node)} passes over it")

    def freeze_node(self, node: onnx_ir.Node, reason: str) -> None:
        """Freeze all that `node` reads and makes, and what its bodies take in and give back."""
        for place in self._touched(node, constants=True):
            self.freeze(place.axes(), reason)
        for body in bodies(node):
            for value in (*body.inputs, *body.outputs):
                if value.shape is not None:
                    self.freeze(self.value(value).axes(), reason)

    def _touched(self, node: onnx_ir.Node, *, constants: bool = False) -> Iterator[Place]:
        for index, value in enumerate(node.inputs):
            if value is None or value.shape is None:
                continue
            is_constant = value.is_initializer() or constant_tensor(value) is not None
            if constants or not is_constant:
                place = self.optional(node, index)
            else:  # integers that steer the operator have no place
                place = self._places.get((value, node, index)) or self._places.get(value)
            if place is not None:
                yield place
        for value in node.outputs:
            if value.name and value.shape is not None:
                yield self.value(value)


def describe(node: onnx_ir.Node) -> str:
    """Return the node as messages name it: `Reshape 'reshape_7'`."""
    return f"{node.op_type} {node.name!r}"


def bodies(node: onnx_ir.Node) -> Iterator[onnx_ir.Graph]:
    """Yield the graphs in a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _uses(value: onnx_ir.Value) -> Iterator[Use]:
    for use in value.uses():
        yield use.node, use.idx


def _is_vector(value: onnx_ir.Value) -> bool:
    """Whether `value` is a constant with one axis at most that is longer than 1: each reader may have its own.

    Weights of higher rank that several operators share stay shared, and so do their channels.
    """
    if constant_tensor(value) is None or value.shape is None:
        return False
    return sum(1 for dim in value.shape if dim != 1) <= 1
