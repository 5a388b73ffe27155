"""Write down what repeats a failure: the model, the pass that fails on it, the data, and the command.

    model.onnx     the model before the failing pass
    pipeline.txt   the failing pass with its options
    data/          the calibration samples, where they did not come from a path of their own
    error.txt      the traceback, and the versions of what ran
    repeat.txt     the command that fails again, to be run inside the folder

Notes on values and encodings of weights live in memory and reach no file. A model that carries some is not
written; the model that came in is, with all passes up to the failing one.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.passes.base import Context, Pass
from onnxpress.passes.pipeline import format_pipeline, to_spec

__all__ = ["write_reproducer"]

_FOUND_AGAIN = {"onnxpress.inconsistent", "onnxpress.inferred"}  # what loading a file notes by itself
_DATA_LIMIT_BYTES = 256 << 20  # a reproducer is something to send; data in a file of its own is not copied
_DATA_BATCH = 32
_PACKAGES = ("onnxpress", "onnx", "onnx-ir", "onnxscript", "onnx-graphsurgeon", "numpy", "onnxruntime")


def write_reproducer(
    crash_dir: str | os.PathLike[str],
    *,
    original: onnx_ir.Model,
    before: onnx_ir.Model,
    passes: Sequence[Pass],
    context: Context,
    flags: Sequence[str],
    error: BaseException,
) -> Path:
    """Write the files and return the folder they are in.

    original: the model before the first of `passes`. before: the one before the last, which failed with
    `error`. flags: what the command needs beside model, passes, data and seed.
    The folder is `crash_dir`, or a new numbered one inside where `crash_dir` holds a reproducer already.
    """
    from onnxpress.ir.model_io import save

    folder = _fresh_folder(Path(crash_dir))
    (folder / "error.txt").write_text(_describe(error), encoding="utf-8")
    survives = _survives_saving(before)
    wanted = passes[-1:] if survives else passes
    text = format_pipeline(to_spec(one) for one in wanted)
    (folder / "pipeline.txt").write_text(f"{text}\n", encoding="utf-8")
    save(before if survives else original, folder / "model.onnx")
    command = ["onnxpress", "compress", "model.onnx", "-o", "out.onnx", "--passes", "pipeline.txt"]
    command += [*_target_flags(context, flags), *_data_flags(context, folder), "--seed", str(context.seed)]
    (folder / "repeat.txt").write_text(f"{shlex.join([*command, *flags])}\n", encoding="utf-8")
    return folder


def _fresh_folder(crash_dir: Path) -> Path:
    folder, number = crash_dir, 1
    while (folder / "error.txt").exists():  # the file that is written first
        number += 1
        folder = crash_dir / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _survives_saving(model: onnx_ir.Model) -> bool:
    """Whether a file holds all that passes may have left in `model`."""
    from onnxpress.ir.encodings import is_encoded

    for graph in model.graphs():
        nodes = list(graph)
        outputs = [value for node in nodes for value in node.outputs]
        values = [*graph.inputs, *graph.initializers.values(), *outputs]
        if any(is_encoded(value) for value in graph.initializers.values()):
            return False
        notes = [graph.meta, *(node.meta for node in nodes), *(value.meta for value in values)]
        if any(note.keys() - _FOUND_AGAIN for note in notes):
            return False
    return not model.meta


def _target_flags(context: Context, flags: Sequence[str]) -> list[str]:
    if "--target" in flags or context.constraints.target == "any":
        return []
    return ["--target", context.constraints.target]


def _data_flags(context: Context, folder: Path) -> list[str]:
    if context.data is None:
        return []
    origin = Path(context.data.name)
    if origin.exists():
        return ["--data", os.fspath(origin.resolve())]
    (folder / "data").mkdir()
    written = 0
    for index, batch in enumerate(context.data.batches(_DATA_BATCH)):
        written += sum(array.nbytes for array in batch.feeds.values())
        if index and written > _DATA_LIMIT_BYTES:
            break
        np.savez(folder / "data" / f"{index:06}.npz", allow_pickle=False, **batch.feeds)
    return ["--data", "data"]


def _describe(error: BaseException) -> str:
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    system = f"Python {platform.python_version()} on {platform.platform()}"
    trace = "".join(traceback.format_exception(error))
    return f"{trace}\n{chr(10).join([*versions, system])}\n"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
