"""Conv, ConvTranspose, and BatchNormalization that no pass folded.

    weight [M, C/group, kH, kW]          =>   [M, kH, kW, C/group], depthwise [1, kH, kW, M]
    ConvTranspose weight [C, M, kH, kW]  =>   [M, kH, kW, C]

Windows that neither SAME nor VALID describes get a PAD in front; ConvTranspose computes all that VALID gives, and what
ONNX pads is cut off behind. Grouped convolutions are one operator: a weight with fewer input channels than the data
says so (LiteRT 2.3.0, built-in and XNNPACK kernels).
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.linear import Linear, as_linear, constant_numbers
from onnxpress.targets.litert.flatbuffer import Tensor
from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import Layered, Rule, Site, Unit, input_of, is_read, rank, shape, touch
from onnxpress.targets.litert.rules.linear import LinearRule, view_of
from onnxpress.targets.litert.windows import find_windows

__all__ = ["BatchNormalization", "Conv", "ConvTranspose", "padded"]

_SAME, _VALID = 0, 1  # schema.fbs, Padding


class _Convolution(LinearRule):
    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        linear = as_linear(node)
        if not isinstance(linear, Linear):
            return str(linear)
        data = rank(node.inputs[0])
        return None if data == 4 else f"its data have {data} axes, and only images of 4 are written"

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST)


class Conv(_Convolution):
    """CONV_2D, or DEPTHWISE_CONV_2D where every group has one input channel."""

    def write(self, site: Site) -> None:
        linear = view_of(site.node)
        data = site.read(linear.data, last=True)
        size = shape(linear.data)[2:]
        windows = find_windows(site.node, size, linear.kernel)
        padding = _SAME if windows.is_same else _VALID
        source = data
        if padding == _VALID and not windows.is_valid:
            data = padded(site, data, windows.pads)
        fields = {
            "padding": padding,
            "strideH": windows.strides[0],
            "strideW": windows.strides[1],
            "dilationHFactor": windows.dilations[0],
            "dilationWFactor": windows.dilations[1],
            **site.fused,
        }
        result = site.new(last=True)
        if linear.is_depthwise:
            weight = self.weight_and_bias(site, linear, source, lambda w: w.transpose(1, 2, 3, 0), axis=3)
            fields["depthMultiplier"] = linear.out_channels // linear.in_channels
            site.operator("DEPTHWISE_CONV_2D", [data, *weight], result, "DepthwiseConv2DOptions", **fields)
        else:
            weight = self.weight_and_bias(site, linear, source, lambda w: w.transpose(0, 2, 3, 1))
            site.operator("CONV_2D", [data, *weight], result, "Conv2DOptions", **fields)
        site.put(result, last=True)


def padded(site: Site, data: Tensor, pads: list[tuple[int, int]], fill: float | None = None) -> Tensor:
    """Return an image, channels last, with more rows and columns. fill: the integer or real there; None for real 0."""
    widths = [(0, 0), *pads, (0, 0)]
    sizes = [size + before + after for size, (before, after) in zip(data.shape, widths, strict=True)]
    made = site.inner("padded", data, sizes)
    numbers = site.numbers("pads", widths)
    if fill is None:
        return site.operator("PAD", [data, numbers], made, "PadOptions")
    value = site.graph.constant("fill", np.asarray(fill, data.dtype), data.grid)
    return site.operator("PADV2", [data, numbers, value], made, "PadV2Options")


class ConvTranspose(_Convolution):
    """TRANSPOSE_CONV over all positions, then a STRIDED_SLICE of those that ONNX keeps."""

    def fuses(self, node: onnx_ir.Node) -> bool:
        return False  # the field came later than the kernels of phones: version 4 of TRANSPOSE_CONV

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        reason = super().problem(node, opset)
        if reason is not None:
            return reason
        linear = view_of(node)
        if linear.groups > 1:
            return f"group={linear.groups}: TRANSPOSE_CONV has none"
        if any(step != 1 for step in node.attributes.get_ints("dilations", [])):
            return f"dilations={list(node.attributes.get_ints('dilations', []))}: TRANSPOSE_CONV has none"
        begin, whole, kept = _cut(node, linear)
        if any(first < 0 or first + count > full for first, count, full in zip(begin, kept, whole, strict=True)):
            return f"its output {kept} reaches beyond the positions that its input touches, {whole}"
        return None

    def write(self, site: Site) -> None:
        linear = view_of(site.node)
        data = site.read(linear.data, last=True)
        begin, whole, _ = _cut(site.node, linear)
        strides = site.node.attributes.get_ints("strides", [1, 1])
        weight, bias = self.weight_and_bias(site, linear, data, lambda w: w.transpose(0, 2, 3, 1))
        result = site.new(last=True)
        sizes = (data.shape[0], *whole, linear.out_channels)
        full = result if list(result.shape) == list(sizes) else site.inner("all", result, sizes)
        site.operator(
            "TRANSPOSE_CONV", [site.numbers("sizes", sizes), weight, data, bias], full, "TransposeConvOptions",
            padding=_VALID, strideH=strides[0], strideW=strides[1],
        )  # fmt: skip
        if full is not result:
            first = [0, *begin, 0]
            ends = [start + size for start, size in zip(first, result.shape, strict=True)]
            parameters = [site.numbers("begin", first), site.numbers("end", ends), site.numbers("steps", [1] * 4)]
            site.operator("STRIDED_SLICE", [full, *parameters], result, "StridedSliceOptions")
        site.put(result, last=True)


def _cut(node: onnx_ir.Node, linear: Linear) -> tuple[list[int], list[int], list[int]]:
    """Return, for rows and columns, the first position that ONNX keeps, how many there are, and how many it keeps."""
    size, kept = shape(linear.data)[2:], list(shape(node.outputs[0])[2:])
    strides = node.attributes.get_ints("strides", [1, 1])
    whole = [(n - 1) * step + extent for n, step, extent in zip(size, strides, linear.kernel, strict=True)]
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic == "VALID":
        return [0, 0], whole, kept
    if "output_shape" in node.attributes or automatic != "NOTSET":
        extra = node.attributes.get_ints("output_padding", [0, 0])
        total = [max(full + more - count, 0) for full, more, count in zip(whole, extra, kept, strict=True)]
        halves = [each // 2 for each in total]
        # ONNX ConvTranspose-11: the odd one at the beginning, but for SAME_UPPER
        begin = halves if automatic == "SAME_UPPER" else [all_ - half for all_, half in zip(total, halves, strict=True)]
        return begin, whole, kept
    return list(node.attributes.get_ints("pads", [0] * 4)[:2]), whole, kept


class BatchNormalization(Rule):
    """MUL and ADD of a number for each channel, in float."""

    def fuses(self, node: onnx_ir.Node) -> bool:
        return True

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if node.attributes.get_int("training_mode", 0) or any(map(is_read, node.outputs[1:])):
            return "it is in training mode"
        if any(constant_numbers(input_of(node, index)) is None for index in range(1, 5)):
            return "its parameters are not constant"
        return None

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        gamma, beta, mean, variance = (
            np.asarray(constant_numbers(site.node.inputs[index]), np.float64) for index in range(1, 5)
        )
        factor = gamma / np.sqrt(variance + site.node.attributes.get_float("epsilon", 1e-5))
        axis = site.axis(1, len(data.shape))
        sizes = [-1 if each == axis else 1 for each in range(len(data.shape))]
        scale = site.graph.constant("scale", factor.reshape(sizes).astype(np.float32))
        shift = site.graph.constant("shift", (beta - mean * factor).reshape(sizes).astype(np.float32))
        scaled = site.operator("MUL", [data, scale], site.inner("scaled", data, data.shape), "MulOptions")
        result = site.new()
        site.operator("ADD", [scaled, shift], result, "AddOptions", **site.fused)
        site.put(result)
