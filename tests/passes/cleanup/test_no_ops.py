"""Nodes whose output equals an input go; all that look like it and are not stay."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.model_io import load
from onnxpress.ir.quantization import Quantization, note, quantization_of
from onnxpress.passes.base import Context
from onnxpress.passes.cleanup.cleanup import Cleanup
from tests.passes.cleanup.check import apply
from tests.support import text_model


def _model(body: str, *, constants: str = "", opset: int = 17, x: str = "float[N,3,4]") -> str:
    """A model of Relu, `body` from `a` to `b`, Neg."""
    return f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        g ({x} x) => (float y) <{constants}> {{ a = Relu(x) {body} y = Neg(b) }}
    """


def _with_output(text: str, shape: str) -> str:
    return text.replace("(float y)", f"({shape} y)")


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("b = Identity(a)", ""),
        ("b = Dropout(a)", ""),
        ("b, mask = Dropout(a)", ""),
        ("b = Dropout(a, r, t)", "float r = {0.5}, bool t = {0}"),
        ("b = Cast<to=1>(a)", ""),
        ("b = Transpose<perm=[0,1,2]>(a)", ""),
        ("b = Reshape(a, s)", "int64[3] s = {0, 3, 4}"),
        ("b = Reshape(a, s)", "int64[3] s = {-1, 3, 4}"),
        ("b = Reshape(a, s)", "int64[3] s = {0, -1, 4}"),
        ("b = Expand(a, s)", "int64[2] s = {1, 4}"),
        ("b = Pad(a, p)", "int64[6] p = {0, 0, 0, 0, 0, 0}"),
        ("b = Slice(a, s, e)", "int64[3] s = {0, 0, 0}, int64[3] e = {2147483647, 3, 9}"),
        ("b = Slice(a, s, e, i)", "int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] i = {-3}"),
        ("b = Concat<axis=1>(a)", ""),
        ("b = Sum(a)", ""),
        ("b = Mean(a)", ""),
        ("b = Max(a)", ""),
        ("b = Min(a)", ""),
        ("b = Add(a, c)", "float c = {0}"),
        ("b = Add(c, a)", "float[1,1] c = {0}"),
        ("b = Sub(a, c)", "float c = {0}"),
        ("b = Mul(a, c)", "float[1] c = {1}"),
        ("b = Mul(c, a)", "float c = {1}"),
        ("b = Div(a, c)", "float c = {1}"),
    ],
)
def test_a_node_that_passes_its_input_on_goes(body: str, constants: str) -> None:
    outcome = apply(_with_output(_model(body, constants=constants), "float[N,3,4]"))
    assert outcome.ops == ["Relu", "Neg"]
    assert outcome.rewrites.sites[0].detail == "removed, it passes its input through"


def test_flatten_of_rank_2_goes() -> None:
    text = _with_output(_model("b = Flatten<axis=-1>(a)", x="float[N,4]"), "float[N,4]")
    assert apply(text).ops == ["Relu", "Neg"]


def test_old_forms_go() -> None:
    slices = _model("b = Slice<starts=[0,0], ends=[9,2147483647], axes=[1,0]>(a)", opset=9)
    assert apply(_with_output(slices, "float[N,3,4]")).ops == ["Relu", "Neg"]
    pads = _model("b = Pad<pads=[0,0,0,0,0,0]>(a)", opset=9)
    assert apply(_with_output(pads, "float[N,3,4]")).ops == ["Relu", "Neg"]
    dropout = _model("b = Dropout<ratio=0.3>(a)", opset=9)
    assert apply(_with_output(dropout, "float[N,3,4]")).ops == ["Relu", "Neg"]


@pytest.mark.parametrize(
    ("body", "constants", "shape"),
    [
        ("b = Dropout(a, r, t)", "float r = {0.0}, bool t = {1}", "float[N,3,4]"),
        ("i = Cast<to=10>(a) b = Cast<to=1>(i)", "", "float[N,3,4]"),
        ("b = Transpose(a)", "", "float[4,3,N]"),
        ("b = Transpose<perm=[0,2,1]>(a)", "", "float[N,4,3]"),
        ("b = Reshape(a, s)", "int64[3] s = {0, 4, 3}", "float[N,4,3]"),
        ("b = Reshape(a, s)", "int64[3] s = {2, 3, 4}", "float[2,3,4]"),
        ("b = Flatten(a)", "", "float[N,12]"),
        ("b = Expand(a, s)", "int64[4] s = {1, 1, 3, 4}", "float[1,N,3,4]"),
        ("b = Expand(a, s)", "int64[3] s = {2, 3, 4}", "float[2,3,4]"),
        ("b = Pad(a, p)", "int64[6] p = {0, 0, 0, 0, 0, 1}", "float[N,3,5]"),
        ("b = Slice(a, s, e)", "int64[2] s = {0, 0}, int64[2] e = {9, 2}", "float[N,2,4]"),
        ("b = Slice(a, s, e)", "int64[2] s = {0, 1}, int64[2] e = {9, 9}", "float[N,2,4]"),
        (
            "b = Slice(a, s, e, i, t)",
            "int64[1] s = {0}, int64[1] e = {9}, int64[1] i = {1}, int64[1] t = {2}",
            "float[N,2,4]",
        ),
        ("b = Concat<axis=1>(a, a)", "", "float[N,6,4]"),
        ("b = Sum(a, a)", "", "float[N,3,4]"),
        ("b = Add(a, c)", "float[1,1,1,1] c = {0}", "float[1,N,3,4]"),
        ("b = Add(a, c)", "float c = {1}", "float[N,3,4]"),
        ("b = Sub(c, a)", "float c = {0}", "float[N,3,4]"),
        ("b = Mul(a, c)", "float c = {1.000001}", "float[N,3,4]"),
        ("b = Div(c, a)", "float c = {1}", "float[N,3,4]"),
    ],
)
def test_near_misses_stay(body: str, constants: str, shape: str) -> None:
    text = _with_output(_model(body, constants=constants), shape)
    assert apply(text, runs="t = {1}" not in constants).unchanged  # Dropout in training draws


@pytest.mark.parametrize(
    ("body", "constants", "x", "shape"),
    [
        ("b = Reshape(a, s)", "int64[2] s = {1, -1}", "float[N,8]", "float[1,M]"),
        ("b = Expand(a, s)", "int64[2] s = {2, 8}", "float[N,8]", "float[2,8]"),
        ("b = Slice(a, s, e)", "int64[1] s = {0}, int64[1] e = {1}", "float[N,8]", "float[M,8]"),
    ],
)
def test_annotations_of_the_file_prove_nothing(body: str, constants: str, x: str, shape: str) -> None:
    stale = "float[2,8] a" if "Expand" in body else "float[1,8] a"
    outcome = apply(
        _with_output(_model(body, constants=f"{constants}, {stale}", x=x), shape), runs="Expand" not in body
    )
    assert outcome.ops == ["Relu", body.split()[2].partition("(")[0], "Neg"]


def test_the_rank_of_an_annotation_proves_nothing() -> None:
    outcome = apply(
        """
        <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
        g (float[N] x) => (float[N,4] y) <float[N,4] a, float[1] zero = {0}> {
            a = my.ops.Unheard(x) b = Add(a, zero) y = Neg(b)
        }
        """,
        runs=False,
    )
    assert outcome.unchanged


def test_a_shape_in_a_body_that_its_input_declares_proves_nothing() -> None:
    """A value that a Loop carries may change its shape from turn to turn."""
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,8] x) => (float[A,B] y) <int64 turns = {2}, bool yes = {1}> {
            y = Loop(turns, yes, x) <body = turn (int64 i, bool go, float[1,8] h) => (bool on, float[C,D] next)
                <int64[2] s = {1, -1}> { on = Identity(go) n = Neg(h) next = Reshape(n, s) }>
        }
    """)
    assert "Reshape" in outcome.ops


def test_an_overridable_constant_proves_nothing() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x, float zero, float[2] w) => (float[N,3] y) <float zero = {0}, float[2] v = {1, 2}> {
            a = Add(x, zero) b = Sum(v, w) c = ReduceSum<keepdims=0>(b) y = Add(a, c)
        }
    """)
    assert outcome.unchanged


def test_a_dropout_whose_mask_is_read_stays() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y, bool[N,3] m) { a = Relu(x) b, m = Dropout(a) y = Neg(b) }
    """)
    assert outcome.unchanged


def test_an_operator_of_another_domain_stays() -> None:
    outcome = apply(
        """
        <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
        g (float[N,3] x) => (float[N,3] y) { a = my.ops.Identity(x) y = Relu(a) }
        """,
        runs=False,
    )
    assert outcome.unchanged


def test_graph_outputs_keep_their_names() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y) { a = Relu(x) b = Identity(a) y = Identity(b) }
    """)
    assert onnx_ir.to_onnx_text(outcome.after).count("y = Relu (x)") == 1


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("y = Relu(x) z = Identity(y)", ""),  # two outputs of one value
        ("y = Identity(x) z = Relu(x)", ""),  # an output that is an input
        ("y = Identity(w) z = Relu(x)", "float[3] w = {1, 2, 3}"),  # an output that is an initializer
    ],
)
def test_an_output_that_needs_its_own_node_keeps_it(nodes: str, constants: str) -> None:
    outcome = apply(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3] x) => (float[3] y, float[3] z) <{constants}> {{ {nodes} }}
    """)
    assert outcome.unchanged


def test_a_branch_that_passes_an_outer_value_on_keeps_its_node() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x, bool c) => (float[N,3] y) {
            a = Relu(x)
            y = If(c) <
                then_branch = yes () => (float[N,3] t) { t = Identity(a) },
                else_branch = no () => (float[N,3] e) { i = Identity(a) e = Neg(i) }
            >
        }
    """)
    assert outcome.ops == ["Relu", "If", "Identity", "Neg"]


def test_a_quantization_note_is_never_lost() -> None:
    text = _with_output(_model("b = Identity(a)"), "float[N,3,4]")
    noted = load(text_model(text))
    note(noted.graph[1].outputs[0], Quantization(0.0, 1.0))
    assert not Cleanup().run(noted, Context()).modified
    note(noted.graph[0].outputs[0], Quantization(0.0, 1.0))
    assert Cleanup().run(noted, Context()).modified
    assert quantization_of(noted.graph[1].inputs[0]) == Quantization(0.0, 1.0)
