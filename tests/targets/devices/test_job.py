"""What a device answers, and what is made of an answer that has not the form of one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir
import pytest

from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.devices import python_device
from onnxpress.targets.devices.base import DeviceError
from onnxpress.targets.devices.job import find_answer, read_answer
from onnxpress.targets.devices.runner import FORMAT, MARK
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds
from tests.targets.devices.conftest import LocalDevice

_DEEP = "[" * 200_000
_Answer = dict[str, Any]


@pytest.fixture(scope="module")
def net() -> onnx_ir.Model:
    return residual_net()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, net: onnx_ir.Model) -> _Answer:
    """What the runner answers."""
    answers: list[_Answer] = []

    def keep(device: str, answer: _Answer, models: Any, step: str) -> Any:
        answers.append(answer)
        return read_answer(device, answer, models, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_device, "read_answer", keep)
        device = LocalDevice(tmp_path_factory.mktemp("device"))
        device.run({"a": net}, random_feeds(net), rounds=3, node_rounds=3, outputs=True)
    return answers[0]


def _lose(*keys: str) -> Callable[[_Answer], None]:
    def change(answer: _Answer) -> None:
        for key in keys[:-1]:
            answer = answer[key]
        del answer[keys[-1]]

    return change


def _put(value: object, *keys: str) -> Callable[[_Answer], None]:
    def change(answer: _Answer) -> None:
        for key in keys[:-1]:
            answer = answer[key]
        answer[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_lose("machine"), "KeyError: 'machine'"),
        (_lose("machine", "os"), "KeyError: 'os'"),
        (_put("many", "machine", "cores"), "ValueError: invalid literal for int() with base 10: 'many'"),
        (_put(None, "peak_rss_bytes"), "TypeError: "),
        (_lose("models", "a"), "KeyError: 'a'"),
        (_put([1.0, "fast", 1.0], "models", "a", "wall_ms"), "ValueError: could not convert string to float: 'fast'"),
        (_put([1.0, float("nan"), 1.0], "models", "a", "wall_ms"), "ValueError: nan as a time"),
        (_put([1.0, -1.0, 1.0], "models", "a", "cpu_ms"), "ValueError: -1.0 as a time"),
        (_put([], "models", "a", "wall_ms"), "ValueError: 0 wall times, 3 CPU times"),
        (_put([1.0], "models", "a", "cpu_ms"), "ValueError: 3 wall times, 1 CPU times"),
        (_put([["y", "%%%"]], "models", "a", "outputs"), "EOFError: "),
        (_put([["y", "b25ueA=="]], "models", "a", "outputs"), "ValueError: "),
        (_put([["n", "k"]], "models", "a", "node_times"), "ValueError: not enough values to unpack"),
        (_put("b25ueA==", "models", "a", "graph"), "DecodeError: "),
        (_put("gone", "error"), "TypeError: "),
        (_put({"kind": "refused", "message": "no"}, "error"), "KeyError: 'version'"),
        (
            _put({"kind": "refused", "message": "no", "version": "1", "act": "run", "model": "z"}, "error"),
            "KeyError: 'z'",
        ),
        (_put({"kind": "new", "message": "no"}, "error"), "KeyError: 'new'"),
    ],
)
def test_a_mutilated_answer_is_the_devices_fault(
    whole: _Answer, net: onnx_ir.Model, change: Callable[[_Answer], None], told: str
) -> None:
    answer = copy.deepcopy(whole)
    change(answer)
    with pytest.raises(DeviceError) as caught:
        read_answer("ssh://pi", answer, {"a": net}, "timing")
    assert str(caught.value).startswith(f"ssh://pi: its answer cannot be read: {told}")
    assert str(caught.value).endswith("Is it the runner's?")


def test_what_is_too_deep_to_read_is_no_answer() -> None:
    line = f'{{"{MARK}": {FORMAT}, "x": {_DEEP}'
    assert find_answer([line, f'{{"{MARK}": {FORMAT}}}', line]) == {MARK: FORMAT}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ({"kind": "feeds", "message": "no\x1b[2J data\n"}, InputError, "no[2J data"),
        (
            {"kind": "missing", "message": "\x07no", "python": "\x1b]0;Python"},
            UsageError,
            "ssh://pi: ]0;Python, cannot",
        ),
        (
            {"kind": "refused", "message": "no\x9b1m", "version": "\x001", "act": "\x0brun", "model": "a"},
            RuntimeRefusalError,
            "ssh://pi: onnxruntime 1: does not run model 'a': no1m",
        ),
        ({"kind": "died", "message": "\u202eSIG"}, DeviceError, "ssh://pi: the runner died there while timing: SIG"),
    ],
)
def test_words_of_a_device_cannot_steer_the_terminal(
    net: onnx_ir.Model, error: dict[str, str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        read_answer("ssh://pi", {"error": error}, {"a": net}, "timing")
    assert str(caught.value).startswith(message) and str(caught.value).isprintable()


def test_names_of_a_device_cannot_steer_the_terminal(whole: _Answer, net: onnx_ir.Model) -> None:
    answer = copy.deepcopy(whole)
    answer["machine"]["cpu"] = "\x1b[1mFast\n"
    answer["models"]["a"]["node_times"].append(["\x1b]0;x\x07", "\rConv", 1.0])
    found = read_answer("ssh://pi", json.loads(json.dumps(answer)), {"a": net}, "timing")
    last = found.models["a"].node_times[-1]
    assert (found.machine.cpu, last.name, last.kind) == ("[1mFast", "]0;x", "Conv")


def test_a_device_that_prints_without_end_is_not_listened_to(tmp_path: Path, net: onnx_ir.Model) -> None:
    flood = tmp_path / "flood"
    flood.write_text("#!/bin/sh\nexec yes\n")
    flood.chmod(0o755)

    class Flood(LocalDevice):
        def _command(self) -> list[str]:
            return [str(flood)]

    with pytest.raises(DeviceError) as caught:
        Flood(tmp_path).run({"a": net}, random_feeds(net), timeout_seconds=60)
    assert str(caught.value) == "local: it printed more than 256 MiB, which no answer needs, while connecting"
