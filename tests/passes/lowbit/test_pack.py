"""pack: weights of few values become codes, and nothing that the model computes changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import Affine, Codebook, Encoded, Float16, Sparse, encode, encoding_of
from onnxpress.ir.model_io import to_proto_bytes
from onnxpress.ir.verify import verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.registry import get_pass
from onnxpress.targets.base import load_target
from tests.passes.prune.sparse_support import layer_of, model_of, reasons
from tests.support import Array, random_feeds, run

_RNG = np.random.default_rng(0)
_BODY = "[one] h = Conv <pads = [1, 1, 1, 1]> (x, w)\n [two] out = Conv (h, v)"


def _pack(model: onnx_ir.Model, **options: Any) -> Rewrites:
    rewrites = get_pass("pack")(**options).run(model, Context())
    verify(model)
    return rewrites


def _model(w: Array, v: Array | None = None) -> onnx_ir.Model:
    other = _RNG.standard_normal((4, len(w), 3, 3)) if v is None else v
    return model_of(_BODY, {"w": w.astype(np.float32), "v": other}, out="N, M, H, V")


def _found(model: onnx_ir.Model, name: str = "one") -> Encoded | None:
    return encoding_of(layer_of(model, name).weight_value)


def _few_values(count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(count).astype(np.float32)
    return numbers[rng.integers(0, count, (16, 4, 3, 3))]


def _on_a_grid(largest: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-largest, largest + 1, (16, 4, 3, 3))
    codes[:, 0, 0, 0] = largest
    scales = (rng.random((16, 1, 1, 1)) + 0.5).astype(np.float32)
    found: Array = codes.astype(np.float32) * scales
    return found


@pytest.mark.parametrize(("count", "label"), [(2, "codebook1"), (4, "codebook2"), (16, "codebook4"), (17, "codebook5")])
def test_few_values_become_a_codebook(count: int, label: str) -> None:
    w = _few_values(count)
    model = _model(w)
    rewrites = _pack(model)
    found = _found(model)
    assert isinstance(found, Codebook) and found.label == label
    np.testing.assert_array_equal(found.dense(), w)
    (site,) = rewrites.sites
    assert (site.name, site.kind, site.error) == ("w", "Conv", {})
    assert site.before.size_bytes == w.nbytes and site.after.size_bytes == found.packed_bytes < w.nbytes
    assert site.detail.startswith(f"{label}, ") and site.detail.endswith("read by one")
    assert reasons(rewrites) == {"v": "it takes more than 256 different values, on no grid of integers"}


@pytest.mark.parametrize(("largest", "label"), [(1, "affine2"), (7, "affine4"), (127, "affine8")])
def test_integers_times_a_scale_become_integers(largest: int, label: str) -> None:
    w = _on_a_grid(largest)
    model = _model(w)
    _pack(model)
    found = _found(model)
    assert isinstance(found, Affine) and found.label == label and found.axis == 0
    np.testing.assert_array_equal(found.dense(), w)


def test_a_second_run_finds_nothing() -> None:
    model = _model(_few_values(9))
    assert _pack(model).modified
    again = _pack(model)
    assert not again.modified and reasons(again)["w"] == "it is encoded already"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(0, 99), st.booleans(), st.sampled_from(["x86-vnni", "mobile-cpu"]))
def test_outputs_stay_equal_to_the_last_bit(count: int, seed: int, on_a_grid: bool, target: str) -> None:
    w = _on_a_grid(min(count, 127), seed) if on_a_grid else _few_values(count, seed)
    model = _model(w, np.random.default_rng(seed).standard_normal((4, 16, 3, 3)))
    feeds = random_feeds(model)
    expected = run(model, feeds)[0]
    size = len(to_proto_bytes(model))
    modified = _pack(model).modified
    assert modified == (on_a_grid or len(np.unique(w)) <= 256)
    load_target(target).lower(model)
    np.testing.assert_array_equal(run(model, feeds)[0], expected)
    assert not modified or len(to_proto_bytes(model)) < size


def test_negative_zeros_count_as_zeros() -> None:
    w = _few_values(5)
    w[0] = -0.0
    w[1] = 0.0
    model = _model(w)
    _pack(model)
    found = _found(model)
    assert isinstance(found, Codebook) and found.codebook.shape == (len(np.unique(w)),)


# What is declined.


def _reason(model: onnx_ir.Model) -> str:
    before = to_proto_bytes(model)
    rewrites = _pack(model)
    assert not rewrites.modified and to_proto_bytes(model) == before
    return reasons(rewrites)["w"]


def test_what_gains_nothing_or_is_not_ours_to_change_is_declined() -> None:
    w = _few_values(5)
    nan = w.copy()
    nan[0, 0, 0, 0] = math.nan
    assert _reason(_model(nan)) == "it holds NaN or infinite values"
    model = _model(w)
    model.graph.outputs.append(model.graph.initializers["w"])
    assert _reason(model) == "it is an output of the model"
    model = _model(w)
    model.graph.inputs.append(model.graph.initializers["w"])
    assert _reason(model) == "it is a graph input, which the caller may set"
    model = _model(w)
    encode(model.graph.initializers["w"], Float16.quantize(w))
    assert _reason(model) == "it is encoded already"
    few = np.resize(np.arange(250, dtype=np.float32) ** 2, (8, 4, 3, 3))  # a codebook as large as what it saves
    assert _reason(_model(few)).startswith("codes and parameters would take ")


def test_small_weights_are_left_and_selectors_hold() -> None:
    model = _model(_few_values(3)[:2, :, :2, :2])
    rewrites = _pack(model)
    assert not rewrites.modified
    assert reasons(rewrites)["w"] == "it has 32 numbers, too few to be worth a node"
    rewrites = _pack(_model(_few_values(3)), exclude=["one"])
    assert reasons(rewrites)["w"] == "excluded by 'one'"


def test_a_target_that_stores_no_codebooks_gets_none() -> None:
    model = _model(_few_values(5))
    constraints = Constraints(target="toy", encodings=("affine8", "dense"))
    rewrites = get_pass("pack")().run(model, Context(constraints))
    assert not rewrites.modified and reasons(rewrites)["w"] == "toy stores no codebook3 weights"
    model = _model(_on_a_grid(7))  # wider integers hold it too
    rewrites = get_pass("pack")().run(model, Context(constraints))
    found = _found(model)
    assert isinstance(found, Affine) and found.label == "affine8"


def test_the_sign_of_zeros_is_kept_where_a_reader_may_tell() -> None:
    """1 / -0.0 is -inf."""
    w = np.where(np.arange(576).reshape(16, 36) % 2, 2.0, -0.0).astype(np.float32)
    model = model_of("[one] out = Div (x, w)", {"w": w}, inputs="float[16, 36] x", out="M, N")
    assert _reason(model) == "it holds negative zeros, whose sign a reader may tell"
    model = model_of("[one] out = Div (x, w)", {"w": np.abs(w)}, inputs="float[16, 36] x", out="M, N")
    assert _pack(model).modified


def test_pruned_weights_are_packed_too() -> None:
    w = _few_values(9)
    w[::2] = 0.0
    model = _model(w)
    encode(model.graph.initializers["w"], Sparse.of(w))
    _pack(model)
    found = _found(model)
    assert isinstance(found, Codebook)
    np.testing.assert_array_equal(found.dense(), w)


def test_codes_that_no_weight_has_may_overflow() -> None:
    """-8 times this scale is infinite; 7 times is not."""
    w = _on_a_grid(7) / np.float32(2) * np.float32(2.0**125)
    model = _model(w)
    assert _pack(model).modified
    load_target("x86-vnni").lower(model)
    verify(model)
