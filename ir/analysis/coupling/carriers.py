"""Choose which axis of a folded block may lose indices.

A Reshape that folds axes [a, b] into one of size a * b leaves, after a removal, a smaller rectangle: whole rows
or whole columns, never single elements. So of the axes on each side of a block one, the *carrier*, may lose
indices and the others freeze. In order of preference:

1. the only one that nothing else froze (the channels of a Flatten: space is frozen);
2. one that carries another block already (both ends of a channel shuffle);
3. one over which products of activations run one by one (attention heads, not the width of a head);
4. the longest (in a channel shuffle the channels of a group, not the groups).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.coupling.relation import Block, Ints, Relation, Tie

__all__ = ["resolve_blocks", "spread_frozen"]


def resolve_blocks(relation: Relation) -> None:
    """Turn the relation's blocks into ties, or freeze them; and spread frozen axes along ties first."""
    spread = _Spread(relation)
    spread.run()
    waiting = list(relation.blocks)
    chosen: set[int] = set()
    batches = {relation.root(axis) for axis in relation.batches}
    while waiting:
        left = [block for block in waiting if not _settle(relation, block, chosen, batches, spread, force=False)]
        if len(left) == len(waiting):
            _settle(relation, left[0], chosen, batches, spread, force=True)
            left = left[1:]
        waiting = left


def spread_frozen(relation: Relation) -> None:
    """Freeze axes all of whose indices are tied to frozen axes."""
    _Spread(relation).run()


def _settle(
    relation: Relation, block: Block, chosen: set[int], batches: set[int], spread: _Spread, *, force: bool
) -> bool:
    """Decide a block where that is plain, or where it is forced; say whether it was."""
    sides = (block.before, block.after)
    open_axes = [[axis for axis in side if relation.reason(axis) is None] for side in sides]
    if not all(open_axes):
        closed = next(side for side, axes in zip(sides, open_axes, strict=True) if not axes)
        reason = relation.reason(closed[0])
        assert reason is not None
        spread.freeze((*block.before, *block.after), reason)
        return True
    if not force and any(len(axes) > 1 for axes in open_axes):
        return False

    def preference(axis: int) -> tuple[bool, bool, int, int]:
        root = relation.root(axis)
        return root in chosen, root in batches, relation.size(axis) or 0, -axis

    left, right = (max(axes, key=preference) for axes in open_axes)
    chosen.update((relation.root(left), relation.root(right)))
    others = [axis for axes in open_axes for axis in axes if axis not in (left, right)]
    carriers = {relation.root(left), relation.root(right)}
    tie = _tie(relation, block, left, right)
    relation.ties.append(tie)
    spread.add(tie)
    if any(relation.root(axis) in carriers for axis in others):  # the same axis twice: rows and columns
        others += [left, right]
    spread.freeze(others, f"{block.where} folds it with other axes")
    return True


def _tie(relation: Relation, block: Block, left: int, right: int) -> Tie:
    """Tie two axes where an element lies at an index of both."""
    pairs = np.stack([_positions(relation, block.before, left), _positions(relation, block.after, right)])
    size = relation.size(right) or 0
    codes = np.unique(pairs[0] * size + pairs[1])
    return Tie(left, codes // size, right, codes % size)


def _positions(relation: Relation, axes: tuple[int, ...], carrier: int) -> Ints:
    """Return for each element of the block, row-major, its index along `carrier`."""
    sizes = [relation.size(axis) or 0 for axis in axes]
    at = axes.index(carrier)
    return (np.arange(int(np.prod(sizes))) // int(np.prod(sizes[at + 1 :], dtype=np.int64))) % sizes[at]


class _Spread:
    """Freezes whole axes along ties: an axis all of whose indices are frozen is frozen."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        self._ties: dict[int, list[Tie]] = defaultdict(list)
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}
        self._queue: deque[int] = deque()
        for tie in relation.ties:
            self.add(tie)

    def add(self, tie: Tie) -> None:
        """Take another tie into account."""
        for axis in (tie.left, tie.right):
            self._ties[self._relation.root(axis)].append(tie)
        self._pass_on(tie)

    def freeze(self, axes: Iterable[int], reason: str) -> None:
        """Freeze axes, and what that freezes."""
        for axis in axes:
            if self._relation.reason(axis) is None:
                self._relation.freeze([axis], reason)
                self._queue.append(self._relation.root(axis))
        self._drain()

    def run(self) -> None:
        """Spread all that is frozen so far."""
        for axis, indices, reason in self._relation.frozen_parts:
            self._hold(axis, indices, reason)
        for root in list(self._ties):
            if self._relation.reason(root) is not None:
                self._queue.append(root)
        self._drain()

    def _drain(self) -> None:
        while self._queue:
            for tie in self._ties.get(self._queue.popleft(), ()):
                self._pass_on(tie)

    def _pass_on(self, tie: Tie) -> None:
        left, right = self._relation.reason(tie.left), self._relation.reason(tie.right)
        if left is not None and right is None:
            self._hold(tie.right, tie.right_at, left)
        elif right is not None and left is None:
            self._hold(tie.left, tie.left_at, right)

    def _hold(self, axis: int, indices: Ints, reason: str) -> None:
        root = self._relation.root(axis)
        size = self._relation.size(root)
        if self._relation.reason(root) is not None or size is None:
            return
        mask = self._masks.setdefault(root, np.zeros(size, bool))
        mask[indices] = True
        if mask.all():
            self._relation.freeze([root], reason)
            self._queue.append(root)
