"""Run and time models on the device that this file is sent to. It needs Python 3.8 or later, numpy and onnxruntime.

Standard input:  one line of JSON, the job; then the files that it lists, one after the other, with nothing between.
                 It stays open: its end means that whoever asked has gone.
Standard output: one line of JSON, the answer; nothing where nobody waits for it any more.
Standard error:  a line `onnxpress-step: ...` for each thing that is begun.

Two processes, so that nothing stays behind whatever happens. This one receives the files, waits, and removes their
folder; a fork of it computes. If the fork crashes or is killed, that is an answer. If whoever asked goes away, or time
is up, the fork is killed. If this process is killed, the fork removes the folder and ends.

Nothing of the project is imported here, and no syntax or function is younger than Python 3.8. The way of timing is that
of `targets/runtimes/timing.py`, that of timing nodes is of `onnxruntime.py` beside it, and the settings of sessions are
those of `onnxruntime_session.py`: tests compare them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import platform
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

__all__ = [
    "FORMAT", "LEAST_ROUNDS", "MARK", "STEP_PREFIX", "bursts", "main", "quiet_times", "take_turns", "undisturbed",
    "without_overhead",
]  # fmt: skip

FORMAT = 1  # of the job and of the answer
MARK = "onnxpress_runner"  # the key that tells the answer from what a login shell prints
STEP_PREFIX = "onnxpress-step: "

LEAST_ROUNDS = 5  # that time does not end

_CHUNK_BYTES = 1 << 20
_BURSTS, _LEAST_ROUNDS_OF_BURST = 20, 5
_WARMUP_IN_BURST = 2  # rounds that are not timed: a pause leaves the caches to others
_QUIET_SHARE, _LEAST_QUIET = 0.05, 3
_PLAIN_RUNS = 5  # of a burst, without the profiler
_KERNEL_TIME = "_kernel_time"  # what events of a node's own computing end with
_RUN = "model_run"  # of a whole run, told behind its nodes
_SMALL_BYTES = "256"  # weights below this stay in the optimized graph, which is sent back
_FLOATS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}
_FREQUENCY = "/sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"


class _Answer(Exception):  # noqa: N818  # an end of the work, which need not be a fault
    """What is answered instead of results. kind: what `job.read_answer` tells apart."""

    def __init__(self, kind: str, message: object, **more: str) -> None:
        super().__init__(kind)
        self.error = dict(more, kind=kind, message=str(message))


def main() -> None:
    """Do the job that standard input holds."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="onnxpress-device-"))
    answer: dict[str, Any] | None = None
    try:
        answer = _supervise(folder)
    except _Answer as found:
        answer = {"error": found.error}
    except OSError as error:  # a full disk, most of all
        answer = {"error": {"kind": "failed", "message": str(error)}}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if answer is not None:
        answer[MARK] = FORMAT
        print(json.dumps(answer), flush=True)


def _step(text: str) -> None:
    print(STEP_PREFIX + text, file=sys.stderr, flush=True)


# The process that receives and waits.


def _supervise(folder: pathlib.Path) -> dict[str, Any] | None:
    """Return the answer; None where nobody waits for it."""
    _step("receiving the models")
    stdin = sys.stdin.buffer
    line = stdin.readline()
    if not line:
        return None
    job = json.loads(line)
    if not all(_receive(stdin, folder, file["digest"], file["bytes"]) for file in job["files"]):
        return None
    # Of each pipe only one process holds the far end, and the system closes it however that process ends.
    parent_gone, parent_holds = os.pipe()
    child_gone, child_holds = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_holds)
        os.close(child_gone)
        _work(job, folder, parent_gone)
    os.close(parent_gone)
    os.close(child_holds)
    try:
        ended = _wait(child_gone, stdin, time.monotonic() + job["deadline_seconds"])
        return _collect(child, folder) if ended else None
    finally:
        _kill(child)


def _receive(stdin: BinaryIO, folder: pathlib.Path, digest: str, size: int) -> bool:
    """Write the next `size` bytes to a file; False where they end early."""
    found = hashlib.sha256()
    with (folder / digest).open("wb") as file:
        while size:
            chunk = stdin.read(min(size, _CHUNK_BYTES))
            if not chunk:
                return False
            found.update(chunk)
            file.write(chunk)
            size -= len(chunk)
    if found.hexdigest() != digest:
        raise _Answer("failed", "a file arrived damaged: its digest is not the one that was announced")
    return True


def _wait(child_gone: int, stdin: BinaryIO, deadline: float) -> bool:
    """Return whether the child ended by itself: in time, and before standard input did."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Answer("timeout", "time is up")
        ready = select.select([child_gone, stdin.fileno()], [], [], left)[0]
        if child_gone in ready:
            return True
        if ready and not os.read(stdin.fileno(), 1):
            return False


def _collect(child: int, folder: pathlib.Path) -> dict[str, Any]:
    status = os.waitpid(child, 0)[1]
    try:
        answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        return answer
    except (OSError, ValueError):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        raise _Answer("died", signal.Signals(number).name if number else f"exit status {status >> 8}") from None


def _kill(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):  # it has ended, and was waited for
        pass


# The process that computes.


def _work(job: dict[str, Any], folder: pathlib.Path, parent_gone: int) -> None:
    """Leave the answer in the folder and end the process."""
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        # onnxruntime 1.32 leaves `.ses` in the first and a database in a cache below one of the others.
        os.environ.update(dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME"), str(folder)))
        silence = os.open(os.devnull, os.O_RDWR)
        os.dup2(silence, 0)
        os.dup2(silence, 1)
        threading.Thread(target=_end_with_parent, args=(parent_gone, folder), daemon=True).start()
        try:
            answer = _measure(job, folder)
        except _Answer as found:
            answer = {"error": found.error}
        except Exception as error:
            answer = {"error": {"kind": "failed", "message": f"{type(error).__name__}: {error}"}}
        (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    finally:
        os._exit(0)


def _end_with_parent(parent_gone: int, folder: pathlib.Path) -> None:
    os.read(parent_gone, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _measure(job: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    runtime = _start()
    cores = _keep_to_fast_cores(job["threads"])
    models: dict[str, dict[str, Any]] = {}
    sessions: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, digests in job["models"].items():
        start = time.perf_counter()
        session = _open(name, folder / digests["model"], job["threads"])
        models[name] = {"load_seconds": time.perf_counter() - start}
        feeds = _fit(name, session, folder / digests["feeds"])
        results = _run_first(name, session, feeds)
        if job["outputs"]:
            models[name]["outputs"] = [
                [value.name, _pack(results[index])] for index, value in enumerate(session.get_outputs())
            ]
        sessions[name] = session, feeds
    _step(f"timing {', '.join(map(repr, sessions))} in {job['rounds']} rounds")
    times = take_turns(
        {name: functools.partial(session.run, None, feeds) for name, (session, feeds) in sessions.items()},
        rounds=job["rounds"], warmup=job["warmup"], max_seconds=job["max_seconds"], min_seconds=job["min_seconds"],
        cpu_clock=time.thread_time if job["threads"] == 1 else None,
    )  # fmt: skip
    for name, (wall_ms, cpu_ms) in times.items():
        models[name].update(wall_ms=wall_ms, cpu_ms=cpu_ms)
    peak = _peak_rss_bytes()  # before the profiler takes its share
    if job["node_rounds"]:
        for name, digests in job["models"].items():
            models[name].update(_profile(name, folder, digests["model"], *sessions[name], job))
    return {"machine": _machine(runtime, cores), "models": models, "peak_rss_bytes": peak}


def _start() -> Any:
    """Return onnxruntime."""
    _step("starting onnxruntime")
    try:
        import numpy  # noqa: F401  # which reads the feeds
        import onnxruntime
    except ImportError as error:
        raise _Answer("missing", error, python=f"Python {platform.python_version()}, {sys.executable}") from error
    # It would keep its records in a folder that goes, and tell others what runs on a machine that is not ours.
    getattr(onnxruntime, "disable_telemetry_events", lambda: None)()
    return onnxruntime


def undisturbed(times: list[float]) -> float:
    """Return what a run takes where nothing disturbs it, as `timing.undisturbed` does."""
    return statistics.median(sorted(times)[: max(_LEAST_QUIET, round(_QUIET_SHARE * len(times)))])


def bursts(rounds: int, seconds: float) -> Iterator[int]:
    """Yield sizes of bursts of rounds that are spread over `seconds`, as `timing.bursts` does."""
    size = max(_LEAST_ROUNDS_OF_BURST, math.ceil(rounds / _BURSTS))
    started = time.perf_counter()
    for done in range(0, rounds, size):
        if (left := started + seconds * done / rounds - time.perf_counter()) > 0:
            time.sleep(left)
        yield min(size, rounds - done)


def without_overhead(times: list[float], total: float) -> list[float]:
    """Return `times` less what reading a clock added to each, as `timing.without_overhead` does."""
    left = list(times)
    while (excess := sum(left) - total) > 1e-9 * total and any(left):
        share = excess / sum(each > 0 for each in left)
        left = [max(0.0, each - share) for each in left]
    return left


def take_turns(
    runs: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int,
    seed: int = 0,
    max_seconds: float | None,
    min_seconds: float,
    cpu_clock: Callable[[], float] | None,
) -> dict[str, tuple[list[float], list[float]]]:
    """Return wall and CPU times in milliseconds, one entry per round, by name, as `timing.take_turns` does."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    took = 0.0
    for _ in range(warmup):
        started = time.perf_counter()
        for run in runs.values():
            run()
        took = time.perf_counter() - started
    if max_seconds is not None and took:
        rounds = min(rounds, max(LEAST_ROUNDS, math.ceil(max_seconds / took)))
    order, shuffler = list(runs), random.Random(seed)
    clock = cpu_clock or time.perf_counter
    deadline = None if max_seconds is None else time.perf_counter() + max_seconds
    done, warmup = 0, _WARMUP_IN_BURST if min_seconds else 0
    for size in bursts(rounds, min_seconds) if min_seconds else itertools.repeat(1, rounds):
        if deadline is not None and done >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        shuffler.shuffle(order)
        for name in order:
            run = runs[name]
            for _ in range(warmup):
                run()
            for _ in range(size):
                cpu_start, wall_start = clock(), time.perf_counter()
                run()
                wall_end, cpu_end = time.perf_counter(), clock()
                wall[name].append((wall_end - wall_start) * 1e3)
                cpu[name].append((cpu_end - cpu_start) * 1e3)
        done += size
    return {name: (wall[name], cpu[name] if cpu_clock is not None else []) for name in runs}


def _open(name: str, path: pathlib.Path, threads: int, folder: pathlib.Path | None = None) -> Any:
    """Return a session. folder: where its profile and the optimized graph go; None for neither."""
    import onnxruntime

    _step(f"loading model {name!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        prefix = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(prefix + "file_name", "optimized.data")
        options.add_session_config_entry(prefix + "min_size_in_bytes", _SMALL_BYTES)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _Answer("refused", error, model=name, act="load", version=onnxruntime.__version__) from error


def _run_first(name: str, session: Any, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime

    _step(f"running model {name!r}")
    try:
        results: list[Any] = session.run(None, feeds)
    except Exception as error:
        raise _Answer("refused", error, model=name, act="run", version=onnxruntime.__version__) from error
    return results


def _fit(name: str, session: Any, feeds_path: pathlib.Path) -> dict[str, Any]:
    """Return the feeds of the session's inputs from a file, floats cast to the type that each has."""
    import numpy

    feeds = {}
    with numpy.load(feeds_path, allow_pickle=False) as given:
        for value in session.get_inputs():
            if value.name not in given.files:
                told = ", ".join(given.files) or "nothing"
                raise _Answer("feeds", f"input {value.name!r} of model {name!r} has no data. Given: {told}")
            array = given[value.name]
            if value.type in _FLOATS and array.dtype.kind == "f":
                array = array.astype(_FLOATS[value.type], order="C", copy=False)
            feeds[value.name] = array
    return feeds


def _pack(result: Any) -> str:
    """Return an array as the base64 text of an .npy file; strings keep their characters."""
    import numpy

    array = numpy.asarray(result)
    content = io.BytesIO()
    numpy.save(content, array.astype(str) if array.dtype.kind == "O" else array, allow_pickle=False)
    return base64.b64encode(content.getvalue()).decode("ascii")


def _profile(
    name: str, folder: pathlib.Path, digest: str, plain: Any, feeds: dict[str, Any], job: dict[str, Any]
) -> dict[str, Any]:
    """Return the time of each node in order, and the graph that they are nodes of, without its weights.

    plain: a session without the profiler, for what all nodes take.
    """
    import numpy

    apart = pathlib.Path(tempfile.mkdtemp(dir=folder))
    session = _open(name, folder / digest, job["threads"], apart)
    nothing = _open("empty", folder / job["empty"], 1)
    no_feeds = {value.name: numpy.zeros(value.shape, numpy.float32) for value in nothing.get_inputs()}
    _step(f"timing the nodes of model {name!r}")
    times: list[float] = []
    calls: list[float] = []
    for size in bursts(job["node_rounds"], job["node_seconds"]):
        for _ in range(size):
            session.run(None, feeds)
        times += [_seconds(plain, feeds) for _ in range(_PLAIN_RUNS)]
        calls += [_seconds(nothing, no_feeds) for _ in range(_PLAIN_RUNS)]
    events = json.loads(pathlib.Path(session.end_profiling()).read_text(encoding="utf-8"))
    graph = base64.b64encode((apart / "optimized.onnx").read_bytes()).decode("ascii")
    of_nodes = max(0.0, undisturbed(times) - undisturbed(calls))
    return {"node_times": quiet_times(events, of_nodes * 1e3), "graph": graph}


def _seconds(session: Any, feeds: dict[str, Any]) -> float:
    """Run once, and return the seconds that it took."""
    start = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - start


def quiet_times(events: list[dict[str, Any]], total_ms: float) -> list[list[Any]]:
    """Return [name, kind, milliseconds] of each node of the main graph in a profile of onnxruntime, in order.

    total_ms: of all nodes in a run without the profiler, so that its cost can be taken off.
    """
    times: dict[tuple[str, str], list[float]] = {}
    for run in _runs(events):
        for key, milliseconds in run.items():
            times.setdefault(key, []).append(milliseconds)
    taken = without_overhead([undisturbed(each) for each in times.values()], total_ms)
    return [[*key, milliseconds] for key, milliseconds in zip(times, taken)]  # noqa: B905  # younger than Python 3.8


def _runs(events: list[dict[str, Any]]) -> list[dict[tuple[str, str], float]]:
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
            key = (name[: -len(_KERNEL_TIME)], str(event["args"].get("op_name", "")))
            runs[-1][key] = runs[-1].get(key, 0.0) + event["dur"] / 1e3
    return [dict(reversed(list(run.items()))) for run in reversed(runs)]


# What the device is.


def _keep_to_fast_cores(threads: int) -> list[int]:
    """Where cores differ in speed, keep this process and its threads on the fastest ones; return the cores it has.

    On a phone the scheduler moves a thread between cores that differ threefold, which no median sees through.
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux
        return list(range(os.cpu_count() or 1))
    cores = sorted(os.sched_getaffinity(0))
    speeds = {core: _number(_FREQUENCY.format(core)) for core in cores}
    needed = sorted(speeds.values(), reverse=True)[: max(threads, 1)][-1]
    chosen = [core for core in cores if speeds[core] >= needed]
    if len(chosen) < len(cores):
        try:
            os.sched_setaffinity(0, chosen)
        except OSError:
            return cores
    return chosen


def _number(path: str) -> int:
    try:
        return int(_text(path) or 0)
    except ValueError:
        return 0


def _text(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _machine(runtime: Any, cores: list[int]) -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "board": _text("/proc/device-tree/model"),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "cores_used": cores,
        "os": f"{platform.system()} {platform.release()}",
        "runtime_version": runtime.__version__,
    }


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    if found is not None:
        return found[1].strip()
    try:  # Arm's cores have numbers in /proc/cpuinfo, and lscpu knows their names
        said = subprocess.run(["lscpu"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False)
        names = re.findall(rb"^Model name:\s*(\S.*)$", said.stdout, re.MULTILINE)
    except (OSError, subprocess.SubprocessError):
        names = []
    return " + ".join(name.decode("utf-8", "replace").strip() for name in names) or platform.processor()


def _peak_rss_bytes() -> int:
    """Return the most resident memory of this process so far; 0 where the system does not tell."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _text("/proc/self/status"), re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
