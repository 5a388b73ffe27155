"""Lowering to Q/DQ: the function stays that of the noted model, and the form is the one that runtimes fuse."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import Affine, Float8
from onnxpress.ir.linear import linear_ops
from onnxpress.ir.model_io import name_nodes
from onnxpress.ir.quantization import Quantization, integer_parameters, note, quantization_of
from onnxpress.ir.verify import verify
from onnxpress.passes.constraints import IntegerScheme, QuantizationScheme
from onnxpress.targets.lowering.qdq import lower_qdq
from onnxpress.targets.runtimes.onnxruntime_cpu import inspect_kernels
from tests.support import random_feeds, run, text_model

_U8 = QuantizationScheme()
_S8 = QuantizationScheme(activation=IntegerScheme(signed=True, symmetric=True))


def _noted(model: onnx_ir.Model, ranges: dict[str, tuple[float, float]]) -> onnx_ir.Model:
    """Note `ranges` by value name and encode every weight that reads a noted value."""
    name_nodes(model)
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        value.dtype = onnx_ir.DataType.FLOAT
        if value.name in ranges:
            note(value, Quantization(*ranges[value.name]))
    for view in linear_ops(model):
        if quantization_of(view.data) is not None:
            weight = Affine.quantize(view.to_stored(view.weight()), axis=view.out_axis, name=view.weight_value.name)
            view.weight_value.const_value = weight
    return model


def _reference(model: onnx_ir.Model, scheme: IntegerScheme) -> onnx_ir.Model:
    """The noted model in float: every note becomes Div, Round, Clip, Mul, every weight its dense values."""
    reference = model.clone()
    graph = reference.graph
    for value in graph.initializers.values():
        if isinstance(value.const_value, Affine):
            value.const_value = onnx_ir.tensor(value.const_value.dense(), name=value.name)
    for value in [*graph.inputs, *(value for node in list(graph) for value in node.outputs)]:
        noted = quantization_of(value)
        if noted is None:
            continue
        scale, zero_point = integer_parameters(noted, signed=scheme.signed, symmetric=scheme.symmetric)
        low, high = (-128, 127) if scheme.signed else (0, 255)
        readers = tuple(value.uses())
        constants = [float(scale), float(low - zero_point), float(high - zero_point)]
        step, bottom, top = (_constant(graph, f"{value.name}.{index}", x) for index, x in enumerate(constants))
        scaled = onnx_ir.node("Div", [value, step])
        rounded = onnx_ir.node("Round", scaled.outputs)
        clipped = onnx_ir.node("Clip", [*rounded.outputs, bottom, top])
        real = onnx_ir.node("Mul", [*clipped.outputs, step])
        producer = value.producer()
        chain = [scaled, rounded, clipped, real]
        if producer is None:
            graph.insert_before(next(iter(graph)), chain)
        else:
            graph.insert_after(producer, chain)
        for reader, index in readers:
            reader.replace_input_with(index, real.outputs[0])
        for index, output in enumerate(graph.outputs):
            if output is value:
                real.outputs[0].type, real.outputs[0].shape = value.type, value.shape
                graph.outputs[index] = real.outputs[0]
    return reference


def _constant(graph: onnx_ir.Graph, name: str, number: float) -> onnx_ir.Value:
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(np.asarray(number, np.float32), name=name))
    graph.register_initializer(value)
    return value


def _assert_same_function(model: onnx_ir.Model, scheme: QuantizationScheme) -> onnx_ir.Model:
    """Lower a copy of `model`, compare it with the reference, and return it.

    Both round at the same places, so they differ by float rounding alone: 1e-5 of the largest output, for sums
    of up to a few hundred products. One value on a rounding boundary may fall to the other side; it moves by
    one step, which a later layer spreads: allowed for 1 % of the outputs.
    """
    lowered = model.clone()
    lower_qdq(lowered, scheme)
    verify(lowered)
    feeds = random_feeds(model, seed=3)
    for expected, got in zip(run(_reference(model, scheme.activation), feeds), run(lowered, feeds), strict=True):
        close = np.isclose(got, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))
        assert close.mean() >= 0.99, f"{(~close).sum()} of {close.size} differ, by up to {np.abs(got - expected).max()}"
    return lowered


def _ops(model: onnx_ir.Model) -> dict[str, int]:
    return dict(collections.Counter(node.op_type for node in model.graph))


_CONV = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 2, 5, 7] x) => (float[N, 2, 5, 7] out)
    <float[2, 2, 1, 1] w = {0.5, -1.0, 0.25, 2.0}, float[2] b = {0.5, -0.25}>
    { [conv] y = Conv (x, w, b)
      [relu] out = Relu (y) }
"""


@pytest.mark.parametrize("scheme", [_U8, _S8])
@pytest.mark.parametrize("bias", ["float32", "int32"])
def test_a_conv_gets_pairs_around_it_and_an_integer_weight(scheme: QuantizationScheme, bias: Any) -> None:
    scheme = dataclasses.replace(scheme, bias=bias)
    model = _noted(text_model(_CONV), {"x": (-3, 3), "out": (0, 4)})
    lowered = _assert_same_function(model, scheme) if bias == "float32" else model.clone()
    if bias == "int32":
        lower_qdq(lowered, scheme)
        feeds = random_feeds(model)
        (expected,), (got,) = run(_reference(model, scheme.activation), feeds), run(lowered, feeds)
        # The bias is rounded to the accumulator's step; the result may move by one output step.
        assert np.abs(got - expected).max() <= 4 / 255 * (1.01 if scheme is not _S8 else 2.02)
    expected_ops = {"QuantizeLinear": 2, "DequantizeLinear": 3 + (bias == "int32"), "Conv": 1, "Relu": 1}
    assert _ops(lowered) == expected_ops
    assert [value.name for value in lowered.graph.outputs] == ["out"]
    stored = {value.name: value.const_value.dtype for value in lowered.graph.initializers.values() if value.const_value}
    assert stored["w_q"] == onnx_ir.DataType.INT8 and "w" not in stored
    assert ("b" in stored) == (bias == "float32")


def test_scales_and_zero_points_of_activations_are_true_scalars() -> None:
    lowered = _noted(text_model(_CONV), {"x": (-3, 3), "out": (0, 4)})
    lower_qdq(lowered, _U8)
    for node in lowered.graph:
        if node.op_type == "QuantizeLinear":
            assert all(
                value is not None and value.shape is not None and value.shape.rank() == 0 for value in node.inputs[1:]
            )


def test_equal_parameters_are_stored_once() -> None:
    lowered = _noted(text_model(_CONV), {"x": (0, 4), "out": (0, 4)})
    lower_qdq(lowered, _U8)
    scales = {node.inputs[1] for node in lowered.graph if node.op_type == "QuantizeLinear"}
    assert len(scales) == 1


def test_a_weight_behind_a_float_input_becomes_cast_and_mul_which_the_runtime_folds() -> None:
    model = text_model(_CONV)
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = Affine.quantize(weight.const_value.numpy(), axis=0, name="w")
    before = run(_reference(model, _U8.activation), random_feeds(model))
    lower_qdq(model, _U8)
    assert _ops(model) == {"Cast": 1, "Mul": 1, "Conv": 1, "Relu": 1}
    assert np.array_equal(run(model, random_feeds(model))[0], before[0])
    assert set(inspect_kernels(model).operators).isdisjoint({"Cast", "Mul", "DequantizeLinear"})


def test_pad_on_integers_fills_with_the_zero_point() -> None:
    model = _noted(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 2, 5, 7] x) => (float[N, 4, 5, 7] out)
            <int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}>
            { [pad] out = Pad (x, pads) }
            """
        ),
        {"x": (-1, 3), "out": (-1, 3)},
    )
    lowered = _assert_same_function(model, _U8)
    assert _ops(lowered) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Pad": 1}


_PAD = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 2, 5, 7] x, float z) => (float[N, 4, 5, 7] out)
    <int64[8] pads = {0, 1, 0, 0, 0, 1, 0, 0}, float fill = {0.0}>
    { [pad] out = Pad (x, pads, fill) }
"""


def test_a_pad_that_fills_with_a_stored_zero_runs_on_integers() -> None:
    lowered = _assert_same_function(_noted(text_model(_PAD), {"x": (-1, 3), "out": (-1, 3)}), _U8)
    assert _ops(lowered) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Pad": 1}


@pytest.mark.parametrize(("old", "new"), [("{0.0}", "{2.5}"), ("pads, fill", "pads, z")])
def test_a_pad_that_fills_with_another_number_stays_between_pairs(old: str, new: str) -> None:
    """The zero point stands for zero alone, and what is computed may be anything."""
    lowered = _assert_same_function(_noted(text_model(_PAD.replace(old, new)), {"x": (-1, 3), "out": (-1, 3)}), _U8)
    assert _ops(lowered) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "Pad": 1}


def test_a_pad_that_copies_its_input_ignores_the_number() -> None:
    text = _PAD.replace("{0.0}", "{2.5}").replace("Pad (", 'Pad <mode = "reflect"> (')
    lowered = _assert_same_function(_noted(text_model(text), {"x": (-1, 3), "out": (-1, 3)}), _U8)
    assert _ops(lowered) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Pad": 1}


@pytest.mark.parametrize("bits", [4, 16])
def test_a_note_of_another_width_is_declined_and_its_value_stays_float(bits: int) -> None:
    model = _noted(text_model(_CONV), {"x": (-3, 3), "out": (0, 4)})
    note(model.graph.inputs[0], Quantization(-3, 3, bits=bits))
    report = lower_qdq(model, _U8)
    assert report.notes == [f"'x' is noted with {bits} bits, not 8: stays float"]
    assert quantization_of(model.graph.inputs[0]) is None
    quantized = [node.inputs[0].name for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0]]
    assert quantized == ["out_float"]


@pytest.mark.parametrize("result", [(-1, 2), (0, 4)])  # another scale; the same scale with another zero point
def test_a_move_whose_result_has_another_range_is_not_done_on_integers(result: tuple[float, float]) -> None:
    model = _noted(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 2, 4, 6] x) => (float[N, 2, 2, 3] out)
            { [pool] out = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }
            """
        ),
        {"x": (-1, 3), "out": result},
    )
    lowered = _assert_same_function(model, _U8)
    assert _ops(lowered) == {"QuantizeLinear": 2, "DequantizeLinear": 2, "MaxPool": 1}


def _stem(channels: int, kernel: int, group: int = 1) -> onnx_ir.Model:
    rng = np.random.default_rng(0)
    model = text_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, {channels}, 9, 11] x) => (float[N, {4 * group}, M, K] out)
        {{ [conv] out = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = {group}> (x, w, b) }}
        """.replace("(x, w, b)", "(x, x, x)")
    )
    conv = next(iter(model.graph))
    for index, (name, shape) in enumerate(
        (("w", (4 * group, channels // group, kernel, kernel)), ("b", (4 * group,))), 1
    ):
        array = rng.standard_normal(shape).astype(np.float32)
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        conv.replace_input_with(index, value)
    return _noted(model, {"x": (-2, 3), "out": (-8, 8)})


@pytest.mark.parametrize("channels", [3, 5])
def test_input_channels_are_padded_for_kernels_that_take_four_at_a_time(channels: int) -> None:
    scheme = dataclasses.replace(_U8, input_channel_multiple=4)
    lowered = _assert_same_function(_stem(channels, 3), scheme)
    assert _ops(lowered)["Pad"] == 1
    weight = lowered.graph.initializers["w_q"].const_value
    assert weight is not None and weight.shape.numpy()[1] % 4 == 0
    assert not weight.numpy()[:, channels:].any()


@pytest.mark.parametrize(("channels", "kernel", "group"), [(4, 3, 1), (1, 3, 1), (2, 3, 1), (3, 1, 1), (2, 3, 2)])
def test_channels_that_fit_that_would_double_and_pointwise_and_grouped_convs_are_not_padded(
    channels: int, kernel: int, group: int
) -> None:
    scheme = dataclasses.replace(_U8, input_channel_multiple=4)
    assert "Pad" not in _ops(_assert_same_function(_stem(channels, kernel, group), scheme))


def test_a_bias_beyond_int32_stays_float_and_is_named() -> None:
    model = _noted(text_model(_CONV.replace("0.5, -0.25}", "3e9, 0.0}")), {"x": (-0.001, 0.001), "out": (0, 4)})
    report = lower_qdq(model, dataclasses.replace(_U8, bias="int32"))
    assert report.notes == ["'conv': its bias overflows int32 at scale x*w and is stored in float"]


def test_a_weight_that_no_form_takes_is_stored_dense_and_said_so() -> None:
    model = text_model(_CONV)
    weight = model.graph.initializers["w"]
    assert weight.const_value is not None
    weight.const_value = Float8.quantize(weight.const_value.numpy(), axis=0, name="w")
    dense = weight.const_value.numpy()
    report = lower_qdq(model, _U8, max_opset=18)  # Cast takes 8-bit floats from 19 on
    assert report.notes == [_stored_dense("float8e4m3fn")]
    stored = model.graph.initializers["w"].const_value
    assert stored is not None and np.array_equal(stored.numpy(), dense)


def test_a_model_without_notes_is_left_alone() -> None:
    model = text_model(_CONV)
    report = lower_qdq(model, _U8)
    assert not report.forms and _ops(model) == {"Conv": 1, "Relu": 1}


def test_lowering_twice_changes_nothing_more() -> None:
    model = _noted(text_model(_CONV), {"x": (-3, 3), "out": (0, 4)})
    lower_qdq(model, _U8)
    again = lower_qdq(model, _U8)
    assert not again.forms and _ops(model)["QuantizeLinear"] == 2


@st.composite
def _nets(draw: st.DrawFn) -> onnx_ir.Model:
    """Conv nets with a residual Add, a Concat, pooling, padding and a Gemm, all quantized."""
    channels = draw(st.integers(1, 5))
    kernel, group = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, channels]))
    activation = draw(st.sampled_from(["Relu", "Clip", ""]))
    middle = draw(st.sampled_from(["Add", "Concat", "MaxPool", "Pad", "Slice", "Transpose"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    weights: dict[str, Any] = {"w": rng.standard_normal((channels, channels // group, kernel, kernel))}
    pad = kernel // 2
    bias = ", b" if draw(st.booleans()) else ""
    lines = [f"[conv] c = Conv <pads = [{pad}, {pad}, {pad}, {pad}], group = {group}> (x, w{bias})"]
    weights["b"] = rng.standard_normal(channels)
    weights |= {"zero": np.float32(0), "six": np.float32(6)}
    lines.append({"Relu": "a = Relu (c)", "Clip": "a = Clip (c, zero, six)", "": "a = Identity (c)"}[activation])
    weights |= {"pads": np.array([0, 1, 0, 0, 0, 0, 1, 0], np.int64)}
    weights |= {
        "start": np.array([1], np.int64),
        "end": np.array([4], np.int64),
        "axis": np.array([2], np.int64),
    }
    out_channels = {"Concat": 2 * channels, "Pad": channels + 1}.get(middle, channels)
    lines.append(
        {
            "Add": "m = Add (a, x)", "Concat": "m = Concat <axis = 1> (a, x)", "Pad": "m = Pad (a, pads)",
            "MaxPool": "m = MaxPool <kernel_shape = [2, 2]> (a)", "Slice": "m = Slice (a, start, end, axis)",
            "Transpose": "m = Transpose <perm = [0, 1, 3, 2]> (a)",
        }[middle]
    )  # fmt: skip
    weights["v"] = rng.standard_normal((3, out_channels, 1, 1))
    lines.append("out = Conv (m, v)")
    body = "\n".join(lines)
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[N, {channels}, 5, 7] x, {", ".join(f"float {name}" for name in weights)}) => (float[N, 3, H, W] out)
        {{ {body} }}"""
    )
    _make_constants(model, weights)
    ranges = {"x": (-2.5, 3.0), "a": (0.0 if activation else -4.0, 5.0), "m": (-6.0, 6.0), "out": (-9.0, 8.0)}
    if middle not in ("Add",):
        ranges["m"] = ranges["a"] if middle != "Concat" else (-4.0, 5.0)
    if middle == "Concat":
        ranges["x"] = ranges["a"] = ranges["m"]
    return _noted(model, ranges)


def _make_constants(model: onnx_ir.Model, arrays: dict[str, Any]) -> None:
    """Turn the inputs of these names into initializers; those that nothing reads go."""
    for value in list(model.graph.inputs):
        if value.name not in arrays:
            continue
        model.graph.inputs.remove(value)
        if value.uses():
            array = np.asarray(arrays[value.name])
            array = array if array.dtype == np.int64 else array.astype(np.float32)
            tensor = onnx_ir.tensor(array, name=value.name)
            value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(np.shape(array))
            value.const_value = tensor
            model.graph.register_initializer(value)


@settings(max_examples=40)
@given(_nets(), st.sampled_from([_U8, _S8]), st.sampled_from([1, 4]))
def test_any_net_keeps_its_function(model: onnx_ir.Model, scheme: QuantizationScheme, multiple: int) -> None:
    lowered = _assert_same_function(model, dataclasses.replace(scheme, input_channel_multiple=multiple))
    names = [node.name for node in lowered.graph]
    assert len(set(names)) == len(names)
    assert all(quantization_of(value) is None for node in lowered.graph for value in node.outputs)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize(
    ("ranges", "activation"),
    [
        ({"x": (-3, 3)}, "Sigmoid"),
        ({"x": (-3, 3), "y": (-9, 9)}, "Relu"),
        ({"x": (-3, 3), "z": (0, 9)}, "Relu"),
    ],
)
def test_a_gemm_is_fused_whether_it_writes_float_or_integers(
    trans_b: int, bias: str, ranges: dict[str, tuple[float, float]], activation: str
) -> None:
    rng = np.random.default_rng(1)
    model = text_model(
        f"""
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 8] x, float w, float b) => (float[N, 4] out)
        {{ y = Gemm <transB = {trans_b}> (x, w{bias})
           z = {activation} (y)
           out = Sigmoid (z) }}
        """
    )
    _make_constants(model, {"w": rng.standard_normal((4, 8) if trans_b else (8, 4)), "b": rng.standard_normal(4)})
    lowered = _assert_same_function(_noted(model, ranges), _U8)
    kernels = inspect_kernels(lowered)
    assert (kernels.unfused, kernels.left_float, len(kernels.integer)) == ((), (), 1)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_conv_is_fused_with_a_float_bias_and_without_a_zero_point(kernel: int) -> None:
    model = _stem(4, kernel)
    lower_qdq(model, _U8)
    kernels = inspect_kernels(model)
    assert (kernels.unfused, kernels.left_float, len(kernels.integer)) == ((), (), 1)


_BETWEEN = """
    <ir_version: 8, opset_import: ["": 17]>
    net (float[N, 4, 5, 7] x, float w, float v, float u) => (float[N, 4, 5, 7] out)
    { [one] a = Conv (x, w)
      [relu] r = Relu (a)
      [float] b = Conv (r, v)
      [last] out = Conv (b, u) }
"""


@pytest.mark.parametrize("scheme", [_U8, _S8])
def test_a_layer_left_in_float_between_integers_is_computed_in_float(scheme: QuantizationScheme) -> None:
    rng = np.random.default_rng(0)
    model = text_model(_BETWEEN)
    # Channels of very different size: one scale for the whole weight would ruin the small ones.
    spread = np.geomspace(0.001, 1, 4)[:, None, None, None]
    _make_constants(model, {name: rng.standard_normal((4, 4, 1, 1)) * spread for name in ("w", "v", "u")})
    noted = _noted(model, {"x": (-3, 3), "r": (0, 2), "b": (-4, 4), "out": (-4, 4)})
    weight = noted.graph.initializers["v"].const_value
    assert isinstance(weight, Affine)
    noted.graph.initializers["v"].const_value = onnx_ir.tensor(weight.dense(), name="v")
    lowered = _assert_same_function(noted, scheme)
    assert _ops(lowered)["Clip"] == 1
    if scheme is _U8:
        kernels = inspect_kernels(lowered)
        assert kernels.left_float == ("float",) and len(kernels.integer) == 2


def test_a_float_layer_that_writes_float_needs_no_guard() -> None:
    model = text_model(_BETWEEN)
    rng = np.random.default_rng(0)
    _make_constants(model, {name: rng.standard_normal((4, 4, 1, 1)) for name in ("w", "v", "u")})
    noted = _noted(model, {"x": (-3, 3), "r": (0, 2)})
    weight = noted.graph.initializers["v"].const_value
    assert isinstance(weight, Affine)
    noted.graph.initializers["v"].const_value = onnx_ir.tensor(weight.dense(), name="v")
    assert "Clip" not in _ops(_assert_same_function(noted, _U8))


def test_a_weight_shared_by_an_integer_and_a_float_reader_gets_both_forms() -> None:
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 2, 5, 7] x, float w) => (float[N, 2, 5, 7] out)
        { [integer] a = Conv (x, w)
          b = Sigmoid (a)
          [real] out = Conv (b, w) }
        """
    )
    _make_constants(model, {"w": np.random.default_rng(0).standard_normal((2, 2, 1, 1))})
    lowered = _assert_same_function(_noted(model, {"x": (-3, 3), "a": (-6, 6)}), _U8)
    assert _ops(lowered) == {"QuantizeLinear": 2, "DequantizeLinear": 3, "Conv": 2, "Sigmoid": 1, "Cast": 1, "Mul": 1}


def _stored_dense(label: str) -> str:
    return f"stored dense, for lack of a smaller form beside float data: 1 of {label}: 'w'. Leave the pass out"
