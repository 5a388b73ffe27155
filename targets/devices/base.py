"""What every device has in common. A device is one file beside this one, and a line of `device`.

    device = open_device("ssh://pi@raspberry")
    found = device.run({"before": model, "after": smaller}, {"input": image}, rounds=60)
    found.models["after"].latency.median_ms

Nothing is installed there and nothing stays there: a runner and the models are sent, and taken away again.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import onnx_ir

from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeTime
from onnxpress.targets.runtimes.timing import Latency

__all__ = ["Device", "DeviceError", "DeviceRun", "Machine", "ModelRun", "Models", "Work"]

Models: TypeAlias = Mapping[str, "onnx_ir.Model | bytes"]


class DeviceError(BudgetError):
    """A device that was reached went away, took too long or broke down. The message says what was under way."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a device says of itself; "" and 0 where it does not.

    cpu: its model name. board: the whole device's. cores_used: those that the models were kept to, all where they are
    alike; none where nothing keeps them. runtime_version: of its onnxruntime.
    """

    cpu: str = ""
    board: str = ""
    architecture: str = ""
    cores: int = 0
    cores_used: tuple[int, ...] = ()
    os: str = ""
    runtime_version: str = ""


@dataclasses.dataclass(frozen=True)
class ModelRun:
    """What a device found of one model.

    latency: see there; its CPU times are those of the computing thread. load_seconds: to create the session; None where
    the device does not tell. node_times: in order, none unless asked for. outputs: by name, none unless asked for.
    """

    latency: Latency
    load_seconds: float | None = None
    node_times: tuple[NodeTime, ...] = ()
    outputs: Mapping[str, Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DeviceRun:
    """What a device found. models: in the order given. peak_rss_bytes: of the process that ran all of them, or the
    largest of the processes that ran one each; 0 where the device does not tell."""

    models: Mapping[str, ModelRun]
    machine: Machine
    peak_rss_bytes: int


@dataclasses.dataclass(frozen=True)
class Work:
    """How models are run: what `Device.run` takes."""

    rounds: int
    warmup: int
    threads: int
    outputs: bool = False
    min_seconds: float = 0.0
    max_seconds: float | None = None
    node_rounds: int = 0
    node_seconds: float = 0.0
    timeout_seconds: float = 600.0


class Device(abc.ABC):
    """A machine that runs models. text: what `--device` calls it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(
        self,
        models: Models,
        feeds: Feeds | Sequence[Feeds],
        *,
        rounds: int = 60,
        warmup: int = 10,
        threads: int = 1,
        outputs: bool = False,
        min_seconds: float = 0.0,
        max_seconds: float | None = None,
        node_rounds: int = 0,
        node_seconds: float = 0.0,
        timeout_seconds: float = 600.0,
    ) -> DeviceRun:
        """Run and time models side by side in onnxruntime on the device's CPU.

        models: by name, not changed; bytes are those of a file. feeds: one batch for all, or one for each in their
        order, by the names of inputs; a model takes those that it has, floats cast to its type. rounds: each model runs
        once in a round, in shuffled order. warmup: rounds before, not timed. outputs: bring the outputs back.
        min_seconds: spread the rounds over this time, in bursts. max_seconds: end them early after this time, but not
        before 5. node_rounds: runs under a profiler, which times each node, spread over node_seconds; 0 for none.
        timeout_seconds: for all of it, from connecting to the last byte of the answer.

        Raises:
            UsageError: the device cannot be reached, or lacks what the runner needs; says what to do. InputError: an
            input has no feed, or a model is too large to be sent. RuntimeRefusalError: the device's runtime does not
            take a model: its message, and the node. DeviceError: time is up, the connection was lost, or the runner
            died.
        """
        if not models or rounds < 1 or threads < 1 or warmup < 0:
            raise UsageError(
                f"{self.text}: {len(models)} models, rounds {rounds}, warmup {warmup}, threads {threads}: needs one "
                "model or more, rounds >= 1, warmup >= 0 and threads >= 1"
            )
        each = [feeds] * len(models) if isinstance(feeds, Mapping) else feeds
        work = Work(
            rounds, warmup, threads, outputs, min_seconds, max_seconds, node_rounds, node_seconds, timeout_seconds
        )
        return self._run(models, dict(zip(models, each, strict=True)), work)

    @abc.abstractmethod
    def _run(self, models: Models, feeds: Mapping[str, Feeds], work: Work) -> DeviceRun:
        """Do what `run` says. feeds: by model."""
