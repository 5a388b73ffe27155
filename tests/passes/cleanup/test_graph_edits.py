"""The small edits that the exact rewrites share."""

from __future__ import annotations

import doctest
from collections.abc import Callable

import numpy as np
import onnx_ir

from onnxpress.ir.inference import proven_shape
from onnxpress.ir.model_io import load
from onnxpress.passes.cleanup import graph_edits
from onnxpress.passes.cleanup.duplicates import share_node
from tests.support import text_model


def test_examples() -> None:
    assert doctest.testmod(graph_edits).failed == 0


def test_fresh_names_are_taken_at_once() -> None:
    taken: set[str | None] = {"a", "a_1"}
    assert [graph_edits.fresh_name("a", taken) for _ in range(2)] == ["a_2", "a_3"]
    assert graph_edits.fresh_name("b", taken) == "b"


def test_names_of_bodies_count() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x, bool c) => (float[2] y) <float[2] v = {1, 2}> {
            y = If(c) <
                then_branch = yes () => (float[2] t) { t = Mul(x, v) },
                else_branch = no () => (float[2] e) { e = Relu(x) }
            >
        }
    """)
    assert graph_edits.value_names(model) == {"x", "c", "v", "y", "t", "e"}


def _annotated() -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """Two equal values: one whose shape only an annotation knows, one whose shape is proven."""
    model = load(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17, "my.ops" : 1]>
            g (float[N,8] x) => (float[N,8] y) <float[1,8] h> {
                h = my.ops.Unheard(x) n = Identity(x) a = Neg(h) b = Neg(n) y = Add(a, b)
            }
        """)
    )
    return model.graph[0].outputs[0], model.graph[1].outputs[0]


def test_a_shape_is_taken_over_with_its_proof() -> None:
    takers: list[Callable[[onnx_ir.Value, onnx_ir.Value], None]] = [
        graph_edits.take_over_output,
        lambda old, new: graph_edits.inherit(new, old),
        lambda old, new: share_node(_producer(old), _producer(new)),
    ]
    for take in takers:
        claimed, new = _annotated()
        new.shape = None
        take(claimed, new)
        assert new.shape is not None and list(new.shape) == [1, 8] and proven_shape(new) is None
    new, proven = _annotated()
    graph_edits.inherit(new, proven)
    assert new.shape == proven_shape(new) == onnx_ir.Shape(["N", 8])


def _producer(value: onnx_ir.Value) -> onnx_ir.Node:
    node = value.producer()
    assert node is not None
    return node


def test_amounts_count_weights_once_as_stored() -> None:
    values = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        for name, array in (("w", np.ones((2, 3), np.float16)), ("s", np.float32(1)), ("i", np.arange(4)))
    ]
    found = graph_edits.amount(values)
    assert (found.params, found.size_bytes) == (6, 12 + 4 + 32)
