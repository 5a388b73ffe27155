"""Where a model's time goes, measured: the numbers behind `onnxpress profile`.

Method, the same for every runtime: threads pinned to cores, warm-up, then rounds in which all models take turns in a
shuffled order, in bursts that are spread over seconds (`targets.runtimes.timing`). The figure is CPU time of what
computes, of the runs that nothing disturbed; medians and wall time stand beside it. Times by node come from runs of
their own, under the runtime's profiler, by the clock that it reads (`Runtime.node_clock`); what they leave of the
undisturbed latency is the runtime's own work (`outside_ms`).

What is counted and predicted is of the sizes that were run: those of the feeds, in place of those that the model leaves
open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.cost import ModelCost, cost, node_macs
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import UsageError
from onnxpress.ir.shapes import describe_shape, required_inputs, size_bytes
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.calibration.machine import fastest_cores, usable_cores
from onnxpress.targets.prediction import Prediction, predict
from onnxpress.targets.runtimes.base import Feeds, NodeClock, NodeTime, Prepared, Runtime, race
from onnxpress.targets.runtimes.fixed_shapes import fix_shapes
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.runtimes.timing import Latency, undisturbed
from onnxpress.tools.measure import Subject, first_feeds
from onnxpress.tools.memory import rss_bytes

if TYPE_CHECKING:
    import onnx

__all__ = [
    "LEAST_SECONDS", "SECONDS", "STEP_SECONDS", "WARMUP_ROUNDS", "Effort", "Profile", "Race", "Step", "Times",
    "find_steps", "gaps", "model_names", "pinned", "profile", "why_not_predicted",
]  # fmt: skip

WARMUP_ROUNDS = 5
LEAST_SECONDS, SECONDS = 4.0, 8.0  # of all rounds of latency
STEP_SECONDS = 2.0  # at least, of runs under the profiler
_MOST_THREADS = 1024
_STEP_ROUNDS = 100  # at most, of runs under the profiler


@dataclasses.dataclass(frozen=True)
class Times:
    """Latency of one model, in milliseconds, of CPU time where it is told.

    undisturbed: where nothing else slows it (`timing.undisturbed`); wall_undisturbed: elapsed time, alike. cpu_median:
    None where elapsed time is all that tells. spread: distance of the quartiles over the median: what else ran there.
    repeats: by how much `undisturbed` of the first and the second half of the rounds differ, over it: how sure it is.
    """

    undisturbed: float
    median: float
    p10: float
    p90: float
    p99: float
    wall_undisturbed: float
    wall_median: float
    cpu_median: float | None
    spread: float
    rounds: int
    repeats: float = 0.0

    @classmethod
    def of(cls, latency: Latency) -> Times:
        """Sum up what was measured."""
        values = sorted(latency.cpu_ms or latency.wall_ms)
        median = statistics.median(values)
        quartiles = _quantile(values, 0.75) - _quantile(values, 0.25)
        return cls(
            undisturbed=latency.undisturbed_ms,
            median=median,
            p10=_quantile(values, 0.1),
            p90=_quantile(values, 0.9),
            p99=_quantile(values, 0.99),
            wall_undisturbed=undisturbed(latency.wall_ms),
            wall_median=statistics.median(latency.wall_ms),
            cpu_median=median if latency.cpu_ms else None,
            spread=quartiles / median if median else 0.0,
            rounds=len(values),
            repeats=_halves_apart(latency.cpu_ms or latency.wall_ms),
        )

    def to_json(self) -> dict[str, float | int | None]:
        """Return everything, times by names that end in the unit, such as `undisturbed_ms`."""
        plain = ("spread", "rounds", "repeats")
        return {name if name in plain else f"{name}_ms": value for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Step:
    """What the runtime executes as one: a node, with what was fused into it.

    name: of the model's node that does most of the work; the runtime's own name where it put the step in. kind: of the
    kernel. fused: the model's other nodes that it computes. share: of the time of all steps. moved_bytes: its inputs,
    weights and outputs, once each. macs, moved_bytes: None where no node of the model is behind the step, the runtime
    does not say which one is, or a shape is unknown. predicted_ms: by the target's cost estimate, `bound` being what
    dominates it; None where there is none, or no node of the model is behind the step. roofline: achieved share of what
    the estimate's peak or bandwidth allows.
    """

    name: str
    kind: str
    milliseconds: float
    share: float
    fused: tuple[str, ...] = ()
    macs: int | None = None
    moved_bytes: int | None = None
    predicted_ms: float | None = None
    bound: str | None = None
    roofline: float | None = None

    @property
    def gflops(self) -> float | None:
        """Achieved 1e9 operations a second, a multiply-accumulate being two; None where `macs` or the time is."""
        return None if self.macs is None or not self.milliseconds else 2 * self.macs / self.milliseconds / 1e6

    @property
    def gb_per_s(self) -> float | None:
        """Achieved 1e9 bytes a second, of `moved_bytes`; None where those or the time are."""
        return None if self.moved_bytes is None or not self.milliseconds else self.moved_bytes / self.milliseconds / 1e6

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**dataclasses.asdict(self), "gflops": self.gflops, "gb_per_s": self.gb_per_s}


@dataclasses.dataclass(frozen=True)
class Profile:
    """A model in a runtime.

    create_ms: elapsed time to load the model there, converted and tried out where it must be; None where a device does
    not tell. memory_bytes: by how much resident memory grew with loading and running it; on a device, all that the
    process holds. macs, peak_activation_bytes: at the sizes of `inputs`, what is unknown of them named in `notes`.
    predicted_ms: of the whole model. inputs: shapes that were run. node_clock: of the steps' times. device: the other
    machine that it ran on, as `--device` names it; None for this one. is_predicted_here: whether `predicted_ms` is of
    this runtime, machine and number of threads. version: "unknown" where a device does not tell.
    """

    model: str
    target: str
    runtime: str
    version: str
    threads: int
    batch: int | None
    times: Times
    create_ms: float | None
    memory_bytes: int
    size_bytes: int
    params: int
    macs: int
    peak_activation_bytes: int
    steps: tuple[Step, ...] = ()
    predicted_ms: float | None = None
    device: str | None = None
    notes: tuple[str, ...] = ()
    is_predicted_here: bool = True
    inputs: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    node_clock: NodeClock | None = "elapsed"

    @property
    def steps_ms(self) -> float | None:
        """What all steps take together, by `node_clock`; None where the runtime tells none."""
        return sum(step.milliseconds for step in self.steps) if self.steps else None

    @property
    def clocked_ms(self) -> float:
        """Undisturbed latency that the steps' times are a part of.

        Of CPU time where it is told, whichever clock the steps are by: undisturbed, both are the same, and elapsed time
        of a run is seldom met undisturbed.
        """
        return self.times.undisturbed

    @property
    def where(self) -> str:
        """The runtime, and the device where it is another machine."""
        return self.runtime if self.device is None else f"{self.runtime} on {self.device}"

    @property
    def outside_ms(self) -> float | None:
        """Latency that no step accounts for; None where the runtime tells none.

        At least 0: steps are timed in runs of their own, and may add up to more than a run takes.
        """
        return None if self.steps_ms is None else max(0.0, self.clocked_ms - self.steps_ms)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **dataclasses.asdict(self),
            "times": self.times.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "outside_ms": self.outside_ms,
        }


@dataclasses.dataclass(frozen=True)
class Race:
    """Models side by side in one runtime: profiles in the order given."""

    profiles: tuple[Profile, ...]

    @property
    def speedup(self) -> float | None:
        """Of the second over the first; None of one alone."""
        times = [each.times.undisturbed for each in self.profiles]
        return times[0] / times[1] if len(times) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return the `Profile.to_json` of one model; of more, `{"models": [one for each], "speedup": float}`."""
        if len(self.profiles) == 1:
            return self.profiles[0].to_json()
        return {"models": [each.to_json() for each in self.profiles], "speedup": self.speedup}


def profile(
    *models: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    target: str | os.PathLike[str] | Target = "host-cpu",
    runtime: str | None = None,
    data: Any = None,
    rounds: int = 500,
    threads: int = 1,
    device: str | None = None,
) -> Race:
    """Measure one model or several side by side, by node where the runtime tells.

    target: whose cost estimate stands beside the measurement, and whose runtime it is by default. data: samples, of
    which the first is run; made-up numbers where there are none. rounds: at most; time bounds them too.
    device: another machine, in whose onnxruntime it is; see `device_profiling.profile_on_device`.

    Raises:
        UsageError: no model, rounds or threads below 1, no such target or runtime, or it is not installed; no data for
        a model that leaves sizes open. InputError: a model or data that cannot be used. RuntimeRefusalError: the
        runtime does not take a model; its own message is kept.
    """
    _require_effort(models, rounds, threads)
    if device is not None:
        from onnxpress.tools.device_profiling import profile_on_device

        if runtime is not None:
            raise UsageError("profile: a device runs models in its onnxruntime. Leave runtime out")
        return profile_on_device(*models, device=device, target=target, data=data, rounds=rounds, threads=threads)
    chosen = target if isinstance(target, Target) else load_target(target)
    where = load_runtime(chosen.profile.runtime if runtime is None else runtime)
    where.version()
    loaded = [model_io.load(model) for model in models]
    if data is not None and not isinstance(data, str | os.PathLike):
        data = open_data(data)  # once: an iterator that each model opened would give the second one what is left
    with pinned(threads):
        return _race(model_names(models, loaded), loaded, chosen, where, Effort(data, rounds, threads))


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is run, of what. data, rounds, threads: as `profile` takes them."""

    data: Any
    rounds: int
    threads: int

    @property
    def step_rounds(self) -> int:
        """Runs under the profiler."""
        return max(5, min(_STEP_ROUNDS, self.rounds))

    def feeds(self, model: onnx_ir.Model) -> Feeds:
        """Return one batch for the model."""
        if self.data is None:
            _require_sizes(model)
        source = None if self.data is None else open_data(self.data, model=model)
        return first_feeds(Subject(model, model, 0), source)


def _require_effort(models: Sequence[object], rounds: int, threads: int) -> None:
    if not models:
        raise UsageError("profile: there is no model to measure. Give one at least")
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise UsageError(f"profile: {name} = {value}: must be 1 at least")
    if threads > _MOST_THREADS:
        raise UsageError(f"profile: threads = {threads}: must be {_MOST_THREADS} at most")


def _require_sizes(model: onnx_ir.Model) -> None:
    """Raise a UsageError where an input leaves more open than its batch: the time would be that of a made-up size."""
    for value in required_inputs(model):
        if value.shape is None or not all(isinstance(size, int) for size in tuple(value.shape)[1:]):
            raise UsageError(
                f"profile: input {value.name!r} is {describe_shape(value.shape)}: it leaves sizes open that the time "
                "depends on. Give a sample of the size that counts: --data (data=)"
            )


def _race(
    names: Sequence[str], models: Sequence[onnx_ir.Model], target: Target, runtime: Runtime, effort: Effort
) -> Race:
    ready = [_Ready.make(model, runtime, effort) for model in models]
    keys = [str(index) for index in range(len(ready))]
    entries = dict(zip(keys, (each.prepared for each in ready), strict=True))
    latencies = race(
        runtime, entries, threads=effort.threads, rounds=effort.rounds, warmup=WARMUP_ROUNDS,
        min_seconds=LEAST_SECONDS, max_seconds=SECONDS,
    )  # fmt: skip
    profiles = [
        each.profile(name, latencies[key], target, runtime, effort)
        for name, key, each in zip(names, keys, ready, strict=True)
    ]
    return Race(tuple(profiles))


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A model that the runtime has loaded, and what that took. fixed: a copy of it that has the sizes of the feeds."""

    fixed: onnx_ir.Model
    prepared: Prepared
    feeds: Feeds
    create_ms: float
    memory_bytes: int

    @classmethod
    def make(cls, model: onnx_ir.Model, runtime: Runtime, effort: Effort) -> _Ready:
        feeds = effort.feeds(model)
        fixed = fix_shapes(model, feeds).model
        before, start = rss_bytes(), time.perf_counter()
        prepared = runtime.prepare(model, feeds, threads=effort.threads)
        created = time.perf_counter() - start
        prepared.compute()
        return cls(fixed, prepared, feeds, created * 1e3, max(0, rss_bytes() - before))

    def profile(self, name: str, latency: Latency, target: Target, runtime: Runtime, effort: Effort) -> Profile:
        counted, predicted = cost(self.fixed), predict(self.fixed, target.profile)
        measured = self.prepared.node_times(effort.step_rounds, seconds=STEP_SECONDS)
        return Profile(
            model=name,
            target=target.name,
            runtime=runtime.name,
            version=runtime.version(),
            threads=effort.threads,
            batch=next((int(array.shape[0]) for array in self.feeds.values() if array.ndim), None),
            times=Times.of(latency),
            create_ms=self.create_ms,
            memory_bytes=self.memory_bytes,
            size_bytes=self.prepared.size_bytes,
            params=counted.params,
            macs=counted.macs,
            peak_activation_bytes=counted.peak_activation_bytes,
            steps=tuple(find_steps(self.fixed, measured, counted, predicted)),
            predicted_ms=None if predicted is None else predicted.seconds * 1e3,
            notes=(
                *_notes(target, runtime, predicted),
                *gaps(runtime.name, self.fixed, counted, measured, predicted, effort.threads),
            ),
            is_predicted_here=target.is_here and target.profile.runtime == runtime.name and effort.threads == 1,
            inputs={name: tuple(np.shape(array)) for name, array in self.feeds.items()},
            node_clock="elapsed" if runtime.node_clock == "CPU" and effort.threads > 1 else runtime.node_clock,
        )


def why_not_predicted(target: Target, runtime: str, predicted: Prediction | None) -> str | None:
    """Return why what the target predicts is not what `runtime` should take; None where it is."""
    if predicted is None:
        return f"{target.name} has no cost estimate: nothing is predicted"
    if runtime != target.profile.runtime:
        return f"the prediction is of {target.profile.runtime}, the measurement of {runtime}"
    return None


def _notes(target: Target, runtime: Runtime, predicted: Prediction | None) -> Iterator[str]:
    if (why := why_not_predicted(target, runtime.name, predicted)) is not None:
        yield why
    elif not target.is_here:
        machine = target.profile.machine
        what = f"what {target.name} describes" if machine is None else f"{machine.processor}, of {target.name}"
        yield f"measured on this machine, which is not {what}"
    elif (machine := target.profile.machine) is not None:
        version = f"{runtime.name} {runtime.version()}"
        if version != machine.runtime_version:
            yield f"the prediction is of {machine.runtime_version}, the measurement of {version}"
    else:
        yield "the prediction is of a machine of this kind: onnxpress calibrate -o here.toml, then --target here.toml"


def gaps(
    runtime: str,
    model: onnx_ir.Model,
    counted: ModelCost,
    measured: Sequence[NodeTime],
    predicted: Prediction | None,
    threads: int,
) -> Iterator[str]:
    """Yield what is not known of a model."""
    if bodies := [node.name or node.op_type for node in model.graph if node.op_type in ("If", "Loop", "Scan")]:
        yield f"MACs of the bodies of {', '.join(map(repr, bodies[:3]))} are counted once each, however often they run"
    if predicted is not None and threads > 1:
        yield f"the prediction is of one thread, the measurement of {threads}"
    if counted.unknown:
        more = f", and {len(counted.unknown) - 1} more" if len(counted.unknown) > 1 else ""
        yield f"MACs are not all known: {counted.unknown[0]}{more}"
    if counted.unsized:
        yield f"bytes of values are a lower bound: {counted.unsized} have no known size"
    if measured and not any(step.origins for step in measured):
        yield f"{runtime} does not say which nodes its steps compute: what each computes and moves is not known"
    if predicted is not None and predicted.unpriced:
        count, name = len(predicted.unpriced), predicted.unpriced[0]
        nodes = "a node" if count == 1 else f"{count} nodes"
        yield f"the prediction is too low: it leaves out the multiplications of {nodes}, {name!r} first"


# Steps.


def find_steps(
    model: onnx_ir.Model,
    measured: Sequence[NodeTime],
    counted: ModelCost,
    predicted: Prediction | None,
) -> Iterator[Step]:
    """Yield the steps of a model, with what is counted and predicted of the nodes behind each."""
    total = sum(one.milliseconds for one in measured)
    costs = {node.name: node for node in counted.nodes}
    nodes = {node.name or "": node for node in model.graph}
    for one in measured:
        behind = [nodes[name] for name in one.origins if name in nodes]
        weights = sum(costs[node.name or ""].weight_bytes for node in behind)
        crossing = _crossing_bytes(behind) if behind else None
        step = Step(
            name=one.origins[0] if one.origins else one.name,
            kind=one.kind,
            milliseconds=one.milliseconds,
            share=one.milliseconds / total if total else 0.0,
            fused=one.origins[1:],
            macs=_macs(behind),
            moved_bytes=None if crossing is None else weights + crossing,
        )
        yield step if predicted is None else _with_prediction(step, predicted, one.origins)


def _with_prediction(step: Step, predicted: Prediction, origins: Sequence[str]) -> Step:
    found = [predicted.nodes[name] for name in origins if name in predicted.nodes]
    if not found:
        return step
    seconds = sum(each.seconds for each in found)
    largest = max(found, key=lambda each: each.seconds)
    least = sum(max(each.ideal_compute, each.memory + each.weights) for each in found)
    return dataclasses.replace(
        step,
        predicted_ms=seconds * 1e3,
        bound=largest.bound,
        roofline=least * 1e3 / step.milliseconds if step.milliseconds else None,
    )


def _macs(nodes: Sequence[onnx_ir.Node]) -> int | None:
    """Return the MACs of a group of nodes; None of none, and where a shape that they need is unknown."""
    each = [node_macs(node) for node in nodes]
    known = [macs for macs in each if macs is not None]
    return sum(known) if known and len(known) == len(each) else None


def _crossing_bytes(nodes: Sequence[onnx_ir.Node]) -> int | None:
    """Return the bytes of values that enter or leave a group of nodes, constants not among them; None if unknown."""
    group = set(nodes)
    entering = {
        value
        for node in nodes
        for value in node.inputs
        if value is not None and value.producer() not in group and not value.is_initializer()
    }
    leaving = {
        value
        for node in nodes
        for value in node.outputs
        if value.is_graph_output() or any(reader not in group for reader in value.consumers())
    }
    sizes = [size_bytes(value) for value in entering | leaving]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


# The machine.


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep the calling thread, and those that it starts, on as many of the fastest cores, so that none of them moves.

    Where the system does not let it, they stay where they are.
    """
    allowed = usable_cores()
    chosen = fastest_cores(allowed, threads)
    try:
        if chosen:
            os.sched_setaffinity(0, chosen)
    except OSError:  # not permitted
        chosen = []
    try:
        yield
    finally:
        if chosen:
            os.sched_setaffinity(0, allowed)


def model_names(models: Sequence[object], loaded: Sequence[onnx_ir.Model]) -> list[str]:
    """Return what tells models apart: the path of one that was loaded, or the name of its graph."""
    return [
        os.fspath(model) if isinstance(model, str | os.PathLike) else each.graph.name or "model"
        for model, each in zip(models, loaded, strict=True)
    ]


def _halves_apart(times: Sequence[float]) -> float:
    """Return how far `undisturbed` of the two halves lie apart, over that of all; 0 of fewer than two."""
    if len(times) < 2 or not (whole := undisturbed(times)):
        return 0.0
    middle = len(times) // 2
    return abs(undisturbed(times[:middle]) - undisturbed(times[middle:])) / whole


def _quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values, linear between neighbours."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
