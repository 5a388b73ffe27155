"""From ties to slots: connected components of atoms, those of one kind together.

An atom is one index of one class of equal axes. A component is a *slot*: atoms that live or die together.
Slots that take equally many atoms from the same axes are of one kind, as the hidden channels of one block are.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np

from onnxpress.ir.analysis.coupling.balance import balance
from onnxpress.ir.analysis.coupling.carriers import resolve_blocks
from onnxpress.ir.analysis.coupling.relation import Ints, Relation

__all__ = ["Kind", "kinds"]

_SEED = 20_240_229
_NONE = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Kind:
    """Slots of one kind. positions: by class of axes (its root), the indices of each slot [slots, each]."""

    positions: dict[int, Ints]
    frozen: str | None

    @property
    def size(self) -> int:
        """How many slots there are."""
        return len(next(iter(self.positions.values())))


def kinds(relation: Relation) -> list[Kind]:
    """Return all kinds of slots; classes of axes that froze as a whole are one kind each."""
    resolve_blocks(relation)
    whole = [
        Kind({root: np.arange(relation.size(root) or 0)[:, None]}, relation.reason(root))
        for root in _roots(relation)
        if relation.reason(root) is not None and (relation.size(root) or 0) > 0
    ]
    return sorted((*whole, *_Atoms(relation).kinds()), key=lambda kind: (min(kind.positions), _first(kind)))


def _roots(relation: Relation) -> list[int]:
    return [axis for axis in range(len(relation.owners)) if relation.root(axis) == axis]


def _first_atom(atoms: Ints) -> int:
    return int(atoms[0])


def _first(kind: Kind) -> int:
    return int(kind.positions[min(kind.positions)].min())


class _Atoms:
    """Atoms of all classes that nothing froze as a whole."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        live = [root for root in _roots(relation) if relation.reason(root) is None]
        sizes = [relation.size(root) or 0 for root in live]
        self.roots = np.asarray(live, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.offsets = dict(zip(live, self.starts.tolist(), strict=False))
        self.owner = np.repeat(np.arange(len(live)), sizes)
        self.count = int(self.starts[-1])
        self.reasons: list[str] = []

    def atoms(self, axis: int, indices: Ints) -> Ints | None:
        """Return the atoms of an axis' indices, None where the axis is frozen."""
        start = self.offsets.get(self._relation.root(axis))
        return None if start is None else indices + start

    def kinds(self) -> list[Kind]:
        """Return the kinds of slots, in no order."""
        if not self.count:
            return []
        labels, frozen = self._components()
        return self._classify(labels, frozen)

    def _components(self) -> tuple[Ints, Ints]:
        """Return each atom's component, and each component's reason: an index, or _NONE."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        held = np.full(self.count, _NONE)
        for axis, indices, reason in self._relation.frozen_parts:
            self._hold(held, self.atoms(axis, indices), reason)
        ones, others = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for tie in self._relation.ties:
            left, right = self.atoms(tie.left, tie.left_at), self.atoms(tie.right, tie.right_at)
            if left is not None and right is not None:
                ones.append(left)
                others.append(right)
            elif left is not None or right is not None:
                frozen_axis = tie.left if left is None else tie.right
                self._hold(held, right if left is None else left, self._relation.reason(frozen_axis) or "")
        one, other = np.concatenate(ones), np.concatenate(others)
        graph = coo_array((np.ones(len(one), np.int8), (one, other)), (self.count, self.count))
        number, labels = connected_components(graph, directed=False)
        frozen = np.full(number, _NONE)
        np.minimum.at(frozen, labels, held)
        return self._balanced(labels.astype(np.int64), frozen)

    def _hold(self, held: Ints, atoms: Ints | None, reason: str) -> None:
        if atoms is not None:
            held[atoms] = np.minimum(held[atoms], self._reason(reason))

    def _reason(self, text: str) -> int:
        self.reasons.append(text)
        return len(self.reasons) - 1

    # Grouped convolutions.

    def _balanced(self, labels: Ints, frozen: Ints) -> tuple[Ints, Ints]:
        """Merge components so that each takes as many atoms from every group of a grouped convolution."""
        parents = np.arange(len(frozen))
        for axis, groups in dict.fromkeys(
            (self._relation.root(axis), groups) for axis, groups in self._relation.balances
        ):
            size = self._relation.size(axis)
            atoms = self.atoms(axis, np.arange(size or 0))
            if atoms is None:
                continue
            found = labels[atoms]
            while (parents[found] != found).any():
                found = parents[found]
            table = found.reshape(groups, -1)
            merged, stuck = balance(table, frozen[table] != _NONE)
            for one, *rest in merged:
                parents[rest] = one
                frozen[one] = min(frozen[[one, *rest]])
            if stuck:
                frozen[stuck] = np.minimum(
                    frozen[stuck], self._reason("the groups of a convolution would differ in size")
                )
        while (parents[parents] != parents).any():
            parents = parents[parents]
        return parents[labels], frozen

    # Kinds.

    def _classify(self, labels: Ints, frozen: Ints) -> list[Kind]:
        order = np.lexsort((np.arange(self.count), labels))
        sorted_labels = labels[order]
        starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
        codes = np.random.default_rng(_SEED).integers(0, 2**63, (len(self.roots), 2), dtype=np.uint64)
        digests = np.add.reduceat(codes[self.owner[order]], starts, axis=0)
        reasons = frozen[sorted_labels[starts]]
        ends = np.r_[starts[1:], self.count]
        texts: dict[str | None, int] = {}
        alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for slot, (digest, reason) in enumerate(zip(digests.tolist(), reasons.tolist(), strict=True)):
            text = None if reason == _NONE else self.reasons[reason]
            alike[(*digest, texts.setdefault(text, len(texts)))].append(slot)
        names = list(texts)
        return [
            self._kind([order[starts[slot] : ends[slot]] for slot in slots], names[key[2]])
            for key, slots in alike.items()
        ]

    def _kind(self, slots: list[Ints], reason: str | None) -> Kind:
        rows = sorted(slots, key=_first_atom)
        table: Ints = np.stack(rows)  # [slots, atoms of each], both ascending
        owners = self.owner[table[0]]
        assert (self.owner[table] == owners).all(), "slots of one kind take atoms from different axes"
        positions = {
            int(self.roots[owner]): table[:, owners == owner] - self.starts[owner] for owner in np.unique(owners)
        }
        return Kind(positions, reason)
