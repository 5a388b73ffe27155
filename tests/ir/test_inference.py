"""What inference proves and what annotations only claim."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.inference import infer_shapes, is_consistent, proven_shape, take_shape
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.text import to_text
from tests.support import text_model


def _load(graph: str) -> onnx_ir.Model:
    return load(text_model(f'<ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]> {graph}'))


def _value(model: onnx_ir.Model, name: str) -> onnx_ir.Value:
    values = (value for graph in model.graphs() for node in graph for value in (*graph.inputs, *node.outputs))
    return next(value for value in values if value.name == name)


def _dims(shape: onnx_ir.Shape | None) -> list[int | str | None] | None:
    return None if shape is None else [dim if isinstance(dim, int) else dim.value for dim in shape]


def _shapes(model: onnx_ir.Model, name: str) -> tuple[list[int | str | None] | None, list[int | str | None] | None]:
    """What is known and what is proven."""
    value = _value(model, name)
    return _dims(value.shape), _dims(proven_shape(value))


@pytest.mark.parametrize("stale", ["float[1,8] h", "float[1,8] h, float[1,8] k", "float[1,9] h", "float[1,8] k"])
def test_what_is_proven_replaces_annotations(stale: str) -> None:
    model = _load(f"g (float[N,8] x) => (float[N,8] y) <{stale}> {{ h = Relu(x) k = Neg(h) y = Abs(k) }}")
    assert _shapes(model, "h") == _shapes(model, "k") == (["N", 8], ["N", 8])
    assert is_consistent(model)


def test_annotations_fill_the_gaps_and_are_told_apart() -> None:
    model = _load("""
        g (float[N,8] x) => (float[M,4] y) <float[1,8] h, float[1,8] k, float[1,2,4] r> {
            h = my.ops.Unheard(x) k = Relu(h) t = my.ops.Shape(x) r = Reshape(k, t) y = Softmax(r)
        }
    """)
    assert _shapes(model, "h") == ([1, 8], None)
    assert _shapes(model, "k") == ([1, 8], None), "and what follows from annotations is no more proven"
    assert _shapes(model, "r") == ([1, 2, 4], None)


def test_a_dimension_that_an_annotation_adds_is_told_apart() -> None:
    model = _load("""
        g (float[N,8] x) => (float[M,2] y) <int64[2,5] m> { m = NonZero(x) f = Cast<to=1>(m) y = Transpose(f) }
    """)
    assert _shapes(model, "m") == _shapes(model, "f") == ([2, 5], [2, None])


def test_outputs_keep_what_they_declare_and_prove_only_what_follows() -> None:
    model = _load("g (float[N,8] x) => (float[1,8] y, float[A,B] z) { y = Relu(x) z = Neg(x) }")
    assert _shapes(model, "y") == ([1, 8], ["N", 8])
    assert _shapes(model, "z") == (["A", "B"], ["N", 8])
    assert is_consistent(model)


@pytest.mark.parametrize("declared", ["float[N,9]", "float[N,8,1]"])
def test_outputs_that_cannot_be_are_contradictions(declared: str) -> None:
    model = _load(f"g (float[N,8] x) => ({declared} y) {{ y = Relu(x) }}")
    assert not is_consistent(model)
    assert _shapes(model, "y")[1] == ["N", 8]


_LOOP = """
    g (float[N,8] x) => (float[A,B] y) <int64 turns = {{2}}, bool yes = {{1}}> {{
        y = Loop(turns, yes, x) <body = turn (int64 i, bool go, float[{shape}] h) => (bool on, float[C,D] next)
            {{ on = Identity(go) next = Neg(h) }}>
    }}
"""


def test_inputs_of_bodies_prove_nothing() -> None:
    model = _load(_LOOP.format(shape="1,8"))
    assert _shapes(model, "h") == ([1, 8], None)
    assert _shapes(model, "next")[1] is None
    assert is_consistent(model)


def test_inputs_of_bodies_can_contradict_their_nodes() -> None:
    scan = """
        g (float[N,8] x) => (float[N,8] y) {
            y = Scan<num_scan_inputs=1, body = turn (float[%s] h) => (float[D] next) { next = Neg(h) }>(x)
        }
    """
    assert is_consistent(_load(scan % "8"))
    assert not is_consistent(_load(scan % "9"))


def test_inferring_again_after_the_batch_became_dynamic() -> None:
    model = _load("g (float[1,8] x) => (float[M,8] y) { h = Relu(x) y = Neg(h) }")
    assert _shapes(model, "h") == ([1, 8], [1, 8])
    model.graph.inputs[0].shape = onnx_ir.Shape(["N", 8])
    infer_shapes(model)
    assert _shapes(model, "h") == (["N", 8], ["N", 8])


def test_inferring_again_after_a_custom_operator_is_gone() -> None:
    model = _load("g (float[N,8] x) => (float[N,8] y) <float[N,8] h> { h = my.ops.Unheard(x) y = Neg(h) }")
    assert _shapes(model, "h") == (["N", 8], None)
    model.graph[0].op_type, model.graph[0].domain = "Relu", ""
    infer_shapes(model)
    assert _shapes(model, "h") == (["N", 8], ["N", 8])


def test_a_scalar_replaces_another_shape() -> None:
    model = _load("g (float[N,8] x) => (float y) <float[1] s> { s = ReduceSum<keepdims=0>(x) y = Neg(s) }")
    assert _shapes(model, "s") == ([], [])


def test_proofs_are_cloned_and_not_written() -> None:
    model = _load("g (float[N,8] x) => (float[N,8] y) <float[1,8] h> { h = my.ops.Unheard(x) y = Neg(h) }")
    assert _shapes(model.clone(), "h") == ([1, 8], None)
    assert "proven" not in to_text(model) and b"proven" not in to_proto_bytes(model)


def test_a_value_that_stands_for_another_takes_over_what_is_proven() -> None:
    model = _load("g (float[N,8] x) => (float[N,8] y) <float[1,8] h> { h = my.ops.Unheard(x) k = Neg(h) y = Neg(x) }")
    claimed, proven = _value(model, "h"), _value(model, "y")
    new = onnx_ir.Value(name="new")
    take_shape(new, claimed)
    assert (_dims(new.shape), proven_shape(new)) == ([1, 8], None)
    take_shape(new, proven)
    assert _dims(new.shape) == _dims(proven_shape(new)) == ["N", 8]


def test_scalars_and_sequences_are_known_too() -> None:
    model = _load("""
        g (float[N,8] x) => (float y, seq(float[N,8]) s) { y = ReduceSum<keepdims=0>(x) s = SequenceConstruct(x) }
    """)
    assert _shapes(model, "y") == ([], [])
    assert is_consistent(model)
