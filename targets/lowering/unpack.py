"""Emit the operators that turn packed codes back into weights; runtimes fold them once, as they load.

    bytes -> Cast -> Gather (what each byte means) -> Reshape            one plane, levels that many weights share
    bytes -> Cast -> Gather -> Reshape -> Cast, for each plane -> Add    indices, and
    indices -> Gather (one table) or GatherElements (one for each group) -> Reshape

`packing` says what a plane is. All operators have the kernels they need from opset 13 on, and a look-up of whole bytes
touches no more memory than the result: shifts and masks, or divisions, take an intermediate of the full size each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir.encodings import Codebook, Levels
from onnxpress.ir.encodings.base import Array
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.packing import Plane, choose_planes

__all__ = ["Chain", "compact", "look_up", "shape_of", "shared_row"]

_WHOLE_BYTE = 256


class Chain:
    """Nodes that compute one weight from constants, in order, not yet placed in the graph."""

    def __init__(self, emit: Emitter, name: str) -> None:
        self.emit = emit
        self.name = name
        self.nodes: list[onnx_ir.Node] = []

    def constant(self, suffix: str, array: Array) -> onnx_ir.Value:
        """Return an initializer of this weight, or one that is there already."""
        return self.emit.constant(f"{self.name}_{suffix}", array)

    def add(
        self,
        op_type: str,
        inputs: Sequence[onnx_ir.Value],
        dtype: onnx_ir.DataType,
        shape: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
    ) -> onnx_ir.Value:
        """Append an operator and return what it computes."""
        output = self.emit.value(f"{self.name}_{op_type.lower()}", dtype, shape)
        self.nodes.append(self.emit.node(op_type, inputs, output, attributes))
        return output

    def cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        """Append a Cast."""
        return self.add("Cast", [value], dtype, shape_of(value), {"to": dtype.value})

    def reshape(self, value: onnx_ir.Value, shape: Sequence[int]) -> onnx_ir.Value:
        """Append a Reshape, unless `value` has that shape."""
        if shape_of(value) == tuple(shape):
            return value
        wanted = np.asarray(shape if len(shape) != 1 else [-1], np.int64)
        target = self.emit.constant(_dimensions(wanted), wanted)
        return self.add("Reshape", [value, target], _dtype(value), shape)


def compact(levels: Levels) -> Levels:
    """Return `levels` without those that no weight has, where that stores fewer bytes."""
    used = np.flatnonzero(np.bincount(levels.indices.reshape(-1), minlength=levels.table.shape[1]))
    size = levels.size
    if choose_planes(max(1, len(used)), size) == choose_planes(levels.table.shape[1], size):
        return levels
    table = levels.table[:, used]
    codes = np.searchsorted(used, levels.indices).astype(np.uint8 if len(used) <= _WHOLE_BYTE else np.uint16)
    return Codebook(codes, table[0] if levels.axis is None else table, axis=levels.axis, name=levels.name)


def shared_row(table: Array) -> Array:
    """Return the one row [1, levels] of a table whose rows are all equal, else the table."""
    return table[:1] if (table == table[0]).all() else table


def look_up(
    chain: Chain, levels: Levels, table: Array, shape: Sequence[int] | None = None, *, packed: bool = True
) -> onnx_ir.Value:
    """Append what computes `table` [groups or 1, levels] at the weight's indices, in the table's type.

    shape: give the result this shape instead of the weight's; one group only. packed: False stores the numbers of an
    int8 table a byte each, for runtimes that would unpack at every run.
    """
    shape = tuple(levels.indices.shape) if shape is None else tuple(shape)
    if table.dtype == np.int8 and (not packed or _are_plain(choose_planes(table.shape[1], levels.size))):
        return chain.constant("q", _numbers(levels, table).reshape(shape))
    if len(table) == 1:
        return _from_one_row(chain, levels.indices, table[0], shape)
    assert levels.axis is not None, "several groups lie along an axis"
    moved = np.moveaxis(levels.indices, levels.axis, 0)
    grouped = (len(table), levels.size // len(table))
    indices = _indices(chain, moved, table.shape[1], grouped)
    dtype = onnx_ir.DataType.from_numpy(table.dtype)
    numbers = chain.add("GatherElements", [chain.constant("table", table), indices], dtype, grouped, {"axis": 1})
    real = chain.reshape(numbers, moved.shape)
    if levels.axis == 0:
        return real
    order = [*range(1, levels.axis + 1), 0, *range(levels.axis + 1, len(shape))]
    return chain.add("Transpose", [real], dtype, shape, {"perm": order})


def _from_one_row(chain: Chain, indices: Array, row: Array, shape: tuple[int, ...]) -> onnx_ir.Value:
    dtype = onnx_ir.DataType.from_numpy(row.dtype)
    planes = choose_planes(len(row), indices.size)
    if len(planes) == 1 and _is_common(row):
        (plane,) = planes
        padded = np.resize(row, plane.base)  # for digits that no weight has
        means = padded[plane.table()].astype(row.dtype)
        return _digits(chain, plane, indices, means, f"byte_to_{row.dtype}_base{plane.base}", shape)
    found = _indices(chain, indices, len(row), shape)
    return chain.add("Gather", [chain.constant("table", row), found], dtype, shape)


def _are_plain(planes: Sequence[Plane]) -> bool:
    return len(planes) == 1 and planes[0].base == _WHOLE_BYTE


def _numbers(levels: Levels, table: Array) -> Array:
    """Return `table` at the weight's indices."""
    if len(table) == 1:
        return table[0][levels.indices]
    assert levels.axis is not None, "several groups lie along an axis"
    moved = np.moveaxis(levels.indices, levels.axis, 0)
    grouped = np.take_along_axis(table, moved.reshape(len(table), -1).astype(np.int64), axis=1)
    return np.ascontiguousarray(np.moveaxis(grouped.reshape(moved.shape), 0, levels.axis))


def _is_common(row: Array) -> bool:
    """Whether many weights of a model have these levels, so that all share one table of what bytes mean."""
    if row.dtype != np.int8:
        return False
    magnitudes = np.abs(row.astype(np.int16))
    is_power = (magnitudes & (magnitudes - 1)) == 0  # or zero
    return bool(is_power.all()) or len(set(np.diff(row.astype(np.int16)).tolist())) <= 1


def _indices(chain: Chain, codes: Array, levels: int, shape: tuple[int, ...]) -> onnx_ir.Value:
    """Append what computes the codes as int32 of that shape, from the planes that store them."""
    planes = choose_planes(levels, codes.size)
    if _are_plain(planes):
        return chain.cast(chain.constant("codes", codes.reshape(shape)), onnx_ir.DataType.INT32)
    flat = (codes.size,) if len(planes) > 1 else shape
    total: onnx_ir.Value | None = None
    for plane in planes:
        means = plane.table()
        label = f"byte_to_digits_base{plane.base}" + (f"_times{plane.weight}" if plane.weight > 1 else "")
        digits = chain.cast(_digits(chain, plane, codes, means, label, flat), onnx_ir.DataType.INT32)
        total = digits if total is None else chain.add("Add", [total, digits], onnx_ir.DataType.INT32, flat)
    assert total is not None, "there is no plan of no planes"
    return chain.reshape(total, shape)


def _digits(
    chain: Chain, plane: Plane, codes: Array, means: Array, label: str, shape: tuple[int, ...]
) -> onnx_ir.Value:
    """Append what looks up the bytes of a plane in `means` [bytes, digits], and cut off what fills the last byte."""
    count, size = plane.count_bytes(codes.size), codes.size
    packed = chain.cast(
        chain.emit.constant(f"{chain.name}_packed", plane.pack(codes), share=True), onnx_ir.DataType.INT32
    )
    dtype = onnx_ir.DataType.from_numpy(means.dtype)
    digits = chain.add("Gather", [chain.emit.constant(label, means), packed], dtype, (count, plane.digits))
    if count * plane.digits > size:
        flat = chain.reshape(digits, (count * plane.digits,))
        start = chain.emit.constant("from_0", np.zeros(1, np.int64))
        end = chain.emit.constant(f"to_{size}", np.asarray([size], np.int64))
        digits = chain.add("Slice", [flat, start, end], dtype, (size,))
    return chain.reshape(digits, shape)


def _dimensions(shape: Array) -> str:
    return "shape_" + "x".join(map(str, shape.tolist())).replace("-1", "any")


def shape_of(value: onnx_ir.Value) -> tuple[int, ...]:
    """Return the shape of a value that was made with one."""
    assert value.shape is not None, f"{value.name!r} was made with a shape"
    return tuple(value.shape.numpy())


def _dtype(value: onnx_ir.Value) -> onnx_ir.DataType:
    assert value.dtype is not None, f"{value.name!r} was made with a type"
    return value.dtype
