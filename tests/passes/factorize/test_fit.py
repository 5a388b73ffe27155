"""Fits: the error is the measured one, falls with the rank, and reaches what a closed form knows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.factorize.fit import Objective, fit
from onnxpress.passes.factorize.forms import FORMS, Kernel

_KERNEL = Kernel(outputs=8, inputs=6, rows=3, columns=3)


def _objective(kernel: Kernel, seed: int = 0, *, samples: int = 400) -> tuple[Objective, np.ndarray, np.ndarray]:
    """Correlated columns x [samples, K] and targets y that are nearly linear in them."""
    rng = np.random.default_rng(seed)
    width = kernel.inputs * kernel.taps
    x = rng.standard_normal((samples, width)) @ (rng.standard_normal((width, width)) / np.sqrt(width) + np.eye(width))
    y = x @ rng.standard_normal((width, kernel.outputs)) / np.sqrt(width) + 0.05 * rng.standard_normal((samples, 8))
    return Objective(x.T @ x / samples, y.T @ x / samples, float(np.square(y).sum() / samples)), x, y


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_error_is_the_measured_one(name: str) -> None:
    objective, x, y = _objective(_KERNEL)
    form = FORMS[name]
    factors = fit(form, _KERNEL, (3, 3)[: 2 if name == "tucker" else 1], objective)
    weight = form.weight(factors).reshape(_KERNEL.outputs, -1)
    measured = np.square(x @ weight.T - y).sum() / np.square(y).sum()
    assert objective.error(form.weight(factors)) == pytest.approx(measured, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("channel", (8,)),
        ("spatial", (18,)),
        ("tucker", (6, 8)),
        ("cp", (54,)),
        ("separable", (9,)),
    ],
)
def test_full_rank_is_the_optimum(name: str, ranks: tuple[int, ...]) -> None:
    objective, _, _ = _objective(_KERNEL)
    best = objective.error(objective.optimum)
    form = FORMS[name]
    found = objective.error(form.weight(fit(form, _KERNEL, ranks, objective, sweeps=30)))
    assert found == pytest.approx(best, rel=0.02)


@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(sorted(FORMS)), seed=st.integers(0, 99))
def test_the_error_falls_as_the_rank_grows_and_with_every_sweep(name: str, seed: int) -> None:
    objective, _, _ = _objective(_KERNEL, seed)
    form = FORMS[name]
    both = name == "tucker"
    ranks = [(2, 2), (4, 5), (6, 8)] if both else [(1,), (3,), (6,)]
    by_rank = [objective.error(form.weight(fit(form, _KERNEL, each, objective, sweeps=8))) for each in ranks]
    assert all(later <= earlier * 1.02 for earlier, later in itertools.pairwise(by_rank))
    by_sweep = [objective.error(form.weight(fit(form, _KERNEL, ranks[1], objective, sweeps=n))) for n in (1, 2, 4)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(by_sweep))


def test_data_beats_the_weights_alone() -> None:
    """The same ranks, fitted to the weights' own error, lose more of the output."""
    objective, _, _ = _objective(_KERNEL)
    weight = objective.optimum
    plain = Objective(np.eye(len(objective.gram)), weight, float(np.square(weight).sum()))
    for name in ("channel", "spatial", "cp", "separable"):
        form = FORMS[name]
        informed = objective.error(form.weight(fit(form, _KERNEL, (2,), objective)))
        blind = objective.error(form.weight(fit(form, _KERNEL, (2,), plain)))
        assert informed < 0.95 * blind, name


def test_channel_is_the_best_of_its_rank() -> None:
    """Reduced-rank regression: no other weight of that rank does better, tried from many sides."""
    objective, _, _ = _objective(_KERNEL)
    form = FORMS["channel"]
    outer, inner = fit(form, _KERNEL, (2,), objective)
    best = objective.error(form.weight((outer, inner)))
    rng = np.random.default_rng(1)
    for _ in range(50):
        moved = (outer + 0.05 * rng.standard_normal(outer.shape), inner + 0.05 * rng.standard_normal(inner.shape))
        assert objective.error(form.weight(moved)) >= best


def test_going_on_from_factors_only_improves_them() -> None:
    objective, _, _ = _objective(_KERNEL)
    form = FORMS["cp"]
    first = fit(form, _KERNEL, (5,), objective, sweeps=1)
    again = fit(form, _KERNEL, (5,), objective, start=first, sweeps=3)
    assert objective.error(form.weight(again)) <= objective.error(form.weight(first)) * (1 + 1e-6)
