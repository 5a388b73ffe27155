"""Signal-to-noise ratios, in one way wherever an error is measured."""

from __future__ import annotations

import math

__all__ = ["sqnr_db"]


def sqnr_db(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), of two sums of squares, in dB.

    inf where the noise is 0, signal or not; -inf where the signal is 0 and the noise is not, or where one of them is
    not finite.

    >>> sqnr_db(100.0, 1.0), sqnr_db(0.0, 0.0), sqnr_db(0.0, 1.0)
    (20.0, inf, -inf)
    """
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))  # a quotient could leave the range of numbers
