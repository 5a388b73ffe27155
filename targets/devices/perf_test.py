"""onnxruntime_perf_test, the program that times a model where there is no Python: how it is called, and what it says.

It is built with onnxruntime (`build.sh --android --build_shared_lib ...` makes it for Android) and reads inputs from a
folder `test_data_set_0` beside the model. Its result file has a line `model,seconds,peak bytes,CPU %,number` per run.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.targets.devices.job import parse_model
from onnxpress.targets.devices.runner import median_times
from onnxpress.targets.runtimes.base import Feeds, NodeTime

__all__ = ["Said", "command", "read", "write_inputs"]

_STATUS = "onnxpress-status:"
_PROFILE = "onnxpress-profile:"
_RUN = re.compile(r"^[^,\n]*,([\d.]+(?:e[+-]?\d+)?),(\d+),-?\d+,\d+$", re.MULTILINE)
_LOADING = re.compile(r"Session creation time cost: ([\d.e+-]+) s")
# What it tells of its own doing, beside the cause of a failure.
_CHATTER = re.compile(r"^(Setting |Disabling |.*\[[WI]:onnxruntime)")


@dataclasses.dataclass(frozen=True)
class Said:
    """What one call said.

    status: None where it did not come to its end. seconds: of each run, warm-up too. load_seconds: to create the
    session. message: everything that is no number. profile: in order.
    """

    status: int | None
    seconds: tuple[float, ...]
    load_seconds: float | None
    peak_bytes: int
    message: str
    profile: tuple[NodeTime, ...]


def command(program: str, folder: str, runs: int, threads: int, *, profile: bool = False) -> str:
    """Return the shell text that runs `model.onnx` of a folder, and prints what `read` reads."""
    options = f"-e cpu -m times -r {runs} -x {threads} -y 1 -D"
    if profile:
        options += " -p profile"
    libraries = shlex.quote(posixpath.dirname(program))
    program, folder, libraries = (shlex.quote(each) for each in (program, folder, posixpath.dirname(program)))
    # onnxruntime 1.32 leaves a file in TMPDIR and a database below HOME.
    places = f"TMPDIR=$PWD HOME=$PWD LD_LIBRARY_PATH={libraries}:$LD_LIBRARY_PATH"
    return (
        f"cd {folder} && {places} {program} {options} model.onnx result.csv 2>&1; status=$?; "
        "echo; cat result.csv 2>/dev/null; rm -f result.csv; "
        f"echo {_PROFILE}; cat profile*.json 2>/dev/null; rm -f profile*.json; echo; echo {_STATUS}$status"
    )


def read(text: str) -> Said:
    """Return what is said in the output of `command`."""
    text = text.replace("\r\n", "\n")  # as adb before Android 7 writes lines
    found = re.search(rf"^{_STATUS}(\d+)\s*\Z", text, re.MULTILINE)
    told, _, profile = text.partition(f"{_PROFILE}\n")
    loading = _LOADING.search(told)
    runs = [(float(run[1]), int(run[2])) for run in _RUN.finditer(told)]
    lines = [line.strip() for line in _RUN.sub("", told).splitlines()]
    return Said(
        int(found[1]) if found else None,
        tuple(seconds for seconds, _ in runs),
        float(loading[1]) if loading else None,
        max((peak for _, peak in runs), default=0),
        " ".join(line for line in lines if line and not _CHATTER.match(line)),
        _profile(profile.partition(_STATUS)[0]),
    )


def _profile(text: str) -> tuple[NodeTime, ...]:
    try:
        events = json.loads(text)
    except ValueError:  # none was asked for, or the program died over it
        return ()
    return tuple(NodeTime(*each) for each in median_times(events))


def write_inputs(name: str, model: onnx_ir.Model | bytes, feeds: Feeds, folder: Path) -> None:
    """Write `test_data_set_0` for the model into its folder: floats cast to the input's type.

    Raises:
        InputError: an input has no feed.
    """
    target = folder / "test_data_set_0"
    target.mkdir()
    graph = parse_model(model).graph
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for index, value in enumerate(inputs):
        if value.name not in feeds:
            given = ", ".join(feeds) or "nothing"
            raise InputError(f"input {value.name!r} of model {name!r} has no data. Given: {given}")
        array = np.asarray(feeds[str(value.name)])
        if value.dtype is not None and value.dtype.is_floating_point() and array.dtype.kind == "f":
            array = array.astype(value.dtype.numpy())
        tensor = onnx.numpy_helper.from_array(np.asarray(array, order="C"), str(value.name))
        (target / f"input_{index}.pb").write_bytes(tensor.SerializeToString())
