"""The rules of the target tensorrt: each has a model that breaks it and only it, and a near miss that keeps it."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.inference import infer_shapes
from onnxpress.targets.base import load_target
from onnxpress.targets.legality import Illegal, check_model
from tests.support import Array, text_model

_RNG = np.random.default_rng(5)
_INT8 = np.int8


def _sparse(axis: int) -> Array:
    """Half zeros, two of every four neighbours along `axis` of [8, 16, 3, 3]."""
    pattern = np.array([1, 1, 0, 0] * (16 if axis == 1 else 8))[: (8, 16)[axis]]
    shape = [-1 if axis == at else 1 for at in range(4)]
    return np.broadcast_to(pattern.reshape(shape), (8, 16, 3, 3)).astype(np.float16)


_CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "s0": np.array(0.0, np.float32),
    "sd": np.array(0.03, np.float64),
    "sh": np.array(0.03, np.float16),
    "s16": np.full(16, 0.03, np.float32),
    "z": np.array(0, _INT8),
    "z1": np.array(1, _INT8),
    "zu": np.array(0, np.uint8),
    "z16": np.zeros(16, _INT8),
    "z3": np.zeros(3, _INT8),
    "w": _RNG.integers(-63, 64, (16, 16, 3, 3)).astype(_INT8),
    "wn": _RNG.integers(-63, 64, (8, 8, 3, 3)).astype(_INT8),
    "wn_s": np.full(8, 0.002, np.float32),
    "w16": _RNG.integers(-63, 64, (16, 8, 3, 3)).astype(_INT8),
    "ws": _RNG.uniform(0.001, 0.003, 16).astype(np.float32),
    "wf": _RNG.standard_normal((16, 16, 3, 3)).astype(np.float32),
    "wh": _RNG.standard_normal((16, 16, 3, 3)).astype(np.float16),
    "w24": _sparse(1),
    "w42": _sparse(0),
    "wt": _RNG.integers(-63, 64, (16, 4, 3, 3)).astype(_INT8),
    "wts": np.full(4, 0.002, np.float32),
    "wg": _RNG.integers(-63, 64, (16, 8, 3, 3)).astype(_INT8),
    "wgs": np.full(8, 0.002, np.float32),
    "b": np.zeros(16, np.float32),
    "b8": np.zeros(16, _INT8),
    "b32": np.zeros(16, np.int32),
    "m": _RNG.integers(-63, 64, (128, 6)).astype(_INT8),
    "ms": np.full(6, 0.01, np.float32),
    "ms5": np.full(5, 0.01, np.float32),
    "mk": np.full(128, 0.01, np.float32),
    "mb": np.full((2, 6), 0.01, np.float32),
    "mb4": np.full((4, 6), 0.01, np.float32),
    "m4": _RNG.integers(-7, 8, (128, 6)).astype(ml_dtypes.int4),
    "m4odd": _RNG.integers(-7, 8, (128, 5)).astype(ml_dtypes.int4),
    "ms4odd": np.full((2, 5), 0.01, np.float32),
    "w4": _RNG.integers(-7, 8, (16, 16, 3, 4)).astype(ml_dtypes.int4),
    "t4": _RNG.integers(-7, 8, (4, 128, 6)).astype(ml_dtypes.int4),
    "t4x": _RNG.integers(-7, 8, (128, 128, 6)).astype(ml_dtypes.int4),
    "t4s": np.full((2, 128, 6), 0.01, np.float32),
    "z4": np.array(0, ml_dtypes.int4),
    "z8": np.array(0, ml_dtypes.float8_e4m3fn),
    "z8x": np.array(0, ml_dtypes.float8_e5m2),
    "w8f": np.ones((16, 16, 3, 3), ml_dtypes.float8_e4m3fn),
    "w8big": np.ones((16, 16, 6, 6), ml_dtypes.float8_e4m3fn),
    "w8x": np.ones((16, 16, 3, 3), ml_dtypes.float8_e5m2),
    "c8": np.ones((1, 16, 9, 9), _INT8),
    "cu8": np.ones((1, 16, 9, 9), np.uint8),
    "k5": np.array([5], np.int64),
    "kbig": np.array([3840], np.int64),
    "axis2": np.array([2], np.int64),
    "axis0": np.array(0, np.int64),
    "one": np.array([1], np.int64),
    "huge": np.array([2**40], np.int64),
    "end": np.array([2**63 - 1], np.int64),
    "pads": np.zeros(8, np.int64),
    "depth": np.array([4], np.int64),
    "onoff": np.array([0, 1], np.float32),
    "ratio": np.array(0.5, np.float32),
    "false": np.array(False),
    "true": np.array(True),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "none": np.zeros(0, np.float32),
    "trip": np.array(3, np.int64),
    "indices": np.zeros((1, 4), np.int64),
    "update": np.ones(1, np.float32),
    "ones16": np.ones(16, np.float32),
    "R": np.ones((2, 8, 2), np.float32), "W": np.ones((2, 8, 9), np.float32),
    "iou": np.array([0.5], np.float32),
    "boxes": np.ones((1, 6, 4), np.float32),
    "boxesd": np.ones((1, 6, 4), np.float64),
    "scores": np.ones((1, 2, 6), np.float32),
    "scoresd": np.ones((1, 2, 6), np.float64),
}  # fmt: skip

_IMAGE, _ROWS = "float[1,16,9,9]", "float[3,128]"
_QX = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
_FP8 = "q = QuantizeLinear(x, s, z8) d = DequantizeLinear(q, s, z8)"
_CONV = f"{_QX} wd = DequantizeLinear<axis = 0>(w, ws) y = Conv(xd, wd, b)"
_MATMUL = f"{_QX} md = DequantizeLinear<axis = 1>(m, ms) y = MatMul(xd, md)"
_INT4 = "md = DequantizeLinear<axis = 0, block_size = 64>(m4, mb) y = MatMul(x, md)"
_POOL = "y = AveragePool<kernel_shape = [2, 2]>(x)"
_RESIZE = "y = Resize<mode = 'linear'>(x, none, scales)".replace("'", '"')
_LSTM = 'y = LSTM<hidden_size = 2, direction = "bidirectional">(x, W, R)'
_IF = """
    c = Constant<value = bool {1}>()
    y = If(c) <then_branch = a () => (float[1,16,9,9] t) { t = Relu(x) },
               else_branch = b () => (float[1,16,9,9] e) { e = Abs(x) }>
"""
_LOOP = """
    c = Constant<value = bool {1}>()
    y, ys = Loop(trip, c, x) <body = l (int64 i, bool k, float[1,16,9,9] v) => (bool k2, float[1,16,9,9] w, float[] u)
        { k2 = Identity(k) w = Relu(v) u = ReduceMax<keepdims = 0>(v) }>
"""
_RESIDUAL = f"""{_QX} wd = DequantizeLinear<axis = 0>(w, ws) c = Conv<pads = [1, 1, 1, 1]>(xd, wd, b) y = Add(c, xd)"""


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model that keeps every rule, and the same with one thing broken. also: a rule that it cannot but break too."""

    rule: str
    good: str
    bad: str
    reason: str
    data: str = _IMAGE
    bad_data: str | None = None
    also: str | None = None
    opset: int = 21


_CASES = [
    _Case("plugin-domain", "y = Relu(x)", "y = acme.Relu(x)", "unknown domain 'acme'"),
    _Case("operator", "y = Selu(x)", "y = Det(x)", "Det is not among the operators that it has"),
    _Case(
        "tensor-type",
        "i = Cast<to = 6>(x) y = Cast<to = 1>(i)",
        "i = Cast<to = 5>(x) y = Cast<to = 1>(i)",
        "'i' is int16",
    ),
    _Case("double", "i = Cast<to = 10>(x) y = Relu(i)", "i = Cast<to = 11>(x) y = Relu(i)", "'i' is float64"),
    _Case(
        "uint8-inside",
        "y = Cast<to = 1>(x)",
        "t = Transpose(x) y = Cast<to = 1>(t)",
        "'x' is uint8 outside a Cast",
        data="uint8[1,16,9,9]",
    ),
    _Case(
        "integer-arithmetic",
        "a = MaxPool<kernel_shape = [2, 2]>(x) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)",
        "q = QuantizeLinear(x, s, z) a = MaxPool<kernel_shape = [2, 2]>(q) y = DequantizeLinear(a, s, z)",
        "'q' is int8",
    ),
    _Case("int64-range", "y = Gather<axis = 2>(x, one)", "y = Gather<axis = 2>(x, huge)", f"'huge' holds {2**40}"),
    _Case("zero-point", _CONV, _CONV.replace("z)", "z1)"), "its zero point is 1, must be 0"),
    _Case("unsigned", _CONV, _CONV.replace("z)", "zu)"), "it is of uint8"),
    _Case(
        "unsigned",
        "q = QuantizeLinear<output_dtype = 3>(x, s) y = DequantizeLinear(q, s)",
        "q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)",
        "it is of uint8",
    ),
    _Case(
        "output-type",
        "q = QuantizeLinear<output_dtype = 3>(x, s) y = DequantizeLinear(q, s)",
        "q = QuantizeLinear<output_dtype = 2>(x, s) y = DequantizeLinear(q, s)",
        "output_dtype is 2, may be 0, 3, 17, 19, 22, 23",
        also="unsigned",
    ),
    _Case(
        "unsigned-weight",
        "d = DequantizeLinear(c8, s) y = Add(x, d)",
        "d = DequantizeLinear(cu8, s) y = Add(x, d)",
        "its stored data are uint8",
    ),
    _Case(
        "integer-bias",
        _CONV,
        _CONV.replace(
            "y = Conv(xd, wd, b)", "bd = DequantizeLinear(b32, s) a = Conv(xd, wd) y = Add(a, a) z2 = Abs(bd)"
        ),
        "it is of int32",
    ),
    _Case(
        "fp8-format",
        "q = QuantizeLinear(x, s, z8) d = DequantizeLinear(q, s, z8) y = Relu(d)",
        "q = QuantizeLinear(x, s, z8x) d = DequantizeLinear(q, s, z8x) y = Relu(d)",
        "it is of float8e5m2",
    ),
    _Case(
        "constant-scale",
        _CONV,
        "r = ReduceMax<keepdims = 0>(x) " + _CONV.replace("(x, s, z)", "(x, r, z)").replace("(xq, s, z)", "(xq, r, z)"),
        "its scale 'r' is computed",
    ),
    _Case("positive-scale", _CONV, _CONV.replace("(x, s, z)", "(x, s0, z)"), "its smallest scale is 0"),
    _Case(
        "scale-type",
        "h = Cast<to = 10>(x) q = QuantizeLinear(h, sh, z) d = DequantizeLinear(q, s, z) y = Relu(d)",
        "h = Cast<to = 6>(x) q = QuantizeLinear(h, si, z) d = DequantizeLinear(q, s, z) y = Relu(d)",
        "its scale is int32, may be bfloat16, float16, float32, float8e4m3fn",
    ),
    _Case(
        "activation-scale",
        _CONV,
        _CONV.replace(
            "QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)",
            "QuantizeLinear<axis = 1>(x, s16, z16) xd = DequantizeLinear<axis = 1>(xq, s16, z16)",
        ),
        "the activation 'x' has 16 scales, must have one",
    ),
    _Case(
        "scale-count",
        _MATMUL,
        _MATMUL.replace("(m, ms)", "(m, ms5)"),
        "it has 5 scales for 6 channels along axis 1",
        data=_ROWS,
    ),
    _Case(
        "zero-point-count",
        _CONV.replace("(w, ws)", "(w, ws, z16)"),
        _CONV.replace("(w, ws)", "(w, ws, z3)"),
        "it has 3 zero points for 16 scales",
    ),
    _Case("weight-axis", _CONV, _CONV.replace("axis = 0", "axis = 1"), "its weight has scales along axis 1, must be 0"),
    _Case(
        "weight-axis",
        f"{_QX} wd = DequantizeLinear<axis = 1>(wt, wts) y = ConvTranspose(xd, wd)",
        f"{_QX} wd = DequantizeLinear<axis = 0>(wt, ws) y = ConvTranspose(xd, wd)",
        "its weight has scales along axis 0, must be 1",
    ),
    _Case(
        "weight-axis",
        f"{_QX} wd = DequantizeLinear<axis = 1>(wt, wts) y = ConvTranspose<group = 1>(xd, wd)",
        f"{_QX} wd = DequantizeLinear<axis = 1>(wt, wts) y = ConvTranspose<group = 2>(xd, wd)",
        "its weight has scales along axis 1 in 2 groups, must have one scale",
    ),
    _Case(
        "weight-axis",
        _MATMUL,
        _MATMUL.replace("axis = 1>(m, ms)", "axis = 0>(m, mk)"),
        "its weight has scales along axis 0, must be 1",
        data=_ROWS,
    ),
    _Case(
        "block-type",
        _INT4,
        _INT4.replace("(m4, mb)", "(m, mb)").replace("(x, md)", "(xd, md)").replace("md =", f"{_QX} md ="),
        "int8 is scaled in blocks, only float4e2m1, float8e4m3fn, int4 may be",
        data=_ROWS,
    ),
    _Case(
        "block-axis",
        "d = DequantizeLinear<axis = 1, block_size = 64>(t4, t4b) y = MatMul(x, d)",
        "d = DequantizeLinear<axis = 0, block_size = 64>(t4x, t4s) y = MatMul(x, d)",
        "its blocks lie along axis 0 of 3, must be one of the last two",
        data=_ROWS,
    ),
    _Case(
        "int4-block-size",
        _INT4,
        _INT4.replace("64>(m4, mb)", "32>(m4, mb4)"),
        "its blocks are of 32, may be of 64, 128",
        data=_ROWS,
    ),
    _Case(
        "int4-activation",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, h128)",
        "q = QuantizeLinear(x, s, z4) d = DequantizeLinear(q, s, z4) y = MatMul(d, h128)",
        "an activation is quantized to int4",
        data=_ROWS,
    ),
    _Case(
        "int4-even",
        _INT4,
        _INT4.replace("(m4, mb)", "(m4odd, ms4odd)"),
        "its last axis has 5 entries",
        data=_ROWS,
    ),
    _Case(
        "int4-reader",
        _INT4,
        _INT4.replace("y = MatMul(x, md)", "t = MatMul(x, md) y = Relu(md)"),
        "int4 is read by Relu 'Relu_2'",
        data=_ROWS,
    ),
    _Case(
        "fp8-kernel",
        f"{_FP8} wd = DequantizeLinear(w8f, s, z8) y = Conv(d, wd)",
        f"{_FP8} wd = DequantizeLinear(w8big, s, z8) y = Conv(d, wd)",
        "its kernel has 36 positions, more than 32",
    ),
    _Case(
        "weight-only",
        _MATMUL,
        _MATMUL.replace("MatMul(xd, md)", "MatMul(x, md)"),
        "its weight is int8 and its data are not quantized",
        data=_ROWS,
    ),
    _Case(
        "float-bias",
        _CONV,
        _CONV.replace("y = Conv(xd, wd, b)", "bd = DequantizeLinear(b8, s) y = Conv(xd, wd, bd)"),
        "its bias is dequantized from int8",
    ),
    _Case(
        "residual",
        _RESIDUAL,
        _RESIDUAL.replace("Add(c, xd)", "Add(c, x)"),
        "its other operand 'x' is not quantized",
    ),
    _Case(
        "narrow",
        f"{_QX} wd = DequantizeLinear<axis = 0>(w16, ws) y = Conv<group = 1>(xd, wd)",
        f"{_QX} wd = DequantizeLinear<axis = 0>(wn, wn_s) y = Conv<group = 1>(xd, wd)",
        "it has 8 and 8 channels, out and in, fewer than 16",
        data="float[1,8,9,9]",
    ),
    _Case(
        "float32",
        "h = Cast<to = 10>(x) c = Conv(h, wh) y = Cast<to = 1>(c)",
        "c = Conv(x, wf) y = Cast<to = 1>(c)",
        "it computes in float32",
    ),
    _Case(
        "two-of-four",
        "h = Cast<to = 10>(x) y = Conv(h, w24)",
        "h = Cast<to = 10>(x) y = Conv(h, w42)",
        "50% of its weights are zero, and 50% of the groups of four hold three or more",
    ),
    _Case(
        "constant-attributes",
        "c = Constant<value_float = 1.0>() y = Add(x, c)",
        'c = Constant<value_string = "a">() y = Relu(x)',
        "value_string is set",
    ),
    _Case(
        "training-mode",
        "y = BatchNormalization(x, ones16, ones16, ones16, ones16)",
        "y, m2, v2 = BatchNormalization<training_mode = 1>(x, ones16, ones16, ones16, ones16)",
        "training_mode is 1, may be 0",
    ),
    _Case(
        "dropout",
        "y = Dropout(x, ratio, false)",
        "y = Dropout(x, ratio, true)",
        "input 2 'true' must be constant and false",
    ),
    _Case(
        "pool-rank",
        "y = MaxPool<kernel_shape = [2]>(x)",
        "y = MaxPool<kernel_shape = [2, 2, 2, 2]>(x)",
        "input 0 has rank 6, may be 3, 4, 5",
        data="float[1,16,9]",
        bad_data="float[1,16,9,9,9,9]",
    ),
    _Case(
        "pool-dilations",
        "y = MaxPool<kernel_shape = [2, 2], dilations = [1, 1]>(x)",
        "y = MaxPool<kernel_shape = [2, 2], dilations = [1, 2]>(x)",
        "dilations is 2, may be 1",
    ),
    _Case(
        "pool-ceil-mode",
        _POOL,
        _POOL.replace("<", "<ceil_mode = 1, "),
        "ceil_mode is 1, may be 0",
    ),
    _Case(
        "pool-indices",
        "y = MaxPool<kernel_shape = [2, 2]>(x)",
        "y, i = MaxPool<kernel_shape = [2, 2]>(x)",
        "it declares 2 outputs, only 1 may be",
    ),
    _Case(
        "layer-norm-outputs",
        "y = LayerNormalization<axis = 1>(x, x)",
        "y, mean = LayerNormalization<axis = 1>(x, x) j = Abs(mean)",
        "its output 'mean' is used, only 1 may be",
    ),
    _Case("resize-mode", _RESIZE, _RESIZE.replace("linear", "cubic"), "mode is cubic, may be linear, nearest"),
    _Case(
        "resize-coordinates",
        _RESIZE.replace("<", '<coordinate_transformation_mode = "align_corners", '),
        _RESIZE.replace("<", '<coordinate_transformation_mode = "half_pixel_symmetric", '),
        "coordinate_transformation_mode is half_pixel_symmetric, may be align_corners, asymmetric, half_pixel, "
        "pytorch_half_pixel, tf_half_pixel_for_nn",
    ),
    _Case(
        "resize-half-pixel-rounding",
        _RESIZE.replace("<", '<nearest_mode = "floor", '),
        _RESIZE.replace("<", '<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "floor", '),
        "nearest_mode is floor, may be round_prefer_floor",
    ),
    _Case(
        "resize-half-pixel-rounding",
        _RESIZE.replace("<", '<coordinate_transformation_mode = "tf_half_pixel_for_nn", '),
        _RESIZE.replace("<", '<coordinate_transformation_mode = "tf_half_pixel_for_nn", nearest_mode = "ceil", '),
        "nearest_mode is ceil, may be round_prefer_floor",
    ),
    _Case("resize-policy", _RESIZE, _RESIZE.replace("<", "<antialias = 1, "), "antialias is 1, may be 0"),
    _Case("top-k-sorted", "y, i = TopK(x, k5)", "y, i = TopK<sorted = 0>(x, k5)", "sorted is 0, may be 1"),
    _Case(
        "top-k-size",
        "y, i = TopK(x, k5)",
        "y, i = TopK(x, kbig)",
        "input 1 is 3840, must be less than 3840",
        data="float[1,4000]",
    ),
    _Case(
        "reduce-axes",
        "y = ReduceMean(x, axis2)",
        "n = NonZero(x) f = Reshape(n, minus) y = ReduceMean(x, f)",
        "input 1 'f' is computed, must be constant",
    ),
    _Case(
        "slice-axes",
        "y = Slice(x, one, end, axis2)",
        "n = NonZero(x) f = Reshape(n, minus) y = Slice(x, f, f, f)",
        "input 3 'f' is computed, must be constant",
    ),
    _Case(
        "one-hot-depth",
        "i = Cast<to = 7>(x) y = OneHot(i, depth, onoff)",
        "i = Cast<to = 7>(x) f = Reshape(i, minus) y = OneHot(i, f, onoff)",
        "input 1 'f' is computed, must be constant",
    ),
    _Case(
        "scatter-reduction",
        "y = ScatterND(x, indices, update)",
        'y = ScatterND<reduction = "add">(x, indices, update)',
        "reduction is add, may be none",
    ),
    _Case(
        "eye-shape",
        "f = Flatten(x) y = EyeLike(f)",
        "n = NonZero(x) f = Cast<to = 1>(n) y = EyeLike(f)",
        "the shape of 'f' is open: [4, ?]",
    ),
    _Case(
        "grid-sample-rank",
        "t = Transpose<perm = [0, 2, 3, 1]>(x) g = Slice(t, zero, two, last) y = GridSample(x, g)",
        "y = GridSample(x, grid5)",
        "input 0 has rank 5, may be 4",
        bad_data="float[1,16,4,4,4]",
    ),
    _Case(
        "norm-power",
        "y = LpNormalization<p = 1>(x)",
        "y = LpPool<p = 3, kernel_shape = [2, 2]>(x)",
        "p is 3, may be 1, 2",
    ),
    _Case(
        "lstm-attributes",
        _LSTM,
        _LSTM.replace("<", "<layout = 1, "),
        "layout is 1, may be 0",
        data="float[3,3,9]",
    ),
    _Case(
        "both-directions",
        _LSTM.replace("<", '<activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"], '),
        _LSTM.replace("<", '<activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Relu"], '),
        "its activations are Sigmoid, Tanh, Tanh forward and Sigmoid, Tanh, Relu in reverse",
        data="float[3,3,9]",
    ),
    _Case(
        "if-branches",
        _IF,
        _IF.replace("(float[1,16,9,9] e) { e = Abs(x) }", "(float[1,1296] e) { e = Flatten(x) }"),
        "'t' has rank 4 and 'e' rank 2",
    ),
    _Case(
        "loop",
        _LOOP,
        "n = Size(x) " + _LOOP.replace("Loop(trip", "Loop(n"),
        "it collects outputs, and how often it runs is computed",
    ),
    _Case(
        "suppression-types",
        "r = Relu(boxes) y = NonMaxSuppression(r, scores, k5)",
        "r = Cast<to = 16>(boxes) u = Cast<to = 16>(scores) y = NonMaxSuppression(r, u, k5)",
        "input 0 is bfloat16, may be float16, float32",
    ),
    _Case(
        "suppression-size",
        "y = NonMaxSuppression(boxes, scores, k5)",
        "n = Size(x) y = NonMaxSuppression(boxes, scores, n)",
        "input 2 'n' is computed, must be constant",
    ),
    _Case(
        "open-shape",
        "y = Relu(x)",
        "y = Relu(x)",
        "the shape of the input 'x' is open: [N, 16, 9, 9]",
        bad_data="float[N,16,9,9]",
    ),
]
_CONSTANTS |= {
    "si": np.array(1, np.int32),
    "t4b": np.full((4, 2, 6), 0.01, np.float32),
    "h128": np.ones((128, 4), np.float16).astype(np.float16),
    "minus": np.array([-1], np.int64),
    "grid5": np.zeros((1, 4, 4, 4, 3), np.float32),
    "zero": np.array([0], np.int64),
    "two": np.array([2], np.int64),
    "last": np.array([3], np.int64),
}


def _model(body: str, data: str, opset: int) -> onnx_ir.Model:
    """Return the model of `body`, from x to y, with the constants that it reads, and its types inferred."""
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : {opset}, "acme" : 1]>
        g ({data} x) => (float y) {{ {body} }}
    """)
    for value in {value for node in model.graph.all_nodes() for value in node.inputs if value is not None}:
        if value.name in _CONSTANTS and value.producer() is None:
            tensor = onnx_ir.tensor(_CONSTANTS[value.name], name=value.name)
            value.const_value, value.dtype = tensor, tensor.dtype
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    infer_shapes(model)
    return model


def _found(body: str, data: str, opset: int) -> list[Illegal]:
    return check_model(_model(body, data, opset), load_target("tensorrt").profile)


def _name(case: _Case) -> str:
    return f"{case.rule}: {case.reason}"


@pytest.mark.parametrize("case", _CASES, ids=_name)
def test_a_rule_fires_on_what_it_is_about_and_on_nothing_else(case: _Case) -> None:
    assert [str(each) for each in _found(case.good, case.data, case.opset)] == []
    found = _found(case.bad, case.bad_data or case.data, case.opset)
    assert {each.rule for each in found} == {case.rule, case.also} - {None}, [str(each) for each in found]
    assert any(each.reason.startswith(case.reason) for each in found), [each.reason for each in found]


def test_every_rule_has_a_case_and_a_source() -> None:
    rules = load_target("tensorrt").profile.rules
    assert {case.rule for case in _CASES} == {rule.id for rule in rules}
    assert len(rules) >= 25
    assert all(len(rule.source) > 20 and len(rule.advice) > 10 for rule in rules)


def test_the_opset_range_is_a_rule_too() -> None:
    assert _found("y = Relu(x)", _IMAGE, 24) == []
    found = _found("y = Relu(x)", _IMAGE, 25)
    assert [str(each).split(" [")[0] for each in found] == ["the model: opset 25 lies outside 9 to 24"]


def test_the_ir_version_is_no_rule() -> None:
    """The parser only writes it to its log."""
    model = _model("y = Relu(x)", _IMAGE, 21)
    model.ir_version = 14
    assert check_model(model, load_target("tensorrt").profile) == []


def test_sizes_and_bounds_stay_int64() -> None:
    assert _found("y = Slice(x, one, huge, axis2)", _IMAGE, 21) == []


def test_an_unsigned_activation_runs_and_an_unsigned_weight_does_not() -> None:
    """The parser reads a uint8 zero point as int8; it turns stored uint8 into int32, which nothing dequantizes."""
    (found,) = _found(_CONV.replace("z)", "zu)"), _IMAGE, 21)
    assert (found.rule, found.severity) == ("unsigned", "inexact")
    (found,) = _found("d = DequantizeLinear(cu8, s) y = Add(x, d)", _IMAGE, 21)
    assert (found.rule, found.severity) == ("unsigned-weight", "illegal")
    quantized_here = "q = QuantizeLinear(wf, s, zu) d = DequantizeLinear(q, s, zu) h = Cast<to = 1>(d) y = Conv(x, h)"
    assert "unsigned-weight" not in {found.rule for found in _found(quantized_here, _IMAGE, 21)}


def test_a_name_that_trtexec_would_split_is_quoted() -> None:
    model = _model("y = Relu(x)", "float[N,16,9,9]", 21)
    model.graph.inputs[0].name = "input:0"
    (found,) = check_model(model, load_target("tensorrt").profile)
    assert r"--minShapes=\'input:0\':1x16x9x9 " in found.advice


def test_every_open_input_is_named_once_with_what_to_type() -> None:
    """A second input of a node too, and one that two nodes read; a fixed one and an initializer are not."""
    model = text_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N,3,M] a, float[N,3,1] b, float[2,3,1] c, float[K] d) => (float y)
        <float[4] d = {1.0, 1.0, 1.0, 1.0}> { e = Add(a, b) f = Add(e, a) g = Add(f, c) y = Add(g, d) }
    """)
    model.graph.initializers["d"].shape = onnx_ir.Shape(["K"])
    found = check_model(model, load_target("tensorrt").profile)
    assert [(each.node, each.rule, each.reason) for each in found] == [
        ("", "open-shape", "the shape of the input 'a' is open: [N, 3, M]"),
        ("", "open-shape", "the shape of the input 'b' is open: [N, 3, 1]"),
    ]
    assert {each.advice for each in found} == {
        "Build with trtexec --minShapes=a:1x3x1,b:1x3x1 --optShapes=a:1x3x1,b:1x3x1 --maxShapes=a:1x3x1,b:1x3x1, and "
        "the sizes that you run in place of each 1 of an open axis; or fix the shape in the model."
    }
