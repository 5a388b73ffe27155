"""What inference proves and what annotations only claim."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.inference import infer_shapes, is_consistent, proven_shape, take_shape
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.text import to_text
from tests.support import random_feeds, run, text_model


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


_ROUNDING = "kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], ceil_mode=1"


def _pooled(body: str, opset: int = 17) -> onnx_ir.Model:
    return load(text_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}'))


@pytest.mark.parametrize("opset", [11, 17, 19, 22])
@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_no_window_of_a_pool_begins_in_the_padding_at_the_end(pool: str, opset: int) -> None:
    body = f"(float[1,3,15,14] x) => (float[1,3,H,W] y) {{ p = {pool}<{_ROUNDING}>(x) y = Relu(p) }}"
    model = _pooled(body, opset)
    assert _shapes(model, "p")[1] == [1, 3, 8, 8]
    assert _shapes(model, "y")[1] == list(run(model, random_feeds(model))[0].shape)


def test_pools_that_round_up_are_right_in_a_chain_and_in_bodies() -> None:
    model = _pooled(f"""
        (float[1,3,29,29] x, bool c) => (float[1,3,H,W] y) {{
            p = MaxPool<{_ROUNDING}>(x)
            q = AveragePool<{_ROUNDING}>(p)
            r = If(c) <then_branch = t () => (float[1,3,A,B] a) {{ a = MaxPool<{_ROUNDING}>(p) }},
                       else_branch = e () => (float[1,3,C,D] b) {{ b = Neg(q) }}>
            y = MaxPool<{_ROUNDING}>(r)
        }}
    """)
    assert [_shapes(model, name)[1] for name in "pqaby"] == [
        [1, 3, 15, 15], [1, 3, 8, 8], [1, 3, 8, 8], [1, 3, 8, 8], [1, 3, 5, 5]
    ]  # fmt: skip
    assert is_consistent(model)


def test_a_pool_that_rounds_up_keeps_its_attributes() -> None:
    model = _pooled(f"(float[1,3,15,15] x) => (float[1,3,H,W] y) {{ p = MaxPool<{_ROUNDING}>(x) y = Relu(p) }}")
    assert model.graph[0].attributes.get_int("ceil_mode") == 1
    assert list(model.graph[0].attributes.get_ints("pads") or ()) == [1, 1, 1, 1]


def test_windows_apart_that_round_up_are_not_counted_beyond_the_image() -> None:
    """Without padding too: a stride beyond the kernel steps over the end."""
    body = "(float[1,3,5,6] x) => (float[1,3,H,W] y) { y = MaxPool<kernel_shape=[1,1], strides=[3,5], ceil_mode=1>(x) }"
    model = _pooled(body)
    assert _shapes(model, "y")[1] == list(run(model, random_feeds(model))[0].shape) == [1, 3, 2, 2]


def test_an_input_that_is_an_output_too_has_the_shape_that_it_declares() -> None:
    model = _load("g (float[N,8] x) => (float[N,8] x, float[A,B] y) { y = Relu(x) }")
    assert _shapes(model, "y")[1] == ["N", 8]
