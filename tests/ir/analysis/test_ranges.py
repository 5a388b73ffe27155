"""Clipping ranges: each method against what defines it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir.analysis.histogram import Histogram
from onnxpress.ir.analysis.ranges import RangeMethod, clipping_range, expected_squared_error

_METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse", "entropy")


def _histogram(values: npt.NDArray[np.float32]) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, max(1, values.size // 10_000)):
        histogram.update(part)
    return histogram


def _quantized(values: npt.NDArray[np.float32], low: float, high: float, bits: int) -> npt.NDArray[np.float64]:
    step = (high - low) / (2**bits - 1)
    return np.asarray(np.clip(np.rint(values / step), round(low / step), round(high / step)) * step, np.float64)


def _heavy_tailed(size: int = 100_000) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(1).standard_normal(size)
    values[:20] *= 12.0
    return values.astype(np.float32)


@pytest.mark.parametrize("method", _METHODS)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50))
def test_ranges_hold_zero_and_stay_inside_the_extremes(method: RangeMethod, values: list[float]) -> None:
    histogram = _histogram(np.asarray(values, np.float32))
    low, high = clipping_range(histogram, method)
    assert min(*values, 0.0) <= low <= 0.0 <= high <= max(*values, 0.0)


def test_minmax_is_exact() -> None:
    values = _heavy_tailed()
    assert clipping_range(_histogram(values), "minmax") == (float(values.min()), float(values.max()))


def test_percentile_leaves_half_of_the_rest_in_each_tail() -> None:
    values = _heavy_tailed()
    low, high = clipping_range(_histogram(values), "percentile", percentile=99.0)
    assert np.mean(values < low) == pytest.approx(0.005, abs=0.001)
    assert np.mean(values > high) == pytest.approx(0.005, abs=0.001)


def test_percentile_of_relu_output_counts_zeros_and_leaves_one_tail() -> None:
    values = np.maximum(_heavy_tailed(), 0)
    low, high = clipping_range(_histogram(values), "percentile", percentile=99.0)
    assert low == 0.0
    assert np.mean(values > high) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("bits", [4, 8])
def test_expected_error_agrees_with_the_error_of_rounding(bits: int) -> None:
    values = np.random.default_rng(2).uniform(-1.0, 3.0, 100_000).astype(np.float32)
    for low, high in ((-1.0, 3.0), (-0.5, 2.0)):
        real = np.mean((_quantized(values, low, high, bits) - values) ** 2)
        assert expected_squared_error(_histogram(values), low, high, bits=bits) == pytest.approx(real, rel=0.12)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("relu", [False, True])
def test_mse_is_no_worse_than_any_range_tried_by_hand(bits: int, relu: bool) -> None:
    values = np.maximum(_heavy_tailed(), 0) if relu else _heavy_tailed()
    low, high = clipping_range(_histogram(values), "mse", bits=bits)
    error = np.mean((_quantized(values, low, high, bits) - values) ** 2)
    for share in np.linspace(0.05, 1.0, 40):
        other = _quantized(values, float(values.min()) * share, float(values.max()) * share, bits)
        assert error <= np.mean((other - values) ** 2) * 1.03
    assert bits == 8 or high < values.max() * 0.8  # outliers are not worth so few steps


def test_fewer_bits_clip_harder() -> None:
    histogram = _histogram(_heavy_tailed())
    assert clipping_range(histogram, "mse", bits=4)[1] < clipping_range(histogram, "mse", bits=8)[1]


def test_entropy_drops_outliers_and_keeps_a_uniform_stream_whole() -> None:
    assert clipping_range(_histogram(_heavy_tailed()), "entropy", bits=4)[1] < _heavy_tailed().max()
    uniform = np.random.default_rng(3).uniform(0, 1, 100_000).astype(np.float32)
    assert clipping_range(_histogram(uniform), "entropy")[1] > 0.9


def test_zeros_do_not_pull_the_range_in() -> None:
    values = np.abs(np.random.default_rng(4).standard_normal(50_000)).astype(np.float32)
    padded = np.concatenate([values, np.zeros(200_000, np.float32)])
    np.random.default_rng(5).shuffle(padded)
    assert clipping_range(_histogram(padded), "mse")[1] == pytest.approx(
        clipping_range(_histogram(values), "mse")[1], rel=0.05
    )


@pytest.mark.parametrize("method", _METHODS)
def test_a_value_that_is_always_zero_has_an_empty_range(method: RangeMethod) -> None:
    assert clipping_range(_histogram(np.zeros(10, np.float32)), method) == (0.0, 0.0)


def test_an_empty_histogram_has_no_range() -> None:
    with pytest.raises(ValueError, match=r"^empty histogram: no value was seen$"):
        clipping_range(Histogram(), "mse")
