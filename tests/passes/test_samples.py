"""Calibration samples: divided, counted, and refused where they tell nothing."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.ir.data import open_data
from onnxpress.ir.errors import UsageError
from onnxpress.passes.samples import Split, split_samples
from tests.support import text_model

_MODEL = text_model('<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }')


def _split(count: int, *, samples: int = 512, held_out: int = 128, streamed: bool = False) -> Split:
    rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    data = open_data((row[None] for row in rows) if streamed else rows)
    return split_samples(data, _MODEL, "a-pass", samples=samples, held_out=held_out)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_third_at_most_is_held_out(streamed: bool) -> None:
    assert _split(600, streamed=streamed) == Split(384, 128)
    assert _split(60, streamed=streamed) == Split(40, 20)
    assert _split(60, samples=36, streamed=streamed) == Split(24, 12)
    assert _split(60, held_out=0, streamed=streamed) == Split(60, 0)


def test_few_are_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"^a-pass: 4 calibration samples are few, and the model may lose"):
        assert _split(4) == Split(3, 1)


def test_one_or_equal_ones_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"^a-pass: the data holds a single sample"):
        _split(1)
    with pytest.raises(UsageError, match=r"^a-pass: all 40 calibration samples are equal"):
        split_samples(open_data(np.ones((40, 2), np.float32)), _MODEL, "a-pass", samples=512, held_out=9)
