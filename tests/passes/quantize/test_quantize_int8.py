"""quantize-int8: what it notes and encodes, what it declines, and how much error that costs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.encodings import Affine, encoding_of, is_encoded
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.ir.linear import linear_ops
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.quantization import integer_parameters, quantization_of
from onnxpress.ir.verify import verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints, Precision, QuantizationScheme
from onnxpress.passes.quantize.quantize_int8 import QuantizeInt8
from onnxpress.targets.lowering.qdq import lower_qdq
from onnxpress.targets.runtimes.onnxruntime_cpu import inspect_kernels
from tests.support import Array, run, text_model

_SCHEME = QuantizationScheme(
    carry=frozenset({"Add", "Concat", "MaxPool", "GlobalAveragePool", "Flatten"}),
    same_scale=frozenset({"Concat", "MaxPool", "Flatten"}),
    input_channel_multiple=4,
)
_HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def _model(body: str, weights: dict[str, Array], *, out: str = "N, M", header: str = _HEADER) -> onnx_ir.Model:
    """A model from ONNX text whose `weights` are declared as inputs there and become initializers."""
    extra = "".join(f", float {name}" for name in weights)
    model = text_model(f"{header}\nnet (float[N, 3, 8, 8] x{extra}) => (float[{out}] out)\n{{ {body} }}")
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            tensor = onnx_ir.tensor(weights[value.name].astype(np.float32), name=value.name)
            value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(np.shape(weights[value.name]))
            value.const_value = tensor
            model.graph.register_initializer(value)
    return load(model)


_BODY = """
    [stem] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [relu1] r1 = Relu (c1)
    [second] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    [add] a = Add (c2, r1)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    [mean] g = GlobalAveragePool (p)
    [flat] f = Flatten (g)
    [head] y = Gemm <transB = 1> (f, w3, b3)
    [scores] out = Softmax (y)
"""


def _weights(seed: int = 0, channels: int = 8) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (channels, 3, 3, 3),
        "b1": (channels,),
        "w2": (channels, channels, 3, 3),
        "w3": (5, channels),
        "b3": (5,),
    }
    return {name: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}


def _net(**changes: Array) -> onnx_ir.Model:
    return _model(_BODY, _weights() | changes)


def _data(model: onnx_ir.Model, count: int = 48, seed: int = 1) -> DataSource:
    return open_data(
        {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)}, model=model
    )


def _quantize(
    model: onnx_ir.Model,
    scheme: QuantizationScheme = _SCHEME,
    costs: Any = None,
    data: DataSource | None = None,
    **options: Any,
) -> Rewrites:
    context = Context(constraints=Constraints(quantization=scheme, costs=costs), data=data or _data(model))
    return QuantizeInt8(**options).run(model, context)


def _sqnr(model: onnx_ir.Model, quantized: onnx_ir.Model, scheme: QuantizationScheme = _SCHEME, seed: int = 9) -> float:
    lowered = quantized.clone()
    lower_qdq(lowered, scheme)
    verify(lowered)
    feeds = _data(model, 16, seed).head(16).feeds
    (real,), (got,) = run(model, feeds), run(lowered, feeds)
    noise = float(np.square(real - got, dtype=np.float64).sum())
    return 10 * math.log10(float(np.square(real, dtype=np.float64).sum()) / noise) if noise else math.inf


def _notes(model: onnx_ir.Model) -> dict[str, tuple[float, float]]:
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {str(value.name): (q.low, q.high) for value in values if (q := quantization_of(value)) is not None}


def test_it_notes_what_integer_kernels_read_and_write() -> None:
    model = _net()
    rewrites = _quantize(model)
    # Conv outputs and moves are integers, a Relu folds into its Conv, the last Gemm writes float, Softmax is float.
    assert list(_notes(model)) == ["x", "r1", "c2", "a", "p", "g", "f"]
    assert [site.name for site in rewrites.sites] == ["stem", "second", "add", "pool", "mean", "flat", "head"]
    assert rewrites.declined == []
    encodings = {name: encoding_of(value) for name, value in model.graph.initializers.items()}
    assert {name for name, encoding in encodings.items() if isinstance(encoding, Affine)} == {
        "w1",
        "w2",
        "w3",
    }


def test_a_relu_output_starts_at_zero_and_groups_share_a_range() -> None:
    model = _net()
    _quantize(model)
    notes = _notes(model)
    assert notes["r1"][0] == 0.0
    assert notes["a"] == notes["p"] and notes["g"] == notes["f"] != notes["p"]


def test_sites_record_bytes_and_measured_error() -> None:
    model = _net()
    rewrites = _quantize(model)
    second = next(site for site in rewrites.sites if site.name == "second")
    assert second.before.size_bytes == 8 * 8 * 9 * 4
    assert second.after.size_bytes == 8 * 8 * 9 + 8 * 4 + 8 * 4  # codes, scales, and the bias that it got
    assert second.before.macs == second.after.macs == 8 * 8 * 9 * 64
    assert 30 < second.error["sqnr_db"] < 60
    assert second.detail.startswith("in [0, ")


def test_the_quantized_net_computes_nearly_the_same() -> None:
    model, quantized = _net(), _net()
    _quantize(quantized)
    assert _sqnr(model, quantized) > 35


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_every_method_stays_inside_the_observed_extremes(method: str) -> None:
    widest, model = _net(), _net()
    _quantize(widest, method="minmax")
    _quantize(model, method=method)
    for name, (low, high) in _notes(model).items():
        assert _notes(widest)[name][0] <= low <= 0 <= high <= _notes(widest)[name][1]


def test_without_data_it_refuses() -> None:
    with pytest.raises(UsageError) as error:
        QuantizeInt8().run(_net(), Context())
    assert str(error.value) == (
        "quantize-int8: needs calibration data and none was given. "
        "Give a few hundred real samples: --data samples.npz (data=... in Python)"
    )


def test_an_unknown_option_names_the_near_one() -> None:
    with pytest.raises(UsageError) as error:
        QuantizeInt8(methd="mse")
    assert str(error.value) == (
        "quantize-int8: unknown option 'methd'. Did you mean 'method'? It takes: include, exclude, method, "
        "percentile, samples, bias_correction, tail, placement, error_samples"
    )


def test_a_value_that_turns_nan_is_an_input_error() -> None:
    model = _net(w2=np.full((8, 8, 3, 3), 3e38))
    with pytest.raises(InputError) as error:
        _quantize(model)
    assert str(error.value) == (
        "calibration: value 'c2': values hold NaN or infinity on the calibration data. Check the samples' preprocessing"
    )


def test_excluded_nodes_are_declined_and_keep_their_weight() -> None:
    model = _net()
    rewrites = _quantize(model, exclude=("second",))
    assert [(entry.name, entry.reason) for entry in rewrites.declined] == [("second", "excluded by 'second'")]
    assert encoding_of(model.graph.initializers["w2"]) is None


def test_the_tail_stays_float_unless_asked_for() -> None:
    body = "[conv] c = Conv <pads = [1, 1, 1, 1]> (x, w1)\n [pool] p = GlobalAveragePool (c)\n [flat] out = Flatten (p)"
    weights = {"w1": _weights()["w1"]}
    model = _model(body, weights)
    rewrites = _quantize(model)
    reason = "follows the last weighted layer; tail=int8 would quantize it"
    assert [(entry.name, entry.reason) for entry in rewrites.declined] == [("pool", reason), ("flat", reason)]
    assert list(_notes(model)) == ["x", "c"]
    model = _model(body, weights)
    assert _quantize(model, tail="int8").declined == []
    assert list(_notes(model)) == ["x", "c", "p", "out"]


class _SlowInt8:
    """A target on which int8 wins nothing."""

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        return 2e-6 if precision == "int8" else 1e-6

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        return 0.0


def test_what_the_target_runs_slower_is_declined_unless_all_is_asked_for() -> None:
    model = _net()
    rewrites = _quantize(model, costs=_SlowInt8())
    assert rewrites.sites == [] and not rewrites.modified and _notes(model) == {}
    assert {entry.reason for entry in rewrites.declined} == {
        "float is cheaper as a whole: 1.0 us against 2.0 us in int8 and up to 0.0 us of conversions at its borders"
    }
    assert len(_quantize(_net(), costs=_SlowInt8(), placement="all").sites) == 7


def test_weights_on_an_integer_grid_lose_nothing() -> None:
    grid = np.random.default_rng(3).integers(-100, 101, (8, 8, 3, 3)) * 0.0173
    model = _net(w2=grid)
    _quantize(model)
    stored = model.graph.initializers["w2"].const_value
    # Code times scale in float32 may differ from the decoded weight by the rounding of both factors.
    assert stored is not None and np.allclose(stored.numpy(), grid, rtol=2**-22, atol=0)


def test_a_bias_that_would_overflow_the_accumulator_widens_its_scale() -> None:
    weight, bias = _weights()["w1"], _weights()["b1"]
    weight[3], bias[3] = 1e-12, 50.0
    model = _net(w1=weight, b1=bias)
    _quantize(model, bias_correction=False)
    encoded = encoding_of(model.graph.initializers["w1"])
    assert isinstance(encoded, Affine)
    noted = quantization_of(model.graph.inputs[0])
    assert noted is not None
    scale, _ = integer_parameters(noted, signed=False, symmetric=False)
    assert abs(bias[3]) / (float(scale) * encoded.scale[3]) <= 2**30 * 1.001
    assert _sqnr(_net(w1=weight, b1=bias), model) > 30


def test_a_shared_weight_is_copied_for_the_node_that_is_quantized() -> None:
    body = """
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        [two] b = Conv <pads = [1, 1, 1, 1]> (a, w1)
        [head] c = Conv (b, w2)
        out = Sigmoid (c)
    """
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((3, 3, 3, 3)), "w2": rng.standard_normal((2, 3, 8, 8))}
    model, original = (_model(body, weights, out="N, C, H, W") for _ in range(2))
    _quantize(model, exclude=("two",))
    assert encoding_of(model.graph.initializers["w1"]) is None
    nodes = {node.name: node for node in model.graph}
    assert isinstance(encoding_of(nodes["one"].inputs[1]), Affine)
    assert nodes["two"].inputs[1] is model.graph.initializers["w1"]
    assert _sqnr(original, model) > 25


def test_an_old_opset_is_raised_because_scales_are_per_channel() -> None:
    model = _model(_BODY, _weights(), header='<ir_version: 7, opset_import: ["": 11]>')
    rewrites = _quantize(model)
    assert model.graph.opset_imports[""] == 13
    assert len(rewrites.sites) == 7 and len(_notes(model)) == 7


def test_bias_correction_removes_the_mean_error() -> None:
    def mean_error(correct: bool) -> float:
        weight = _weights()["w2"] + 0.35  # rounding one way shifts every sum of positive inputs
        scheme = dataclasses.replace(_SCHEME, weight_per_channel=False)
        original, model = _net(w2=weight), _net(w2=weight)
        _quantize(model, scheme, bias_correction=correct, error_samples=48)
        lower_qdq(model, scheme)
        feeds = _data(model, 64, seed=5).head(64).feeds
        real, got = (_fetch(each, name, feeds) for each, name in ((original, "c2"), (model, "c2")))
        return float(np.abs((real - got).mean(axis=(0, 2, 3))).mean())

    assert mean_error(correct=True) < 0.7 * mean_error(correct=False)


def _fetch(model: onnx_ir.Model, name: str, feeds: dict[str, Array]) -> Array:
    from onnxpress.ir.analysis.execute import Session

    return Session(model, outputs=[name]).run(feeds)[name]


def test_scales_per_channel_beat_one_scale() -> None:
    weight = _weights()["w2"] * np.geomspace(0.01, 10, 8)[:, None, None, None]

    def sqnr(per_channel: bool) -> float:
        scheme = dataclasses.replace(_SCHEME, weight_per_channel=per_channel)
        model = _net(w2=weight)
        return next(s.error["sqnr_db"] for s in _quantize(model, scheme).sites if s.name == "second")

    assert sqnr(True) >= sqnr(False)


def test_equal_input_gives_equal_bytes() -> None:
    results = []
    for _ in range(2):
        model = _net()
        _quantize(model)
        lower_qdq(model, _SCHEME)
        results.append(to_proto_bytes(model))
    assert results[0] == results[1]


def test_nothing_is_read_past_the_asked_samples() -> None:
    model = _net()
    values = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    values[20:] *= 100
    _quantize(model, samples=20, data=open_data({"x": values}, model=model))
    assert _notes(model)["x"][1] < 10


@settings(max_examples=15)
@given(
    channels=st.integers(1, 9),
    kernel=st.sampled_from([1, 3]),
    activation=st.sampled_from(["Relu", "Clip", "Sigmoid"]),
    join=st.sampled_from(["Add", "Concat"]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_net_stays_close_to_the_float_one(
    channels: int, kernel: int, activation: str, join: str, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pad = kernel // 2
    weights = {
        "w1": rng.standard_normal((channels, 3, kernel, kernel)),
        "w2": rng.standard_normal((channels, channels, 1, 1)),
    }
    width = channels * (2 if join == "Concat" else 1)
    weights["w3"] = rng.standard_normal((4, width, 3, 3)) / math.sqrt(9 * width)
    if bias:
        weights["b1"] = rng.standard_normal(channels)
    act = "Clip (c1, zero, six)" if activation == "Clip" else f"{activation} (c1)"
    body = f"""
        [one] c1 = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> (x, w1{", b1" if bias else ""})
        [act] r1 = {act}
        [two] c2 = Conv (r1, w2)
        [join] j = {join} {"<axis = 1>" if join == "Concat" else ""} (c2, r1)
        [three] c3 = Conv (j, w3)
        out = Tanh (c3)
    """
    if activation == "Clip":
        weights |= {"zero": np.float32(0), "six": np.float32(6)}  # type: ignore[dict-item]
    model, quantized = (_model(body, weights, out="N, C, H, W") for _ in range(2))
    rewrites = _quantize(quantized)
    assert {site.name for site in rewrites.sites} == {"one", "two", "three", "join"}
    # Four roundings to 8 bits leave about 40 dB each; sums whose terms cancel lose up to 20 of them.
    assert _sqnr(model, quantized) > 18


def test_a_relu_that_is_joined_with_negative_values_keeps_a_range_of_its_own() -> None:
    body = """
        [one] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
        [relu] r1 = Relu (c1)
        [pool] p1 = MaxPool <kernel_shape = [1, 1]> (r1)
        [two] c2 = Conv <pads = [1, 1, 1, 1]> (x, w2)
        [join] j = Concat <axis = 1> (p1, c2)
        [three] c3 = Conv (j, w3)
        out = Sigmoid (c3)
    """
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((4, 3, 3, 3)), "w2": rng.standard_normal((4, 3, 3, 3))}
    weights["w3"] = rng.standard_normal((2, 8, 1, 1))
    model, original = (_model(body, weights, out="N, C, H, W") for _ in range(2))
    _quantize(model)
    notes = _notes(model)
    assert notes["r1"][0] == notes["p1"][0] == 0.0 > notes["c2"][0]
    assert notes["j"][0] < 0.0 and notes["j"] not in (notes["r1"], notes["c2"])
    lower_qdq(model, _SCHEME)
    kernels = inspect_kernels(model)
    assert kernels.unfused == () and len(kernels.integer) == 3
    assert _sqnr(original, model) > 30


def test_a_second_run_finds_nothing() -> None:
    model = _net()
    _quantize(model)
    again = _quantize(model)
    assert again.sites == [] and {entry.reason for entry in again.declined} == {"already quantized"}


def test_a_matmul_with_its_constant_on_the_left_is_declined() -> None:
    model = text_model(
        f"""{_HEADER}
        net (float[8, 8] x) => (float[4, 8] out)
        <float[4, 8] w = {{{",".join(["1"] * 32)}}}>
        {{ [left] out = MatMul (w, x) }}"""
    )
    rewrites = _quantize(model, data=open_data({"x": np.ones((8, 8), np.float32)}, model=model))
    assert [entry.reason for entry in rewrites.declined] == [
        "its constant is the left operand, which no integer kernel takes"
    ]


def test_samples_spread_over_two_axes_still_give_one_shift_per_output() -> None:
    model = text_model(
        f"""{_HEADER}
        net (float[1, 7, 8] x) => (float[7, 5] out)
        <int64[2] rows = {{-1, 8}}, float[5, 8] w = {{{",".join(f"{0.01 * i}" for i in range(40))}}}>
        {{ r = Reshape (x, rows)
           [head] g = Gemm <transB = 1> (r, w)
           [back] out = Sigmoid (g) }}"""
    )
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((1, 7, 8)).astype(np.float32)} for _ in range(6)]
    model = load(model)
    _quantize(model, data=open_data(data, model=model))
    (view,) = linear_ops(model)
    bias = view.bias()
    assert bias is None or bias.shape == (5,)
    assert is_encoded(view.weight_value)


def test_no_dead_constant_is_left_behind() -> None:
    model = _net()
    _quantize(model)
    assert all(value.uses() for value in model.graph.initializers.values())


def test_a_weight_that_is_also_an_output_is_not_rounded() -> None:
    model = _net()
    weight = model.graph.initializers["w2"]
    model.graph.outputs.append(weight)
    before = weight.const_value
    _quantize(model)
    assert model.graph.outputs[1].const_value is before
    second = next(node for node in model.graph if node.name == "second")
    assert isinstance(encoding_of(second.inputs[1]), Affine)


def test_a_target_without_int8_weights_gets_none() -> None:
    model = _net()
    constraints = Constraints(target="tiny", quantization=_SCHEME, encodings=("dense",))
    rewrites = QuantizeInt8().run(model, Context(constraints=constraints, data=_data(model)))
    assert [entry.reason for entry in rewrites.declined] == ["tiny stores no int8 weights"] and not rewrites.sites
