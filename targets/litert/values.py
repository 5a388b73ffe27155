"""The LiteRT tensors of each ONNX value: made once, read in any order and type.

A value noted with a range (`ir.quantization`) is int8 in the file: whatever makes it in float is followed by QUANTIZE,
and whoever reads it in float reads what DEQUANTIZE makes of the integers, so that the file computes the noted model.
Conversions are inserted where they are first asked for, and shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.quantization import integer_parameters, quantization_of
from onnxpress.targets.litert.flatbuffer import FlatGraph, Grid, Tensor
from onnxpress.targets.litert.layout import is_one_order, last_axes
from onnxpress.targets.litert.static_shapes import shape_of

__all__ = ["FILE_TYPES", "Values", "file_type", "grid_of", "is_noted"]

# How values that are not noted are held, by their type in ONNX.
FILE_TYPES = {"BOOL": "bool", "FLOAT": "float32", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}


def file_type(value: onnx_ir.Value) -> str:
    """Return the type in the file of a value that is not noted; it was checked to have one."""
    assert value.dtype is not None, f"{value.name!r} was checked to have a type"
    return FILE_TYPES[value.dtype.name]


def is_noted(value: onnx_ir.Value | None) -> bool:
    """Whether a value is int8 in the file."""
    found = quantization_of(value)
    return found is not None and found.bits == 8


def grid_of(value: onnx_ir.Value) -> Grid | None:
    """Return what the integers of a value stand for, None where it stays float."""
    found = quantization_of(value)
    if found is None or found.bits != 8:
        return None
    scale, zero_point = integer_parameters(found, signed=True, symmetric=False)
    return Grid((float(scale),), zero_point)


class Values:
    """What has been made so far. flattened: the image sizes (C, H, W) of values [N, C*H*W] that have two orders."""

    def __init__(self, graph: FlatGraph) -> None:
        self.graph = graph
        self.flattened: dict[onnx_ir.Value, tuple[int, ...]] = {}
        self._raw: dict[onnx_ir.Value, tuple[Tensor, bool]] = {}
        self._real: dict[Tensor, Tensor] = {}
        self._made: dict[tuple[onnx_ir.Value, bool, bool], Tensor] = {}  # (value, channels last, integer)

    def shape(self, value: onnx_ir.Value, last: bool) -> tuple[int, ...]:
        """Return the sizes of a value in the order that it lies in."""
        sizes = shape_of(value)
        assert sizes is not None, f"{value.name!r} was checked to have a fixed shape"
        return tuple(sizes[axis] for axis in last_axes(4)) if last and len(sizes) == 4 else sizes

    def new(self, value: onnx_ir.Value, last: bool, *, integer: bool = False, grid: Grid | None = None) -> Tensor:
        """Return a tensor that the operator of `value` is to fill; hand it to `put` then."""
        grid = (grid or grid_of(value)) if integer else None
        kind = "int8" if integer else file_type(value)
        return self.graph.tensor(str(value.name), self.shape(value, last), kind, grid)

    def put(self, value: onnx_ir.Value, tensor: Tensor, last: bool) -> None:
        """Say that `tensor` holds `value`. A noted one goes on as integers on its own grid, whatever it is now."""
        grid = grid_of(value)
        if grid is not None and not tensor.is_integer:
            self._raw[value] = (tensor, last)  # quantized in the order that is asked for first
            return
        if grid is not None and tensor.grid != grid:
            tensor = self.requantized(tensor, grid)
        elif grid is None and tensor.is_integer:
            tensor = self.real(tensor)
        self._made[value, last, grid is not None] = tensor

    def get(self, value: onnx_ir.Value, last: bool, *, integer: bool = False) -> Tensor:
        """Return the tensor of `value` in that order and type, converted where need be."""
        key = (value, last, integer)
        if key in self._made:
            return self._made[key]
        if not integer and is_noted(value):
            made = self.real(self.get(value, last, integer=True))
        elif integer and value in self._raw:
            raw, raw_last = self._raw.pop(value)
            grid = grid_of(value)
            assert grid is not None, "only noted values wait to be quantized"
            # The float image is transposed: XNNPACK does that faster than the integers (0.08 against 0.11 ms for
            # 3 x 224 x 224, both with QUANTIZE).
            moved = raw if raw_last == last else self._transposed(value, raw, last)
            made = self.requantized(moved, grid)
        elif (value, not last, integer) in self._made:
            made = self._transposed(value, self._made[value, not last, integer], last)
        else:
            raise AssertionError(f"{value.name!r} is read before it is made, or as integers without a note")
        self._made[key] = made
        return made

    def either(self, value: onnx_ir.Value, *, integer: bool) -> Tensor:
        """Return the tensor of `value` in whichever order there is one."""
        if value in self._raw:
            return self.get(value, self._raw[value][1], integer=integer)
        kinds = (integer, True) if is_noted(value) else (integer,)
        last = next(last for kind in kinds for last in (False, True) if (value, last, kind) in self._made)
        return self.get(value, last, integer=integer)

    def requantized(self, tensor: Tensor, grid: Grid) -> Tensor:
        """Return the same numbers as integers on `grid`."""
        made = self.graph.tensor(f"{tensor.name}/quantized", tensor.shape, "int8", grid)
        self.graph.operator("QUANTIZE", [tensor], [made], "QuantizeOptions")
        return made

    def real(self, tensor: Tensor) -> Tensor:
        """Return what integers, or float16 numbers, stand for; made once of each tensor."""
        if tensor in self._real:
            return self._real[tensor]
        self._real[tensor] = made = self.graph.tensor(f"{tensor.name}/real", tensor.shape)
        self.graph.operator("DEQUANTIZE", [tensor], [made], "DequantizeOptions")
        return made

    def transposed(self, tensor: Tensor, axes: Sequence[int], name: str) -> Tensor:
        """Return a tensor with its axes in another order."""
        shape = tuple(tensor.shape[axis] for axis in axes)
        order = self.graph.constant("axes", np.asarray(axes, np.int32))
        made = self.graph.tensor(name, shape, tensor.dtype, tensor.grid)
        self.graph.operator("TRANSPOSE", [tensor, order], [made], "TransposeOptions")
        return made

    def reshaped(self, tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """Return a tensor's numbers, in their order, in another shape; itself where it has that shape."""
        if tensor.shape == tuple(shape):
            return tensor
        sizes = self.graph.constant("shape", np.asarray(shape, np.int32))
        made = self.graph.tensor(name, shape, tensor.dtype, tensor.grid)
        self.graph.operator("RESHAPE", [tensor, sizes], [made], "ReshapeOptions", {"newShape": list(shape)})
        return made

    def _transposed(self, value: onnx_ir.Value, tensor: Tensor, last: bool) -> Tensor:
        order = last_axes(4) if last else (0, 3, 1, 2)
        name = f"{value.name}/{'channels_last' if last else 'channels_first'}"
        if len(tensor.shape) == 4 and is_one_order(value):
            return self.reshaped(tensor, self.shape(value, last), name)
        sizes = self.flattened.get(value)
        if sizes is None:
            return self.transposed(tensor, order, name)
        channels, height, width = sizes
        apart = (tensor.shape[0], channels, height, width) if last else (tensor.shape[0], height, width, channels)
        moved = self.transposed(self.reshaped(tensor, apart, f"{name}/image"), order, f"{name}/moved")
        return self.reshaped(moved, tensor.shape, name)
