"""The small edits that the exact rewrites share."""

from __future__ import annotations

import doctest

import numpy as np
import onnx_ir

from onnxpress.passes.cleanup import graph_edits
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


def test_amounts_count_weights_once_as_stored() -> None:
    values = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        for name, array in (("w", np.ones((2, 3), np.float16)), ("s", np.float32(1)), ("i", np.arange(4)))
    ]
    found = graph_edits.amount(values)
    assert (found.params, found.size_bytes) == (6, 12 + 4 + 32)
