"""Weights on an integer grid: exact where it says so, within half a step where it rounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import (
    Affine,
    Binary,
    Codebook,
    Encoded,
    Float16,
    PowerOfTwo,
    Sparse,
    Ternary,
    as_levels,
    integer_table,
    on_integer_grid,
)
from onnxpress.ir.encodings.levels import Levels


def _weights(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _codes(levels: int, *shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, levels, shape).astype(np.uint8)


def _reals(encoded: Encoded, out_axis: int, limit: int = 127) -> npt.NDArray[np.float32]:
    """What an integer kernel would multiply: integers of the table, times the scale of the output channel."""
    found, levels = integer_table(encoded, out_axis, limit), as_levels(encoded)
    assert found is not None and levels is not None and np.abs(found.table.astype(np.int16)).max() <= limit
    shape = [1] * len(levels.shape)
    shape[out_axis] = -1
    indices = levels.indices
    rows = np.repeat(np.arange(len(found.table)), indices.shape[out_axis] // len(found.table)).reshape(shape)
    integers = found.table[rows if len(found.table) > 1 else np.zeros_like(rows), indices]
    scale = found.scale.reshape(shape) if found.scale.ndim else found.scale
    product: npt.NDArray[np.float32] = integers.astype(np.float32) * scale
    return product


@pytest.mark.parametrize(
    "encoded",
    [
        Affine.quantize(_weights(6, 5, 3), bits=4, axis=0),
        Affine.quantize(_weights(6, 5, 3), bits=2, axis=None),
        Affine.quantize(_weights(6, 5, 3), bits=4, axis=0, symmetric=False, signed=False),
        Ternary(_codes(3, 6, 5).astype(np.int8) - np.int8(1), np.abs(_weights(6)) + 0.1, axis=0),
        Binary(_codes(2, 6, 5), np.abs(_weights(1, 6)) + 0.1, axis=0),
        PowerOfTwo(_codes(15, 6, 5).astype(np.int8) - np.int8(7), np.arange(-3, 3), bits=4, axis=0),
        Sparse(_codes(2, 6, 5), Ternary(_codes(3, 6, 5).astype(np.int8) - np.int8(1), 0.3)),
        Sparse(_codes(2, 6, 5), PowerOfTwo(_codes(7, 6, 5).astype(np.int8) - np.int8(3), 0, bits=3)),
        Codebook(_codes(3, 6, 5), [[0.5, -1.5, 1.0], [0.0, 0.0, 0.0], [0.1, 0.1, 0.1]], axis=0),
    ],
    ids=lambda encoded: encoded.label,
)
def test_what_lies_on_a_grid_already_is_kept_and_exact(encoded: Encoded) -> None:
    assert np.array_equal(_reals(encoded, 0), encoded.dense())
    assert on_integer_grid(encoded, 0) is encoded or isinstance(encoded, Sparse)
    assert np.array_equal(on_integer_grid(encoded, 0).dense(), encoded.dense())


def test_integers_are_the_smallest_that_do() -> None:
    found = integer_table(Codebook(_codes(3, 4), [-0.5, 0.25, 1.0]), 0)
    assert found is not None
    assert found.table.tolist() == [[-2, 1, 4]] and found.scale.tolist() == 0.25


@given(st.integers(0, 2**16), st.integers(1, 16), st.sampled_from([7, 64, 127]), st.sampled_from([None, 0, 1]))
@settings(max_examples=60, deadline=None)
def test_a_rounded_table_is_exact_on_the_grid_and_off_by_half_a_step_at_most(
    seed: int, levels: int, limit: int, axis: int | None
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((1 if axis is None else 2, levels)).astype(np.float32) * 10.0 ** rng.integers(-9, 9)
    codebook = table.astype(np.float32)[0] if axis is None else table.astype(np.float32)
    encoded = Codebook(rng.integers(0, levels, (4, 6)).astype(np.uint8), codebook, axis=axis)
    rounded = on_integer_grid(encoded, axis or 0, limit)
    assert np.array_equal(_reals(rounded, axis or 0, limit), rounded.dense())
    assert isinstance(rounded, Levels) and rounded.bits == encoded.bits
    bound = np.abs(encoded.table).max(axis=1, keepdims=True) / limit / 2
    assert (np.abs(rounded.table - encoded.table) <= bound * (1 + 1e-5)).all()
    assert on_integer_grid(rounded, axis or 0, limit) is rounded


@pytest.mark.parametrize(
    "encoded",
    [
        Affine.quantize(_weights(6, 8), bits=4, axis=1, block_size=4),
        Codebook(_codes(3, 6, 8), _weights(8, 3), axis=1),
        Codebook(_codes(3, 6, 8).astype(np.uint16), _weights(300)),
        Float16.quantize(_weights(6, 8)),
    ],
    ids=["blocks", "groups along the inputs", "300 levels", "float16"],
)
def test_everything_else_becomes_eight_bits_for_each_output_channel(encoded: Encoded) -> None:
    assert integer_table(encoded, 0) is None
    rounded = on_integer_grid(encoded, 0)
    assert isinstance(rounded, Affine) and (rounded.bits, rounded.axis) == (8, 0)
    step = np.abs(encoded.dense()).max(axis=1, keepdims=True) / 127
    assert (np.abs(rounded.dense() - encoded.dense()) <= step / 2 * (1 + 1e-5)).all()


def test_eight_bits_are_kept_within_the_limit_and_rounded_again_beyond_it() -> None:
    encoded = Affine.quantize(_weights(6, 8), bits=8, axis=0)
    assert on_integer_grid(encoded, 0) is encoded
    narrow = on_integer_grid(encoded, 0, limit=64)
    assert isinstance(narrow, Affine) and np.abs(narrow.codes).max() == 64


def test_a_sparse_weight_keeps_its_zeros() -> None:
    mask = _codes(2, 6, 8)
    for inner in (Affine.quantize(_weights(6, 8)), Codebook(_codes(4, 6, 8), _weights(4))):
        rounded = on_integer_grid(Sparse(mask, inner), 0)
        assert not rounded.dense()[mask == 0].any() and rounded.bits <= 8
    full = Codebook(_codes(256, 6, 8), np.arange(1, 257))
    with_zero = as_levels(Sparse(mask, full))
    assert with_zero is not None and with_zero.indices.dtype == np.uint16
    assert np.array_equal(with_zero.dense(), Sparse(mask, full).dense())
