"""Alphabets: which numbers the weights of a layer may be, as a linear function of a few parameters.

    level of code k in group g  =  sum over p of  basis[k, p] * parameters[g, p]

| encoding | basis | parameters of a group |
|---|---|---|
| integers with a scale | k - k0 | the scale |
| ternary | -1, 0, 1 (or a column for each side) | one scale, or two |
| binary, n bases | the signs of code k, n columns | n scales |
| codebook | the unit matrix | the levels themselves |
| powers of two | signed powers | 2^exponent, which is not fitted |

A group is a row of the weight, a block of columns of a row, or a run of rows. Since levels are linear in the
parameters, those of the least output error at given codes are a linear least squares problem (`refit`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Alphabet", "Grouping", "Rounding"]

_Float64: TypeAlias = npt.NDArray[np.float64]
_Codes: TypeAlias = npt.NDArray[np.int64]
_Array: TypeAlias = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which weights of rows [R, K] share parameters: runs of `rows` rows, and in these blocks of `block` columns.

    rows: None for all rows. block: None for all columns; with blocks, each row has parameters of its own.
    """

    rows: int | None = 1
    block: int | None = None

    def index(self, rows: int, width: int) -> _Codes:
        """Return the group of each row's blocks, [R, blocks]."""
        blocks = 1 if self.block is None else -(-width // self.block)
        run = np.arange(rows) // (rows if self.rows is None else self.rows)
        return run[:, None] * blocks + np.arange(blocks)

    def spread(self, index: _Codes, width: int) -> _Codes:
        """Return the group of each weight, [R, K] or [R, 1]."""
        return index if self.block is None else np.repeat(index, self.block, axis=1)[:, :width]


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The levels of a layer's weights. basis: [L, P]. parameters: [groups, P]. Both float64.

    fitted: whether `refit` may change the parameters. positive: whether they must stay above zero.
    """

    basis: _Float64
    parameters: _Float64
    grouping: Grouping = Grouping()
    fitted: bool = True
    positive: bool = True

    def levels(self) -> _Float64:
        """Return the numbers, [groups, L]: one parameter after the other, so that no machine sums in another order."""
        if self.basis.shape[0] == self.basis.shape[1] and np.array_equal(self.basis, np.eye(len(self.basis))):
            return self.parameters
        found = np.zeros((len(self.parameters), len(self.basis)))
        for parameter, column in zip(self.parameters.T, self.basis.T, strict=True):
            found += parameter[:, None] * column
        return found

    def values(self, codes: _Codes) -> _Float64:
        """Return what codes [R, K] stand for."""
        found: _Float64 = self.levels().reshape(-1)[self._flat(codes)]
        return found

    def gradient(self, codes: _Codes, of_values: _Float64) -> _Float64:
        """Return d/d parameters [groups, P] of a function whose gradient by the values [R, K] is given."""
        shape = len(self.parameters), len(self.basis)
        summed = np.bincount(self._flat(codes).reshape(-1), of_values.reshape(-1), shape[0] * shape[1])
        found: _Float64 = summed.reshape(shape) @ self.basis
        return found

    def replace(self, parameters: _Float64, together: int = 1) -> Alphabet:
        """Return the alphabet with other parameters; groups where they are not usable keep theirs.

        together: groups of one row, which were found together and are kept together.
        """
        is_wrong = ~np.isfinite(parameters)
        if self.positive:
            is_wrong |= parameters <= 0
        keep = is_wrong.reshape(len(is_wrong) // together, -1).any(axis=1).repeat(together)[:, None]
        return dataclasses.replace(self, parameters=np.where(keep, self.parameters, parameters))

    def rounding(self, rows: int, width: int) -> Rounding:
        """Return what finds the nearest level for weights of [R, K]."""
        return Rounding(self, rows, width)

    def _flat(self, codes: _Codes) -> _Codes:
        group = self.grouping.spread(self.grouping.index(*codes.shape), codes.shape[1])
        return group * len(self.basis) + codes


class Rounding:
    """Finds the nearest level, for one column of all rows at a time."""

    def __init__(self, alphabet: Alphabet, rows: int, width: int) -> None:
        self._groups = alphabet.grouping.index(rows, width)
        self._block = alphabet.grouping.block
        levels = alphabet.levels()
        self._order = np.argsort(levels, axis=1, kind="stable")
        self._sorted = np.take_along_axis(levels, self._order, axis=1)
        self._middles = (self._sorted[:, 1:] + self._sorted[:, :-1]) / 2
        steps = alphabet.basis[:, 0]
        # Integers in a row: rounding is quicker than a search among 255 levels.
        self._scale = alphabet.parameters[:, 0] if _are_integers(alphabet.basis) else None
        self._first, self._last = float(steps[0]), float(steps[-1])
        self._shared = len(levels) == 1

    def nearest(self, wanted: _Float64, column: int) -> tuple[_Codes, _Float64]:
        """Return codes [R] and their levels [R] nearest to `wanted` [R], weights of the given column."""
        group = self._groups[:, 0 if self._block is None else column // self._block]
        if self._scale is not None:
            scale = self._scale[group]
            steps = np.clip(np.rint(wanted / scale), self._first, self._last)
            return (steps - self._first).astype(np.int64), steps * scale
        if self._shared:
            at = np.searchsorted(self._middles[0], wanted)
        else:
            at = (wanted[:, None] > self._middles[group]).sum(axis=1)
        return self._order[group, at], self._sorted[group, at]


def _are_integers(basis: _Float64) -> bool:
    return bool(basis.shape[1] == 1 and len(basis) > 2 and (np.diff(basis[:, 0]) == 1).all())
