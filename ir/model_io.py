"""Models in and out: from a file, a ModelProto or an onnx-ir model, and back to a file.

Loading keeps what callers rely on: interface names and order, symbolic dimensions, opsets, producer,
metadata and doc strings. It changes, knowingly:

- Functions are inlined; those that nothing calls are dropped.
- Nodes without a name get one (`Conv_17`: type and position); of equal names all but the first are
  numbered.
- Initializers that are listed as graph inputs too, as exporters before 2020 wrote them, are initializers
  only. That is always so before IR version 4, where the format asked for it (such a model is raised to
  version 4, the first that does not), and from version 4 on when *every* initializer is listed. When only
  some are, they are meant to be overridden by the caller, and stay inputs.
- Sparse initializers become dense ones.

Weights stay where they are: views of the file (small files are read whole, large ones mapped), of external
data files, or of the caller's ModelProto. Do not rewrite such a file in place while the model is in use;
`save` never does, it replaces files whole.

Saving leaves out what inference will find again (types and shapes of inner values), unless the file had it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import external_data, inference, onnx_file
from onnxpress.ir.container import packing
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.ir.verify import checker_complaint

__all__ = [
    "PACKED_SUFFIX",
    "ModelSource",
    "adopt",
    "digest",
    "load",
    "name_nodes",
    "planned_files",
    "save",
    "save_packed",
    "save_skeleton",
    "size_bytes",
    "to_proto_bytes",
]

ModelSource: TypeAlias = "str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model"

# Where weights move to a data file: protobuf's limit, less what other tools add to a model when they read it.
_EXTERNAL_FROM_BYTES = onnx_file.PROTOBUF_LIMIT - (1 << 20)
_FIRST_IR_WITH_PLAIN_INITIALIZERS = 4
_IN_MEMORY = "the model"
PACKED_SUFFIX = ".onnxp"
_TFLITE_SUFFIX = ".tflite"


def load(source: ModelSource) -> onnx_ir.Model:
    """Return a model of our own from a path, a ModelProto or an onnx-ir model; the source never changes.

    A path may be that of an .onnxp file (see `container`).

    Raises:
        InputError: the model cannot be used. One line: which model, what is wrong, what to do.
    """
    if isinstance(source, onnx_ir.Model):
        return _copy(source)
    if isinstance(source, onnx.ModelProto):
        return adopt(onnx_file.of_proto(source, _IN_MEMORY), _IN_MEMORY)
    path = Path(source)
    if packing.is_packed(path):
        return adopt(packing.read_packed(path, keep=True), str(path))
    return adopt(onnx_file.read(path), str(path), external_data.DataFiles(str(path), path.parent, path))


def save(
    model: onnx_ir.Model,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external_from_bytes: int = _EXTERNAL_FROM_BYTES,
) -> int:
    """Write `model` to `path`, whole or not at all, and return the bytes written. Equal models, equal bytes.

    A path that ends in .onnxp gets a packed model (`ir.container`). A model of `external_from_bytes` or more keeps its
    weights in one file beside it, `<name>.data`. Encoded weights are written dense. Files that exist are replaced,
    never written into, so the model's own source is a safe place to save to. Where the model that is replaced kept
    weights in `<name>.data` and this one does not, that file is removed.

    Raises:
        UsageError: the path is taken and `overwrite` is not set, it cannot be written, or it names a .tflite file.
        InputError: the model is too large for protobuf even without its weights.
    """
    if Path(path).suffix == _TFLITE_SUFFIX:
        raise UsageError(
            f"{os.fspath(path)!r}: a model is saved as .onnx or .onnxp. What `compress` made for mobile-cpu-litert is "
            "written by the result itself: result.save(path)"
        )
    if Path(path).suffix == PACKED_SUFFIX:
        save_packed(model, path, overwrite=overwrite)
        return Path(path).stat().st_size
    return save_skeleton(onnx_file.of_model(model), path, overwrite=overwrite, external_from_bytes=external_from_bytes)


def save_skeleton(
    skeleton: onnx_file.Skeleton,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    external_from_bytes: int = _EXTERNAL_FROM_BYTES,
) -> int:
    """Write a model that is a skeleton already, as `save` does."""
    target, *data_files = planned_files(path, onnx_file.size_bytes(skeleton), external_from_bytes=external_from_bytes)
    content: Iterable[bytes | memoryview] = onnx_file.chunks(skeleton)
    files: list[tuple[Path, Iterable[bytes | memoryview]]] = [(target, content)]
    for data_file in data_files if skeleton.weights else []:
        proto, data = onnx_file.externalized(skeleton, data_file.name)
        files = [(data_file, data), (target, onnx_file.chunks(onnx_file.Skeleton(proto, {})))]
    for file, _ in files:
        _require_writable(file, Path(path), overwrite)
    stale = _data_file_of(target) if len(files) == 1 else None
    written = _write_all(files)
    if stale is not None:
        _remove(stale)
    return written


def save_packed(model: onnx_ir.Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[packing.Packed]:
    """Write `model` to an .onnxp file, whole or not at all, and return what each of its sections took.

    Raises:
        UsageError: the path is taken and `overwrite` is not set, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    _require_writable(target, Path(path), overwrite)
    told: list[packing.Packed] = []
    _write_all([(target, packing.pack_chunks(onnx_file.of_model(model), told))])
    return told


def planned_files(
    path: str | os.PathLike[str], size: int | None = None, *, external_from_bytes: int = _EXTERNAL_FROM_BYTES
) -> list[Path]:
    """Return the files that `save` writes for `path`, so that taken ones can be refused before any work.

    size: bytes of the model; None where they are not known yet, and then the data file is among them.
    Returns: the model's file, with links followed, and where its weights lie apart, `<name>.data` beside it.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: its target is replaced
    is_split = size is None or size >= external_from_bytes
    return [target, *([_beside(target)] if is_split else [])]


def _beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.data")


def _data_file_of(target: Path) -> Path | None:
    """Return `<name>.data` where the model in the file `target` keeps weights there, else None."""
    data_file = _beside(target)
    if not target.is_file() or not data_file.is_file():
        return None
    try:
        tensors = onnx_file.tensors_of(onnx_file.read(target).proto)
    except InputError:  # what is replaced is no model
        return None
    locations = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return data_file if data_file.name in map(os.path.normpath, locations) else None


def to_proto_bytes(model: onnx_ir.Model) -> bytes:
    """Return the model as one ONNX file's content, weights included.

    Raises:
        InputError: it is too large for protobuf; save it to a path instead.
    """
    skeleton = onnx_file.of_model(model)
    size = onnx_file.size_bytes(skeleton)
    if size > onnx_file.PROTOBUF_LIMIT:
        raise InputError(
            f"the model takes {size} bytes, more than the {onnx_file.PROTOBUF_LIMIT} of one protobuf "
            "message. Save it to a path, which keeps the weights in a file of their own."
        )
    return b"".join(onnx_file.chunks(skeleton))


def size_bytes(model: onnx_ir.Model) -> int:
    """Return the size of the saved model in bytes, weights included, without serializing them."""
    return onnx_file.size_bytes(onnx_file.of_model(model))


def digest(model: ModelSource) -> str:
    """Return the sha256 of what a model is, in hex.

    It covers all that `save` writes but the types and shapes of inner values, which depend on the onnx
    version. So it is the same for a model, the file it was saved to (with or without a data file), and what
    is loaded from there. Of a path or ModelProto it is the digest of what `load` makes of it.
    """
    if not isinstance(model, onnx_ir.Model):
        model = load(model)
    skeleton = onnx_file.of_model(model)
    for graph in onnx_file.graphs_of(skeleton.proto.graph):
        del graph.value_info[:]
    found = hashlib.sha256()
    for chunk in onnx_file.chunks(skeleton):
        found.update(chunk)
    return found.hexdigest()


# Loading.


def _copy(source: onnx_ir.Model) -> onnx_ir.Model:
    try:
        model = source.clone()
    except Exception as error:  # onnx-ir wraps all causes alike
        raise InputError(
            f"{_IN_MEMORY}: cannot be copied: {_first_cause(error)}. "
            "Check that its nodes are sorted: model.graph.sort()."
        ) from error
    if "ai.onnx" in model.graph.opset_imports:  # the default domain's other name
        model.graph.opset_imports.setdefault("", model.graph.opset_imports.pop("ai.onnx"))
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is None:
                raise InputError(f"{_IN_MEMORY}: initializer {name!r} has no tensor. Set its const_value.")
    external_data.take_in_model(model, _IN_MEMORY)
    skeleton = onnx_file.of_model(model)
    _require_known_versions(skeleton.proto, _IN_MEMORY)
    _require_valid(skeleton, _IN_MEMORY)
    return _finish(model, _IN_MEMORY)


def adopt(skeleton: onnx_file.Skeleton, where: str, files: external_data.DataFiles | None = None) -> onnx_ir.Model:
    """Return the model that `load` makes of a skeleton, which belongs to the model from then on.

    where: the model's name for messages. files: where its external data is found, if it may have any.

    Raises:
        InputError: see `load`.
    """
    _require_known_versions(skeleton.proto, where)
    if skeleton.proto.training_info:
        raise InputError(
            f"{where}: carries training steps (training_info), which would be lost. "
            "Export the model for inference, without them."
        )
    external_data.take_in(skeleton, files, where)
    _densify(skeleton.proto, where)
    _separate_initializers(skeleton.proto)
    _require_valid(skeleton, where)
    try:
        model = onnx_ir.from_proto(skeleton.proto)
    except Exception as error:  # onnx-ir wraps all causes alike
        raise InputError(
            f"{where}: cannot be represented: {_first_cause(error)}. Export the model without it."
        ) from error
    for name, tensor in skeleton.weights.items():
        model.graph.initializers[name].const_value = tensor
    return _finish(model, where)


def _finish(model: onnx_ir.Model, where: str) -> onnx_ir.Model:
    _inline_functions(model, where)
    name_nodes(model)
    inference.infer_shapes(model)
    return model


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).strip().rstrip(".")


def _require_known_versions(proto: onnx.ModelProto, where: str) -> None:
    if proto.ir_version > onnx.IR_VERSION:
        raise InputError(
            f"{where}: has IR version {proto.ir_version}, and the installed onnx {onnx.__version__} knows "
            f"versions up to {onnx.IR_VERSION}. Install a newer onnx, or export with an older one."
        )
    newest = onnx.defs.onnx_opset_version()
    for opset in proto.opset_import:
        if opset.domain == "ai.onnx":  # the default domain's other name
            opset.domain = ""
        if opset.domain == "" and opset.version > newest:
            raise InputError(
                f"{where}: uses opset {opset.version}, and the installed onnx {onnx.__version__} knows "
                f"opsets up to {newest}. Install a newer onnx, or export with opset {newest} or lower."
            )


def _require_valid(skeleton: onnx_file.Skeleton, where: str) -> None:
    complaint = checker_complaint(skeleton, strict=False)
    if complaint:
        raise InputError(f"{where}: is not a valid model: {complaint}. Export it again.")


def _densify(proto: onnx.ModelProto, where: str) -> None:
    """Replace sparse initializers by dense ones: onnx-ir would drop them."""
    for graph in onnx_file.graphs_of(proto.graph):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, where))
        del graph.sparse_initializer[:]


def _dense(sparse: onnx.SparseTensorProto, where: str) -> onnx.TensorProto:
    """Return the dense form. Indices are [NNZ], counted in C order, or [NNZ, rank]."""
    dims = tuple(sparse.dims)
    if onnx.TensorProto.EXTERNAL in (sparse.values.data_location, sparse.indices.data_location):
        raise InputError(
            f"{where}: sparse initializer {sparse.values.name!r} keeps its data in a file. Export it dense."
        )
    try:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        flat = np.ravel_multi_index(tuple(indices.T), dims) if indices.ndim == 2 else indices
        dense = np.zeros(math.prod(dims), values.dtype)
        dense[flat] = values
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(
            f"{where}: sparse initializer {sparse.values.name!r} cannot be read: {error}. Export it dense."
        ) from None
    return onnx.numpy_helper.from_array(dense.reshape(dims), sparse.values.name)


def _separate_initializers(proto: onnx.ModelProto) -> None:
    """Drop initializers from the graph inputs where their being listed carries no meaning (see above)."""
    graph = proto.graph
    initializers = {tensor.name for tensor in graph.initializer}
    listed = initializers.intersection(value.name for value in graph.input)
    always_listed = 0 < proto.ir_version < _FIRST_IR_WITH_PLAIN_INITIALIZERS
    if always_listed:
        proto.ir_version = _FIRST_IR_WITH_PLAIN_INITIALIZERS
    if not listed or (listed < initializers and not always_listed):
        return
    inputs = [value for value in graph.input if value.name not in listed]
    del graph.input[:]
    graph.input.extend(inputs)


def _inline_functions(model: onnx_ir.Model, where: str) -> None:
    if not model.functions:
        return
    from onnx_ir.passes.common.inliner import InlinePass

    try:
        for function in model.functions.values():
            for domain in function.opset_imports.keys() & model.opset_imports.keys():
                # The checker has seen that the operators are the same in both.
                function.opset_imports[domain] = model.opset_imports[domain]
            for node in function.all_nodes():  # the inliner numbers names, and calls the nameless "node"
                node.name = node.name or node.op_type
        InlinePass()(model)
    except Exception as error:  # onnx-ir wraps all causes alike
        raise InputError(
            f"{where}: its functions cannot be inlined: {_first_cause(error)}. "
            "Inline them first: onnx.inliner.inline_local_functions(model, convert_version=True)."
        ) from error
    model.functions.clear()
    _rename_shadowing_values(model.graph, frozenset())


def _rename_shadowing_values(graph: onnx_ir.Graph, outer: frozenset[str]) -> None:
    """Number values of inner graphs where inlining gave their name to a value of an enclosing one."""
    own = list(onnx_file.own_values(graph))
    taken = set(outer).union(value.name or "" for value in own)
    numbered = _numbering(taken)
    for value in own:
        if value.name in outer:
            value.name = numbered(value.name)
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                _rename_shadowing_values(attribute.as_graph(), frozenset(taken))
            elif attribute.type == onnx_ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    _rename_shadowing_values(inner, frozenset(taken))


def name_nodes(model: onnx_ir.Model) -> None:
    """Give every node a unique name, in place: `Conv_17` (type and position) where there is none.

    Names that are unique stay as they are; of equal ones the first stays and the others are numbered.
    """
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes if node.name}
    numbered = _numbering(taken)
    seen: set[str] = set()
    for position, node in enumerate(nodes):
        if not node.name:
            name = f"{node.op_type}_{position}"
            node.name = numbered(name) if name in taken else name
            taken.add(node.name)
        elif node.name in seen:
            node.name = numbered(node.name)
        seen.add(node.name)


def _numbering(taken: set[str]) -> Callable[[str], str]:
    """Return a function that adds the next free number to a name, and the result to `taken`."""
    following: dict[str, int] = {}

    def numbered(name: str) -> str:
        number = following.get(name, 2)
        while f"{name}_{number}" in taken:
            number += 1
        following[name] = number + 1
        taken.add(f"{name}_{number}")
        return f"{name}_{number}"

    return numbered


# Saving.


def _require_writable(file: Path, asked: Path, overwrite: bool) -> None:
    if file.is_dir():
        raise UsageError(f"output {asked}: is a folder. Name a file in it, such as {asked / 'model.onnx'}.")
    if file.exists() and not file.is_file():  # replacing /dev/null would break the machine
        raise UsageError(f"output {asked}: is a device or pipe, not a file. Name a file.")
    if not file.parent.is_dir():
        raise UsageError(f"output {asked}: there is no folder {file.parent}. Create it first.")
    if file.exists() and not overwrite:
        name = asked if file.name == asked.name else asked.with_name(file.name)
        raise UsageError(f"output {name}: exists already. Choose another name, or replace it with --force.")


def _write_all(files: list[tuple[Path, Iterable[bytes | memoryview]]]) -> int:
    """Write every file under a temporary name beside its place, then move them all there."""
    written = 0
    with contextlib.ExitStack() as cleanup:
        moves: list[tuple[Path, Path]] = []
        for path, content in files:
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            cleanup.callback(_remove, temporary)
            written += _write(temporary, path, content)
            moves.append((temporary, path))
        for temporary, path in moves:
            with _explained(path):
                temporary.replace(path)
    return written


def _remove(temporary: Path) -> None:
    with contextlib.suppress(OSError):  # moved into place, or never made
        temporary.unlink()


def _write(temporary: Path, path: Path, content: Iterable[bytes | memoryview]) -> int:
    with _explained(path), temporary.open("wb") as file:
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        return sum(map(file.write, content))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"output {path}: cannot be written: {error.strerror or error}. Choose another place."
        ) from error
