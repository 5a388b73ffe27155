"""A Reshape by a computed shape takes the constant one that inference proves, and no other."""

from __future__ import annotations

import pytest

from onnxpress.ir.inference import is_consistent
from onnxpress.ir.model_io import load
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.reshapes import match
from tests.passes.cleanup.check import Outcome, apply
from tests.support import text_model


def _flatten(x: str, tail: str, y: str, *, more: str = "") -> Outcome:
    """`view(x.size(0), tail)` as exporters write it, through `b` to `y`."""
    return apply(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g ({x} x) => ({y} y) <int64 first = {{0}}, int64[1] axis = {{0}}, int64[1] rest = {{{tail}}}{more}> {{
            a = Relu(x) s = Shape(a) g = Gather<axis=0>(s, first) u = Unsqueeze(g, axis)
            t = Concat<axis=0>(u, rest) [reshape] b = Reshape(a, t) y = Neg(b)
        }}
    """)


def _shape_of(outcome: Outcome) -> list[int]:
    tensor = outcome.after.graph.initializers["b_shape"].const_value
    assert tensor is not None
    return [int(number) for number in tensor.numpy()]


@pytest.mark.parametrize(
    ("x", "tail", "y", "shape"),
    [
        ("float[N,3,4]", "-1", "float[N,K]", [0, -1]),
        ("float[N,3,4]", "12", "float[N,12]", [0, 12]),
        ("float[2,3,4]", "-1", "float[2,12]", [2, 12]),
        ("float[N,H,4]", "-1", "float[N,K]", [0, -1]),
    ],
)
def test_the_proven_shape_takes_over(x: str, tail: str, y: str, shape: list[int]) -> None:
    outcome = _flatten(x, tail, y)
    assert outcome.ops == ["Relu", "Reshape", "Neg"]
    assert _shape_of(outcome) == shape
    assert outcome.told[0] == ("reshape", "Reshape", f"takes the constant shape {shape}")


@pytest.mark.parametrize(
    ("annotations", "shape"),
    [("float[1,3,4] a", [0, -1]), ("float[1,12] b", [0, -1]), ("float[1,12] b, int64[2] t", [0, -1])],
)
def test_the_batch_in_annotations_of_the_file_proves_nothing(annotations: str, shape: list[int]) -> None:
    """Somebody made the input's batch dynamic, and left the inner values as they were."""
    outcome = _flatten("float[N,3,4]", "-1", "float[N,K]", more=f", {annotations}")
    assert outcome.ops == ["Relu", "Reshape", "Neg"]
    assert _shape_of(outcome) == shape


def test_what_the_output_declares_proves_nothing() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,4] x) => (float[1,12] y) <int64[1] zero = {0}, int64[1] rest = {-1}> {
            s = Shape(x) n = Gather<axis=0>(s, zero) t = Concat<axis=0>(n, rest) [reshape] y = Reshape(x, t)
        }
    """)
    assert outcome.ops == ["Reshape"]
    tensor = outcome.after.graph.initializers["y_shape"].const_value
    assert tensor is not None and tensor.numpy().tolist() == [0, -1]


def test_a_shape_that_only_an_annotation_knows_stays() -> None:
    outcome = apply(
        """
        <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
        g (float[N,12] x) => (float[N,12] y)
        <float[1,3,4] a, float[1,12] b, int64[1] rest = {-1}, int64[1] zero = {0}> {
            a = my.ops.Unheard(x) s = Shape(a) n = Gather<axis=0>(s, zero) t = Concat<axis=0>(n, rest)
            [reshape] b = Reshape(a, t) y = Neg(b)
        }
        """,
        runs=False,
    )
    assert outcome.unchanged
    assert outcome.declined == [("reshape", "the rank of 'b' is unknown")]


def test_two_unknown_dimensions_stay() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,H,W] x, int64[2] t) => (float[A,B] y) {
            s = Abs(t) [reshape] y = Reshape(x, s)
        }
    """, runs=False)  # fmt: skip
    assert outcome.unchanged
    assert outcome.declined == [("reshape", "2 dimensions of 'y' are unknown, at most 1 may be")]


def test_an_unknown_rank_stays() -> None:
    outcome = apply(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,H] x, int64[K] t) => (float y) {
            s = Abs(t) [reshape] b = Reshape(x, s) y = ReduceSum<keepdims=0>(b)
        }
        """,
        runs=False,
    )
    assert outcome.unchanged
    assert outcome.declined == [("reshape", "the rank of 'b' is unknown")]


def test_an_empty_output_stays() -> None:
    model = load(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N,0,3] x) => (float[A,B] y) <int64[1] a = {-1}> {
                s = Shape<start=1, end=3>(x) [reshape] b = Reshape<allowzero=1>(x, s) y = Neg(b)
            }
        """)
    )
    assert match(model.graph[1], consistent=True) == Declined("reshape", "Reshape", "'b' is empty")


def test_a_shape_that_a_caller_sets_stays() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2,6] x, int64[2] t) => (float[A,B] y) <int64[2] t = {3, 4}, float k = {2}> {
            a = Mul(x, k) s = Abs(t) [reshape] y = Reshape(a, s)
        }
    """)
    assert outcome.unchanged
    assert outcome.declined == [("reshape", "2 dimensions of 'y' are unknown, at most 1 may be")]


def test_a_model_that_contradicts_itself_proves_nothing() -> None:
    model = load(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[2,6] x) => (float[3,6] y) <int64[1] a = {-1}> {
                s = Shape<end=1>(x) t = Concat<axis=0>(s, a) [reshape] r = Reshape(x, t) y = Neg(r)
            }
        """)
    )
    assert not is_consistent(model)
    found = match(model.graph[2], consistent=is_consistent(model))
    assert found == Declined("reshape", "Reshape", "shapes in the model contradict each other")
