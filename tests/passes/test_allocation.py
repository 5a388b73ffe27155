"""Allocation: the budget is met, by the moves that lose least, and nothing is given that was not needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.allocation import allocate

_Curves = Sequence[Sequence[float]]


def _share(losses: _Curves, savings: _Curves, budget: float) -> tuple[list[int], bool]:
    """Allocate where every site's saving is its own."""
    total = sum(curve[-1] for curve in savings)
    return allocate(
        losses,
        lambda levels: total - sum(savings[site][level] for site, level in enumerate(levels)),
        lambda levels, site, level: savings[site][level] - savings[site][levels[site]],
        budget,
    )


def test_the_cheapest_site_goes_first() -> None:
    losses = [[0, 1.0, 3.0], [0, 5.0, 9.0]]
    savings = [[0, 10.0, 20.0], [0, 10.0, 20.0]]
    assert _share(losses, savings, 30) == ([1, 0], True)
    assert _share(losses, savings, 20) == ([2, 0], True)
    assert _share(losses, savings, 40) == ([0, 0], True)


def test_a_step_that_gains_nothing_is_jumped_over() -> None:
    assert _share([[0, 1.0, 1.0], [0, 4.0, 4.0]], [[0, 0.0, 10.0], [0, 1.0, 10.0]], 10) == ([2, 0], True)


def test_what_was_saved_beyond_need_is_given_back() -> None:
    # The slopes take site 0 first, and then site 1 alone would have been enough.
    losses, savings = [[0, 1.0], [0, 5.0]], [[0, 4.0], [0, 10.0]]
    assert _share(losses, savings, 4) == ([0, 1], True)


def test_a_budget_out_of_reach_takes_everything() -> None:
    assert _share([[0, 1.0], [0, 1.0]], [[0, 4.0], [0, 6.0]], -1) == ([1, 1], False)


def test_a_site_without_levels_stays() -> None:
    assert _share([[0.0], [0, 1.0]], [[0.0], [0, 6.0]], 0) == ([0, 1], True)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**16), sites=st.integers(1, 4), share=st.floats(0.05, 0.95))
def test_it_meets_the_budget_near_the_best_loss(seed: int, sites: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    losses = [np.cumsum([0, *rng.uniform(0, 1, 3)]).tolist() for _ in range(sites)]
    savings = [np.cumsum([0, *rng.uniform(0.5, 1, 3)]).tolist() for _ in range(sites)]
    total = sum(curve[-1] for curve in savings)
    levels, met = _share(losses, savings, total * share)
    assert met
    left = total - sum(curve[level] for curve, level in zip(savings, levels, strict=True))
    assert left <= total * share + 1e-9
    best = min(
        sum(curve[level] for curve, level in zip(losses, each, strict=True))
        for each in itertools.product(range(4), repeat=sites)
        if total - sum(curve[level] for curve, level in zip(savings, each, strict=True)) <= total * share
    )
    found = sum(curve[level] for curve, level in zip(losses, levels, strict=True))
    largest = max(curve[-1] for curve in losses)
    assert found <= best + largest + 1e-9  # a greedy knapsack misses by one item at most
    for site, level in enumerate(levels):  # and no single site could go lower
        for lower in range(level):
            more = savings[site][level] - savings[site][lower]
            assert left + more > total * share or math.isclose(losses[site][lower], losses[site][level])


def test_levels_cost_what_all_of_them_say() -> None:
    """A product of two widths: taking one makes the other save less."""
    widths = [[4, 2, 1], [4, 2, 1]]

    def cost(levels: list[int]) -> float:
        return float(widths[0][levels[0]] * widths[1][levels[1]])

    def saved(levels: list[int], site: int, level: int) -> float:
        after = [*levels]
        after[site] = level
        return cost(levels) - cost(after)

    assert allocate([[0, 1.0, 2.5], [0, 1.0, 2.5]], cost, saved, 4) == ([1, 1], True)
    assert allocate([[0, 1.0, 1.5], [0, 9.0, 9.5]], cost, saved, 4) == ([2, 0], True)


@pytest.mark.parametrize("budget", [16, 100])
def test_nothing_is_asked(budget: float) -> None:
    assert allocate([[0, 1.0]], lambda levels: 16.0, lambda *_: 1.0, budget) == ([0], True)
