"""Placement: the cut is the cheapest assignment there is, checked against all of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.passes.constraints import Precision, QuantizationScheme
from onnxpress.passes.quantize.placement import place, values_between
from onnxpress.passes.quantize.units import Unit, find_units
from tests.support import text_model

_SCHEME = QuantizationScheme(
    carry=frozenset({"Add", "MaxPool", "GlobalAveragePool"}), same_scale=frozenset({"MaxPool"})
)


class _Table:
    """Costs by node name and, for conversions, by value name."""

    def __init__(self, nodes: dict[str, tuple[float, float]], values: dict[str, tuple[float, float]]) -> None:
        self.nodes = nodes
        self.values = values

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        return self.nodes[node.name or ""][precision == "int8"] * 1e-6

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        return self.values[value.name or ""][to == "int8"] * 1e-6


def _conv_net() -> onnx_ir.Model:
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] out)
        <float[4, 4, 1, 1] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
        {
            [a] av = Conv (x, w)
            [b] bv = Conv (av, w)
            [add] cv = Add (av, bv)
            [d] dv = Conv (cv, w)
            out = Sigmoid (dv)
        }
        """
    )
    for node in model.graph:
        node.outputs[0].dtype = onnx_ir.DataType.FLOAT
        node.outputs[0].shape = onnx_ir.Shape(["N", 4, 8, 8])
    return model


def _total(units: list[Unit], chosen: set[Unit], costs: _Table) -> float:
    """Cost of an assignment from the definition: every unit, and every crossing value once each way."""
    total = sum(costs.nodes[unit.name][unit in chosen] for unit in units)
    producers = {unit.output: unit for unit in units}
    values = {value for unit in units for value in (*unit.inputs, unit.output)}
    for value in values:
        integer_readers = [unit for unit in units if value in unit.inputs and unit in chosen]
        known = {unit.node for unit in units if value in unit.inputs}
        float_readers = [unit for unit in units if value in unit.inputs and unit not in chosen]
        others = set(value.consumers()) - known or value.is_graph_output()
        from_integers = producers.get(value) in chosen
        if not from_integers and integer_readers:
            total += costs.values[value.name or ""][True]
        if from_integers and (float_readers or others):
            total += costs.values[value.name or ""][False]
    return total


_COST = st.integers(1, 50)
_PAIR = st.tuples(_COST, _COST)


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(dict.fromkeys(("a", "b", "add", "d"), _PAIR)),
    st.fixed_dictionaries(dict.fromkeys(("x", "av", "bv", "cv", "dv"), _PAIR)),
)
def test_the_cut_is_the_cheapest_assignment(
    nodes: dict[str, tuple[int, int]], values: dict[str, tuple[int, int]]
) -> None:
    units, _ = find_units(_conv_net().graph, _SCHEME)
    costs = _Table(dict(nodes), dict(values))
    in_float = place(units, costs)
    cheapest = min(
        _total(units, set(subset), costs)
        for size in range(len(units) + 1)
        for subset in itertools.combinations(units, size)
    )
    assert _total(units, set(units) - set(in_float), costs) == cheapest


def test_a_slow_unit_between_fast_ones_stays_integer_when_its_borders_cost_more() -> None:
    units, _ = find_units(_conv_net().graph, _SCHEME)
    borders = dict.fromkeys(("x", "av", "bv", "cv", "dv"), (20.0, 20.0))
    costs = _Table({"a": (90, 10), "b": (10, 15), "add": (5, 5), "d": (90, 10)}, borders)
    assert place(units, costs) == {}


def test_an_operator_without_integer_kernel_says_so() -> None:
    units, _ = find_units(_conv_net().graph, _SCHEME)
    costs = _Table(
        {"a": (9, 1), "b": (9, math.inf), "add": (9, 1), "d": (9, 1)},
        dict.fromkeys(("x", "av", "bv", "cv", "dv"), (0, 0)),
    )
    reasons = place(units, costs)
    assert {unit.name: reason for unit, reason in reasons.items()} == {"b": "the target has no int8 kernel for it"}


def test_times_beyond_all_numbers_are_infinite() -> None:
    """Of a profile whose numbers are finite, and no more than that."""
    units, _ = find_units(_conv_net().graph, _SCHEME)
    names = ("x", "av", "bv", "cv", "dv")
    costs = _Table(dict.fromkeys(("a", "b", "add", "d"), (9, 1e308)), dict.fromkeys(names, (0, 0)))
    assert {unit.name for unit in place(units, costs)} == {"a", "b", "add", "d"}


def test_a_unit_left_in_float_gives_both_times() -> None:
    units, _ = find_units(_conv_net().graph, _SCHEME)
    costs = _Table(
        dict.fromkeys(("a", "b", "add", "d"), (3.0, 7.5)),
        dict.fromkeys(("x", "av", "bv", "cv", "dv"), (1, 1)),
    )
    assert set(place(units, costs).values()) == {
        "float is cheaper as a whole: 3.0 us against 7.5 us in int8 and up to 2.0 us of conversions at its borders",
        "float is cheaper as a whole: 3.0 us against 7.5 us in int8 and up to 3.0 us of conversions at its borders",
    }


def test_no_units_need_no_cut() -> None:
    assert place([], _Table({}, {})) == {}


def test_values_between_are_inputs_and_outputs_once_in_order() -> None:
    units, _ = find_units(_conv_net().graph, _SCHEME)
    assert [value.name for value in values_between(units)] == ["x", "av", "bv", "cv", "dv"]
    assert np.unique([id(value) for value in values_between(units)]).size == 5
