"""Devices that ssh reaches: `ssh://[user@]host[:port][?python=PATH]`.

One connection of the system's own ssh, with its configuration, keys and known hosts. It asks no question: what needs a
password or a yes fails instead. The device needs Python 3.8 or later with numpy and onnxruntime, on anything that forks
(Linux, macOS); `python` names one that is not `python3`, such as `~/venv/bin/python`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from onnxpress.ir.errors import UsageError
from onnxpress.targets.devices.address import Address
from onnxpress.targets.devices.conversation import Heard
from onnxpress.targets.devices.python_device import PROGRAM, PythonDevice, require_program
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["SshDevice"]

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    # A connection without a sign of life for 15 s is lost.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    # One that shares our pipes and stays would keep us waiting; one that is there already is used.
    "ControlMaster": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "LogLevel": "INFO",  # below, it does not say that a server stopped to respond
}
_SSH_FAILED = 255  # ssh's own exit status; all others are the remote command's
_DEFAULT_PYTHON = "python3"


class SshDevice(PythonDevice):
    """A device behind ssh."""

    def __init__(self, address: Address) -> None:
        """Raises:
        UsageError: no ssh is installed here.
        """
        super().__init__(address.text)
        self._host, self._user, self._port = address.host, address.user, address.port
        self._python = address.options.get("python", _DEFAULT_PYTHON)
        self._ssh = require_program(
            "ssh", self.text, "install OpenSSH's client (Debian: apt-get install openssh-client)"
        )

    def _words(self) -> list[str]:
        """Return what ssh needs to know of where to go."""
        words = ["-p", str(self._port)] if self._port else []
        return [*words, "--", f"{self._user}@{self._host}" if self._user else self._host]

    def _command(self) -> Sequence[str]:
        options = [f"-o{name}={value}" for name, value in _OPTIONS.items()]
        return [self._ssh, "-T", *options, *self._words(), f"exec {_quote(self._python)} -u -c '{PROGRAM}'"]

    def _not_started(self, heard: Heard) -> UsageError:
        said = one_line(heard.last_words)
        if heard.status == _SSH_FAILED:
            return UsageError(
                f"{self.text}: ssh does not get there: {said}. This must work without a question: "
                f"{shlex.join(['ssh', '-o', 'BatchMode=yes', *self._words(), 'true'])}"
            )
        bare = self.text.partition("?")[0]
        return UsageError(
            f"{self.text}: {self._python} does not start there (exit status {heard.status}): {said}. Install Python "
            f"3.8 or later with numpy and onnxruntime, or name the one to use: {bare}?python=/path/to/python"
        )


def _quote(path: str) -> str:
    """Quote a path for a shell, but for the ~/ that it stands for the home folder with."""
    return "~/" + shlex.quote(path[2:]) if path.startswith("~/") and path != "~/" else shlex.quote(path)
