"""Calls of the program `adb` for one device, within a time for all of them."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.targets.devices.base import DeviceError
from onnxpress.targets.devices.conversation import TOO_MUCH, Heard, converse
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["Bridge"]

_CLEANING_SECONDS = 10.0


class Bridge:
    """A way to the device `serial`. text: what the user calls it."""

    def __init__(self, program: str, text: str, serial: str, limit_seconds: float) -> None:
        self._program, self._text, self._serial = program, text, serial
        self._limit_seconds = limit_seconds
        self._end = time.monotonic() + limit_seconds

    def look(self, command: str) -> str:
        """Return what a first shell command prints.

        Raises:
            UsageError: adb does not know the device, or it does not answer. DeviceError: time is up.
        """
        said = self._call("connecting", "-s", self._serial, "shell", command)
        if said.status:
            raise self._unknown(said)
        return _text(said.lines)

    def shell(self, doing: str, command: str) -> tuple[str, str]:
        """Return what a shell command prints, and what adb says; its exit status tells nothing.

        (Old devices do not tell it, and where the device vanishes it is 0.)

        Raises:
            DeviceError: time is up.
        """
        said = self._call(doing, "-s", self._serial, "shell", command)
        return _text(said.lines), _text(said.noise)

    def push(self, doing: str, local: str, remote: str) -> None:
        """Copy a folder into one on the device.

        Raises:
            DeviceError: it cannot be copied, or time is up.
        """
        said = self._call(doing, "-s", self._serial, "push", local, remote)
        if said.status:
            raise self.lost(doing, _text(said.lines + said.noise))

    @contextlib.contextmanager
    def removing(self, folder: str, ending: str) -> Iterator[None]:
        """Remove a folder of the device at the end. Where it is out of reach, the error says so, or else a warning.

        folder: its name needs no quotes. ending: shell text that ends what is at work there.
        """
        try:
            yield
        except DeviceError as error:
            if self._remove(folder, ending):
                raise
            raise DeviceError(f"{error}. {folder} may be left there, and what runs in it") from error
        except BaseException:
            self._remove(folder, ending)
            raise
        if not self._remove(folder, ending):
            warnings.warn(f"{self._text}: {folder} cannot be removed and may be left there", stacklevel=2)

    def _remove(self, folder: str, ending: str) -> bool:
        self._end = time.monotonic() + _CLEANING_SECONDS
        try:
            said = self._call("cleaning up", "-s", self._serial, "shell", f"{ending}; rm -rf {folder}")
        except DeviceError:
            return False
        return said.status == 0

    def lost(self, doing: str, said: str) -> DeviceError:
        """Return the error for a device that did not let adb finish."""
        return DeviceError(f"{self._text}: the connection was lost while {doing}: {_last_line(said)}")

    def _unknown(self, said: Heard) -> UsageError:
        listed = self._call("connecting", "devices").lines
        states = dict(one_line(line.replace("\t", " ")).split(" ", 1) for line in listed if "\t" in line)
        known = ", ".join(f"{serial} ({state.strip()})" for serial, state in states.items()) or "no device"
        near = near_names(self._serial, states) if self._serial not in states else ""
        told = _last_line(_text(said.lines + said.noise))
        return UsageError(f"{self._text}: adb does not get there: {told}.{near} It knows {known}")

    def _call(self, doing: str, *words: str) -> Heard:
        said = converse([self._program, *words], (), max(self._end - time.monotonic(), 0.0))
        if said.too_much:
            raise DeviceError(f"{self._text}: {TOO_MUCH}, while {doing}")
        if said.status is None:
            raise DeviceError(
                f"{self._text}: not done after {self._limit_seconds:g} s, while {doing}. Give it more time, or fewer "
                "rounds"
            )
        return said


def _text(lines: list[str]) -> str:
    return "\n".join(lines)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["adb gives no reason"]
    return one_line(lines[-1].removeprefix("error: ").removeprefix("adb: "))
