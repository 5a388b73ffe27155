"""Emit the operators that turn packed codes back into weights; runtimes fold them once, as they load.

    bytes of many weights -> Cast -> Gather (what each byte means) -> Reshape [-1] -> Split, a piece for each weight
    several planes: each to there, -> Cast, summed by Add -> Split

    piece -> Reshape                                       of levels that many weights share, integers or float32
    piece -> Gather (one table) or GatherElements          of indices

`packing` says what a plane is. Small weights that are packed alike share all operators up to Split, and none needs to
fill its last byte: in a small net the names of operators would else take more room than the codes. Large weights have
operators of their own and fewer of them, for a runtime holds what every one computes until all are folded.

All operators have the kernels they need from opset 13 on, and a look-up of whole bytes touches no more memory than the
result: shifts and masks, or divisions, take an intermediate of the full size each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir.encodings import Codebook, Levels
from onnxpress.ir.encodings.base import Array
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.lowering.packing import Plane, choose_planes

__all__ = ["Chain", "Unpacker", "compact", "look_up", "shape_of", "shared_row"]

_WHOLE_BYTE = 256
_LARGE = 1 << 17  # codes; 26 KB of ternary ones, beside 250 bytes of operators
_OWN_TABLE = 16  # a large weight whose bytes are this many times as many has its own table of what a byte means
_INT32 = onnx_ir.DataType.INT32


class Chain:
    """Nodes that compute one weight from constants, in order, not yet placed in the graph.

    What lies between has short names that only say which weight it is of: they are a third of a small file.
    """

    def __init__(self, unpacker: Unpacker, name: str) -> None:
        self.unpacker = unpacker
        self.emit = unpacker.emit
        self.name = name
        self.short = self.emit.fresh("w")
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
        output = self.emit.value(f"{self.short}_{op_type.lower()}", dtype, shape)
        self.nodes.append(self.emit.node(op_type, inputs, output, attributes))
        return output

    def cast(self, value: onnx_ir.Value, dtype: onnx_ir.DataType) -> onnx_ir.Value:
        """Append a Cast, unless `value` has that type."""
        if value.dtype == dtype:
            return value
        return self.add("Cast", [value], dtype, shape_of(value), {"to": dtype.value})

    def reshape(self, value: onnx_ir.Value, shape: Sequence[int]) -> onnx_ir.Value:
        """Append a Reshape, unless `value` has that shape."""
        if shape_of(value) == tuple(shape):
            return value
        target = _dimensions(self.emit, shape)
        return self.add("Reshape", [value, target], _dtype(value), shape)

    def finish(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """Return the weight, under its own name where an operator of this chain computes it."""
        if self.nodes and self.nodes[-1].outputs[0] is value:
            value.name = self.emit.fresh(f"{self.name}_dense")
        return value


@dataclasses.dataclass
class _Pool:
    """Small weights that are unpacked together: their codes, flat, and the pieces of the result."""

    planes: tuple[Plane, ...]
    row: Array | None
    dtype: onnx_ir.DataType
    codes: list[Array] = dataclasses.field(default_factory=list)
    pieces: list[onnx_ir.Value] = dataclasses.field(default_factory=list)


class Unpacker:
    """Unpacks large weights in their own chains and collects small ones; `place` emits what unpacks those."""

    def __init__(self, emit: Emitter) -> None:
        self.emit = emit
        self._pools: dict[Any, _Pool] = {}
        self._known: dict[Any, onnx_ir.Value] = {}

    def unpack(
        self,
        chain: Chain,
        codes: Array,
        planes: tuple[Plane, ...],
        row: Array | None,
        dtype: onnx_ir.DataType,
        shape: tuple[int, ...],
    ) -> onnx_ir.Value:
        """Append what gives the codes in `dtype` and `shape`; with `row`, what it says for each of them."""
        flat = codes.reshape(-1)
        if flat.size < _LARGE:
            return chain.reshape(self._piece(flat, planes, row, dtype), shape)
        values = _digits(chain, planes[0], flat, row) if len(planes) == 1 else _sum(chain, planes, flat)
        if math.prod(shape_of(values)) > flat.size:
            values = _cut(chain, _flatten(chain, values), flat.size)
        return chain.cast(chain.reshape(values, shape), dtype)

    def place(self) -> list[onnx_ir.Node]:
        """Return the nodes that compute what small weights share, in order."""
        return [node for pool in self._pools.values() for node in self._emit_pool(pool)]

    def _piece(
        self, codes: Array, planes: tuple[Plane, ...], row: Array | None, dtype: onnx_ir.DataType
    ) -> onnx_ir.Value:
        """Return a flat value that a Split will make."""
        key = (planes, None if row is None else (row.dtype, row.tobytes()), dtype)
        same = (key, codes.tobytes())
        if same not in self._known:
            pool = self._pools.setdefault(key, _Pool(planes, row, dtype))
            pool.codes.append(codes)
            pool.pieces.append(self.emit.value("codes", dtype, codes.shape))
            self._known[same] = pool.pieces[-1]
        return self._known[same]

    def _emit_pool(self, pool: _Pool) -> list[onnx_ir.Node]:
        chain = Chain(self, "packed")
        codes = np.concatenate(pool.codes)
        if _packing_bytes(pool.planes, codes.size) >= codes.nbytes:  # few codes: less than the tables
            values = self.emit.constant("codes", codes if pool.row is None else pool.row[codes])
        elif len(pool.planes) == 1:
            values = _flatten(chain, _digits(chain, pool.planes[0], codes, pool.row))
        else:
            values = _sum(chain, pool.planes, codes)
        values = chain.cast(values, pool.dtype)
        sizes, pieces = [each.size for each in pool.codes], list(pool.pieces)
        rest = shape_of(values)[0] - codes.size
        if rest:
            sizes.append(rest)
            pieces.append(self.emit.value("fill", pool.dtype, (rest,)))
        split = self.emit.constant(f"{chain.short}_sizes", np.asarray(sizes, np.int64))
        name = self.emit.fresh(f"{chain.short}_split")
        return [*chain.nodes, onnx_ir.node("Split", [values, split], {"axis": 0}, outputs=pieces, name=name)]


def _sum(chain: Chain, planes: Sequence[Plane], codes: Array) -> onnx_ir.Value:
    """Append the sum of several planes: the codes as int32, flat. Each plane fills its last byte differently."""
    total: onnx_ir.Value | None = None
    for plane in planes:
        digits = chain.cast(_cut(chain, _flatten(chain, _digits(chain, plane, codes, None)), codes.size), _INT32)
        total = digits if total is None else chain.add("Add", [total, digits], _INT32, codes.shape)
    assert total is not None, "there is no plan of no planes"
    return total


def _digits(chain: Chain, plane: Plane, codes: Array, row: Array | None) -> onnx_ir.Value:
    """Append what looks up the bytes of a plane: its digits, or what `row` says for them, [bytes, digits]."""
    count = plane.count_bytes(codes.size)
    packed = chain.cast(chain.emit.constant("packed", plane.pack(codes), share=True), _INT32)
    if plane.base == _WHOLE_BYTE and plane.weight == 1:
        return packed
    label, means = f"digits_of_base{plane.base}", plane.table()
    if plane.weight > 1:
        label += f"_times{plane.weight}"
    if row is not None:
        label, means = "byte_means", np.resize(row, plane.base)[means]  # repeated for digits that do not occur
    kind = onnx_ir.DataType.from_numpy(means.dtype)
    return chain.add("Gather", [chain.emit.constant(label, means), packed], kind, (count, plane.digits))


def _flatten(chain: Chain, value: onnx_ir.Value) -> onnx_ir.Value:
    return chain.reshape(value, (math.prod(shape_of(value)),))


def _cut(chain: Chain, value: onnx_ir.Value, size: int) -> onnx_ir.Value:
    """Append what drops the digits that fill the last byte."""
    if shape_of(value) == (size,):
        return value
    start = chain.emit.constant("from_0", np.zeros(1, np.int64))
    end = chain.emit.constant(f"to_{size}", np.asarray([size], np.int64))
    return chain.add("Slice", [value, start, end], _dtype(value), (size,))


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
    chain: Chain,
    levels: Levels,
    table: Array,
    dtype: onnx_ir.DataType,
    shape: Sequence[int] | None = None,
    *,
    packed: bool = True,
) -> onnx_ir.Value:
    """Append what computes `table` [groups or 1, levels], int8 or float32, at the weight's indices, in `dtype`.

    shape: give the result this shape instead of the weight's; one group only. packed: False stores the numbers of an
    int8 table a byte each, for runtimes that would unpack at every run.
    """
    shape = tuple(levels.indices.shape) if shape is None else tuple(shape)
    if table.dtype == np.int8 and (not packed or _are_plain(choose_planes(table.shape[1], levels.size))):
        return chain.cast(chain.constant("q", levels.look_up(table).reshape(shape)), dtype)
    if len(table) == 1:
        return _from_one_row(chain, levels.indices, table[0], shape, dtype)
    assert levels.axis is not None, "several groups lie along an axis"
    moved = np.moveaxis(levels.indices, levels.axis, 0)
    grouped = (len(table), levels.size // len(table))
    indices = _indices(chain, moved, table.shape[1], grouped)
    kind = onnx_ir.DataType.from_numpy(table.dtype)
    numbers = chain.add("GatherElements", [chain.constant("table", table), indices], kind, grouped, {"axis": 1})
    numbers = chain.reshape(chain.cast(numbers, dtype), moved.shape)
    if levels.axis == 0:
        return numbers
    order = [*range(1, levels.axis + 1), 0, *range(levels.axis + 1, len(shape))]
    return chain.add("Transpose", [numbers], dtype, shape, {"perm": order})


def _from_one_row(
    chain: Chain, indices: Array, row: Array, shape: tuple[int, ...], dtype: onnx_ir.DataType
) -> onnx_ir.Value:
    planes = choose_planes(len(row), indices.size)
    if len(planes) == 1 and (_is_common(row) or _affords_table(planes[0], row, indices.size)):
        return chain.unpacker.unpack(chain, indices, planes, row, dtype, shape)
    found = _indices(chain, indices, len(row), shape)
    numbers = chain.add("Gather", [chain.constant("table", row), found], onnx_ir.DataType.from_numpy(row.dtype), shape)
    return chain.cast(numbers, dtype)


def _affords_table(plane: Plane, row: Array, size: int) -> bool:
    """Whether a look-up of whole bytes in numbers of its own adds little: it saves an int32 for every weight."""
    if size < _LARGE or plane.base == _WHOLE_BYTE:
        return False
    return _OWN_TABLE * plane.table().size * row.itemsize <= plane.count_bytes(size)


def _packing_bytes(planes: Sequence[Plane], size: int) -> int:
    return sum(plane.count_bytes(size) + plane.table().nbytes for plane in planes)


def _are_plain(planes: Sequence[Plane]) -> bool:
    return len(planes) == 1 and planes[0].base == _WHOLE_BYTE


def _is_common(row: Array) -> bool:
    """Whether many weights of a model have these levels, so that all share one table of what bytes mean."""
    if row.dtype != np.int8:
        return False
    numbers = row.astype(np.int16)
    magnitudes = np.abs(numbers)
    is_power = (magnitudes & (magnitudes - 1)) == 0  # or zero
    return bool(is_power.all()) or len(set(np.diff(numbers).tolist())) <= 1


def _indices(chain: Chain, codes: Array, levels: int, shape: tuple[int, ...]) -> onnx_ir.Value:
    """Append what computes the codes as int32 of that shape."""
    planes = choose_planes(levels, codes.size)
    if _are_plain(planes):
        return chain.cast(chain.constant("codes", codes.reshape(shape)), _INT32)
    return chain.unpacker.unpack(chain, codes, planes, None, _INT32, shape)


def _dimensions(emit: Emitter, shape: Sequence[int]) -> onnx_ir.Value:
    """Return a shape for Reshape; [-1] stands for every shape of one dimension."""
    wanted = np.asarray(shape if len(shape) != 1 else [-1], np.int64)
    return emit.constant("shape_" + ("x".join(map(str, shape)) if len(shape) != 1 else "flat"), wanted)


def shape_of(value: onnx_ir.Value) -> tuple[int, ...]:
    """Return the shape of a value that was made with one."""
    assert value.shape is not None, f"{value.name!r} was made with a shape"
    return tuple(value.shape.numpy())


def _dtype(value: onnx_ir.Value) -> onnx_ir.DataType:
    assert value.dtype is not None, f"{value.name!r} was made with a type"
    return value.dtype
