"""What everything that runs models has in common. A runtime is one file beside this one, and a line of `registry`.

prepare   load a model for feeds of one set of shapes     =>   a `Prepared`
feed, compute, fetch                                      one inference; `compute` is what is timed
layers, node_times                                        what the runtime made of the model, where it tells
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import BatchRunner
from onnxpress.ir.errors import InputError
from onnxpress.targets.runtimes.timing import Latency, take_turns

__all__ = [
    "Array",
    "Feeds",
    "NodeClock",
    "NodeTime",
    "Port",
    "Prepared",
    "Runtime",
    "fit_feeds",
    "race",
    "sample_runner",
]

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
NodeClock = Literal["CPU", "elapsed", "GPU"]


@dataclasses.dataclass(frozen=True)
class Port:
    """An input as the runtime takes it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """What one step of the runtime takes.

    name: as the runtime calls it. kind: its kernel or layer type. milliseconds: undisturbed (`timing`), by
    `Runtime.node_clock`. origins: names of the model's nodes that it computes, the one that does most of the work
    first; none where the runtime put it in, or does not say.
    """

    name: str
    kind: str
    milliseconds: float
    origins: tuple[str, ...] = ()


class Prepared(Protocol):
    """A model that a runtime has loaded.

    size_bytes: of what the runtime reads, the ONNX file or its own. ports: its inputs by the model's names.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def ports(self) -> Mapping[str, Port]: ...

    def feed(self, feeds: Feeds) -> None:
        """Take one batch, of the shapes that it was prepared for.

        Raises:
            InputError: an input has no feed, or one of another shape or kind.
        """
        ...

    def compute(self, *, timed: bool = True) -> float | None:
        """Compute, from what was fed last.

        timed: False where nobody asks for the time, which a runtime with a clock of its own computes several times for.

        Returns: None where the caller's clock times it, else the milliseconds that it took by the runtime's own.

        Raises:
            RuntimeRefusalError: the runtime fails.
        """
        ...

    def fetch(self) -> dict[str, Array]:
        """Return copies of the outputs of the last `compute`, which there must be, by the model's names.

        Raises:
            RuntimeRefusalError: an output is missing, or has another shape than the model's.
        """
        ...

    def layers(self) -> collections.Counter[str]:
        """Return what is left to run, such as `Convolution in u8`, and how often; empty where the runtime hides it."""
        ...

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        """Return the time of each step in order, from runs of their own; none where the runtime does not tell.

        seconds: over which the runs are spread (`timing.bursts`).
        """
        ...


class Runtime(Protocol):
    """Runs models.

    name: what profiles and `--runtime` call it. title: its full name.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def single_thread_clock(self) -> Callable[[], float] | None:
        """Seconds of CPU time that its computing takes with one thread; None where the processor does not compute."""
        ...

    @property
    def node_clock(self) -> NodeClock | None:
        """Which time of one thread `node_times` tells; None where it tells none. Of more threads CPU is elapsed."""
        ...

    def version(self) -> str:
        """Return the version that is installed.

        Raises:
            UsageError: none is, or it does not start on this machine; says what to install.
        """
        ...

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> Prepared:
        """Load `model`, which is not changed, for the shapes of `feeds`, and feed it; converted first where it must be.

        Raises:
            UsageError: the runtime is not installed. RuntimeRefusalError: it does not take the model, or gives other
            numbers than the model says. InputError: an input has no feed, or one that does not fit the model.
        """
        ...


def race(
    runtime: Runtime,
    models: Mapping[str, Prepared],
    *,
    threads: int = 1,
    rounds: int = 60,
    warmup: int = 10,
    seed: int = 0,
    max_seconds: float | None = None,
    min_seconds: float = 0.0,
) -> dict[str, Latency]:
    """Time models of one runtime side by side, each on what it was fed last.

    threads: those that they were prepared for; of more than one, wall time alone is told. The others: see
    `timing.take_turns`.
    """
    return take_turns(
        {name: model.compute for name, model in models.items()},
        rounds=rounds, warmup=max(1, warmup), seed=seed, max_seconds=max_seconds,
        min_seconds=min_seconds,
        cpu_clock=runtime.single_thread_clock if threads == 1 else None,
    )  # fmt: skip


def sample_runner(model: onnx_ir.Model, prepared: Prepared) -> BatchRunner:
    """Return what runs any number of samples, fed as to `model`, through what `prepared` is of it.

    Its `run` raises an InputError where a feed does not fit, and a RuntimeRefusalError where the runtime fails.
    """
    leading = [port.shape[0] for port in prepared.ports.values() if port.shape]
    return BatchRunner(model, _AsSession(model, prepared), batch=min(leading, default=1))


class _AsSession:
    """A prepared model as what `BatchRunner` runs."""

    def __init__(self, model: onnx_ir.Model, prepared: Prepared) -> None:
        graph = model.graph
        self._prepared = prepared
        self.output_names = tuple(dict.fromkeys(str(value.name) for value in graph.outputs))
        fed = {str(value.name) for value in graph.inputs}
        self.constant_names = frozenset(set(self.output_names) & set(graph.initializers) - fed)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self._prepared.feed(feeds)
        self._prepared.compute(timed=False)
        return self._prepared.fetch()


def fit_feeds(feeds: Feeds, ports: Mapping[str, Port]) -> dict[str, Array]:
    """Return an array for each input, in C order; floats are cast to the float that the input has, texts to objects.

    Raises:
        InputError: an input has no feed, or one of another shape or kind.
    """
    fitted = {}
    for name, port in ports.items():
        if name not in feeds:
            raise InputError(f"input {name!r} has no data. Given: {', '.join(feeds) or 'nothing'}")
        array = np.asarray(feeds[name])
        if array.dtype.kind == port.dtype.kind == "f" or (array.dtype.kind == "U" and port.dtype.kind == "O"):
            array = array.astype(port.dtype, copy=False)
        if array.shape != port.shape or array.dtype != port.dtype:
            raise InputError(
                f"input {name!r}: the model takes {port.dtype} {list(port.shape)}, and the data is {array.dtype} "
                f"{list(array.shape)}"
            )
        fitted[name] = np.asarray(array, order="C")
    return fitted
