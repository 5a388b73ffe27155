"""A device that a command reaches and that has Python: it runs `runner.py`, which is sent to its standard input."""

from __future__ import annotations

import abc
import pkgutil
import shutil
from collections.abc import Mapping, Sequence

from onnxpress.ir.errors import InternalError, UsageError
from onnxpress.targets.devices import runner
from onnxpress.targets.devices.base import Device, DeviceError, DeviceRun, Models, Work
from onnxpress.targets.devices.conversation import TOO_MUCH, Heard, converse
from onnxpress.targets.devices.job import find_answer, pack, read_answer
from onnxpress.targets.runtimes.base import Feeds
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["PROGRAM", "PythonDevice", "require_program"]

# What the device's Python is started with: it reads the runner's length and the runner, and becomes it. No single
# quotes, no exclamation mark: it passes through whatever shell a login has.
PROGRAM = (
    'import sys; exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())), "onnxpress-runner", "exec"))'
)


class PythonDevice(Device):
    """A device that runs the runner."""

    @abc.abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command that starts the device's Python with `PROGRAM`."""

    @abc.abstractmethod
    def _not_started(self, heard: Heard) -> UsageError:
        """Return the error to raise where the runner never spoke."""

    def _run(self, models: Models, feeds: Mapping[str, Feeds], work: Work) -> DeviceRun:
        job = pack(models, feeds, work)
        source = _source()
        heard = converse(self._command(), (b"%d\n" % len(source), source, job.head, *job.files), work.timeout_seconds)
        if heard.too_much:
            raise DeviceError(f"{self.text}: {TOO_MUCH}, while {heard.step or 'connecting'}")
        answer = find_answer(heard.lines)
        if answer is not None:
            return read_answer(self.text, answer, models, heard.step)
        if heard.status is None:
            doing = heard.step or "connecting"
            raise DeviceError(
                f"{self.text}: not done after {work.timeout_seconds:g} s, while {doing}. Give it more time, or fewer "
                "rounds"
            )
        if not heard.step:
            raise self._not_started(heard)
        raise DeviceError(
            f"{self.text}: the connection was lost while {heard.step}: {one_line(heard.last_words)}. What was "
            "sent there is removed when the device notices"
        )


def require_program(name: str, device: str, advice: str) -> str:
    """Return the path of a program.

    Raises:
        UsageError: it is not installed. advice: how it is.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{device}: no program {name!r} is installed here, which reaches such a device: {advice}")
    return found


def _source() -> bytes:
    source = pkgutil.get_data(runner.__name__, "runner.py")
    if source is None:
        raise InternalError("the runner's source is not beside its module")
    return source
