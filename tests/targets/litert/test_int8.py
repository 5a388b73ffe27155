"""Notes and encodings in the file: the noted model's function within a few steps, and int8 where there is a kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.encodings import Affine, Codebook, Encoded, Float16, Ternary
from onnxpress.ir.encodings.sparse import Sparse
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.ir.quantization import note_weight_only
from tests.support import Array, random_feeds, run
from tests.targets.litert.files import body, both, int8_steps, noted

_RNG = np.random.default_rng(9)


def _w(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


_FULL = (-3.0, 3.0)

# What onnxruntime computes in float between Q and DQ, LiteRT does in integers; both round once at the end, and LiteRT's
# multiplier has 31 bits: one step apart, or two where a kernel rounds twice.
_SITES: dict[str, tuple[str, dict[str, tuple[float, float]], str, float]] = {
    "Add": ("r = Neg(x) a = Relu(r) y = Add(x, a)", {"x": _FULL, "a": (0, 2), "y": (-3, 4)}, "ADD", 1),
    "Add, Relu": ("r = Neg(x) a = Abs(r) s = Add(x, a) y = Relu(s)", {"x": _FULL, "a": (0, 3), "y": (0, 5)}, "ADD", 1),
    "Sub": ("a = Abs(x) y = Sub(x, a)", {"x": _FULL, "a": (0, 3), "y": (-6, 0.5)}, "SUB", 1),
    "Mul": ("a = Abs(x) y = Mul(x, a)", {"x": _FULL, "a": (0, 3), "y": (-5, 5)}, "MUL", 1),
    "MaxPool": ("y = MaxPool<kernel_shape = [3, 3], pads = [1, 0, 0, 1]>(x)", {"x": _FULL, "y": _FULL},
                "MAX_POOL_2D", 0),
    "MaxPool of another range": ("y = MaxPool<kernel_shape = [2, 2]>(x)", {"x": _FULL, "y": (-1, 2)}, "QUANTIZE", 1),
    "AveragePool": ("y = AveragePool<kernel_shape = [2, 3]>(x)", {"x": _FULL, "y": _FULL}, "AVERAGE_POOL_2D", 1),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", {"x": _FULL, "y": (-1, 1)}, "MEAN", 1),
    "Concat of two ranges": ("a = Abs(x) y = Concat<axis = 1>(x, a)", {"x": _FULL, "a": (0, 2), "y": (-3, 2)},
                             "CONCATENATION", 1),
    "Pad": ("p = Constant<value_ints = [0, 1, 1, 0, 0, 0, 0, 2]>() y = Pad(x, p)", {"x": (-2, 3), "y": (-2, 3)},
            "PAD", 0),
    "Slice": ("y = Slice(x, s, e, a)", {"x": _FULL, "y": _FULL}, "STRIDED_SLICE", 0),
    "Flatten": ("y = Flatten(x)", {"x": _FULL, "y": _FULL}, "RESHAPE", 0),
    "Transpose": ("y = Transpose<perm = [0, 1, 3, 2]>(x)", {"x": _FULL, "y": _FULL}, "TRANSPOSE", 0),
    "Split": ("a, b, c = Split<axis = 1>(x) y = Concat<axis = 1>(c, a)",
              {"x": _FULL, "a": _FULL, "b": _FULL, "c": _FULL, "y": _FULL}, "SPLIT", 0),
    "Gather": ("i = Constant<value_ints = [2, 0]>() y = Gather<axis = 1>(x, i)", {"x": _FULL, "y": _FULL}, "GATHER", 0),
    "Resize": ('y = Resize<mode = "nearest">(x, , z)', {"x": _FULL, "y": _FULL}, "RESIZE_NEAREST_NEIGHBOR", 0),
    "Resize, linear": ('y = Resize<mode = "linear">(x, , z)', {"x": _FULL, "y": _FULL}, "RESIZE_BILINEAR", 2),
    "Relu": ("y = Relu(x)", {"x": _FULL, "y": (-1, 2)}, "RELU", 1),
    "Clip": ("y = Clip(x, l, h)", {"x": _FULL, "y": (-0.3, 0.7)}, "QUANTIZE", 1),
    "LeakyRelu": ("y = LeakyRelu<alpha = 0.2>(x)", {"x": _FULL, "y": (-0.6, 3)}, "LEAKY_RELU", 1),
    "Sigmoid": ("y = Sigmoid(x)", {"x": _FULL, "y": (0, 1)}, "LOGISTIC", 2),
    "Tanh": ("y = Tanh(x)", {"x": _FULL, "y": (-1, 1)}, "TANH", 2),
    "HardSwish": ("y = HardSwish(x)", {"x": _FULL, "y": (-0.375, 3)}, "HARD_SWISH", 2),
    "Softmax": ("y = Softmax<axis = -1>(x)", {"x": _FULL, "y": (0, 1)}, "SOFTMAX", 2),
}  # fmt: skip
_NUMBERS: dict[str, Array] = {
    "s": np.array([0, 1], np.int64), "e": np.array([2, 4], np.int64), "a": np.array([1, 3], np.int64),
    "z": np.array([1, 1, 2, 2], np.float32), "l": np.array(-0.3, np.float32), "h": np.array(0.7, np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", _SITES)
def test_operators_between_notes_compute_in_integers(name: str) -> None:
    nodes, ranges, operator, steps = _SITES[name]
    model = _with_numbers(nodes)
    found, operators = int8_steps(noted(model, ranges))
    assert found <= steps + 1e-3
    assert operator in operators


def _with_numbers(nodes: str) -> onnx_ir.Model:
    integers = {name: number for name, number in _NUMBERS.items() if number.dtype == np.int64}
    if "Slice" in nodes:
        for name, number in integers.items():
            nodes = f"{name} = Constant<value_ints = {number.tolist()}>() {nodes}"
    return body(nodes, {name: number for name, number in _NUMBERS.items() if number.dtype == np.float32})


def _encode(model: onnx_ir.Model, encoding: type[Encoded] | None = None) -> onnx_ir.Model:
    for linear in linear_ops(model):
        stored = np.asarray(linear.to_stored(linear.weight()))
        weight = Affine.quantize(stored, axis=linear.out_axis) if encoding is None else encoding.quantize(stored)  # type: ignore[attr-defined]
        linear.weight_value.const_value = weight
    return model


_LAYERS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Conv": ("c = Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(c)", (4, 3, 3, 3)),
    "Conv, uneven pads": ("c = Conv<pads = [0, 1, 2, 0]>(x, w, b) y = Relu(c)", (4, 3, 3, 3)),
    "depthwise": ("c = Conv<group = 3, pads = [1, 1, 1, 1]>(x, w, b) y = Relu(c)", (3, 1, 3, 3)),
    "multiplier": ("c = Conv<group = 3>(x, w, b) y = Relu(c)", (6, 1, 3, 3)),
    "ConvTranspose": ("c = ConvTranspose<strides = [2, 2], pads = [1, 1, 0, 0]>(x, w, b) y = Relu(c)", (3, 4, 3, 3)),
    "Gemm": ("f = Flatten(x) c = Gemm(f, w, b) y = Relu(c)", (105, 4)),
    "MatMul": ("c = MatMul(x, w) y = Relu(c)", (7, 4)),
}


def _layer(name: str) -> onnx_ir.Model:
    nodes, shape = _LAYERS[name]
    outputs = shape[1] if name in ("ConvTranspose", "Gemm", "MatMul") else shape[0]
    return body(nodes, {"w": _w(*shape) * np.linspace(0.1, 1, outputs).reshape(_along(name, shape)), "b": _w(outputs)})


def _along(name: str, shape: tuple[int, ...]) -> list[int]:
    axis = 1 if name in ("ConvTranspose", "Gemm", "MatMul") else 0
    return [-1 if each == axis else 1 for each in range(len(shape))]


@pytest.mark.parametrize("name", _LAYERS)
def test_layers_compute_in_integers(name: str) -> None:
    model = _encode(noted(_layer(name), {"x": _FULL, "f": _FULL, "y": (0, 12)}))
    found, operators = int8_steps(model)
    assert found <= 1 + 1e-3
    assert operators.get("DEQUANTIZE") == 1  # of the output
    weights = [value.const_value for value in model.graph.initializers.values()]
    assert any(isinstance(weight, Affine) for weight in weights)  # the model is not changed


@pytest.mark.parametrize("name", _LAYERS)
def test_kernels_without_xnnpack_compute_the_same(name: str) -> None:
    from onnxpress.targets.litert import emit_tflite
    from onnxpress.targets.runtimes.litert import LiteRtSession

    model = _encode(noted(_layer(name), {"x": _FULL, "f": _FULL, "y": (0, 12)}))
    content, feeds = emit_tflite(model), random_feeds(model, batch=1)
    one, other = (LiteRtSession(content, xnnpack=xnnpack).run(feeds)["y"] for xnnpack in (True, False))
    assert np.abs(one - other).max() <= 12 / 255 * (1 + 1e-3)  # a step


def test_grouped_layers_compute_in_integers() -> None:
    model = body("c = Conv<group = 2>(x, w, b) y = Relu(c)", {"w": _w(6, 2, 3, 3), "b": _w(6)}, (1, 4, 5, 7))
    found, _ = int8_steps(_encode(noted(model, {"x": _FULL, "y": (0, 10)})))
    assert found <= 1 + 1e-3


@pytest.mark.parametrize("name", ["Conv", "depthwise", "Gemm"])
def test_a_layer_whose_output_stays_float_keeps_its_integers_in_the_file(name: str) -> None:
    from onnxpress.targets.litert import emit

    model = _encode(noted(_layer(name), {"x": _FULL}))
    (expected,), (found,) = both(_dequantized(model))
    file = emit(model)
    assert "int8, DEQUANTIZE" in next(form for form in file.report.forms if form.startswith("affine8"))
    assert file.real and not file.integer
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def _dequantized(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return the model with dense weights, its notes taken away: what its layers compute in float."""
    from onnxpress.ir.quantization import clear

    copy = model.clone()
    for value in [*copy.graph.inputs, *(value for node in copy.graph for value in node.outputs)]:
        clear(value)
    return copy


def test_float16_weights_are_stored_as_such() -> None:
    from onnxpress.targets.litert import emit

    model = _encode(_layer("Conv"), Float16)
    dense = len(emit(_layer("Conv")).content)
    file = emit(model)
    (expected,), (found,) = both(model)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    assert file.report.forms["float16 -> float16, DEQUANTIZE"] == 1
    assert len(file.content) < dense + 200  # one operator more, 216 bytes of weights less


def test_levels_on_a_grid_of_integers_become_int8() -> None:
    from onnxpress.targets.litert import emit

    model = noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})
    (linear,) = linear_ops(model)
    signs = _RNG.integers(-1, 2, linear.weight().shape).astype(np.int8)
    linear.weight_value.const_value = Ternary(signs, np.array([0.1, 0.2, 0.4, 0.3], np.float32), axis=0)
    found, _ = int8_steps(model)
    assert found <= 1 + 1e-3
    report = emit(model).report
    assert report.forms["ternary -> int8"] == 1
    assert report.notes[-1].startswith("1 weights are stored wider than they are encoded (1 of ternary): int8 where")


def test_what_constants_take_is_counted() -> None:
    from onnxpress.targets.litert import emit

    file = emit(_encode(noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})))
    weights = 4 * 27 + 4 * 12  # codes; scales and zero points
    assert file.constant_bytes == weights + 4 * 4 + 4 * 12 + 2 * 16  # the bias's; axes of two TRANSPOSEs


def test_pruned_integers_become_int8() -> None:
    model = noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})
    (linear,) = linear_ops(model)
    mask = _RNG.random(linear.weight().shape) > 0.5
    linear.weight_value.const_value = Sparse(mask, Affine.quantize(np.where(mask, linear.weight(), 0), axis=0))
    found, operators = int8_steps(model)
    assert found <= 1 + 1e-3 and operators["CONV_2D"] == 1


def test_levels_off_any_grid_compute_in_float() -> None:
    from onnxpress.targets.litert import emit

    model = noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})
    (linear,) = linear_ops(model)
    table = np.array([-1.0, -0.3141, 0.0, 0.2718], np.float32)
    indices = _RNG.integers(0, 4, linear.weight().shape).astype(np.uint8)
    linear.weight_value.const_value = Codebook(indices, table)
    file = emit(model)
    assert file.real == (linear.node.name or "y",)
    assert any(form.startswith("codebook") and form.endswith("-> dense") for form in file.report.forms)
    found, _ = int8_steps(model)
    assert found <= 1 + 1e-3


def test_weights_for_float_layers_are_not_multiplied_as_integers() -> None:
    from onnxpress.targets.litert import emit

    model = _encode(noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)}))
    (linear,) = linear_ops(model)
    note_weight_only(linear.weight_value)
    assert not emit(model).integer


def test_the_bias_of_a_dead_channel_fits_32_bits() -> None:
    nodes, shape = _LAYERS["Conv"]
    model = noted(body(nodes, {"w": _w(*shape), "b": np.full(4, 2.0)}), {"x": _FULL, "y": (0, 12)})
    linear = next(linear_ops(model))
    assert isinstance(as_linear(linear.node), Linear)
    scale = np.array([1e-12, 0.01, 0.02, 0.03], np.float32)
    codes = _RNG.integers(-127, 128, linear.weight().shape).astype(np.int8)
    linear.weight_value.const_value = Affine(codes, scale, axis=0)
    found, _ = int8_steps(model)
    assert found <= 1 + 1e-3


def test_a_noted_value_that_float_operators_read_is_rounded_for_them() -> None:
    model = noted(body("e = Exp(x) y = Log(e)"), {"e": (0.0, 20.0)})
    (expected,), (found,) = both(model)
    step = 20 / 255
    assert np.abs(np.exp(found) - np.exp(expected)).max() > step / 4  # it was rounded
    rounded = np.rint(np.exp(expected) / step) * step
    np.testing.assert_allclose(found[rounded > 0], np.log(rounded[rounded > 0]), atol=1e-3)


def test_a_noted_image_of_one_channel_is_flattened_as_integers() -> None:
    model = body("f = Flatten(x) c = MatMul(f, w) y = Relu(c)", {"w": _w(35, 4)}, (1, 1, 5, 7))
    found, operators = int8_steps(_encode(noted(model, {"x": _FULL, "f": _FULL, "y": (0, 12)})))
    assert found <= 1 + 1e-3
    assert operators == {"QUANTIZE": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}


def test_a_noted_image_of_one_channel_is_reshaped_as_integers() -> None:
    model = body("s = Constant<value_ints = [5, 7]>() y = Reshape(x, s)", {}, (1, 1, 5, 7))
    found, operators = int8_steps(noted(model, {"x": _FULL, "y": _FULL}))
    assert found == 0 and operators == {"QUANTIZE": 1, "RESHAPE": 1, "DEQUANTIZE": 1}


def test_scales_along_another_axis_compute_in_float() -> None:
    from onnxpress.targets.litert import emit

    model = noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})
    (linear,) = linear_ops(model)
    linear.weight_value.const_value = Affine.quantize(linear.weight(), axis=1)
    assert not emit(model).integer
    found, _ = int8_steps(model)
    assert found <= 1 + 1e-3


def test_weights_with_a_zero_point_compute_in_float() -> None:
    """LiteRT's int8 weights are symmetric: https://ai.google.dev/edge/litert/models/quantization_spec"""
    from onnxpress.targets.litert import emit

    model = noted(_layer("Conv"), {"x": _FULL, "y": (0, 12)})
    (linear,) = linear_ops(model)
    weight = Affine.quantize(np.abs(linear.weight()), symmetric=False, axis=0)
    assert weight.zero_point is not None and weight.zero_point.any()
    linear.weight_value.const_value = weight
    assert not emit(model).integer
    found, _ = int8_steps(model)
    assert found <= 1 + 1e-3


def test_a_model_without_notes_is_all_float() -> None:
    from onnxpress.targets.litert import emit

    assert not {"QUANTIZE", "DEQUANTIZE"} & set(emit(_layer("Conv")).operators)
    assert len(run(_layer("Conv"), {"x": _w(1, 3, 5, 7)})) == 1
