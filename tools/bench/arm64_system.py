"""An Arm64 Linux in a folder, and an emulator to run it: just enough for Python with onnxruntime.

Debian's packages are fetched by apt-get, with an index of its own in that folder, from the mirror that this machine
uses; nothing is installed, and no root is needed. The wheels are pip's: the same version of onnxruntime as here.

    FOLDER/packages    what was fetched       FOLDER/emulator    QEMU, unless a `qemu-aarch64` of 8 or later is on PATH
    FOLDER/sysroot     Python, numpy, onnxruntime, and the libraries that they need
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxpress.ir.errors import UsageError

__all__ = ["make_system"]

_SUITE = "trixie"  # its QEMU 10 runs onnxruntime 1.32, which crashes on the 7.2 of the release before
_PYTHON = "3.13"  # that suite's
_PACKAGES = (
    f"python{_PYTHON}-minimal", f"libpython{_PYTHON}-minimal", f"libpython{_PYTHON}-stdlib", "libc6", "zlib1g",
    "libexpat1", "libstdc++6", "libgcc-s1", "libssl3t64", "libffi8", "libbz2-1.0", "liblzma5", "libuuid1",
)  # fmt: skip
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_EMULATOR = "qemu-aarch64"
_OLDEST_EMULATOR = 8


def make_system(folder: Path, tell: Callable[[str], None]) -> str:
    """Return the text of the device that emulates Arm64, made in `folder` where it is not there yet (200 MB).

    Raises:
        UsageError: this is no Debian, or something cannot be fetched.
    """
    folder = folder.resolve()
    emulator = shutil.which(_EMULATOR)
    if emulator is None or not _is_new(emulator):
        emulator = str(folder / "emulator" / "usr" / "bin" / _EMULATOR)
        if not Path(emulator).exists():
            tell("arm64: fetching QEMU")
            _unpack(_fetch(folder / "packages", _host_architecture(), ["qemu-user"]), folder / "emulator")
    sysroot = folder / "sysroot"
    if not (sysroot / "usr" / "bin" / "python3").exists():
        tell("arm64: fetching Python, numpy and onnxruntime")
        _make_sysroot(sysroot, folder / "packages")
    return f"qemu://{sysroot}?emulator={emulator}"


def _is_new(emulator: str) -> bool:
    found = re.search(r"version (\d+)\.", _run("ask the emulator", [emulator, "--version"]))
    return found is not None and int(found[1]) >= _OLDEST_EMULATOR


def _host_architecture() -> str:
    return _run("ask for the architecture", ["dpkg", "--print-architecture"]).strip()


def _make_sysroot(sysroot: Path, packages: Path) -> None:
    partial = sysroot.with_name("sysroot.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _unpack(_fetch(packages, "arm64", _PACKAGES), partial)
    if not (partial / "lib").exists():  # a package makes the link as it is installed
        (partial / "lib").symlink_to("usr/lib")
    libraries = partial / "usr" / "lib" / "python3" / "dist-packages"
    libraries.mkdir(parents=True, exist_ok=True)
    for wheel in _fetch_wheels(packages / "wheels"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(libraries)
    (partial / "usr" / "bin" / "python3").symlink_to(f"python{_PYTHON}")
    partial.rename(sysroot)


def _fetch(folder: Path, architecture: str, names: Sequence[str]) -> list[Path]:
    """Return files of packages, without those that they depend on."""
    place = folder / architecture
    for name in ("lists/partial", "cache/archives/partial", "files"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {_SUITE} main\n", encoding="utf-8")
    settings = {
        "APT::Architecture": architecture, "APT::Architectures::": architecture, "Dir::State::status": "/dev/null",
        "Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::Lists": place / "lists", "Dir::Cache": place / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _run("read the index of packages", [*apt, "update"])
    _run(f"fetch {', '.join(names)}", [*apt, "download", *names], place / "files")
    return [next((place / "files").glob(f"{name}_*.deb")) for name in names]


def _mirror() -> str:
    """Return where this machine's own packages come from."""
    words = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    said = _run("ask apt-get for its mirror", ["apt-get", *words])
    mirrors = [line for line in said.split() if "security" not in line]
    if not mirrors:
        raise UsageError("arm64: apt-get knows no mirror of Debian: run apt-get update, on Debian")
    return mirrors[0]


def _fetch_wheels(folder: Path) -> list[Path]:
    import onnxruntime

    words = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *words, "--only-binary=:all:"]
    _run(
        "fetch wheels of Arm64",
        [*command, "--python-version", _PYTHON, f"onnxruntime=={onnxruntime.__version__}", "numpy"],
    )
    return sorted(folder.glob("*.whl"))


def _unpack(packages: Sequence[Path], folder: Path) -> None:
    for package in packages:
        _run(f"unpack {package.name}", ["dpkg-deb", "-x", str(package), str(folder)])


def _run(what: str, command: Sequence[str], folder: Path | None = None) -> str:
    """Return what a program prints.

    Raises:
        UsageError: it is not there, or it fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"arm64: cannot {what}: {error}. Emulation is set up on Debian") from error
    if done.returncode:
        raise UsageError(f"arm64: cannot {what}: {' '.join(done.stderr.split())[-300:]}")
    return done.stdout
