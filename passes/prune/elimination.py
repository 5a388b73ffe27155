"""In which order channels can go, at what least-squares cost, from second moments alone.

A slot is a set of input positions of one or more linear operators (its consumers) that must go together. Removing
slot s from a consumer `y = W x` and refitting what is left costs

    error(s)  = tr(W_s inv(P_ss) W_s^T)                 P = inv(E[x x^T] + ridge), centred when the bias is free
    W        <- W - W_s inv(P_ss) P_s:                  the refit of everything else
    P        <- P - P_:s inv(P_ss) P_s:                 the inverse moment matrix without s

so that slots are removed one by one, each time the one that adds least error, and the errors of the whole path come
for free: group-wise Optimal Brain Surgeon on a layer's output (Hassibi & Stork 1993; the same
recursion as in Frantar & Alistarh 2022, "Optimal Brain Compression", section 4, https://arxiv.org/abs/2208.11580).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Consumer", "Path", "eliminate", "follow"]

_Floats = npt.NDArray[np.float64]
_RIDGE = 1e-3  # of the mean diagonal: the moments come from a few hundred samples


@dataclasses.dataclass(frozen=True)
class Consumer:
    """A linear operator that reads the slots.

    weight: [out, K]. moments: [K, K], the covariance of its input (or the second moment where it has no bias).
    positions: for each slot, the indices into K that belong to it; equally many for every slot.
    """

    weight: npt.NDArray[np.floating]
    moments: npt.NDArray[np.floating]
    positions: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Path:
    """The order of removal, and what it costs.

    order: slots, the first to go first. errors: [slots + 1], summed relative squared output error of all consumers
    after the first n slots went and the rest was refitted; errors[0] is 0, and it never falls.
    """

    order: tuple[int, ...]
    errors: _Floats

    def error_of(self, removed: int) -> float:
        """Error after `removed` slots."""
        return float(self.errors[removed])


def eliminate(consumers: Sequence[Consumer]) -> Path:
    """Return a greedy path of removal down to one slot, which closes the order and repeats the last error.

    Raises:
        ValueError: there is no consumer, or the consumers disagree on the number of slots.
    """
    if not consumers:
        raise ValueError("no consumer: nothing tells what a slot is worth")
    slots = len(consumers[0].positions)
    if any(len(consumer.positions) != slots for consumer in consumers):
        raise ValueError("the consumers have different numbers of slots")
    states = [_State(consumer) for consumer in consumers]
    alive = np.ones(slots, bool)
    order: list[int] = []
    errors = [0.0]
    while len(order) < slots - 1:
        left = np.flatnonzero(alive)
        added = np.sum([state.added_errors(left) for state in states], axis=0)
        index = int(np.argmin(added))
        slot = int(left[index])
        for state in states:
            state.remove(slot)
        alive[slot] = False
        order.append(slot)
        errors.append(errors[-1] + max(0.0, float(added[index])))
    return Path((*order, *map(int, np.flatnonzero(alive))), np.asarray([*errors, errors[-1]]))


def follow(consumers: Sequence[Consumer], order: Sequence[int]) -> Path:
    """Return the path of removal in the given order, the first to go first, with the errors that it costs.

    order: every slot once; the last of it stays, as in `eliminate`.

    Raises:
        ValueError: there is no consumer, or `order` does not name every slot once.
    """
    if not consumers:
        raise ValueError("no consumer: nothing tells what a slot is worth")
    slots = len(consumers[0].positions)
    if sorted(order) != list(range(slots)):
        raise ValueError("the order must name every slot once")
    states = [_State(consumer) for consumer in consumers]
    errors = [0.0]
    for slot in order[:-1]:
        added = sum(float(state.added_errors(np.array([slot]))[0]) for state in states)
        for state in states:
            state.remove(slot)
        errors.append(errors[-1] + max(0.0, added))
    return Path(tuple(order), np.asarray([*errors, errors[-1]]))


class _State:
    """One consumer while its slots go: the refitted weight and the inverse moments of what is left."""

    def __init__(self, consumer: Consumer) -> None:
        moments = np.array(consumer.moments, np.float64)
        scale = float(np.mean(np.diagonal(moments))) or 1.0
        moments[np.diag_indices_from(moments)] += _RIDGE * scale
        self._weight = np.array(consumer.weight, np.float64)
        energy = float(np.einsum("ok,kl,ol->", self._weight, moments, self._weight, optimize=True))
        self._scale = 1 / energy if energy > 0 else 0.0
        self._inverse = np.linalg.inv(moments)
        self._positions = consumer.positions

    def added_errors(self, slots: npt.NDArray[np.intp]) -> _Floats:
        """[len(slots)]: relative squared error that removing each slot next would add."""
        positions = self._positions[slots]  # [S, b]
        blocks = self._inverse[positions[:, :, None], positions[:, None, :]]  # [S, b, b]
        weights = self._weight[:, positions].transpose(1, 2, 0)  # [S, b, out]
        solved = np.linalg.solve(blocks, weights)
        result: _Floats = np.einsum("sbo,sbo->s", weights, solved) * self._scale
        return result

    def remove(self, slot: int) -> None:
        positions = self._positions[slot]
        block = self._inverse[np.ix_(positions, positions)]
        rows = self._inverse[positions]  # [b, K]
        update = np.linalg.solve(block, rows)
        self._weight -= self._weight[:, positions] @ update
        self._inverse -= rows.T @ update
        # What went is exactly zero from here on; a unit block keeps later solves well posed.
        self._weight[:, positions] = 0.0
        self._inverse[positions] = 0.0
        self._inverse[:, positions] = 0.0
        self._inverse[np.ix_(positions, positions)] = np.eye(len(positions))
