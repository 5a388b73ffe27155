"""The roofline: sane orderings, the staircases that were seen on real runtimes, and one sum by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir import model_io
from onnxpress.passes.constraints import CostEstimator, Precision
from onnxpress.passes.quantize.placement import place
from onnxpress.passes.quantize.units import find_units
from onnxpress.targets.base import load_target
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.schema import Profile, Roofline

_TARGETS = ("x86-vnni", "x86-avx2", "mobile-cpu")
_PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def _costs(target: str = "x86-vnni", **changes: Any) -> RooflineCost:
    profile = load_target(target).profile
    assert profile.roofline is not None
    raw = {**profile.roofline.model_dump(), **changes}
    return RooflineCost(Roofline.model_validate(raw), profile.quantization)


def _value(*shape: int | str | None) -> onnx_ir.Value:
    return onnx_ir.val("v", onnx_ir.DataType.FLOAT, list(shape))


def _node(op: str, *inputs: onnx_ir.Value | None, out: onnx_ir.Value, **attributes: Any) -> onnx_ir.Node:
    return onnx_ir.node(op, list(inputs), attributes, outputs=[out])


def _conv(channels: int = 32, outputs: int = 32, size: int = 14, kernel: int = 3, group: int = 1) -> onnx_ir.Node:
    data, out = _value("N", channels, size, size), _value("N", outputs, size, size)
    return _node("Conv", data, _value(outputs, channels // group, kernel, kernel), out=out, group=group)


def _conv_transpose(channels: int = 32, outputs: int = 32, size: int = 14, kernel: int = 3) -> onnx_ir.Node:
    data, out = _value("N", channels, size, size), _value("N", outputs, 2 * size, 2 * size)
    weight = _value(channels, outputs, kernel, kernel)
    return _node("ConvTranspose", data, weight, out=out, strides=[2, 2])


def _gemm(rows: int = 1, depth: int = 64, outputs: int = 64) -> onnx_ir.Node:
    return _node("Gemm", _value(rows, depth), _value(depth, outputs), out=_value(rows, outputs))


def test_it_is_a_cost_estimator() -> None:
    assert isinstance(_costs(), CostEstimator)
    assert isinstance(load_target("mobile-cpu").constraints.costs, CostEstimator)


def test_one_sum_by_hand() -> None:
    """3 channels of 14x14, 3x3 kernel, 20 outputs: every term of the formula is at work."""
    costs = _costs(
        conv={"float32": 100, "int8": 400},
        bandwidth_gb_per_s=1000,
        overhead_us={"float32": 2, "int8": 3},
        output_step={"float32": 16, "int8": 16},
        half_peak_channels={"float32": 0, "int8": 10},
        output_set=24,
        set_channels={"float32": 6, "int8": 0},
        output_ns={"float32": 0.5, "int8": 0.25},
        border={"float32": 0.7, "int8": 0},
        tap_ns={"float32": 0.25, "int8": 0.125},
        unaligned_tap_ns={"float32": 1, "int8": 2},
        unaligned_copy_ns={"float32": 0.5, "int8": 0},
        layout_ns={"float32": 0.2, "int8": 0.1},
    )
    node = _conv(channels=3, outputs=20)
    by_element = 196 * 32 * 0.5e-9 + 196 * 9 * (0.25e-9 + 1e-9 + 3 * 0.5e-9)
    rows = 196 * (1 + 0.7 * 2 / 14)
    expected = 2 * rows * 9 * 3 * (32 + 2 * 6) / 100e9 + by_element + 2e-6
    assert costs.node_seconds(node) == pytest.approx(expected)
    # In int8 the lowering pads 3 channels to 4: aligned then, at the price of a copy of the padded image.
    by_element = 196 * 32 * 0.25e-9 + 196 * 9 * 0.125e-9 + 196 * 4 * 0.1e-9
    expected = 2 * 196 * 9 * 4 * (32 + 10) / 400e9 + by_element + 3e-6
    assert costs.node_seconds(node, "int8") == pytest.approx(expected)


def test_memory_bounds_what_computes_little() -> None:
    costs = _costs()
    found = costs.explain(_gemm(depth=4096, outputs=4096))
    assert found.memory > found.compute
    assert found.seconds == pytest.approx(4096 * 4096 * 4 / 37e9 + 1.8e-6)


@given(
    st.sampled_from(_TARGETS),
    st.sampled_from(_PRECISIONS),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 20),
    st.sampled_from([1, 3, 5]),
    st.sampled_from(["channels", "outputs", "size", "kernel"]),
)
def test_more_work_is_never_cheaper(
    target: str, precision: Precision, channels: int, outputs: int, size: int, kernel: int, grown: str
) -> None:
    """Among channel counts that are multiples of 4, 16 outputs at least; others are dearer than the next such one."""
    costs = _costs(target)
    sizes = {"channels": 4 * channels, "outputs": 12 + 4 * outputs, "size": size, "kernel": kernel}
    steps = {"channels": 4, "outputs": 4, "size": 1, "kernel": 2}
    if kernel == 1 and grown == "kernel":
        steps["kernel"] = 4  # a 1x1 Conv is another kind, with another peak: let the work grow past that
    small = costs.node_seconds(_conv(**sizes), precision)
    large = costs.node_seconds(_conv(**{**sizes, grown: sizes[grown] + steps[grown]}), precision)
    assert 0 < small <= large < math.inf


@given(
    st.sampled_from(_TARGETS),
    st.sampled_from(_PRECISIONS),
    st.integers(1, 8),
    st.sampled_from([1, 3]),
    st.sampled_from(["channels", "outputs"]),
)
def test_a_channel_less_than_a_multiple_of_32_saves_next_to_nothing(
    target: str, precision: Precision, blocks: int, kernel: int, side: str
) -> None:
    costs = _costs(target)
    if target == "mobile-cpu" and side == "channels" and precision == "float32":
        return  # no blocked layout there: every input channel counts
    whole = {"channels": 32 * blocks, "outputs": 32 * blocks, "kernel": kernel}
    less = costs.node_seconds(_conv(**{**whole, side: whole[side] - 1}), precision)
    assert less >= 0.99 * costs.node_seconds(_conv(**whole), precision)  # but for bytes of weights that are not read


def test_channels_are_computed_in_steps() -> None:
    costs = _costs()
    assert costs.explain(_conv(channels=20)).compute == costs.explain(_conv(channels=32)).compute
    assert costs.explain(_conv(outputs=20)).compute == costs.explain(_conv(outputs=32)).compute
    assert costs.explain(_conv(channels=12)).compute < costs.explain(_conv(channels=16)).compute


@given(st.sampled_from(_PRECISIONS), st.integers(1, 60), st.integers(1, 60), st.integers(1, 600))
def test_products_grow_with_each_side(precision: Precision, rows: int, depth: int, outputs: int) -> None:
    costs = _costs()
    small = costs.node_seconds(_gemm(rows, depth, outputs), precision)
    for larger in (
        _gemm(rows + 1, depth, outputs),
        _gemm(rows, depth + 1, outputs),
        _gemm(rows, depth, outputs + 1),
    ):
        assert small <= costs.node_seconds(larger, precision)


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        (_conv(), "conv"),
        (_conv(kernel=1), "pointwise"),
        (_conv(group=32), "depthwise"),
        (_conv(outputs=64, group=32), "depthwise"),
        (_conv(group=4), "grouped"),
        (_conv_transpose(), "conv"),
        (_conv_transpose(kernel=1), "conv"),
        (_gemm(), "gemm"),
    ],
)
def test_operators_fall_into_classes(node: onnx_ir.Node, kind: str) -> None:
    assert _costs().explain(node).kind == kind


@pytest.mark.parametrize(
    ("node", "macs"),
    [
        (_conv(channels=6, outputs=10, size=7), 10 * 49 * 6 * 9),
        (_conv(channels=6, outputs=10, size=7, group=2), 10 * 49 * 3 * 9),
        (_conv_transpose(channels=6, outputs=10, size=7), 10 * 49 * 6 * 9),
        (_gemm(3, 5, 7), 3 * 5 * 7),
        (_node("Gemm", _value(5, 3), _value(5, 7), out=_value(3, 7), transA=1), 3 * 5 * 7),
        (_node("Gemm", _value(3, 5), _value(7, 5), out=_value(3, 7), transB=1), 3 * 5 * 7),
        (_node("MatMul", _value("N", 4, 3, 5), _value(5, 7), out=_value("N", 4, 3, 7)), 4 * 3 * 5 * 7),
        (_node("MatMul", _value(3, 5), _value(5), out=_value(3)), 3 * 5),
        (_node("MatMul", _value(2, 3, 5), _value(2, 5, 7), out=_value(2, 3, 7)), 2 * 3 * 5 * 7),
    ],
)
def test_macs_at_batch_1(node: onnx_ir.Node, macs: int) -> None:
    assert _costs().explain(node).macs == macs


def test_what_was_measured_on_the_host() -> None:
    """Speed-ups of int8 over float for whole layers, in words: research on the runtime says so."""
    costs = _costs()

    def gain(node: onnx_ir.Node) -> float:
        return costs.node_seconds(node) / costs.node_seconds(node, "int8")

    assert gain(_conv(64, 64, 56)) == pytest.approx(3.6, rel=0.1)
    assert 1.8 < gain(_conv(16, 16, 32)) < 2.8
    assert gain(_conv(64, 64, 56, kernel=1)) == pytest.approx(2.6, rel=0.15)
    assert gain(_conv(64, 64, 56, group=64)) < 1.1


def test_operators_without_an_integer_kernel_cost_infinitely_much() -> None:
    costs = _costs()
    image = _value("N", 8, 5, 5)
    for op in ("AveragePool", "ConvTranspose", "Max", "Resize", "Tanh"):
        node = _conv_transpose() if op == "ConvTranspose" else _node(op, image, out=_value("N", 8, 5, 5))
        assert costs.node_seconds(node, "int8") == math.inf, op
        assert costs.explain(node, "int8").kind == "no kernel"
        assert 0 < costs.node_seconds(node) < math.inf
    assert costs.node_seconds(_node("Add", image, image, out=_value("N", 8, 5, 5)), "int8") < math.inf


def test_a_profile_may_lack_integer_kernels_of_a_class() -> None:
    costs = _costs(depthwise={"float32": 60})
    assert costs.node_seconds(_conv(group=32), "int8") == math.inf
    assert costs.node_seconds(_conv(group=4), "int8") < math.inf


def test_activations_vanish_into_a_linear_producer() -> None:
    costs = _costs()
    conv = _conv()
    relu = _node("Relu", conv.outputs[0], out=_value("N", 32, 14, 14))
    assert costs.explain(relu).kind == "absorbed" and costs.node_seconds(relu) == 0.0
    assert costs.node_seconds(relu, "int8") == 0.0
    alone = _node("Relu", _value("N", 32, 14, 14), out=_value("N", 32, 14, 14))
    assert costs.node_seconds(alone) > 0
    assert costs.node_seconds(alone, "int8") == 0.0  # the range of whatever is before it
    _node("Sigmoid", conv.outputs[0], out=_value("N", 32, 14, 14))  # a second reader
    assert costs.node_seconds(relu) > 0


@pytest.mark.parametrize(
    "node",
    [
        _node("Conv", onnx_ir.val("x"), _value(8, 3, 3, 3), out=_value("N", 8, 5, 5)),
        _node("Conv", _value("N", 3, 5, 5), _value(8, 3, 3), out=_value("N", 8, 3, 3)),
        _node("Conv", _value("N", 3, 5, 5), None, out=_value("N", 8, 3, 3)),
        _node("Conv", _value("N", 3, 5, 5), out=_value("N", 8, 3, 3)),
        _node("Gemm", _value("N", 3), onnx_ir.val("w"), out=_value("N", 3)),
        _node("MatMul", _value(), _value(3), out=_value()),
        _node("Erf", onnx_ir.val("x"), out=onnx_ir.val("y")),
    ],
)
def test_unknown_shapes_cost_the_overhead(node: onnx_ir.Node) -> None:
    found = _costs().explain(node)
    assert (found.kind, found.seconds, found.macs) == ("unknown shape", 1.8e-6, 0)


_OPEN = st.sampled_from(["conv", "depthwise", "transposed", "product", "pool", "conversion"])


@given(st.sampled_from(_TARGETS), st.sampled_from(_PRECISIONS), _OPEN)
def test_open_extents_cost_what_64_do_and_an_open_batch_what_1_does(
    target: str, precision: Precision, kind: str
) -> None:
    costs = _costs(target)

    def seconds(batch: int | str, height: int | str, width: int | str | None, channels: int | str) -> float:
        image = _value(batch, channels, height, width)
        out = _value(batch, channels, height, width)
        if kind == "conversion":
            return costs.convert_seconds(image, precision)
        if kind == "pool":
            return costs.node_seconds(_node("MaxPool", image, out=out, kernel_shape=[2, 2]), precision)
        if kind == "product":
            data, out = _value(batch, height, 24), _value(batch, height, 48)
            return costs.node_seconds(_node("MatMul", data, _value(24, 48), out=out), precision)
        group = 24 if kind == "depthwise" else 1
        op = "ConvTranspose" if kind == "transposed" else "Conv"
        node = _node(op, image, _value(24, 24 // group, 3, 3), out=out, group=group)
        return costs.node_seconds(node, precision)

    known = seconds(1, 64, 64, 24)
    assert known == seconds("N", "H", None, 24) == seconds(1, 64, "W", 24)
    if kind in ("conv", "transposed") and known < math.inf:  # the weight knows how many channels are multiplied
        node = _node("Conv", _value(1, "C", 64, 64), _value(24, 24, 3, 3), out=_value(1, "M", 64, 64))
        assert costs.explain(node, precision).macs == 24 * 24 * 9 * 64 * 64


_NET = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N,3,{size},{size}] x) => (float[N,10] y)
    {{
        [first] a = Conv<pads = [1, 1, 1, 1]>(x, w0)
        b = Relu(a)
        [second] c = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(b, w1)
        [third] d = Conv<pads = [1, 1, 1, 1]>(c, w2)
        [sum] e = Add(c, d)
        [pool] f = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(e)
        [depthwise] g = Conv<group = 32>(f, w3)
        [mean] h = GlobalAveragePool(g)
        [flat] i = Flatten(h)
        [last] y = Gemm(i, w4)
    }}
"""


def _left_in_float(size: str) -> set[str]:
    proto = onnx.parser.parse_model(_NET.format(size=size))
    for index, shape in enumerate([(16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (32, 1, 3, 3), (32, 10)]):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), f"w{index}"))
    constraints = load_target("x86-vnni").constraints
    assert constraints.costs is not None
    units, declined = find_units(model_io.load(proto).graph, constraints.quantization)
    assert declined == []
    return {unit.name for unit in place(units, constraints.costs)}


def test_a_net_of_any_image_size_is_quantized_like_one_of_a_known_size() -> None:
    assert _left_in_float("64") == _left_in_float("S")
    assert not {"first", "second", "third", "sum"} & _left_in_float("S")


def test_a_weight_on_the_left_has_no_integer_kernel() -> None:
    costs = _costs()
    weight = onnx_ir.val("w", const_value=onnx_ir.tensor(np.zeros((64, 64), np.float32)))
    onnx_ir.Graph([], [], nodes=[], initializers=[weight])
    node = _node("MatMul", weight, _value(64, 32), out=_value(64, 32))
    assert costs.node_seconds(node, "int8") == math.inf
    assert 0 < costs.node_seconds(node) < math.inf
    node = _node("MatMul", _value(32, 64), weight, out=_value(32, 64))
    assert costs.node_seconds(node, "int8") < math.inf


def test_other_domains_are_not_mistaken_for_linear_operators() -> None:
    node = onnx_ir.Node("acme", "Conv", [_value(1, 64, 56, 56), _value(64, 64, 3, 3)])
    assert _costs().explain(node).kind == "elements"
    for op in ("Relu", "Add", "Conv"):
        node = onnx_ir.Node("acme", op, [_conv().outputs[0]])
        assert _costs().explain(node, "int8").kind == "no kernel"


def test_conversion_grows_with_the_value_and_its_layout() -> None:
    costs = _costs(
        convert_ns={"float32": 1, "int8": 2},
        layout_ns={"float32": 3, "int8": 4},
        light_overhead_us={"float32": 5, "int8": 6},
    )
    assert costs.convert_seconds(_value("N", 10), "float32") == pytest.approx(10e-9 + 5e-6)
    assert costs.convert_seconds(_value("N", 10), "int8") == pytest.approx(20e-9 + 6e-6)
    assert costs.convert_seconds(_value("N", 10, 2, 2), "float32") == pytest.approx(160e-9 + 10e-6)
    assert costs.convert_seconds(onnx_ir.val("x"), "int8") == pytest.approx(6e-6)


@pytest.mark.parametrize("side", ["behind", "before"])
def test_pooling_next_to_a_conversion_is_slow(side: str) -> None:
    costs = _costs(converted_tap_ns={"MaxPool": 2})
    data, out = _value("N", 8, 10, 10), _value("N", 8, 5, 5)
    plain = costs.convert_seconds(data if side == "behind" else out, "int8")
    _node("MaxPool", data, out=out, kernel_shape=[3, 2], strides=[2, 2])
    value = data if side == "behind" else out
    assert costs.convert_seconds(value, "int8") == pytest.approx(plain + 8 * 25 * 6 * 2e-9)
    assert costs.convert_seconds(value, "float32") < plain + 1e-9


def test_explanations_add_up() -> None:
    found = _costs().explain(_conv(channels=31, outputs=17))
    assert found.seconds == pytest.approx(max(found.compute, found.memory) + found.weights + found.overhead)
    assert 0 < found.ideal_compute < found.compute


def test_a_profile_without_a_roofline_has_no_costs() -> None:
    profile = load_target("x86-vnni").profile
    raw = {**profile.model_dump(), "roofline": None}
    from onnxpress.targets.base import Target

    assert Target(Profile.model_validate(raw)).constraints.costs is None


def test_groups_out_of_step_copy_their_patches() -> None:
    """3x3 on x86: 4 groups of 12 channels took 1.5 to 1.9 times as long as 4 of 16, with little over half the MACs."""
    costs = load_target("x86-vnni").constraints.costs
    assert costs is not None
    aligned, unaligned = (_conv(channels=4 * each, outputs=4 * each, group=4) for each in (16, 12))
    assert 1.4 < costs.node_seconds(unaligned) / costs.node_seconds(aligned) < 2.1
    pointwise = _conv(channels=48, outputs=48, group=4, kernel=1)
    assert costs.node_seconds(pointwise) < costs.node_seconds(_conv(channels=64, outputs=64, group=4, kernel=1))


def test_few_output_channels_read_their_input_in_vain() -> None:
    """A 3x3 Conv from 64 channels to 16 and a 1x1 Conv back took 0.46 of the time of one from 64 to 64, not 0.28."""
    costs = _costs()
    split = costs.node_seconds(_conv(64, 16, 28)) + costs.node_seconds(_conv(16, 64, 28, kernel=1))
    assert split / costs.node_seconds(_conv(64, 64, 28)) == pytest.approx(0.46, rel=0.1)


def test_an_add_behind_a_convolution_is_part_of_it() -> None:
    conv, other = _conv(16, 16), _value("N", 16, 14, 14)

    def out() -> onnx_ir.Value:
        return _value("N", 16, 14, 14)

    fused, alone = _node("Add", other, conv.outputs[0], out=out()), _node("Add", other, other, out=out())
    costs = _costs()
    assert costs.explain(fused).kind == "fused"
    assert costs.explain(fused, "int8").kind == costs.explain(alone).kind == "elements"
    assert costs.node_seconds(fused) < 0.1 * costs.node_seconds(alone)
    constant = onnx_ir.Graph([], [], nodes=[], initializers=[_named("c", 16, 1, 1)]).initializers["c"]
    assert costs.explain(_node("Add", _conv(16, 16).outputs[0], constant, out=out())).kind == "elements"
    _node("Relu", conv.outputs[0], out=out())
    assert costs.explain(fused).kind == "elements"  # something else reads the Conv now


def _named(name: str, *shape: int) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(np.zeros(shape, np.float32), name=name)
    return onnx_ir.val(name, onnx_ir.DataType.FLOAT, list(shape), const_value=tensor)


def _seconds(
    node: onnx_ir.Node, precision: Precision = "float32", working_set: int | None = None, **changes: Any
) -> float:
    profile = load_target("x86-vnni").profile
    assert profile.roofline is not None
    roofline = Roofline.model_validate({**profile.roofline.model_dump(), **changes})
    return RooflineCost(roofline, profile.quantization, working_set).node_seconds(node, precision)


def test_weights_of_a_large_model_are_waited_for_by_convolutions() -> None:
    """256 channels of 7x7 on a server: 84 us more in a model of 5 MB than alone, for 2.3 MB of weights."""
    machine: dict[str, Any] = {"cache_kib": 4096, "cache_gb_per_s": 60, "bandwidth_gb_per_s": 28}
    conv, product = _conv(256, 256, 7), _gemm(1, 1024, 512)
    extra = _seconds(conv, working_set=5_000_000, **machine) - _seconds(conv, working_set=2_400_000, **machine)
    assert extra == pytest.approx(256 * 256 * 9 * 4 / 28e9)
    assert _seconds(product, working_set=5_000_000, **machine) == pytest.approx(1024 * 512 * 4 / 28e9 + 1.8e-6)
    assert _seconds(product, working_set=2_400_000, **machine) == pytest.approx(1024 * 512 * 4 / 60e9 + 1.8e-6)


def test_what_the_cache_does_not_hold_is_waited_for_where_little_is_computed() -> None:
    """A concatenation of two times 128 channels of 55x55 took 267 us: 6.2 MB at 23 GB/s."""
    image, out = _value(1, 128, 55, 55), _value(1, 256, 55, 55)
    rates = {"default": {"float32": 0.3}, "Concat": {"float32": 0.01}, "Flatten": {"float32": 0}}
    node = _node("Concat", image, image, out=out, axis=1)
    assert _seconds(node, elements=rates, bandwidth_gb_per_s=23) == pytest.approx(8 * 256 * 55 * 55 / 23e9 + 1.8e-6)
    small = _node("Concat", _value(1, 8, 5, 5), _value(1, 8, 5, 5), out=_value(1, 16, 5, 5), axis=1)
    assert _seconds(small, elements=rates) == pytest.approx(16 * 25 * 0.01e-9 + 1.8e-6)
    view = _node("Flatten", image, out=_value(1, 128 * 55 * 55))
    assert _seconds(view, elements=rates) == pytest.approx(1.8e-6)


def test_only_a_relu_is_free_at_the_end_of_a_kernel() -> None:
    conv = _conv()
    clip = _node("Clip", conv.outputs[0], out=_value("N", 32, 14, 14))
    dear: dict[str, Any] = {"activation_ns": {"float32": 0.25}}
    plain = _seconds(_conv(), **dear)
    assert _seconds(conv, **dear) == pytest.approx(plain + 32 * 196 * 0.25e-9)
    assert _seconds(conv, "int8", **dear) == _seconds(_conv(), "int8", **dear)
    assert _seconds(clip, **dear) == _seconds(clip, "int8", **dear) == 0.0
    conv = _conv()
    relu = _node("Relu", conv.outputs[0], out=_value("N", 32, 14, 14))
    assert (_seconds(conv, **dear), _seconds(relu, **dear)) == (plain, 0.0)
    conv = _conv()
    for _ in range(2):  # something else reads what the Conv makes
        clip = _node("Clip", conv.outputs[0], out=_value("N", 32, 14, 14))
    assert _seconds(conv, **dear) == plain and _seconds(clip, **dear) > 0.0


@pytest.mark.parametrize(("channels", "outputs"), [(16, 12), (16, 18), (18, 16)])
def test_integers_want_whole_groups_of_outputs(channels: int, outputs: int) -> None:
    """12 channels to 12 of 32x32 took 38 us in int8 where 16 to 16 took 22: MlasConvSym does not take them."""
    changes: dict[str, Any] = {
        "least_outputs": {"float32": 1, "int8": 16}, "aligned_outputs": {"float32": 1, "int8": 4},
        "unaligned_copy_ns": {"float32": 0, "int8": 0.1},
    }  # fmt: skip
    node = _conv(channels, outputs, 32)
    assert _seconds(node, "int8", **changes) > _seconds(_conv(16, 16, 32), "int8", **changes)
    if channels == 16:
        assert _seconds(node, **changes) <= _seconds(_conv(16, 32, 32), **changes)


@pytest.mark.parametrize("channels", [24, 40])
def test_integers_want_whole_groups_of_depthwise_channels(channels: int) -> None:
    """24 channels of 16x16 took 11 us in int8, and 64 channels of 14x14 as long."""
    rates: dict[str, Any] = {"unaligned_depthwise_ns": {"float32": 0, "int8": 0.1}}
    ragged, whole = (_seconds(_conv(n, n, 16, group=n), "int8", **rates) for n in (channels, channels + 8))
    assert ragged > whole


def test_a_product_of_one_row_is_far_from_the_peak_of_integers() -> None:
    rates: dict[str, Any] = {"half_peak_rows": {"float32": 0, "int8": 6}}
    one, many = (_seconds(_gemm(rows, 512, 512), "int8", **rates) for rows in (1, 64))
    assert many / one < 64 / 5


def test_what_belongs_to_the_blocked_layout_of_x86_stays_there() -> None:
    """Arm's kernels have none: groups of 12 channels cost what their MACs say, and so do few output channels."""
    costs = load_target("mobile-cpu").constraints.costs
    assert costs is not None
    groups = [costs.node_seconds(_conv(channels=4 * each, outputs=4 * each, group=4)) for each in (16, 12)]
    assert groups[1] < groups[0]
    split = costs.node_seconds(_conv(64, 16, 28)) + costs.node_seconds(_conv(16, 64, 28, kernel=1))
    assert split / costs.node_seconds(_conv(64, 64, 28)) < 0.35
