"""Streaming histograms: exact extremes, counts that survive growth and merging, bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir.analysis.histogram import Histogram

_FLOATS = st.floats(-1e6, 1e6, width=32, allow_nan=False)
_BATCHES = st.lists(st.lists(_FLOATS, min_size=1, max_size=40), min_size=1, max_size=6)


def _filled(batches: list[list[float]]) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.update(np.asarray(batch, np.float32))
    return histogram


@given(_BATCHES)
def test_counts_every_value_once_and_keeps_exact_extremes(batches: list[list[float]]) -> None:
    histogram = _filled(batches)
    values = np.concatenate([np.asarray(batch, np.float32) for batch in batches])
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    assert histogram.counts.sum() + histogram.zeros == values.size == histogram.size
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.counts.size <= 4096


@given(_BATCHES)
def test_each_value_lies_in_its_bin(batches: list[list[float]]) -> None:
    histogram = _filled(batches)
    values = np.concatenate([np.asarray(batch, np.float32) for batch in batches])
    nonzero = values[values != 0].astype(np.float64)
    if nonzero.size:
        index = np.floor(nonzero / histogram.width).astype(int) - histogram.first
        assert np.array_equal(np.bincount(index, minlength=histogram.counts.size), histogram.counts)


@given(_BATCHES, _BATCHES)
def test_merging_equals_counting_together(left: list[list[float]], right: list[list[float]]) -> None:
    merged = Histogram.of([_filled(left), _filled(right)])
    total = merged.counts.sum() + merged.zeros
    assert total == sum(map(len, left)) + sum(map(len, right))
    values = np.concatenate([np.asarray(batch, np.float32) for batch in left + right]).astype(np.float64)
    nonzero = values[values != 0]
    assert (merged.low, merged.high) == (values.min(), values.max())
    if nonzero.size:
        index = np.floor(nonzero / merged.width).astype(int) - merged.first
        assert np.array_equal(np.bincount(index, minlength=merged.counts.size), merged.counts)


def test_merging_leaves_the_other_as_it_was() -> None:
    other = _filled([[1.0, -7.5]])
    before = (other.counts.copy(), other.first, other.width)
    _filled([[100.0]]).merge(other)
    assert np.array_equal(other.counts, before[0]) and (other.first, other.width) == before[1:]


def test_a_large_array_is_sampled_with_its_weight_kept() -> None:
    values = np.random.default_rng(0).standard_normal((8, 16, 60, 60)).astype(np.float32)
    histogram = Histogram()
    for part in np.split(values, 8):
        histogram.update(part)
    assert histogram.size == values.size
    assert histogram.counts.sum() + histogram.zeros == pytest.approx(values.size, rel=1e-2)
    assert (histogram.low, histogram.high) == (float(values.min()), float(values.max()))
    share = histogram.counts[histogram.centers > 1.0].sum() / histogram.counts.sum()
    assert share == pytest.approx(np.mean(values > 1.0), abs=0.01)


def test_zeros_of_a_sampled_array_keep_their_weight() -> None:
    values = np.random.default_rng(0).standard_normal((8, 16, 60, 60)).astype(np.float32)
    values[values < 0] = 0.0
    histogram = Histogram()
    for part in np.split(values, 8):
        histogram.update(part)
    assert histogram.zeros / (histogram.zeros + histogram.counts.sum()) == pytest.approx(0.5, abs=0.02)


def test_an_outlier_later_in_the_stream_keeps_earlier_counts() -> None:
    histogram = _filled([[0.5, 0.25], [1e6]])
    assert histogram.counts.sum() == 3 and histogram.high == 1e6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^values hold NaN or infinity$"):
        Histogram().update(np.asarray([1.0, bad], np.float32))


def test_an_empty_array_counts_nothing() -> None:
    histogram = Histogram()
    histogram.update(np.zeros((0, 3), np.float32))
    assert histogram.size == 0 and histogram.counts.size == 0
