"""Elimination: every step's error is that of an explicit least-squares refit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.prune.elimination import Consumer, eliminate


def _consumer(seed: int, slots: int, block: int, out: int) -> Consumer:
    rng = np.random.default_rng(seed)
    width = slots * block
    mixing = rng.standard_normal((width, width))
    moments = mixing @ mixing.T / width + 0.05 * np.eye(width)
    positions = rng.permutation(width).reshape(slots, block)
    return Consumer(rng.standard_normal((out, width)), moments, positions)


def _refit_error(consumer: Consumer, removed: list[int]) -> float:
    """Relative error of the best weight that is zero on the removed slots, solved from scratch."""
    moments = consumer.moments + 1e-3 * np.mean(np.diagonal(consumer.moments)) * np.eye(len(consumer.moments))
    gone = consumer.positions[removed].reshape(-1)
    kept = np.setdiff1d(np.arange(len(moments)), gone)
    refit = np.zeros_like(consumer.weight)
    refit[:, kept] = np.linalg.solve(moments[np.ix_(kept, kept)], moments[kept] @ consumer.weight.T).T
    difference = consumer.weight - refit
    energy = np.einsum("ok,kl,ol->", consumer.weight, moments, consumer.weight)
    return float(np.einsum("ok,kl,ol->", difference, moments, difference) / energy)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_errors_along_the_path_are_those_of_a_refit_from_scratch(
    seed: int, slots: int, block: int, out: int, count: int
) -> None:
    consumers = [_consumer(seed + index, slots, block, out) for index in range(count)]
    path = eliminate(consumers)
    for removed in range(slots):
        expected = sum(_refit_error(consumer, list(path.order[:removed])) for consumer in consumers)
        assert path.error_of(removed) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert np.all(np.diff(path.errors) >= 0) and sorted(path.order) == list(range(slots))


def test_the_first_to_go_is_the_cheapest_single_slot() -> None:
    consumer = _consumer(3, 5, 2, 4)
    singles = [_refit_error(consumer, [slot]) for slot in range(5)]
    assert eliminate([consumer]).order[0] == int(np.argmin(singles))


def test_a_slot_that_another_one_repeats_goes_for_free() -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((4000, 4))
    samples[:, 3] = samples[:, 1]
    consumer = Consumer(rng.standard_normal((6, 4)), samples.T @ samples / 4000, np.arange(4).reshape(4, 1))
    path = eliminate([consumer])
    assert path.order[0] in (1, 3)
    assert path.error_of(1) < 2e-3 < path.error_of(2)  # what is left is the ridge


def test_dead_inputs_and_zero_weights_do_no_harm() -> None:
    consumer = Consumer(np.zeros((3, 4)), np.zeros((4, 4)), np.arange(4).reshape(4, 1))
    assert not eliminate([consumer]).errors.any()


def test_consumers_must_agree_on_the_slots() -> None:
    with pytest.raises(ValueError, match=r"^the consumers have different numbers of slots$"):
        eliminate([_consumer(0, 3, 1, 2), _consumer(0, 4, 1, 2)])
    with pytest.raises(ValueError, match=r"^no consumer: nothing tells what a slot is worth$"):
        eliminate([])
