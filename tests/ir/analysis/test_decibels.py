"""The ratio and its edges."""

from __future__ import annotations

import math

import pytest

from onnxpress.ir.analysis.decibels import sqnr_db


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (1.0, 1.0, 0.0),
        (2.0, 1.0, 3.0103),
        (1.0, 1e3, -30.0),
        (1e-300, 1e300, -6000.0),
        (1e300, 1e-300, 6000.0),
        (5e-324, 5e-324, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (math.inf, 0.0, math.inf),
        (0.0, 1e-300, -math.inf),
        (1.0, math.inf, -math.inf),
        (1.0, math.nan, -math.inf),
        (math.inf, 1.0, -math.inf),
        (math.nan, 1.0, -math.inf),
    ],
)
def test_ratio(signal: float, noise: float, expected: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(expected, abs=1e-4)
