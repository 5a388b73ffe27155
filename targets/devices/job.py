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
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.devices import runner
from onnxpress.targets.devices.base import DeviceError, DeviceRun, Machine, ModelRun, Models, Work
from onnxpress.targets.devices.refused import refusal
from onnxpress.targets.runtimes.base import Array, Feeds, NodeTime
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


def pack(models: Models, feeds: Feeds, work: Work) -> Job:
    """Return the job for the runner.

    Raises:
        InputError: a model is too large for one file.
    """
    contents: dict[str, bytes] = {}
    named = {name: _add(contents, model_bytes(name, model)) for name, model in models.items()}
    job = {
        "format": runner.FORMAT,
        "models": named,
        "feeds": _add(contents, _npz(feeds)),
        "rounds": work.rounds,
        "warmup": work.warmup,
        "threads": work.threads,
        "seed": work.seed,
        "max_seconds": work.max_seconds,
        "node_times": work.node_times,
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
    """Return an .npz file. Not numpy's `savez`, for which an input cannot be called `file`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, given in feeds.items():
            array = np.asarray(given)
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array.astype(str) if array.dtype == object else array, allow_pickle=False)
    return content.getvalue()


def find_answer(lines: list[str]) -> Mapping[str, Any] | None:
    """Return the runner's answer among the lines that the device printed, login messages and all."""
    for line in reversed(lines):
        if runner.MARK not in line:
            continue
        try:
            found = json.loads(line)
        except ValueError:  # cut off with the connection
            continue
        if isinstance(found, dict) and found.get(runner.MARK) == runner.FORMAT:
            return found
    return None


def read_answer(device: str, answer: Mapping[str, Any], models: Models, step: str) -> DeviceRun:
    """Return what the answer says. step: what the runner began last.

    Raises:
        UsageError, InputError, RuntimeRefusalError, DeviceError: it says that there are no results; see `Device.run`.
    """
    if "error" in answer:
        _raise(device, answer["error"], models, step)
    machine = answer["machine"]
    return DeviceRun(
        {name: _model_run(answer["models"][name], model) for name, model in models.items()},
        Machine(**{**machine, "cores_used": tuple(machine["cores_used"])}),
        answer["peak_rss_bytes"],
    )


def _raise(device: str, error: Mapping[str, str], models: Models, step: str) -> None:
    kind, message = error["kind"], error["message"]
    if kind == "missing":
        raise UsageError(
            f"{device}: {error['python']}, cannot import what the runner needs: {one_line(message)}. Install it there: "
            f"python3 -m pip install onnxruntime numpy, or name a Python that has it: {device.partition('?')[0]}"
            "?python=/path/to/python"
        )
    if kind == "feeds":
        raise InputError(message)
    if kind == "refused":
        runtime = f"onnxruntime {error['version']}"
        raise refusal(device, runtime, error["act"], error["model"], message, models[error["model"]])
    raise DeviceError(f"{device}: {_FROM_RUNNER.get(kind, kind)} while {step}: {one_line(message)}")


def _model_run(found: Mapping[str, Any], model: onnx_ir.Model | bytes) -> ModelRun:
    return ModelRun(
        Latency(tuple(found["wall_ms"]), tuple(found["cpu_ms"])),
        found["load_seconds"],
        _node_times(found, model) if "node_times" in found else (),
        {name: _array(content) for name, content in found.get("outputs", ())},
    )


def _array(content: str) -> Array:
    array: Array = np.load(io.BytesIO(base64.b64decode(content)), allow_pickle=False)
    return array.astype(object) if array.dtype.kind == "U" else array


def _node_times(found: Mapping[str, Any], model: onnx_ir.Model | bytes) -> tuple[NodeTime, ...]:
    origins = find_origins(parse_model(model), parse_model(base64.b64decode(found["graph"])))
    return tuple(NodeTime(name, kind, time, origins.get(name, ())) for name, kind, time in found["node_times"])


def parse_model(model: onnx_ir.Model | bytes) -> onnx_ir.Model:
    """Return the model of a file's content, or the model itself."""
    return onnx_ir.from_proto(onnx.load_model_from_string(model)) if isinstance(model, bytes) else model
