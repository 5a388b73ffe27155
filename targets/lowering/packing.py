"""Codes of few levels as bytes, several to a byte, in the fewest bytes that standard operators can undo.

    code   =  sum over planes of  weight * digit                 digit in [0, base)
    byte   =  sum over digits j of one plane  digit_j * base^j   the first code lies lowest

A plane of base 2, 4 or 16 holds bits. Base 3 fits five digits into a byte (3^5 = 243), 1.6 bits each, base 6 three.
Several planes multiply: 8 levels are a plane of base 4 and one of base 2, 3 bits in all; 12 levels are 4 times 3.

Source of packing five trits to a byte: TQ1_0 of llama.cpp, https://github.com/ggml-org/llama.cpp/pull/8151
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import numpy.typing as npt

__all__ = ["Plane", "choose_planes"]

_BASES = (2, 3, 4, 6, 16, 256)  # each the largest that fits 8, 5, 4, 3, 2, 1 digits into a byte, or a power of two
_WHOLE_BYTE = 256
_MOST_PLANES = 4  # 15 bits are 256 * 16 * 4 * 2

# What unpacking takes in a file for each weight, an output of Split and a Reshape, names included; seen on resnet56. It
# decides for small weights.
_PIECE_BYTES = 80


@dataclasses.dataclass(frozen=True)
class Plane:
    """One digit of every code.

    base: the digit is below this. weight: what it counts for in the code: the bases of the planes before, multiplied.
    """

    base: int
    weight: int

    @property
    def digits(self) -> int:
        """Digits in a byte."""
        return _digits(self.base)

    def count_bytes(self, size: int) -> int:
        """Return the bytes that `size` codes take in this plane."""
        return -(-size // self.digits)

    def pack(self, codes: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint8]:
        """Return this plane of the codes, in C order; digits that fill the last byte are 0."""
        digits = codes.reshape(-1) // self.weight % self.base
        rows = np.zeros((self.count_bytes(codes.size), self.digits), np.uint8)
        rows.reshape(-1)[: codes.size] = digits
        packed: npt.NDArray[np.uint8] = (rows @ self._powers()).astype(np.uint8)
        return packed

    def table(self) -> npt.NDArray[np.unsignedinteger]:
        """Return what each byte means: [base^digits, digits], digits times `weight`, in the narrowest type."""
        digits = np.arange(self.base**self.digits)[:, None] // self._powers() % self.base * self.weight
        return digits.astype(np.min_scalar_type((self.base - 1) * self.weight))

    def _powers(self) -> npt.NDArray[np.int64]:
        return np.asarray([self.base**power for power in range(self.digits)], np.int64)


@functools.lru_cache(maxsize=1024)
def choose_planes(levels: int, size: int) -> tuple[Plane, ...]:
    """Return the planes that hold `size` codes below `levels` in the fewest bytes of file, operators included.

    A single plane of base 256 is the codes as they are. Of equal plans the one of fewer planes is taken, then the
    one of the smaller bases.
    """
    plans = (
        plan
        for planes in range(1, _MOST_PLANES + 1)
        for plan in itertools.combinations_with_replacement(_BASES, planes)
        if math.prod(plan) >= levels
    )
    best = min(plans, key=lambda plan: (_count_bytes(plan, size), len(plan), plan))
    bases = sorted(best, reverse=True)
    return tuple(Plane(base, math.prod(bases[:index])) for index, base in enumerate(bases))


def _count_bytes(plan: tuple[int, ...], size: int) -> int:
    codes = sum(-(-size // _digits(base)) for base in plan)
    return codes + (_PIECE_BYTES if plan != (_WHOLE_BYTE,) else 0)


def _digits(base: int) -> int:
    digits = 1
    while base ** (digits + 1) <= 256:
        digits += 1
    return digits
