"""What is sent to `runner.py`, and what its answer means.

    one line of JSON: the job    the files that it lists: models and feeds, each once, called by its SHA-256

The files are checked against these digests on arrival; a model that has two names is sent once.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from onnxpress.targets.devices import runner
from onnxpress.targets.devices.base import DeviceError, DeviceRun, Machine, ModelRun, Models, Work
from onnxpress.targets.devices.refused import refusal
from onnxpress.targets.runtimes.base import Array, Feeds, NodeTime
from onnxpress.targets.runtimes.onnxruntime import empty_model
from onnxpress.targets.runtimes.origins import find_origins
from onnxpress.targets.runtimes.refusal import one_line
from onnxpress.targets.runtimes.timing import Latency

__all__ = ["Job", "find_answer", "model_bytes", "pack", "parse_model", "read_answer"]

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_EXTRA_SECONDS = 30.0  # that the runner waits longer than we do: it need not end the work of one who still listens
_FROM_RUNNER = {"died": "the runner died there", "failed": "the runner failed there", "timeout": "it took too long"}


@dataclasses.dataclass(frozen=True)
class Job:
    """head: the first line. files: what follows."""

    head: bytes
    files: tuple[bytes, ...]


def pack(models: Models, feeds: Mapping[str, Feeds], work: Work) -> Job:
    """Return the job for the runner. feeds: by model.

    Raises:
        InputError: a model is too large for one file.
    """
    contents: dict[str, bytes] = {}
    named = {
        name: {"model": _add(contents, model_bytes(name, model)), "feeds": _add(contents, _npz(feeds[name]))}
        for name, model in models.items()
    }
    job = {
        "format": runner.FORMAT,
        "models": named,
        "empty": _add(contents, empty_model()) if work.node_rounds else None,
        "rounds": work.rounds,
        "warmup": work.warmup,
        "threads": work.threads,
        "min_seconds": work.min_seconds,
        "max_seconds": work.max_seconds,
        "node_rounds": work.node_rounds,
        "node_seconds": work.node_seconds,
        "outputs": work.outputs,
        "deadline_seconds": work.timeout_seconds + _EXTRA_SECONDS,
        "files": [{"digest": digest, "bytes": len(content)} for digest, content in contents.items()],
    }
    return Job(json.dumps(job).encode() + b"\n", tuple(contents.values()))


def _add(contents: dict[str, bytes], content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    contents[digest] = content
    return digest


def model_bytes(name: str, model: onnx_ir.Model | bytes) -> bytes:
    """Return the content of the model's file.

    Raises:
        InputError: it is too large for one.
    """
    if isinstance(model, bytes):
        return model
    size = model_io.size_bytes(model)
    if size > _PROTOBUF_LIMIT_BYTES:
        raise InputError(f"model {name!r} takes {size} bytes, and a device is sent models below 2 GiB: make it smaller")
    return model_io.to_proto_bytes(model)


def _npz(feeds: Feeds) -> bytes:
    """Return an .npz file, the same for the same feeds. Not numpy's `savez`: it takes no input of the name `file`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, given in feeds.items():
            array = np.asarray(given)
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:
                np.save(file, array.astype(str) if array.dtype == object else array, allow_pickle=False)
    return content.getvalue()


def find_answer(lines: list[str]) -> Mapping[str, Any] | None:
    """Return the runner's answer among the lines that the device printed, login messages and all."""
    for line in reversed(lines):
        if runner.MARK not in line:
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # cut off with the connection, or none of ours
            continue
        if isinstance(found, dict) and found.get(runner.MARK) == runner.FORMAT:
            return found
    return None


def read_answer(device: str, answer: Mapping[str, Any], models: Models, step: str) -> DeviceRun:
    """Return what the answer says. step: what the runner began last.

    Raises:
        UsageError, InputError, RuntimeRefusalError, DeviceError: it says that there are no results; see `Device.run`.
        DeviceError: it is not of the form that the runner gives it.
    """
    try:
        found = _error(device, answer["error"], models, step) if "error" in answer else _results(answer, models)
    except Exception as error:  # whatever reading may raise, of what another machine may have written
        raise DeviceError(
            f"{device}: its answer cannot be read: {type(error).__name__}: {one_line(error)}. Is it the runner's?"
        ) from error
    if isinstance(found, DeviceRun):
        return found
    raise found


def _error(device: str, error: Mapping[str, str], models: Models, step: str) -> OnnxpressError:
    kind, message = error["kind"], one_line(error["message"])
    if kind == "missing":
        return UsageError(
            f"{device}: {one_line(error['python'])}, cannot import what the runner needs: {message}. Install it there: "
            f"python3 -m pip install onnxruntime numpy, or name a Python that has it: {device.partition('?')[0]}"
            "?python=/path/to/python"
        )
    if kind == "feeds":
        return InputError(message)
    if kind == "refused":
        runtime, act, name = f"onnxruntime {one_line(error['version'])}", one_line(error["act"]), error["model"]
        return refusal(device, runtime, act, name, error["message"], models[name])
    return DeviceError(f"{device}: {_FROM_RUNNER[kind]} while {step}: {message}")


def _results(answer: Mapping[str, Any], models: Models) -> DeviceRun:
    return DeviceRun(
        {name: _model_run(answer["models"][name], model) for name, model in models.items()},
        _machine(answer["machine"]),
        int(answer["peak_rss_bytes"]),
    )


def _machine(found: Mapping[str, Any]) -> Machine:
    return Machine(
        cpu=one_line(found["cpu"]),
        board=one_line(found["board"]),
        architecture=one_line(found["architecture"]),
        cores=int(found["cores"]),
        cores_used=tuple(map(int, found["cores_used"])),
        os=one_line(found["os"]),
        runtime_version=one_line(found["runtime_version"]),
    )


def _model_run(found: Mapping[str, Any], model: onnx_ir.Model | bytes) -> ModelRun:
    wall, cpu = _times(found["wall_ms"]), _times(found["cpu_ms"])
    if not wall or len(cpu) not in (0, len(wall)):
        raise ValueError(f"{len(wall)} wall times, {len(cpu)} CPU times")
    return ModelRun(
        Latency(wall, cpu),
        _time(found["load_seconds"]),
        _node_times(found, model) if "node_times" in found else (),
        {str(name): _array(content) for name, content in found.get("outputs", ())},
    )


def _times(found: list[Any]) -> tuple[float, ...]:
    return tuple(map(_time, found))


def _time(found: Any) -> float:
    time = float(found)
    if not (math.isfinite(time) and time >= 0):
        raise ValueError(f"{time} as a time")
    return time


def _array(content: str) -> Array:
    array: Array = np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False)
    return array.astype(object) if array.dtype.kind == "U" else array


def _node_times(found: Mapping[str, Any], model: onnx_ir.Model | bytes) -> tuple[NodeTime, ...]:
    origins = find_origins(parse_model(model), parse_model(base64.b64decode(found["graph"])))
    return tuple(
        NodeTime(one_line(name), one_line(kind), _time(time), origins.get(name, ()))
        for name, kind, time in found["node_times"]
    )


def parse_model(model: onnx_ir.Model | bytes) -> onnx_ir.Model:
    """Return the model of a file's content, or the model itself."""
    return onnx_ir.from_proto(onnx.load_model_from_string(model)) if isinstance(model, bytes) else model
