"""The runtime `mnn`: MNN on the CPU, in float32.

A model is converted by MNN's own converter, through its Python module and never through the commands `mnnconvert` and
`mnnquant`, which install a client and report what they convert. The converter ends its process on some models, so it
runs in one of its own.

With one thread MNN computes on the calling thread, whose CPU time was measured to be the process's. Inputs
are copied in at each run (a hundredth of mobilenetv2's time), because a run overwrites them.

Times by step come from MNN's callbacks around each operator, which cost a few percent on mobilenetv2.
"""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, Prepared, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import FixedModel, first_node, narrow
from onnxpress.targets.runtimes.programs import Finished, run_program
from onnxpress.targets.runtimes.quiet import quiet
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line
from onnxpress.targets.runtimes.rehearsal import CONVERSION_SECONDS, MODEL_FILE, prepare_converted
from onnxpress.targets.runtimes.timing import bursts, undisturbed

__all__ = ["MNN", "Mnn", "MnnSession"]

_TITLE = "MNN"
_WARMUP = 3  # runs that no median sees
_CONVERT = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
_STAMP = re.compile(r"^\[\d\d:\d\d:\d\d\] \S*:\d+: ")  # of the converter's lines: the time, and a line of its source
_FILE = "model.mnn"
_OPERATOR = re.compile(r"ONNX::(\w+)")


class MnnSession:
    """A converted model, for feeds of one set of shapes."""

    def __init__(self, fixed: FixedModel, path: Path, threads: int) -> None:
        """path: of the .mnn file. Errors: see `Converter.open`."""
        self._mnn, self._fixed, self._threads = _require(), fixed, threads
        self.ports = fixed.inputs
        self.size_bytes = path.stat().st_size
        self._interpreter = self._mnn.Interpreter(str(path))
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        self._session = self._interpreter.createSession(settings)
        self._inputs = self._interpreter.getSessionInputAll(self._session)
        self._outputs = self._interpreter.getSessionOutputAll(self._session)
        self._fed: list[tuple[Any, Any]] = []

    def feed(self, feeds: Feeds) -> None:
        self._fed = [
            (self._inputs[name], self._host_tensor(narrow(name, array, _TITLE)))
            for name, array in fit_feeds(feeds, self.ports).items()
            if name in self._inputs  # else nothing reads it
        ]

    def compute(self, *, timed: bool = True) -> None:
        self._copy_in()
        code = self._interpreter.runSession(self._session)
        if code != 0:
            raise RuntimeRefusalError(f"{_TITLE}: does not run the model (code {code})")

    def _copy_in(self) -> None:
        """Copy what was fed into the session: a run uses the memory of its inputs for other values."""
        for tensor, host in self._fed:
            tensor.copyFrom(host)

    def fetch(self) -> dict[str, Array]:
        missing = [name for name in self._fixed.outputs if name not in self._outputs]
        if missing:
            raise RuntimeRefusalError(f"{_TITLE}: gives no output {missing[0]!r}")
        return {name: self._fixed.conform(name, self._read(name), _TITLE) for name in self._fixed.outputs}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter(kind for _, kind, _ in self._time_steps())

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        spread = bursts(rounds + _WARMUP, seconds)
        runs = [self._time_steps() for size in spread for _ in range(size)][_WARMUP:]
        return [
            NodeTime(times[0][0], times[0][1], undisturbed([taken for _, _, taken in times]))
            for times in zip(*runs, strict=True)
        ]

    def _time_steps(self) -> list[tuple[str, str, float]]:
        """Return name, type and milliseconds of each step of one run."""
        clock = time.thread_time if self._threads == 1 else time.perf_counter
        start, steps = 0.0, []

        def begin(_tensors: object, _step: object) -> bool:
            nonlocal start
            start = clock()
            return True

        def end(_tensors: object, step: Any) -> bool:
            steps.append((str(step.getName()), str(step.getType()), (clock() - start) * 1e3))
            return True

        self._copy_in()
        with quiet():  # each call announces itself
            self._interpreter.runSessionWithCallBackInfo(self._session, begin, end)
        return steps

    def _read(self, name: str) -> Array:
        tensor = self._outputs[name]
        is_float = tensor.getDataType() == self._mnn.Halide_Type_Float
        host = self._host_tensor(np.empty(tensor.getShape(), np.float32 if is_float else np.int32))
        tensor.copyToHostTensor(host)
        return np.array(host.getNumpyData())

    def _host_tensor(self, array: Array) -> Any:
        """Return a tensor that holds a copy of `array`, axes in ONNX's order."""
        kind = self._mnn.Halide_Type_Float if array.dtype == np.float32 else self._mnn.Halide_Type_Int
        return self._mnn.Tensor(array.shape, kind, array, self._mnn.Tensor_DimensionType_Caffe)


class Mnn:
    """MNN on the CPU."""

    name = "mnn"
    title = "MNN on the CPU"
    single_thread_clock: Callable[[], float] = staticmethod(time.thread_time)
    node_clock: NodeClock | None = "CPU"

    def version(self) -> str:
        _require()
        return importlib.metadata.version("MNN")

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> Prepared:
        _require()
        return prepare_converted(self, model, feeds, threads)

    def convert(self, fixed: FixedModel, folder: Path) -> None:
        fixed.write(folder / MODEL_FILE, _TITLE)
        options = ["-f", "ONNX", "--modelFile", MODEL_FILE, "--MNNModel", _FILE, "--bizCode", "onnxpress"]
        command = [sys.executable, "-P", "-c", _CONVERT, *options]
        ended = run_program(command, folder, limit_seconds=CONVERSION_SECONDS)
        if ended.failure or not (folder / _FILE).is_file():
            raise _conversion_refusal(ended, fixed.model)

    def open(self, fixed: FixedModel, folder: Path, threads: int) -> MnnSession:
        return MnnSession(fixed, folder / _FILE, threads)


MNN = Mnn()


def _conversion_refusal(ended: Finished, model: onnx_ir.Model) -> RuntimeRefusalError:
    said = [line for line in ended.lines if line != "Converted Failed!"]
    last = _STAMP.sub("", said[-1] if said else "it wrote nothing")
    node = first_node(model, _OPERATOR.findall(last))
    ending = f" ({ended.failure})" if ended.failure else ""
    return RuntimeRefusalError(f"{_TITLE}: does not convert the model: {one_line(last)}{node}{ending}")


def _require() -> Any:
    try:
        with quiet():  # it tells what the processor can do
            import MNN
    except ImportError:
        MNN = None  # noqa: N806
    if MNN is None or importlib.util.find_spec("_tools") is None:
        raise UsageError('MNN is not installed: pip install "onnxpress[mnn]"')
    return MNN
