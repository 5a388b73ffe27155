"""Pack models into .onnxp files, restore them, and run them without a file in between."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxpress.ir import model_io, onnx_file
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.container import packing
from onnxpress.ir.errors import InputError, UsageError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["SUFFIX", "MethodRow", "PackReport", "open_session", "pack", "unpack"]

SUFFIX = model_io.PACKED_SUFFIX
_FRAME = "frame"


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """What one method did. before, after: bytes of what it coded, and of what it made of that."""

    method: str
    tensors: int
    before: int
    after: int

    @property
    def ratio(self) -> float | None:
        """after / before; None where there was nothing before."""
        return self.after / self.before if self.before else None


@dataclasses.dataclass(frozen=True)
class PackReport:
    """A packed model: bytes of the .onnx file that `unpack` makes of it, of the .onnxp file, and where they go."""

    before: int
    after: int
    methods: tuple[MethodRow, ...]
    params: int

    @property
    def ratio(self) -> float:
        """Packed bytes over unpacked bytes."""
        return self.after / self.before

    @property
    def bits_per_weight(self) -> float | None:
        """Bits of the whole file for each weight of the model; None where there are none."""
        return 8 * self.after / self.params if self.params else None

    @property
    def warning(self) -> str | None:
        """Say where the bytes are if the packed model is the larger one, else None."""
        if self.after <= self.before:
            return None
        worst = max(self.methods, key=lambda row: row.after - row.before)
        why = {
            _FRAME: "sizes and digests, which a model this small cannot make up for",
            "stored": "tensors whose bytes are noise to every method",
        }.get(worst.method, "a part that its method cannot shorten")
        return (
            f"the packed model is {self.after - self.before} bytes LARGER than the model: {worst.after} bytes are "
            f"{worst.method}: {why}. Keep the .onnx file."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "before_bytes": self.before,
            "after_bytes": self.after,
            "ratio": self.ratio,
            "params": self.params,
            "bits_per_weight": self.bits_per_weight,
            "methods": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in self.methods],
            "warning": self.warning,
        }


def pack(model: model_io.ModelSource, path: str | os.PathLike[str], *, overwrite: bool = False) -> PackReport:
    """Write a model to the .onnxp file `path`, whole or not at all, and tell what that took.

    `unpack` restores what `save` would have written, to the last byte.

    Raises:
        UsageError: the name does not end in .onnxp, the path is taken and `overwrite` is not set, or the model is
            packed already.
        InputError: the model cannot be used.
    """
    if Path(path).suffix != SUFFIX:
        raise UsageError(
            f"output {os.fspath(path)!r}: packed models end in {SUFFIX}. Name it {_renamed(path, SUFFIX)!r}."
        )
    if isinstance(model, str | os.PathLike) and packing.is_packed(Path(model)):
        raise UsageError(
            f"{os.fspath(model)!r} is packed already, and packing it again gains nothing. "
            f"Unpack it: onnxpress unpack {os.fspath(model)} -o {_renamed(model, '.onnx')}"
        )
    loaded = model_io.load(model)
    told = model_io.save_packed(loaded, path, overwrite=overwrite)
    return _report(told, model_io.size_bytes(loaded), Path(path).stat().st_size, cost(loaded).params)


def unpack(source: str | os.PathLike[str], path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Write the model in the .onnxp file `source` to `path`, whole or not at all, and return the bytes written.

    Raises:
        InputError: the file is missing, no .onnxp file, of another version, or damaged; then nothing is written.
        UsageError: the path is taken and `overwrite` is not set, or has the suffix of a packed model.
    """
    if Path(path).suffix == SUFFIX:
        raise UsageError(f"output {os.fspath(path)!r}: what is unpacked is no {SUFFIX} file. Name it .onnx.")
    return model_io.save_skeleton(packing.read_packed(Path(source)), path, overwrite=overwrite)


def open_session(source: model_io.ModelSource, **options: Any) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session for a packed model, in memory, for an .onnx file, or for a model.

    options: of `onnxruntime.InferenceSession`, such as `sess_options` and `providers` (default: the CPU).

    Raises:
        InputError: the file cannot be used, or the model takes more than 2 GiB, which only files may.
    """
    import onnxruntime

    options.setdefault("providers", ["CPUExecutionProvider"])
    if not isinstance(source, str | os.PathLike):
        return onnxruntime.InferenceSession(model_io.to_proto_bytes(model_io.load(source)), **options)
    path = os.fspath(source)
    if not packing.is_packed(Path(path)):
        model: str | bytes = path
        if Path(path).suffix == SUFFIX or not Path(path).is_file():
            onnx_file.read(Path(path))  # says what is wrong with it
    else:
        skeleton = packing.read_packed(Path(path))
        size = onnx_file.size_bytes(skeleton)
        if size > onnx_file.PROTOBUF_LIMIT:
            raise InputError(
                f"{path}: holds {size} bytes, more than the {onnx_file.PROTOBUF_LIMIT} that a session takes "
                "from memory. Unpack it to a file first: "
                f"onnxpress unpack {path} -o {_renamed(path, '.onnx')}"
            )
        model = b"".join(onnx_file.chunks(skeleton))
    return onnxruntime.InferenceSession(model, **options)


def _report(told: Sequence[packing.Packed], before: int, after: int, params: int) -> PackReport:
    groups: dict[str, list[packing.Packed]] = collections.defaultdict(list)
    for each in told:
        groups[each.method].append(each)
    rows = [
        MethodRow(method, *(sum(getattr(one, name) for one in members) for name in ("tensors", "before", "after")))
        for method, members in groups.items()
    ]
    rows.sort(key=lambda row: -row.after)
    rows.append(MethodRow(_FRAME, 0, 0, after - sum(row.after for row in rows)))
    return PackReport(before, after, tuple(rows), params)


def _renamed(path: str | os.PathLike[str], suffix: str) -> str:
    return str(Path(path).with_suffix(suffix))
