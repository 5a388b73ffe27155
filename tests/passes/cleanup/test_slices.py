"""Slices merge when each cuts axes of its own, and only then."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.helper
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.model_io import load
from onnxpress.ir.quantization import Quantization, note
from onnxpress.passes.cleanup.slices import match
from tests.passes.cleanup.check import apply
from tests.support import text_model

_CONSTANTS = """
    int64[1] zero = {0}, int64[1] end = {9223372036854775807}, int64[1] two = {2}, int64[1] three = {3},
    int64[1] back = {-1}
"""


def _model(nodes: str, *, outputs: str = "float[N,C,A,B] y") -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,5,7] x) => ({outputs}) <{_CONSTANTS}> {{ {nodes} }}
    """


def test_a_strided_shortcut_becomes_one_slice() -> None:
    outcome = apply(
        _model("""
            [rows] a = Slice(x, zero, end, two, two)
            [columns] y = Slice(a, zero, end, three, two)
        """)
    )
    assert onnx_ir.to_onnx_text(outcome.after).split("\n{")[1].strip().splitlines() == [
        "[columns] y = Slice (x, y_starts, y_ends, y_axes, y_steps)",
        "}",
    ]
    numbers = {name: value.const_value for name, value in outcome.after.graph.initializers.items()}
    assert {name: tensor.numpy().tolist() for name, tensor in numbers.items() if tensor is not None} == {
        "y_starts": [0, 0],
        "y_ends": [2**63 - 1] * 2,
        "y_axes": [2, 3],
        "y_steps": [2, 2],
    }
    assert outcome.told[0] == ("columns", "Slice", "cuts what Slice 'rows' cut too")


def test_three_slices_become_one() -> None:
    outcome = apply(
        _model("""
            a = Slice(x, zero, two, zero)
            b = Slice(a, zero, end, two, two)
            y = Slice(b, zero, end, back, two)
        """)
    )
    assert outcome.ops == ["Slice"]


def test_slices_with_attributes_merge() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 9]>
        g (float[N,3,5,7] x) => (float[N,3,2,3] y) {
            a = Slice<starts=[1], ends=[3], axes=[2]>(x)
            y = Slice<starts=[4], ends=[100], axes=[3]>(a)
        }
    """)
    assert outcome.ops == ["Slice"]


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        (
            "[in] a = Slice(x, zero, end, two, two) y = Slice(a, zero, end, three, two)",
            "float[N,C,A,B] y, float[N,3,3,7] a",
            "output 'a' of Slice 'in' is a graph output",
        ),
        (
            "[in] a = Slice(x, zero, end, two, two) b = Slice(a, zero, end, three, two) c = Neg(a) "
            "d = Slice(c, zero, end, three, two) y = Add(b, d)",
            "float[N,C,A,B] y",
            "output 'a' of Slice 'in' has 2 uses, needs 1",
        ),
        (
            "[in] a = Slice(x, zero, end, two, two) y = Slice(a, zero, two, two)",
            "float[N,C,A,B] y",
            "both Slices cut axis 2",
        ),
        (
            "[in] a = Slice(x, zero, end, three, two) y = Slice(a, zero, two, back)",
            "float[N,C,A,B] y",
            "both Slices cut axis 3",
        ),
        (
            "s = Shape<start=0, end=1>(x) [in] a = Slice(x, zero, s, two, two) y = Slice(a, zero, two, three)",
            "float[N,C,A,B] y",
            "starts, ends, axes or steps of Slice 'in' are not constant",
        ),
        (
            "s = Shape<start=0, end=1>(x) [in] a = Slice(x, zero, end, two, two) [out] y = Slice(a, zero, s, three)",
            "float[N,C,A,B] y",
            "starts, ends, axes or steps of Slice 'out' are not constant",
        ),
    ],
)
def test_near_misses_stay(nodes: str, outputs: str, reason: str) -> None:
    outcome = apply(_model(nodes, outputs=outputs))
    assert outcome.ops.count("Slice") >= 2
    assert reason in [why for _, why in outcome.declined]
    assert not [site for site in outcome.rewrites.sites if site.kind == "Slice"]


@pytest.mark.parametrize("annotation", ["", ", float[N,3,5,7] r"])
def test_negative_axes_of_unknown_rank_stay(annotation: str) -> None:
    outcome = apply(
        f"""
        <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
        g (float[N,3,5,7] x) => (float[A,B,C,D] y)
        <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] back = {{-1}}{annotation}> {{
            r = my.ops.Op(x) [in] a = Slice(r, zero, two, zero) [out] y = Slice(a, zero, two, back)
        }}
        """,
        runs=False,
    )
    assert outcome.declined == [("out", "negative axes, and the rank of 'a' is unknown")]


def test_slices_of_two_graphs_stay() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,5] x, bool c) => (float[A,B] y) <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}> {
            [in] a = Slice(x, zero, two, zero)
            y = If(c) <
                then_branch = yes () => (float[A,B] t) { [out] t = Slice(a, zero, two, one) },
                else_branch = no () => (float[A,B] e) { e = Neg(x) }
            >
        }
    """)
    assert outcome.declined == [("out", "Slice 'in' lies in another graph")]


def test_a_noted_value_between_stays() -> None:
    text = _model("[in] a = Slice(x, zero, end, two, two) [out] y = Slice(a, zero, end, three, two)")
    model = load(text_model(text))
    note(model.graph[0].outputs[0], Quantization(-1.0, 1.0))
    found = match(model.graph[1], 17)
    assert getattr(found, "reason", None) == "output 'a' of Slice 'in' carries a quantization note of its own"


_CUT = st.tuples(
    st.integers(-9, 9),
    st.sampled_from([-9, -2, 0, 1, 2, 4, 9, 2**31 - 1, -(2**31)]),
    st.sampled_from([-3, -2, -1, 1, 2, 3]),
)


@given(
    order=st.permutations([0, 1, 2, 3]),
    cuts=st.lists(_CUT, min_size=4, max_size=4),
    negative=st.lists(st.booleans(), min_size=4, max_size=4),
    split=st.integers(1, 3),
    kind=st.sampled_from([np.int32, np.int64]),
)
@settings(max_examples=40)
def test_any_two_slices_of_different_axes_merge_in_bits(
    order: list[int],
    cuts: list[tuple[int, int, int]],
    negative: list[bool],
    split: int,
    kind: type[np.signedinteger],
) -> None:
    nodes, constants = [], []
    for index, part in enumerate((order[:split], order[split:])):
        axes = [axis - 4 if negative[axis] else axis for axis in part]
        numbers = [*zip(*(cuts[axis] for axis in part), strict=True)]
        rows = {"s": numbers[0], "e": numbers[1], "a": axes, "t": numbers[2]}
        names = [f"{key}{index}" for key in rows]
        constants += [
            onnx.numpy_helper.from_array(np.array(row, kind), name)
            for row, name in zip(rows.values(), names, strict=True)
        ]
        nodes.append(onnx.helper.make_node("Slice", ["xa"[index], *names], ["ay"[index]], name=f"cut{index}"))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 3, 5, 7])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list("ABCD"))],
        constants,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    assert apply(model).ops == ["Slice"]


def test_every_pair_of_axes_is_told_apart() -> None:
    for first, second in itertools.product(range(4), repeat=2):
        text = f"""
            <ir_version: 8, opset_import: ["" : 9]>
            g (float[N,3,5,7] x) => (float[A,B,C,D] y) {{
                a = Slice<starts=[0], ends=[2], axes=[{first}]>(x)
                y = Slice<starts=[0], ends=[1], axes=[{second}]>(a)
            }}
        """
        assert len(apply(text).ops) == (2 if first == second else 1)
