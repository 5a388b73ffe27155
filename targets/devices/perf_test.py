"""onnxruntime_perf_test, the program that times a model where there is no Python: how it is called, and what it says.

It is built with onnxruntime (`build.sh --android --build_shared_lib ...` makes it for Android) and reads inputs from a
folder `test_data_set_0` beside the model. Its result file has a line `model,seconds,peak bytes,CPU %,number` per run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import posixpath
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.targets.devices.runner import quiet_times
from onnxpress.targets.runtimes.base import Feeds, NodeTime
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["Said", "command", "ending", "node_times", "read", "write_model"]

_STATUS = "onnxpress-status:"
_PROFILE = "onnxpress-profile:"
_PID = "pid"  # a file with the process that is at work in a folder
_NUMBER = r"\d{1,18}(?:\.\d{1,18})?(?:e[+-]?\d{1,3})?"
_RUN = re.compile(rf"^[^,\n]*,({_NUMBER}),(\d{{1,18}}),-?\d+,\d+$", re.MULTILINE)
_LOADING = re.compile(rf"Session creation time cost: ({_NUMBER}) s")
# What it tells of its own doing, beside the cause of a failure.
_CHATTER = re.compile(r"^(Setting |Disabling |.*\[[WI]:onnxruntime)")


@dataclasses.dataclass(frozen=True)
class Said:
    """What one call said.

    status: None where it did not come to its end. seconds: of each run, warm-up too. load_seconds: to create the
    session. message: everything that is no number. profile: the text of its file, "" where it wrote none.
    """

    status: int | None
    seconds: tuple[float, ...]
    load_seconds: float | None
    peak_bytes: int
    message: str
    profile: str


def command(program: str, folder: str, runs: int, threads: int, *, profile: bool = False) -> str:
    """Return the shell text that runs `model.onnx` of a folder, and prints what `read` reads.

    The program's number is in a file as long as it is at work there, for `ending`.
    """
    options = f"-e cpu -m times -r {runs} -x {threads} -y 1 -D"
    if profile:
        options += " -p profile"
    program, folder, libraries = (shlex.quote(each) for each in (program, folder, posixpath.dirname(program)))
    # onnxruntime 1.32 leaves a file in TMPDIR and a database below HOME.
    places = f"TMPDIR=$PWD HOME=$PWD LD_LIBRARY_PATH={libraries}:$LD_LIBRARY_PATH"
    return (
        f"cd {folder} && {{ {places} {program} {options} model.onnx result.csv 2>&1 & echo $! > {_PID}; wait $!; }}; "
        f"status=$?; rm -f {_PID}; echo; cat result.csv 2>/dev/null; rm -f result.csv; "
        f"echo {_PROFILE}; cat profile*.json 2>/dev/null; rm -f profile*.json; echo; echo {_STATUS}$status"
    )


def ending(folder: str) -> str:
    """Return the shell text that ends what `command` left at work below a folder, whose name needs no quotes.

    A program that nobody listens to any more is not told so: without a terminal, nothing hangs up.
    """
    return f"kill -9 $(cat {folder}/*/{_PID} 2>/dev/null) 2>/dev/null"


def read(text: str) -> Said:
    """Return what is said in the output of `command`."""
    text = text.replace("\r\n", "\n")  # as adb before Android 7 writes lines
    found = re.search(rf"^{_STATUS}(\d{{1,3}})\s*\Z", text, re.MULTILINE)
    told, _, profile = text.partition(f"{_PROFILE}\n")
    loading = _LOADING.search(told)
    runs = [(float(run[1]), int(run[2])) for run in _RUN.finditer(told) if math.isfinite(float(run[1]))]
    lines = [line.strip() for line in _RUN.sub("", told).splitlines()]
    return Said(
        int(found[1]) if found else None,
        tuple(seconds for seconds, _ in runs),
        float(loading[1]) if loading and math.isfinite(float(loading[1])) else None,
        max((peak for _, peak in runs), default=0),
        " ".join(line for line in lines if line and not _CHATTER.match(line)),
        profile.rpartition(_STATUS)[0].strip(),
    )


def node_times(profile: str, total_ms: float) -> tuple[NodeTime, ...]:
    """Return the times of nodes in the text of a profile, in order; none of none.

    total_ms: of all nodes in a run without the profiler.

    Raises:
        Exception: of any kind; it is no profile.
    """
    if not profile:
        return ()
    times = quiet_times(json.loads(profile, parse_constant=_refuse), total_ms)
    return tuple(NodeTime(one_line(name), one_line(kind), milliseconds) for name, kind, milliseconds in times)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} as a time")


def write_model(name: str, content: bytes, graph: onnx_ir.Graph, feeds: Feeds, parent: Path) -> str:
    """Write a model and its inputs into a folder of `parent`, called by their digest, which is returned.

    content: of the model's file. graph: the model's, for its inputs: floats are cast to their types.

    Raises:
        InputError: an input has no feed.
    """
    inputs = list(_inputs(name, graph, feeds))
    digest = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in (content, *inputs))).hexdigest()
    data = parent / digest / "test_data_set_0"
    if not data.exists():
        data.mkdir(parents=True)
        (data.parent / "model.onnx").write_bytes(content)
        for index, each in enumerate(inputs):
            (data / f"input_{index}.pb").write_bytes(each)
    return digest


def _inputs(name: str, graph: onnx_ir.Graph, feeds: Feeds) -> Iterator[bytes]:
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue
        if value.name not in feeds:
            given = ", ".join(feeds) or "nothing"
            raise InputError(f"input {value.name!r} of model {name!r} has no data. Given: {given}")
        array = np.asarray(feeds[str(value.name)])
        if value.dtype is not None and value.dtype.is_floating_point() and array.dtype.kind == "f":
            array = array.astype(value.dtype.numpy())
        yield onnx.numpy_helper.from_array(np.asarray(array, order="C"), str(value.name)).SerializeToString()
