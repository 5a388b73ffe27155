"""The runtimes `onnxruntime-cpu` and `onnxruntime-cuda`: one library, two of its providers.

With one thread the CPU provider computes on the calling thread. Times by node come from the runtime's own profiler, in
a session of its own: its clock adds 2 to 3 microseconds to each node, which are taken off again
(`timing.without_overhead`).
"""

from __future__ import annotations

import collections
import functools
import json
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
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, Port
from onnxpress.targets.runtimes.onnxruntime_cpu import inspect_kernels
from onnxpress.targets.runtimes.onnxruntime_session import fit_session, open_session, run_session
from onnxpress.targets.runtimes.origins import find_origins
from onnxpress.targets.runtimes.timing import bursts, undisturbed, without_overhead

__all__ = ["CPU", "CUDA", "OnnxRuntime", "PreparedSession", "empty_feeds", "empty_model"]

_CPU = "CPUExecutionProvider"
_PLAIN_RUNS = 5  # of a burst, without the profiler
_EMPTY_INPUT = "x"
_KERNEL_TIME = "_kernel_time"  # how events of a node's own computing are called


class PreparedSession:
    """A session and its feeds."""

    def __init__(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int, providers: tuple[str, ...]) -> None:
        """Errors: see `Runtime.prepare`."""
        self._model, self._threads, self._providers = model, threads, providers
        self._session = open_session(model, threads=threads, providers=providers)
        self._names = [output.name for output in self._session.get_outputs()]
        self.size_bytes = model_io.size_bytes(model)
        self._results: list[Any] = []
        self.feed(feeds)

    def feed(self, feeds: Feeds) -> None:
        self._feeds = fit_session(self._session, feeds)
        self.ports = {name: Port(array.shape, array.dtype) for name, array in self._feeds.items()}

    def compute(self) -> None:
        self._results = run_session(self._session, self._feeds)

    def fetch(self) -> dict[str, Array]:
        return dict(zip(self._names, self._results, strict=True))

    def layers(self) -> collections.Counter[str]:
        return inspect_kernels(self._model).operators

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
            path = pathlib.Path(folder) / "optimized.onnx"
            session = open_session(
                self._model, threads=self._threads, providers=self._providers, optimized_path=path,
                profile_path=pathlib.Path(folder) / "profile",
            )  # fmt: skip
            nothing, no_feeds = open_session(empty_model()), empty_feeds()
            plain, empty = [], []
            for begins in bursts(rounds, seconds):
                run_session(session, self._feeds)
                if begins:  # in turns, each would find its data driven out of the cache by the other
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
    """Return what each node takes, in the order in which they first ran.

    total_ms: of all nodes in a run without the profiler, so that its cost can be taken off.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_KERNEL_TIME):
            key = (name.removesuffix(_KERNEL_TIME), str(event["args"].get("op_name", "")))
            times.setdefault(key, []).append(event["dur"] / 1e3)
    taken = [undisturbed(each) for each in times.values()]
    return [
        NodeTime(name, kind, milliseconds, origins.get(name, ()))
        for (name, kind), milliseconds in zip(times, without_overhead(taken, total_ms), strict=True)
    ]


class OnnxRuntime:
    """onnxruntime on one of its providers."""

    node_clock: NodeClock | None = "elapsed"

    def __init__(self, name: str, title: str, provider: str, clock: Callable[[], float] | None) -> None:
        self.name, self.title, self._provider = name, title, provider
        self.single_thread_clock = clock

    def version(self) -> str:
        runtime = require_runtime()
        if self._provider not in runtime.get_available_providers():
            raise UsageError(
                f"{self.title}: the onnxruntime {runtime.__version__} that is installed has no {self._provider} "
                f"(it has {', '.join(runtime.get_available_providers())}): pip install 'onnxpress[gpu]'"
            )
        return str(runtime.__version__)

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> PreparedSession:
        self.version()
        providers = tuple(dict.fromkeys((self._provider, _CPU)))
        return PreparedSession(model, feeds, threads=threads, providers=providers)


CPU = OnnxRuntime("onnxruntime-cpu", "onnxruntime on the CPU", _CPU, time.thread_time)
CUDA = OnnxRuntime("onnxruntime-cuda", "onnxruntime on CUDA", "CUDAExecutionProvider", None)
