"""What tests of devices share: a device that is this machine, and an sshd on loopback."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.devices.conversation import Heard
from onnxpress.targets.devices.python_device import PROGRAM, PythonDevice

_LONGEST_WAIT_SECONDS = 30.0  # on a busy machine; every wait ends as soon as it can


class LocalDevice(PythonDevice):
    """This machine, reached by starting its Python."""

    def __init__(self, folder: Path) -> None:
        """folder: where temporary files go."""
        super().__init__("local")
        self.folder = folder

    def _command(self) -> Sequence[str]:
        return ["env", f"TMPDIR={self.folder}", sys.executable, "-u", "-c", PROGRAM]

    def _not_started(self, heard: Heard) -> UsageError:
        return UsageError(f"{heard.status}: {heard.last_words}")


@pytest.fixture
def local(tmp_path: Path) -> LocalDevice:
    folder = tmp_path / "device"
    folder.mkdir()
    return LocalDevice(folder)


class Sshd:
    """An sshd on loopback.

    text: the device's. folder: where temporary files of its sessions go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.folder = folder / "device"
        self.folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.text = f"ssh://{getpass.getuser()}@127.0.0.1:{self._port}?python={self.python()}"

    def python(self, *arguments: str, redirect: str = "") -> Path:
        """Return a program that starts this Python with more arguments; `redirect` is shell text behind the command."""
        path = self._folder / f"python{len(list(self._folder.glob('python*')))}"
        path.write_text(f'#!/bin/bash\nexec {shlex.join([sys.executable, *arguments])} "$@" {redirect}\n')
        path.chmod(0o755)
        return path

    def with_python(self, path: Path) -> str:
        """Return the device's text with another Python."""
        return f"{self.text.partition('?')[0]}?python={path}"

    def make_client(self) -> None:
        """Write the keys, and an `ssh` for PATH that knows of them and of no configuration of the user."""
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(command, check=True, capture_output=True)
        settings = self._folder / "client_config"
        settings.write_text(
            f"IdentityFile {self._folder / 'client'}\nIdentitiesOnly yes\nStrictHostKeyChecking accept-new\n"
            f"UserKnownHostsFile {self._folder / 'known_hosts'}\nGlobalKnownHostsFile none\n"
        )
        (self._folder / "bin").mkdir()
        wrapper = self._folder / "bin" / "ssh"
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {settings} "$@"\n')
        wrapper.chmod(0o755)

    @property
    def path(self) -> str:
        """PATH with the wrapped ssh in front."""
        return f"{self._folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def start(self, program: str) -> None:
        options = {
            "ListenAddress": "127.0.0.1", "HostKey": self._folder / "host", "PidFile": "none", "StrictModes": "no",
            "AuthorizedKeysFile": self._folder / "client.pub", "PasswordAuthentication": "no", "PrintMotd": "no",
            "KbdInteractiveAuthentication": "no", "PermitRootLogin": "prohibit-password", "UsePAM": "no",
            "SetEnv": f"TMPDIR={self.folder}",
        }  # fmt: skip
        words = [f"-o{name}={value}" for name, value in options.items()]
        self._log = (self._folder / "log").open("w+")
        command = [program, "-D", "-e", "-f", "/dev/null", "-p", str(self._port), *words]
        self._server = subprocess.Popen(command, stderr=self._log)
        wait_for(self._listens)

    def _listens(self) -> bool:
        if self._server.poll() is not None:
            self._log.seek(0)
            pytest.skip(f"sshd does not start here: {self._log.read().strip()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def drop_connections(self) -> None:
        """Kill what serves the connections, as if they were lost; the programs that run for them go on."""
        for process in _descendants(self._server.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/comm").read_text().startswith("sshd"):
                    os.kill(process, 9)

    def stop(self) -> None:
        self.drop_connections()
        self._server.kill()
        self._server.wait()
        self._log.close()


def _descendants(process: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            yield from _descendants(int(child))
            yield int(child)


def wait_for(condition: object) -> None:
    """Wait until the callable `condition` says yes."""
    assert callable(condition)
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def sshd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    program = shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd (Debian: apt-get install openssh-client openssh-server)")
    if os.getuid() == 0:  # sshd asks for it, and only the start of the system's own makes it
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
    server = Sshd(tmp_path_factory.mktemp("sshd"))
    server.make_client()
    server.start(program)
    yield server
    server.stop()


@pytest.fixture
def sshd(sshd_server: Sshd, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """The server, with its client on PATH; nothing lies in its temporary folder."""
    monkeypatch.setenv("PATH", sshd_server.path)
    assert list(sshd_server.folder.iterdir()) == []
    return sshd_server
