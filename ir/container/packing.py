"""Skeletons to .onnxp files and back.

All data of tensors, wherever they are (initializers, constants in nodes, subgraphs), leaves the skeleton: tensors of
4 KiB and more one by one, large ones in pieces of some rows, and the small ones of a type joined to one pool, because
tables of their own would cost more than they gain. What stays, names above all, is coded as bytes.

Reading hands out the large initializers as tensors that decode when their numbers are asked for, one at a time.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import google.protobuf.message  # type: ignore[import-untyped]
import onnx
import onnx_ir

from onnxpress.ir import onnx_file
from onnxpress.ir.container.coder import StreamError
from onnxpress.ir.container.layout import (
    EXPANSION,
    MAGIC,
    Kind,
    Section,
    damaged,
    digest_of,
    file_chunks,
    read_sections,
)
from onnxpress.ir.container.methods import decode, encode, encode_bytes
from onnxpress.ir.errors import InputError

__all__ = ["Packed", "is_packed", "pack_chunks", "read_packed"]

_POOLED_BELOW = 4096  # bytes
_PIECE_BYTES = 16 << 20  # coding takes some twenty times this in working memory


class Packed(NamedTuple):
    """One section, for reports. name: the tensor's, or what the section holds. numbers: how many the tensors hold."""

    name: str
    method: str
    tensors: int
    numbers: int
    before: int
    after: int


def is_packed(path: Path) -> bool:
    """Tell whether a file begins as an .onnxp file does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # missing, a folder, no path at all: whoever reads it says so better
        return False


def pack_chunks(skeleton: onnx_file.Skeleton, told: list[Packed]) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the .onnxp file of a model, one piece of a tensor in memory at a time.

    told: gets an entry for each section, as they are written.
    """
    return file_chunks(_sections(skeleton, told))


def _sections(skeleton: onnx_file.Skeleton, told: list[Packed]) -> Iterator[Section]:
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    large: list[tuple[onnx_file.Declaration, onnx_ir.TensorProtocol | bytes]] = []
    pools: dict[int, list[bytes]] = collections.defaultdict(list)
    initializers = len(proto.graph.initializer)
    for index, tensor in enumerate(onnx_file.tensors_of(proto)):  # which begins with the main graph's initializers
        weight = skeleton.weights.get(tensor.name) if index < initializers else None
        if weight is None and not tensor.raw_data:
            continue
        declared = onnx_file.Declaration.of_proto(tensor, "the model")
        if declared.nbytes >= _POOLED_BELOW:
            large.append((declared, weight if weight is not None else tensor.raw_data))
        else:
            data = tensor.raw_data if weight is None else bytes(onnx_file.payload(weight))
            pools[tensor.data_type].append(data)
        tensor.raw_data = b""
    yield _section(
        Kind.SKELETON,
        b"".join(onnx_file.chunks(onnx_file.Skeleton(proto, {}))),
        None,
        (),
        told,
        "graph, names and attributes",
        0,
    )
    for data_type, parts in sorted(pools.items()):
        dtype = onnx_ir.DataType(data_type)
        joined = b"".join(parts)
        name = f"small tensors, {dtype.name.lower()}"
        start = 0
        for shape, size, lengths in _pool_pieces(dtype, list(map(len, parts))):
            piece = joined[start : start + size]
            yield _section(Kind.DATA, piece, dtype, shape, told, name, 0 if start else len(parts), lengths)
            start += size
    for declared, source in large:
        content = memoryview(source if isinstance(source, bytes) else onnx_file.payload(source))
        start = 0
        for shape, size in _pieces(declared):
            part = content[start : start + size]
            yield _section(Kind.DATA, part, declared.dtype, shape, told, declared.name, 0 if start else 1)
            start += size


def _section(
    kind: Kind,
    data: bytes | memoryview,
    dtype: onnx_ir.DataType | None,
    shape: Sequence[int],
    told: list[Packed],
    name: str,
    tensors: int,
    lengths: Sequence[int] = (),
) -> Section:
    method, stream = encode_bytes(bytes(data)) if dtype is None else encode(data, dtype, shape, lengths)
    label = "skeleton" if dtype is None else method.label
    numbers = 0 if dtype is None else len(data) * 8 // dtype.bitwidth
    told.append(Packed(name, label, tensors, numbers, len(data), len(stream)))
    return Section(kind, method, len(data), digest_of(data), stream)


def _pieces(declared: onnx_file.Declaration) -> list[tuple[tuple[int, ...], int]]:
    """Return (shape, bytes) of the pieces that a tensor is coded in: some rows each, or runs of elements."""
    dims = declared.shape.numpy()
    if declared.nbytes <= _PIECE_BYTES:
        return [(dims, declared.nbytes)]
    row = declared.nbytes // max(1, dims[0])
    if len(dims) > 1 and row <= _PIECE_BYTES and declared.dtype.bitwidth >= 8:
        rows = _sizes(dims[0], _PIECE_BYTES // row)
        return [((count, *dims[1:]), count * row) for count in rows]
    sizes = _sizes(declared.nbytes, _PIECE_BYTES)
    return [(_pool_shape(declared.dtype, size), size) for size in sizes]


def _pool_pieces(dtype: onnx_ir.DataType, sizes: list[int]) -> list[tuple[tuple[int, ...], int, tuple[int, ...]]]:
    """Return (shape, bytes, lengths in elements) of the pieces that joined tensors of these sizes are coded in."""
    pieces = _sizes(sum(sizes), _PIECE_BYTES)
    width = max(1, dtype.bitwidth // 8)
    lengths = tuple(size // width for size in sizes) if len(pieces) == 1 else ()
    return [(_pool_shape(dtype, size), size, lengths) for size in pieces]


def _sizes(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def _pool_shape(dtype: onnx_ir.DataType, size: int) -> tuple[int, ...]:
    """Return the shape of joined tensors: a vector of elements, or of bytes for sub-byte types."""
    return (size // max(1, dtype.bitwidth // 8),)


# Reading.


def read_packed(path: Path, *, keep: bool = False) -> onnx_file.Skeleton:
    """Return the model in the .onnxp file at `path`. Large weights are decoded when they are asked for.

    keep: hold what was decoded, for a model that is worked with; else each asking decodes again, for one that is
    written out.

    Raises:
        InputError: the file is missing, none of this kind, of another version, or damaged. A weight that turns out
            damaged only when it is decoded says the same then.
    """
    where = str(path)
    data = onnx_file.map_file(path, "packed model")
    sections = read_sections(data, where)
    if not sections or sections[0].kind is not Kind.SKELETON:
        raise InputError(damaged(where, "it has no skeleton"))
    proto = _read_skeleton(sections[0], where)
    remaining = iter(sections[1:])
    large, small = _lifted(proto, EXPANSION * len(data), where)
    _fill_small(small, remaining, where)
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    for is_initializer, tensor, declared in large:
        pieces = [
            _Piece(_next(remaining, size, where), declared.dtype, shape, f"weight {declared}", where)
            for shape, size in _pieces(declared)
        ]
        if is_initializer:
            weights[declared.name] = declared.tensor(_Numbers(declared, pieces, keep))
        else:
            tensor.raw_data = b"".join(piece.decoded() for piece in pieces)
    if next(remaining, None) is not None:
        raise InputError(damaged(where, "it holds more data than its skeleton asks for"))
    return onnx_file.Skeleton(proto, weights)


class _Lifted(NamedTuple):
    """A tensor whose data lies in a section. is_initializer: of the main graph."""

    is_initializer: bool
    tensor: onnx.TensorProto
    declared: onnx_file.Declaration


def _read_skeleton(section: Section, where: str) -> onnx.ModelProto:
    piece = _Piece(section, onnx_ir.DataType.UINT8, (section.size,), "the skeleton", where)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(bytes(piece.decoded()))
    except google.protobuf.message.DecodeError:
        raise InputError(damaged(where, "its skeleton is no ONNX model")) from None
    if not proto.HasField("graph"):
        raise InputError(damaged(where, "its skeleton has no graph"))
    return proto


def _lifted(proto: onnx.ModelProto, most: int, where: str) -> tuple[list[_Lifted], list[_Lifted]]:
    """Return the tensors whose data lies in sections: large ones and small ones, in order. most: bytes of one."""
    large: list[_Lifted] = []
    small: list[_Lifted] = []
    names: set[str] = set()
    initializers = len(proto.graph.initializer)
    for index, tensor in enumerate(onnx_file.tensors_of(proto)):  # which begins with the main graph's initializers
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            # A packed model holds all its data; one that points elsewhere was made to read or write there.
            raise InputError(
                f"{where}: weight {tensor.name!r} keeps its data in a file, which no packed model does: refused. "
                "Pack the model again."
            )
        if not tensor.HasField("raw_data") or tensor.raw_data:
            continue
        if any(dim < 0 for dim in tensor.dims):
            raise InputError(damaged(where, f"weight {tensor.name!r} has shape {list(tensor.dims)}"))
        declared = onnx_file.Declaration.of_proto(tensor, where)
        if declared.nbytes > most:
            raise InputError(
                damaged(where, f"weight {declared} is said to take {declared.nbytes} bytes, too many for it")
            )
        if index < initializers and tensor.name in names:
            raise InputError(damaged(where, f"there are two weights {tensor.name!r}"))
        if index < initializers:
            names.add(tensor.name)
        if declared.nbytes:
            found = large if declared.nbytes >= _POOLED_BELOW else small
            found.append(_Lifted(index < initializers, tensor, declared))
    return large, small


def _fill_small(small: list[_Lifted], remaining: Iterator[Section], where: str) -> None:
    """Put the data of small tensors back; the sections hold them joined, type by type."""
    pools: dict[int, list[_Lifted]] = collections.defaultdict(list)
    for each in small:
        pools[each.tensor.data_type].append(each)
    for data_type, members in sorted(pools.items()):
        dtype = onnx_ir.DataType(data_type)
        joined = b"".join(
            _Piece(_next(remaining, size, where), dtype, shape, "its small tensors", where, lengths).decoded()
            for shape, size, lengths in _pool_pieces(dtype, [each.declared.nbytes for each in members])
        )
        start = 0
        for each in members:
            each.tensor.raw_data = joined[start : start + each.declared.nbytes]
            start += each.declared.nbytes


def _next(remaining: Iterator[Section], size: int, where: str) -> Section:
    """Return the next section, which must decode to `size` bytes."""
    section = next(remaining, None)
    if section is None or section.kind is not Kind.DATA or section.size != size:
        found = "none" if section is None else f"one of {section.size}"
        raise InputError(damaged(where, f"its skeleton asks for a section of {size} bytes, and there is {found}"))
    return section


class _Piece(NamedTuple):
    """A section with what it takes to decode it. what: what is damaged if that fails."""

    section: Section
    dtype: onnx_ir.DataType
    shape: tuple[int, ...]
    what: str
    where: str
    lengths: tuple[int, ...] = ()

    def decoded(self) -> bytes | memoryview:
        method, stream, size = self.section.method, memoryview(self.section.stream), self.section.size
        try:
            data = decode(method, stream, size, self.dtype, self.shape, self.lengths)
        except (StreamError, ValueError, IndexError, OverflowError, TypeError) as error:
            # Numbers that no encoder writes may meet numpy before they meet a check of ours.
            raise InputError(damaged(self.where, f"{self.what} cannot be decoded ({error})")) from None
        if digest_of(data) != self.section.digest:
            raise InputError(damaged(self.where, f"{self.what} decodes to other bytes than were packed"))
        return data


class _Numbers:
    """The numbers of a weight, decoded when they are asked for, and kept from then on where `keep` says so."""

    def __init__(self, declared: onnx_file.Declaration, pieces: list[_Piece], keep: bool) -> None:
        self._declared, self._pieces, self._keep = declared, pieces, keep
        self._kept: bytes | None = None

    def __call__(self) -> onnx_ir.TensorProtocol:
        data = self._kept
        if data is None:
            data = b"".join(piece.decoded() for piece in self._pieces)
            if self._keep:
                self._kept = data
        return onnx_file.mapped_tensor(data, 0, self._declared)
