"""The text of `--device`."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.devices.address import Address, parse
from onnxpress.targets.devices.device import open_device

_FORMS = (
    "A device is one of: ssh://[user@]host[:port][?python=PATH], adb://serial[?runner=PATH], "
    "qemu://SYSROOT[?python=PATH][&emulator=PROGRAM][&cpu=NAME]"
)
_SSH = "Its form is ssh://[user@]host[:port][?python=PATH]"
_ADB = "Its form is adb://serial[?runner=PATH]"


@pytest.mark.parametrize(
    ("text", "host", "user", "port", "options"),
    [
        ("ssh://pi@raspberry.local:2222", "raspberry.local", "pi", 2222, {}),
        ("ssh://board", "board", "", None, {}),
        ("ssh://me@corp@[fe80::1%eth0]:22", "fe80::1%eth0", "me@corp", 22, {}),
        ("ssh://pi@10.0.0.7/?python=~/v%20env/bin/python", "10.0.0.7", "pi", None, {"python": "~/v env/bin/python"}),
        ("adb://emulator-5554", "emulator-5554", "", None, {}),
        ("adb://192.168.1.5:5555?runner=/data/r", "192.168.1.5:5555", "", None, {"runner": "/data/r"}),
        ("qemu:///srv/arm%2064?emulator=qemu", "/srv/arm 64", "", None, {"emulator": "qemu"}),
    ],
)
def test_parts(text: str, host: str, user: str, port: int | None, options: dict[str, str]) -> None:
    assert parse(text) == Address(text, text.partition(":")[0], host, user, port, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raspberry", f"unknown device 'raspberry'. {_FORMS}"),
        ("", f"unknown device ''. {_FORMS}"),
        ("sssh://pi", f"unknown device 'sssh://pi'. Did you mean 'ssh'? {_FORMS}"),
        ("SSH:/pi", f"unknown device 'SSH:/pi'. {_FORMS}"),
        ("ssh://", f"device 'ssh://': the host is missing. {_SSH}"),
        ("ssh://pi@", f"device 'ssh://pi@': the host is missing. {_SSH}"),
        ("ssh://-oProxyCommand=x", f"device 'ssh://-oProxyCommand=x': that is no host. {_SSH}"),
        ("ssh://-l@host", f"device 'ssh://-l@host': that is no host. {_SSH}"),
        ("ssh://a b", f"device 'ssh://a b': that is no host. {_SSH}"),
        ("ssh://host:0", f"device 'ssh://host:0': port 0 is not within 1 to 65535. {_SSH}"),
        ("ssh://host:99999", f"device 'ssh://host:99999': port 99999 is not within 1 to 65535. {_SSH}"),
        ("ssh://h?pyton=x", f"device 'ssh://h?pyton=x': no option 'pyton'. Did you mean 'python'? {_SSH}"),
        ("ssh://h?runner=x", f"device 'ssh://h?runner=x': no option 'runner'. {_SSH}"),
        ("ssh://h?python=", f"device 'ssh://h?python=': option 'python' has no value. {_SSH}"),
        ("adb://", f"device 'adb://': the serial number is missing. {_ADB}"),
        ("adb://-s", f"device 'adb://-s': that is no serial number. {_ADB}"),
        (
            "qemu://",
            "device 'qemu://': the folder is missing. Its form is qemu://SYSROOT[?python=PATH][&emulator=PROGRAM][&cpu=NAME]",
        ),
    ],
)
def test_errors_name_the_forms(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_device(text)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_emulation_needs_an_emulator_and_a_python(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_device(f"qemu://{tmp_path}?emulator=no-such-qemu")
    assert str(caught.value) == (
        f"qemu://{tmp_path}?emulator=no-such-qemu: no program 'no-such-qemu' is installed here, which reaches such a "
        "device: install QEMU 8 or later (Debian 13: apt-get install qemu-user)"
    )
    with pytest.raises(UsageError) as caught:
        open_device(f"qemu://{tmp_path}?emulator=true")
    assert str(caught.value) == (
        f"qemu://{tmp_path}?emulator=true: no {tmp_path}/usr/bin/python3. Make the folder: python -m "
        "onnxpress.tools.bench arm64 --keep DIR"
    )
