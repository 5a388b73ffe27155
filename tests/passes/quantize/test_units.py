"""Units: what could run in integers, and every reason why something cannot."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.passes.quantize.units import find_units, nodes_before_last_linear
from tests.support import text_model

_SCHEME = QuantizationScheme(
    compute=frozenset({"Conv", "Gemm", "MatMul"}),
    carry=frozenset({"Add", "Concat", "MaxPool", "Pad", "Split", "GlobalAveragePool"}),
    same_scale=frozenset({"Concat", "MaxPool", "Pad"}),
)
_HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def _graph(text: str, dtype: onnx_ir.DataType = onnx_ir.DataType.FLOAT) -> onnx_ir.Graph:
    graph = text_model(f"{_HEADER}\n{text}").graph
    for node in graph:
        for value in node.outputs:
            value.dtype = value.dtype or dtype
    return graph


def test_a_relu_folds_into_the_unit_before_it() -> None:
    graph = _graph(
        """
        net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] out)
        <float[2, 2, 1, 1] w = {1,0,0,1}>
        { [conv] y = Conv (x, w)
          [relu] z = Relu (y)
          out = Sigmoid (z) }
        """
    )
    (unit,), declined = find_units(graph, _SCHEME)
    assert (unit.name, unit.output.name, unit.activation and unit.activation.name) == ("conv", "z", "relu")
    assert [value.name for value in unit.inputs] == ["x"] and declined == []


@pytest.mark.parametrize(
    "tail",
    [
        "[relu] z = Relu (y)\n out = Add (y, z)",
        "[clip] z = Clip (y, low, high)\n out = Sigmoid (z)",
        "out = Sigmoid (y)",
    ],
)
def test_an_activation_does_not_fold_when_others_read_or_its_bounds_vary(tail: str) -> None:
    graph = _graph(
        f"""
        net (float[N, 2, 4, 4] x, float low, float high) => (float[N, 2, 4, 4] out)
        <float[2, 2, 1, 1] w = {{1,0,0,1}}>
        {{ [conv] y = Conv (x, w)
           {tail} }}
        """
    )
    units, _ = find_units(graph, _SCHEME)
    assert (units[0].activation, units[0].output.name) == (None, "y")


def test_an_activation_does_not_fold_over_a_graph_output() -> None:
    graph = _graph(
        """
        net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y, float[N, 2, 4, 4] out)
        <float[2, 2, 1, 1] w = {1,0,0,1}>
        { [conv] y = Conv (x, w)
          out = Relu (y) }
        """
    )
    (unit,), _ = find_units(graph, _SCHEME)
    assert unit.activation is None and unit.output.name == "y"


@pytest.mark.parametrize("shape", ["", "[1]"])
@pytest.mark.parametrize(("low", "high", "folds"), [(0, 6, True), (-1, 1, True), (1, 6, False), (-6, -1, False)])
def test_a_clip_folds_only_where_it_lets_zero_through(low: int, high: int, folds: bool, shape: str) -> None:
    graph = _graph(
        f"""
        net (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] out)
        <float[2, 2, 1, 1] w = {{1,0,0,1}}, float{shape} low = {{{low}}}, float{shape} high = {{{high}}}>
        {{ [conv] y = Conv (x, w)
           [clip] z = Clip (y, low, high)
           out = Sigmoid (z) }}
        """
    )
    (unit,), _ = find_units(graph, _SCHEME)
    assert (unit.activation is not None) == folds


def test_same_scale_units_do_not_fold_an_activation() -> None:
    graph = _graph(
        """
        net (float[N, 2, 4, 4] x) => (float[N, 2, 2, 2] out)
        { [pool] y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
          out = Relu (y) }
        """
    )
    (unit,), _ = find_units(graph, _SCHEME)
    assert unit.same_scale and unit.activation is None and unit.output.name == "y"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[n] out = Conv (x, x)", "weight 'x' is a graph input, which the caller may set"),
        ("[n] out = Add (x, c)", "operand 'c' is a constant"),
        (
            "q = QuantizeLinear (x, one)\n y = DequantizeLinear (q, one)\n [n] out = GlobalAveragePool (y)",
            "already quantized",
        ),
        ("q = QuantizeLinear (c, one)\n y = DequantizeLinear (q, one)\n [n] out = Conv (x, y)", "already quantized"),
        ("[n] out = Pad (x, pads, one)", "pads with another value than zero"),
        ("[n] a, out = Split (x)", "2 outputs: only single-output forms have an integer kernel"),
    ],
)
def test_near_misses_are_declined_with_their_reason(body: str, reason: str) -> None:
    graph = _graph(
        f"""
        net (float[2, 2, 4, 4] x) => (out)
        <float[2, 2, 4, 4] c = {{{",".join("1" * 64)}}}, int64[8] pads = {{0,0,1,1,0,0,1,1}}, float one = {{1.0}}>
        {{ {body} }}
        """
    )
    units, declined = find_units(graph, _SCHEME)
    assert units == []
    assert [(entry.name, entry.reason) for entry in declined] == [("n", reason)]


def test_only_float_is_quantized() -> None:
    graph = _graph(
        """
        net (float16[N, 2, 4, 4] x) => (float16[N, 2, 2, 2] out)
        { [pool] out = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }
        """,
        onnx_ir.DataType.FLOAT16,
    )
    _, (entry,) = find_units(graph, _SCHEME)
    assert entry.reason == "value 'x' is FLOAT16, and only FLOAT is quantized"


def test_bodies_of_control_flow_are_declined() -> None:
    graph = _graph(
        """
        net (bool c, float[2, 2] x) => (float[2, 2] out)
        { out = If (c) <
            then_branch = yes () => (float[2, 2] a) { [inner] a = Add (x, x) },
            else_branch = no () => (float[2, 2] b) { b = Identity (x) }
          > }
        """
    )
    units, declined = find_units(graph, _SCHEME)
    assert units == []
    assert [(entry.name, entry.reason) for entry in declined] == [
        ("inner", "inside a subgraph body: its values have no statistics")
    ]


def test_the_tail_is_what_no_weighted_unit_depends_on() -> None:
    graph = _graph(
        """
        net (float[N, 2, 4, 4] x) => (float[N, 2, 1, 1] out)
        <float[2, 2, 1, 1] w = {1,0,0,1}>
        { [before] a = Add (x, x)
          [conv] y = Conv (a, w)
          [after] out = GlobalAveragePool (y) }
        """
    )
    units, _ = find_units(graph, _SCHEME)
    assert {node.name for node in nodes_before_last_linear(graph, units)} == {"before", "conv"}


def test_other_domains_and_operators_are_not_looked_at() -> None:
    graph = _graph("net (float[N, 4] x) => (float[N, 4] out) { out = com.example.Add (x, x) }")
    assert find_units(graph, _SCHEME) == ([], [])
