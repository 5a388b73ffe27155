"""The bytes of an ONNX file, read and written without copying the weights.

A model travels as a `Skeleton`: a ModelProto whose large initializers are declared (name, type, shape) but
hold no data, and beside it the tensors that own the data. The skeleton is small, so it can be parsed,
checked, copied and handed to onnx's C++ functions at will; the weights stay where they are (the file, a
data file, an array, an encoding) until somebody asks for their numbers.

This rests on two properties of the protobuf wire format (https://protobuf.dev/programming-guides/encoding):
a message is a sequence of (tag, length, payload) that can be walked without being parsed, and merging parts
of a message one after the other gives the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import google.protobuf.message  # type: ignore[import-untyped]
import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.errors import InputError, InternalError

__all__ = [
    "INLINE_BYTES",
    "PROTOBUF_LIMIT",
    "Buffer",
    "Declaration",
    "Skeleton",
    "chunks",
    "externalized",
    "graphs_of",
    "inherit",
    "is_inferred",
    "map_file",
    "mapped_tensor",
    "mark_inferred",
    "of_model",
    "of_proto",
    "own_values",
    "payload",
    "probe",
    "read",
    "shortened",
    "size_bytes",
    "tensors_of",
]

Buffer: TypeAlias = "bytes | mmap.mmap"
_Described: TypeAlias = "onnx_ir.Graph | onnx_ir.Node | onnx_ir.Value"

# Initializers up to this size stay inside the skeleton: shapes, axes and scales, which shape inference reads.
INLINE_BYTES = 1024
# Protobuf refuses messages of 2 GiB and more (https://protobuf.dev/programming-guides/proto-limits).
PROTOBUF_LIMIT = 2**31 - 1

# Files below this are read at once, so that a later export over the same file cannot change a loaded model.
_READ_WHOLE_BYTES = 64 << 20
_SHOWN_CHARACTERS = 300  # of a path in a message; Linux takes 255 for a name and 4095 for a path
_ALIGNMENT = 64  # bytes; of tensors in a data file: a cache line, and a multiple of every element size

# Field numbers of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}  # wire type to payload bytes

_INFERRED = "onnxpress.inferred"


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """A model without its large weights, and those weights.

    proto: complete but for `weights`, whose initializers are declared with an empty `raw_data`.
    weights: by name of the main graph's initializer.
    """

    proto: onnx.ModelProto
    weights: dict[str, onnx_ir.TensorProtocol]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """A tensor apart from its numbers."""

    name: str
    dtype: onnx_ir.DataType
    shape: onnx_ir.Shape
    doc_string: str | None = None
    metadata_props: dict[str, str] | None = None

    @classmethod
    def of_proto(cls, proto: onnx.TensorProto, where: str) -> Declaration:
        """Return what a TensorProto declares.

        Raises:
            InputError: an element type that has no fixed width or that onnx-ir does not know.
        """
        try:
            dtype = onnx_ir.DataType(proto.data_type)
            _ = dtype.bitwidth  # strings have none
        except (ValueError, TypeError):
            raise InputError(
                f"{where}: weight {proto.name!r} has element type {proto.data_type}, which cannot be read "
                "from raw bytes. Install a newer onnx-ir, or export with plain types."
            ) from None
        shape = onnx_ir.Shape(tuple(proto.dims), frozen=True)
        metadata = {entry.key: entry.value for entry in proto.metadata_props} or None
        return cls(proto.name, dtype, shape, proto.doc_string or None, metadata)

    @property
    def nbytes(self) -> int:
        """Size of the numbers; sub-byte types are packed."""
        return -(-math.prod(self.shape.numpy()) * self.dtype.bitwidth // 8)

    def __str__(self) -> str:
        return f"{self.name!r} {list(self.shape.numpy())} {self.dtype.name.lower()}"

    def require_bytes(self, length: int, where: str) -> None:
        """Raise InputError unless `length` is the size that type and shape ask for."""
        if length != self.nbytes:
            raise InputError(
                f"{where}: weight {self} needs {self.nbytes} bytes and holds {length}. "
                "The model is damaged: export it again."
            )

    def tensor(self, view: Callable[[], onnx_ir.TensorProtocol]) -> onnx_ir.LazyTensor:
        """Return a tensor that calls `view` whenever its numbers are asked for."""
        return onnx_ir.LazyTensor(
            view,
            dtype=self.dtype,
            shape=self.shape,
            name=self.name,
            doc_string=self.doc_string,
            metadata_props=self.metadata_props,
        )


class _Field(NamedTuple):
    """One field of a message: `data[start:end]` with its tag, `data[payload:end]` without."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


class _CutOffError(Exception):
    """A field reaches beyond the end of its message. `needed`: the end that it asks for."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


# Reading.


def read(path: Path) -> Skeleton:
    """Read the ONNX file at `path`; its weights become views of the file. External data stays declared.

    Raises:
        InputError: the file is missing, empty, cut off, or no ONNX model; an input or output lacks its shape;
            a sparse initializer cannot be.
    """
    data = map_file(path, "model")
    proto = onnx.ModelProto()
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    try:
        for field in _fields(data, 0, len(data)):
            if field.number == _MODEL_GRAPH and field.wire_type == _LENGTH_DELIMITED:
                _read_graph(data, field, proto.graph, weights, str(path))
            else:
                proto.MergeFromString(data[field.start : field.end])
    except _CutOffError as error:
        raise InputError(_explain_cut_off(path, data, error.needed)) from None
    except google.protobuf.message.DecodeError:
        raise InputError(_explain_not_onnx(path, data)) from None
    if not proto.HasField("graph") or not proto.HasField("ir_version"):
        raise InputError(_explain_not_onnx(path, data))
    _check_interface(proto, str(path))
    _check_sparse(proto, str(path))
    return Skeleton(proto, weights)


def map_file(path: Path, what: str) -> Buffer:
    """Return the bytes of a file: read where it is small, mapped where it is large.

    The mapping keeps the file's content alive when the file is replaced by another (renamed over) or
    removed. Windows cannot replace a mapped file, so files are read whole there.

    Raises:
        InputError: there is no such file, it is no regular file, it is empty, or it cannot be read.
    """
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a {what} file. Name the file inside it.")
        if path.exists() and not path.is_file():  # opening a pipe would wait forever
            raise InputError(f"{path}: is a device or pipe, not a {what} file. Name a file.")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{path}: the {what} file is empty (0 bytes). Copy or export it again.")
            if size < _READ_WHOLE_BYTES or os.name == "nt":
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such {what} file. Check the path.") from None
    except (OSError, ValueError) as error:  # a name that is too long, or that holds a null character
        cause = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{shortened(str(path))}: the {what} file cannot be read: {cause}.") from None


def shortened(name: str) -> str:
    """Return a path for messages: one that is too long for the system is too long to show."""
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}... ({len(name)} characters)"


def mapped_tensor(data: Buffer, offset: int, declared: Declaration) -> onnx_ir.LazyTensor:
    """Return the tensor whose numbers begin at `offset` of `data`; nothing is copied until it is read."""
    return declared.tensor(functools.partial(_view, data, offset, declared.dtype, declared.shape))


def _view(data: Buffer, offset: int, dtype: onnx_ir.DataType, shape: onnx_ir.Shape) -> onnx_ir.TensorProtocol:
    dims = shape.numpy()
    size = math.prod(dims)
    if dtype.bitwidth < 8:
        packed = np.frombuffer(data, np.uint8, -(-size * dtype.bitwidth // 8), offset)
        return onnx_ir.PackedTensor(packed, dtype, shape=dims)
    array = np.frombuffer(data, dtype.numpy().newbyteorder("<"), size, offset).reshape(dims)
    if not array.flags.aligned:  # protobuf aligns nothing, and compiled code may count on it
        array = array.copy()
        array.flags.writeable = False
    return onnx_ir.Tensor(array, dtype=dtype)


def _read_graph(
    data: Buffer,
    graph_field: _Field,
    graph: onnx.GraphProto,
    weights: dict[str, onnx_ir.TensorProtocol],
    where: str,
) -> None:
    """Merge a graph into `graph`: runs of small fields as they are, large initializers without their data."""
    run = graph_field.payload
    for field in _fields(data, graph_field.payload, graph_field.end):
        if field.number != _GRAPH_INITIALIZER or field.end - field.payload <= INLINE_BYTES:
            continue
        raw = _raw_data(data, field)
        if raw is None:
            continue
        graph.MergeFromString(data[run : field.start])
        run = field.end
        tensor = graph.initializer.add()
        tensor.MergeFromString(data[field.payload : raw.start])
        tensor.MergeFromString(data[raw.end : field.end])
        tensor.raw_data = b""
        declared = Declaration.of_proto(tensor, where)
        declared.require_bytes(raw.end - raw.payload, where)
        weights[tensor.name] = mapped_tensor(data, raw.payload, declared)
    graph.MergeFromString(data[run : graph_field.end])


def _raw_data(data: Buffer, tensor: _Field) -> _Field | None:
    """Return the tensor's one large raw_data, if that is how it stores its numbers."""
    found = [field for field in _fields(data, tensor.payload, tensor.end) if field.number == _TENSOR_RAW_DATA]
    if len(found) != 1 or found[0].wire_type != _LENGTH_DELIMITED:
        return None
    return found[0] if found[0].end - found[0].payload > INLINE_BYTES else None


def _fields(data: Buffer | memoryview, start: int, end: int) -> Iterator[_Field]:
    """Walk the fields of the message `data[start:end]` without parsing them.

    Raises:
        _CutOffError: a field reaches beyond `end`.
        DecodeError: this is no protobuf message.
    """
    at = start
    while at < end:
        tag, payload = _varint(data, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, stop = _varint(data, payload, end)
        elif wire_type == _LENGTH_DELIMITED:
            length, payload = _varint(data, payload, end)
            stop = payload + length
        elif wire_type in _FIXED_SIZES:
            stop = payload + _FIXED_SIZES[wire_type]
        else:
            raise google.protobuf.message.DecodeError(f"wire type {wire_type}")
        if number == 0:
            raise google.protobuf.message.DecodeError("field number 0")
        if stop > end:
            raise _CutOffError(stop)
        yield _Field(number, wire_type, at, payload, stop)
        at = stop


def _varint(data: Buffer | memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the base-128 number at `at` and the position behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if at + shift // 7 >= end:
            raise _CutOffError(end + 1)
        byte = data[at + shift // 7]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + shift // 7 + 1
    raise google.protobuf.message.DecodeError("a number longer than 64 bits")


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _check_interface(proto: onnx.ModelProto, where: str) -> None:
    """Name the input or output that lacks what onnx's checker asks for; the checker itself names none."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = [("input", info) for info in proto.graph.input if info.name not in initializers]
    for kind, info in [*inputs, *(("output", info) for info in proto.graph.output)]:
        found = info.type.WhichOneof("value")
        if found is None:
            missing = "type"
        elif found in ("tensor_type", "sparse_tensor_type") and not getattr(info.type, found).HasField("shape"):
            missing = "shape"
        else:
            continue
        raise InputError(
            f"{where}: graph {kind} {info.name!r} declares no {missing}, which ONNX asks of every input and output. "
            "Export it with a type and a shape; sizes in the shape may stay open."
        )


def _check_sparse(proto: onnx.ModelProto, where: str) -> None:
    """Refuse sparse initializers that a few bytes make huge, and places that numpy would count from the end."""
    for graph in graphs_of(proto.graph):
        for sparse in graph.sparse_initializer:
            shape = onnx_ir.Shape(tuple(sparse.dims), frozen=True)
            declared = dataclasses.replace(Declaration.of_proto(sparse.values, where), shape=shape)
            if declared.nbytes > PROTOBUF_LIMIT:
                raise InputError(
                    f"{where}: sparse initializer {declared} takes {declared.nbytes} bytes when it is dense, more "
                    f"than the {PROTOBUF_LIMIT} of one protobuf message. Export it dense, with external data."
                )
            least = min([_least_index(sparse), *sparse.dims])
            if least < 0:
                raise InputError(
                    f"{where}: sparse initializer {declared} has the dimension or index {least}, and both count "
                    "from 0. The model is damaged: export it again."
                )


def _least_index(sparse: onnx.SparseTensorProto) -> int:
    """Return the least index or 0; 0 also where indices cannot be read, which is told when they are needed."""
    if sparse.indices.data_location == onnx.TensorProto.EXTERNAL:
        return 0
    try:
        return int(onnx.numpy_helper.to_array(sparse.indices).min(initial=0))
    except (ValueError, TypeError):
        return 0


# What people hand over instead of an ONNX model, by its first bytes.
_LOOKS_LIKE: Mapping[bytes, str] = {
    b"version https://git-lfs": "a Git LFS pointer. Fetch the model itself: git lfs pull.",
    b"PK\x03\x04": "a zip archive, such as a PyTorch or Keras checkpoint. Export it to ONNX first.",
    b"\x89HDF": "an HDF5 file, such as a Keras checkpoint. Export it to ONNX first.",
    b"\x80\x02": "a Python pickle, such as a PyTorch checkpoint. Export it to ONNX first.",
    b"\x80\x04": "a Python pickle. Export the model to ONNX first.",
    b"<": "a web page or XML. Download the model file itself.",
    b"{": "JSON. Save the model in ONNX's binary form first.",
}
_LOOKS_LIKE_AT_4: Mapping[bytes, str] = {
    b"TFL3": "a file for LiteRT (TensorFlow Lite), written already. Give the ONNX model that it was made from.",
    b"ORTM": "an onnxruntime .ort model. Give the ONNX model that it was made from.",
}


def _explain_not_onnx(path: Path, data: Buffer) -> str:
    for start, guess in _LOOKS_LIKE.items():
        if data[: len(start)] == start:
            return f"{path}: is not an ONNX model but looks like {guess}"
    if data[4:8] in _LOOKS_LIKE_AT_4:
        return f"{path}: is not an ONNX model but looks like {_LOOKS_LIKE_AT_4[data[4:8]]}"
    return f"{path}: is not an ONNX model, or is damaged ({len(data)} bytes). Export it again."


def _explain_cut_off(path: Path, data: Buffer, needed: int) -> str:
    starts_like_onnx = data[0] == 0x08  # the tag of ir_version, with which every exporter starts
    if not starts_like_onnx or needed <= len(data):
        return _explain_not_onnx(path, data)
    return (
        f"{path}: the model is cut off or damaged: it needs at least {needed} bytes and has {len(data)}. "
        "Copy it again, or export it again."
    )


# Taking models apart.


def of_proto(proto: onnx.ModelProto, where: str) -> Skeleton:
    """Return the skeleton of `proto`, which stays as it is; its large tensors are shared, not copied.

    Raises:
        InputError: a tensor's data does not fit its type and shape; an input or output lacks its shape; a
            sparse initializer cannot be. `where` names the model.
    """
    _check_interface(proto, where)
    _check_sparse(proto, where)
    skeleton = onnx.ModelProto()
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    _copy_fields(proto, skeleton, without="graph")
    if proto.HasField("graph"):
        _copy_fields(proto.graph, skeleton.graph, without="initializer")
    for tensor in proto.graph.initializer:
        declared = skeleton.graph.initializer.add()
        if not tensor.HasField("raw_data") or tensor.ByteSize() <= INLINE_BYTES:
            declared.CopyFrom(tensor)
            continue
        _copy_fields(tensor, declared, without="raw_data")
        declared.raw_data = b""
        declaration = Declaration.of_proto(declared, where)
        declaration.require_bytes(len(tensor.raw_data), where)
        # A lazy tensor has a name of its own: renaming it leaves the caller's proto alone.
        weights[tensor.name] = declaration.tensor(functools.partial(onnx_ir.TensorProtoTensor, tensor))
    return Skeleton(skeleton, weights)


def _copy_fields(source: Any, target: Any, *, without: str) -> None:
    """Copy all fields of a message but one."""
    for field, value in source.ListFields():
        if field.name == without:
            continue
        if isinstance(value, bool | int | float | str | bytes):
            setattr(target, field.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            getattr(target, field.name).MergeFrom(value)


def of_model(model: onnx_ir.Model, *, inline_bytes: int = INLINE_BYTES, with_inferred: bool = False) -> Skeleton:
    """Return the skeleton of a model, which stays as it is; its large tensors are shared, not copied.

    Metadata that onnx-ir writes twice is written once. Types and shapes of initializers, which the tensors
    repeat, are left out, and so are those of inner values that inference can find again (see
    `mark_inferred`), unless `with_inferred`. While this runs, other threads must leave the model alone: its
    large tensors are set aside and put back.

    Raises:
        InternalError: an initializer has no tensor.
        InputError: a tensor in a node or a subgraph lives in a data file (`model_io.load` takes those in).
    """
    weights: dict[str, onnx_ir.TensorProtocol] = {}
    kept: list[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]] = []
    try:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                raise InternalError(f"initializer {name!r} has no tensor: a pass removed its numbers.")
            if not _stays_apart(tensor, inline_bytes):
                continue
            kept.append((value, tensor))
            weights[name] = tensor
            value.const_value = _placeholder(tensor, name)
        proto = onnx_ir.to_proto(model)
    finally:
        for value, tensor in kept:
            value.const_value = tensor
    for initializer in proto.graph.initializer:
        if initializer.name in weights:
            del initializer.external_data[:]
            initializer.ClearField("data_location")
            initializer.raw_data = b""
    for tensor_proto in tensors_of(proto):
        _tidy(tensor_proto)
    _drop_value_info(model, proto, with_inferred)
    return Skeleton(proto, weights)


def _stays_apart(tensor: onnx_ir.TensorProtocol, inline_bytes: int) -> bool:
    if isinstance(tensor, onnx_ir.ExternalTensor):  # onnx-ir would write its declaration, not its numbers
        return True
    return tensor.dtype != onnx_ir.DataType.STRING and tensor.nbytes > inline_bytes


def _placeholder(tensor: onnx_ir.TensorProtocol, name: str) -> onnx_ir.ExternalTensor:
    """Return a tensor that serializes to a declaration: onnx-ir never reads external data to write it."""
    return onnx_ir.ExternalTensor(
        "",
        0,
        0,
        tensor.dtype,
        shape=onnx_ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _tidy(tensor: onnx.TensorProto) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError(
            f"tensor {tensor.name!r} keeps its data in a file beside the model it came from. "
            "Load the model with onnxpress.load(path), which takes the data in."
        )
    if len(tensor.metadata_props) > 1:
        entries = {entry.key: entry.value for entry in tensor.metadata_props}
        del tensor.metadata_props[:]
        for key in sorted(entries):
            tensor.metadata_props.add(key=key, value=entries[key])


def mark_inferred(value: onnx_ir.Value) -> None:
    """Note that the type or shape of a value is ours, not the file's: it is not written back."""
    value.meta[_INFERRED] = True


def is_inferred(value: onnx_ir.Value) -> bool:
    """Tell whether `mark_inferred` was called on the value or on the one that it was cloned from."""
    return bool(value.meta.get(_INFERRED))


def _drop_value_info(model: onnx_ir.Model, proto: onnx.ModelProto, with_inferred: bool) -> None:
    derived: set[str | None] = set()
    for graph in model.graphs():
        derived.update(name for name, value in graph.initializers.items() if not _is_described(value))
        for node in () if with_inferred else graph:
            derived.update(v.name for v in node.outputs if is_inferred(v) and not _is_described(v))
    for graph_proto in graphs_of(proto.graph):
        kept = [info for info in graph_proto.value_info if info.name not in derived]
        if len(kept) < len(graph_proto.value_info):
            del graph_proto.value_info[:]
            graph_proto.value_info.extend(kept)


def _is_described(value: onnx_ir.Value) -> bool:
    return bool(value.metadata_props or value.doc_string)


def own_values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    """Yield what a graph owns: its inputs, its initializers, and the named values that its nodes make."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def inherit(new: _Described, old: _Described) -> None:
    """Give a node, value or graph what hangs on another: doc string, metadata and notes."""
    new.doc_string = old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)


def tensors_of(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor of a model: initializers and attributes, subgraphs and functions included."""
    for graph in graphs_of(proto.graph):
        yield from graph.initializer
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)
        for node in function.node:
            for attribute in node.attribute:
                for graph in _attribute_graphs(attribute):
                    for inner in graphs_of(graph):
                        yield from inner.initializer
                        yield from _attribute_tensors(inner.node)


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and the graphs inside its nodes, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in _attribute_graphs(attribute):
                yield from graphs_of(inner)


def _attribute_graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == onnx.AttributeProto.GRAPHS:
        yield from attribute.graphs


def _attribute_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.TENSORS:
                yield from attribute.tensors


def probe(skeleton: Skeleton) -> onnx.ModelProto:
    """Return a copy for onnx's C++ functions: the weights become graph inputs, after the real ones.

    Initializers that callers may override (they are listed as inputs) are inputs only, because inference would take
    their defaults for constants.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    listed = {value.name for value in proto.graph.input}
    kept = []
    for tensor in proto.graph.initializer:
        if tensor.name in listed:
            continue
        if tensor.name not in skeleton.weights:
            kept.append(tensor)
            continue
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
        proto.graph.input.append(info)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


# Writing.

_Piece: TypeAlias = "memoryview | bytes | onnx_ir.TensorProtocol"


def chunks(skeleton: Skeleton) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes, one weight in memory at a time.

    Joined, they are what protobuf's deterministic serialization of the whole model would be.
    """
    for piece in _pieces(skeleton):
        if isinstance(piece, bytes | memoryview):
            yield piece
        else:
            yield payload(piece)


def size_bytes(skeleton: Skeleton) -> int:
    """Return how many bytes `chunks` yields."""
    return sum(_length(piece) for piece in _pieces(skeleton))


def externalized(skeleton: Skeleton, location: str) -> tuple[onnx.ModelProto, Iterator[bytes | memoryview]]:
    """Return the model with its weights declared in the data file `location`, and that file's bytes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    offset = 0
    for declared in proto.graph.initializer:
        tensor = skeleton.weights.get(declared.name)
        if tensor is None:
            continue
        offset = _aligned(offset)
        declared.ClearField("raw_data")
        declared.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", tensor.nbytes)):
            declared.external_data.add(key=key, value=str(value))
        offset += tensor.nbytes
    return proto, _data_chunks(skeleton)


def _data_chunks(skeleton: Skeleton) -> Iterator[bytes | memoryview]:
    offset = 0
    for declared in skeleton.proto.graph.initializer:
        tensor = skeleton.weights.get(declared.name)
        if tensor is None:
            continue
        yield bytes(_aligned(offset) - offset)
        yield payload(tensor)
        offset = _aligned(offset) + tensor.nbytes


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def payload(tensor: onnx_ir.TensorProtocol) -> bytes | memoryview:
    """Return a tensor's bytes in the file's order: little endian, sub-byte types packed."""
    payload: bytes | memoryview
    if tensor.dtype.bitwidth < 8 or sys.byteorder == "big":
        payload = tensor.tobytes()
    else:  # as they lie in memory
        payload = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
    if len(payload) != tensor.nbytes:
        raise InternalError(f"weight {tensor.name!r} says it has {tensor.nbytes} bytes and gives {len(payload)}.")
    return payload


def _length(piece: _Piece) -> int:
    return len(piece) if isinstance(piece, bytes | memoryview) else piece.nbytes


def _pieces(skeleton: Skeleton) -> list[_Piece]:
    """Cut the serialized skeleton where weights belong, and mend the lengths around them."""
    data = memoryview(_serialize(skeleton.proto))
    graph = next((f for f in _fields(data, 0, len(data)) if f.number == _MODEL_GRAPH), None)
    if graph is None or not skeleton.weights:
        return [data]
    pieces: list[_Piece] = []
    run = graph.payload
    declared = iter(skeleton.proto.graph.initializer)
    for field in _fields(data, graph.payload, graph.end):
        if field.number != _GRAPH_INITIALIZER:
            continue
        tensor = skeleton.weights.get(next(declared).name)
        if tensor is None:
            continue
        raw = next(f for f in _fields(data, field.payload, field.end) if f.number == _TENSOR_RAW_DATA)
        before: list[bytes | memoryview] = [
            data[field.payload : raw.start],
            _header(_TENSOR_RAW_DATA, tensor.nbytes),
        ]
        after = data[raw.end : field.end]
        length = sum(map(len, before)) + tensor.nbytes + len(after)
        pieces += [data[run : field.start], _header(_GRAPH_INITIALIZER, length), *before, tensor, after]
        run = field.end
    pieces.append(data[run : graph.end])
    length = sum(map(_length, pieces))
    return [data[: graph.start], _header(_MODEL_GRAPH, length), *pieces, data[graph.end :]]


def _header(number: int, length: int) -> bytes:
    return _to_varint(number << 3 | _LENGTH_DELIMITED) + _to_varint(length)


def _serialize(proto: onnx.ModelProto) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
    except (google.protobuf.message.EncodeError, ValueError):
        raise InputError(
            f"the model holds {proto.ByteSize()} bytes outside its initializers, more than the "
            f"{PROTOBUF_LIMIT} that protobuf takes. Lift its constants to initializers: --passes cleanup."
        ) from None
    return data
