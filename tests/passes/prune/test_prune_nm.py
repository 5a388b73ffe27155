"""prune-nm: the pattern at every place, orderings, what it declines and why, and what is left of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.errors import UsageError
from onnxpress.ir.model_io import to_proto_bytes
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.registry import get_pass
from tests.passes.prune.sparse_support import (
    data_of,
    layer_of,
    model_of,
    net,
    prune,
    reasons,
    relative_error,
    sparse_of,
    weights,
)
from tests.support import Array, random_feeds, run

_LAYERS = ["stem", "grouped", "branch", "hidden", "head"]
_ONE = "[one] out = Conv <pads = [1, 1, 1, 1]> (x, w)\n"


def _prune(model: onnx_ir.Model, **options: Any) -> Rewrites:
    return prune("prune-nm", model, **options)


def _one(weight: Array, body: str = _ONE) -> onnx_ir.Model:
    return model_of(body, {"w": weight}, out="N, M, H, V")


def _most(model: onnx_ir.Model, name: str, m: int) -> int:
    """Largest number of weights in a run of m input channels, counted one place after the other."""
    weight = layer_of(model, name).weight()
    flat = weight.reshape(*weight.shape[:2], -1)
    return max(
        int(np.count_nonzero(flat[out, start : start + m, tap]))
        for out in range(len(flat))
        for start in range(0, flat.shape[1], m)
        for tap in range(flat.shape[2])
    )


@pytest.mark.parametrize("method", ["obs", "magnitude"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 4)])
def test_no_run_holds_more_than_n(method: str, n: int, m: int) -> None:
    model = net()
    rewrites = _prune(model, method=method, n=n, m=m)
    assert [site.name for site in rewrites.sites] == _LAYERS and rewrites.declined == []
    for name in _LAYERS:
        sparse = sparse_of(model, name)
        assert _most(model, name, m) == n and sparse.stored == sparse.size * n // m


def test_runs_lie_in_the_stored_weight_where_the_runtime_reads_them() -> None:
    """Conv: axis 1. MatMul and Gemm with transB=0: axis 0. Gemm with transB=1: axis 1."""
    model = net()
    _prune(model)
    stored = {name: sparse_of(model, name).mask for name in _LAYERS}
    assert (stored["branch"].reshape(8, 2, 4, 3, 3).sum(axis=2) == 2).all()
    assert (stored["head"].reshape(4, 4, 12).sum(axis=1) == 2).all()
    assert (stored["hidden"].reshape(16, 2, 4).sum(axis=2) == 2).all()


def test_magnitude_keeps_the_largest_of_each_run_as_they_were() -> None:
    weight = weights()["w3"]
    model = model_of("[one] out = Conv (x, w)", {"w": weight}, inputs="float[N, 8, 5, 7] x", out="N, M, H, V")
    before = layer_of(model, "one").weight()
    (site,) = _prune(model, method="magnitude").sites
    after = layer_of(model, "one").weight()
    ranked = np.sort(np.abs(before).reshape(8, 2, 4, 3, 3), axis=2)
    np.testing.assert_array_equal(np.sort(np.abs(after).reshape(8, 2, 4, 3, 3), axis=2)[:, :, 2:], ranked[:, :, 2:])
    np.testing.assert_array_equal(after[after != 0], before[after != 0])
    dropped, whole = float(np.square(ranked[:, :, :2]).sum()), float(np.square(ranked).sum())
    assert site.error["weight_sqnr_db"] == pytest.approx(10 * math.log10(whole / dropped), abs=1e-4)


def test_orderings() -> None:
    """obs above magnitude; 2:4 below half of the weights anywhere; 1:4 below 2:4 below 3:4."""
    data = data_of(net())

    def sqnr(name: str, **options: Any) -> Array:
        rewrites = prune(name, net(), data=data, repair=False, **options)
        return np.array([site.error["sqnr_db"] for site in rewrites.sites])

    pattern = sqnr("prune-nm")
    assert (pattern > sqnr("prune-nm", method="magnitude") + 0.5).all()
    assert (pattern < sqnr("prune-weights", ratio=0.5)).all()
    assert (sqnr("prune-nm", method="magnitude") < sqnr("prune-weights", ratio=0.5, method="magnitude")).mean() > 0.5
    assert (sqnr("prune-nm", n=1) < pattern).all() and (pattern < sqnr("prune-nm", n=3)).all()


def test_outputs_are_nearer_with_second_order_and_nearest_with_repair() -> None:
    data, base = data_of(net()), net()
    feeds = data_of(base, seed=2).head(48).feeds  # others than those it was fitted to
    expected = run(base, feeds)[0]
    errors = []
    for options in ({"method": "magnitude"}, {"repair": False}, {"repair": True}):
        model = net()
        _prune(model, data=data, n=1, **options)
        errors.append(relative_error(expected, run(model, feeds)[0]))
    assert errors[0] > 1.5 * errors[1] and errors[1] > errors[2]


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]), groups=st.integers(1, 3), m=st.integers(2, 5),
    chunks=st.integers(1, 2), trans_b=st.booleans(), method=st.sampled_from(["obs", "magnitude"]), data=st.data(),
)  # fmt: skip
def test_any_layer(
    kind: str, groups: int, m: int, chunks: int, trans_b: bool, method: str, data: st.DataObject
) -> None:
    """The pattern holds, the model runs, what runs is the sparse weight, and a second run finds nothing to do."""
    n, share = data.draw(st.integers(1, m - 1)), m * chunks
    rng = np.random.default_rng(m)
    if kind in ("Conv", "ConvTranspose"):
        channels = groups * share
        shape: tuple[int, ...] = (24, share, 3, 3) if kind == "Conv" else (channels, 24 // groups, 3, 3)
        text, inputs, out = f"{kind} <group = {groups}> (x, w)", f"float[N, {channels}, 5, 7] x", "N, M, H, V"
    else:
        shape = (70, share) if kind == "Gemm" and trans_b else (share, 70)
        text = f"Gemm <transB = {int(trans_b)}> (x, w)" if kind == "Gemm" else "MatMul (x, w)"
        inputs, out = f"float[N, {share}] x", "N, M"
    model = model_of(f"[one] out = {text}", {"w": rng.standard_normal(shape)}, inputs=inputs, out=out)
    assert _prune(model, method=method, n=n, m=m).modified
    assert _most(model, "one", m) == n
    got = run(model, random_feeds(model))[0]
    plain = model.clone()
    value = layer_of(plain, "one").weight_value
    value.const_value = onnx_ir.tensor(sparse_of(model, "one").dense(), name=value.name)
    np.testing.assert_array_equal(run(plain, random_feeds(plain))[0], got)
    again = _prune(model, method=method, n=n, m=m)
    assert not again.modified and reasons(again) == {"one": f"already {n}:{m}"}


def test_runs_are_equal_in_bits() -> None:
    first, second = net(), net()
    for model in (first, second):
        _prune(model)
    assert to_proto_bytes(first) == to_proto_bytes(second)
    assert set(reasons(_prune(first)).values()) == {"already 2:4"}
    assert _prune(first, n=1).modified


# What is declined.


def _encoded() -> onnx_ir.Model:
    model = _one(weights()["w1"])
    encode(model.graph.initializers["w"], Affine.quantize(weights()["w1"]))
    return model


def _two_readers() -> onnx_ir.Model:
    body = "[one] y = Conv <pads = [1, 1, 1, 1]> (x, w)\n [two] out = Conv <pads = [1, 1, 1, 1]> (y, w)"
    return _one(np.ones((4, 4, 3, 3)), body)


_SPARSE = np.where(np.arange(4)[None, :, None, None] % 2, 1.0, np.zeros((8, 4, 3, 3)))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: model_of(_ONE, {"w": np.ones((8, 6, 3, 3))}, inputs="float[N, 6, 5, 7] x", out="N, M, H, V"),
         "its 6 input channels are no multiple of m=4"),
        (lambda: model_of(_ONE.replace("pads", "group = 2, pads"), {"w": np.ones((8, 6, 3, 3))},
                          inputs="float[N, 12, 5, 7] x", out="N, M, H, V"),
         "its 6 input channels of a group are no multiple of m=4"),
        (lambda: _one(_SPARSE), "already 2:4"),
        (lambda: _one(np.ones((8, 1, 5, 5)), _ONE.replace("pads", "group = 4, pads")),
         "depthwise: each output channel reads one input channel, and has no weight to spare"),
        (lambda: _one(np.ones((3, 4, 3, 3))), "too small: 108 weights, fewer than 128"),
        (_encoded, "weight 'w' is already encoded as affine8"),
        (_two_readers, "weight 'w' is shared by 2 readers, each with an input of its own"),
    ],
)  # fmt: skip
def test_a_layer_is_left_alone_and_says_why(build: Callable[[], onnx_ir.Model], reason: str) -> None:
    model, before = build(), build()
    rewrites = _prune(model, method="magnitude")
    assert not rewrites.modified and reasons(rewrites)["one"] == reason
    assert to_proto_bytes(model) == to_proto_bytes(before)


def test_one_run_too_full_is_enough_to_be_pruned() -> None:
    weight = _SPARSE.copy()
    weight[3, 0, 1, 2] = 0.5
    model = _one(weight)
    assert _prune(model, method="magnitude").modified
    np.testing.assert_array_equal(layer_of(model, "one").weight(), _SPARSE)


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4, "m": 4}, "prune-nm: n=4 of m=4 leaves nothing to prune. Give n < m"),
        ({"n": 0}, "prune-nm: option n=0: input should be greater than or equal to 1"),
        ({"m": 33}, "prune-nm: option m=33: input should be less than or equal to 32"),
        ({"n": 1, "m": 1}, "prune-nm: option m=1: input should be greater than or equal to 2"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_pass("prune-nm")(**options)
    assert str(caught.value) == message


def test_second_order_asks_for_data() -> None:
    with pytest.raises(UsageError, match=r"^prune-nm: needs calibration data and none was given\."):
        get_pass("prune-nm")().run(net(), Context())
    assert get_pass("prune-nm")().needs_data and not get_pass("prune-nm")(method="magnitude").needs_data
