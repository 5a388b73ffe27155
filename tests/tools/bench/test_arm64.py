"""The Arm64 benchmark with this machine in the place of the emulated one, and how setting it up may fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.tools.bench import arm64, arm64_system, assets
from onnxpress.tools.bench.__main__ import main
from tests.targets.devices.conftest import LocalDevice


def test_equal_machines_give_equal_bits(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm64, "open_device", lambda _: LocalDevice(tmp_path))
    found = tmp_path / "rows.json"
    assert main(["arm64", "digits", "--device", "any", "--limit", "20", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text())["rows"]
    assert (row["model"], row["images"]) == ("digits", 20) and row["compiler"].startswith("mobile-cpu on ")
    assert (row["same_class"], row["equal"]) == (100, 100) and row["arm_x86_db"] >= 200
    assert row["arm_written_db"] == row["x86_written_db"] > 20
    assert row["accuracy_arm"] == row["accuracy_x86"] >= row["accuracy_float"] - 10


def test_unknown_targets_are_named(demo_asset: assets.Asset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["arm64", "--device", "any", "--targets", "mobile"]) == 2
    assert "--targets mobile: 'mobile' is no target. Did you mean 'mobile-cpu'" in capsys.readouterr().err


def test_it_is_set_up_on_debian_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"^arm64: cannot ask for the architecture: .* Emulation is set up on Debian$"):
        arm64_system.make_system(tmp_path, lambda _: None)


def test_what_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in {"dpkg": "echo amd64", "apt-get": "echo 'E: no network' >&2; exit 100"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        arm64_system.make_system(tmp_path, lambda _: None)
    assert str(caught.value) == "arm64: cannot ask apt-get for its mirror: E: no network"


@pytest.mark.parametrize(("version", "new"), [("7.2.22", False), ("8.0.0", True), ("10.0.13", True)])
def test_old_emulators_are_not_used(tmp_path: Path, version: str, new: bool) -> None:
    emulator = tmp_path / "qemu-aarch64"
    emulator.write_text(f"#!/bin/sh\necho 'qemu-aarch64 version {version} (Debian 1:{version})'\n")
    emulator.chmod(0o755)
    assert arm64_system._is_new(str(emulator)) is new
