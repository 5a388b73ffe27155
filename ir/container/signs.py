"""Signs of weights, from the signs and sizes of neighbours in the same kernel: trained kernels are smooth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Decoder, Encoder, Integers
from onnxpress.ir.container.flags import (
    FEATURE_LIMIT,
    fit_weights,
    read_flags,
    read_weights,
    write_flags,
    write_weights,
)
from onnxpress.ir.container.folds import Fold, Kernel

__all__ = ["Signs", "read_signs"]

Codes = npt.NDArray[np.int32]

_BITS = 0.985  # what a sign may cost for that to be worth the time
_GAIN_BITS = 150  # what separate signs must gain to be worth their weights


class Signs:
    """The signs of a tensor, apart from its magnitudes. `pay`: whether that is shorter."""

    def __init__(self, cube: Codes, lowest: int, levels: Integers, kernel: Kernel, is_sparse: bool) -> None:
        self.pay = False
        fold = Fold.of(cube.shape, kernel)
        # In dense tensors without a kernel, the rows before tell next to nothing of a sign.
        if fold.kernel == (1, 1) or (fold.rows > 1 and not is_sparse) or lowest == 0 or not (cube > 0).any():
            return
        self._kernel = fold.kernel
        planes = fold.planes(cube)
        self._known = np.clip(planes, -FEATURE_LIMIT, FEATURE_LIMIT)
        self._flags, self._coded = planes < 0, planes != 0
        self._facts = [_lean(np.abs(planes), lowest, levels)]
        self._weights, bits = fit_weights(self._flags, self._coded, self._facts, self._known, self._kernel)
        self.pay = bits < _BITS and (1 - bits) * int(self._coded.sum()) > _GAIN_BITS

    def write(self, encoder: Encoder) -> None:
        """Write the signs, after the magnitudes."""
        write_weights(encoder, self._weights)
        write_flags(encoder, self._flags, self._coded, self._facts, self._known, self._kernel, self._weights)


def read_signs(decoder: Decoder, sized: Codes, lowest: int, levels: Integers, kernel: Kernel) -> Codes:
    """Return the magnitudes [M, C, S] with the signs that are read for them."""
    fold = Fold.of(sized.shape, kernel)
    magnitudes = fold.planes(sized)
    known = np.minimum(magnitudes, FEATURE_LIMIT)
    facts = [_lean(magnitudes, lowest, levels)]
    weights = read_weights(decoder, len(facts))
    flags = read_flags(decoder, magnitudes != 0, facts, -known, known, fold.kernel, weights)
    return fold.cube(np.where(flags, -magnitudes, magnitudes))


def _lean(magnitudes: Codes, lowest: int, levels: Integers) -> Codes:
    """Return how much more often a magnitude is negative than positive, in quarter octaves of the table."""
    largest = max(-lowest, levels.size - 1 + lowest)
    sided = np.zeros(2 * largest + 1, np.int32)
    sided[largest + lowest : largest + lowest + levels.size] = levels
    lean: Codes = np.clip(8 * (sided[largest::-1] - sided[largest:]), -FEATURE_LIMIT, FEATURE_LIMIT)
    found: Codes = lean[magnitudes]
    return found
