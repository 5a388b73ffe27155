"""Divergence: by hand on small models, blind to a shift of all scores, and only on the samples it was given."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis.divergence import Divergence, NotMeasurableError
from onnxpress.ir.data import DataSource, open_data
from tests.support import text_model


def _model(body: str, output: str = "float[N, 3] y") -> onnx_ir.Model:
    return text_model(f"""<ir_version: 8, opset_import: ["": 17]> g (float[N, 3] x) => ({output}) {{ {body} }}""")


def _data(rows: list[list[float]]) -> DataSource:
    return open_data([{"x": np.array([row], np.float32)} for row in rows])


_ROWS = [[1.0, 2.0, 3.0], [0.0, 0.0, 6.0], [5.0, 5.0, 5.0]]
_SAME = "y = Identity(x)"


def test_equal_is_zero_and_a_shift_of_scores_is_nothing() -> None:
    divergence = Divergence(_model(_SAME), _data(_ROWS), samples=3)
    assert divergence.of(_model(_SAME)) == 0
    shifted = "one = Constant<value_float = 7.0>() y = Add(x, one)"
    assert divergence.of(_model(shifted)) == pytest.approx(0, abs=1e-10)


def test_zeros_are_one_and_a_half_is_a_quarter() -> None:
    divergence = Divergence(_model(_SAME), _data(_ROWS), samples=3)
    assert divergence.of(_model("y = Sub(x, x)")) == pytest.approx(1)
    assert divergence.of(_model("h = Constant<value_float = 0.5>() y = Mul(x, h)")) == pytest.approx(0.25)


def test_only_the_samples_asked_for_count() -> None:
    doubled_first = "t = Constant<value_float = 1.5>() y = Max(x, t)"  # changes the first two rows, not the third
    changed = _model(doubled_first)
    assert Divergence(_model(_SAME), _data([[1, 2, 3], [3, 3, 4]]), samples=1, skip=1).of(changed) == 0
    assert Divergence(_model(_SAME), _data([[1, 2, 3], [3, 3, 4]]), samples=1).of(changed) > 0


def test_nan_is_infinite() -> None:
    assert Divergence(_model(_SAME), _data(_ROWS), samples=3).of(_model("z = Sub(x, x) y = Div(z, z)")) == float("inf")


def test_a_model_without_floats_is_refused() -> None:
    with pytest.raises(NotMeasurableError) as caught:
        Divergence(_model("y = Cast<to = 7>(x)", "int64[N, 3] y"), _data(_ROWS), samples=3)
    assert str(caught.value) == "the model has no output of floating point numbers to measure a divergence of"


def test_masked_scores_are_left_out() -> None:
    masked = "m = Constant<value_floats = [0.0, 0.0, -inf]>() "
    original = masked.replace("-inf", "-3e38") + "t = Mul(m, x) y = Add(t, x)"  # overflows to -inf where x is above 1
    divergence = Divergence(_model(original), _data(_ROWS), samples=3)
    assert divergence.of(_model(original)) == 0
    doubled = masked.replace("-inf", "-3e38") + "t = Mul(m, x) u = Add(t, x) y = Add(u, u)"
    assert 0 < divergence.of(_model(doubled)) < float("inf")


def test_an_output_of_another_length_is_refused() -> None:
    rows = "float[M, 3] y"
    chosen = (
        "z = Constant<value_float = 0.0>() s = ReduceSum<keepdims = 0>(x, a) k = {}(s, z) y = Compress<axis = 0>(x, k)"
    )
    axes = "a = Constant<value_ints = [1]>() "
    divergence = Divergence(_model(axes + chosen.format("Greater"), rows), _data(_ROWS), samples=3)
    with pytest.raises(NotMeasurableError) as caught:
        divergence.of(_model(axes + chosen.format("Less"), rows))
    assert str(caught.value) == (
        "output 'y' is [3, 0, 3] where the original's is [3, 3], so that no divergence can be measured"
    )
