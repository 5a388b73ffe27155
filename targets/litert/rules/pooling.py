"""Pooling and means.

Average pooling of windows that reach beyond the image divides by what ONNX counts: where LiteRT's kernel counts
otherwise, sums are corrected by a constant factor for each position.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import (
    Layered,
    Rule,
    Site,
    Unit,
    first_computed,
    flag,
    ints,
    is_read,
    rank,
    shape,
    touch,
)
from onnxpress.targets.litert.rules.convolution import padded
from onnxpress.targets.litert.windows import Windows, find_windows

__all__ = ["AveragePool", "MaxPool", "Mean", "Reduction"]

_SAME, _VALID = 0, 1
_LOWEST = float(np.finfo(np.float32).min)


class _Pool(Rule):
    has_integer_kernel = True

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if rank(node.inputs[0]) != 4:
            return f"its data have {rank(node.inputs[0])} axes, and only images of 4 are written"
        if any(step != 1 for step in node.attributes.get_ints("dilations", [])):
            return f"dilations={list(node.attributes.get_ints('dilations', []))}: LiteRT's pooling has none"
        if any(map(is_read, node.outputs[1:])):
            return "its indices are read"
        return None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST)

    @staticmethod
    def windows(node: onnx_ir.Node) -> Windows:
        return find_windows(node, shape(node.inputs[0])[2:], node.attributes.get_ints("kernel_shape", []))

    @staticmethod
    def fields(windows: Windows, padding: int) -> dict[str, int]:
        return {
            "padding": padding,
            "strideH": windows.strides[0],
            "strideW": windows.strides[1],
            "filterHeight": windows.kernel[0],
            "filterWidth": windows.kernel[1],
        }


class MaxPool(_Pool):
    """MAX_POOL_2D, whose integers keep their scale."""

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return super().is_integer(node, list(results)[:1])

    def write(self, site: Site) -> None:
        data, windows = site.read(site.source, last=True), self.windows(site.node)
        padding = _SAME if windows.is_same else _VALID
        grid = data.grid
        if padding == _VALID and not windows.is_valid:
            data = padded(site, data, windows.pads, -128 if site.integer else _LOWEST)
        result = site.new(last=True, grid=grid)
        site.operator("MAX_POOL_2D", [data], result, "Pool2DOptions", **self.fields(windows, padding))
        site.put(result, last=True)


class AveragePool(_Pool):
    """AVERAGE_POOL_2D, whose integers keep their scale; a MUL behind it where ONNX counts otherwise."""

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return super().is_integer(node, results) and self._factor(node) is None

    def write(self, site: Site) -> None:
        data, windows = site.read(site.source, last=True), self.windows(site.node)
        factor = self._factor(site.node)
        padding = _SAME if windows.is_same and not flag(site.node, "count_include_pad") else _VALID
        grid = data.grid
        if padding == _VALID and not windows.is_valid:
            data = padded(site, data, windows.pads)
        result = site.new(last=True, grid=grid)
        pooled = result if factor is None else site.inner("pooled", result, result.shape)
        site.operator("AVERAGE_POOL_2D", [data], pooled, "Pool2DOptions", **self.fields(windows, padding))
        if factor is not None:
            site.operator("MUL", [pooled, site.graph.constant("factor", factor)], result, "MulOptions")
        site.put(result, last=True)

    def _factor(self, node: onnx_ir.Node) -> npt.NDArray[np.float32] | None:
        """Return [1, H, W, 1] by which the mean of padded windows is off; None where it is right."""
        windows, includes = self.windows(node), flag(node, "count_include_pad")
        if windows.is_valid or (windows.is_same and not includes):
            return None
        counts = []
        for axis, extent in enumerate(windows.kernel):
            before = windows.begin[axis] if includes else 0
            after = windows.declared_end[axis] if includes else 0
            starts = np.arange(windows.output[axis]) * windows.strides[axis] - windows.begin[axis]
            ends = np.minimum(starts + extent, windows.size[axis] + after)
            counts.append(ends - np.maximum(starts, -before))
        counted = np.outer(counts[0], counts[1])
        if np.all(counted == np.prod(windows.kernel)):
            return None
        return (np.prod(windows.kernel) / counted).astype(np.float32)[None, :, :, None]


class Reduction(Rule):
    """A reduction over axes. Where it keeps them, any order will do."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if len(node.inputs) > 1 and node.inputs[1] is not None and ints(node, 1, "axes") is None:
            return "its axes are computed"
        return None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        keeps = self._keeps(unit.node)
        return touch(unit, layered, Demand.AGREE if keeps else Demand.PLAIN)

    def write(self, site: Site) -> None:
        source = site.source
        data = site.read(source)
        axes = self._axes(site.node)
        order = sorted(site.axis(axis, len(data.shape)) for axis in axes)
        result = site.new()
        numbers = site.numbers("axes", order)
        site.operator(self.kind, [data, numbers], result, "ReducerOptions", keepDims=self._keeps(site.node))
        site.put(result)

    def _keeps(self, node: onnx_ir.Node) -> bool:
        return node.op_type.startswith("Global") or flag(node, "keepdims", 1)

    def _axes(self, node: onnx_ir.Node) -> list[int]:
        count = rank(node.inputs[0])
        if node.op_type.startswith("Global"):
            return list(range(2, count))
        axes = ints(node, 1, "axes")
        if not axes:
            return [] if flag(node, "noop_with_empty_axes") else list(range(count))
        return [axis % count for axis in axes]


class Mean(Reduction):
    """MEAN, which rescales integers by itself."""

    has_integer_kernel = True

    def __init__(self) -> None:
        super().__init__("MEAN")
