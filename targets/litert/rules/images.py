"""Resize, Softmax, local response normalization, and blocks of pixels moved to channels and back: operators that LiteRT
computes along certain axes alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.litert.flatbuffer import Grid, Tensor
from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import Layered, Rule, Site, Unit, first_computed, input_of, rank, shape, touch

__all__ = ["DepthToSpace", "LocalResponse", "Resize", "Softmax", "SpaceToDepth"]

_CLOSE = 1e-5  # of a pixel: what coordinates computed in float32 differ by


class Resize(Rule):
    """RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR, where one of LiteRT's ways to place pixels is ONNX's."""

    has_integer_kernel = True

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        source, result = node.inputs[0], node.outputs[0]
        if rank(source) != 4 or shape(source)[:2] != shape(result)[:2]:
            return "it resizes other axes than the rows and columns of an image"
        mode = node.attributes.get_string("mode", "nearest")
        if mode not in ("nearest", "linear"):
            return f"mode={mode!r}: LiteRT has nearest and linear"
        if node.attributes.get_int("antialias", 0) or node.attributes.get_int("exclude_outside", 0):
            return "it weighs pixels as LiteRT does not (antialias, exclude_outside)"
        policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            return f"keep_aspect_ratio_policy={policy!r}: LiteRT stretches"
        if _scales(node, opset) is None:
            return "its scales are computed"
        if _way(node, opset) is None:
            return f"LiteRT places no pixels as coordinate_transformation_mode={_placement(node, opset)!r} does here"
        return None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST)

    def write(self, site: Site) -> None:
        data = site.read(site.source, last=True)
        way = _way(site.node, site.opset)
        assert way is not None, "checked before anything was written"
        kind = "NEAREST_NEIGHBOR" if site.node.attributes.get_string("mode", "nearest") == "nearest" else "BILINEAR"
        options = "ResizeNearestNeighborOptions" if kind == "NEAREST_NEIGHBOR" else "ResizeBilinearOptions"
        result = site.new(last=True, grid=data.grid)
        sizes = site.numbers("sizes", result.shape[1:3])
        fields = {"alignCorners": way == "align_corners", "halfPixelCenters": way == "half_pixel"}
        site.put(site.operator(f"RESIZE_{kind}", [data, sizes], result, options, **fields), last=True)


def _way(node: onnx_ir.Node, opset: int) -> str | None:
    """Return the way of LiteRT's that puts every pixel where ONNX does: same indices, or same coordinates."""
    before, after = shape(node.inputs[0])[2:], shape(node.outputs[0])[2:]
    is_nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    scales = _scales(node, opset)
    assert scales is not None, "checked before"
    for way in ("half_pixel", "align_corners", "asymmetric"):
        pairs = []
        for size, count, scale in zip(before, after, scales[2:], strict=True):
            ours = _coordinates(_placement(node, opset), size, count, scale)
            if ours is None:
                return None
            if is_nearest:
                pairs.append((_onnx_nearest(node, opset, ours, size, scale), _litert_nearest(way, size, count)))
            else:
                pairs.append((np.clip(ours, 0, size - 1), _litert_coordinates(way, size, count)))
        if all(np.abs(ours - theirs).max() < _CLOSE for ours, theirs in pairs):
            return way
    return None


def _scales(node: onnx_ir.Node, opset: int) -> list[float] | None:
    """Return by what each axis grows: as given, else as its sizes say; None where that is computed."""
    before, after = shape(node.inputs[0]), shape(node.outputs[0])
    given = node.attributes.get("scales")  # Upsample-7
    if given is not None:
        return list(given.as_floats())
    value = input_of(node, 2 if node.op_type == "Resize" and opset >= 11 else 1)
    held = constant_numbers(value)
    if value is not None and held is None and input_of(node, 3) is None:
        return None
    scales = [count / size for size, count in zip(before, after, strict=True)]
    axes = node.attributes.get_ints("axes", range(len(before)))  # Resize-18
    for axis, number in zip(axes, () if held is None else held.reshape(-1), strict=False):
        scales[axis] = float(number)
    return scales


def _placement(node: onnx_ir.Node, opset: int) -> str:
    """Return the way in which ONNX places pixels. Before opset 11 there was one."""
    if node.op_type == "Upsample" or opset < 11:
        return "asymmetric"
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel")


def _coordinates(placement: str, size: int, count: int, scale: float) -> npt.NDArray[Any] | None:
    """Return where the pixels of the result lie in the source; None for a way not known. Source: ONNX Resize-19."""
    places = np.arange(count, dtype=np.float64)
    if placement == "align_corners":
        return places * (size - 1) / (count - 1) if count > 1 else np.zeros(1)
    if placement == "asymmetric":
        return places / scale
    if placement == "half_pixel" or (placement == "pytorch_half_pixel" and count > 1):
        return (places + 0.5) / scale - 0.5
    return np.zeros(count) if placement == "pytorch_half_pixel" else None


def _onnx_nearest(
    node: onnx_ir.Node, opset: int, places: npt.NDArray[Any], size: int, scale: float
) -> npt.NDArray[Any]:
    mode = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    if node.op_type == "Upsample" or opset < 11:
        # ONNX did not say; onnxruntime, core/providers/cpu/tensor/upsamplebase.h: ResizeNearestMode::SIMPLE.
        mode = "floor" if scale >= 1 else "ceil"
    rounded = {
        "floor": np.floor(places),
        "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
    }[mode]
    nearest: npt.NDArray[Any] = np.clip(rounded, 0, size - 1)
    return nearest


def _litert_coordinates(way: str, size: int, count: int) -> npt.NDArray[Any]:
    """Source: tensorflow/lite/kernels/internal/reference/resize_bilinear.h, ComputeInterpolationValues."""
    places = np.arange(count, dtype=np.float64)
    if way == "align_corners":
        return places * ((size - 1) / (count - 1) if count > 1 else size / count)
    scale = size / count
    moved: npt.NDArray[Any] = (places + 0.5) * scale - 0.5 if way == "half_pixel" else places * scale
    return moved.clip(0, size - 1)


def _litert_nearest(way: str, size: int, count: int) -> npt.NDArray[Any]:
    """Source: tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h, GetNearestNeighbor."""
    places = np.arange(count, dtype=np.float32)
    scale = np.float32(size - 1) / np.float32(count - 1) if way == "align_corners" and count > 1 else size / count
    moved = (places + np.float32(0.5 if way == "half_pixel" else 0)) * np.float32(scale)
    nearest: npt.NDArray[Any] = np.floor(moved + np.float32(0.5)) if way == "align_corners" else np.floor(moved)
    return nearest.clip(0, size - 1)


class Softmax(Rule):
    """SOFTMAX along the last axis; of channels where the image lies channels last. Integers: steps of 1/256."""

    def __init__(self, kind: str = "SOFTMAX") -> None:
        self.kind = kind
        self.has_integer_kernel = kind == "SOFTMAX"

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        axis, count = _softmax_axis(node, opset), rank(node.inputs[0])
        if axis is None:
            given = node.attributes.get_int("axis", 1) % count
            return f"axis={given} of opset {opset} takes {count - given} axes as one, which SOFTMAX does not"
        if axis == count - 1 or (axis == 1 and count == 4):
            return None
        return f"axis={axis} of {count}: SOFTMAX takes the last axis, or the channels of an image"

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST if _of_channels(unit.node, unit.opset) else Demand.PLAIN)

    def write(self, site: Site) -> None:
        last = _of_channels(site.node, site.opset)
        data = site.read(site.source, last=last)
        result = site.new(last=last, grid=Grid((1 / 256,), -128))
        fields = {"beta": 1.0} if self.kind == "SOFTMAX" else {}
        options = "SoftmaxOptions" if self.kind == "SOFTMAX" else "LogSoftmaxOptions"
        site.put(site.operator(self.kind, [data], result, options, **fields), last=last)


def _of_channels(node: onnx_ir.Node, opset: int) -> bool:
    return rank(node.inputs[0]) == 4 and _softmax_axis(node, opset) == 1


def _softmax_axis(node: onnx_ir.Node, opset: int) -> int | None:
    """Return the axis that is normalized, from 0; None where several are, as one.

    Before opset 13 it is all from `axis` on (ONNX Softmax-1): one axis where the others have one number each.
    """
    sizes = shape(node.inputs[0])
    axis = node.attributes.get_int("axis", -1 if opset >= 13 else 1) % len(sizes)
    if opset >= 13:
        return axis
    taken = [each for each in range(axis, len(sizes)) if sizes[each] != 1] or [len(sizes) - 1]
    return taken[0] if len(taken) == 1 else None


class LocalResponse(Rule):
    """LOCAL_RESPONSE_NORMALIZATION, of channels: radius (size - 1) / 2, alpha / size."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if rank(node.inputs[0]) != 4:
            return f"its data have {rank(node.inputs[0])} axes, and only images of 4 are written"
        size = node.attributes.get_int("size", 1)
        return None if size % 2 else f"size={size} is even: LiteRT's windows have a middle"

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST)

    def write(self, site: Site) -> None:
        given, size = site.node.attributes, site.node.attributes.get_int("size", 1)
        fields = {
            "radius": (size - 1) // 2,
            "bias": given.get_float("bias", 1.0),
            "alpha": given.get_float("alpha", 1e-4) / size,
            "beta": given.get_float("beta", 0.75),
        }
        data, result = site.read(site.source, last=True), site.new(last=True)
        options = "LocalResponseNormalizationOptions"
        site.put(site.operator("LOCAL_RESPONSE_NORMALIZATION", [data], result, options, **fields), last=True)


class SpaceToDepth(Rule):
    """SPACE_TO_DEPTH, which orders channels as ONNX does: by place in the block, then as they were."""

    kind = "SPACE_TO_DEPTH"
    options = "SpaceToDepthOptions"

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.LAST)

    def write(self, site: Site) -> None:
        data, result = self.channels(site, site.read(site.source, last=True)), site.new(last=True)
        size = site.node.attributes.get_int("blocksize", 1)
        site.put(site.operator(self.kind, [data], result, self.options, blockSize=size), last=True)

    def channels(self, site: Site, data: Tensor) -> Tensor:
        """Return the data with their channels in LiteRT's order."""
        return data


class DepthToSpace(SpaceToDepth):
    """DEPTH_TO_SPACE, whose order is ONNX's DCR; a GATHER of channels in front for CRD (PyTorch's PixelShuffle)."""

    kind = "DEPTH_TO_SPACE"
    options = "DepthToSpaceOptions"

    def channels(self, site: Site, data: Tensor) -> Tensor:
        if site.node.attributes.get_string("mode", "DCR") == "DCR":
            return data
        size = site.node.attributes.get_int("blocksize", 1)
        order = np.arange(data.shape[3]).reshape(-1, size * size).T.reshape(-1)
        made = site.inner("channels", data, data.shape)
        return site.operator("GATHER", [data, site.numbers("order", order)], made, "GatherOptions", axis=3)
