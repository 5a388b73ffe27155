"""Arm64 under emulation, for correctness and not for time: `qemu://SYSROOT`, a folder that holds an Arm64 Linux.

SYSROOT has Python with numpy and onnxruntime of Arm64, as `python -m onnxpress.tools.bench arm64` makes it. The
emulator is `qemu-aarch64` of QEMU 8 or later (Debian 12's 7.2 crashes as onnxruntime loads); `emulator` names one that
is not on PATH, `python` a Python that is not SYSROOT's `usr/bin/python3`, `cpu` one of QEMU's processors: by default
`max`, which has every instruction that there is; `cortex-a53` has no dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxpress.ir.errors import UsageError
from onnxpress.targets.devices.address import Address
from onnxpress.targets.devices.conversation import Heard
from onnxpress.targets.devices.python_device import PROGRAM, PythonDevice, require_program
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["QemuDevice"]

_EMULATOR = "qemu-aarch64"
_PYTHON = "usr/bin/python3"


class QemuDevice(PythonDevice):
    """Arm64's Python under qemu-user."""

    def __init__(self, address: Address) -> None:
        """Raises:
        UsageError: no emulator is installed here, or there is no Python in the folder.
        """
        super().__init__(address.text)
        self._sysroot = Path(address.host)
        self._processor = ["-cpu", address.options["cpu"]] if "cpu" in address.options else []
        self._python = Path(address.options.get("python", self._sysroot / _PYTHON))
        emulator = address.options.get("emulator", _EMULATOR)
        self._emulator = require_program(
            emulator, self.text, "install QEMU 8 or later (Debian 13: apt-get install qemu-user)"
        )
        if not self._python.exists():
            raise UsageError(
                f"{self.text}: no {self._python}. Make the folder: python -m onnxpress.tools.bench arm64 --keep DIR"
            )

    def _command(self) -> Sequence[str]:
        return [self._emulator, *self._processor, "-L", str(self._sysroot), str(self._python), "-u", "-c", PROGRAM]

    def _not_started(self, heard: Heard) -> UsageError:
        return UsageError(
            f"{self.text}: {self._python} does not start under {self._emulator} (exit status {heard.status}): "
            f"{one_line(heard.last_words)}"
        )
