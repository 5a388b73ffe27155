"""Devices over adb, against recorded conversations.

`adb_conversations.json` is what adb 29.0.6 said to an adbd 34.0.5 on loopback, on whose side a program stood in for
onnxruntime_perf_test: it ran the models in onnxruntime and printed what that program's source prints. The shell text of
its commands is today's, which a shell here runs too; what a device would say to more than was recorded is made of that.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.devices import perf_test
from onnxpress.targets.devices.adb import _split, _turns
from onnxpress.targets.devices.base import Device, DeviceError, Work
from onnxpress.targets.devices.device import open_device
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds, text_model
from tests.targets.devices.conftest import wait_for

_HERE = Path(__file__).parent
_TEXT = "adb://127.0.0.1:5555"
_Call = dict[str, Any]
_RUN = '[%s, {"cat": "Session", "name": "model_run"}]'


class _Adb:
    """The stand-in on PATH. left: what it was not asked."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "conversation.json"
        program = folder / "adb"
        words = shlex.join([sys.executable, str(_HERE / "fake_adb.py"), str(self._file)])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)

    def tell(self, conversation: list[_Call]) -> None:
        self._file.write_text(json.dumps(conversation))

    @property
    def left(self) -> list[_Call]:
        found: list[_Call] = json.loads(self._file.read_text())
        return found


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Adb:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return _Adb(tmp_path)


def _recorded(name: str) -> list[_Call]:
    found: list[_Call] = json.loads((_HERE / "adb_conversations.json").read_text())[name]
    return found


def _nodes() -> list[_Call]:
    """The conversation of one model whose nodes are timed, with one that computes nothing in 2 us, 100 times."""
    look, push, run, profile, remove = _recorded("nodes")
    at = next(index for index, line in enumerate(run["stdout"]) if line.startswith("DIGEST,"))
    rows = [f"DIGEST,{2 if index else 9}e-06,70352896,100,{index}" for index in range(100)]
    words = [word.replace(" -r 1 ", " -r 100 ") for word in run["words"]]
    nothing = _answer(run, words=words, stdout=[*run["stdout"][:at], *rows, *run["stdout"][at + 1 :]])
    return [look, push, run, nothing, profile, remove]


def _answer(call: _Call, **changed: object) -> _Call:
    return {**call, **changed}


@pytest.fixture
def net() -> onnx_ir.Model:
    return residual_net()


@pytest.fixture
def device(adb: _Adb) -> Device:
    return open_device(_TEXT)


def test_models_take_turns_by_processes(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    adb.tell(_recorded("run"))
    found = device.run({"a": net, "b": net}, random_feeds(net, batch=1), rounds=6, warmup=1)
    assert list(found.models) == ["a", "b"]
    for model in found.models.values():
        assert len(model.latency.wall_ms) == 6 and model.latency.cpu_ms == ()
        assert all(0.01 < time < 0.1 for time in model.latency.wall_ms)
        assert model.load_seconds is not None and 0.001 < model.load_seconds < 0.1
    assert found.peak_rss_bytes == 70381568
    assert (found.machine.architecture, found.machine.cores, found.machine.os) == ("x86_64", 2, "Linux 6.18.44-fc-v595")
    assert adb.left == []


def test_nodes_are_timed_in_a_process_of_their_own(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    adb.tell(_nodes())
    found = device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0, node_rounds=1)
    steps = found.models["a"].node_times
    assert [step.name for step in steps][-3:] == ["pool", "flat", "head"]
    assert steps[-1].kind == "Gemm" and max(steps, key=lambda step: step.milliseconds).kind == "Conv"
    # The profiler's own time is taken off: what is left is the model's time less that of a call.
    assert sum(step.milliseconds for step in steps) == pytest.approx(0.058587 - 0.002)
    assert adb.left == []


def test_an_android_says_what_it_is(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, *rest = _nodes()
    facts = "cpu=SM8550 board=Pixel_7 architecture=aarch64 cores=8 os=Linux_5.10 android=14 runner=yes"
    adb.tell([_answer(look, stdout=[f"{fact}\r" for fact in facts.split()]), *rest])
    found = device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0, node_rounds=1).machine
    assert (found.cpu, found.board, found.architecture, found.cores) == ("SM8550", "Pixel_7", "aarch64", 8)
    assert (found.os, found.runtime_version) == ("Linux_5.10, Android 14", "")


def test_a_refused_model_keeps_the_message_and_names_the_node(adb: _Adb, device: Device) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17, "com.foo": 1]>
        g (float[1,4] x) => (float[1,4] y) { [plain] a = Relu (x)
        [strange] y = com.foo.Bar (a) }""")
    adb.tell(_recorded("refused"))
    with pytest.raises(RuntimeRefusalError) as caught:
        device.run({"after": model}, random_feeds(model))
    assert str(caught.value) == (
        f"{_TEXT}: onnxruntime_perf_test: does not load model 'after': Fatal error: com.foo:Bar(-1) is not a "
        "registered function/op (node 'strange')"
    )
    assert adb.left == []  # the folder was removed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "unknown",
            "adb://127.0.0.1:5556",
            "adb does not get there: device '127.0.0.1:5556' not found. Did you mean '127.0.0.1:5555'? It knows "
            "127.0.0.1:5555 (device), emulator-5554 (device)",
        ),
        (
            "no runner",
            f"{_TEXT}?runner=/data/local/tmp/nowhere",
            "no program /data/local/tmp/nowhere there. Build onnxruntime for Android and put its onnxruntime_perf_test "
            "there: adb -s 127.0.0.1:5555 push onnxruntime_perf_test libonnxruntime.so /data/local/tmp/, or say where "
            "it is: adb://127.0.0.1:5555?runner=PATH",
        ),
        (
            "a broken program",
            f"{_TEXT}?runner=/data/local/tmp/broken",
            "/data/local/tmp/broken does not start there: /bin/sh: 1: /data/local/tmp/broken: Exec format error. Put "
            "one there that is built for the device, its libraries beside it",
        ),
    ],
)
def test_wrong_use(adb: _Adb, net: onnx_ir.Model, name: str, text: str, message: str) -> None:
    adb.tell(_recorded(name))
    with pytest.raises(UsageError) as caught:
        open_device(text).run({"a": net}, random_feeds(net, batch=1), rounds=2, warmup=0)
    assert str(caught.value) == f"{text}: {message}"
    assert adb.left == []


def test_another_program_is_told_from_the_runner(adb: _Adb, net: onnx_ir.Model) -> None:
    adb.tell(_recorded("another program"))
    text = f"{_TEXT}?runner=/data/local/tmp/other"
    with pytest.raises(DeviceError) as caught:
        open_device(text).run({"a": net}, random_feeds(net, batch=1), rounds=2, warmup=0)
    assert str(caught.value) == (
        f"{text}: /data/local/tmp/other tells 0 times where 1 were asked for, while timing model 'a': Hello. Is it "
        "onnxruntime_perf_test?"
    )


def test_a_device_that_vanishes(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    adb.tell(_recorded("gone"))
    with pytest.raises(DeviceError) as caught:
        device.run({"a": net}, random_feeds(net, batch=1), rounds=10_000_000, warmup=0)
    told, _, left = str(caught.value).partition(". ")
    assert told == f"{_TEXT}: the connection was lost while timing model 'a': adb gives no reason"
    assert left.startswith("/data/local/tmp/onnxpress-device-") and left.endswith(
        " may be left there, and what runs in it"
    )
    assert caught.value.exit_code == 1


def test_a_push_that_fails(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, push, *_, remove = _recorded("run")
    adb.tell([look, _answer(push, status=1, stderr=["adb: error: failed to copy: No space left on device"]), remove])
    with pytest.raises(DeviceError) as caught:
        device.run({"a": net}, random_feeds(net, batch=1))
    assert str(caught.value) == (
        f"{_TEXT}: the connection was lost while sending the models: error: failed to copy: No space left on device"
    )
    assert adb.left == []


def test_a_program_that_dies(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, push, run, *_, remove = _recorded("nodes")
    adb.tell([look, push, _answer(run, stdout=["Segmentation fault", "", "onnxpress-status:139", ""]), remove])
    with pytest.raises(DeviceError) as caught:
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0)
    assert str(caught.value) == (
        f"{_TEXT}: /data/local/tmp/onnxruntime_perf_test died there while timing model 'a': signal 11"
    )


def test_time_is_up(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, push, run, *_, remove = _recorded("nodes")
    adb.tell([look, push, _answer(run, seconds=30), remove])
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r": not done after 2 s, while timing model 'a'\. Give it more time"):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0, timeout_seconds=2)
    assert time.monotonic() - start < 10
    assert adb.left == []


def test_what_cannot_be_removed_is_a_warning(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    *calls, remove = _nodes()
    adb.tell([*calls, _answer(remove, status=1)])
    with pytest.warns(UserWarning, match=r"/onnxpress-device-\w+ cannot be removed and may be left there$"):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0, node_rounds=1)


def test_a_call_outside_of_the_conversation_is_an_error(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    adb.tell(_recorded("nodes"))
    with pytest.raises(DeviceError, match="the connection was lost while timing model 'a': not in the conversation"):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=7, warmup=0)


def test_outputs_are_not_to_be_had(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    with pytest.raises(
        UsageError, match=f"^{_TEXT}: onnxruntime_perf_test brings no outputs back. Ask for times only$"
    ):
        device.run({"a": net}, random_feeds(net), outputs=True)


def test_no_adb_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        open_device("adb://pixel")
    assert str(caught.value) == (
        "adb://pixel: no program 'adb' is installed here, which reaches such a device: install it (Debian: apt-get "
        "install adb)"
    )


def test_inputs_are_written_as_the_program_reads_them(tmp_path: Path) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float16[2] x, int64[2] k) => (float16[2] y) { [pow] y = Pow (x, k) }""")
    feeds = {"k": np.array([1, 2]), "x": np.array([0.5, 2])}
    digest = perf_test.write_model("m", b"the model", model.graph, feeds, tmp_path)
    assert (tmp_path / digest / "model.onnx").read_bytes() == b"the model"
    tensors = [onnx.load_tensor(str(tmp_path / digest / "test_data_set_0" / f"input_{index}.pb")) for index in (0, 1)]
    assert [tensor.name for tensor in tensors] == ["x", "k"]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensors[0]), np.array([0.5, 2], np.float16))
    with pytest.raises(InputError) as caught:
        perf_test.write_model("m", b"", model.graph, {"k": np.zeros(2)}, tmp_path)
    assert str(caught.value) == "input 'x' of model 'm' has no data. Given: k"
    assert perf_test.write_model("again", b"the model", model.graph, feeds, tmp_path) == digest
    others = {**feeds, "k": np.array([3, 4])}
    assert perf_test.write_model("m", b"the model", model.graph, others, tmp_path) != digest
    assert len(list(tmp_path.iterdir())) == 2


def test_lines_of_old_devices_end_otherwise() -> None:
    call = _recorded("run")[2]
    said = perf_test.read("\n".join(call["stdout"]))
    assert len(said.seconds) == 2 and said.status == 0 and said.load_seconds == 0.0121411
    assert perf_test.read("\r\n".join(call["stdout"])) == said


@pytest.mark.parametrize(("rounds", "parts"), [(6, [1, 1, 1, 1, 2]), (3, [1, 1, 1]), (60, [12] * 5), (1, [1])])
def test_rounds_are_spread_over_turns(rounds: int, parts: list[int]) -> None:
    assert _split(rounds, 5) == parts


@pytest.mark.parametrize(("rounds", "turns", "last"), [(4, 4, 3 / 4), (10, 3, 4 / 10)])  # of 5 rounds or more
def test_turns_are_spread_over_the_least_time(rounds: int, turns: int, last: float) -> None:
    start = time.monotonic()
    at = [time.monotonic() - start for _ in _turns(["a"], Work(rounds, 0, 1, min_seconds=0.5, max_seconds=0.0))]
    assert len(at) == turns and at[-1] >= 0.5 * last


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("DIGEST,5.8587.0e-05,70352896,100,0", "tells 0 times where 1 were asked for"),
        ("DIGEST,1e999,70352896,100,0", "tells 0 times where 1 were asked for"),
        ("DIGEST,nan,70352896,100,0", "tells 0 times where 1 were asked for"),
        (f"DIGEST,{'9' * 5000},70352896,100,0", "tells 0 times where 1 were asked for"),
        ("DIGEST,5e-05,70352896,100,0\nDIGEST,5e-05,70352896,100,0", "tells 2 times where 1 were asked for"),
    ],
)
def test_times_that_are_none(adb: _Adb, device: Device, net: onnx_ir.Model, line: str, told: str) -> None:
    look, push, run, *_, remove = _recorded("nodes")
    stdout = [line if each.startswith("DIGEST,") else each for each in run["stdout"]]
    adb.tell([look, push, _answer(run, stdout=stdout), remove])
    with pytest.raises(DeviceError, match=told):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0)
    assert adb.left == []


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("[" * 100_000, "RecursionError"),
        ("nonsense", "JSONDecodeError"),
        ('{"cat": "Node"}', "AttributeError"),
        (_RUN % '{"cat": "Node", "name": "a_kernel_time", "ts": 1}', "KeyError: 'args'"),
        (_RUN % '{"cat": "Node", "name": "a_kernel_time", "ts": 1, "args": {}, "dur": NaN}', "ValueError: NaN as a"),
        (_RUN % '{"cat": "Node", "name": "a_kernel_time", "ts": 1, "args": {}, "dur": "x"}', "TypeError"),
    ],
)
def test_a_profile_that_is_none(adb: _Adb, device: Device, net: onnx_ir.Model, profile: str, told: str) -> None:
    look, push, run, nothing, _, remove = _nodes()
    profiling = _recorded("nodes")[3]
    answer = _answer(profiling, stdout=[*run["stdout"][:-3], profile, "", "onnxpress-status:0", ""])
    adb.tell([look, push, run, nothing, answer, remove])
    with pytest.raises(DeviceError, match=rf"^{_TEXT}: the profile of model 'a' cannot be read: {told}"):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0, node_rounds=1)


def test_facts_of_no_known_form_are_not_told(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, *rest = _recorded("nodes")
    facts = ["cpu=\x1b[2JSM8550\x07", "board=" + "x" * 9999, "cores=many", "os=Linux", "android=", "runner=yes"]
    adb.tell([_answer(look, stdout=facts), rest[0], rest[1], rest[3]])
    found = device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0).machine
    assert (found.cpu, found.architecture, found.cores) == ("[2JSM8550", "", 0) and len(found.board) < 300


def test_words_of_a_device_cannot_steer_the_terminal(adb: _Adb, device: Device, net: onnx_ir.Model) -> None:
    look, push, run, *_, remove = _recorded("nodes")
    adb.tell(
        [
            look,
            push,
            _answer(run, stdout=["\x1b]0;mine\x07 \u202etxt\x9b31m", "onnxpress-profile:", "onnxpress-status:1", ""]),
            remove,
        ]
    )
    with pytest.raises(RuntimeRefusalError) as caught:
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0)
    assert str(caught.value) == f"{_TEXT}: onnxruntime_perf_test: does not run model 'a': ]0;mine txt31m"


def _program(folder: Path, script: str) -> Path:
    path = folder / "perf_test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_shell_text_hands_on_what_the_program_says(tmp_path: Path) -> None:
    wait = "while ! test -s pid; do sleep 0.01; done"  # the shell writes it once the program has started
    text = f'echo "m,2e-05,77,100,0" > result.csv; echo "[]" > profile_1.json; {wait}; cat pid; exit 3'
    program = _program(tmp_path, text)
    work = tmp_path / "work"
    work.mkdir()
    ran = subprocess.run(["sh", "-c", perf_test.command(str(program), str(work), 1, 1)], capture_output=True, text=True)
    said = perf_test.read(ran.stdout)
    assert (said.status, said.seconds, said.peak_bytes, said.profile) == (3, (2e-05,), 77, "[]")
    assert said.message.isdecimal()  # its number, which nothing needs any more
    assert list(work.iterdir()) == []


def test_what_is_at_work_is_ended_and_nothing_else(tmp_path: Path) -> None:
    program = _program(tmp_path, "exec sleep 60")
    work = tmp_path / "device" / "digest"
    work.mkdir(parents=True)
    text = perf_test.command(str(program), str(work), 1, 1)
    with subprocess.Popen(["sh", "-c", text], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        wait_for(lambda: (work / "pid").exists() and (work / "pid").read_text().endswith("\n"))
        at_work = int((work / "pid").read_text())
        wait_for(lambda: Path(f"/proc/{at_work}/cmdline").read_bytes().startswith(b"sleep"))
        ended = subprocess.run(["sh", "-c", perf_test.ending(str(tmp_path / "device"))], capture_output=True)
        said = perf_test.read(shell.stdout.read())
    assert said.status == 137 and ended.stderr == b"" and not Path(f"/proc/{at_work}").exists()
    assert subprocess.run(["sh", "-c", perf_test.ending(str(tmp_path / "device"))], capture_output=True).stderr == b""


def test_an_interruption_ends_the_program_there(
    adb: _Adb, device: Device, net: onnx_ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, push, *_, remove = _recorded("nodes")
    assert re.match(r"kill -9 \$\(cat \S+/\*/pid 2>/dev/null\) 2>/dev/null; rm -rf \S+$", remove["words"][-1])

    def interrupt(_: str) -> perf_test.Said:
        raise KeyboardInterrupt

    monkeypatch.setattr(perf_test, "read", interrupt)
    adb.tell([look, push, _recorded("nodes")[2], remove])
    with pytest.raises(KeyboardInterrupt):
        device.run({"a": net}, random_feeds(net, batch=1), rounds=1, warmup=0)
    assert adb.left == []
