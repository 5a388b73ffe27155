"""Weights that lie on an integer grid: recognised, lossless, and never mistaken."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxpress.ir import grid
from onnxpress.ir.encodings import Affine
from onnxpress.ir.grid import grid_scale
from onnxpress.ir.linear import linear_ops
from onnxpress.ir.quantization import integer_range
from tests.support import growth

Array = npt.NDArray[Any]


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(grid)
    assert result.attempted and not result.failed


@st.composite
def _grids(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Codes [channels, n] of 2, 4 or 8 bits, narrow, and a scale for each channel."""
    bits = draw(st.sampled_from([2, 4, 8]))
    qmax = integer_range(bits, True)[1]
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 40)))
    codes = draw(hnp.arrays(np.int8, shape, elements=st.integers(-qmax, qmax)))
    scale = draw(hnp.arrays(np.float32, shape[:1], elements=st.floats(2.0**-20, 2.0**10, width=32)))
    return codes, scale, bits


@settings(max_examples=100)
@given(_grids(), st.integers(0, 1))
def test_weights_on_a_grid_lose_nothing(drawn: tuple[Array, Array, int], axis: int) -> None:
    codes, scale, bits = drawn
    w = codes * scale[:, None] if axis == 0 else (codes * scale[:, None]).T
    found = grid_scale(w, axis, bits)
    assert found is not None and found.shape == scale.shape and found.dtype == np.float32
    dense = Affine.quantize(w, bits=bits, axis=axis, scale=found).dense()
    peak = np.abs(w).max(axis=1 - axis, keepdims=True)
    assert np.all(np.abs(dense - w) <= 1e-6 * peak)


def test_grid_is_found_where_the_largest_code_is_small() -> None:
    codes = np.array([[3, -7, 50], [127, 1, 0], [0, 0, 0], [4, -4, 0]], np.int8)
    scale = np.array([0.013, 0.7, 1.0, 0.25], np.float32)
    found = grid_scale(codes * scale[:, None], 0)
    assert found is not None
    np.testing.assert_allclose(found, [0.013, 0.7, 1.0, 1.0], rtol=1e-6)  # 4 * 0.25 is one step of 1.0
    everywhere = grid_scale(codes[0] * scale[0], None)
    assert everywhere is not None and everywhere.shape == ()


def test_near_grids_are_not_taken() -> None:
    w = (np.arange(-127, 128, dtype=np.int8) * np.float32(0.02)).reshape(1, -1).repeat(3, 0)
    assert grid_scale(w, 0) is not None
    w[1, 40] += 0.02 * 0.001  # a thousandth of a step
    assert grid_scale(w, 0) is None
    assert grid_scale(np.random.default_rng(0).standard_normal((64, 9)), 0) is None
    assert grid_scale(np.full((2, 2), np.nan), 0) is None
    assert grid_scale(np.zeros((2, 0)), 0) is None
    assert grid_scale(np.full((1, 2), 1e-42), 0) is None  # 1 / scale would be infinite
    with pytest.raises(ValueError, match=r"^grids are told for up to 8 bits, not 16$"):
        grid_scale(w, 0, 16)


def test_lowest_integer_belongs_to_wide_grids_only() -> None:
    wide = np.array([[-128, 127, 3, 1]], np.int8) * np.float32(0.01)
    assert grid_scale(wide, 0) is None
    found = grid_scale(wide, 0, narrow=False)
    assert found is not None
    np.testing.assert_array_equal(Affine.quantize(wide, scale=found, narrow=False).codes, [[-128, 127, 3, 1]])
    assert grid_scale(-wide, 0, narrow=False) is None  # 128 does not exist


@pytest.mark.parametrize("on_grid", [True, False])
def test_time_grows_with_the_weights_and_not_with_their_square(on_grid: bool) -> None:
    rng = np.random.default_rng(0)

    def prepare(columns: int) -> Callable[[], object]:
        codes = rng.integers(-127, 128, (64, columns)).astype(np.float32)
        w = codes * np.float32(0.01) if on_grid else rng.standard_normal(codes.shape).astype(np.float32)
        assert (grid_scale(w, 0) is not None) == on_grid
        return lambda: grid_scale(w, 0)

    assert growth(prepare, 4000) < 8


@pytest.mark.assets("models/mobilenetv2_imagenet.onnx", "models/resnet20_cifar10.onnx")
@pytest.mark.parametrize(("name", "on_grid"), [("mobilenetv2_imagenet", True), ("resnet20_cifar10", False)])
def test_decoded_model_is_recognised(assets: Path, name: str, on_grid: bool) -> None:
    model = onnx_ir.load(assets / "models" / f"{name}.onnx")
    weights = [(linear.to_stored(linear.weight()), linear.out_axis) for linear in linear_ops(model)]
    scales = [grid_scale(w, axis) for w, axis in weights]
    assert all((scale is not None) == on_grid for scale in scales)
    for (w, axis), scale in zip(weights, scales, strict=True):
        if scale is not None:
            dense = Affine.quantize(w, axis=axis, scale=scale).dense()
            assert np.abs(dense - w).max() <= 1e-6 * np.abs(w).max()
