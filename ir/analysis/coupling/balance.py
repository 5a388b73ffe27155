"""Even losses for grouped convolutions: which components go together so that all groups stay of one size."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.coupling.relation import Ints

__all__ = ["balance"]

_LARGEST_SEARCH = 2000  # sums looked at for one combination; beyond, what is left goes as one

_Excess = tuple[int, ...]


def balance(table: Ints, frozen: npt.NDArray[np.bool_]) -> tuple[list[list[int]], list[int]]:
    """Return which components to merge, and which cannot go in any way.

    table: [groups, channels of each]: the component of each channel. frozen: of the same shape.
    A component that takes as many channels from each group may go alone. Others are combined, the first of
    each sort with each other, until a combination does.
    """
    labels, counts, first = _count(table)
    loose = (counts != counts[:, :1]).any(axis=1) & ~np.isin(labels, np.unique(table[frozen]))
    sorts: dict[_Excess, list[int]] = defaultdict(list)
    for index in sorted(np.flatnonzero(loose).tolist(), key=lambda index: (int(first[index]), index)):
        sorts[_excess(counts[index])].append(int(labels[index]))
    merged: list[list[int]] = []
    while sorts:
        need = _lane(sorts) or _search(sorts)
        if need is None:
            break
        times = min(len(sorts[excess]) // count for excess, count in need.items())
        for turn in range(times):
            merged.append(
                [one for excess, count in need.items() for one in sorts[excess][turn * count : (turn + 1) * count]]
            )
        for excess, count in need.items():
            sorts[excess] = sorts[excess][times * count :]
            if not sorts[excess]:
                del sorts[excess]
    left = [one for members in sorts.values() for one in members]
    if not left:
        return merged, []
    total = np.sum([np.asarray(excess) * len(members) for excess, members in sorts.items()], axis=0)
    return (merged, left) if total.any() else ([*merged, left], [])


def _count(table: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the components, how many channels of each group each takes, and where in its group it starts."""
    groups, width = table.shape
    labels, inverse = np.unique(table, return_inverse=True)
    inverse = inverse.reshape(table.shape)
    counts = np.stack([np.bincount(row, minlength=len(labels)) for row in inverse], axis=1)
    first = np.full(len(labels), width)
    np.minimum.at(first, inverse.ravel(), np.tile(np.arange(width), groups))
    return labels, counts, first


def _excess(counts: Ints) -> _Excess:
    """Return how many more than the mean each group loses, times the number of groups. It sums to 0."""
    return tuple((counts * len(counts) - counts.sum()).tolist())


def _lane(sorts: dict[_Excess, list[int]]) -> Counter[_Excess] | None:
    """Return one sort for each group, equal but for the group, where there are such: the usual case."""
    for excess in sorts:
        groups = len(excess)
        low, high = min(excess), max(excess)
        if excess.count(low) != groups - 1:
            continue
        lane = [tuple(high if at == group else low for at in range(groups)) for group in range(groups)]
        if all(one in sorts for one in lane):
            return Counter(lane)
    return None


def _search(sorts: dict[_Excess, list[int]]) -> Counter[_Excess] | None:
    """Return how many of which sorts sum to 0, found best first from the first sort on."""
    start = next(iter(sorts))
    scale = max(sum(map(abs, excess)) for excess in sorts)
    heap: list[tuple[float, int, _Excess, _Excess]] = [(1.0, 1, start, start)]
    came: dict[_Excess, tuple[_Excess | None, _Excess]] = {start: (None, start)}
    while heap and len(came) < _LARGEST_SEARCH:
        _, depth, total, _ = heapq.heappop(heap)
        used = _path(came, total)
        for excess, members in sorts.items():
            if used[excess] >= len(members):
                continue
            after = tuple(a + b for a, b in zip(total, excess, strict=True))
            if after in came:
                continue
            came[after] = (total, excess)
            if not any(after):
                return _path(came, after)
            heapq.heappush(heap, (depth + 1 + sum(map(abs, after)) / scale, depth + 1, after, excess))
    return None


def _path(came: dict[_Excess, tuple[_Excess | None, _Excess]], total: _Excess) -> Counter[_Excess]:
    found: Counter[_Excess] = Counter()
    at: _Excess | None = total
    while at is not None:
        at, excess = came[at]
        found[excess] += 1
    return found
