"""The runtime `tensorrt`: TensorRT on an NVIDIA GPU, through its command `trtexec` (10 or newer) on PATH.

No Python package is needed, and none of ours is in the way of the clock. The price is a process for each `compute`,
whose start and reading of the engine take seconds that are nobody's inference time. So `compute` hands out what
trtexec measured: the median GPU time of a run, by CUDA events, copies to and from the GPU not counted. Its outputs are
of the same process, printed with six significant digits. Where nobody asks for the time, it runs the model once.

An engine has the types of its model (`--stronglyTyped`): float16 and int8 are where the model says so. float32 is not
computed in TF32.

Options and files, from github.com/NVIDIA/TensorRT: samples/trtexec/README.md and samples/common/sampleOptions.cpp;
samples/common/sampleReporting.cpp, which writes
    --exportTimes      [{"startEnqMs": 0.1, ..., "computeMs": 0.2, "d2hMs": 0, "latencyMs": 0.2}, ...]
    --exportProfile    [{"count": 20}, {"name": "conv", "timeMs": 4, "averageMs": 0.2, "medianMs": 0.2, ...}, ...]
    --exportOutput     [{"name": "out0", "dimensions": "1x5", "values": [0.1, ...]}, ...]
and, for --exportLayerInfo of an engine built with `--profilingVerbosity=detailed`, the engine inspector's
    {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution", ...}, ...], "Bindings": ["in0", "out0"]}.
Not run on a GPU yet: tested against a program that answers in these formats.
"""

from __future__ import annotations

import collections
import json
import math
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import FixedModel, fix_shapes
from onnxpress.targets.runtimes.programs import run_program
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["TENSORRT", "Engine", "TensorRt"]

_TITLE = "TensorRT"
_PROGRAM = "trtexec"
_BUILD = ("--stronglyTyped", "--noTF32", "--profilingVerbosity=detailed", "--skipInference")
_RUNS = 20  # of the model in a `compute` that is timed, after trtexec's own warm-up of 200 ms; their median counts
_ONCE = "--warmUp=0"
_BUILD_SECONDS, _RUN_SECONDS, _VERSION_SECONDS = 7200.0, 600.0, 60.0  # at most; large engines take tens of minutes
_VERSION = re.compile(r"\[TensorRT v(\d+)\]")  # of its first line
_ERROR = re.compile(r"\[E\] (.*)")  # of a line of its log
_UNKNOWN_KIND = "layer"  # what the inspector does not list


class Engine:
    """An engine built for feeds of one set of shapes. It and the files of its last run lie in a temporary folder."""

    def __init__(self, model: onnx_ir.Model, feeds: Feeds) -> None:
        """Errors: see `Runtime.prepare`."""
        self._fixed = fix_shapes(model, feeds)
        self.ports = self._fixed.inputs
        self._temporary = tempfile.TemporaryDirectory(prefix="onnxpress-")
        self._folder = Path(self._temporary.name)
        self._inputs, self._outputs = _rename(self._fixed)
        self._fixed.write(self._folder / "model.onnx", _TITLE)
        files = ("--onnx=model.onnx", "--saveEngine=model.engine", "--exportLayerInfo=layers.json")
        self._run("build", _BUILD_SECONDS, *files, *_BUILD)
        self.size_bytes = (self._folder / "model.engine").stat().st_size
        self.feed(feeds)

    def feed(self, feeds: Feeds) -> None:
        for name, array in fit_feeds(feeds, self.ports).items():
            (self._folder / f"{self._inputs[name]}.bin").write_bytes(array.tobytes())

    def compute(self, *, timed: bool = True) -> float | None:
        if not timed:
            self._infer(1, 0, _ONCE, "--exportOutput=outputs.json")
            return None
        self._infer(_RUNS, 0, "--exportTimes=times.json", "--exportOutput=outputs.json")
        return statistics.median(float(each["computeMs"]) for each in self._read("times.json"))

    def fetch(self) -> dict[str, Array]:
        try:
            found = {str(each["name"]): _array(each) for each in self._read("outputs.json")}
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable("outputs.json", error) from error
        missing = [name for name, inner in self._outputs.items() if inner not in found]
        if missing:
            raise RuntimeRefusalError(f"{_TITLE}: gives no output {missing[0]!r}")
        return {name: self._fixed.conform(name, found[inner], _TITLE) for name, inner in self._outputs.items()}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter(kind for _, kind in self._kinds())

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        kinds = dict(self._kinds())
        self._infer(rounds, math.ceil(seconds), "--exportProfile=profile.json")
        return [
            NodeTime(str(each["name"]), kinds.get(str(each["name"]), _UNKNOWN_KIND), float(each["medianMs"]))
            for each in self._read("profile.json")
            if "medianMs" in each  # the first entry counts the runs
        ]

    def _kinds(self) -> list[tuple[str, str]]:
        """Return name and type of each layer."""
        return [(str(each["Name"]), str(each["LayerType"])) for each in self._read("layers.json")["Layers"]]

    def _infer(self, runs: int, seconds: int, *options: str) -> None:
        inputs = ",".join(f"{inner}:{inner}.bin" for inner in self._inputs.values())
        loading = [f"--loadInputs={inputs}"] if inputs else []
        effort = (f"--iterations={runs}", f"--duration={seconds}")  # both at least
        limit = max(_RUN_SECONDS, 2.0 * seconds)
        self._run("run", limit, "--loadEngine=model.engine", *loading, *effort, *options)

    def _run(self, what: str, limit_seconds: float, *options: str) -> None:
        ended = run_program([_require(), *options], self._folder, limit_seconds=limit_seconds)
        if not ended.failure:
            return
        errors = [found[1] for line in ended.lines if (found := _ERROR.search(line))]
        cause = one_line((errors or ended.lines[-1:] or ["it wrote nothing"])[0])
        raise RuntimeRefusalError(f"{_TITLE}: does not {what} the model: {cause} ({ended.failure})")

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self._folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # not written, or with the bare nan and inf that C++ prints
            raise _unreadable(name, error) from error


class TensorRt:
    """TensorRT on a GPU, whose time no clock of the processor tells."""

    name = "tensorrt"
    title = "TensorRT on a GPU"
    single_thread_clock: Callable[[], float] | None = None
    node_clock: NodeClock | None = "GPU"

    def version(self) -> str:
        lines = run_program([_require(), "--help"], Path.cwd(), limit_seconds=_VERSION_SECONDS).lines
        found = next((found[1] for line in lines if (found := _VERSION.search(line))), None)
        return "unknown" if found is None else _dotted(int(found))

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> Engine:
        """Build an engine, which takes minutes for a large model. threads: the GPU has its own."""
        _require()
        return Engine(model, feeds)


TENSORRT = TensorRt()


def _dotted(version: int) -> str:
    """Return `10.13.2` for NvInferVersion.h's 101302, and `8.6.1` for 8601: the major number's unit grew at 10."""
    major, rest = divmod(version, 10_000 if version >= 100_000 else 1_000)
    minor, patch = divmod(rest, 100)
    return f"{major}.{minor}.{patch}"


def _rename(fixed: FixedModel) -> tuple[dict[str, str], dict[str, str]]:
    """Give inputs and outputs names that trtexec's options can hold, and return those by the model's.

    Commas, colons and quotes in a name would split an option.
    """
    graph = fixed.model.graph
    taken = {value.name for node in graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None}
    inputs = {str(value.name): value for value in graph.inputs if value.name in fixed.inputs}
    outputs = {str(value.name): value for value in graph.outputs}
    renamed = dict.fromkeys((*inputs.values(), *outputs.values()))
    plain = [name for name in map("port{}".format, range(len(taken) + len(renamed))) if name not in taken]
    for value, name in zip(renamed, plain, strict=False):
        value.name = name
    return (
        {name: str(value.name) for name, value in inputs.items()},
        {name: str(value.name) for name, value in outputs.items()},
    )


def _unreadable(name: str, error: Exception) -> RuntimeRefusalError:
    return RuntimeRefusalError(f"{_TITLE}: trtexec left no {name} that reads: {one_line(error)}")


def _array(output: Any) -> Array:
    shape = [int(size) for size in re.findall(r"\d+", output["dimensions"])]
    return np.array(output["values"]).reshape(shape)


def _require() -> str:
    path = shutil.which(_PROGRAM)
    if path is None:
        raise UsageError(
            f"{_TITLE} needs its command {_PROGRAM}, which is not on PATH: it lies in the folder bin of TensorRT, "
            "https://developer.nvidia.com/tensorrt"
        )
    return path
