"""Limits of Relu and Clip: attributes and inputs, one left out, one that is computed."""

from __future__ import annotations

import math

import pytest

from onnxpress.ir.activations import activation_limits, clip_limits
from tests.support import text_model

_CASES = {
    "Relu(x)": ((None, None), (0.0, math.inf)),
    "Clip(x)": ((-math.inf, math.inf), (-math.inf, math.inf)),
    "Clip<min = -1.0, max = 2.0>(x)": ((-1.0, 2.0), (-1.0, 2.0)),
    "Clip<max = 2.0>(x)": ((-math.inf, 2.0), (-math.inf, 2.0)),
    "Clip(x, l)": ((-3.0, math.inf), (-3.0, math.inf)),
    "Clip(x, , h)": ((-math.inf, 6.0), (-math.inf, 6.0)),
    "Clip(x, l, h)": ((-3.0, 6.0), (-3.0, 6.0)),
    "Clip(x, l, m)": ((-3.0, None), (math.inf, -math.inf)),
    "Clip(x, l, two)": ((-3.0, None), (math.inf, -math.inf)),
}


@pytest.mark.parametrize("text", _CASES)
def test_limits_are_read_alike(text: str) -> None:
    model = text_model(f"""
        <ir_version: 8, opset_import: ["" : 17]> g (float[4] x, float m) => (float[4] y)
        <float l = {{-3.0}}, float[1] h = {{6.0}}, float[2] two = {{1.0, 2.0}}> {{ y = {text} }}
    """)
    (node,) = model.graph
    clips, limits = _CASES[text]
    assert activation_limits(node) == limits
    if node.op_type == "Clip":
        assert clip_limits(node) == clips
