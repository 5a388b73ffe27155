"""Talking to a program that may not listen, not answer, or not be there."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.devices import conversation
from onnxpress.targets.devices.base import DeviceError
from onnxpress.targets.devices.conversation import Heard, converse
from onnxpress.targets.devices.python_device import PythonDevice
from onnxpress.targets.devices.runner import STEP_PREFIX
from tests.support import text_model

_LARGE = b"x" * (1 << 22)  # more than any pipe holds


def _python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def test_everything_is_heard() -> None:
    code = f"""
import sys
print(len(sys.stdin.buffer.read(5)), flush=True)
print("{STEP_PREFIX}first\\nnoise\\n{STEP_PREFIX}second\\n", file=sys.stderr)
sys.exit(3)"""
    heard = converse(_python(code), [b"ab", b"cde"], 20)
    assert heard == Heard(3, ["5"], ["noise"], "second")
    assert heard.last_words == "noise" and Heard().last_words == "no message"


def test_only_so_much_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_MOST_BYTES", 1000)
    start = time.monotonic()
    for code in ("print('x' * 1000)", "print('x' * 10**7)", "while True: print()"):
        heard = converse(_python(code), [], 60)
        assert heard.too_much and heard.lines == []
    assert time.monotonic() - start < 10
    heard = converse(_python("print('x' * 900)"), [], 60)
    assert not heard.too_much and heard.lines == ["x" * 900]


def test_the_last_noise_is_kept_and_none_of_what_a_terminal_obeys() -> None:
    code = f"""
import sys
for number in range(1000):
    print(number, file=sys.stderr)
print("y" * 10**6, file=sys.stderr)
print("{STEP_PREFIX}first\x1b[2J", file=sys.stderr)
print("last\x07", file=sys.stderr)"""
    heard = converse(_python(code), [], 20)
    assert (heard.step, heard.last_words) == ("first[2J", "last")
    assert len(heard.noise) <= 100 and max(map(len, heard.noise)) <= 300


def test_one_that_does_not_read_is_ended_in_time() -> None:
    start = time.monotonic()
    heard = converse(_python("import time; time.sleep(60)"), [_LARGE], 1)
    assert heard.status is None and time.monotonic() - start < 10


def test_one_that_ends_while_it_is_sent_to_is_heard() -> None:
    heard = converse(_python("import sys; sys.exit('no')"), [_LARGE], 20)
    assert (heard.status, heard.noise) == (1, ["no"])


def test_the_end_of_its_input_is_the_end_of_one_that_waits() -> None:
    start = time.monotonic()
    heard = converse(_python("import sys; sys.stdin.read(); print('cleaned up')"), [b"a"], 1)
    assert heard.status is None and heard.lines == ["cleaned up"]
    assert time.monotonic() - start < 10


class _Interrupted(BaseException):
    pass


def test_an_interruption_here_ends_it_too() -> None:
    def interrupt(*_: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    start = time.monotonic()
    try:
        with pytest.raises(_Interrupted):
            converse(_python("import sys; sys.stdin.read()"), [], 60)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 10


class _Mute(PythonDevice):
    def _command(self) -> Sequence[str]:
        return _python("import time; time.sleep(60)")

    def _not_started(self, heard: Heard) -> UsageError:
        return UsageError("it did not start")


def test_a_device_that_never_speaks() -> None:
    model = text_model('<ir_version: 8, opset_import: ["": 17]> g (float[1] x) => (float[1] y) { y = Neg (x) }')
    with pytest.raises(DeviceError) as caught:
        _Mute("mute").run({"a": model}, {}, timeout_seconds=1)
    assert str(caught.value) == "mute: not done after 1 s, while connecting. Give it more time, or fewer rounds"
