"""`--device` text into a device. Each kind is imported when it is asked for."""

from __future__ import annotations

import importlib

from onnxpress.targets.devices.address import parse
from onnxpress.targets.devices.base import Device

__all__ = ["open_device"]

_PACKAGE = "onnxpress.targets.devices"
_KINDS = {"ssh": "ssh:SshDevice", "adb": "adb:AdbDevice", "qemu": "qemu:QemuDevice"}


def open_device(text: str) -> Device:
    """Return the device that `text` names, such as `ssh://pi@raspberry`; it is not contacted before its `run`.

    Raises:
        UsageError: there is no such form of address, or the program that reaches such a device is not installed here.
    """
    address = parse(text)
    module, name = _KINDS[address.scheme].split(":")
    device: Device = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), name)(address)
    return device
