"""Every operator: the file computes in LiteRT what the model does in onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import Array
from tests.targets.litert.files import body, both, named_graph

_RNG = np.random.default_rng(5)


def _w(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


# Reductions here add at most 300 products of standard normal numbers: 300 * 2**-24 of their size.
_TOLERANCE = 2e-5

_IMAGES: dict[str, tuple[str, dict[str, Array]]] = {
    "Conv": ("y = Conv<pads = [1, 1, 1, 1]>(x, w, b)", {"w": _w(4, 3, 3, 3), "b": _w(4)}),
    "Conv without a bias": ("y = Conv(x, w)", {"w": _w(4, 3, 3, 3)}),
    "Conv, Relu": ("c = Conv(x, w) y = Relu(c)", {"w": _w(4, 3, 3, 3)}),
    "Conv, Clip": ("c = Conv(x, w) y = Clip(c, l, h)", {"w": _w(4, 3, 3, 3), "l": _w(1) * 0, "h": _w(1) * 0 + 6}),
    "depthwise": ("y = Conv<group = 3, pads = [0, 1, 2, 1]>(x, w, b)", {"w": _w(3, 1, 3, 3), "b": _w(3)}),
    "depthwise, multiplier": ("y = Conv<group = 3>(x, w)", {"w": _w(6, 1, 3, 3)}),
    "SAME_UPPER": ('y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', {"w": _w(4, 3, 3, 3)}),
    "SAME_LOWER": ('y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', {"w": _w(4, 3, 2, 4)}),
    "ConvTranspose": ("y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 1]>(x, w, b)",
                      {"w": _w(3, 4, 3, 4), "b": _w(4)}),
    "ConvTranspose, output_padding": ("y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], "
                                      "output_padding = [1, 1]>(x, w)", {"w": _w(3, 4, 3, 3)}),
    "ConvTranspose, SAME": ('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)',
                            {"w": _w(3, 4, 3, 3)}),
    "BatchNormalization": ("y = BatchNormalization(x, g, b, m, v)",
                           {"g": _w(3), "b": _w(3), "m": _w(3), "v": np.abs(_w(3)) + 0.1}),
    "BatchNormalization, Relu": ("n = BatchNormalization(x, g, b, m, v) y = Relu(n)",
                                 {"g": _w(3), "b": _w(3), "m": _w(3), "v": np.abs(_w(3)) + 0.1}),
    "MaxPool": ("y = MaxPool<kernel_shape = [2, 3], strides = [2, 2]>(x)", {}),
    "MaxPool, pads": ("y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)", {}),
    "MaxPool, ceil_mode": ("y = MaxPool<kernel_shape = [2, 3], strides = [2, 3], ceil_mode = 1>(x)", {}),
    "AveragePool": ("y = AveragePool<kernel_shape = [2, 2], strides = [1, 2]>(x)", {}),
    "AveragePool, pads": ("y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", {}),
    "AveragePool, uneven pads": ("y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 0, 2]>(x)", {}),
    "AveragePool, counts pads": ("y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
                                 "count_include_pad = 1>(x)", {}),
    "AveragePool, ceil_mode": ("y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", {}),
    "GlobalAveragePool": ("y = GlobalAveragePool(x)", {}),
    "GlobalMaxPool": ("y = GlobalMaxPool(x)", {}),
    "ReduceMean": ("y = ReduceMean<axes = [2, 3], keepdims = 0>(x)", {}),
    "ReduceMean of channels": ("y = ReduceMean<axes = [1]>(x)", {}),
    "ReduceSum": ("a = Constant<value_ints = [-1]>() y = ReduceSum<keepdims = 0>(x, a)", {}),
    "ReduceMax": ("y = ReduceMax<axes = [1, 3]>(x)", {}),
    "ReduceMin of all": ("y = ReduceMin<keepdims = 0>(x)", {}),
    "Concat of a constant, channels last": (
        "c = Conv(x, w) d = Concat<axis = 1>(c, k) y = MaxPool<kernel_shape = [2, 2]>(d)",
        {"w": _w(4, 3, 3, 3), "k": _w(1, 2, 3, 5)}),
    "Concat of a constant, rows": ("y = Concat<axis = 2>(k, x)", {"k": _w(1, 3, 2, 7)}),
    "values of one order": (
        "a = Conv(x, o) b = Conv(x, w) p = GlobalAveragePool(b) m = Mul(a, p) y = Softmax<axis = -1>(m)",
        {"o": _w(1, 3, 3, 3), "w": _w(4, 3, 3, 3)}),
    "Add": ("r = Relu(x) y = Add(x, r)", {}),
    "Add, Relu": ("r = Abs(x) s = Sin(r) a = Add(x, s) y = Relu(a)", {}),
    "Add of channels": ("y = Add(x, b)", {"b": _w(3, 1, 1)}),
    "Mul by a row": ("y = Mul(b, x)", {"b": _w(7)}),
    "Mul by channels that are computed": ("p = GlobalAveragePool(x) y = Mul(x, p)", {}),
    "Sub": ("r = Relu(x) y = Sub(r, x)", {}),
    "Div": ("e = Exp(x) y = Div(x, e)", {}),
    "Max": ("y = Max(x, b)", {"b": _w(3, 1, 1)}),
    "Min": ("r = Neg(x) y = Min(x, r)", {}),
    "Pow": ("a = Abs(x) y = Pow(a, b)", {"b": np.array(1.5, np.float32)}),
    "Concat": ("r = Relu(x) y = Concat<axis = 1>(x, r, b)", {"b": _w(1, 2, 5, 7)}),
    "Concat of rows": ("r = Relu(x) y = Concat<axis = -2>(r, x)", {}),
    "Pad": ("p = Constant<value_ints = [0, 1, 2, 0, 0, 2, 1, 3]>() y = Pad(x, p)", {}),
    "Pad with a number": ("p = Constant<value_ints = [0, 1, 2, 0, 0, 2, 1, 3]>() y = Pad(x, p, f)",
                          {"f": np.array(2.5, np.float32)}),
    "Pad, reflect": ('p = Constant<value_ints = [0, 0, 2, 1, 0, 0, 1, 3]>() y = Pad<mode = "reflect">(x, p)', {}),
    "Flatten": ("y = Flatten(x)", {}),
    "Flatten, axis": ("y = Flatten<axis = 2>(x)", {}),
    "Reshape": ("s = Constant<value_ints = [0, -1, 7]>() y = Reshape(x, s)", {}),
    "Reshape to an image": ("s = Constant<value_ints = [1, 5, 7, 3]>() y = Reshape(x, s)", {}),
    "Squeeze": ("p = GlobalAveragePool(x) a = Constant<value_ints = [2, 3]>() y = Squeeze(p, a)", {}),
    "Unsqueeze": ("f = Flatten(x) a = Constant<value_ints = [2, 3]>() y = Unsqueeze(f, a)", {}),
    "Transpose": ("y = Transpose<perm = [0, 3, 1, 2]>(x)", {}),
    "Transpose to channels last": ("y = Transpose<perm = [0, 2, 3, 1]>(x)", {}),
    "Transpose of all": ("y = Transpose(x)", {}),
    "Slice": ("s = Constant<value_ints = [1, -6]>() e = Constant<value_ints = [9223372036854775807, -1]>() "
              "a = Constant<value_ints = [1, 3]>() t = Constant<value_ints = [1, 2]>() y = Slice(x, s, e, a, t)", {}),
    "Split": ("n = Constant<value_ints = [2, 1]>() a, b = Split<axis = 1>(x, n) y = Concat<axis = 1>(b, a)", {}),
    "Split, equal": ("a, b, c = Split<axis = 1>(x) y = Concat<axis = 1>(c, a, b)", {}),
    "Gather": ("i = Constant<value_ints = [2, 0, -1]>() y = Gather<axis = 1>(x, i)", {}),
    "Gather of one": ("i = Constant<value_int = 4>() y = Gather<axis = 3>(x, i)", {}),
    "Resize, nearest": ('y = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", '
                        'nearest_mode = "floor">(x, , s)', {"s": np.array([1, 1, 2, 3], np.float32)}),
    "Resize, half_pixel": ('y = Resize<mode = "nearest">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Resize, linear": ('y = Resize<mode = "linear">(x, , s)', {"s": np.array([1, 1, 2, 3], np.float32)}),
    "Resize, smaller": ('y = Resize<mode = "linear", coordinate_transformation_mode = "asymmetric">(x, , s)',
                        {"s": np.array([1, 1, 0.6, 0.5714286], np.float32)}),
    "Resize, align_corners": ('y = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(x, , s)',
                              {"s": np.array([1, 1, 3, 2], np.float32)}),
    "Relu": ("y = Relu(x)", {}),
    "Clip": ("y = Clip(x, l, h)", {"l": np.array(-0.3, np.float32), "h": np.array(0.7, np.float32)}),
    "Clip, one limit": ("y = Clip(x, l)", {"l": np.array(-0.3, np.float32)}),
    "LeakyRelu": ("y = LeakyRelu<alpha = 0.2>(x)", {}),
    "PRelu of two rows": ("f = Flatten(x) y = PRelu(f, s)", {"s": _w(105)}),
    "PRelu of an axis of one": ("y = PRelu(x, s)", {"s": _w(1, 3, 1, 1)}),
    "PRelu": ("y = PRelu(x, s)", {"s": _w(3, 1, 1)}),
    "Elu": ("y = Elu(x)", {}),
    "Sigmoid": ("y = Sigmoid(x)", {}),
    "Tanh": ("y = Tanh(x)", {}),
    "HardSigmoid": ("y = HardSigmoid<alpha = 0.3>(x)", {}),
    "HardSwish": ("y = HardSwish(x)", {}),
    "Softmax": ("y = Softmax<axis = -1>(x)", {}),
    "Softmax of channels": ("y = Softmax<axis = 1>(x)", {}),
    "LogSoftmax": ("y = LogSoftmax<axis = 1>(x)", {}),
    "LRN": ("y = LRN<size = 3, alpha = 0.5, beta = 0.6, bias = 1.5>(x)", {}),
    "LayerNormalization": ("y = LayerNormalization(x, s, b)", {"s": _w(7), "b": _w(7)}),
    "LayerNormalization of channels too": ("c = Conv(x, w) y = LayerNormalization<axis = 1, epsilon = 0.1>(c, s, b)",
                                           {"w": _w(4, 3, 3, 3), "s": _w(4, 3, 5), "b": _w(4, 3, 5)}),
    "LayerNormalization of columns": (
        "p = MaxPool<kernel_shape = [2, 2]>(x) f = Flatten(p) n = LayerNormalization(f, s) y = Relu(n)",
        {"s": _w(72)}),
    "InstanceNormalization": ("y = InstanceNormalization<epsilon = 0.01>(x, s, b)", {"s": _w(3), "b": _w(3)}),
    "InstanceNormalization, Relu": ("c = Conv(x, w) n = InstanceNormalization(c, s, b) y = Relu(n)",
                                    {"w": _w(4, 3, 3, 3), "s": _w(4), "b": _w(4)}),
    "ArgMax of channels": ("c = Conv(x, w) i = ArgMax<axis = 1>(c) y = Cast<to = 1>(i)", {"w": _w(4, 3, 3, 3)}),
    "ArgMax without its axis": ("c = Conv(x, w) i = ArgMax<axis = -1, keepdims = 0>(c) y = Cast<to = 1>(i)",
                                {"w": _w(4, 3, 3, 3)}),
    "ArgMax of equals": ("f = Floor(x) i = ArgMax<axis = 3, keepdims = 0>(f) y = Cast<to = 1>(i)", {}),
    "ArgMin": ("f = Flatten(x) i = ArgMin<axis = 1>(f) y = Cast<to = 1>(i)", {}),
    "Cast to integers and back": ("s = Mul(x, k) c = Cast<to = 7>(s) r = Cast<to = 1>(c) y = Add(r, x)",
                                  {"k": _w(1) * 0 + 3}),
    "Cast to the same": ("c = Cast<to = 1>(x) y = Relu(c)", {}),
    "SpaceToDepth": ("c = Conv(x, w) s = SpaceToDepth<blocksize = 2>(c) y = Relu(s)", {"w": _w(3, 3, 2, 2)}),
    "DepthToSpace": ("c = Conv(x, w) y = DepthToSpace<blocksize = 2>(c)", {"w": _w(12, 3, 3, 3)}),
    "DepthToSpace, CRD": ('c = Conv(x, w) y = DepthToSpace<blocksize = 2, mode = "CRD">(c)', {"w": _w(12, 3, 3, 3)}),
    "Exp, Log, Sqrt": ("e = Exp(x) s = Sqrt(e) y = Log(s)", {}),
    "Floor, Ceil": ("f = Floor(x) c = Ceil(x) y = Sub(c, f)", {}),
    "Sin, Cos": ("s = Sin(x) c = Cos(x) y = Mul(s, c)", {}),
    "Dropout that is not training": ("t = Constant<value = bool {0}>() d = Dropout(x, r, t) y = Relu(d)",
                                     {"r": _w() * 0 + 0.5}),
    "Dropout, Identity": ("d = Dropout(x) y = Identity(d)", {}),
    "Flatten, Gemm": ("f = Flatten(x) y = Gemm<transB = 1>(f, w, b)", {"w": _w(4, 105), "b": _w(4)}),
    "pool, Flatten, Relu, MatMul": ("p = MaxPool<kernel_shape = [2, 2]>(x) f = Flatten(p) r = Relu(f) y = MatMul(r, w)",
                                    {"w": _w(72, 4)}),
    "Flatten that two read": ("p = MaxPool<kernel_shape = [2, 2]>(x) f = Flatten(p) m = MatMul(f, w) n = MatMul(f, v) "
                              "y = Add(m, n)", {"w": _w(72, 4), "v": _w(72, 4)}),
    "Flatten that is no product's alone": ("p = MaxPool<kernel_shape = [2, 2]>(x) f = Flatten(p) m = MatMul(f, w) "
                                           "y = Concat<axis = 1>(m, f)", {"w": _w(72, 4)}),
    "Flatten, Relu that no product reads": ("f = Flatten(x) r = Relu(f) y = Concat<axis = 1>(r, r)", {}),
    "MatMul of the last axis": ("y = MatMul(x, w)", {"w": _w(7, 4)}),
    "MatMul of two values": ("t = Transpose<perm = [0, 1, 3, 2]>(x) y = MatMul(x, t)", {}),
    "MatMul of a constant": ("y = MatMul(w, x)", {"w": _w(4, 5)}),
    "MatMul of a constant, Relu": ("m = MatMul(w, x) y = Relu(m)", {"w": _w(4, 5)}),
    "MatMul of two values, Relu": ("t = Transpose<perm = [0, 1, 3, 2]>(x) m = MatMul(x, t) y = Relu(m)", {}),
    "MatMul by a weight for each channel, Clip": ("m = MatMul(x, w) y = Clip(m, l, h)",
                                                  {"w": _w(3, 7, 4), "l": _w() * 0, "h": _w() * 0 + 6}),
    "MatMul of the last axis, Relu": ("m = MatMul(x, w) y = Relu(m)", {"w": _w(7, 4)}),
    "ConvTranspose, Relu": ("c = ConvTranspose(x, w) y = Relu(c)", {"w": _w(3, 4, 3, 3)}),
    "Div, Clip": ("r = Exp(x) d = Div(x, r) y = Clip(d, l, h)", {"l": _w() * 0 - 1, "h": _w() * 0 + 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", _IMAGES)
def test_a_file_computes_what_the_model_does(name: str) -> None:
    nodes, arrays = _IMAGES[name]
    (expected,), (found,) = both(body(nodes, arrays))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE * max(1.0, np.abs(expected).max()))


def test_grouped_convolutions_are_one_operator() -> None:
    model = body("y = Conv<group = 2, strides = [2, 1]>(x, w, b)", {"w": _w(6, 2, 3, 3), "b": _w(6)}, (1, 4, 5, 7))
    (expected,), (found,) = both(model)
    np.testing.assert_allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


_SOFTMAXES: dict[str, tuple[str, tuple[int, ...], int]] = {
    "the last axis, by default": ("Softmax(x)", (2, 3, 5, 7), 13),
    "the last of one number, by default": ("Softmax(x)", (2, 3, 1, 1), 13),
    "channels before one position": ("Softmax<axis = 1>(x)", (2, 3, 1, 1), 13),
    "all behind the batch, which are channels": ("Softmax(x)", (2, 3, 1, 1), 11),
    "all behind the batch, which are columns": ("Softmax(x)", (2, 1, 1, 7), 11),
    "all behind the batch, of rank 3": ("Softmax(x)", (2, 1, 5), 11),
    "all of one number": ("Softmax(x)", (2, 1, 1), 11),
    "the last rows and columns": ("Softmax<axis = 2>(x)", (1, 3, 1, 7), 11),
    "the logarithm": ("LogSoftmax(x)", (2, 3, 1, 1), 13),
    "the logarithm of all behind the batch": ("LogSoftmax(x)", (2, 3, 1, 1), 11),
}


@pytest.mark.parametrize("name", _SOFTMAXES)
def test_softmax_takes_the_axis_that_its_opset_means(name: str) -> None:
    node, shape, opset = _SOFTMAXES[name]
    (expected,), (found,) = both(body(f"y = {node}", {}, shape, opset=opset))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


_TWICE = 'Resize<axes = [2, 3], coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , s)'
_RESIZES: dict[str, tuple[str, int, Array]] = {
    "Upsample-9": ("Upsample(x, s)", 9, np.array([1, 1, 2, 3], np.float32)),
    "Upsample-9, linear": ('Upsample<mode = "linear">(x, s)', 9, np.array([1, 1, 2, 3], np.float32)),
    "Upsample-7": ("Upsample<scales = [1.0, 1.0, 2.0, 3.0]>(x)", 8, _w(1)),
    "Resize-10, nearest": ("Resize(x, s)", 10, np.array([1, 1, 3, 3], np.float32)),
    "Resize-10, linear": ('Resize<mode = "linear">(x, s)', 10, np.array([1, 1, 3, 2], np.float32)),
    "axes": (_TWICE, 18, np.array([2, 3], np.float32)),
    "axes from the end": (_TWICE.replace("[2, 3]", "[-1, -2]"), 18, np.array([2, 3], np.float32)),
}


@pytest.mark.parametrize("name", _RESIZES)
def test_resizing_of_any_opset_agrees(name: str) -> None:
    node, opset, scales = _RESIZES[name]
    (expected,), (found,) = both(body(f"y = {node}", {"s": scales}, opset=opset))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def test_opset_20_gelu() -> None:
    (expected,), (found,) = both(body("y = Gelu(x)", opset=20))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # the kernel's erf is a rational approximation


def test_several_inputs_and_outputs_keep_their_names_and_order() -> None:
    text = (
        "g (float[1,3,5,7] b, float[1,3,5,7] a) => (float s, float[1,3,1,1] d) { s = Mul(a, b) d = GlobalMaxPool(b) }"
    )
    expected, found = both(named_graph(text, {}))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=_TOLERANCE)


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64"])
def test_an_image_of_integers_is_cast(kind: str) -> None:
    model = named_graph(f"g ({kind}[1,3,5,7] x) => (float y) {{ f = Cast<to = 1>(x) y = Conv(f, w) }}",
                        {"w": _w(4, 3, 3, 3)})  # fmt: skip
    (expected,), (found,) = both(model)
    np.testing.assert_allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_indices_are_outputs_of_integers(axis: int, channels_last: bool) -> None:
    model = named_graph(
        f"g (float[1,3,5,7] x) => (int64 y) {{ c = Conv(x, w) y = ArgMax<axis = {axis}, keepdims = 0>(c) }}",
        {"w": _w(4, 3, 3, 3)},
    )
    (expected,), (found,) = both(model, channels_last=channels_last)
    assert found.dtype == np.int64 and np.array_equal(found, expected)


def test_channels_last_leaves_no_transpose() -> None:
    from onnxpress.targets.litert import emit

    model = body("c = Conv(x, w) p = GlobalAveragePool(c) y = Flatten(p)", {"w": _w(4, 3, 3, 3)})
    assert "TRANSPOSE" not in emit(model, channels_last=True).operators
    (expected,), (found,) = both(model, channels_last=True)
    np.testing.assert_allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)


def test_a_stored_constant_lies_at_multiples_of_16_bytes() -> None:
    from onnxpress.targets.litert import emit_tflite

    weight = _w(4, 3, 3, 3)
    content = emit_tflite(body("y = Conv(x, w)", {"w": weight}))
    stored = np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).tobytes()
    assert content.index(stored) % 16 == 0
