"""What cannot be written is said, all of it, with node and reason, before anything is."""

from __future__ import annotations

import importlib
import re

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import InputError, UsageError
from tests.support import Array
from tests.targets.litert.files import body, both, named_graph


def _ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def _refusal(model: onnx_ir.Model) -> str:
    """Return what the writer says against a model."""
    from onnxpress.targets.litert import emit

    with pytest.raises(InputError) as caught:
        emit(model)
    return str(caught.value)


def _one_place(model: onnx_ir.Model, reason: str) -> str:
    """Return the whole message for a model whose output's node alone cannot be written."""
    node = model.graph.outputs[0].producer()
    assert node is not None
    return (
        f"LiteRT cannot run 1 place of this model: node '{node.outputs[0].name}' ({node.op_type}): {reason}. Replace "
        "it, or choose a target that runs ONNX, such as mobile-cpu"
    )


_CASES: dict[str, tuple[str, dict[str, Array], str]] = {
    "operator": ("y = Einsum<equation = \"nchw->nhwc\">(x)", {}, "no LiteRT operator is known for it"),
    "transposed groups": ("y = ConvTranspose<group = 3>(x, w)", {"w": _ones(3, 1, 3, 3)},
                          "group=3: TRANSPOSE_CONV has none"),
    "transposed dilations": ("y = ConvTranspose<dilations = [2, 1]>(x, w)", {"w": _ones(3, 1, 3, 3)},
                             "dilations=[2, 1]: TRANSPOSE_CONV has none"),
    "transposed beyond": ("y = ConvTranspose<strides = [3, 3], output_padding = [1, 0]>(x, w)",
                          {"w": _ones(3, 1, 3, 3)},
                          "its output [16, 21] reaches beyond the positions that its input touches, [15, 21]"),
    "computed weight": ("w = Abs(x) y = Conv(x, w)", {}, "weight 'w' is not constant: node '' (Abs) computes it"),
    "pooling dilations": ("y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)", {},
                          "dilations=[2, 2]: LiteRT's pooling has none"),
    "three operands": ("y = Max(x, x, x)", {}, "it has 3 operands, and only 2 are written"),
    "edge": ('p = Constant<value_ints = [0, 0, 1, 1, 0, 0, 1, 1]>() y = Pad<mode = "edge">(x, p)', {},
             "mode='edge': LiteRT pads with a constant, or reflects"),
    "crop": ("p = Constant<value_ints = [0, 0, -1, 0, 0, 0, 0, 0]>() y = Pad(x, p)", {},
             "it pads by less than nothing, which cuts off: use Slice"),
    "backwards": ("s = Constant<value_ints = [-1]>() e = Constant<value_ints = [-99]>() "
                  "a = Constant<value_ints = [3]>() t = Constant<value_ints = [-1]>() "
                  "y = Slice(x, s, e, a, t)", {}, "it runs backwards"),
    "softmax of rows": ("y = Softmax<axis = 2>(x)", {},
                        "axis=2 of 4: SOFTMAX takes the last axis, or the channels of an image"),
    "cubic": ('y = Resize<mode = "cubic">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)},
              "mode='cubic': LiteRT has nearest and linear"),
    "pixels": ('y = Resize<nearest_mode = "ceil">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)},
               "LiteRT places no pixels as coordinate_transformation_mode='half_pixel' does here"),
    "channels": ("y = Resize(x, , s)", {"s": np.array([1, 2, 1, 1], np.float32)},
                 "it resizes other axes than the rows and columns of an image"),
    "window": ("y = LRN<size = 4>(x)", {}, "size=4 is even: LiteRT's windows have a middle"),
    "elu": ("y = Elu<alpha = 0.5>(x)", {}, "alpha=0.5: that of LiteRT's ELU is 1"),
    "slopes of the batch": ("y = PRelu(x, s)", {"s": _ones(2, 3, 1, 1)}, "its slopes vary along the first axis"),
    "slopes of more axes": ("y = PRelu(x, s)", {"s": _ones(1, 1, 3, 1, 1)},
                            "it has slopes for axes that its data lack"),
    "training": ("t = Constant<value = bool {1}>() y = Dropout(x, r, t)", {"r": _ones() / 2},
                 "it is training (training_mode is true), and drops numbers at random"),
    "policy": ('z = Constant<value_ints = [10, 10]>() y = Resize<axes = [2, 3], keep_aspect_ratio_policy = '
               '"not_larger">(x, , , z)', {}, "keep_aspect_ratio_policy='not_larger': LiteRT stretches"),
    "crop and resize": ('y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s)',
                        {"r": _ones(8), "s": np.array([1, 1, 2, 2], np.float32)},
                        "LiteRT places no pixels as coordinate_transformation_mode='tf_crop_and_resize' does here"),
    "exclude_outside": ("y = Resize<exclude_outside = 1>(x, , s)", {"s": np.array([1, 1, 2, 2], np.float32)},
                        "it weighs pixels as LiteRT does not (antialias, exclude_outside)"),
    "antialias": ('y = Resize<antialias = 1, mode = "linear">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)},
                  "it weighs pixels as LiteRT does not (antialias, exclude_outside)"),
    "fractions": ('y = Resize<axes = [2, 3], mode = "linear">(x, , s)', {"s": np.array([1.5, 1.3], np.float32)},
                  "LiteRT places no pixels as coordinate_transformation_mode='half_pixel' does here"),
    "fractions of old": ('y = Upsample<mode = "linear", scales = [1.0, 1.0, 1.5, 1.3]>(x)', {},
                "LiteRT places no pixels as coordinate_transformation_mode='asymmetric' does here"),
    "slopes": ("a = Abs(x) y = PRelu(x, a)", {}, "its slopes are computed"),
    "pads of many axes": ("a = Constant<value_ints = [0, 1]>() u = Unsqueeze(x, a) p = Constant<value_ints = [0, 0, 0, "
                          "0, 0, 1, 0, 0, 0, 0, 0, 1]>() y = Pad(u, p)", {}, "its data have 6 axes, and PAD takes 5"),
    "many axes": ("a = Constant<value_ints = [0, 1]>() u = Unsqueeze(x, a) "
                  "t = Transpose<perm = [0, 1, 2, 3, 5, 4]>(u) y = MatMul(u, t)", {},
                  "an operand has 6 axes, and BATCH_MATMUL takes 5"),
    "normal deviation": ("y, m = LayerNormalization(x, s) z = Add(y, m)", {"s": _ones(7)},
                         "its mean or its deviation is read"),
    "computed scale": ("s = ReduceMax<axes = [0, 1, 2], keepdims = 0>(x) y = LayerNormalization(x, s)", {},
                       "its parameters are not constant"),
    "vectors": ("v = ReduceMax<axes = [0, 1, 2], keepdims = 0>(x) y = MatMul(x, v)", {},
                "an operand has 1 axis, and BATCH_MATMUL needs 2"),
    "training BatchNormalization": ("y, a, b = BatchNormalization<training_mode = 1>(x, s, s, s, s)", {"s": _ones(3)},
                                    "it is in training mode"),
    "empty": ("s = Constant<value_ints = [2]>() a = Constant<value_ints = [3]>() y = Slice(x, s, s, a)", {},
              "'y' [1, 3, 5, 0] is empty"),
    "alpha": ("f = Flatten(x) y = Gemm<alpha = 2.0>(f, w)", {"w": _ones(105, 4)},
              "alpha=2, needs 1, and only a plain product with a constant weight is written"),
}  # fmt: skip


_OPSETS = {"antialias": 18, "fractions": 18, "policy": 18, "fractions of old": 8}


@pytest.mark.parametrize("name", _CASES)
def test_a_reason_is_given(name: str) -> None:
    nodes, arrays, reason = _CASES[name]
    model = body(nodes, arrays, opset=_OPSETS.get(name, 17))
    assert _refusal(model) == _one_place(model, reason)


_OF_MANY_AXES = {
    "Concat": "y = Concat<axis = -1>(x, x)",
    "LayerNormalization": "y = LayerNormalization(x, s)",
    "MatMul": "y = MatMul(x, w)",
    "ReduceMax": "y = ReduceMax<axes = [-1]>(x)",
    "ReduceMean": "y = ReduceMean<axes = [-1]>(x)",
    "ReduceMin": "y = ReduceMin<axes = [-1]>(x)",
    "ReduceSum": "a = Constant<value_ints = [-1]>() y = ReduceSum(x, a)",
    "Softmax": "y = Softmax(x)",
    "Split": "y, z = Split<axis = -1>(x)",
}


@pytest.mark.parametrize("node", _OF_MANY_AXES.values(), ids=_OF_MANY_AXES)
def test_more_axes_than_xnnpack_takes_are_refused(node: str) -> None:
    arrays = {"s": _ones(4), "w": _ones(4, 5)}
    (expected,), (found,) = both(body(node, arrays, (1, 2, 1, 3, 2, 4)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    seven = body(node, arrays, (1, 2, 1, 3, 2, 1, 4))
    assert _refusal(seven) == _one_place(seven, "its data have 7 axes, and XNNPACK takes 6")


_OLD_SOFTMAXES: dict[str, tuple[str, tuple[int, ...], str]] = {
    "channels of rank 3": ("Softmax<axis = 1>(x)", (1, 3, 1),
                           "axis=1 of 3: SOFTMAX takes the last axis, or the channels of an image"),
    "by default": ("Softmax(x)", (2, 3, 1), "axis=1 of 3: SOFTMAX takes the last axis, or the channels of an image"),
    "rows": ("Softmax<axis = 2>(x)", (1, 3, 5, 1),
             "axis=2 of 4: SOFTMAX takes the last axis, or the channels of an image"),
    "several": ("LogSoftmax<axis = -3>(x)", (1, 3, 5, 1),
                "axis=1 of opset 11 takes 3 axes as one, which SOFTMAX does not"),
}  # fmt: skip


def test_slopes_of_the_first_of_three_axes_are_refused() -> None:
    model = body("y = PRelu(x, s)", {"s": _ones(4, 1, 1)}, (4, 3, 5))
    assert _refusal(model) == _one_place(model, "its slopes vary along the first axis")


@pytest.mark.parametrize("name", _OLD_SOFTMAXES)
def test_softmax_of_other_axes_is_refused_before_opset_13_too(name: str) -> None:
    node, shape, reason = _OLD_SOFTMAXES[name]
    model = body(f"y = {node}", {}, shape, opset=11)
    assert _refusal(model) == _one_place(model, reason)


def test_all_problems_are_listed_at_once() -> None:
    model = body('a = Elu<alpha = 0.5>(x) b = LRN<size = 4>(a) y = Einsum<equation = "nchw->nhwc">(b)')
    assert _refusal(model) == (
        "LiteRT cannot run 3 places of this model: node 'a' (Elu): alpha=0.5: that of LiteRT's ELU is 1; node 'b' "
        "(LRN): size=4 is even: LiteRT's windows have a middle; node 'y' (Einsum): no LiteRT operator is known for "
        "it. Replace them, or choose a target that runs ONNX, such as mobile-cpu"
    )


def test_an_open_batch_is_fixed_and_said() -> None:
    from onnxpress.targets.litert import emit
    from onnxpress.targets.runtimes.litert import LiteRtSession

    model = named_graph("g (float[N,3,5,7] x) => (float[N,3,5,7] y) { y = Relu(x) }", {})
    file = emit(model)
    assert file.report.notes[0] == "input 'x': its open batch N is fixed at 1"
    assert LiteRtSession(file.content).ports["x"].shape == (1, 3, 5, 7)
    assert LiteRtSession(emit(model, batch=4).content).ports["x"].shape == (4, 3, 5, 7)
    assert not isinstance(model.graph.inputs[0].shape[0], int)  # type: ignore[index]


def test_other_open_sizes_are_refused_beside_unknown_operators() -> None:
    model = named_graph("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { r = Relu(x) y = Det(r) }", {})
    text = (
        "input 'x' has the open sizes ['N', '3', 'H', 'W'], and a .tflite file fixes all of them: export the model "
        "with fixed sizes; only the batch may be open"
    )
    assert _refusal(model) == (
        f"LiteRT cannot run 2 places of this model: {text}; node 'y' (Det): no LiteRT operator is known for it. "
        "Replace them, or choose a target that runs ONNX, such as mobile-cpu"
    )
    model = named_graph("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }", {})
    assert _refusal(model) == f"LiteRT cannot run this model: {text}"


def test_an_input_without_a_shape_is_refused() -> None:
    model = named_graph("g (float x) => (float y) { y = Relu(x) }", {})
    model.graph.inputs[0].shape = None
    assert _refusal(model) == (
        "LiteRT cannot run this model: input 'x' has no shape, and LiteRT needs one: export the model with shapes"
    )


_OF_A_CONSTANT = {
    "Relu": "Relu(c)",
    "Exp": "Exp(c)",
    "Softmax": "Softmax(c)",
    "MaxPool": "MaxPool<kernel_shape = [2, 2]>(c)",
    "Pad": "Pad(c, p)",
    "Conv": "Conv(c, w)",
    "GlobalAveragePool": "GlobalAveragePool(c)",
    "LRN": "LRN<size = 3>(c)",
    "PRelu": "PRelu(c, s)",
    "Mul": "Mul(c, c)",
    "Concat": "Concat<axis = 1>(c, c)",
    "Reshape": "Flatten(c)",
    "Split": "Split<axis = 1>(c)",
    "MatMul": "MatMul(c, c)",
    "BatchNormalization": "BatchNormalization(c, v, v, v, v)",
    "ReduceSum": "ReduceSum(c)",
}


@pytest.mark.parametrize("name", _OF_A_CONSTANT)
def test_what_follows_from_constants_is_to_be_folded(name: str) -> None:
    """Nothing makes such data while the file runs."""
    pads = "p = Constant<value_ints = [0, 0, 1, 0, 0, 0, 0, 1]>()"
    outputs = "m, n" if name == "Split" else "m"
    arrays = {"c": _ones(1, 2, 4, 4), "w": _ones(2, 2, 3, 3), "s": _ones(1), "v": _ones(2)}
    model = body(f"{pads} {outputs} = {_OF_A_CONSTANT[name]} a = ReduceMax<keepdims = 0>(m) y = Add(x, a)", arrays)
    node = next(node for node in model.graph if node.outputs[0].name == "m")
    assert _refusal(model) == (
        f"LiteRT cannot run 1 place of this model: node 'm' ({node.op_type}): its data are constant: fold constants "
        "first (pass cleanup). Replace it, or choose a target that runs ONNX, such as mobile-cpu"
    )


def test_an_input_with_a_default_is_refused() -> None:
    model = named_graph("g (float[2,3] x, float[3] b) => (float[2,3] y) { y = Add(x, b) }", {"b": _ones(3)})
    assert model.graph.inputs[1].is_initializer()
    assert _refusal(model) == (
        "LiteRT cannot run this model: input 'b' has a default value, and those of a .tflite file have none: leave it "
        "out of the model's inputs, which makes it a constant, or drop the initializer of that name"
    )


def test_a_quantized_model_is_recognised() -> None:
    model = body("q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) y = Relu(d)", {"s": _ones()})
    assert _refusal(model) == (
        "LiteRT cannot run this model: it is quantized already (2 nodes, the first 'q', QuantizeLinear): give "
        "`compress` the float model, which it quantizes for LiteRT"
    )


def test_outputs_that_no_operator_makes_are_refused() -> None:
    model = named_graph("g (float[2,3] x) => (float[2,3] y, float[1] c) { y = Relu(x) "
                        "c = Constant<value_floats = [1.0]>() }", {})  # fmt: skip
    assert _refusal(model) == (
        "LiteRT cannot run this model: output 'c' is a constant, which no operator makes: leave it out of the outputs"
    )
    assert _refusal(named_graph("g (float[2,3] x) => (float[2,3] x) { }", {})) == (
        "LiteRT cannot run this model: output 'x' is an input, which no operator makes: leave it out of the outputs"
    )


def test_integers_are_refused() -> None:
    model = named_graph("g (int64[2,3] x) => (int64[2,3] y) { y = Abs(x) }", {})
    assert _refusal(model) == _one_place(model, "'x' is INT64, and only FLOAT is written here")


def test_results_of_other_types_are_refused() -> None:
    model = named_graph("g (float[2,3] x) => (float16[2,3] y) { y = Cast<to = 10>(x) }", {})
    assert _refusal(model) == _one_place(model, "'y' is FLOAT16, and only FLOAT or INT32 or INT64 is written here")
    model = named_graph("g (float[2,3] x) => (int64 y) { y = ArgMax<select_last_index = 1>(x) }", {})
    assert _refusal(model) == _one_place(model, "select_last_index=1: ARG_MAX takes the first")


def test_inputs_that_a_file_cannot_take_are_refused() -> None:
    model = named_graph("g (float[2,3] x, double[2,3] unread) => (float[2,3] y) { y = Abs(x) }", {})
    assert _refusal(model) == (
        "LiteRT cannot run this model: input 'unread' is DOUBLE, and a .tflite file takes BOOL, FLOAT, INT32, INT64, "
        "UINT8: cast it outside"
    )


def test_another_domain_is_refused() -> None:
    model = body("y = Relu(x)")
    (node,) = model.graph
    node.domain = "com.example"
    model.opset_imports["com.example"] = 1
    node.outputs[0].shape, node.outputs[0].dtype = onnx_ir.Shape([1, 3, 5, 7]), onnx_ir.DataType.FLOAT
    assert _refusal(model) == _one_place(model, "its domain 'com.example' is not ONNX's own")


def test_a_second_result_that_is_an_output_is_refused() -> None:
    model = named_graph("g (float[1,3,5,7] x) => (float[1,3,4,6] y, int64[1,3,4,6] i) "
                        "{ y, i = MaxPool<kernel_shape = [2, 2]>(x) }", {})  # fmt: skip
    assert _refusal(model) == _one_place(model, "its indices are read")


def test_nodes_that_compute_shapes_fall_away() -> None:
    from onnxpress.targets.litert import emit

    model = body("s = Shape(x) i = Constant<value_ints = [0]>() n = Gather(s, i) m = Constant<value_ints = [-1]>() "
                 "t = Concat<axis = 0>(n, m) y = Reshape(x, t)")  # fmt: skip
    assert dict(emit(model).operators) == {"RESHAPE": 1}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.targets.litert import install

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UsageError, match=re.escape("writing a .tflite file needs flatbuffers, and it is not installed: "
                                                   "pip install 'onnxpress[litert]'")):  # fmt: skip
        install.require_schema()
