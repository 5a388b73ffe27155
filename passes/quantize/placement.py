"""Decide which units run in integers, at least predicted time for the whole graph.

A rule per operator is not enough: int8 depthwise convolution is slower than float in onnxruntime, and yet
leaving it in float costs more at its borders. So every unit pays its own time, every value that crosses from
float to integers (or back) pays its conversion once, and the cheapest assignment is a minimum cut:

    source side = integers, sink side = float
    source -> unit       float seconds          cut when the unit is float
    unit   -> sink       int8 seconds           cut when the unit is int8
    z(v)   -> producer   quantize seconds       z(v): v has an integer copy, needed by any int8 reader
    producer -> y(v)     dequantize seconds     y(v): v has no float copy; forced to the sink by a float reader

The cut is exact because the only terms join two nodes (Picard & Ratliff 1975, "Minimum cuts and related problems").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import onnx_ir

from onnxpress.passes.constraints import CostEstimator
from onnxpress.passes.quantize.min_cut import FlowGraph
from onnxpress.passes.quantize.units import Unit

__all__ = ["place", "values_between"]

_INT8, _FLOAT = "int8", "float"


def place(units: Sequence[Unit], costs: CostEstimator) -> dict[Unit, str]:
    """Return why each unit that should stay in float does so; the units left out run in integers."""
    if not units:
        return {}
    integer_side = _flow_graph(units, costs).source_side(_INT8, _FLOAT)
    return {unit: _reason(unit, costs) for unit in units if unit not in integer_side}


def _flow_graph(units: Sequence[Unit], costs: CostEstimator) -> FlowGraph:
    graph = FlowGraph()
    producers = {unit.output: unit for unit in units}
    readers: dict[onnx_ir.Value, list[Unit]] = {}
    for unit in units:
        graph.add_edge(_INT8, unit, _nanoseconds(costs.node_seconds(unit.node, "float32")))
        graph.add_edge(unit, _FLOAT, _nanoseconds(costs.node_seconds(unit.node, "int8")))
        for value in unit.inputs:
            readers.setdefault(value, []).append(unit)
    for value, reading in readers.items():
        copy = ("integer copy", value)
        graph.add_edge(copy, producers.get(value, _FLOAT), _nanoseconds(costs.convert_seconds(value, "int8")))
        for unit in reading:
            graph.add_edge(unit, copy, None)
    for unit in units:
        if unit.must_quantize_output:
            _add_dequantize(graph, unit, readers.get(unit.output, []), costs)
    return graph


def _add_dequantize(graph: FlowGraph, unit: Unit, readers: Collection[Unit], costs: CostEstimator) -> None:
    no_float = ("no float copy", unit.output)
    graph.add_edge(unit, no_float, _nanoseconds(costs.convert_seconds(unit.output, "float32")))
    for reader in readers:
        graph.add_edge(no_float, reader, None)
    others = set(unit.output.consumers()) - {reader.node for reader in readers}
    if others or unit.output.is_graph_output():
        graph.add_edge(no_float, _FLOAT, None)


def _nanoseconds(seconds: float) -> int | None:
    """Whole numbers: the cut does not depend on the order of additions. None is infinite."""
    nanoseconds = seconds * 1e9  # infinite too where a profile's number is near the largest
    return None if math.isinf(nanoseconds) else round(nanoseconds)


def _reason(unit: Unit, costs: CostEstimator) -> str:
    integer, real = costs.node_seconds(unit.node, "int8"), costs.node_seconds(unit.node, "float32")
    if math.isinf(integer):
        return "the target has no int8 kernel for it"
    borders = sum(costs.convert_seconds(value, "int8") for value in unit.inputs)
    borders += costs.convert_seconds(unit.output, "float32") if unit.must_quantize_output else 0.0
    return (
        f"float is cheaper as a whole: {real * 1e6:.1f} us against {integer * 1e6:.1f} us in int8 "
        f"and up to {borders * 1e6:.1f} us of conversions at its borders"
    )


def values_between(units: Collection[Unit]) -> list[onnx_ir.Value]:
    """Return every value that must be quantized when `units` run in integers, in graph order, once each."""
    found: dict[onnx_ir.Value, None] = {}
    for unit in units:
        found.update(dict.fromkeys(unit.inputs))
        if unit.must_quantize_output:
            found[unit.output] = None
    return list(found)
