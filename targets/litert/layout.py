"""Decide where images lie channels last, as LiteRT's kernels want them, so that the fewest transposes are left.

ONNX images are [N, C, H, W]; LiteRT convolves [N, H, W, C]. Some operators demand one of the two orders, most take
any as long as all their images agree, and a value that is read in another order than it was made in is transposed
once. That is a minimum cut: the two orders are the two sides, an operator that demands one is tied to it, and each
value is an edge that costs 1 when it is cut. Maximum flow finds the exact minimum for the whole graph; among equals
it moves the fewest numbers.

A value [N, C*H*W] that was flattened from an image has two orders as well, of its columns: a product behind it takes
either, for the rows of its weight can be put in the same order.
Source: Boykov & Kolmogorov 2004, section 2 (labelling by minimum cuts), https://doi.org/10.1109/TPAMI.2004.60
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir

from onnxpress.targets.litert.static_shapes import shape_of

__all__ = ["Demand", "Layouts", "Touch", "is_image", "is_one_order", "last_axes", "plan_layouts"]

_ONE_TRANSPOSE = 1 << 12  # in units of the tie-break, whose sum stays below it
_NEVER = 1 << 30  # capacity of what must not be cut


class Demand(enum.Enum):
    """What an operator asks of the order of one of its images."""

    LAST = "channels last"
    PLAIN = "as ONNX has it"
    AGREE = "the same as its other images that agree"
    ANY = "either"


@dataclasses.dataclass(frozen=True)
class Touch:
    """One operator: what it asks of the images that it reads, and of those that it makes."""

    node: onnx_ir.Node
    reads: Mapping[onnx_ir.Value, Demand]
    makes: Mapping[onnx_ir.Value, Demand]


@dataclasses.dataclass(frozen=True)
class Layouts:
    """made_last: values that their operators make channels last. agree_last: operators whose images agree on that.

    transposes: how many values are read in the other order too.
    """

    made_last: Collection[onnx_ir.Value]
    agree_last: Collection[onnx_ir.Node]
    transposes: int


def is_image(value: onnx_ir.Value) -> bool:
    """Whether a value has two orders for its rank: [N, C, H, W]."""
    shape = shape_of(value)
    return shape is not None and len(shape) == 4


def is_one_order(value: onnx_ir.Value) -> bool:
    """Whether an image's numbers come in the same order either way: it has one channel, or one row and column."""
    _, channels, *size = (*(shape_of(value) or ()), 1, 1)
    return channels == 1 or math.prod(size) == 1


def last_axes(rank: int) -> tuple[int, ...]:
    """Return the ONNX axes in the order in which they lie channels last.

    >>> last_axes(4)
    (0, 2, 3, 1)
    """
    return (0, *range(2, rank), 1)


def plan_layouts(
    touches: Sequence[Touch],
    inputs: Collection[onnx_ir.Value],
    outputs: Collection[onnx_ir.Value],
    *,
    interface: Demand = Demand.PLAIN,
) -> Layouts:
    """Return the orders that need the fewest transposes. interface: that of the graph's images, PLAIN or LAST."""
    cut = _Cut()
    made: dict[onnx_ir.Value, object] = {}
    for value in inputs:
        made[value] = cut.side(interface, value, value)
    for touch in touches:
        for value, demand in touch.makes.items():
            made[value] = cut.side(demand, touch.node, value)
    readers: dict[onnx_ir.Value, list[object]] = {value: [] for value in made}
    for touch in touches:
        for value, demand in touch.reads.items():
            if demand is not Demand.ANY and value in readers:
                readers[value].append(cut.side(demand, touch.node, value))
    for value in outputs:
        if value in readers:
            readers[value].append(cut.side(interface, value, value))
    total = sum(_size(value) for value, read in readers.items() if read) or 1
    for value, read in readers.items():
        others = [side for side in dict.fromkeys(read) if side != made[value]]
        if others:
            cost = 1 if is_one_order(value) else _ONE_TRANSPOSE + (_ONE_TRANSPOSE - 1) * _size(value) // total
            cut.tie(made[value], others, cost)
    last = cut.solve()
    return Layouts(
        made_last={value for value, side in made.items() if side in last},
        agree_last={touch.node for touch in touches if touch.node in last},
        transposes=sum(
            not is_one_order(value) and any((side in last) != (made[value] in last) for side in read)
            for value, read in readers.items()
        ),
    )


def _size(value: onnx_ir.Value) -> int:
    return math.prod(shape_of(value) or ())


class _Cut:
    """A minimum cut between the side `channels last` (the source) and the side `plain` (the sink)."""

    def __init__(self) -> None:
        self._ids: dict[object, int] = {Demand.LAST: 0, Demand.PLAIN: 1}
        self._edges: dict[tuple[int, int], int] = {}

    def side(self, demand: Demand, node: object, value: object) -> object:
        """Return the vertex that stands for an operator's order of a value."""
        if demand is Demand.AGREE:
            return node
        return value if demand is Demand.ANY else demand

    def tie(self, made: object, read: Sequence[object], cost: int) -> None:
        """Charge `cost`, once, where any of `read` lies on another side than `made`."""
        if len(read) == 1:
            self._edge(made, read[0], cost)
            self._edge(read[0], made, cost)
            return
        away, back = object(), object()
        self._edge(made, away, cost)
        self._edge(back, made, cost)
        for each in read:
            self._edge(away, each, _NEVER)
            self._edge(each, back, _NEVER)

    def solve(self) -> set[object]:
        """Return the vertices on the side of the source: those that it still reaches when the flow is largest."""
        if not self._edges:
            return {Demand.LAST}
        from scipy.sparse import csgraph, csr_matrix

        starts, ends = np.array(list(self._edges)).T
        count = len(self._ids)
        capacity = csr_matrix((np.array(list(self._edges.values()), np.int32), (starts, ends)), shape=(count, count))
        flow = csgraph.maximum_flow(capacity, 0, 1).flow
        left = (capacity - flow).tocsr()
        left.data = np.where(left.data > 0, left.data, 0)
        left.eliminate_zeros()
        reached = set(csgraph.breadth_first_order(left, 0, return_predecessors=False).tolist())
        return {vertex for vertex, index in self._ids.items() if index in reached}

    def _edge(self, start: object, end: object, capacity: int) -> None:
        pair = tuple(self._ids.setdefault(vertex, len(self._ids)) for vertex in (start, end))
        if pair[0] != pair[1]:
            key = (pair[0], pair[1])
            self._edges[key] = min(self._edges.get(key, 0) + capacity, _NEVER)
