"""Constants fold where the file does not grow; quantized and packed weights never do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx_ir
import pytest
from onnx import TensorProto

from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.model_io import load, size_bytes, to_proto_bytes
from onnxpress.ir.verify import verify
from onnxpress.passes.base import Context
from onnxpress.passes.cleanup import constant_rules
from onnxpress.passes.cleanup.cleanup import Cleanup
from tests.passes.cleanup.check import apply
from tests.support import random_feeds, run_named, text_model

Array = npt.NDArray[Any]


def _arrays(model: onnx_ir.Model) -> dict[str, list[object]]:
    return {
        name: value.const_value.numpy().tolist()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def test_a_chain_of_constants_becomes_one() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 4}, float two = {2}> {
            [root] s = Sqrt(v)
            [half] h = Div(s, two)
            [use] y = Mul(x, h)
        }
    """)
    assert outcome.names == ["use"]
    assert _arrays(outcome.after) == {"h": [0.5, 1.0]}
    site = outcome.rewrites.sites[0]
    assert (site.name, site.kind) == ("half", "Div")
    assert site.detail == "folded into constant 'h' [2], with 'root'"
    assert (site.before.size_bytes, site.after.size_bytes) == (12, 8)


def test_folding_leaves_no_trace_of_the_tool() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 4}> { s = Sqrt(v) y = Mul(x, s) }
    """)
    assert outcome.after.graph.initializers["s"].metadata_props == {}


def test_constant_nodes_become_initializers_of_any_form() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,2] y) {
            [a] p = Constant<value_float = 2.0>()
            [b] q = Constant<value_floats = [1.0, 3.0]>()
            [c] r = Constant<value = float[2] {5, 7}>()
            d = Mul(x, p) e = Add(d, q) y = Sub(e, r)
        }
    """)
    assert _arrays(outcome.after) == {"p": 2.0, "q": [1.0, 3.0], "r": [5.0, 7.0]}
    assert outcome.told == [("a", "Constant", "turned into an initializer, and 2 more: 'b', 'c'")]


def test_constants_in_branches_are_lifted_and_folded_there() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y) <float[2] v = {1, 4}> {
            y = If(c) <
                then_branch = yes () => (float[2] t) {
                    a = Sqrt(v) b = Constant<value_float = 3.0>() d = Mul(a, b) t = Add(x, d)
                },
                else_branch = no () => (float[2] e) { e = Mul(x, v) }
            >
        }
    """)
    assert outcome.ops == ["If", "Add", "Mul"]


def test_a_branch_on_a_constant_is_taken() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) <bool c = {1}> {
            [not] d = Not(c)
            [relu] r = Relu(x)
            [if] z = If(d) <
                then_branch = yes () => (float[N,4] t) { [n] t = Neg(r) },
                else_branch = no () => (float[N,4] e) { [e1] f = Exp(r) [e2] e = Sqrt(f) }
            >
            [abs] y = Abs(z)
        }
    """)
    assert outcome.names == ["relu", "e1", "e2", "abs"]
    assert len(outcome.after.graph[0].outputs[0].uses()) == 1, "the branch not taken still reads r"
    assert ("if", "If", "resolved before run time, with 'not'") in outcome.told


def test_branches_that_use_the_same_names_are_taken_side_by_side() -> None:
    branch = "{name} () => (float[N,4] t{name}) {{ s = {op}(x) t{name} = Mul(s, k) }}"
    constant = "<float[4] k = {{{k}, 2, 3, 4}}>"
    ifs = []
    for index, op in enumerate(("Exp", "Neg")):
        yes = branch.format(name=f"yes{index}", op=op).replace(") {", f") {constant.format(k=index)} {{", 1)
        no = branch.format(name=f"no{index}", op="Abs").replace("Mul(s, k)", "Relu(s)")
        ifs.append(f"y{index} = If(c) <then_branch = {yes}, else_branch = {no}>")
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) <bool c = {{1}}> {{ {" ".join(ifs)} y = Add(y0, y1) }}
    """)
    assert outcome.ops == ["Exp", "Mul", "Neg", "Mul", "Add"]
    assert len(outcome.after.graph.initializers) == 2


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 21])
def test_a_shape_behind_an_output_folds_in_every_opset(opset: int) -> None:
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N,4] x, float[2,3] w) => (float[N,4] y, int64[2] s) {{ y = Relu(x) s = Shape(w) }}
    """)
    assert outcome.ops == ["Relu", "Constant"]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_arithmetic_on_a_static_shape_folds(opset: int) -> None:
    unsqueeze = "u = Unsqueeze<axes=[0]>(g)" if opset < 13 else "u = Unsqueeze(g, z)"
    constants = "int64 one = {1}, int64[1] m = {-1}" + (", int64[1] z = {0}" if opset >= 13 else "")
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2,3,4] x) => (float[2,3,4] y) <{constants}> {{
            s = Shape(x) g = Gather<axis=0>(s, one) {unsqueeze} e = Add(u, m)
            [last] t = Cast<to=1>(e) y = Mul(x, t)
        }}
    """)
    assert outcome.ops == ["Mul"]
    assert _arrays(outcome.after) == {"t": [2.0]}
    assert outcome.told[0] == (
        "last", "Cast", "folded into constant 't' [1], with 'Add_3', 'Unsqueeze_2', 'Gather_1' and 1 more"
    )  # fmt: skip


def test_an_overridable_initializer_is_no_constant() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,6] x, int64[2] shape, bool flag, float[6] bias) => (float[A,B] y)
        <int64[2] shape = {2, 6}, bool flag = {1}, float[6] bias = {0, 0, 0, 0, 0, 0}, float fixed = {2}> {
            n = Mul(bias, fixed)
            a = Add(x, n)
            b = If(flag) <
                then_branch = yes () => (float[2,6] t) { t = Relu(a) },
                else_branch = no () => (float[2,6] e) { e = Neg(a) }
            >
            y = Reshape(b, shape)
        }
    """
    outcome = apply(text)
    assert outcome.unchanged
    feeds = random_feeds(outcome.before)
    feeds |= {
        "shape": np.array([3, 4]),
        "flag": np.array(False),
        "bias": np.arange(6, dtype=np.float32),
    }
    before, after = (run_named(to_proto_bytes(model), feeds)["y"] for model in (outcome.before, outcome.after))
    assert after.shape == (3, 4)
    np.testing.assert_array_equal(before, after)


def test_an_overridable_initializer_that_nothing_reads_stays() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x, float[2] unused) => (float[N,2] y) <float[2] unused = {1, 2}, float[2] v = {1, 4}> {
            s = Sqrt(v) y = Mul(x, s)
        }
    """)
    assert sorted(outcome.after.graph.initializers) == ["s", "unused"]


@pytest.mark.parametrize(
    ("nodes", "constants", "kind", "reason"),
    [
        (
            "[grow] c = Expand(v, s) y = Add(x, c)",
            "int64[2] s = {3, 512}",
            np.float32,
            "its result takes 6144 bytes and frees 2064: the limit is 1024",
        ),
        (
            "[grow] c = Tile(v, s) y = Add(x, c)",
            "int64[2] s = {3, 1}",
            np.float32,
            "its result takes 6144 bytes and frees 2064: the limit is 1024",
        ),
        (
            "[grow] c = ConstantOfShape(s) d = Mul(c, v) y = Add(x, d)",
            "int64[2] s = {3, 512}",
            np.float32,
            "its result takes 6144 bytes and frees 16: the limit is 1024",
        ),
        (
            "[grow] c = Cast<to=1>(v) y = Add(x, c)",
            "",
            np.int8,
            "its result takes 2048 bytes and frees 512: stored as INT8, nothing may be added",
        ),
        (
            "[grow] c = Cast<to=1>(v) y = Add(x, c)",
            "",
            np.float16,
            "its result takes 2048 bytes and frees 1024: stored as FLOAT16, nothing may be added",
        ),
        (
            "[grow] c = Neg(v) d = Mul(x, v) y = Add(d, c)",
            "",
            np.float32,
            "its result takes 2048 bytes and frees 0: the limit is 1024",
        ),
    ],
)
def test_what_would_grow_stays(nodes: str, constants: str, kind: type[np.generic], reason: str) -> None:
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3,512] x) => (float[3,512] y) <{constants}> {{ {nodes} }}
    """)
    weight = np.arange(512).reshape(1, 512) % 100
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(kind), "v"))
    outcome = apply(proto)
    assert outcome.unchanged
    assert outcome.declined == [("grow", reason)]


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ("[op] z = Neg(v) y = Add(x, v)", "float[2] v = {1, 2}", "'z' is a graph output"),
        (
            "[op] a, b = Split<axis=0>(v) c = Add(a, b) y = Add(x, c) z = Relu(x)",
            "float[2] v = {1, 2}",
            "it has 2 outputs, needs 1",
        ),
        (
            "[op] n = NonZero(v) f = Cast<to=1>(n) s = ReduceSum<keepdims=0>(f) y = Add(x, s) z = Relu(x)",
            "float[2] v = {1, 2}",
            "the size of its result is unknown",
        ),
    ],
)
def test_other_clauses(nodes: str, constants: str, reason: str) -> None:
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y, float[2] z) <{constants}> {{ {nodes} }}
    """)
    assert outcome.unchanged
    assert ("op", reason) in outcome.declined


def test_what_the_reference_cannot_compute_stays() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 4}, int64[1] i = {5}> {
            [op] s = Gather(v, i) y = Mul(x, s)
        }
    """, runs=False)  # fmt: skip
    assert outcome.unchanged
    assert outcome.declined == [("op", "onnx's reference implementation cannot compute it")]


def test_an_encoded_weight_stays_encoded() -> None:
    model = load(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 2, 3, 4}> {
                [turn] t = Transpose<perm=[1,0]>(w) y = MatMul(x, t)
            }
        """)
    )
    weight = np.array([[1, 2], [3, 4]], np.float32)
    encode(model.graph.initializers["w"], Affine.quantize(weight, axis=0))
    rewrites = Cleanup().run(model, Context())
    assert not rewrites.modified
    assert [one.reason for one in rewrites.declined] == ["'w' is an encoded weight"]


def test_what_is_slow_to_compute_here_stays() -> None:
    rng = np.random.default_rng(0)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["i", "w"], ["c"], "slow"),
            onnx.helper.make_node("Add", ["x", "c"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 90, 90])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 90, 90])],
        [
            onnx.numpy_helper.from_array(rng.standard_normal((1, 2, 92, 92)).astype(np.float32), "i"),
            onnx.numpy_helper.from_array(rng.standard_normal((1, 2, 3, 3)).astype(np.float32), "w"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert ("slow", "16946 elements are slow to compute here, the limit is 8192") in apply(model).declined


# Quantized and packed weights.


def _conv(weights: Mapping[str, Array], decode: list[onnx.NodeProto], opset: int) -> onnx.ModelProto:
    """A Conv whose weight `w` [16, 8, 3, 3] is what `decode` makes of the constants."""
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    graph = onnx.helper.make_graph(
        [*decode, conv],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 5, 7])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16, 3, 5])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def _quantized(form: str) -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    node = onnx.helper.make_node
    scale = np.full(16, 0.01, np.float32)
    codes = rng.integers(-128, 128, (16, 8, 3, 3)).astype(np.int8)
    if form == "weight Q/DQ":
        weights: dict[str, Array] = {"f": (codes * 0.01).astype(np.float32), "s": scale, "z": np.zeros(16, np.int8)}
        nodes = [
            node("QuantizeLinear", ["f", "s", "z"], ["q"], axis=0),
            node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0),
        ]
        return _conv(weights, nodes, 17)
    if form == "weight-only DQ":
        return _conv({"q": codes, "s": scale}, [node("DequantizeLinear", ["q", "s"], ["w"], axis=0)], 17)
    if form == "DQ behind a Reshape":
        nodes = [
            node("Reshape", ["q", "shape"], ["r"]),
            node("DequantizeLinear", ["r", "s"], ["w"], axis=0),
        ]
        return _conv({"q": codes.reshape(16, 72), "shape": np.array([16, 8, 3, 3]), "s": scale}, nodes, 17)
    if form == "int4 DQ":
        numbers = rng.integers(0, 256, 576).astype(np.uint8).tobytes()
        q = onnx.helper.make_tensor("q", TensorProto.INT4, [16, 72], numbers, raw=True)
        nodes = [
            node("DequantizeLinear", ["q", "s"], ["f"], axis=1, block_size=8),
            node("Reshape", ["f", "shape"], ["w"]),
        ]
        model = _conv({"s": np.full((16, 9), 0.01, np.float32), "shape": np.array([16, 8, 3, 3])}, nodes, 21)
        model.graph.initializer.append(q)
        return model
    if form == "Cast and Mul":
        nodes = [node("Cast", ["q"], ["f"], to=TensorProto.FLOAT), node("Mul", ["f", "s"], ["w"])]
        return _conv({"q": codes, "s": scale.reshape(16, 1, 1, 1)}, nodes, 17)
    assert form == "packed 2 bit"
    packed = rng.integers(0, 256, (16 * 18, 1)).astype(np.uint8)
    weights = {
        "p": packed,
        "shifts": np.array([[0, 2, 4, 6]], np.uint8),
        "mask": np.array(3, np.uint8),
        "middle": np.array(2, np.int8),
        "shape": np.array([16, 8, 3, 3]),
        "s": scale,
    }
    nodes = [
        node("BitShift", ["p", "shifts"], ["b"], direction="RIGHT"),
        node("BitwiseAnd", ["b", "mask"], ["c"]),
        node("Cast", ["c"], ["d"], to=TensorProto.INT8),
        node("Sub", ["d", "middle"], ["e"]),
        node("Reshape", ["e", "shape"], ["r"]),
        node("DequantizeLinear", ["r", "s"], ["w"], axis=0),
    ]
    return _conv(weights, nodes, 18)


@pytest.mark.parametrize(
    ("form", "operators"),
    [
        ("weight Q/DQ", ["QuantizeLinear", "DequantizeLinear", "Conv"]),
        ("weight-only DQ", ["DequantizeLinear", "Conv"]),
        ("DQ behind a Reshape", ["DequantizeLinear", "Conv"]),
        ("int4 DQ", ["DequantizeLinear", "Reshape", "Conv"]),
        ("Cast and Mul", ["Cast", "Mul", "Conv"]),
        ("packed 2 bit", ["BitShift", "BitwiseAnd", "Cast", "Sub", "Reshape", "DequantizeLinear", "Conv"]),
    ],
)
def test_quantized_weights_stay_as_they_are_stored(form: str, operators: list[str]) -> None:
    outcome = apply(_quantized(form))
    assert outcome.ops == operators
    assert size_bytes(outcome.after) <= size_bytes(outcome.before)


def test_a_tiny_packed_weight_stays_packed() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) <int8[4] q = {1, 2, 3, 4}, float s = {0.5}> {
            c = Cast<to=1>(q) w = Mul(c, s) y = Mul(x, w)
        }
    """)
    assert outcome.ops == ["Cast", "Mul", "Mul"]


# What onnxscript is asked for, and what it cannot digest.


def test_sequences_before_opset_18_are_left_alone() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[4,6] x) => (float[2,6] y) <int64 two = {2}, int64 at = {1}, float[6] v = {1, 2, 3, 4, 5, 6}> {
            [split] s = SplitToSequence<axis=0>(x, two) a = SequenceAt(s, at) [neg] n = Neg(v) y = Add(a, n)
        }
    """)
    assert outcome.unchanged
    reason = "beside SplitToSequence 'split', which onnxscript would rewrite for opset 18"
    assert outcome.declined == [("neg", reason)]


def test_sequences_from_opset_18_on_are_resolved() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[4,6] x) => (float[2,6] y) <int64 two = {2}, int64 at = {1}> {
            s = SplitToSequence<axis=0>(x, two) y = SequenceAt(s, at)
        }
    """)
    assert outcome.ops == ["Split"]


def test_attributes_of_a_cast_like_are_kept() -> None:
    outcome = apply(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N] x, float8e4m3fn[1] kind) => (float8e4m3fn[N] y) <float[1] v = {4}> {
            [root] s = Sqrt(v) a = Mul(x, s) [cast] y = CastLike<saturate=0>(a, kind)
        }
        """,
        runs=False,
    )
    assert outcome.unchanged
    assert outcome.declined == [("root", "beside CastLike 'cast', which onnxscript would rewrite without its saturate")]


@pytest.mark.parametrize(
    ("attributes", "resolved"),
    [("saturate=1", True), ("saturate=0", False), ('round_mode="up"', True), ('round_mode="down"', False)],
)
def test_a_cast_like_is_resolved_where_its_attributes_are_defaults(attributes: str, resolved: bool) -> None:
    outcome = apply(
        f"""
        <ir_version: 11, opset_import: ["" : 24]>
        g (float[N] x, float8e8m0[1] kind) => (float8e8m0[N] y) {{ y = CastLike<{attributes}>(x, kind) }}
        """,
        runs=False,
    )
    assert outcome.ops == ["Cast" if resolved else "CastLike"]


@pytest.mark.parametrize(
    ("nodes", "declined"),
    [
        (
            "[if] limit = If(yes) <then_branch = t () => (int64[1] p) { p = Identity(one) },"
            " else_branch = e () => (int64[1] q) { q = Neg(one) }> [also] o = Neg(minus)",
            ("also", "beside If 'if', whose branch, once taken, may leave Range 'range' a constant with axes"),
        ),
        ("[neg] limit = Neg(minus) o = Abs(one)", ("neg", "Range 'range' takes no constant with axes")),
    ],
)
def test_what_a_range_takes_in_place_of_a_scalar_stays_computed(nodes: str, declined: tuple[str, str]) -> None:
    """onnxruntime computes with a limit of [1], but does not load it as a constant."""
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[N] x) => (int64[A] y)
        <bool yes = {{1}}, int64[1] one = {{1}}, int64[1] minus = {{-1}}, int64 zero = {{0}}, int64 step = {{1}}> {{
            {nodes} [range] r = Range(zero, limit, step) s = Add(x, r) y = Mul(s, o)
        }}
    """)
    assert declined in outcome.declined
    (reader,) = [node for node in outcome.after.graph if node.op_type == "Range"]
    assert reader.inputs[1] is not None and reader.inputs[1].producer() is not None


def test_the_scalar_limit_of_a_range_folds() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[N] x) => (int64[A] y) <int64 minus = {-1}, int64 zero = {0}, int64 step = {1}> {
            limit = Neg(minus) r = Range(zero, limit, step) y = Add(x, r)
        }
    """)
    assert "Neg" not in outcome.ops


def test_an_operator_that_onnxscript_cannot_digest_stops_folding_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from onnxscript import optimizer

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("Error during constant folding for node 'root'")

    monkeypatch.setattr(optimizer, "fold_constants", fail)
    model = load(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[N,2] x) => (float[N,2] y) <float[2] v = {1, 4}> {
                [root] s = Sqrt(v) a = Mul(x, s) [id] y = Identity(a)
            }
        """)
    )
    rewrites = Cleanup().run(model, Context())
    verify(model)
    assert [site.name for site in rewrites.sites] == ["id"]
    assert [(one.name, one.reason) for one in rewrites.declined] == [
        ("main", "onnxscript gave up: Error during constant folding for node 'root'"),
        ("root", "onnxscript gave up"),
    ]


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        ("y = Relu(x)", "float[N,4]", False),
        ("s = Sqrt(v) y = Mul(x, s)", "float[N,4]", True),
        ("s = Shape(x) y = Expand(v, s)", "float[N,4]", False),
        ("s = Shape(x) y = Expand(v, s)", "float[2,4]", True),
        ("s = Shape<start=1>(x) y = Expand(v, s)", "float[N,4]", True),
        ("s = Shape(x) g = Gather<axis=0>(s, i) y = Expand(v, g)", "float[N,4]", True),
        ("s = Shape(x) g = Gather<axis=0>(s, j) y = Expand(v, g)", "float[N,4]", False),
        ("n = Size(x) f = Cast<to=1>(n) y = Add(x, f)", "float[N,4]", False),
        ("n = Size(x) f = Cast<to=1>(n) y = Add(x, f)", "float[2,4]", True),
        ("y = CastLike(x, v)", "float[N,4]", True),
    ],
)
def test_onnxscript_is_asked_for_only_where_it_could_find_something(nodes: str, shape: str, expected: bool) -> None:
    model = load(
        text_model(f"""
            <ir_version: 8, opset_import: ["" : 17]>
            g ({shape} x) => (float[A,B] y)
            <float[4] v = {{1, 2, 3, 4}}, int64[1] i = {{1}}, int64[1] j = {{0}}> {{ {nodes} }}
        """)
    )
    assert constant_rules.has_work(model) is expected


def test_the_shape_of_an_annotation_does_not_fold() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,8] x) => (float[2] y) <float[1,8] r> { r = Relu(x) s = Shape(r) y = Cast<to=1>(s) }
    """)
    assert outcome.ops == ["Relu", "Shape", "Cast"]


def test_what_folding_proves_counts_where_annotations_knew_it_before() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,8] x) => (float[2,4] y) <float[2,4] r, float[2,4] q, int64[2] t = {-2, -4}> {
            s = Neg(t) r = Reshape(x, s) q = Reshape(r, s) y = Neg(q)
        }
    """)
    assert outcome.ops == ["Reshape", "Neg"]


def test_annotations_are_hidden_while_others_fold_and_kept() -> None:
    outcome = apply(
        """
        <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
        g (float[N,8] x) => (float[2] y) <float[1,8] r, float[2] v = {1, 2}> {
            r = my.ops.Unheard(x) s = Shape(r) c = Cast<to=1>(s) n = Neg(v) y = Add(c, n)
        }
        """,
        runs=False,
    )
    assert outcome.ops == ["Unheard", "Shape", "Cast", "Add"]
    shape = outcome.after.graph[0].outputs[0].shape
    assert shape is not None and list(shape) == [1, 8]
