"""The mathematics of single weights: exact refit, orderings, and what holds for every pattern."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.passes.normal_form import with_ridge
from onnxpress.passes.prune import prune_weights, sparse_update
from onnxpress.passes.prune.sparse_update import (
    Runs,
    magnitude_mask,
    magnitude_runs_mask,
    obs_mask,
    obs_runs_mask,
    refit,
)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def _problem(groups: int = 1, out: int = 5, width: int = 12, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, width, width))
    gram = mixed @ mixed.transpose(0, 2, 1) / width
    return rng.standard_normal((groups, out, width)), with_ridge(gram, 0.05)


def _error(rows: Floats, left: Floats, gram: Floats) -> float:
    gap = left - rows
    return float(np.einsum("gok,gkl,gol->", gap, gram, gap))


def _refitted(rows: Floats, gram: Floats, kept: Mask) -> float:
    return _error(rows, refit(rows, gram, kept, rows), gram)


def test_examples_in_docstrings() -> None:
    for module in (sparse_update, prune_weights):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


@pytest.mark.parametrize("share", [0.2, 0.8])  # through the weights that stay, through those that go
def test_refit_is_the_least_error_of_its_mask(share: float) -> None:
    rows, gram = _problem()
    kept = np.random.default_rng(1).random(rows.shape) < share
    got = refit(rows, gram, kept, rows)
    assert not got[~kept].any()
    slope = (got - rows) @ gram  # no step within the mask can gain
    np.testing.assert_allclose(slope[kept], 0.0, atol=1e-9)


def test_one_weight_goes_at_the_price_that_obs_names() -> None:
    rows, gram = _problem(out=1)
    price = np.square(rows[0, 0]) / np.diagonal(np.linalg.inv(gram[0]))
    kept, _ = obs_mask(rows, gram, 1)
    assert np.flatnonzero(~kept[0, 0]).tolist() == [price.argmin()]
    assert _refitted(rows, gram, kept) == pytest.approx(price.min())


@pytest.mark.parametrize("exact", [True, False])
def test_selection_is_near_the_best_of_all_and_below_magnitude(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(sparse_update, "_EXACT_UPDATES", 0.0)
    ratios = []
    for seed in range(12):
        rows, gram = _problem(out=1, width=9, seed=seed)
        found = _refitted(rows, gram, obs_mask(rows, gram, 4)[0])
        masks = (np.isin(np.arange(9), gone, invert=True)[None, None] for gone in itertools.combinations(range(9), 4))
        best = min(_refitted(rows, gram, mask) for mask in masks)
        assert found >= best * (1 - 1e-9)
        plain = magnitude_mask(rows, 4)
        ratios.append((found / best, found / _error(rows, np.where(plain, rows, 0.0), gram)))
    to_best, to_plain = np.median(ratios, axis=0)
    assert to_best < (1.3 if exact else 2.5) and to_plain < 1.0


def test_the_sweep_needs_no_refit_to_gain_and_refit_gains_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_update, "_EXACT_UPDATES", 0.0)
    monkeypatch.setattr(sparse_update, "_BLOCK", 8)
    rows, gram = _problem(groups=2, out=6, width=40)
    kept, swept = obs_mask(rows, gram, rows.size // 2)
    assert kept.sum() == rows.size - rows.size // 2 and not swept[~kept].any()
    assert _refitted(rows, gram, kept) < _error(rows, swept, gram) < _error(rows, np.where(kept, rows, 0.0), gram)


def test_what_costs_too_much_to_solve_keeps_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_update, "_REFIT_FLOPS", 0.0)
    rows, gram = _problem()
    kept, swept = obs_mask(rows, gram, 7)
    assert refit(rows, gram, kept, swept) is swept


def test_equal_magnitudes_go_in_order() -> None:
    np.testing.assert_array_equal(magnitude_mask(np.array([1.0, -1.0, 1.0, 2.0]), 2), [False, False, True, True])
    kept = magnitude_runs_mask(np.array([[1.0, -1.0, 1.0, 2.0]]), Runs(2, 4))
    np.testing.assert_array_equal(kept, [[False, False, True, True]])


@pytest.mark.parametrize("exact", [True, False])
@given(
    groups=st.integers(1, 3), out=st.integers(1, 4), chunks=st.integers(1, 3), taps=st.sampled_from([1, 4]),
    m=st.integers(2, 5), data=st.data(),
)  # fmt: skip
def test_patterns_hold_everywhere(
    exact: bool, groups: int, out: int, chunks: int, taps: int, m: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, m - 1))
    rows, gram = _problem(groups, out, chunks * m * taps)
    runs = Runs(n, m, taps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_update, "_EXACT_UPDATES", np.inf if exact else 0.0)
        kept, left = obs_runs_mask(rows, gram, runs)
        drop = data.draw(st.integers(0, rows.size))
        free, _ = obs_mask(rows, gram, drop)
    for mask in (kept, magnitude_runs_mask(rows, runs)):
        assert (mask.reshape(groups, out, chunks, m, taps).sum(axis=3) == n).all()
    assert not left[~kept].any()
    assert (~free).sum() == drop
