"""calibrate: the profile that it writes is a target, and what would be none is refused before anything is measured."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.calibration import measure
from onnxpress.targets.calibration.fit import Fit
from onnxpress.targets.calibration.machine import this_machine
from onnxpress.targets.calibration.measure import Measurement, Sample
from onnxpress.targets.profile_files import host_kind
from onnxpress.targets.schema import Profile
from onnxpress.tools import calibration
from onnxpress.tools.calibration import calibrate
from onnxpress.tools.cli import main
from onnxpress.tools.profiling import profile
from tests.tools.conftest import CommandLine


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A profile from the command line, and what that told."""
    path = tmp_path_factory.mktemp("calibrated") / "My Desk.toml"
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        patch.setenv("COLUMNS", "160")
        for name in ("CONV_CHAINS", "PRODUCT_CHAINS"):  # a few of each kind: how good the fit is, is not the question
            patch.setattr(measure, name, getattr(measure, name)[::8])
        assert main(["calibrate", "-o", str(path)]) == 0
    return path, told.getvalue()


def test_a_calibrated_profile_is_a_target(calibrated: tuple[Path, str], demo_files: Path) -> None:
    path, told = calibrated
    target = load_target(path)
    assert target.name == "my-desk" and target.profile.machine is not None
    assert target.is_here or this_machine().processor is None
    (found,) = profile(demo_files / "digits.onnx", target=target, rounds=10).profiles
    assert found.predicted_ms is not None and found.notes == ()
    assert re.search(rf"^target +my-desk, which extends {host_kind()}$", told, re.MULTILINE)
    assert re.search(r"^ Conv +\d+ +\d+ %", told, re.MULTILINE)
    assert told.endswith(f" s. Use it: --target {path}\n")


def test_a_profile_of_another_machine_says_so(calibrated: tuple[Path, str], demo_files: Path) -> None:
    text = calibrated[0].read_text()
    other = demo_files / "other.toml"
    other.write_text(
        re.sub(r'^processor = ".*"$', 'processor = "Difference Engine"', text, flags=re.MULTILINE), encoding="utf-8"
    )
    target = load_target(other)
    assert not target.is_here
    (found,) = profile(demo_files / "digits.onnx", target=target, rounds=5).profiles
    assert found.notes == ("measured on this machine, which is not Difference Engine, of my-desk",)


def test_calibration_needs_a_place_to_start_and_a_free_path(cli: CommandLine, folder: Path) -> None:
    ran = cli("calibrate", "-o", "digits.onnx")
    assert ran.status == 2 and ran.error == (
        "error: -o 'digits.onnx' exists. Give another path, or --force to replace it."
    )
    ran = cli("calibrate", "-o", "trt.toml", "--target", "tensorrt")
    assert ran.status == 2 and ran.error == (
        "error: calibrate: tensorrt has no roofline to start from. Give --target x86-vnni or mobile-cpu"
    )
    with pytest.raises(UsageError, match="unknown target 'desk'"):
        calibrate("x.toml", target="desk")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets that were measured: without a clock, and fitted to nothing."""
    measured = []

    def note(target: Target, runtime: object, progress: object) -> Measurement:
        measured.append(target.name)
        return Measurement((Sample("a", "Conv", 1.0, (), 0),), 0.0)

    def keep(described: Profile, measurement: Measurement) -> Fit:
        assert described.roofline is not None
        return Fit(described.roofline, (0.1,), measurement.samples)

    monkeypatch.setattr(calibration, "measure", note)
    monkeypatch.setattr(calibration, "fit", keep)
    return measured


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("desk", "calibrate: 'desk': targets are read from files that end in .toml. Name it 'desk.toml'"),
        ("desk.v2", "calibrate: 'desk.v2': targets are read from files that end in .toml. Name it 'desk.v2.toml'"),
        (
            "x86-vnni.toml",
            "calibrate: 'x86-vnni.toml': there is a target 'x86-vnni' already. Give the file another name",
        ),
        (
            "Host CPU.toml",
            "calibrate: 'Host CPU.toml': there is a target 'host-cpu' already. Give the file another name",
        ),
    ],
)
def test_a_file_that_no_target_can_be_is_refused_before_measuring(
    unmeasured: list[str], output: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        calibrate(output)
    assert str(caught.value) == message and unmeasured == []


def test_a_name_begins_with_a_letter_or_a_number(unmeasured: list[str], tmp_path: Path) -> None:
    path = tmp_path / "_desk_.toml"
    path.write_text(calibrate(path).text, encoding="utf-8")
    assert load_target(path).name == "desk_"


def test_this_machine_is_extended_by_its_kind(unmeasured: list[str], tmp_path: Path) -> None:
    for target in (None, "host-cpu"):
        assert calibrate(tmp_path / "desk.toml", target=target).base == host_kind()
    assert unmeasured == [host_kind()] * 2


def test_a_file_can_be_extended_from_another_folder(unmeasured: list[str], tmp_path: Path) -> None:
    (tmp_path / "phones").mkdir()
    base = tmp_path / "phones" / "phone.toml"
    base.write_text('extends = "mobile-cpu"\nname = "phone"\nchannel_multiple = 24\n', encoding="utf-8")
    (tmp_path / "desks").mkdir()
    path = tmp_path / "desks" / "desk.toml"
    found = calibrate(path, target=base)
    path.write_text(found.text, encoding="utf-8")
    assert (found.base, unmeasured) == ("../phones/phone.toml", ["phone"])
    assert load_target(path).profile.channel_multiple == 24


def test_a_plugins_target_cannot_be_extended(unmeasured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "load_target", lambda name: load_target("x86-vnni"))
    with pytest.raises(UsageError) as caught:
        calibrate("desk.toml", target="acme")
    assert unmeasured == [] and str(caught.value) == (
        "calibrate: --target acme: comes with a plugin, and a profile extends built-in targets and files. "
        "Give one of those, such as x86-vnni"
    )


def test_what_would_not_load_is_found_before_measuring(
    unmeasured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_name", lambda path: "No Name")
    with pytest.raises(UsageError, match=r"desk\.toml, line \d+: name = 'No Name': "):
        calibrate(tmp_path / "desk.toml")
    assert unmeasured == []


def test_a_runtime_without_times_by_node_is_not_measured(unmeasured: list[str]) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'onnxpress[litert]'")
    with pytest.raises(UsageError) as caught:
        calibrate("desk.toml", target="mobile-cpu-litert")
    assert unmeasured == []
    assert str(caught.value) == "calibrate: LiteRT with XNNPACK tells no times by node, which an estimate is fitted to"


def test_the_profile_in_use_is_not_replaced(cli: CommandLine, folder: Path) -> None:
    text = 'extends = "x86-vnni"\nname = "desk"\n'
    (folder / "desk.toml").write_text(text, encoding="utf-8")
    ran = cli("calibrate", "-o", "desk.toml", "--target", "desk.toml", "--force")
    assert ran.status == 2 and ran.error == "error: -o 'desk.toml': the same file as --target. Give another path."
    assert (folder / "desk.toml").read_text(encoding="utf-8") == text
