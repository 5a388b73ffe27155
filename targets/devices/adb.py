"""Android devices that adb reaches: `adb://serial[?runner=PATH]`.

There is no Python there, so models are run by onnxruntime_perf_test (see `perf_test`), which is put there once:

    adb push onnxruntime_perf_test libonnxruntime.so /data/local/tmp/
    adb shell chmod +x /data/local/tmp/onnxruntime_perf_test

`runner` is where it lies, its libraries beside it. It takes one model, so the models take turns by processes, a few for
each, and not round by round: a process is a burst of rounds. It tells wall time, and neither CPU time nor outputs. All
that is pushed lies in one folder; at the end, and where we give up, what is at work there is ended and the folder
removed.
"""

from __future__ import annotations

import posixpath
import random
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir

from onnxpress.ir.errors import OnnxpressError, UsageError
from onnxpress.targets.devices import perf_test
from onnxpress.targets.devices.adb_bridge import Bridge
from onnxpress.targets.devices.address import Address
from onnxpress.targets.devices.base import Device, DeviceError, DeviceRun, Machine, ModelRun, Models, Work
from onnxpress.targets.devices.job import model_bytes, parse_model
from onnxpress.targets.devices.python_device import require_program
from onnxpress.targets.devices.refused import refusal
from onnxpress.targets.devices.runner import LEAST_ROUNDS
from onnxpress.targets.runtimes.base import Feeds, NodeTime
from onnxpress.targets.runtimes.onnxruntime import empty_feeds, empty_model
from onnxpress.targets.runtimes.refusal import one_line
from onnxpress.targets.runtimes.timing import Latency, undisturbed

__all__ = ["AdbDevice"]

_FOLDER = "/data/local/tmp"  # where adb's user may write and run programs
_RUNNER = f"{_FOLDER}/onnxruntime_perf_test"
_TURNS = 5  # processes of each model that the rounds are spread over: each loads the model anew
_EMPTY_RUNS = 100  # of a model that computes nothing
_CANNOT_RUN = (126, 127)  # a shell's words for a program that is not there, or is none
_CANNOT_LINK = "CANNOT LINK EXECUTABLE"  # Android's, for one whose libraries are not there
_FIRST_SIGNAL, _LAST_SIGNAL = 129, 192  # exit statuses of a program that a signal ended
_FACTS = "; ".join(
    f'echo "{name}=$({question} 2>/dev/null)"'
    for name, question in {
        "cpu": "getprop ro.soc.model",
        "board": "getprop ro.product.model",
        "architecture": "uname -m",
        "cores": "nproc",
        "os": "uname -sr",
        "android": "getprop ro.build.version.release",
    }.items()
)


class AdbDevice(Device):
    """A device behind adb."""

    def __init__(self, address: Address) -> None:
        """Raises:
        UsageError: no adb is installed here.
        """
        super().__init__(address.text)
        self._serial, self._runner = address.host, address.options.get("runner", _RUNNER)
        self._adb = require_program("adb", self.text, "install it (Debian: apt-get install adb)")

    def _run(self, models: Models, feeds: Mapping[str, Feeds], work: Work) -> DeviceRun:
        if work.outputs:
            raise UsageError(f"{self.text}: onnxruntime_perf_test brings no outputs back. Ask for times only")
        bridge = Bridge(self._adb, self.text, self._serial, work.timeout_seconds)
        machine = self._look(bridge)
        name = f"onnxpress-device-{secrets.token_hex(6)}"
        with tempfile.TemporaryDirectory(prefix="onnxpress-") as temporary:
            local = Path(temporary) / name
            local.mkdir()
            remote = posixpath.join(_FOLDER, name)
            places = {
                each: posixpath.join(remote, _write(local, each, model, feeds[each])) for each, model in models.items()
            }
            empty = ""
            if work.node_rounds:
                empty = posixpath.join(remote, _write(local, "empty", empty_model(), empty_feeds()))
            with bridge.removing(remote, perf_test.ending(remote)):
                bridge.push("sending the models", str(local), f"{_FOLDER}/")
                return self._measure(bridge, models, places, empty, work, machine)

    def _look(self, bridge: Bridge) -> Machine:
        """Return what the device says of itself.

        Raises:
            UsageError: it is not there, or there is no runner on it.
        """
        told = bridge.look(f"{_FACTS}; test -x {shlex.quote(self._runner)} && echo runner=yes; true")
        facts = dict(one_line(line).split("=", 1) for line in told.splitlines() if "=" in line)
        if "runner" not in facts:
            raise UsageError(
                f"{self.text}: no program {self._runner} there. Build onnxruntime for Android and put its "
                f"onnxruntime_perf_test there: adb -s {self._serial} push onnxruntime_perf_test libonnxruntime.so "
                f"{posixpath.dirname(self._runner)}/, or say where it is: adb://{self._serial}?runner=PATH"
            )
        android = f", Android {facts['android']}" if facts.get("android") else ""
        cores = facts.get("cores", "")
        return Machine(
            facts.get("cpu", ""), facts.get("board", ""), facts.get("architecture", ""),
            int(cores) if re.fullmatch("[0-9]{1,4}", cores) else 0, os=facts.get("os", "") + android,
        )  # fmt: skip

    def _measure(
        self, bridge: Bridge, models: Models, places: Mapping[str, str], empty: str, work: Work, machine: Machine
    ) -> DeviceRun:
        """Run each model in turns, then once more where the times of its nodes are asked for.

        empty: where the model lies whose time is that of a call; "" where none is needed.
        """

        def run(name: str, rounds: int, profile: bool = False) -> perf_test.Said:
            return self._time(bridge, name, models[name], places[name], rounds + work.warmup, work.threads, profile)

        runs: dict[str, list[perf_test.Said]] = {name: [] for name in models}
        for name, rounds in _turns(list(models), work):
            runs[name].append(run(name, rounds))
        walls = {name: _wall_ms(said, work.warmup) for name, said in runs.items()}
        nodes: dict[str, tuple[NodeTime, ...]] = {}
        if work.node_rounds:
            nothing = self._time(bridge, "empty", empty_model(), empty, _EMPTY_RUNS, 1, False)
            call = undisturbed(_wall_ms([nothing], 0))
            for name in models:
                of_nodes = max(0.0, undisturbed(walls[name]) - call)
                nodes[name] = self._node_times(name, run(name, work.node_rounds, True), of_nodes)
        found = {
            name: ModelRun(Latency(walls[name]), said[0].load_seconds, nodes.get(name, ()))
            for name, said in runs.items()
        }
        return DeviceRun(found, machine, max(each.peak_bytes for said in runs.values() for each in said))

    def _node_times(self, name: str, said: perf_test.Said, total_ms: float) -> tuple[NodeTime, ...]:
        try:
            return perf_test.node_times(said.profile, total_ms)
        except Exception as error:  # whatever reading may raise, of what another machine may have written
            raise DeviceError(
                f"{self.text}: the profile of model {name!r} cannot be read: {type(error).__name__}: {one_line(error)}"
            ) from error

    def _time(
        self,
        bridge: Bridge,
        name: str,
        model: onnx_ir.Model | bytes,
        place: str,
        runs: int,
        threads: int,
        profile: bool,
    ) -> perf_test.Said:
        """Run one model in a process of its own."""
        doing = f"timing {'the nodes of ' if profile else ''}model {name!r}"
        told, noise = bridge.shell(doing, perf_test.command(self._runner, place, runs, threads, profile=profile))
        said = perf_test.read(told)
        if said.status is None:
            raise bridge.lost(doing, noise)
        if said.status:
            raise self._complaint(said.status, said.message, doing, name, model)
        if len(said.seconds) != runs:
            raise DeviceError(
                f"{self.text}: {self._runner} tells {len(said.seconds)} times where {runs} were asked for, while "
                f"{doing}: {one_line(said.message) or 'nothing else'}. Is it onnxruntime_perf_test?"
            )
        return said

    def _complaint(
        self, status: int, message: str, doing: str, name: str, model: onnx_ir.Model | bytes
    ) -> OnnxpressError:
        """Return the error for a runner that ended with a status."""
        if status in _CANNOT_RUN or _CANNOT_LINK in message:
            return UsageError(
                f"{self.text}: {self._runner} does not start there: {one_line(message)}. Put one there that is built "
                "for the device, its libraries beside it"
            )
        if _FIRST_SIGNAL <= status <= _LAST_SIGNAL:
            return DeviceError(f"{self.text}: {self._runner} died there while {doing}: signal {status - 128}")
        act = "load" if "Load model" in message or "implementation" in message else "run"
        runtime = posixpath.basename(self._runner)
        return refusal(self.text, runtime, act, name, message or f"exit status {status}", model)


def _turns(names: list[str], work: Work) -> Iterator[tuple[str, int]]:
    """Yield who runs next, and how many rounds: the models in shuffled order, `_TURNS` times, until time is up.

    The turns are spread over the time that the rounds take at least.
    """
    shuffler, start, done = random.Random(0), time.monotonic(), 0
    for rounds in _split(work.rounds, _TURNS):
        late = work.max_seconds is not None and time.monotonic() - start > work.max_seconds
        if late and done >= LEAST_ROUNDS:
            return
        if (left := start + work.min_seconds * done / work.rounds - time.monotonic()) > 0:
            time.sleep(left)
        shuffler.shuffle(names)
        yield from ((name, rounds) for name in names)
        done += rounds


def _split(rounds: int, parts: int) -> list[int]:
    """Return `rounds` in at most `parts` parts of nearly the same size."""
    parts = min(parts, rounds)
    return [rounds * (index + 1) // parts - rounds * index // parts for index in range(parts)]


def _write(local: Path, name: str, model: onnx_ir.Model | bytes, feeds: Feeds) -> str:
    return perf_test.write_model(name, model_bytes(name, model), parse_model(model).graph, feeds, local)


def _wall_ms(said: list[perf_test.Said], warmup: int) -> tuple[float, ...]:
    return tuple(seconds * 1e3 for each in said for seconds in each.seconds[warmup:])
