"""Channels scale across layers without a trace in the outputs, only where that is provable; biases absorb."""

from __future__ import annotations

import math
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
from onnx import TensorProto

from onnxpress.ir.data import open_data
from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.errors import UsageError
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.quantization import Quantization, note
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.quantize.equalize import Equalize
from onnxpress.passes.quantize.scaling_links import Link, find_links
from tests.support import random_feeds, run, run_named

Array = npt.NDArray[Any]


def _weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Array]:
    """Draw weights whose channels differ a hundredfold, on both axes."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape)
        for axis in range(min(2, len(shape))):
            factor = 10 ** rng.uniform(-1, 1, shape[axis])
            array *= factor.reshape([-1 if one == axis else 1 for one in range(len(shape))])
        arrays[name] = array.astype(np.float32)
    return arrays


def _model(
    nodes: str,
    x: str,
    y: str,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    constants: str = "",
    opset: int = 17,
    seed: int = 0,
    arrays: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """A model of `nodes` with float32 weights of `shapes`, drawn or given in `arrays`."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}, "my.ops" : 1]>
        g (float[{x}] x) => (float[{y}] y) <{constants}> {{ {nodes} }}
    """)
    for name, array in (_weights(shapes, seed) | dict(arrays or {})).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


_PAIR = {"v": (6, 3, 3, 3), "b": (6,), "w": (4, 6, 1, 1), "c": (4,)}


def _pair(
    between: str = "r = Relu(a)",
    *,
    constants: str = "",
    opset: int = 17,
    arrays: Mapping[str, Array] | None = None,
) -> onnx.ModelProto:
    """[first] Conv, what is given from `a` to `r`, [second] Conv of 1x1."""
    nodes = f"[first] a = Conv(x, v, b) {between} [second] y = Conv(r, w, c)"
    return _model(nodes, "N,3,5,7", "N,4,H,W", _PAIR, constants=constants, opset=opset, arrays=arrays)


_CHAINS: dict[str, onnx.ModelProto] = {
    "relu": _pair(),
    "nothing between": _pair("r = Identity(a)"),
    "leaky relu": _pair("r = LeakyRelu<alpha=0.3>(a)"),
    "prelu per tensor": _pair("r = PRelu(a, s)", constants="float s = {0.25}"),
    "prelu per channel": _pair(
        "r = PRelu(a, s)", arrays={"s": np.linspace(-1, 1, 6, dtype=np.float32).reshape(6, 1, 1)}
    ),
    "clip below": _pair("r = Clip(a, zero)", constants="float zero = {0}"),
    "clip without bound": _pair(
        "r = Clip(a, zero, top)", constants="float zero = {0}, float top = {3.4028234663852886e38}"
    ),
    "clip by attributes": _pair("r = Clip<min=0.0>(a)", opset=9),
    "max pool": _pair("p = MaxPool<kernel_shape=[2,2], pads=[1,1,0,0]>(a) r = Relu(p)"),
    "average pool": _pair("r = AveragePool<kernel_shape=[2,2], pads=[1,1,0,0], count_include_pad=1>(a)"),
    "global pools": _pair("p = GlobalMaxPool(a) r = GlobalAveragePool(p)"),
    "reduce mean": _pair("r = ReduceMean<axes=[-1,2], keepdims=1>(a)"),
    "reduce mean by input": _pair("r = ReduceMean(a, i)", constants="int64[2] i = {2, 3}", opset=18),
    "no biases": _model(
        "[first] a = Conv(x, v) r = Relu(a) [second] y = Conv(r, w)",
        "N,3,5,7", "N,4,H,W", {"v": (6, 3, 3, 3), "w": (4, 6, 2, 2)},
    ),
    "padded": _model(
        "[first] a = Conv<pads=[1,1,1,1]>(x, v, b) r = Relu(a) "
        "[second] y = Conv<pads=[0,1,2,1], strides=[2,1]>(r, w, c)",
        "N,3,5,7", "N,4,H,W", {"v": (6, 3, 3, 3), "b": (6,), "w": (4, 6, 3, 3), "c": (4,)},
    ),
    "groups": _model(
        "[first] a = Conv<group=2>(x, v, b) r = Relu(a) [second] y = Conv<group=3>(r, w, c)",
        "N,4,5,7", "N,9,H,W", {"v": (6, 2, 3, 3), "b": (6,), "w": (9, 2, 2, 2), "c": (9,)},
    ),
    "depthwise": _model(
        "[first] a = Conv(x, v, b) r = Relu(a) [second] d = Conv<group=6>(r, w, c) e = Relu(d) [third] y = Conv(e, u)",
        "N,3,5,7", "N,5,H,W", {"v": (6, 3, 1, 1), "b": (6,), "w": (12, 1, 3, 3), "c": (12,), "u": (5, 12, 1, 1)},
    ),
    "transposed": _model(
        "[first] a = ConvTranspose<group=2, strides=[2,2]>(x, v, b) r = Relu(a) "
        "[second] y = ConvTranspose<group=3>(r, w, c)",
        "N,4,3,5", "N,6,H,W", {"v": (4, 3, 2, 3), "b": (6,), "w": (6, 2, 2, 2), "c": (6,)},
    ),
    "conv to gemm": _model(
        "[first] a = Conv(x, v, b) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p) "
        "[second] y = Gemm<transB=1>(f, w, c)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (4, 6), "c": (4,)},
    ),
    "conv to gemm by positions": _model(
        "[first] a = Conv(x, v, b) f = Flatten(a) r = Relu(f) [second] y = Gemm(r, w, c)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (90, 4), "c": (4,)},
    ),
    "conv to matmul by reshape": _model(
        "[first] a = Conv(x, v, b) r = Relu(a) f = Reshape(r, s) [second] y = MatMul(f, w)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (90, 4)}, constants="int64[2] s = {0, -1}",
    ),
    "conv to matmul by a full reshape": _model(
        "[first] a = Conv(x, v, b) r = Relu(a) f = Reshape(r, s) [second] y = MatMul(f, w)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (90, 4)}, constants="int64[2] s = {-1, 90}",
    ),
    "conv to gemm by mean": _model(
        "[first] a = Conv(x, v, b) r = Relu(a) f = ReduceMean<axes=[2,3], keepdims=0>(r) [second] y = Gemm(f, w)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (6, 4)},
    ),
    "conv to gemm by squeeze": _model(
        "[first] a = Conv(x, v, b) p = GlobalMaxPool(a) f = Squeeze(p, i) [second] y = Gemm(f, w)",
        "N,3,5,7", "N,4", {"v": (6, 3, 3, 3), "b": (6,), "w": (6, 4)}, constants="int64[2] i = {2, 3}",
    ),
    "gemms": _model(
        "[first] a = Gemm(x, v, b) r = Relu(a) [second] d = Gemm<transB=1>(r, w, c) e = Relu(d) [third] y = Gemm(e, u)",
        "N,5", "N,3", {"v": (5, 7), "b": (7,), "w": (6, 7), "c": (6,), "u": (6, 3)},
    ),
    "gemm with one bias for all": _model(
        "[first] a = Gemm(x, v, b) r = Relu(a) [second] y = Gemm(r, w)",
        "N,5", "N,3", {"v": (5, 7), "b": (1,), "w": (7, 3)},
    ),
    "matmuls of rank 3": _model(
        "[first] a = MatMul(x, v) r = Relu(a) [second] y = MatMul(r, w)",
        "N,2,5", "N,2,3", {"v": (5, 7), "w": (7, 3)},
    ),
    "matmuls from the left": _model(
        "[first] a = MatMul(v, x) r = Relu(a) [second] y = MatMul(w, r)",
        "N,5,2", "N,3,2", {"v": (7, 5), "w": (3, 7)},
    ),
}  # fmt: skip


def _equalize(proto: onnx.ModelProto, **options: Any) -> tuple[onnx_ir.Model, onnx_ir.Model, Rewrites]:
    """Run the pass, and check what holds for all of them. Returns before, after and the record."""
    before = load(proto)
    after = before.clone()
    rewrites = Equalize(**options).run(after, Context())
    verify(after)
    assert interface(after) == interface(before)
    assert rewrites.modified or to_proto_bytes(after) == to_proto_bytes(before)
    return before, after, rewrites


def _assert_equal_outputs(before: onnx_ir.Model, after: onnx_ir.Model) -> None:
    feeds = random_feeds(before)
    for expected, actual in zip(run(before, feeds), run(after, feeds), strict=True):
        error = np.abs(actual - expected).max()
        assert error <= 2e-6 * np.abs(expected).max()


def _stored(model: onnx_ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def _ranges(model: onnx_ir.Model) -> list[tuple[Array, Array]]:
    """Per link: the largest weight behind each channel of the first, and in front of it in the second."""
    found = []
    for link in find_links(model):
        if isinstance(link, Link):
            writing = np.abs(link.first.weight()).reshape(link.channels, -1).max(axis=1)
            found.append((writing, _reading(link.second).reshape(link.channels, -1).max(axis=1)))
    return found


def _reading(linear: Linear) -> Array:
    weight = np.abs(linear.weight())
    grouped = weight.reshape(linear.groups, -1, weight.shape[1], *weight.shape[2:])
    largest: Array = grouped.max(axis=(1, *range(3, grouped.ndim))).ravel()
    return largest


@pytest.mark.parametrize("name", _CHAINS)
def test_channels_scale_and_the_function_stays(name: str) -> None:
    before, after, rewrites = _equalize(_CHAINS[name], iterations=500, threshold=1e-4)
    assert len(rewrites.sites) == len(list(linear_ops(before))) - 1
    _assert_equal_outputs(before, after)
    for writing, reading in _ranges(after):
        np.testing.assert_allclose(writing, reading, rtol=1e-3)
    assert not Equalize(iterations=500, threshold=1e-3).run(after, Context()).modified


def test_one_pair_gets_the_scale_of_equation_11() -> None:
    v = np.array([[1, 8, 0.5]], np.float32)  # r1 = 1, 8, 0.5
    w = np.array([[4.1234567, 2.0345678, 8.0456789]], np.float32)  # r2, off the int8 grid
    nodes = "[first] a = Gemm(x, v, b) r = Relu(a) [second] y = Gemm<transB=1>(r, w)"
    b = np.array([1, 2, 4], np.float32)
    proto = _model(nodes, "N,1", "N,1", {}, arrays={"v": v, "w": w, "b": b})
    _, after, rewrites = _equalize(proto, iterations=1)
    scale = np.sqrt(v[0] / w[0])
    for name, expected in (("v", v / scale), ("b", b / scale), ("w", w * scale)):
        np.testing.assert_allclose(_stored(after, name), expected, rtol=1e-6)
    detail = "with Gemm 'second': channels were 16x apart, now 2.01x"
    assert [(site.name, site.kind, site.detail) for site in rewrites.sites] == [("first", "Gemm", detail)]
    assert [(one.name, one.reason) for one in rewrites.declined] == [("second", "'y' is a graph output")]


@pytest.mark.parametrize("dead", ["not written", "not read", "nearly"])
def test_dead_channels_take_the_middle_scale_of_the_others(dead: str) -> None:
    arrays = _weights(_PAIR)
    if dead == "not read":
        arrays["w"][:, 4] = 0
    else:
        arrays["v"][4] *= 1e-12 if dead == "nearly" else 0
    before, after, _ = _equalize(_pair(arrays=arrays))
    _assert_equal_outputs(before, after)
    scale = arrays["b"] / _stored(after, "b")
    others = np.delete(scale, 4)
    np.testing.assert_allclose(np.log(scale[4]), np.median(np.log(others)), rtol=1e-3)
    assert not Equalize().run(after, Context()).modified


def test_pairs_of_dead_layers_stay() -> None:
    arrays = _weights(_PAIR)
    arrays["w"] *= 0
    assert not _equalize(_pair(arrays=arrays))[2].modified


def test_a_shared_bias_is_copied() -> None:
    proto = _model(
        "[first] a = Conv(x, v, b) r = Relu(a) [second] y = Conv(r, w, b)",
        "N,3,5,7",
        "N,6,H,W",
        {"v": (6, 3, 3, 3), "b": (6,), "w": (6, 6, 1, 1)},
    )
    before, after, _ = _equalize(proto)
    assert sorted(after.graph.initializers) == ["b", "b_first", "v", "w"]
    _assert_equal_outputs(before, after)


def test_pairs_in_branches_are_equalized() -> None:
    weights = {"v": (6, 3, 3, 3), "w": (4, 6, 1, 1)}
    proto = _model(
        """
        k = ReduceMax<keepdims=0>(x) z = Constant<value_float = 0.0>() c = Greater(k, z)
        y = If(c) <
            then_branch = yes () => (float[N,4,H,W] t) { a = Conv(x, v) r = Relu(a) t = Conv(r, w) },
            else_branch = no () => (float[N,4,H,W] e) { p = MaxPool<kernel_shape=[3,3]>(x) e = Conv(p, u) }
        >
        """,
        "N,3,5,7",
        "N,4,H,W",
        weights | {"u": (4, 3, 1, 1)},
    )
    before, after, rewrites = _equalize(proto)
    assert len(rewrites.sites) == 1
    _assert_equal_outputs(before, after)


def test_more_iterations_come_closer() -> None:
    def apart(iterations: int) -> float:
        _, after, _ = _equalize(_CHAINS["gemms"], iterations=iterations, threshold=1e-6)
        return max(float(np.abs(np.log(writing / reading)).max()) for writing, reading in _ranges(after))

    assert apart(1) > apart(3) > apart(30)


# Near misses: each breaks one clause alone.


@pytest.mark.parametrize(
    ("between", "constants", "reason"),
    [
        ("r = Sigmoid(a)", "", "Sigmoid 'n' is not positively homogeneous, or mixes channels"),
        ("r = Softmax<axis=1>(a)", "", "Softmax 'n' is not positively homogeneous, or mixes channels"),
        ("r = Add(a, k)", "float k = {1}", "Add 'n' is not positively homogeneous, or mixes channels"),
        (
            "r = Clip(a, k, t)",
            "float k = {0}, float t = {6}",
            "Clip 'n' bounds at 6, which scaling would move",
        ),
        ("r = Clip(a, k)", "float k = {-1}", "Clip 'n' bounds at -1, which scaling would move"),
        ("r = ReduceMean<axes=[1]>(a)", "", "ReduceMean 'n' is not known to reduce positions alone"),
        ("r = ReduceMean<axes=[0,2]>(a)", "", "ReduceMean 'n' is not known to reduce positions alone"),
    ],
)
def test_what_stands_between_parts_them(between: str, constants: str, reason: str) -> None:
    width = 1 if "axes=[1]" in between else 6
    proto = _pair(f"[n] {between}", constants=constants, arrays=_weights({"w": (4, width, 1, 1)}))
    _, _, rewrites = _equalize(proto)
    assert not rewrites.modified
    assert (rewrites.declined[0].name, rewrites.declined[0].reason) == ("first", reason)


@pytest.mark.parametrize(
    ("nodes", "y", "constants", "reason"),
    [
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [second] d = Conv(r, w, c) [third] e = Conv(r, w2) y = Add(d, e)",
            "N,4,H,W",
            "",
            "'r' has 2 uses, needs 1",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r = PRelu(x4, a) y = Relu(r)",
            "N,6,H,W",
            "float x4 = {2}",
            "PRelu 'n' reads 'a' as a parameter",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r, i = MaxPool<kernel_shape=[2,2]>(a) k = Cast<to=1>(i) y = Add(r, k)",
            "N,6,H,W",
            "",
            "MaxPool 'n' has more than one output",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r = Flatten<axis=2>(a) y = Relu(r)",
            "A,B",
            "",
            "Flatten 'n' works along another axis than the channels",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r = Reshape(a, s) y = Relu(r)",
            "A,B",
            "int64[2] s = {-1, 15}",
            "Reshape 'n' is not known to lay out each channel by itself",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r = Squeeze(a) y = Relu(r)",
            "N,6,H,W",
            "",
            "Squeeze 'n' is not known to keep the channels where they are",
        ),
        (
            "[first] a = Conv(x, v, b) [n] r = my.ops.Relu(a) y = Relu(r)",
            "N,6,H,W",
            "",
            "Relu 'n' is not positively homogeneous, or mixes channels",
        ),
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [second] y = MatMul(r, m)",
            "N,6,H,W",
            "",
            "MatMul 'second' reads channels along another axis of 'r'",
        ),
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [second] y = Gemm<alpha=2.0>(r, m)",
            "N,6",
            "",
            "Gemm 'second': alpha=2, needs 1",
        ),
    ],
)
def test_the_way_must_be_proven(nodes: str, y: str, constants: str, reason: str) -> None:
    shapes = _PAIR | {"w2": (4, 6, 1, 1), "m": (5, 4)}
    proto = _model(nodes, "N,3,5,7", y, shapes, constants=constants)
    for name in list(shapes):
        if f"{name})" not in nodes and f"{name}," not in nodes:
            kept = [one for one in proto.graph.initializer if one.name != name]
            del proto.graph.initializer[:]
            proto.graph.initializer.extend(kept)
    found = next(iter(find_links(onnx_ir.from_proto(proto))))
    assert getattr(found, "reason", None) == reason


@pytest.mark.parametrize(
    ("nodes", "y", "annotations", "reason"),
    [
        (
            "[first] a = Conv(u, v, b) [n] r = Reshape(a, s) [second] y = Gemm(r, m)",
            "N,4",
            "float[2,6,3,5] a, int64[2] s = {2, 90}",
            "Reshape 'n' is not known to lay out each channel by itself",
        ),
        (
            "[first] a = Conv(u, v, b) [n] r = ReduceMean<axes=[-1,-2]>(a) [second] y = Conv(r, w)",
            "N,4,1,1",
            "float[N,6,3,5] a",
            "ReduceMean 'n' is not known to reduce positions alone",
        ),
        (
            "[first] a = MatMul(u, p) [n] r = Flatten(a) [second] y = Gemm(r, q)",
            "N,4",
            "float[N,6] a",
            "Flatten 'n' works along another axis than the channels",
        ),
    ],
)
def test_annotations_of_the_file_prove_no_way(nodes: str, y: str, annotations: str, reason: str) -> None:
    """What a custom operator gives has the shape that the file says, or another."""
    shapes = {"v": (6, 3, 3, 3), "b": (6,), "w": (4, 6, 1, 1), "m": (90, 4), "p": (3, 6), "q": (6, 4)}
    used = {name: shape for name, shape in shapes.items() if f", {name}" in nodes}
    x = "N,3" if "MatMul" in nodes else "N,3,5,7"
    proto = _model(f"u = my.ops.Unheard(x) {nodes}", x, y, used, constants=f"{annotations}, float[{x}] u")
    found = next(iter(find_links(load(proto))))
    assert getattr(found, "reason", None) == reason
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Identity", ""
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert isinstance(next(iter(find_links(load(proto)))), Link)


def test_a_graph_output_parts_them() -> None:
    proto = _pair()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 6, 3, 5]))
    _, _, rewrites = _equalize(proto)
    assert [one.reason for one in rewrites.declined] == ["'r' is a graph output", "'y' is a graph output"]


def test_a_bound_that_a_caller_sets_parts_them() -> None:
    proto = _pair("[n] r = Clip(a, k)", constants="float k = {0}")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("k", TensorProto.FLOAT, []))
    _, _, rewrites = _equalize(proto)
    assert rewrites.declined[0].reason == "Clip 'n' has a bound that is not constant"


def test_a_body_of_another_node_parts_them() -> None:
    proto = _model(
        """
        [first] a = Conv(x, v) k = ReduceMax<keepdims=0>(x) z = Constant<value_float = 0.0>() c = Greater(k, z)
        y = If(c) <
            then_branch = yes () => (float[N,4,H,W] t) { t = Conv(a, w) },
            else_branch = no () => (float[N,4,H,W] e) { e = Conv(x, u) }
        >
        """,
        "N,3,5,7",
        "N,4,H,W",
        {"v": (6, 3, 1, 1), "w": (4, 6, 1, 1), "u": (4, 3, 1, 1)},
    )
    _, _, rewrites = _equalize(proto)
    assert rewrites.declined[0].reason == "'a' is read in a body of another node"


def test_a_noted_value_parts_them() -> None:
    model = load(_pair())
    note(model.graph[1].outputs[0], Quantization(0.0, 1.0))
    rewrites = Equalize().run(model, Context())
    assert rewrites.declined[0].reason == "'r' carries a quantization note: equalize before quantizing"


def test_shared_weights_part_them() -> None:
    proto = _model(
        "[first] a = Gemm(x, v) r = Relu(a) [second] s = Gemm(r, v) y = Relu(s)", "N,5", "N,5", {"v": (5, 5)}
    )
    _, _, rewrites = _equalize(proto)
    assert [one.reason for one in rewrites.declined] == ["weight 'v' is shared"] * 2


def test_a_shared_second_weight_parts_them() -> None:
    nodes = "[first] a = Gemm(x, v) r = Relu(a) [second] s = Gemm(r, w) o = Neg(w) y = MatMul(s, o)"
    _, _, rewrites = _equalize(_model(nodes, "N,5", "N,5", {"v": (5, 5), "w": (5, 5)}))
    assert rewrites.declined[0].reason == "Gemm 'second': weight 'w' is shared"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("v", "weight 'v' is encoded"),
        ("b", "bias 'b' is encoded"),
        ("w", "Conv 'second': weight 'w' is encoded"),
    ],
)
def test_encoded_weights_part_them(name: str, reason: str) -> None:
    model = load(_pair())
    encode(model.graph.initializers[name], Affine.quantize(_weights(_PAIR)[name], axis=0))
    rewrites = Equalize().run(model, Context())
    assert not rewrites.modified
    assert rewrites.declined[0].reason == reason


def test_a_weight_on_an_int8_grid_is_not_scaled_by_columns() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (4, 6, 1, 1))
    codes[:, 0] = 127
    proto = _pair(arrays={"w": (codes * 0.01).astype(np.float32)})
    _, _, rewrites = _equalize(proto)
    reason = "Conv 'second': its weight lies on an int8 grid, which scaled columns would leave"
    assert rewrites.declined[0].reason == reason


def test_a_depthwise_weight_on_an_int8_grid_may_scale() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (6, 1, 3, 3))
    nodes = "[first] a = Conv(x, v, b) r = Relu(a) [second] y = Conv<group=6>(r, w)"
    shapes = {"v": (6, 3, 1, 1), "b": (6,)}
    proto = _model(nodes, "N,3,5,7", "N,6,H,W", shapes, arrays={"w": (codes * 0.01).astype(np.float32)})
    assert _equalize(proto)[2].modified


def test_float16_parts_them() -> None:
    model = load(_pair())
    value = model.graph.initializers["v"]
    value.const_value = onnx_ir.tensor(_weights(_PAIR)["v"].astype(np.float16), name="v")
    found = next(iter(find_links(model)))
    reason = "weight 'v' is FLOAT16, whose range is too small to scale in"
    assert getattr(found, "reason", None) == reason


def test_other_channels_part_them() -> None:
    model = load(_pair())
    for node in model.graph:  # a contradiction that no valid model holds
        linear = as_linear(node)
        if isinstance(linear, Linear) and node.name == "second":
            linear.weight_value.const_value = onnx_ir.tensor(_weights({"w": (4, 12, 1, 1)})["w"], name="w")
    found = next(iter(find_links(model)))
    assert getattr(found, "reason", None) == "Conv 'second' reads 12 channels where 6 are written"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ["first"]}, "excluded by 'first'"),
        ({"exclude": ["sec*"]}, "excluded by 'sec*'"),
        ({"include": ["first"]}, "not in include"),
    ],
)
def test_both_must_be_selected(options: dict[str, list[str]], reason: str) -> None:
    _, _, rewrites = _equalize(_pair(), **options)
    assert not rewrites.modified
    assert (rewrites.declined[0].name, rewrites.declined[0].reason) == ("first", reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "equalize: option iterations=0: input should be greater than or equal to 1"),
        ({"threshold": 0}, "equalize: option threshold=0: input should be greater than 0"),
    ],
)
def test_bad_options_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Equalize(**options)
    assert str(caught.value) == message


# Any chain.


@st.composite
def _chains(draw: st.DrawFn) -> onnx.ModelProto:
    """Two to four layers, with what scales in between; a Gemm at the end, or not."""
    between = ["", "Relu", "LeakyRelu<alpha=0.2>", "MaxPool<kernel_shape=[2,2]>", "AveragePool<kernel_shape=[2,2]>"]
    channels, size, last = draw(st.integers(1, 4)), 12, "x"
    shapes: dict[str, tuple[int, ...]] = {}
    nodes, inputs = [], f"N,{channels},12,12"
    for index in range(draw(st.integers(2, 4))):
        kind = draw(st.sampled_from(["Conv", "grouped", "depthwise", "ConvTranspose"]))
        kernel = draw(st.integers(1, 2))
        outputs = draw(st.integers(1, 5))
        groups = 1
        if kind == "depthwise":
            groups, outputs = channels, channels * draw(st.integers(1, 2))
        elif kind == "grouped" and channels % 2 == 0:
            groups, outputs = 2, outputs * 2
        op_type = "ConvTranspose" if kind == "ConvTranspose" else "Conv"
        weight = (channels, outputs) if op_type == "ConvTranspose" else (outputs, channels // groups)
        shapes[f"w{index}"] = (*weight, kernel, kernel)
        size += (kernel - 1) * (1 if op_type == "ConvTranspose" else -1)
        bias = ""
        if draw(st.booleans()):
            shapes[f"b{index}"], bias = (outputs,), f", b{index}"
        nodes.append(f"a{index} = {op_type}<group={groups}>({last}, w{index}{bias})")
        channels, last = outputs, f"a{index}"
        step = draw(st.sampled_from(between))
        if step:
            nodes.append(f"r{index} = {step}({last})")
            last, size = f"r{index}", size - ("Pool" in step)
    if draw(st.booleans()):
        pool = draw(st.booleans())
        nodes.append(f"p = {'GlobalAveragePool' if pool else 'Relu'}({last}) f = Flatten(p) y = Gemm(f, wg)")
        shapes["wg"] = (channels * (1 if pool else size * size), 3)
        return _model(" ".join(nodes), inputs, "N,3", shapes, seed=draw(st.integers(0, 99)))
    nodes.append(f"y = Neg({last})")
    return _model(" ".join(nodes), inputs, "N,C,H,W", shapes, seed=draw(st.integers(0, 99)))


@given(_chains())
@settings(max_examples=50)
def test_any_chain_keeps_its_function_and_converges(proto: onnx.ModelProto) -> None:
    before, after, rewrites = _equalize(proto, iterations=2000, threshold=1e-4)
    feeds = random_feeds(before)
    expected, actual = run(before, feeds)[0], run(after, feeds)[0]
    largest = _largest_term(before, feeds)
    assert np.abs(actual - expected).max() <= 1e-5 * largest
    assert len(rewrites.sites) + len(rewrites.declined) >= len(list(linear_ops(before)))
    for writing, reading in _ranges(after):
        alive = (writing > 0) & (reading > 0)
        assert np.all(np.abs(np.log(writing[alive] / reading[alive])) < 0.01)
    assert not Equalize(threshold=0.01).run(after, Context()).modified


def _largest_term(model: onnx_ir.Model, feeds: Mapping[str, Array]) -> float:
    """The largest sum of magnitudes behind an output: what rounding errors are proportional to."""
    absolute = model.clone()
    for value in absolute.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype.is_floating_point():
            value.const_value = onnx_ir.tensor(np.abs(value.const_value.numpy()), name=value.name)
    return float(np.abs(run(absolute, {name: np.abs(array) for name, array in feeds.items()})[0]).max())


# Absorption.


def _absorb(proto: onnx.ModelProto, x: Array, *, scale: bool = False) -> tuple[onnx_ir.Model, onnx_ir.Model, Rewrites]:
    """Absorb; `scale` channels too, or absorb alone."""
    before = load(proto)
    after = before.clone()
    context = Context(data=open_data({"x": x}, model=before))
    rewrites = Equalize(absorb=True, threshold=0.01 if scale else 1e6).run(after, context)
    verify(after)
    return before, after, rewrites


def _high_bias(seed: int = 0) -> onnx.ModelProto:
    """A pair whose first three channels have biases far above what the weights add."""
    drawn = _weights(_PAIR, seed)
    drawn["b"] = np.array([60, 45, 30, 0.5, -2, 0], np.float32)
    drawn["v"] = np.random.default_rng(seed).standard_normal((6, 3, 3, 3)).astype(np.float32)
    return _pair(arrays=drawn)


def test_absorption_keeps_the_function_where_no_sample_is_cut() -> None:
    x = np.random.default_rng(1).standard_normal((40, 3, 5, 7)).astype(np.float32)
    before, after, rewrites = _absorb(_high_bias(), x)
    assert [(site.name, site.kind, site.detail) for site in rewrites.sites] == [
        ("first", "Conv", "bias of 3 of 6 channels absorbed by Conv 'second'")
    ]
    value = run_named(_shown(before, "a"), {"x": x})["a"]
    mean, deviation = value.mean(axis=(0, 2, 3)), value.std(axis=(0, 2, 3))
    constant = np.where(np.arange(6) < 3, mean - 3 * deviation, 0)
    np.testing.assert_allclose(_stored(before, "b") - _stored(after, "b"), constant, rtol=1e-4)
    lift = np.maximum(constant.reshape(6, 1, 1) - np.maximum(value, 0), 0)
    error = rewrites.sites[0].error
    signal = np.square(np.maximum(value, 0), dtype=np.float64).sum()
    assert math.isclose(error["sqnr_db"], 10 * math.log10(signal / np.square(lift).sum()), rel_tol=1e-3)
    assert math.isclose(error["below_percent"], 100 * np.count_nonzero(lift) / lift.size, rel_tol=1e-6)
    calm = 0.5 * x[:5]
    expected, actual = run(before, {"x": calm})[0], run(after, {"x": calm})[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def _shown(model: onnx_ir.Model, name: str) -> onnx.ModelProto:
    proto = onnx_ir.to_proto(model)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, 3, 5]))
    return proto


def test_absorbing_again_finds_nothing() -> None:
    x = np.random.default_rng(1).standard_normal((40, 3, 5, 7)).astype(np.float32)
    _, after, _ = _absorb(_high_bias(), x)
    context = Context(data=open_data({"x": x}, model=after))
    rewrites = Equalize(absorb=True, threshold=1e6).run(after, context)
    assert not rewrites.modified
    reason = "no bias absorbed: no channel's mean lies 3 deviations above 0"
    assert rewrites.declined[-1].reason == reason


def test_absorption_measures_what_it_costs() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 3, 5, 7)).astype(np.float32) ** 3  # heavy tails: some samples fall below c
    before, after, rewrites = _absorb(_high_bias(), x)
    error = rewrites.sites[0].error
    assert 20 < error["sqnr_db"] < 80
    assert 0 < error["below_percent"] < 2
    expected, actual = run(before, {"x": x})[0], run(after, {"x": x})[0]
    assert np.abs(actual - expected).max() > 0
    absorbed = (_stored(before, "b") - _stored(after, "b")).reshape(6, 1, 1)
    kept, moved = (run_named(_shown(model, "r"), {"x": x})["r"].astype(np.float64) for model in (before, after))
    noise = np.square(moved + absorbed - kept).sum()
    assert math.isclose(error["sqnr_db"], 10 * math.log10(np.square(kept).sum() / noise), abs_tol=0.01)


def _as_constant_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Hold every weight in a Constant node, as some exporters do."""
    held = [onnx.helper.make_node("Constant", [], [one.name], value=one) for one in proto.graph.initializer]
    nodes = [*held, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _chain(biases: Sequence[str | None], *, seed: int = 0, kernel: int = 1) -> onnx.ModelProto:
    """Convs of 4 channels with a Relu between any two; `biases` names theirs, None for no bias.

    All weights but the last layer's are positive, so that means stay high from layer to layer.
    """
    rng = np.random.default_rng(seed)
    nodes, arrays, value = [], {}, "x"
    for index, bias in enumerate(biases):
        last = index == len(biases) - 1
        output = "y" if last else f"a{index}"
        nodes.append(f"[conv{index}] {output} = Conv({value}, w{index}{', ' + bias if bias else ''})")
        if not last:
            nodes.append(f"r{index} = Relu({output})")
        weight = rng.standard_normal((4, 3 if index == 0 else 4, kernel, 1)) * 0.3
        arrays[f"w{index}"] = (weight if last else np.abs(weight) + 0.05).astype(np.float32)
        value = f"r{index}"
        if bias:
            arrays[bias] = rng.uniform(3, 6, 4).astype(np.float32)
    return _model(" ".join(nodes), "N,3,5,7", "N,4,H,W", {}, arrays=arrays)


def _assert_costs_what_is_recorded(proto: onnx.ModelProto, x: Array) -> Rewrites:
    """Hold the outputs' difference against the recorded errors.

    Relu and max(., c) move nothing apart, so the error of a layer is at most the norm of its weight (the sum over
    taps of spectral norms) times the error coming in, and what its own absorption adds.
    """
    before, after, rewrites = _absorb(proto, x)
    recorded = {site.name: site.error["sqnr_db"] for site in rewrites.sites if site.error}
    allowed = 0.0
    convs = [linear for linear in linear_ops(before) if linear.node.op_type == "Conv"]
    shown = onnx_ir.to_proto(before)
    shown.graph.output.extend(onnx.ValueInfoProto(name=str(linear.output.name)) for linear in convs[:-1])
    values = run_named(shown, {"x": x})
    for linear in convs:
        taps = linear.weight().reshape(linear.out_channels, linear.in_channels, -1)
        allowed *= float(np.linalg.norm(np.moveaxis(taps, 2, 0), ord=2, axis=(1, 2)).sum())
        if linear.node.name in recorded:
            signal = np.linalg.norm(np.maximum(values[str(linear.output.name)].astype(np.float64), 0))
            allowed += float(signal) * 10 ** (-recorded[linear.node.name] / 20)
    expected, actual = values["y"].astype(np.float64), run(after, {"x": x})[0]
    assert np.linalg.norm(actual - expected) <= 1.001 * allowed + 1e-5 * np.linalg.norm(expected)
    return rewrites


@pytest.mark.parametrize(
    ("proto", "absorbed"),
    [
        (_chain(["b0", None, None]), ["conv0", "conv1"]),
        (_as_constant_nodes(_chain(["b0", "b1", "b2"])), ["conv0", "conv1"]),
        (_as_constant_nodes(_chain(["b0", None])), ["conv0"]),
        (_chain(["b", "b", "b"]), ["conv0", "conv1"]),
    ],
    ids=["a middle layer without bias", "Constant nodes", "Constant nodes, no second bias", "one bias for all"],
)
def test_absorption_through_a_chain_costs_what_is_recorded(proto: onnx.ModelProto, absorbed: list[str]) -> None:
    x = np.random.default_rng(1).random((40, 3, 5, 7)).astype(np.float32)
    rewrites = _assert_costs_what_is_recorded(proto, x)
    assert [(site.name, site.error) for site in rewrites.sites] == [
        (name, {"sqnr_db": math.inf, "below_percent": 0.0}) for name in absorbed
    ]
    before, after, rewrites = _absorb(proto, x, scale=True)
    assert [site.name for site in rewrites.sites if not site.error] == absorbed
    assert [site.error["sqnr_db"] for site in rewrites.sites if site.error] == [math.inf] * len(absorbed)
    expected, actual = run(before, {"x": x})[0], run(after, {"x": x})[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_bias_that_another_layer_reads_stays_there() -> None:
    """A Conv outside of the pair reads the same bias, and keeps it."""
    proto = _chain(["b0", None])
    branch = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[N,3,5,7] x) => (float[N,4,5,7] z) { z = Conv(x, u, b0) }
    """)
    proto.graph.node.extend(branch.graph.node)
    proto.graph.output.extend(branch.graph.output)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "u"))
    x = np.random.default_rng(1).random((40, 3, 5, 7)).astype(np.float32)
    before, after, rewrites = _absorb(proto, x, scale=True)
    assert [bool(site.error) for site in rewrites.sites] == [False, True]
    feeds = {"x": x}
    for expected, actual in zip(run(before, feeds), run(after, feeds), strict=True):
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@given(
    st.lists(st.sampled_from([None, "own", "shared"]), min_size=3, max_size=4),
    st.integers(0, 99),
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=25)
def test_absorption_through_any_chain_costs_what_is_recorded(
    biases: list[str | None], seed: int, kernel: int, heavy_tails: bool, as_nodes: bool
) -> None:
    names = [f"b{index}" if bias == "own" else bias for index, bias in enumerate(biases)]
    proto = _chain(names, seed=seed, kernel=kernel)
    x = np.random.default_rng(seed).random((40, 3, 5, 7)).astype(np.float32)
    x = x**8 if heavy_tails else -np.log(x + 1e-3)
    _assert_costs_what_is_recorded(_as_constant_nodes(proto) if as_nodes else proto, x)


def test_absorption_into_a_gemm_without_bias_by_positions() -> None:
    nodes = "[first] a = Conv(x, v, b) r = Relu(a) f = Flatten(r) [second] y = Gemm<beta=0.5>(f, w)"
    v = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    b = np.array([60, 45, 30, 0.5, -2, 0], np.float32)
    proto = _model(nodes, "N,3,5,7", "N,4", {"w": (90, 4)}, arrays={"v": v, "b": b})
    x = np.random.default_rng(1).standard_normal((40, 3, 5, 7)).astype(np.float32)
    before, after, rewrites = _absorb(proto, x)
    assert rewrites.modified
    calm = 0.5 * x[:5]
    expected, actual = run(before, {"x": calm})[0], run(after, {"x": calm})[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("nodes", "shapes", "reason"),
    [
        (
            "[first] a = Conv(x, v, b) [second] y = Conv(a, w)",
            {"w": (4, 6, 1, 1)},
            "no Relu stands before Conv 'second'",
        ),
        (
            "[first] a = Conv(x, v, b) r = LeakyRelu(a) [second] y = Conv(r, w)",
            {"w": (4, 6, 1, 1)},
            "no Relu stands before Conv 'second'",
        ),
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [n] p = AveragePool<kernel_shape=[2,2]>(r) [second] y = Conv(p, w)",
            {"w": (4, 6, 1, 1)},
            "AveragePool 'n' does not carry a constant through",
        ),
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [second] y = Conv<pads=[0,0,1,0]>(r, w)",
            {"w": (4, 6, 3, 3)},
            "Conv 'second' pads, and a border would not see the constant",
        ),
        (
            '[first] a = Conv(x, v, b) r = Relu(a) [second] y = Conv<auto_pad="SAME_UPPER">(r, w)',
            {"w": (4, 6, 3, 3)},
            "Conv 'second' pads, and a border would not see the constant",
        ),
        (
            "[first] a = Conv(x, v, b) r = Relu(a) [second] y = ConvTranspose(r, w)",
            {"w": (6, 4, 3, 3)},
            "ConvTranspose 'second' has no place for a constant",
        ),
    ],
)
def test_absorption_has_clauses_of_its_own(nodes: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    proto = _model(nodes, "N,3,5,7", "N,4,H,W", {"v": (6, 3, 3, 3), "b": (6,)} | shapes)
    _, _, rewrites = _absorb(proto, np.ones((4, 3, 5, 7), np.float32))
    assert not rewrites.modified
    assert rewrites.declined[-1].reason == f"no bias absorbed: {reason}"


def test_a_matmul_absorbs_nothing() -> None:
    proto = _model("[first] a = MatMul(x, v) r = Relu(a) y = Gemm(r, w)", "N,5", "N,3", {"v": (5, 7), "w": (7, 3)})
    _, _, rewrites = _absorb(proto, np.ones((4, 5), np.float32))
    assert rewrites.declined[-1].reason == "no bias absorbed: MatMul has no bias"


def test_a_pair_in_a_branch_absorbs_nothing() -> None:
    """Values of a body cannot be fetched, so nothing is known of them."""
    proto = _model(
        """
        k = ReduceMax<keepdims=0>(x) z = Constant<value_float = 0.0>() c = Greater(k, z)
        y = If(c) <
            then_branch = yes () => (float[N,4,H,W] t) {
                [first] a = Conv(x, v, b) r = Relu(a) [second] t = Conv(r, w)
            },
            else_branch = no () => (float[N,4,H,W] e) { p = MaxPool<kernel_shape=[3,3]>(x) e = Conv(p, u) }
        >
        """,
        "N,3,5,7",
        "N,4,H,W",
        {"v": (6, 3, 3, 3), "w": (4, 6, 1, 1), "u": (4, 3, 1, 1)},
        arrays={"b": np.full(6, 60, np.float32)},
    )
    before, after, rewrites = _absorb(proto, np.ones((1, 3, 5, 7), np.float32))
    assert to_proto_bytes(after) == to_proto_bytes(before)
    reason = "no bias absorbed: 'a' lies in a body of another node and cannot be measured"
    assert ("first", reason) in [(one.name, one.reason) for one in rewrites.declined]


def test_absorption_needs_data() -> None:
    with pytest.raises(UsageError) as caught:
        Equalize(absorb=True).run(load(_pair()), Context())
    assert str(caught.value) == (
        "equalize: needs calibration data and none was given. "
        "Give a few hundred real samples: --data samples.npz (data=... in Python)"
    )


def test_fidelity_follows_the_option() -> None:
    assert (Equalize().fidelity, Equalize(absorb=True).fidelity, Equalize.fidelity) == ("rounding", "lossy", "rounding")
