"""Ranges, notes, and the scale and zero point that a range becomes."""

from __future__ import annotations

import doctest
import math
import re

import numpy as np
import onnx_ir
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onnxpress.ir import quantization
from onnxpress.ir.quantization import (
    BITS,
    Quantization,
    affine_parameters,
    clear,
    integer_parameters,
    integer_range,
    note,
    quantization_of,
)

_EDGES = st.floats(-1e6, 1e6, width=32)
_RANGES = st.tuples(_EDGES, _EDGES).map(sorted)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(quantization)
    assert result.attempted > 5 and result.failed == 0


@pytest.mark.parametrize(
    ("low", "high", "bits", "message"),
    [
        (0.0, math.inf, 8, "a clipping range must be finite, not [0.0, inf]"),
        (math.nan, 1.0, 8, "a clipping range must be finite, not [nan, 1.0]"),
        (2.0, 1.0, 8, "a clipping range needs low <= high, not [2.0, 1.0]"),
        (0.0, 1.0, 7, "bits must be one of (2, 4, 8, 16), not 7"),
    ],
)
def test_impossible_range_is_refused(low: float, high: float, bits: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Quantization(low, high, bits)


def test_note_replace_clear() -> None:
    value = onnx_ir.Value(name="x")
    assert quantization_of(value) is None and quantization_of(None) is None
    clear(value)  # nothing there: nothing to do
    note(value, Quantization(-1.0, 1.0))
    note(value, Quantization(0.0, 6.0, group="a"))
    assert quantization_of(value) == Quantization(0.0, 6.0, group="a")
    clear(value)
    assert quantization_of(value) is None


def test_note_survives_clone_and_stays_out_of_the_file() -> None:
    model = onnx_ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
    )
    before = onnx_ir.to_proto(model).SerializeToString()
    for value in (model.graph.inputs[0], model.graph.outputs[0]):
        note(value, Quantization(0.0, 6.0))
    copy = model.clone()
    assert quantization_of(copy.graph.inputs[0]) == Quantization(0.0, 6.0)
    assert quantization_of(copy.graph.outputs[0]) == Quantization(0.0, 6.0)
    clear(copy.graph.inputs[0])
    assert quantization_of(model.graph.inputs[0]) is not None
    assert onnx_ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(("bits", "signed", "expected"), [(8, True, (-128, 127)), (2, False, (0, 3))])
def test_integer_range(bits: int, signed: bool, expected: tuple[int, int]) -> None:
    assert integer_range(bits, signed) == expected


def test_integer_range_refuses_other_widths() -> None:
    with pytest.raises(ValueError, match=r"^bits must be one of \(2, 4, 8, 16\), not 3$"):
        integer_range(3, signed=True)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_always_zero_gets_scale_one(signed: bool, symmetric: bool) -> None:
    scale, zero_point = integer_parameters(Quantization(0.0, 0.0), signed=signed, symmetric=symmetric)
    assert scale == 1.0 and scale.dtype == np.float32
    assert zero_point == (-128 if signed and not symmetric else 128 if symmetric and not signed else 0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (1.5, 6.0), (0.0, 1e-30)])
@pytest.mark.parametrize(("signed", "qmin"), [(False, 0), (True, -128)])
def test_range_from_zero_puts_zero_point_at_the_minimum(low: float, high: float, signed: bool, qmin: int) -> None:
    scale, zero_point = integer_parameters(Quantization(low, high), signed=signed, symmetric=False)
    assert zero_point == qmin
    assert scale == np.float32(high / 255)


def test_range_up_to_zero_puts_zero_point_at_the_maximum() -> None:
    assert integer_parameters(Quantization(-3.0, -1.0), signed=False, symmetric=False)[1] == 255


@given(_RANGES, st.sampled_from(BITS), st.booleans(), st.booleans())
@example([-1e-45, 1e-45], 16, False, False)  # denormal: the scale must stay divisible
@example([-3e38, 3e38], 8, False, False)  # high - low overflows float32
def test_every_number_in_the_range_is_within_half_a_step(
    edges: list[float], bits: int, signed: bool, symmetric: bool
) -> None:
    low, high = edges
    noted = Quantization(low, high, bits)
    scale, zero_point = integer_parameters(noted, signed=signed, symmetric=symmetric)
    qmin, qmax = integer_range(bits, signed)
    step = float(scale)
    assert qmin <= zero_point <= qmax  # so real zero is an integer, exactly
    assert 0 < step < math.inf and np.isfinite(np.float32(1) / scale)
    numbers = np.linspace(min(low, 0.0), max(high, 0.0), 101)
    codes = np.clip(np.rint(numbers / step) + zero_point, qmin, qmax)
    error = np.abs((codes - zero_point) * step - numbers)
    # float32 holds the scale to 2**-24, which the largest code multiplies.
    assert error.max() <= step * (0.5 + 2.0**bits * 2.0**-23)


@given(st.lists(_RANGES, min_size=1, max_size=5), st.booleans(), st.booleans())
def test_many_ranges_at_once_are_the_same_as_one_by_one(
    ranges: list[list[float]], signed: bool, symmetric: bool
) -> None:
    low, high = np.array(ranges, np.float32).T
    scale, zero_point = affine_parameters(low, high, bits=8, signed=signed, symmetric=symmetric)
    assert scale.dtype == np.float32 and scale.shape == zero_point.shape == low.shape
    for index, (bottom, top) in enumerate(ranges):
        alone = integer_parameters(Quantization(bottom, top), signed=signed, symmetric=symmetric)
        assert alone == (scale[index], zero_point[index])
