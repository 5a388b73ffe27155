"""Whole models: what is paid for once neighbours are known."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import open_data
from onnxpress.ir.model_io import load
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.prediction import Prediction, charges, predict
from onnxpress.targets.schema import Profile
from onnxpress.tools.demo import assets as demo
from tests.passes.prune.sparse_support import model_of

_RNG = np.random.default_rng(0)


def _profile(name: str = "x86-vnni") -> Profile:
    return load_target(name).profile


def _predict(model: onnx_ir.Model, profile: Profile | None = None) -> Prediction:
    found = predict(model, profile or _profile())
    assert found is not None
    return found


def _weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: _RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _paid(found: Prediction) -> set[str]:
    return {name for name, cost in found.nodes.items() if cost.seconds > 0}


def test_without_a_roofline_nothing_is_predicted() -> None:
    model = model_of("[a] out = Relu(x)", {}, out="N, 4, 5, 7")
    assert predict(model, _profile("tensorrt")) is None


def test_activations_and_a_fused_sum_go_into_their_convolution() -> None:
    model = model_of(
        "[a] a = Conv(x, w) [r] r = Relu(a) [b] b = Conv(r, w) [s] s = Add(b, r) [t] t = Relu(s) [c] out = Conv(t, w)",
        _weights(w=(16, 16, 1, 1)),
        inputs="float[N, 16, 8, 8] x",
        out="N, 16, 8, 8",
    )
    found = _predict(model)
    assert _paid(found) == {"a", "b", "c", "s"}
    assert found.nodes["s"].kind == "fused" and found.nodes["t"].kind == "absorbed"


def test_a_sum_with_an_operand_in_plain_layout_is_none_of_the_convolutions() -> None:
    """Its operand in blocks is laid out anew, and so is its own result for the next convolution."""
    model = model_of(
        "[a] a = Conv(x, w) [s] s = Add(a, y) [t] t = Relu(s) [c] out = Conv(t, w)",
        _weights(w=(16, 16, 1, 1)),
        inputs="float[N, 16, 8, 8] x, float[N, 16, 8, 8] y",
        out="N, 16, 8, 8",
    )
    found = _predict(model)
    assert _paid(found) == {"a", "s", "t", "c"} and found.nodes["s"].kind == "elements"
    assert set(found.conversions) == {"x", "a", "t", "out"}


def test_a_runtime_without_blocks_changes_no_layout() -> None:
    model = model_of(
        "[a] a = Conv(x, w) [s] out = Add(a, y)",
        _weights(w=(16, 16, 1, 1)),
        inputs="float[N, 16, 8, 8] x, float[N, 16, 8, 8] y",
        out="N, 16, 8, 8",
    )
    assert _predict(model, _profile("mobile-cpu")).conversions == {}
    assert _predict(model).conversions


def test_images_are_taken_as_they_are() -> None:
    model = model_of(
        "[a] a = Conv(x, w) [p] p = MaxPool<kernel_shape = [2, 2]>(a) [b] out = Conv(p, v)",
        _weights(w=(16, 3, 1, 1), v=(16, 16, 1, 1)),
        inputs="float[N, 3, 8, 8] x",
        out="N, 16, 7, 7",
    )
    assert set(_predict(model).conversions) == {"out"}


def test_what_constants_lead_to_is_free_and_unnamed() -> None:
    model = model_of(
        "[d] d = Mul(w, k) [a] out = Conv(x, d)",
        _weights(w=(16, 16, 1, 1), k=(1,)),
        inputs="float[N, 16, 8, 8] x",
        out="N, 16, 8, 8",
    )
    assert set(_predict(model).nodes) == {"a"}


def _quantized() -> onnx_ir.Model:
    target = load_target("x86-vnni")
    model = load(demo.model_path())
    context = Context(constraints=target.constraints, data=open_data(demo.calibration(), model=model))
    model, _ = PassManager(build("cleanup, fold-batchnorm, quantize-int8")).run(model, context)
    target.lower(model)
    return model


def test_between_integers_conversions_cost_nothing() -> None:
    model = _quantized()
    found = _predict(model)
    converted = [name for name, cost in found.nodes.items() if cost.kind == "conversion"]
    assert converted == ["input_q"]
    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    profile = _profile()
    assert profile.roofline is not None
    costs = RooflineCost(profile.roofline, profile.quantization, charges(model, profile).working_set_bytes)
    for node in layers:
        assert found.nodes[node.name or ""].seconds == costs.node_seconds(node, "int8"), node.name
    assert found.seconds < _predict(load(demo.model_path())).seconds


def test_an_operator_without_an_integer_kernel_is_float_between_conversions() -> None:
    model = model_of(
        "[q] q = QuantizeLinear(x, s, z) [d] d = DequantizeLinear(q, s, z) [e] e = Elu(d) "
        "[r] r = QuantizeLinear(e, s, z) [o] out = DequantizeLinear(r, s, z)",
        {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8)},
        inputs="float[N, 4, 5, 7] x",
        out="N, 4, 5, 7",
    )
    assert _paid(_predict(model)) == {"q", "d", "e", "r", "o"}


def test_weights_that_stay_in_the_cache_are_read_faster() -> None:
    profile = _profile()
    assert profile.roofline is not None
    roofline = profile.roofline.model_copy(
        update={"cache_kib": 64, "cache_gb_per_s": 100.0, "bandwidth_gb_per_s": 10.0, "call_us": 5.0}
    )
    profile = profile.model_copy(update={"roofline": roofline})
    small = model_of("[a] out = MatMul(x, w)", _weights(w=(100, 100)), inputs="float[1, 100] x", out="1, 100")
    large = model_of("[a] out = MatMul(x, w)", _weights(w=(1000, 100)), inputs="float[1, 1000] x", out="1, 100")
    times = [_predict(model, profile).nodes["a"].memory for model in (small, large)]
    assert 90 < times[1] / times[0] < 110  # ten times the bytes at a tenth of the speed
    assert _predict(small, profile).call_seconds == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("body", "unpriced"),
    [
        ("[c] c = Cast<to = 1>(x) [a] out = Conv(c, w)", ()),
        ("[t] t = Transpose<perm = [0, 1, 3, 2]>(x) [c] out = Cast<to = 1>(t)", ()),
        ("[q] q = ConvInteger(x, v) [c] out = Cast<to = 1>(q)", ("q",)),
    ],
)
def test_what_reads_integers_that_no_pass_made_takes_some_time(body: str, unpriced: tuple[str, ...]) -> None:
    weights = {**_weights(w=(4, 4, 1, 1)), "v": np.ones((4, 4, 1, 1), np.uint8)}
    found = _predict(model_of(body, weights, inputs="uint8[1, 4, 7, 7] x", out="1, 4, 7, 7"))
    assert 0 < found.seconds < 1e-3
    assert found.unpriced == unpriced


def test_what_multiplies_without_a_price_is_told() -> None:
    body = '[e] out = Einsum <equation = "ij,jk->ik"> (x, w)'
    model = model_of(body, _weights(w=(5, 6)), inputs="float[4, 5] x", out="4, 6")
    assert _predict(model).unpriced == ("e",)
