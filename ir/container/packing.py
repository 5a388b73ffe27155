"""Skeletons to .onnxp files and back.

All data of tensors, wherever they are (initializers, constants in nodes, subgraphs), leaves the skeleton. Tables of
their own would cost small tensors more than they gain, and time: those below 4 KiB are joined, type by type, and so
are plain floats below 1 MiB, in groups of 2 MiB at most. A byte in place of their data marks the latter in the
skeleton. All others are coded apart, large ones in pieces of some rows. What stays, names above all, is coded as bytes.

Reading hands out the large initializers as tensors that decode when their numbers are asked for, one at a time.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

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
from onnxpress.ir.container.methods import decode, encode, encode_bytes, is_plain
from onnxpress.ir.errors import InputError

__all__ = ["Packed", "is_packed", "pack_chunks", "read_packed"]

_POOLED_BELOW = 4096  # bytes
_GROUPED_BELOW = 1 << 20
_GROUP_BYTES = 2 << 20  # whoever asks for one tensor of a group decodes it all
_IN_GROUP = b"\x01"  # in place of data
_PIECE_BYTES = 8 << 20  # coding takes some twenty times this in working memory


_Source: TypeAlias = tuple[onnx_file.Declaration, onnx_ir.TensorProtocol | bytes]


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
    large: list[_Source] = []
    pools: dict[int, list[_Source]] = collections.defaultdict(list)
    groups: dict[int, list[_Source]] = collections.defaultdict(list)
    initializers = len(proto.graph.initializer)
    for index, tensor in enumerate(onnx_file.tensors_of(proto)):  # which begins with the main graph's initializers
        weight = skeleton.weights.get(tensor.name) if index < initializers else None
        if weight is None and not tensor.raw_data:
            continue
        declared = onnx_file.Declaration.of_proto(tensor, "the model")
        source = tensor.raw_data if weight is None else weight
        tensor.raw_data = b""
        if declared.nbytes < _POOLED_BELOW:
            pools[tensor.data_type].append((declared, source))
        elif declared.nbytes < _GROUPED_BELOW and is_plain(_content(source), declared.dtype, declared.shape.numpy()):
            tensor.raw_data = _IN_GROUP
            groups[tensor.data_type].append((declared, source))
        else:
            large.append((declared, source))
    yield _section(
        Kind.SKELETON,
        b"".join(onnx_file.chunks(onnx_file.Skeleton(proto, {}))),
        None,
        (),
        told,
        "graph, names and attributes",
    )
    for label, kinds in (("small tensors", pools), ("tensors", groups)):
        for data_type, members in sorted(kinds.items()):
            dtype = onnx_ir.DataType(data_type)
            for batch in _batches([declared for declared, _ in members]):
                joined = b"".join(_content(source) for _, source in members[batch])
                shapes = [declared.shape.numpy() for declared, _ in members[batch]]
                name = f"{len(shapes)} {label}, {dtype.name.lower()}"
                yield _section(Kind.DATA, joined, dtype, _pool_shape(dtype, len(joined)), told, name, shapes)
    for declared, source in large:
        content = memoryview(_content(source))
        start = 0
        for shape, size in _pieces(declared):
            part = content[start : start + size]
            yield _section(Kind.DATA, part, declared.dtype, shape, told, declared.name, tensors=0 if start else 1)
            start += size


def _section(
    kind: Kind,
    data: bytes | memoryview,
    dtype: onnx_ir.DataType | None,
    shape: Sequence[int],
    told: list[Packed],
    name: str,
    members: Sequence[Sequence[int]] = (),
    tensors: int = 0,
) -> Section:
    method, stream = encode_bytes(bytes(data)) if dtype is None else encode(data, dtype, shape, members)
    label = "skeleton" if dtype is None else method.label
    numbers = 0 if dtype is None else len(data) * 8 // dtype.bitwidth
    told.append(Packed(name, label, tensors + len(members), numbers, len(data), len(stream)))
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


def _batches(declared: Sequence[onnx_file.Declaration]) -> list[slice]:
    """Return which tensors of one type are joined: as many as have _GROUP_BYTES."""
    found, start, size = [], 0, 0
    for index, each in enumerate(declared):
        if size + each.nbytes > _GROUP_BYTES and index > start:
            found.append(slice(start, index))
            start, size = index, 0
        size += each.nbytes
    return [*found, slice(start, len(declared))] if declared else []


def _content(source: onnx_ir.TensorProtocol | bytes) -> bytes | memoryview:
    return source if isinstance(source, bytes) else onnx_file.payload(source)


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
    small, grouped, large = _lifted(proto, EXPANSION * len(data), where)
    for batch, piece in _joined_pieces(small, remaining, "its small tensors", where):
        _fill(batch, piece.decoded())
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    latest = _Latest()
    for batch, piece in _joined_pieces(grouped, remaining, "a group of weights", where):
        start = 0
        for is_initializer, tensor, declared in batch:
            numbers = _Grouped(declared, piece, start, latest, keep)
            start += declared.nbytes
            if is_initializer:
                weights[declared.name] = declared.tensor(numbers)
                tensor.raw_data = b""
            else:
                tensor.raw_data = numbers.content()
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


def _lifted(proto: onnx.ModelProto, most: int, where: str) -> tuple[list[_Lifted], list[_Lifted], list[_Lifted]]:
    """Return the tensors whose data lies in sections: small, grouped and large, in order. most: bytes of one."""
    small: list[_Lifted] = []
    grouped: list[_Lifted] = []
    large: list[_Lifted] = []
    names: set[str] = set()
    initializers = len(proto.graph.initializer)
    for index, tensor in enumerate(onnx_file.tensors_of(proto)):  # which begins with the main graph's initializers
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            # A packed model holds all its data; one that points elsewhere was made to read or write there.
            raise InputError(
                f"{where}: weight {tensor.name!r} keeps its data in a file, which no packed model does: refused. "
                "Pack the model again."
            )
        if not tensor.HasField("raw_data") or tensor.raw_data not in (b"", _IN_GROUP):
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
        if tensor.raw_data:
            grouped.append(_Lifted(index < initializers, tensor, declared))
        elif declared.nbytes:
            found = large if declared.nbytes >= _POOLED_BELOW else small
            found.append(_Lifted(index < initializers, tensor, declared))
    return small, grouped, large


def _joined_pieces(
    tensors: list[_Lifted], remaining: Iterator[Section], what: str, where: str
) -> Iterator[tuple[list[_Lifted], _Piece]]:
    """Yield the tensors that a section holds joined, type by type, and the section."""
    kinds: dict[int, list[_Lifted]] = collections.defaultdict(list)
    for each in tensors:
        kinds[each.tensor.data_type].append(each)
    for data_type, members in sorted(kinds.items()):
        dtype = onnx_ir.DataType(data_type)
        for batch in _batches([each.declared for each in members]):
            shapes = tuple(each.declared.shape.numpy() for each in members[batch])
            size = sum(each.declared.nbytes for each in members[batch])
            section = _next(remaining, size, where)
            yield members[batch], _Piece(section, dtype, _pool_shape(dtype, size), what, where, shapes)


def _fill(batch: Sequence[_Lifted], data: bytes | memoryview) -> None:
    start = 0
    for each in batch:
        each.tensor.raw_data = bytes(data[start : start + each.declared.nbytes])
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
    members: tuple[tuple[int, ...], ...] = ()

    def decoded(self) -> bytes | memoryview:
        method, stream, size = self.section.method, memoryview(self.section.stream), self.section.size
        try:
            data = decode(method, stream, size, self.dtype, self.shape, self.members)
        except (StreamError, ValueError, IndexError, OverflowError, TypeError) as error:
            # Numbers that no encoder writes may meet numpy before they meet a check of ours.
            raise InputError(damaged(self.where, f"{self.what} cannot be decoded ({error})")) from None
        if digest_of(data) != self.section.digest:
            raise InputError(damaged(self.where, f"{self.what} decodes to other bytes than were packed"))
        return data


class _Latest:
    """The group that was decoded last: whoever goes through a model asks for its tensors one after the other."""

    def __init__(self) -> None:
        self._piece: _Piece | None = None
        self._data: bytes | memoryview = b""

    def decoded(self, piece: _Piece) -> bytes | memoryview:
        if self._piece is not piece:
            self._data, self._piece = b"", None  # before the next one takes memory
            self._data, self._piece = piece.decoded(), piece
        return self._data


class _Grouped:
    """The numbers of a weight that lies in a group, `start` bytes from its beginning."""

    def __init__(self, declared: onnx_file.Declaration, piece: _Piece, start: int, latest: _Latest, keep: bool) -> None:
        self._declared, self._piece, self._start, self._latest = declared, piece, start, latest
        self._keep = keep
        self._kept: bytes | None = None

    def content(self) -> bytes:
        """Return the weight's bytes."""
        if self._kept is not None:
            return self._kept
        data = bytes(self._latest.decoded(self._piece)[self._start : self._start + self._declared.nbytes])
        if self._keep:
            self._kept = data
        return data

    def __call__(self) -> onnx_ir.TensorProtocol:
        return onnx_file.mapped_tensor(self.content(), 0, self._declared)


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
