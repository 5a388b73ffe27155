"""Weights that a model keeps in files of their own: found, checked and mapped, never copied.

A model may come from anywhere, so where it points is checked: a data file must lie inside the model's
folder, with every link followed. Where the model file itself is a link (as in the cache of the Hugging Face
hub, where model and data are links into one folder), the folder of its target counts too.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir

from onnxpress.ir import onnx_file
from onnxpress.ir.errors import InputError

__all__ = ["DataFiles", "take_in", "take_in_model"]


@dataclasses.dataclass
class DataFiles:
    """The data files of one model, each opened once.

    where: the model's name for messages. folder: what locations are relative to.
    model_path: the model's file, where there is one.
    """

    where: str
    folder: Path
    model_path: Path | None = None
    _opened: dict[Path, onnx_file.Buffer] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def tensor(
        self, location: str, offset: int, length: int | None, declared: onnx_file.Declaration
    ) -> onnx_ir.LazyTensor:
        """Return the tensor that `declared` describes, over its bytes in the file.

        Raises:
            InputError: the file lies outside the model's folder, is missing, or is too short.
        """
        if length is not None:
            declared.require_bytes(length, self.where)
        data = self._open(location, declared.name)
        if offset < 0 or len(data) < offset + declared.nbytes:
            raise InputError(
                f"{self.where}: weight {declared} needs {declared.nbytes} bytes at offset {offset} of "
                f"{location!r}, which has {len(data)}. The data file is cut off or belongs to another model: "
                "copy or export both again."
            )
        return onnx_file.mapped_tensor(data, offset, declared)

    def _open(self, location: str, weight: str) -> onnx_file.Buffer:
        path = self._inside(location, weight)
        if path not in self._opened:
            if not self._exists(path, location, weight):
                raise InputError(
                    f"{self.where}: weight {weight!r} keeps its data in {location!r}, which is not in "
                    f"{self.folder}. Put the data file beside the model, under that name."
                )
            self._opened[path] = onnx_file.map_file(path, "data")
        return self._opened[path]

    def _exists(self, path: Path, location: str, weight: str) -> bool:
        try:
            return path.exists()
        except OSError as error:  # a name that is too long, or a folder that may not be entered
            raise InputError(
                f"{self.where}: weight {weight!r} keeps its data in {onnx_file.shortened(location)!r}, which cannot "
                f"be read ({error.strerror}). Move the data file beside the model and save it with its plain name."
            ) from None

    def _inside(self, location: str, weight: str) -> Path:
        """Return the real path of a data file that may be read."""
        if not self._is_plain(location) or not self._is_within(self.folder / location):
            raise InputError(
                f"{self.where}: weight {weight!r} keeps its data in {onnx_file.shortened(location)!r}, outside the "
                f"model's folder {self.folder}: refused, because a model could read any file that way. "
                "Move the data file into that folder and save the model with its plain name."
            )
        return Path(os.path.realpath(self.folder / location))

    @staticmethod
    def _is_plain(location: str) -> bool:
        """Tell whether a location is relative and goes only down, on every system."""
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        if not location or "\0" in location or posix.is_absolute() or windows.anchor:
            return False
        return ".." not in posix.parts and ".." not in windows.parts

    def _is_within(self, path: Path) -> bool:
        return any(Path(os.path.realpath(path)).is_relative_to(root) for root in self._roots)

    @functools.cached_property
    def _roots(self) -> Sequence[Path]:
        roots = [Path(os.path.realpath(self.folder))]
        if self.model_path is not None:
            roots.append(Path(os.path.realpath(self.model_path)).parent)
        return roots


def take_in(skeleton: onnx_file.Skeleton, files: DataFiles | None, where: str) -> None:
    """Move external data into the skeleton, in place: large initializers as weights, the rest inline.

    files: None where the model has no folder, so that external data cannot be found.

    Raises:
        InputError: see `DataFiles.tensor`; or there is no folder.
    """
    for tensor in skeleton.proto.graph.initializer:
        mapped = _of_proto(tensor, files, where)
        if mapped is None:
            continue
        if mapped.nbytes > onnx_file.INLINE_BYTES:
            tensor.raw_data = b""
            skeleton.weights[tensor.name] = mapped
        else:
            tensor.raw_data = mapped.tobytes()
    for tensor in onnx_file.tensors_of(skeleton.proto):
        mapped = _of_proto(tensor, files, where)
        if mapped is not None:
            tensor.raw_data = mapped.tobytes()


def _of_proto(tensor: onnx.TensorProto, files: DataFiles | None, where: str) -> onnx_ir.LazyTensor | None:
    """Return the external tensor that a proto declares and clear the declaration; None for all others."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    if files is None:
        raise InputError(
            f"{where}: weight {tensor.name!r} keeps its data in a file, and a ModelProto does not say in "
            "which folder. Give the model's path instead, or read it with onnx.load(path)."
        )
    declared = onnx_file.Declaration.of_proto(tensor, where)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(entries.get("offset") or 0)
        length = int(entries["length"]) if entries.get("length") else None
    except ValueError:
        raise InputError(
            f"{where}: weight {declared} declares external data that cannot be read: {entries}. "
            "The model is damaged: export it again."
        ) from None
    mapped = files.tensor(entries.get("location", ""), offset, length, declared)
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return mapped


def take_in_model(model: onnx_ir.Model, where: str) -> None:
    """Replace onnx-ir's external tensors by mapped ones, in place: initializers and attributes, all graphs.

    Raises:
        InputError: see `DataFiles.tensor`.
    """
    folders: dict[str, DataFiles] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                value.const_value = _of_tensor(value.const_value, folders, where)
        for node in graph:
            for name, attribute in node.attributes.items():
                if isinstance(attribute.value, onnx_ir.ExternalTensor):
                    tensor = _of_tensor(attribute.value, folders, where)
                    node.attributes[name] = onnx_ir.AttrTensor(name, tensor, doc_string=attribute.doc_string)


def _of_tensor(tensor: onnx_ir.ExternalTensor, folders: dict[str, DataFiles], where: str) -> onnx_ir.LazyTensor:
    folder = os.fspath(tensor.base_dir) or "."
    files = folders.setdefault(folder, DataFiles(where, Path(folder)))
    declared = onnx_file.Declaration(
        tensor.name, tensor.dtype, tensor.shape, tensor.doc_string, dict(tensor.metadata_props) or None
    )
    return files.tensor(os.fspath(tensor.location), tensor.offset or 0, tensor.length, declared)
