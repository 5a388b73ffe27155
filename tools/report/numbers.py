"""Numbers as people read them: three significant digits, and no difference where there is only noise."""

from __future__ import annotations

import math

__all__ = ["describe_speed", "is_same_latency", "milliseconds", "three_digits"]

_SAME_WITHIN = 1.03  # repeated runs of one model on a quiet machine lie this far apart
_FIXED = (1e-4, 1e6)  # sizes that read better without an exponent


def three_digits(value: float) -> str:
    """Return `value` with three significant digits, zeros kept: 0.330, 16.0, 1,230; "0" for zero.

    >>> three_digits(0.33), three_digits(16), three_digits(9.996), three_digits(1234), three_digits(2e-8)
    ('0.330', '16.0', '10.0', '1,230', '2.00e-08')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.2e}")
    if not _FIXED[0] <= abs(rounded) < _FIXED[1]:
        return f"{rounded:.2e}"
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def milliseconds(value: float) -> str:
    """Return a time with its unit, such as "0.330 ms"."""
    return f"{three_digits(value)} ms"


def is_same_latency(before_ms: float, after_ms: float) -> bool:
    """Whether two latencies lie so close together that measuring again may turn them round."""
    return max(before_ms, after_ms) <= _SAME_WITHIN * min(before_ms, after_ms)


def describe_speed(before_ms: float, after_ms: float) -> str:
    """Say how much faster `after_ms` is, such as "2.39x faster", "1.50x SLOWER" or "same"."""
    if is_same_latency(before_ms, after_ms):
        return "same"
    if after_ms < before_ms:
        return f"{three_digits(before_ms / after_ms)}x faster"
    return f"{three_digits(after_ms / before_ms)}x SLOWER"
