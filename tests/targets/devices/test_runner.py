"""The runner that is sent to devices: as a plain process here, and beside the way of timing that it repeats."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.devices import runner
from onnxpress.targets.devices.base import DeviceError, Work
from onnxpress.targets.devices.job import Job, find_answer, pack, read_answer
from onnxpress.targets.runtimes import onnxruntime, onnxruntime_session, timing
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds, run, text_model
from tests.targets.devices.conftest import LocalDevice, wait_for

_FOREVER = 10_000_000  # rounds
_WORK = Work(3, 1, 1, timeout_seconds=60.0)


@pytest.fixture
def net() -> onnx_ir.Model:
    return residual_net()


def _start(folder: Path, job: Job) -> subprocess.Popen[bytes]:
    """Start the file itself, as anyone might, and send it the job; its standard input stays open."""
    process = subprocess.Popen(
        [sys.executable, runner.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    assert process.stdin is not None
    for content in (job.head, *job.files):
        process.stdin.write(content)
    process.stdin.flush()
    return process


def _lines_of(process: subprocess.Popen[bytes]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.read().decode().splitlines()


def _wait_for_step(process: subprocess.Popen[bytes], step: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if step.encode() in line:
            return
    raise AssertionError(f"it ended before {step}")


def _child_of(process: subprocess.Popen[bytes]) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_it_is_a_program_that_prints_one_line_of_json(tmp_path: Path, net: onnx_ir.Model) -> None:
    process = _start(tmp_path, pack({"a": net}, {"a": random_feeds(net)}, _WORK))
    lines = _lines_of(process)
    assert process.wait() == 0 and len(lines) == 1
    answer = find_answer(lines)
    assert answer is not None and len(answer["models"]["a"]["wall_ms"]) == 3
    assert list(tmp_path.iterdir()) == []


def test_it_has_no_syntax_that_is_younger_than_its_oldest_python() -> None:
    source = Path(runner.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"numpy", "onnxruntime"}


@pytest.mark.parametrize(("max_seconds", "min_seconds"), [(None, 0.0), (0.0, 0.0), (None, 0.05), (0.0, 0.05)])
@pytest.mark.parametrize("seed", [0, 1])
def test_models_take_turns_as_they_do_here(seed: int, max_seconds: float | None, min_seconds: float) -> None:
    def play(take_turns: Callable[..., Any]) -> tuple[list[str], Any]:
        calls: list[str] = []
        runs = {name: lambda name=name: calls.append(name) for name in "abc"}
        found = take_turns(
            runs, rounds=19, warmup=2, seed=seed, max_seconds=max_seconds, min_seconds=min_seconds,
            cpu_clock=iter(range(1000)).__next__,
        )  # fmt: skip
        return calls, found

    (there, times), (here, latencies) = play(runner.take_turns), play(timing.take_turns)
    assert there == here
    assert {name: tuple(cpu) for name, (_, cpu) in times.items()} == {
        name: latency.cpu_ms for name, latency in latencies.items()
    }
    assert [len(wall) for wall, _ in times.values()] == [len(latency.wall_ms) for latency in latencies.values()]
    nothing = runner.take_turns({}, rounds=1, warmup=0, max_seconds=None, min_seconds=0.0, cpu_clock=None)
    assert nothing == {}


@pytest.mark.parametrize("count", [1, 2, 5, 59, 60, 70, 111, 300])
def test_times_are_summed_up_as_they_are_here(count: int) -> None:
    times = np.random.default_rng(count).gamma(2.0, 1.0, count).tolist()
    assert runner.undisturbed(times) == timing.undisturbed(times)
    assert list(runner.bursts(count, 0.0)) == list(timing.bursts(count, 0.0))
    for total in (0.0, 0.5 * sum(times), 0.9 * sum(times), sum(times), 2 * sum(times)):
        assert runner.without_overhead(times, total) == timing.without_overhead(times, total)


def test_bursts_are_spread_as_they_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(bursts: Callable[[int, float], Iterator[int]]) -> list[float]:
        now, slept = 0.0, []

        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds
            slept.append(seconds)

        monkeypatch.setattr(time, "perf_counter", lambda: now)
        monkeypatch.setattr(time, "sleep", sleep)
        for _ in bursts(43, 3.0):
            now += 0.01
        return slept

    there = play(runner.bursts)
    assert there == play(timing.bursts) and len(there) == 8


def test_nodes_are_timed_as_they_are_here(tmp_path: Path, net: onnx_ir.Model) -> None:
    session = onnxruntime_session.open_session(net, profile_path=tmp_path / "profile")
    for _ in range(30):
        session.run(None, random_feeds(net))
    events = json.loads(Path(session.end_profiling()).read_text())
    for total_ms in (0.01, 1e3):
        there = runner.quiet_times(events, total_ms)
        here = onnxruntime._quiet_times(events, {}, total_ms)
        assert there == [[step.name, step.kind, step.milliseconds] for step in here] and len(there) > 5
    assert sum(milliseconds for *_, milliseconds in runner.quiet_times(events, 0.01)) == pytest.approx(0.01)


def test_nodes_of_a_body_are_not_told_beside_what_runs_them(local: LocalDevice) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[64,64] x, int64 trips, bool go) => (float[64,64] y) { [before] a = Neg (x)
        [loop] b = Loop (trips, go, a) <body = body (int64 i, bool c, float[64,64] v) => (bool d, float[64,64] w) {
        [same] d = Identity (c) [inner] w = Sin (v) }>
        [after] y = Abs (b) }""")
    feeds = {"x": np.ones((64, 64)), "trips": np.array(3), "go": np.array(True)}
    found = local.run({"a": model}, feeds, rounds=3, node_rounds=5).models["a"]
    assert [step.name for step in found.node_times] == ["before", "loop", "after"]
    assert sum(step.milliseconds for step in found.node_times) < 2 * found.latency.undisturbed_ms


def test_steps_take_less_than_the_model_without_a_profiler(local: LocalDevice, net: onnx_ir.Model) -> None:
    found = local.run({"a": net}, random_feeds(net), rounds=100, node_rounds=20).models["a"]
    assert 0 < sum(step.milliseconds for step in found.node_times) < 1.5 * found.latency.undisturbed_ms
    assert found.node_times[0].origins == ("stem", "relu")


def test_rounds_are_spread_over_the_least_time(local: LocalDevice, net: onnx_ir.Model) -> None:
    start = time.monotonic()
    found = local.run({"a": net}, random_feeds(net), rounds=10, min_seconds=2.0).models["a"]
    assert time.monotonic() - start > 1.0 and len(found.latency.wall_ms) == 10  # the second of two bursts


def test_sessions_have_the_settings_that_they_have_here(
    tmp_path: Path, net: onnx_ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    seen: list[Any] = []

    class _Session:
        def __init__(self, _: object, options: Any, providers: list[str]) -> None:
            seen.append((options, providers))
            self.get_providers = lambda: providers

    monkeypatch.setattr(onnxruntime, "InferenceSession", _Session)
    onnxruntime_session.open_session(net, threads=2)
    runner._open("a", tmp_path, 2)
    names = ("intra_op_num_threads", "inter_op_num_threads", "log_severity_level", "graph_optimization_level")
    here, there = (
        [*(getattr(options, name) for name in (*names, "execution_mode", "enable_profiling")), providers,
         options.get_session_config_entry("session.intra_op.allow_spinning")]
        for options, providers in seen
    )  # fmt: skip
    assert here == there


def test_floats_are_cast_and_each_model_takes_its_own_inputs(local: LocalDevice) -> None:
    one = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float16[2] x, float16[2] file) => (float16[2] y) { [add] y = Add (x, file) }""")
    two = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, int64[2] k, string[2] s) => (float[2] y, string[2] t) { [pow] y = Pow (x, k)
        [same] t = Identity (s) }""")
    feeds = {
        "x": np.array([1.5, -2.0]),
        "file": np.array([1, 1.0]),
        "k": np.array([2, 3]),
        "s": np.array(["Ä", "bc"], object),
    }
    found = local.run({"one": one, "two": two}, feeds, rounds=1, outputs=True).models
    np.testing.assert_array_equal(found["one"].outputs["y"], np.array([2.5, -1], np.float16))
    np.testing.assert_array_equal(found["two"].outputs["y"], np.array([2.25, -8], np.float32))
    assert found["two"].outputs["t"].tolist() == ["Ä", "bc"]


def test_models_may_take_feeds_of_their_own(local: LocalDevice) -> None:
    one = text_model('<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Neg (x) }')
    two = text_model('<ir_version: 8, opset_import: ["": 17]> g (float[3] x) => (float[3] y) { y = Neg (x) }')
    feeds = [{"x": np.array([1.0, 2.0])}, {"x": np.array([3.0, 4.0, 5.0])}]
    found = local.run({"one": one, "two": two}, feeds, rounds=1, outputs=True).models
    assert [found[name].outputs["y"].tolist() for name in ("one", "two")] == [[-1, -2], [-3, -4, -5]]


def test_a_model_of_two_names_is_sent_once_and_bytes_are_a_model(local: LocalDevice, net: onnx_ir.Model) -> None:
    feeds, content = random_feeds(net), onnx_ir.to_proto(net).SerializeToString()
    assert len(pack({"a": content, "b": content}, {"a": feeds, "b": feeds}, _WORK).files) == 2
    found = local.run({"a": content, "b": content}, feeds, rounds=2, threads=2, node_rounds=3, outputs=True)
    assert found.models["a"].latency.cpu_ms == () and len(found.models["b"].latency.wall_ms) == 2
    assert found.models["a"].node_times[0].origins == ("stem", "relu")
    np.testing.assert_allclose(found.models["b"].outputs["y"], run(net, feeds)[0], rtol=1e-4, atol=1e-5)


def test_an_input_without_data_is_named(local: LocalDevice, net: onnx_ir.Model) -> None:
    with pytest.raises(InputError) as caught:
        local.run({"a": net}, {"z": np.zeros(1)})
    assert str(caught.value) == "input 'x' of model 'a' has no data. Given: z"


def test_a_model_that_fails_as_it_runs_names_its_node(local: LocalDevice) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,4] x, int64[2] s) => (float[a,b] y) { [shape_it] y = Reshape (x, s) }""")
    with pytest.raises(RuntimeRefusalError, match=r"^local: onnxruntime \S+: does not run model 'm': .*'shape_it'"):
        local.run({"m": model}, {"x": np.zeros((1, 4)), "s": np.array([3, 3])})


def test_bytes_that_are_no_model(local: LocalDevice) -> None:
    with pytest.raises(RuntimeRefusalError, match=r"does not load model 'm': .*Protobuf parsing failed"):
        local.run({"m": b"nonsense"}, {})


def test_wrong_counts_are_told(local: LocalDevice) -> None:
    with pytest.raises(UsageError) as caught:
        local.run({}, {}, rounds=0)
    assert str(caught.value) == (
        "local: 0 models, rounds 0, warmup 10, threads 1: needs one model or more, rounds >= 1, warmup >= 0 and "
        "threads >= 1"
    )


def test_a_crash_is_an_answer(tmp_path: Path, net: onnx_ir.Model) -> None:
    process = _start(tmp_path, pack({"a": net}, {"a": random_feeds(net)}, Work(_FOREVER, 1, 1)))
    _wait_for_step(process, "timing")
    os.kill(_child_of(process), signal.SIGSEGV)
    answer = find_answer(_lines_of(process))
    assert answer is not None
    with pytest.raises(DeviceError) as caught:
        read_answer("ssh://pi", answer, {"a": net}, "timing 'a'")
    assert str(caught.value) == "ssh://pi: the runner died there while timing 'a': SIGSEGV"
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_where_the_process_that_waits_is_killed(tmp_path: Path, net: onnx_ir.Model) -> None:
    process = _start(tmp_path, pack({"a": net}, {"a": random_feeds(net)}, Work(_FOREVER, 1, 1)))
    _wait_for_step(process, "timing")
    child = _child_of(process)
    process.kill()
    process.wait()
    wait_for(lambda: list(tmp_path.iterdir()) == [] and not Path(f"/proc/{child}").exists())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_stays_after_a_signal(tmp_path: Path, net: onnx_ir.Model, number: signal.Signals) -> None:
    process = _start(tmp_path, pack({"a": net}, {"a": random_feeds(net)}, Work(_FOREVER, 1, 1)))
    _wait_for_step(process, "starting")
    child = _child_of(process)
    process.send_signal(number)
    assert process.wait(10) == 1 and _lines_of(process) == []
    assert list(tmp_path.iterdir()) == [] and not Path(f"/proc/{child}").exists()


def test_it_ends_by_itself_where_time_is_up_and_nobody_asks(tmp_path: Path, net: onnx_ir.Model) -> None:
    job = pack({"a": net}, {"a": random_feeds(net)}, Work(_FOREVER, 1, 1, timeout_seconds=-29.0))  # 30 s are added
    process = _start(tmp_path, job)
    answer = find_answer(_lines_of(process))
    assert answer is not None and answer["error"] == {"kind": "timeout", "message": "time is up"}
    assert list(tmp_path.iterdir()) == []


def test_what_ends_early_or_arrives_damaged(tmp_path: Path, net: onnx_ir.Model) -> None:
    job = pack({"a": net}, {"a": random_feeds(net)}, _WORK)
    cut = _start(tmp_path, Job(job.head, (job.files[0][:-5],)))
    assert cut.communicate(timeout=10)[0] == b"" and cut.returncode == 0
    damaged = _start(tmp_path, Job(job.head, (job.files[0][::-1], *job.files[1:])))
    answer = find_answer(_lines_of(damaged))
    assert answer is not None and answer["error"]["message"] == (
        "a file arrived damaged: its digest is not the one that was announced"
    )
    assert list(tmp_path.iterdir()) == []


def test_cores_of_unequal_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[int]] = []
    speeds = {0: 1800, 1: 1800, 2: 2400, 3: 3000}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(speeds))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    monkeypatch.setattr(runner, "_number", lambda path: speeds[int(re.findall(r"\d+", path)[0])])
    assert [runner._keep_to_fast_cores(threads) for threads in (1, 2, 3, 9)] == [
        [3],
        [2, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert kept == [[3], [2, 3]]
