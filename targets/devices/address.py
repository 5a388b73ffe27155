"""Addresses of devices, such as `ssh://pi@raspberry:2222?python=~/venv/bin/python`, taken apart."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote

from onnxpress.ir.errors import UsageError, near_names

__all__ = ["FORMS", "Address", "parse"]

FORMS = {
    "ssh": "ssh://[user@]host[:port][?python=PATH]",
    "adb": "adb://serial[?runner=PATH]",
    "qemu": "qemu://SYSROOT[?python=PATH][&emulator=PROGRAM][&cpu=NAME]",
}
_OPTIONS = {"ssh": ("python",), "adb": ("runner",), "qemu": ("python", "emulator", "cpu")}
# None of them starts with a dash: they become words of a command line.
_HOST = re.compile(
    r"(?:(?P<user>[\w.+][\w.+@-]*)@)?(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[\w.][\w.-]*))(?::(?P<port>\d+))?/?"
)
_SERIAL = re.compile(r"[\w.\[][\w.:\[\]-]*")
_LAST_PORT = 65535


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a device is. host: of adb the serial number, of qemu the sysroot. port: None for the usual one."""

    text: str
    scheme: str
    host: str
    user: str = ""
    port: int | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def parse(text: str) -> Address:
    """Return the parts of what `--device` says.

    Raises:
        UsageError: it is none of the forms; names them and what comes near.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in FORMS:
        near = near_names(scheme, FORMS) if separator else ""
        raise UsageError(f"unknown device {text!r}.{near} A device is one of: {', '.join(FORMS.values())}")
    place, _, query = rest.partition("?")
    options = _options(text, scheme, query)
    if scheme == "ssh":
        return _host(text, place, options)
    if scheme == "adb" and not _SERIAL.fullmatch(place):
        raise _malformed(text, scheme, "the serial number is missing" if not place else "that is no serial number")
    if not place:
        raise _malformed(text, scheme, "the folder is missing")
    return Address(text, scheme, unquote(place) if scheme == "qemu" else place, options=options)


def _host(text: str, place: str, options: Mapping[str, str]) -> Address:
    found = _HOST.fullmatch(place)
    if found is None:
        raise _malformed(text, "ssh", "the host is missing" if not place.rpartition("@")[2] else "that is no host")
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port <= _LAST_PORT:
        raise _malformed(text, "ssh", f"port {port} is not within 1 to {_LAST_PORT}")
    return Address(text, "ssh", found["six"] or found["host"], found["user"] or "", port, options)


def _options(text: str, scheme: str, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in options.items():
        if name not in _OPTIONS[scheme]:
            raise _malformed(text, scheme, f"no option {name!r}", near_names(name, _OPTIONS[scheme]))
        if not value:
            raise _malformed(text, scheme, f"option {name!r} has no value")
    return options


def _malformed(text: str, scheme: str, problem: str, near: str = "") -> UsageError:
    return UsageError(f"device {text!r}: {problem}.{near} Its form is {FORMS[scheme]}")
