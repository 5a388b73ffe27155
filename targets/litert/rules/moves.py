"""Operators that move numbers without computing: shapes, slices, pads, concatenations. Their integers keep their scale.

Reshape and Flatten read an image as ONNX lays it out; only where it has one row and column, or one channel, do both
orders read the same. A flattened image keeps two orders where products alone read it (see `layout`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.litert.flatbuffer import Tensor
from onnxpress.targets.litert.layout import Demand, Touch, is_one_order
from onnxpress.targets.litert.rules.base import (
    Layered,
    Rule,
    Site,
    Unit,
    first_computed,
    input_of,
    ints,
    rank,
    shape,
    touch,
)  # fmt: skip
from onnxpress.targets.litert.values import grid_of

__all__ = ["Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Transpose"]

_MOST_PADDED = 5  # axes: tensorflow/lite/kernels/internal/reference/pad.h, PadKernelMaxDimensionCount
_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class _Move(Rule):
    has_integer_kernel = True

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)


class Reshape(_Move):
    """RESHAPE, for Reshape, Flatten, Squeeze and Unsqueeze."""

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        (data,) = self.data(unit.node)
        result = unit.result
        if result in layered and rank(result) == 2:
            return touch(unit, layered, Demand.AGREE)
        reads = {data: Demand.ANY if is_one_order(data) else Demand.PLAIN} if data in layered else {}
        makes = {result: Demand.ANY if is_one_order(result) else Demand.PLAIN} if result in layered else {}
        return Touch(unit.node, reads, makes)

    def write(self, site: Site) -> None:
        (data,) = self.data(site.node)
        if site.unit.result in site.values.flattened:
            self._write(site, site.read(data), site.last)
            return
        self._write(site, site.values.either(data, integer=site.integer) if is_one_order(data)
                    else site.read(data, last=False), site.makes_last(site.unit.result))  # fmt: skip

    @staticmethod
    def _write(site: Site, tensor: Tensor, last: bool) -> None:
        sizes = site.values.shape(site.unit.result, last)
        site.put(site.values.reshaped(tensor, sizes, str(site.unit.result.name)), last=last)


class Transpose(_Move):
    """TRANSPOSE; nothing where it only names the order that the image lies in anyway."""

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        axes = _axes(unit.node)
        made = Demand.LAST if axes == _TO_FIRST else Demand.PLAIN
        return touch(unit, layered, Demand.LAST if axes == _TO_LAST else Demand.PLAIN, made)

    def write(self, site: Site) -> None:
        axes = _axes(site.node)
        data = site.read(site.source, last=axes == _TO_LAST)
        if axes not in (_TO_LAST, _TO_FIRST):
            data = site.values.transposed(data, axes, str(site.unit.result.name))
        site.put(data, last=axes == _TO_FIRST)


def _axes(node: onnx_ir.Node) -> list[int]:
    return list(node.attributes.get_ints("perm", list(range(rank(node.inputs[0])))[::-1]))


class Concat(Rule):
    """CONCATENATION. Its integers must have one scale: operands are brought to that of the result."""

    has_integer_kernel = True

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return len(self.data(node)) == len(node.inputs) and super().is_integer(node, results)

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        # Of flattened values, each would have an order of its own.
        return touch(unit, layered, Demand.AGREE if rank(unit.result) == 4 else Demand.PLAIN)

    def write(self, site: Site) -> None:
        grid = grid_of(site.unit.result)
        operands: list[Tensor | None] = []
        for value in site.node.inputs:
            assert value is not None
            numbers = constant_numbers(value)
            if numbers is not None:
                numbers = numbers.astype(np.float32)
                numbers = numbers.transpose(_TO_LAST) if site.last and numbers.ndim == 4 else numbers
                operands.append(site.graph.constant(str(value.name), np.ascontiguousarray(numbers)))
                continue
            tensor = site.read(value)
            if site.integer and grid is not None and tensor.grid != grid:
                tensor = site.values.requantized(tensor, grid)
            operands.append(tensor)
        result = site.new()
        axis = site.axis(site.node.attributes.get_int("axis", 1), len(result.shape))
        site.put(site.operator("CONCATENATION", operands, result, "ConcatenationOptions", axis=axis))


class Pad(_Move):
    """PAD of real zeros, PADV2 of another number, MIRROR_PAD."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        mode = node.attributes.get_string("mode", "constant")
        if mode not in ("constant", "reflect"):
            return f"mode={mode!r}: LiteRT pads with a constant, or reflects"
        widths = self._widths(node)
        if widths is None:
            return "how much it pads is computed"
        if any(number < 0 for pair in widths for number in pair):
            return "it pads by less than nothing, which cuts off: use Slice"
        if self._fill(node) is None:
            return "what it pads with is computed"
        count = rank(node.inputs[0])
        return None if count <= _MOST_PADDED else f"its data have {count} axes, and PAD takes {_MOST_PADDED}"

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return super().is_integer(node, results) and not self._fill(node)

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        widths = site.numbers("pads", site.by_axis(self._widths(site.node) or []))
        result, fill = site.new(grid=data.grid), self._fill(site.node)
        if site.node.attributes.get_string("mode", "constant") == "reflect":
            site.operator("MIRROR_PAD", [data, widths], result, "MirrorPadOptions", mode=0)
        elif fill:
            number = site.graph.constant("fill", np.asarray(fill, np.float32))
            site.operator("PADV2", [data, widths, number], result, "PadV2Options")
        else:
            site.operator("PAD", [data, widths], result, "PadOptions")
        site.put(result)

    @staticmethod
    def _widths(node: onnx_ir.Node) -> list[tuple[int, int]] | None:
        pads = ints(node, 1, "pads")
        count = rank(node.inputs[0])
        axes = ints(node, 3, "axes") if len(node.inputs) > 3 and node.inputs[3] is not None else list(range(count))
        if pads is None or axes is None:
            return None
        widths = [(0, 0)] * count
        for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            widths[axis % count] = (before, after)
        return widths

    @staticmethod
    def _fill(node: onnx_ir.Node) -> float | None:
        value = input_of(node, 2)
        if value is None:
            return node.attributes.get_float("value", 0.0)
        found = constant_numbers(value)
        return None if found is None else float(found.reshape(-1)[0])


class Slice(_Move):
    """STRIDED_SLICE."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        found = self._ranges(node)
        if found is None:
            return "where it begins or ends is computed"
        return "it runs backwards" if any(each.step < 0 for each in found) else None

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        ranges = site.by_axis(self._ranges(site.node) or [])
        parameters = [
            site.numbers(name, numbers)
            for name, numbers in (
                ("begin", [each.start for each in ranges]),
                ("end", [each.stop for each in ranges]),
                ("steps", [each.step for each in ranges]),
            )
        ]
        result = site.new(grid=data.grid)
        site.put(site.operator("STRIDED_SLICE", [data, *parameters], result, "StridedSliceOptions"))

    @staticmethod
    def _ranges(node: onnx_ir.Node) -> list[range] | None:
        """Return the positions kept along each axis."""
        sizes = shape(node.inputs[0])
        starts, ends = ints(node, 1, "starts"), ints(node, 2, "ends")
        if starts is None or ends is None:
            return None
        axes = ints(node, 3, "axes") or list(range(len(starts)))
        steps = ints(node, 4, "steps") or [1] * len(starts)
        kept = [range(size) for size in sizes]
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            first, last, stride = slice(start, end, step).indices(sizes[axis])
            kept[axis % len(sizes)] = range(first, last, stride)
        return kept


class Split(_Move):
    """SPLIT into equal parts, SPLIT_V into others."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if len(node.inputs) > 1 and node.inputs[1] is not None and constant_numbers(node.inputs[1]) is None:
            return "the sizes of its parts are computed"
        return None

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        count = len(data.shape)
        given = site.node.attributes.get_int("axis", 0) % count
        sizes = [shape(value)[given] for value in site.node.outputs]
        axis = site.numbers("axis", site.axis(given, count))
        results = [
            site.graph.tensor(
                str(value.name), site.values.shape(value, site.last and count == 4), data.dtype, data.grid
            )
            for value in site.node.outputs
        ]
        if len(set(sizes)) == 1:
            fields = {"numSplits": len(sizes)}
            site.graph.operator("SPLIT", [axis, data], results, "SplitOptions", fields)
        else:
            operands = [data, site.numbers("sizes", sizes), axis]
            site.graph.operator("SPLIT_V", operands, results, "SplitVOptions", {"numSplits": len(sizes)})
        for value, tensor in zip(site.node.outputs, results, strict=True):
            site.put(tensor, value=value)


class Gather(_Move):
    """GATHER of constant indices along one axis."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        indices = constant_numbers(input_of(node, 1))
        if indices is None:
            return "its indices are computed"
        return "its indices have several axes" if indices.ndim > 1 else None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.AGREE if rank(unit.result) == rank(unit.node.inputs[0]) else Demand.PLAIN)

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        count = len(data.shape)
        given = site.node.attributes.get_int("axis", 0) % count
        indices = np.asarray(constant_numbers(site.node.inputs[1]), np.int64)
        indices = np.where(indices < 0, indices + shape(site.source)[given], indices)
        result = site.new(grid=data.grid)
        numbers = site.numbers("indices", indices)
        site.put(site.operator("GATHER", [data, numbers], result, "GatherOptions", axis=site.axis(given, count)))
