"""How kernel tensors are laid out for flags, a kernel position after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Fold", "Kernel", "kernel_of"]

Kernel = tuple[int, int]

_DEALT = (16, 20, 8, 10, 6, 5, 7, 4, 9)  # rows that make a kernel where there is none: what divides most widths


def kernel_of(shape: Sequence[int]) -> Kernel:
    """Return the kernel as two axes, (all but the last, the last)."""
    return (math.prod(shape[2:-1]), shape[-1]) if len(shape) > 2 else (1, 1)


class Fold(NamedTuple):
    """How [M, C, S] becomes [positions, rows, columns] for flags, whose surroundings lie at earlier positions.

    A kernel of one position has none. Its rows are dealt out instead: `rows` neighbouring ones become the positions
    of a kernel, so that a flag knows the rows just before it and what is usual in its column.
    """

    rows: int
    kernel: Kernel

    @classmethod
    def of(cls, planes: tuple[int, ...], kernel: Kernel) -> Fold:
        """Return the fold for a tensor of these planes."""
        dealt = next((rows for rows in _DEALT if planes[0] % rows == 0), 1) if planes[2] == 1 else 1
        return cls(dealt, (1, dealt) if dealt > 1 else kernel)

    def planes(self, cube: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return [positions, rows, columns] of [M, C, S]; axes of size 1 stay so."""
        if self.rows > 1 and cube.shape[0] > 1:
            cube = np.swapaxes(cube.reshape(-1, self.rows, cube.shape[1]), 1, 2)
        return np.ascontiguousarray(np.moveaxis(cube, 2, 0))

    def cube(self, planes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return [M, C, S] of [positions, rows, columns]."""
        if self.rows > 1:
            planes = np.swapaxes(planes, 0, 1).reshape(1, -1, planes.shape[2])
        return np.ascontiguousarray(np.moveaxis(planes, 0, 2))
