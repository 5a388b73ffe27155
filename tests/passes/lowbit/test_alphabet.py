"""Alphabets: levels as a linear function of parameters, rounding against a search through all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.passes.lowbit.alphabet import Alphabet, Grouping

Float64 = npt.NDArray[np.float64]

INTEGERS = np.arange(-3.0, 4.0)[:, None]
BASES = {
    "integers": INTEGERS,
    "ternary": np.array([[-1.0], [0.0], [1.0]]),
    "two scales": np.array([[0.0, -1.0], [0.0, 0.0], [1.0, 0.0]]),
    "binary": np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]),
    "codebook": np.eye(5),
}


@st.composite
def alphabets(draw: st.DrawFn) -> tuple[Alphabet, int, int]:
    """An alphabet of any basis, shared in any way, for rows of [R, K]."""
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    basis = BASES[draw(st.sampled_from(sorted(BASES)))]
    blocked = draw(st.booleans())
    share = 1 if blocked else draw(st.sampled_from([each for each in range(1, rows + 1) if rows % each == 0]))
    grouping = Grouping(draw(st.sampled_from([share, None])) if share == rows else share)
    if blocked:
        grouping = Grouping(block=draw(st.integers(1, width)))
    count = int(grouping.index(rows, width).max()) + 1
    numbers = draw(st.lists(st.floats(0.1, 4), min_size=count * basis.shape[1], max_size=count * basis.shape[1]))
    return Alphabet(basis, np.array(numbers).reshape(count, -1), grouping), rows, width


@given(alphabets(), st.integers(0, 2**32 - 1))
def test_the_nearest_level_is_that_of_a_search_through_all(drawn: tuple[Alphabet, int, int], seed: int) -> None:
    alphabet, rows, width = drawn
    wanted = np.random.default_rng(seed).normal(0, 3, (rows, width))
    rounding = alphabet.rounding(rows, width)
    groups = np.broadcast_to(alphabet.grouping.spread(alphabet.grouping.index(rows, width), width), wanted.shape)
    for column in range(width):
        codes, found = rounding.nearest(wanted[:, column], column)
        for row in range(rows):
            levels = alphabet.levels()[groups[row, column]]
            assert levels[codes[row]] == pytest.approx(found[row])
            assert abs(found[row] - wanted[row, column]) == pytest.approx(np.abs(levels - wanted[row, column]).min())


@given(alphabets(), st.integers(0, 2**32 - 1))
def test_the_gradient_is_that_of_finite_differences(drawn: tuple[Alphabet, int, int], seed: int) -> None:
    alphabet, rows, width = drawn
    rng = np.random.default_rng(seed)
    codes, of_values = rng.integers(0, len(alphabet.basis), (rows, width)), rng.standard_normal((rows, width))
    found = alphabet.gradient(codes, of_values)
    for at in np.ndindex(alphabet.parameters.shape):
        moved = alphabet.parameters.copy()
        moved[at] += 1.0  # values are linear in the parameters
        change = Alphabet(alphabet.basis, moved, alphabet.grouping).values(codes) - alphabet.values(codes)
        assert found[at] == pytest.approx(float((change * of_values).sum()), abs=1e-9)


def test_groups_are_runs_of_rows_or_blocks_of_columns() -> None:
    assert Grouping(rows=2).index(4, 3).tolist() == [[0], [0], [1], [1]]
    assert Grouping(rows=None).index(3, 3).tolist() == [[0], [0], [0]]
    blocks = Grouping(block=2)
    assert blocks.index(2, 5).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert blocks.spread(blocks.index(2, 5), 5).tolist() == [[0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


def test_unusable_parameters_are_not_taken() -> None:
    alphabet = Alphabet(INTEGERS, np.array([[1.0], [2.0], [3.0]]))
    assert alphabet.replace(np.array([[0.5], [-1.0], [np.nan]])).parameters.tolist() == [[0.5], [2.0], [3.0]]
    codebook = Alphabet(np.eye(2), np.array([[-1.0, 1.0]]), Grouping(None), positive=False)
    assert codebook.replace(np.array([[-2.0, 0.0]])).parameters.tolist() == [[-2.0, 0.0]]
