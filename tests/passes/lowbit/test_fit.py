"""Fitting codes and parameters: against exhaustive search, closed forms, and what every step must hold."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.lowbit.alphabet import Alphabet, Grouping
from onnxpress.passes.lowbit.fit import _descend, _round, fit_codes, nearest_codes, output_error, refit
from onnxpress.passes.lowbit.starts import (
    binary_scales,
    codebook_levels,
    exponents,
    integer_scales,
    ternary_scales,
)
from onnxpress.passes.normal_form import with_ridge

Float64 = npt.NDArray[np.float64]

TERNARY = np.array([[-1.0], [0.0], [1.0]])


def problem(seed: int = 0, groups: int = 1, out: int = 4, width: int = 12) -> tuple[Float64, Float64]:
    """Target rows [G, out, K], and a Gram matrix of correlated columns."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((groups, 4 * width, width)) @ rng.standard_normal((groups, width, width))
    gram = samples.transpose(0, 2, 1) @ samples / (4 * width)
    return rng.standard_normal((groups, out, width)), with_ridge(gram, 0.1)


def ternary(target: Float64) -> Alphabet:
    rows = target.reshape(-1, target.shape[2])
    return Alphabet(TERNARY, ternary_scales(rows, np.ones_like(rows))[:, None])


def error(target: Float64, gram: Float64, codes: npt.NDArray[np.int64], alphabet: Alphabet) -> float:
    found = alphabet.values(codes.reshape(-1, codes.shape[2])).reshape(codes.shape)
    return output_error(target, gram, found)


def test_fitted_codes_are_near_the_best_of_all() -> None:
    """All 3^6 codes of each row, each at its best scale. Descent ends in a local optimum now and then."""
    patterns = np.array(list(itertools.product([-1.0, 0.0, 1.0], repeat=6)))
    best = found = nearest = 0.0
    for seed in range(12):
        target, gram = problem(seed, out=3, width=6)
        codes, alphabet = fit_codes(target, gram, ternary(target))
        found += error(target, gram, codes, alphabet)
        nearest += error(target, gram, nearest_codes(target, ternary(target)), ternary(target))
        curvature = np.einsum("pk,kl,pl->p", patterns, gram[0], patterns)
        for row in target[0]:
            along = np.maximum(patterns @ gram[0] @ row, 0.0)
            gained = np.divide(along**2, curvature, out=np.zeros_like(along), where=curvature > 0)
            best += float(row @ gram[0] @ row - gained.max())
    assert best <= found <= 1.15 * best < 0.7 * nearest


def _gptq(target: Float64, gram: Float64, alphabet: Alphabet) -> npt.NDArray[np.int64]:
    """Frantar et al. 2022, algorithm 1, without blocks: one row, then one column after the other."""
    order = np.argsort(-np.diagonal(gram), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    codes = np.empty(target.shape, np.int64)
    levels = alphabet.levels()
    for row, left in enumerate(target[:, order].copy()):
        for at, column in enumerate(order):
            code = int(np.abs(levels[row] - left[at]).argmin())
            codes[row, column] = code
            left[at + 1 :] -= (left[at] - levels[row, code]) / factor[at, at] * factor[at, at + 1 :]
    return codes


def test_rounding_passes_errors_on_as_the_paper_does() -> None:
    """130 columns: three blocks of this implementation, the last one short."""
    target, gram = problem(2, out=3, width=130)
    found = _round(target, gram, ternary(target), None)
    np.testing.assert_array_equal(found[0], _gptq(target[0], gram[0], ternary(target)))


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 3), st.booleans(), st.booleans())
def test_each_step_lowers_the_error(seed: int, groups: int, masked: bool, shared: bool) -> None:
    target, gram = problem(seed, groups)
    rng = np.random.default_rng(seed)
    mask = rng.random(target.shape) < 0.6 if masked else None
    rows = target.reshape(-1, target.shape[2])
    alphabet = ternary(target)
    if shared:
        levels = codebook_levels(rows.reshape(-1), np.ones(rows.size), 4)
        alphabet = Alphabet(np.eye(4), levels[None], Grouping(None), positive=False)

    def value(codes: npt.NDArray[np.int64], alphabet: Alphabet) -> float:
        found = alphabet.values(codes.reshape(rows.shape)).reshape(target.shape)
        return output_error(target, gram, found if mask is None else np.where(mask, found, 0.0))

    codes = nearest_codes(target, alphabet)
    errors = [value(codes, alphabet)]
    for _ in range(3):
        codes, _ = _descend(target, gram, alphabet, mask, codes)
        errors.append(value(codes, alphabet))
        alphabet = refit(target, gram, codes, alphabet, mask)
        errors.append(value(codes, alphabet))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))


def test_groups_are_fitted_as_if_alone() -> None:
    target, gram = problem(3, groups=3)
    codes, alphabet = fit_codes(target, gram, ternary(target))
    for group in range(3):
        alone = target[group : group + 1]
        codes_alone, alphabet_alone = fit_codes(alone, gram[group : group + 1], ternary(alone))
        np.testing.assert_array_equal(codes[group], codes_alone[0])
        scales = alphabet.parameters.reshape(3, -1)[group]
        np.testing.assert_allclose(scales, alphabet_alone.parameters[:, 0], rtol=1e-9)


def _design(codes: npt.NDArray[np.int64], basis: Float64, groups: npt.NDArray[np.int64]) -> Float64:
    """The matrix that takes parameters to the values of all rows, [R * K, groups * P]."""
    count = int(groups.max()) + 1
    design = np.zeros((codes.size, count, basis.shape[1]))
    design[np.arange(codes.size), groups.reshape(-1)] = basis[codes.reshape(-1)]
    return design.reshape(codes.size, -1)


@pytest.mark.parametrize(
    ("basis", "grouping"),
    [
        (np.arange(-3.0, 4.0)[:, None], Grouping()),
        (np.array([[0.0, -1.0], [0.0, 0.0], [1.0, 0.0]]), Grouping()),
        (np.arange(-3.0, 4.0)[:, None], Grouping(block=5)),
        (np.eye(4), Grouping(None)),
        (np.eye(3), Grouping(2)),
    ],
    ids=["a scale", "two scales", "blocks", "a codebook", "codebooks"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_refitted_parameters_are_those_of_least_squares(basis: Float64, grouping: Grouping, masked: bool) -> None:
    target, gram = problem(5, out=4)
    rng = np.random.default_rng(5)
    codes = rng.integers(0, len(basis), target.shape)
    mask = rng.random(target.shape) < 0.7 if masked else None
    index = grouping.index(4, 12)
    groups = np.broadcast_to(grouping.spread(index, 12), (4, 12))
    start = Alphabet(basis, np.ones((int(index.max()) + 1, basis.shape[1])), grouping, positive=False)
    found = refit(target, gram, codes, start, mask)
    design = _design(codes[0], basis, groups)
    if mask is not None:
        design *= mask.reshape(-1, 1)
    factor = np.linalg.cholesky(gram[0]).T
    weighted = np.einsum("kl,rlp->rkp", factor, design.reshape(4, 12, -1)).reshape(48, -1)
    wanted, *_ = np.linalg.lstsq(weighted, (target[0] @ factor.T).reshape(-1), rcond=None)
    used = design.any(axis=0)  # what no weight speaks of stays as it was
    np.testing.assert_allclose(found.parameters.reshape(-1), np.where(used, wanted, 1.0), rtol=1e-5, atol=1e-7)


def test_masked_weights_count_as_zero_and_others_make_good_for_them() -> None:
    target, gram = problem(7)
    mask = np.random.default_rng(7).random(target.shape) < 0.5
    codes, alphabet = fit_codes(target, gram, ternary(target), mask)
    found = np.where(mask, alphabet.values(codes[0])[None], 0.0)
    plain_codes, plain = fit_codes(target, gram, ternary(target))
    dropped = np.where(mask, plain.values(plain_codes[0])[None], 0.0)
    assert output_error(target, gram, found) < 0.9 * output_error(target, gram, dropped)


def test_without_a_gram_matrix_codes_are_the_nearest_levels() -> None:
    target, _ = problem(9)
    codes, alphabet = fit_codes(target, None, ternary(target))
    np.testing.assert_array_equal(codes, nearest_codes(target, alphabet))
    assert error(target, np.eye(12)[None], codes, alphabet) <= error(
        target, np.eye(12)[None], nearest_codes(target, ternary(target)), ternary(target)
    )


def test_equal_runs_give_equal_codes() -> None:
    target, gram = problem(11, groups=2)
    first, second = (fit_codes(target, gram, ternary(target)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1].parameters.tobytes() == second[1].parameters.tobytes()


# Where fitting begins.


def test_the_ternary_scale_is_the_best_of_all() -> None:
    """Weighted error over a fine grid of scales, each weight on its nearest level."""
    rng = np.random.default_rng(0)
    rows, importance = rng.standard_normal((5, 20)), rng.random((5, 20)) + 0.1
    scales = ternary_scales(rows, importance)

    def of(scale: Float64) -> Float64:
        levels = np.stack([-scale, 0 * scale, scale], axis=1)
        off = np.abs(rows[:, :, None] - levels[:, None, :]).min(axis=2)
        return np.asarray((importance * off**2).sum(axis=1))

    least = np.min([of(np.full(5, scale)) for scale in np.linspace(0.01, 3, 600)], axis=0)
    assert np.all(of(scales) <= least * (1 + 1e-9))


def test_weights_that_are_encoded_already_are_found_exactly() -> None:
    rng = np.random.default_rng(1)
    ones = np.ones((4, 30))
    scale = rng.random((4, 1)) + 0.5
    np.testing.assert_allclose(ternary_scales(scale * rng.integers(-1, 2, (4, 30)), ones), scale[:, 0])
    signs = rng.choice([-1.0, 1.0], (2, 4, 30))
    two = binary_scales(2 * scale * signs[0] + 0.5 * scale * signs[1], ones, 2)
    np.testing.assert_allclose(np.sort(two, axis=1), np.hstack([0.5 * scale, 2 * scale]), rtol=1e-6)
    integers = rng.integers(-7, 8, (4, 30))
    integers[:, 0] = 7
    np.testing.assert_allclose(integer_scales(scale * integers, ones, Grouping(), 7), scale[:, 0])
    powers = np.ldexp(rng.choice([-1.0, 1.0], (4, 30)), rng.integers(-6, 1, (4, 30)))
    powers[:, 0] = 1.0
    assert exponents(powers, ones, 7).tolist() == [0, 0, 0, 0]
    values = rng.choice([-1.5, 0.25, 2.0], 90)
    np.testing.assert_allclose(codebook_levels(values, np.ones(90), 3), [-1.5, 0.25, 2.0])


@pytest.mark.parametrize("count", [1, 4, 40])
def test_codebooks_of_few_or_equal_numbers(count: int) -> None:
    for values in (np.zeros(5), np.array([1.0]), np.array([2.0, -1.0, 2.0])):
        levels = codebook_levels(values, np.zeros(len(values)), count)
        assert levels.shape == (count,) and np.isfinite(levels).all() and (np.diff(levels) >= 0).all()


def test_rows_of_zeros_get_scales_that_divide() -> None:
    zeros, ones = np.zeros((2, 6)), np.ones((2, 6))
    assert integer_scales(zeros, ones, Grouping(), 7).tolist() == [1.0, 1.0]
    assert (ternary_scales(zeros, ones) > 0).all() and (binary_scales(zeros, ones, 2) > 0).all()
    target, gram = zeros[None], problem(0, width=6)[1]
    codes, alphabet = fit_codes(target, gram, ternary(target))
    assert not alphabet.values(codes[0]).any()
