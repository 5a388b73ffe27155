"""Pair sums: the limit holds at every place, costs little, and the runtime's kernels no longer saturate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import Affine
from onnxpress.passes.quantize.pair_sums import within_pair_limit
from onnxpress.targets.runtimes.onnxruntime_host import saturates_products
from tests.support import run

_LIMIT = 128
_Array = npt.NDArray[Any]


def _scale(weight: _Array) -> npt.NDArray[np.float32]:
    return Affine.quantize(weight, axis=0).scale


def _noise_db(weight: _Array, codes: _Array, scale: _Array) -> float:
    error = codes * scale.reshape(-1, *[1] * (weight.ndim - 1)) - weight
    return float(10 * np.log10(np.square(weight).sum() / np.square(error).sum()))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(3, 5), (2, 1, 3, 3), (4, 3, 3, 2), (5, 8, 1, 1), (1, 1)]),
    power=st.floats(0.3, 4),
    seed=st.integers(0, 2**16),
    shared=st.booleans(),
)
def test_no_pair_exceeds_the_limit(shape: tuple[int, ...], power: float, seed: int, shared: bool) -> None:
    drawn = np.random.default_rng(seed).uniform(-1, 1, shape)
    weight = (np.sign(drawn) * np.abs(drawn) ** power).astype(np.float32)
    least = Affine.quantize(weight, axis=None if shared else 0).scale
    codes, scale = within_pair_limit(weight, least, _LIMIT)
    assert codes.shape == weight.shape and codes.dtype == np.int8 and np.abs(codes.astype(int)).max(initial=0) <= 127
    assert scale.shape == least.shape and (scale >= least).all()
    rows = np.moveaxis(codes.astype(int), 1, -1).reshape(len(weight), -1)
    assert np.abs(rows[:, 1:] + rows[:, :-1]).max(initial=0) <= _LIMIT


def test_a_channel_that_keeps_the_limit_is_rounded_as_before() -> None:
    weight = np.array([[127, -127, 1, 127], [64, 64, 64, 127]], np.float32) / 127
    codes, scale = within_pair_limit(weight, _scale(weight), _LIMIT)
    np.testing.assert_array_equal(codes[0], [127, -127, 1, 127])
    assert scale[0] == _scale(weight)[0] and scale[1] > _scale(weight)[1]


def test_the_order_of_summation_has_input_channels_inside() -> None:
    weight = np.zeros((1, 2, 1, 2), np.float32)
    weight[0, :, 0, 0] = 1  # neighbours: the two channels of one kernel position
    assert within_pair_limit(weight, _scale(weight), _LIMIT)[1][0] > _scale(weight)[0]
    apart = np.zeros((1, 3, 1, 2), np.float32)
    apart[0, 0, 0, :] = 1  # three terms apart
    assert within_pair_limit(apart, _scale(apart), _LIMIT)[1][0] == _scale(apart)[0]


def test_it_costs_less_than_seven_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((32, 64, 3, 3)).astype(np.float32)
    plain = Affine.quantize(weight, axis=0)
    codes, scale = within_pair_limit(weight, plain.scale, _LIMIT)
    best, found = _noise_db(weight, plain.codes, plain.scale), _noise_db(weight, codes, scale)
    assert best - 3.5 < found < best  # seven bits cost 6.02 dB


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_runtime_adds_the_products_up(kernel: int) -> None:
    """The largest data there is, on weights that saturate where sums are taken in 16 bits."""
    weight = np.random.default_rng(1).uniform(0.5, 1, (8, 16, kernel, kernel)).astype(np.float32)
    plain = Affine.quantize(weight, axis=0).codes
    safe, _ = within_pair_limit(weight, _scale(weight), _LIMIT)
    expected, found = _sums(safe), safe.reshape(8, -1).sum(axis=1, dtype=np.int64) * 255
    np.testing.assert_array_equal(expected, found)
    is_wrong = bool((_sums(plain) != plain.reshape(8, -1).sum(axis=1, dtype=np.int64) * 255).any())
    assert is_wrong == saturates_products()


def _sums(codes: _Array) -> _Array:
    """Return what the integer kernel makes of `codes` [out, in, k, k] and data that are all 255, rescaled exactly."""
    matrix = np.moveaxis(codes, 1, -1).reshape(len(codes), -1).T.copy()
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "sums",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, len(matrix)])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, len(codes)])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    sums: _Array = run(model, {"x": np.full((1, len(matrix)), 255, np.uint8)})[0][0]
    return sums
