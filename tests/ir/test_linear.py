"""The one view of linear operators, held against onnxruntime through a naive reference."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.linear import Linear, as_linear, constant_tensor, linear_ops
from tests.support import run, text_model

Array = npt.NDArray[Any]


def _model(
    op_type: str, data: Sequence[int], weights: Mapping[str, Array], order: Sequence[str], **attributes: Any
) -> onnx_ir.Model:
    """A model of one node `op` that reads `order`: "x" of shape `data` and the named weights."""
    node = onnx.helper.make_node(op_type, list(order), ["y"], name="op", **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, data)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = onnx.helper.make_opsetid("", 17)
    return onnx_ir.from_proto(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8))


def _only(model: onnx_ir.Model) -> Linear:
    (linear,) = linear_ops(model)
    return linear


def _reference(linear: Linear, x: Array) -> Array:
    """Stride 1, no padding: what the view says the operator computes."""
    weight, groups = linear.weight(), linear.groups
    x = np.moveaxis(x, linear.data_axis, 1) if x.ndim > 1 else x[None]
    if not linear.kernel:
        y = np.einsum("oc,nc...->no...", weight, x)
        return np.moveaxis(y, 1, linear.output_axis)
    transposed = linear.node.op_type == "ConvTranspose"
    sign = 1 if transposed else -1
    spatial = [size + sign * (extent - 1) for size, extent in zip(x.shape[2:], linear.kernel, strict=True)]
    y = np.zeros((len(x), linear.out_channels, *spatial))
    outs, ins = linear.out_channels // groups, linear.in_channels // groups
    for group, offset in itertools.product(range(groups), np.ndindex(*linear.kernel)):
        out, into = slice(group * outs, (group + 1) * outs), slice(group * ins, (group + 1) * ins)
        part = weight[(out, slice(None), *offset)]
        extents = x.shape[2:] if transposed else spatial
        window = tuple(slice(at, at + size) for at, size in zip(offset, extents, strict=True))
        if transposed:
            y[(slice(None), out, *window)] += np.einsum("oc,nc...->no...", part, x[:, into])
        else:
            y[:, out] += np.einsum("oc,nc...->no...", part, x[(slice(None), into, *window)])
    return y


def _check_against_runtime(model: onnx_ir.Model, data: Sequence[int]) -> Linear:
    linear = _only(model)
    x = np.random.default_rng(1).standard_normal(data).astype(np.float32)
    expected = run(model, {"x": x})[0]
    y = _reference(linear, x)
    bias = linear.bias()
    if bias is not None:
        y = y + np.expand_dims(bias, tuple(range(1, y.ndim - 1 if linear.output_axis == 1 else 1)))
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)
    stored = constant_tensor(linear.weight_value)
    assert stored is not None
    assert linear.weight().shape == (
        linear.out_channels,
        linear.in_channels // linear.groups,
        *linear.kernel,
    )
    np.testing.assert_array_equal(linear.to_stored(linear.weight()), stored.numpy())
    assert linear.to_stored(linear.weight()).flags.c_contiguous
    assert linear.node.inputs[linear.weight_index] is linear.weight_value
    return linear


@st.composite
def _convolutions(draw: st.DrawFn) -> tuple[str, int, int, int, tuple[int, ...], bool]:
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    groups, outs, ins = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
    return op_type, groups, outs, ins, kernel, draw(st.booleans())


@settings(max_examples=40)
@given(_convolutions())
def test_convolutions_compute_what_the_view_says(
    drawn: tuple[str, int, int, int, tuple[int, ...], bool],
) -> None:
    op_type, groups, outs, ins, kernel, has_bias = drawn
    rng = np.random.default_rng(0)
    shape = (groups * ins, outs) if op_type == "ConvTranspose" else (groups * outs, ins)
    weights = {"w": rng.standard_normal((*shape, *kernel)).astype(np.float32)}
    if has_bias:
        weights["b"] = rng.standard_normal(groups * outs).astype(np.float32)
    data = (2, groups * ins, 5, 7)[: 2 + len(kernel)]
    model = _model(op_type, data, weights, ["x", *weights], group=groups)
    linear = _check_against_runtime(model, data)
    assert (linear.groups, linear.out_channels, linear.in_channels) == (groups, groups * outs, groups * ins)
    assert linear.out_axis == (1 if op_type == "ConvTranspose" else 0)
    assert (linear.data_axis, linear.output_axis, linear.kernel) == (1, 1, kernel)
    assert linear.is_depthwise == (groups > 1 and ins == 1)
    assert (linear.bias_value is not None) == has_bias


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), ()])
def test_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3) if transposed else (3, 4)).astype(np.float32)}
    if bias is not None:
        weights["b"] = rng.standard_normal(bias).astype(np.float32)
    model = _model("Gemm", (2, 3), weights, ["x", *weights], transB=transposed)
    linear = _check_against_runtime(model, (2, 3))
    assert (linear.out_axis, linear.out_channels, linear.in_channels) == (1 - transposed, 4, 3)
    found = linear.bias()
    assert (found is None) == (bias is None)
    assert found is None or found.shape == (4,)


@pytest.mark.parametrize("data", [(3,), (2, 3), (2, 5, 3)])
def test_matmul_weight_on_the_right(data: tuple[int, ...]) -> None:
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    linear = _check_against_runtime(_model("MatMul", data, {"w": w}, ["x", "w"]), data)
    assert (linear.out_axis, linear.out_channels, linear.in_channels, linear.weight_index) == (1, 4, 3, 1)
    assert (linear.data_axis, linear.output_axis) == (-1, -1)


@pytest.mark.parametrize(("data", "axis"), [((3,), -1), ((3, 5), -2), ((2, 3, 5), -2)])
def test_matmul_weight_on_the_left(data: tuple[int, ...], axis: int) -> None:
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model = _model("MatMul", data, {"w": w}, ["w", "x"])
    linear = _only(model)
    x = np.random.default_rng(1).standard_normal(data).astype(np.float32)
    np.testing.assert_allclose(linear.weight() @ x, run(model, {"x": x})[0], rtol=1e-5, atol=1e-5)
    assert (linear.out_axis, linear.out_channels, linear.in_channels, linear.weight_index) == (0, 4, 3, 0)
    assert (linear.data_axis, linear.output_axis) == (axis, axis)
    np.testing.assert_array_equal(linear.to_stored(linear.weight()), w)


def test_other_channel_counts_go_back_to_the_stored_layout() -> None:
    """What pruning does: fewer channels in each group, the groups as before."""
    w = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)  # ConvTranspose [C=2*3, M/g=4, k=5]
    linear = _only(_model("ConvTranspose", (1, 6, 7), {"w": w}, ["x", "w"], group=2))
    pruned = linear.weight().reshape(2, 4, 3, 5)[:, :3, 1:].reshape(6, 2, 5)
    expected = w.reshape(2, 3, 4, 5)[:, 1:, :3].reshape(4, 3, 5)
    np.testing.assert_array_equal(linear.to_stored(pruned), expected)
    np.testing.assert_array_equal(linear.from_stored(expected), pruned)


def test_encoded_weight_is_seen_dense_and_codes_take_the_same_view() -> None:
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    model = _model("MatMul", (2, 3), {"w": w}, ["x", "w"])
    linear = _only(model)
    encoded = Affine.quantize(w, axis=linear.out_axis)
    encode(linear.weight_value, encoded)
    np.testing.assert_array_equal(_only(model).weight(), encoded.dense().T)
    np.testing.assert_array_equal(linear.from_stored(encoded.codes), encoded.codes.T)


def test_the_view_follows_when_constants_are_replaced() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,1] y)
        <float[2,1] w = {1, 2}, float[2,1] v = {3, 4}, float[1] b = {5}> {
            z = Identity(x) y = Gemm(x, w)
        }"""
    )
    linear = _only(model)
    assert linear.bias_value is None and linear.bias() is None
    linear.node.resize_inputs(3)
    for index, value in ((0, model.graph[0].outputs[0]), *enumerate(map(model.graph.initializers.get, "vb"), start=1)):
        linear.node.replace_input_with(index, value)
    assert linear.data.name == "z"
    assert linear.weight().tolist() == [[3, 4]]
    assert linear.bias_value is model.graph.initializers["b"] and linear.bias() == 5


def test_half_precision_weights_keep_their_type() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float16[N,2] x) => (float16[N,1] y)
        <float16[2,1] w = {1, 2}> { y = MatMul(x, w) }"""
    )
    assert _only(model).weight().dtype == np.float16


def test_constant_nodes_count_and_subgraphs_are_visited() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[N,2] x) => (float[N,2] y)
        <float[2,2] outer = {1, 2, 3, 4}> {
            [pick] y = If (c) <
                then_branch = a () => (float[N,2] p) { [then] p = MatMul(x, outer) },
                else_branch = b () => (float[N,2] q) {
                    w = Constant<value = float[2,2] {5, 6, 7, 8}>()
                    [else] q = Gemm(x, w)
                }
            >
        }"""
    )
    assert [linear.node.name for linear in linear_ops(model)] == ["then", "else"]
    assert [linear.weight().tolist() for linear in linear_ops(model)] == [[[1, 3], [2, 4]], [[5, 7], [6, 8]]]
    assert list(linear_ops(model, subgraphs=False)) == []
    assert [linear.node.name for linear in linear_ops(model.graph)] == ["then", "else"]


def test_graph_may_change_while_iterating() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y)
        <float[2,2] w = {1, 2, 3, 4}> { [one] h = MatMul(x, w) [two] y = MatMul(h, w) }"""
    )
    seen = []
    for linear in linear_ops(model):
        seen.append(linear.node.name)
        copy = onnx_ir.node("Identity", [linear.data])
        model.graph.insert_before(linear.node, copy)
        linear.node.replace_input_with(0, copy.outputs[0])
    assert seen == ["one", "two"]


def test_constant_tensor_tells_constants_from_defaults() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2] x, float[2] fixed) => (float[2] y)
        <float[2] fixed = {1, 2}, float[2] w = {3, 4}> {
            k = Constant<value_floats = [5.0, 6.0]>()
            a = Add(fixed, w) b = Add(a, k) y = Add(b, x)
        }"""
    )
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    found = {name: constant_tensor(value) for name, value in values.items()}
    assert {name for name, tensor in found.items() if tensor is not None} == {"w", "k"}
    assert constant_tensor(None) is None


@pytest.mark.parametrize("op", ["Relu(x)", "Add(x, w)", "custom.Conv(x, w)"])
def test_other_operators_have_no_view(op: str) -> None:
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17, "custom": 1]> g (float[1,1] x) => (y)
        <float[1,1] w = {{1}}> {{ y = {op} }}"""
    )
    assert as_linear(model.graph[0]) is None


_WEIGHTS = """float[2,3] w = {1,2,3,4,5,6}, float[2,2,1] k = {1,2,3,4}, float[3,1] wide = {1,2,3},
    float[2] v = {1,2}, float[1,2,2] deep = {1,2,3,4}, float[4] four = {1,2,3,4}, int32[2,2] i = {1,2,3,4},
    float[2,3] given = {1,2,3,4,5,6}, float[0,2] none = {}"""


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("Conv(x, s)", "weight 's' is not constant: node 'sig' (Sigmoid) computes it"),
        ("Conv(x, given)", "weight 'given' is a graph input, which the caller may set"),
        ("Conv(x, x)", "weight 'x' is a graph input, which the caller may set"),
        ("Conv(x, w)", "weight 'w' has rank 2, needs 3 or more"),
        ("Conv<group=3>(x, k)", "weight 'k' [2, 2, 1] does not divide into group=3"),
        ("Conv<group=0>(x, k)", "weight 'k' [2, 2, 1] does not divide into group=0"),
        ("Conv(x, k, s)", "bias 's' is not constant: node 'sig' (Sigmoid) computes it"),
        ("Conv(x, k, four)", "bias 'four' [4] is not one value per output channel (2)"),
        ("ConvTranspose<group=2>(x, k, v)", "bias 'v' [2] is not one value per output channel (4)"),
        ("Conv(x)", "an input is missing"),
        ("Gemm<transA=1>(x, w)", "transA=1: its first input lies transposed"),
        ("Gemm<alpha=0.5>(x, w)", "alpha=0.5, needs 1"),
        ("Gemm<beta=2.0>(x, w, v)", "beta=2, needs 1"),
        ("Gemm(x, s)", "weight 's' is not constant: node 'sig' (Sigmoid) computes it"),
        ("Gemm(x, k)", "weight 'k' has rank 3, needs 2"),
        ("Gemm(x, w, wide)", "bias 'wide' [3, 1] is not one value per output channel (3)"),
        ("MatMul(x, s)", "weight 's' is not constant: node 'sig' (Sigmoid) computes it"),
        ("MatMul(w, w)", "both operands are constant: fold constants first"),
        ("MatMul(x, deep)", "weight 'deep' has rank 3, needs 2"),
        ("MatMul(deep, x)", "weight 'deep' has rank 3, needs 2"),
        ("MatMul(x, v)", "weight 'v' has rank 1, needs 2"),
        ("MatMul(i, x)", "weight 'i' is INT32, needs a floating point type"),
        ("MatMul(none, x)", "weight 'none' [0, 2] is empty"),
        ("MatMul(w, s)", "the rank of 's' is unknown, so its channel axis is too"),
    ],
)
def test_near_misses_say_why(call: str, reason: str) -> None:
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x, float[2,3] given) => (y)
        <{_WEIGHTS}> {{ [sig] s = Sigmoid(x) [op] y = {call} }}"""
    )
    assert as_linear(model.graph[1]) == reason
    assert list(linear_ops(model)) == []


def test_beta_without_a_bias_is_no_obstacle() -> None:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[2,2] x) => (y)
        <float[2,3] w = {1,2,3,4,5,6}> { y = Gemm<beta = 0.0>(x, w) }"""
    )
    assert isinstance(as_linear(model.graph[0]), Linear)
