"""prune-weights: bounds, orderings, what it declines and why, and what is left of the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.data import open_data
from onnxpress.ir.encodings import Affine, Sparse, encode, encoding_of
from onnxpress.ir.errors import UsageError
from onnxpress.ir.linear import Linear
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.passes import layer_moments
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.quantize.quantize_int8 import QuantizeInt8
from onnxpress.passes.registry import get_pass
from onnxpress.targets.base import load_target
from onnxpress.tools.compress import compress
from tests.passes.prune.sparse_support import (
    BODY,
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

_DEMO = Path(__file__).parents[3] / "tools" / "demo"
_LAYERS = ["stem", "grouped", "branch", "hidden", "head"]
_ONE = "[one] out = Conv <pads = [1, 1, 1, 1]> (x, w, b)\n"


def _prune(model: onnx_ir.Model, **options: Any) -> Rewrites:
    return prune("prune-weights", model, **options)


def _one(weight: Array | None = None, body: str = _ONE) -> onnx_ir.Model:
    constants = {"w": weights()["w1"] if weight is None else weight, "b": np.arange(8.0)}
    used = {name: array for name, array in constants.items() if f", {name}" in body}
    return model_of(body, used, out="N, M, H, V")


def _bias(layer: Linear) -> Array:
    bias = layer.bias()
    assert bias is not None
    return bias


def _sqnr(rewrites: Rewrites) -> dict[str, float]:
    return {site.name: site.error["sqnr_db"] for site in rewrites.sites}


# What becomes zero.


@pytest.mark.parametrize("method", ["obs", "magnitude"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
def test_each_layer_gives_its_share(method: str, ratio: float) -> None:
    model = net()
    rewrites = _prune(model, method=method, ratio=ratio)
    assert [site.name for site in rewrites.sites] == _LAYERS and rewrites.declined == []
    for name in _LAYERS:
        sparse = sparse_of(model, name)
        assert sparse.size - sparse.stored == math.floor(ratio * sparse.size + 0.5)
        np.testing.assert_array_equal(sparse.dense() != 0, sparse.mask)


@pytest.mark.parametrize("method", ["obs", "magnitude"])
def test_one_threshold_takes_the_ratio_of_all_layers_together(method: str) -> None:
    model = net()
    _prune(model, method=method, ratio=0.6, allocation="global")
    found = [sparse_of(model, name) for name in _LAYERS]
    zeros, sizes = [each.size - each.stored for each in found], [each.size for each in found]
    assert sum(zeros) == math.floor(0.6 * sum(sizes) + 0.5)
    assert len({round(zero / size, 2) for zero, size in zip(zeros, sizes, strict=True)}) > 1
    assert all(zero <= 0.8 * size for zero, size in zip(zeros, sizes, strict=True))
    assert not _prune(model, method=method, ratio=0.6, allocation="global").modified


def test_the_threshold_of_magnitudes_is_relative_to_each_layer() -> None:
    """A layer a thousand times larger gives no less than before."""
    constants = weights()
    plain, scaled = model_of(BODY, constants), model_of(BODY, constants | {"w4": constants["w4"] * 1000})
    for model in (plain, scaled):
        _prune(model, method="magnitude", allocation="global")
    assert sparse_of(plain, "hidden").stored == sparse_of(scaled, "hidden").stored


def test_magnitude_drops_the_smallest_and_nothing_else_changes() -> None:
    before, after = net(), net()
    rewrites = _prune(after, method="magnitude", ratio=0.4)
    for site in rewrites.sites:
        old, new = layer_of(before, site.name), layer_of(after, site.name)
        gone = new.weight() == 0
        assert np.abs(old.weight()[gone]).max() <= np.abs(old.weight()[~gone]).min()
        np.testing.assert_array_equal(new.weight()[~gone], old.weight()[~gone])
        # Squared Frobenius error = the dropped weights squared, which is what the site says.
        dropped = float(np.square(old.weight()[gone], dtype=np.float64).sum())
        whole = float(np.square(old.weight(), dtype=np.float64).sum())
        gap = float(np.square(old.weight() - new.weight(), dtype=np.float64).sum())
        assert gap == pytest.approx(dropped)
        assert site.error == {"weight_sqnr_db": pytest.approx(10 * math.log10(whole / dropped))}
        assert old.bias_value is None or _bias(old).tolist() == _bias(new).tolist()


def test_what_a_site_says_of_its_output_is_what_onnxruntime_computes() -> None:
    """On the samples that it was fitted to, all positions of which are seen."""
    before = _one()
    feeds = data_of(before).head(48).feeds
    expected = run(before, feeds)[0]
    for options in ({"method": "magnitude"}, {"method": "obs"}):
        after = _one()
        (site,) = _prune(after, data=data_of(after), ratio=0.6, **options).sites
        error = relative_error(expected, run(after, feeds)[0])
        assert site.error["sqnr_db"] == pytest.approx(-10 * math.log10(error), abs=0.01)


def test_second_order_costs_less_than_magnitude_and_more_zeros_cost_more() -> None:
    data = data_of(net())
    plain, fitted = (_sqnr(_prune(net(), data=data, method=m, repair=False)) for m in ("magnitude", "obs"))
    assert all(fitted[name] > plain[name] + 1 for name in _LAYERS)
    harder = _sqnr(_prune(net(), data=data, ratio=0.7, repair=False))
    assert all(harder[name] < fitted[name] for name in _LAYERS)


def test_outputs_are_nearer_with_second_order_and_nearest_with_repair() -> None:
    data, base = data_of(net()), net()
    feeds = data_of(base, seed=2).head(48).feeds  # others than those it was fitted to
    expected = run(base, feeds)[0]
    errors = []
    for options in ({"method": "magnitude"}, {"repair": False}, {"repair": True}):
        model = net()
        _prune(model, data=data, ratio=0.6, **options)
        errors.append(relative_error(expected, run(model, feeds)[0]))
    assert errors[0] > 2 * errors[1] and errors[1] > errors[2]


def test_the_bias_takes_the_mean_error_and_a_matmul_gets_none() -> None:
    model = net()
    _prune(model, ratio=0.7)
    assert layer_of(model, "branch").bias() is not None  # it had none
    assert layer_of(model, "head").bias_value is None
    one, before = _one(), _one()
    _prune(one, ratio=0.7)
    feeds = data_of(one).head(48).feeds
    gap = run(one, feeds)[0] - run(before, feeds)[0]
    np.testing.assert_allclose(gap.mean(axis=(0, 2, 3)), 0.0, atol=1e-5)


def test_a_shortcut_that_lost_something_is_made_good_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the branch's target is its own output alone."""

    def error_of_the_sum() -> float:
        base, model = net(), net()
        _prune(model, include=["stem", "branch"], ratio=0.8)
        for each in (base, model):
            each.graph.outputs.append(next(node for node in each.graph if node.name == "add").outputs[0])
        feeds = data_of(net()).head(48).feeds
        return relative_error(run(base, feeds)[1], run(model, feeds)[1])

    corrected = error_of_the_sum()
    monkeypatch.setattr(layer_moments, "_shortcut", lambda *_: None)
    assert corrected < 0.95 * error_of_the_sum()


def test_dead_inputs_lose_their_weights_first() -> None:
    weight = np.full((8, 4, 3, 3), 1.0)
    model = _one(weight)
    feeds = dict(data_of(model).head(32).feeds)
    feeds["x"] = feeds["x"].copy()
    feeds["x"][:, 1] = 0.0
    _prune(model, data=open_data(feeds, model=model), ratio=0.25)
    assert not layer_of(model, "one").weight()[:, 1].any()


# The model that is left.


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "left"]), groups=st.integers(1, 3),
    share=st.integers(2, 4), side=st.sampled_from([1, 3]), trans_b=st.booleans(), bias=st.booleans(),
    method=st.sampled_from(["obs", "magnitude"]), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_layer(
    kind: str, groups: int, share: int, side: int, trans_b: bool, bias: bool, method: str, ratio: float, seed: int
) -> None:
    """The share is met, the model runs, what runs is the sparse weight, and a second run finds nothing to do."""
    model = _layer(kind, groups, share, side, trans_b, bias, seed)
    expected = run(model, random_feeds(model))[0]
    rewrites = _prune(model, method=method, ratio=ratio)
    layer = layer_of(model, "one")
    if not rewrites.modified:  # at least a weight must be asked for
        assert math.floor(ratio * layer.weight().size + 0.5) == 0
        return
    sparse = sparse_of(model, "one")
    assert sparse.size - sparse.stored >= math.floor(ratio * sparse.size + 0.5)
    got = run(model, random_feeds(model))[0]
    assert got.shape == expected.shape and np.isfinite(got).all()
    plain = model.clone()
    value = layer_of(plain, "one").weight_value
    value.const_value = onnx_ir.tensor(sparse.dense(), name=value.name)
    np.testing.assert_array_equal(run(plain, random_feeds(plain))[0], got)
    again = _prune(model, method=method, ratio=ratio)
    assert not again.modified and reasons(again)["one"].startswith("already that sparse: ")


def _layer(kind: str, groups: int, share: int, side: int, trans_b: bool, bias: bool, seed: int) -> onnx_ir.Model:
    """One layer of at least 128 weights; sizes all different."""
    rng = np.random.default_rng(seed)
    constants = {"b": rng.standard_normal(24)} if bias and kind not in ("MatMul", "left") else {}
    tail = ", b" if constants else ""
    shape: tuple[int, ...]
    if kind in ("Conv", "ConvTranspose"):
        channels = groups * share
        shape = (24, share, side, side) if kind == "Conv" else (channels, 24 // groups, side, side)
        text = f"out = {kind} <group = {groups}> (x, w{tail})"
        inputs, out = f"float[N, {channels}, 5, 7] x", "N, M, H, V"
        if math.prod(shape) < 128:
            shape = (shape[0], shape[1], 3, 3)
    elif kind == "left":
        shape, text, inputs, out = (24, 9), "out = MatMul (w, x)", "float[N, 9, 5] x", "N, M, V"
    else:
        gemm = kind == "Gemm"
        shape = (24, 9) if gemm and trans_b else (9, 24)
        text = f"out = Gemm <transB = {int(trans_b)}> (x, w{tail})" if gemm else "out = MatMul (x, w)"
        inputs, out = "float[N, 9] x", "N, M"
    return model_of(f"[one] {text}", {"w": rng.standard_normal(shape)} | constants, inputs=inputs, out=out)


def test_runs_are_equal_in_bits_and_a_second_one_finds_nothing_to_do() -> None:
    first, second = net(), net()
    for model in (first, second):
        _prune(model)
    assert to_proto_bytes(first) == to_proto_bytes(second)
    again = _prune(first)
    assert not again.modified and set(reasons(again)) == set(_LAYERS)
    assert reasons(again)["stem"] == "already that sparse: 144 of 288 weights are zero"
    assert to_proto_bytes(first) == to_proto_bytes(second)
    assert _prune(first, ratio=0.7).modified


def test_amounts_are_those_of_the_encoding() -> None:
    model = _one()
    (site,) = _prune(model).sites
    assert site.before.params == site.after.params == 288 + 8
    assert site.before.size_bytes == 4 * 296 and site.after.size_bytes == 288 // 8 + 4 * 144 + 4 * 8
    assert site.detail == (
        "144 of 288 weights are zero; the target stores and multiplies them like the others, "
        "so no speed or file size is won"
    )
    other = _one()
    constraints = Constraints(encodings=("sparse", "dense"))
    record = get_pass("prune-weights")(method="magnitude").run(other, Context(constraints=constraints))
    assert record.sites[0].detail == "144 of 288 weights are zero"


# What is declined.


def _shared(model: onnx_ir.Model) -> onnx_ir.Model:
    first, second = (node for node in model.graph if node.op_type == "Conv")
    second.replace_input_with(1, first.inputs[1])
    return model


def _encoded(weight: Array) -> onnx_ir.Model:
    model = _one()
    encode(model.graph.initializers["w"], Affine.quantize(weight))
    return model


def _half() -> onnx_ir.Model:
    body = "[cast] y = Cast <to = 10> (x)\n [one] z = Conv (y, w)\n [back] out = Cast <to = 1> (z)"
    return model_of(body, {"w": weights()["w1"].astype(np.float16)}, out="N, M, H, V")


_BRANCH = """[one] out = If (flag) <
    then_branch = t () => (float[N, M, H, V] a) { [inner] a = Conv (x, w) },
    else_branch = e () => (float[N, M, H, V] c) { [other] c = Conv (x, w) }>"""


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (lambda: _one(np.ones((8, 1, 5, 5)), _ONE.replace("pads", "group = 4, pads")), "one",
         "depthwise: each output channel reads one input channel, and has no weight to spare"),
        (lambda: _one(np.ones((3, 4, 3, 3)), _ONE.replace(", b", "")), "one", "too small: 108 weights, fewer than 128"),
        (lambda: _encoded(weights()["w1"]), "one", "weight 'w' is already encoded as affine8"),
        (lambda: _shared(model_of("[one] y = Conv <pads = [1, 1, 1, 1]> (x, w)\n [two] z = Conv (y, v)\n"
                                  "[out] out = Relu (z)", {"w": np.ones((4, 4, 3, 3)), "v": np.ones((4, 4, 3, 3))},
                                  out="N, M, H, V")), "two",
         "weight 'w' is shared by 2 readers, each with an input of its own"),
        (lambda: _one(np.where(np.arange(288).reshape(8, 4, 3, 3) % 2, 1.0, 0.0)), "one",
         "already that sparse: 144 of 288 weights are zero"),
        (lambda: model_of("[one] out = Gemm <alpha = 2.0> (x, w)", {"w": np.ones((12, 12))},
                          inputs="float[N, 12] x"), "one", "alpha=2, needs 1"),
        (_half, "one", "weight 'w' is FLOAT16, and only FLOAT is encoded"),
    ],
)  # fmt: skip
def test_a_layer_is_left_alone_and_says_why(build: Callable[[], onnx_ir.Model], name: str, reason: str) -> None:
    model, before = build(), build()
    rewrites = _prune(model, method="magnitude")
    assert not rewrites.modified and reasons(rewrites)[name] == reason
    assert to_proto_bytes(model) == to_proto_bytes(before)


def test_the_near_misses_of_those_reasons_are_pruned() -> None:
    one_less = np.where(np.arange(288) % 2, 1.0, 0.0)
    one_less[0] = 1.0
    for model in (
        _one(np.ones((8, 2, 5, 5)), _ONE.replace("pads", "group = 2, pads")),
        _one(np.ones((4, 4, 3, 3)), _ONE.replace(", b", "")),
        _one(one_less.reshape(8, 4, 3, 3)),
    ):
        assert _prune(model, method="magnitude").modified


def test_bodies_of_control_flow_are_left_alone() -> None:
    model = model_of(_BRANCH, {"w": weights()["w1"]}, inputs="float[N, 4, 5, 7] x, bool flag", out="N, M, H, V")
    rewrites = _prune(model, method="magnitude")
    reason = "inside a subgraph body: its input has no statistics, and its weight may belong to the outer graph"
    assert not rewrites.modified and reasons(rewrites) == {"inner": reason, "other": reason}


def test_a_weight_that_is_an_output_stays() -> None:
    model = _one()
    model.graph.outputs.append(model.graph.initializers["w"])
    assert reasons(_prune(model, method="magnitude")) == {"one": "weight 'w' is an output of the graph"}


def test_padding_that_the_operator_chooses_hides_the_columns() -> None:
    body = "[one] out = ConvTranspose <output_shape = [7, 9]> (x, w)"
    constants = {"w": np.random.default_rng(0).standard_normal((4, 8, 3, 3))}

    def build() -> onnx_ir.Model:
        return model_of(body, constants, out="N, M, H, V")

    reason = "its output_shape attribute leaves the padding to the operator"
    assert reasons(_prune(build())) == {"one": reason}
    (site,) = _prune(build(), method="magnitude", data=data_of(build())).sites
    assert list(site.error) == ["weight_sqnr_db"]


def test_selectors_and_the_number_of_sites() -> None:
    model = net()
    rewrites = _prune(model, method="magnitude", exclude=["branch"], max_sites=1)
    assert [site.name for site in rewrites.sites] == ["stem"]  # as large as grouped, and before it
    assert reasons(rewrites)["branch"] == "excluded by 'branch'"
    assert reasons(rewrites)["hidden"] == "max_sites=1, and it is none of the largest"


def test_a_constant_node_gives_way_to_an_initializer() -> None:
    numbers = ", ".join(map(str, range(1, 145)))
    model = model_of(f"w = Constant <value = float[12, 12] {{{numbers}}}> ()\n [one] out = MatMul (x, w)", {},
                     inputs="float[N, 12] x")  # fmt: skip
    assert _prune(model, method="magnitude").modified
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert layer_of(model, "one").weight().T.ravel()[:73].tolist() == [0.0] * 72 + [73.0]


# Options.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1}, "prune-weights: option ratio=1: input should be less than 1"),
        ({"ratio": -0.1}, "prune-weights: option ratio=-0.1: input should be greater than or equal to 0"),
        ({"method": "obd"}, "prune-weights: option method='obd': input should be 'obs' or 'magnitude'"),
        ({"samples": 0}, "prune-weights: option samples=0: input should be greater than or equal to 1"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_pass("prune-weights")(**options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_second_order_asks_for_data_and_magnitude_does_not() -> None:
    assert get_pass("prune-weights")().needs_data and not get_pass("prune-weights")(method="magnitude").needs_data
    with pytest.raises(UsageError, match=r"^prune-weights: needs calibration data and none was given\."):
        get_pass("prune-weights")().run(net(), Context())


def test_a_ratio_of_zero_changes_nothing() -> None:
    assert not _prune(net(), ratio=0.0).modified
    assert not _prune(net(), ratio=0.0, allocation="global").modified


# Behind it.


def test_integers_keep_the_zeros() -> None:
    model = net()
    _prune(model)
    masks = {name: sparse_of(model, name).mask for name in _LAYERS}
    record = QuantizeInt8(placement="all", exclude=["head"]).run(model, Context(data=data_of(model)))
    assert {"stem", "branch", "hidden"} <= {site.name for site in record.sites}
    for name in ("stem", "branch", "hidden"):
        encoded = encoding_of(layer_of(model, name).weight_value)
        assert isinstance(encoded, Affine) and encoded.zero_point is None
        assert not encoded.codes[~masks[name]].any()
    assert isinstance(encoding_of(layer_of(model, "head").weight_value), Sparse)


def test_lowering_stores_it_dense_and_says_so() -> None:
    model = net()
    _prune(model)
    expected = run(model, random_feeds(model))[0]
    report = load_target("x86-vnni").lower(model)
    assert report.forms == {"sparse -> dense": 5}
    assert report.notes == [
        "5 pruned weight tensors are stored dense, 736 zeros among 1,472 numbers: this runtime stores and multiplies "
        "zeros like other numbers, so they change neither the size of the file nor its speed"
    ]
    assert not any(isinstance(value.const_value, Sparse) for value in model.graph.initializers.values())
    np.testing.assert_array_equal(run(model, random_feeds(model))[0], expected)


def test_compress_end_to_end() -> None:
    result = compress(
        _DEMO / "digits.onnx",
        passes="cleanup, fold-batchnorm, prune-weights{ratio=0.5,samples=64}",
        data=_DEMO / "calibration.npz",
        eval_data=_DEMO / "evaluation.npz",
        latency_rounds=1,
    )
    before, after = result.report.before, result.report.after
    assert before.accuracy is not None and after.accuracy is not None
    assert after.accuracy > before.accuracy - 1.5
    assert any(re.search(r"stored dense, 55,\d{3} zeros among 111,520 numbers", note) for note in result.report.notes)
    saved = load(result.model)
    held = [value.const_value for value in saved.graph.initializers.values() if value.const_value is not None]
    zeros = sum(int((tensor.numpy() == 0).sum()) for tensor in held if len(tensor.shape) > 1)
    assert zeros >= 55_000
