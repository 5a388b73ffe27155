"""The runtimes `onnxruntime-cpu` and `onnxruntime-cuda`: one library, two of its providers.

With one thread the CPU provider computes on the calling thread. Times by node come from the runtime's own profiler, in
a session of its own: its clock adds 2 to 3 microseconds to each node, which are taken off again
(`timing.without_overhead`). Of CUDA it knows when a kernel was launched, not what it took, so CUDA tells none.

A wheel with CUDA starts without a GPU too, and computes on the CPU then. So a provider counts as installed where it
starts.
"""

from __future__ import annotations

import collections
import copy
import functools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.execute import require_runtime
from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import input_ports
from onnxpress.targets.runtimes.onnxruntime_cpu import inspect_kernels
from onnxpress.targets.runtimes.onnxruntime_session import open_session, run_session
from onnxpress.targets.runtimes.origins import find_origins
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.timing import bursts, undisturbed, without_overhead

__all__ = ["CPU", "CUDA", "OnnxRuntime", "PreparedSession", "empty_feeds", "empty_model"]

_CPU = "CPUExecutionProvider"
_PLAIN_RUNS = 5  # of a burst, without the profiler
_EMPTY_INPUT = "x"
_KERNEL_TIME = "_kernel_time"  # what events of a node's own computing end with
_RUN = "model_run"  # of a whole run, told behind its nodes


class PreparedSession:
    """A session and its feeds."""

    def __init__(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int, providers: tuple[str, ...]) -> None:
        """Errors: see `Runtime.prepare`."""
        self._model, self._threads, self._providers = model, threads, providers
        self.ports = input_ports(model, feeds)
        self._session = open_session(model, threads=threads, providers=providers)
        self._names = [output.name for output in self._session.get_outputs()]
        self.size_bytes = model_io.size_bytes(model)
        self._results: list[Any] = []
        self.feed(feeds)

    def feed(self, feeds: Feeds) -> None:
        self._feeds = copy.deepcopy(fit_feeds(feeds, self.ports))  # the caller's arrays may change

    def compute(self, *, timed: bool = True) -> None:
        self._results = run_session(self._session, self._feeds)

    def fetch(self) -> dict[str, Array]:
        return dict(zip(self._names, copy.deepcopy(self._results), strict=True))

    def layers(self) -> collections.Counter[str]:
        return inspect_kernels(self._model, self._providers).operators

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        if self._providers[0] != _CPU:
            return []
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
            path = pathlib.Path(folder) / "optimized.onnx"
            session = open_session(
                self._model, threads=self._threads, providers=self._providers, optimized_path=path,
                profile_path=pathlib.Path(folder) / "profile",
            )  # fmt: skip
            nothing, no_feeds = open_session(empty_model()), empty_feeds()
            plain, empty = [], []
            for size in bursts(rounds, seconds):  # in turns, each would find its data driven out of the cache
                for _ in range(size):
                    run_session(session, self._feeds)
                plain += [_seconds(self._session, self._feeds) for _ in range(_PLAIN_RUNS)]
                empty += [_seconds(nothing, no_feeds) for _ in range(_PLAIN_RUNS)]
            events = json.loads(pathlib.Path(session.end_profiling()).read_text(encoding="utf-8"))
            origins = find_origins(self._model, onnx_ir.load(path))
        of_nodes = undisturbed(plain) - undisturbed(empty)
        return _quiet_times(events, origins, max(0.0, of_nodes) * 1e3)


def _seconds(session: Any, feeds: Feeds) -> float:
    """Run once, and return the seconds that it took."""
    start = time.perf_counter()
    run_session(session, feeds)
    return time.perf_counter() - start


@functools.cache
def _starts(provider: str) -> bool:
    """Whether a session computes there. That a wheel has the provider does not say so."""
    try:
        open_session(empty_model(), providers=(provider,))
    except RuntimeRefusalError:
        return False
    return True


@functools.cache
def empty_model() -> bytes:
    """A model that hands on one number: what a call costs that computes nothing."""
    value = onnx.helper.make_tensor_value_info(_EMPTY_INPUT, onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [_EMPTY_INPUT], ["y"])], "empty", [value], [result]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def empty_feeds() -> dict[str, Array]:
    """What `empty_model` takes."""
    return {_EMPTY_INPUT: np.zeros(1, np.float32)}


def _quiet_times(
    events: list[Mapping[str, Any]], origins: Mapping[str, tuple[str, ...]], total_ms: float
) -> list[NodeTime]:
    """Return what each node of the main graph takes, in the order in which they first ran.

    total_ms: of all nodes in a run without the profiler, so that its cost can be taken off.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for run in _runs(events):
        for key, milliseconds in run.items():
            times.setdefault(key, []).append(milliseconds)
    taken = [undisturbed(each) for each in times.values()]
    return [
        NodeTime(name, kind, milliseconds, origins.get(name, ()))
        for (name, kind), milliseconds in zip(times, without_overhead(taken, total_ms), strict=True)
    ]


def _runs(events: list[Mapping[str, Any]]) -> list[dict[tuple[str, str], float]]:
    """Return, for each run, the milliseconds of each node of the main graph by its name and kind, in order.

    The nodes of a body are told too, before the If, Loop or Scan that ran them and whose time holds theirs. So from the
    end of a run backwards, a node that began later than the one behind it is of a body.
    """
    runs: list[dict[tuple[str, str], float]] = []
    began = math.inf
    for event in reversed(events):
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == _RUN:
            runs.append({})
            began = math.inf
        elif event.get("cat") == "Node" and name.endswith(_KERNEL_TIME) and event["ts"] <= began:
            began = event["ts"]
            key = (name.removesuffix(_KERNEL_TIME), str(event["args"].get("op_name", "")))
            runs[-1][key] = runs[-1].get(key, 0.0) + event["dur"] / 1e3
    return [dict(reversed(run.items())) for run in reversed(runs)]


class OnnxRuntime:
    """onnxruntime on one of its providers."""

    def __init__(self, name: str, title: str, provider: str, clock: Callable[[], float] | None) -> None:
        self.name, self.title, self._provider = name, title, provider
        self.single_thread_clock = clock
        self.node_clock: NodeClock | None = "elapsed" if provider == _CPU else None

    def version(self) -> str:
        runtime = require_runtime()
        if self._provider not in runtime.get_available_providers():
            raise UsageError(
                f"{self.title}: the onnxruntime {runtime.__version__} that is installed has no {self._provider} "
                f"(it has {', '.join(runtime.get_available_providers())}): pip install 'onnxpress[gpu]'"
            )
        if not _starts(self._provider):
            raise UsageError(
                f"{self.title}: {self._provider} of onnxruntime {runtime.__version__} does not start here. It needs a "
                "GPU, its driver, and the versions of CUDA and cuDNN that onnxruntime's documentation names"
            )
        return str(runtime.__version__)

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> PreparedSession:
        self.version()
        providers = tuple(dict.fromkeys((self._provider, _CPU)))
        return PreparedSession(model, feeds, threads=threads, providers=providers)


CPU = OnnxRuntime("onnxruntime-cpu", "onnxruntime on the CPU", _CPU, time.thread_time)
CUDA = OnnxRuntime("onnxruntime-cuda", "onnxruntime on CUDA", "CUDAExecutionProvider", None)
