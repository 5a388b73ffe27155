"""profile --device, on a device that is this machine: what is told of where, and what a note says of the estimate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.devices.base import DeviceRun, Machine
from onnxpress.targets.profile_files import host_kind
from onnxpress.targets.runtimes.base import NodeTime
from onnxpress.targets.schema import MachineTable
from onnxpress.tools import device_profiling, profiling
from onnxpress.tools.device_profiling import profile_on_device
from onnxpress.tools.report.profile_page import profile_page
from onnxpress.tools.report.trace import trace_events
from tests.support import text_model
from tests.targets.devices.conftest import LocalDevice
from tests.tools.conftest import CommandLine

_HERE = "ssh://here"


class _Known(LocalDevice):
    """This machine, which says of itself what `machine` is, and keeps what it was asked in `asked`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.machine: Machine | None = None
        self.names_nodes = True
        self.asked: dict[str, Any] = {}

    def run(self, *arguments: Any, **options: Any) -> DeviceRun:
        self.asked = options
        found = super().run(*arguments, **options)
        models = found.models
        if not self.names_nodes:
            models = {name: _without_origins(model) for name, model in models.items()}
        return DeviceRun(models, self.machine or found.machine, found.peak_rss_bytes)


def _without_origins(model: Any) -> Any:
    steps = tuple(NodeTime(step.name, step.kind, step.milliseconds) for step in model.node_times)
    return type(model)(model.latency, model.load_seconds, steps)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Known:
    (tmp_path / "device").mkdir()
    there = _Known(tmp_path / "device")
    monkeypatch.setattr(device_profiling, "open_device", lambda text: {_HERE: there}[text])
    monkeypatch.setattr(profiling, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(profiling, "STEP_SECONDS", 0.0)
    return there


def test_a_profile_says_where_it_was_made(device: _Known, demo_files: Path) -> None:
    (found,) = profile_on_device(demo_files / "digits.onnx", device=_HERE, rounds=10).profiles
    assert (found.device, found.runtime, found.version) == (_HERE, "onnxruntime-cpu", onnxruntime.__version__)
    assert found.target == "host-cpu" and found.batch == 1 and found.threads == 1
    assert found.times.rounds == 10 and found.times.cpu_median is not None
    assert found.create_ms is not None and found.create_ms > 0 and found.memory_bytes > 1 << 20
    assert found.params == 112682 and found.predicted_ms is not None
    steps = {step.name: step for step in found.steps}
    assert steps["block_2_conv"].fused == ("block_2_norm", "block_add", "block_relu")
    assert sum(step.macs or 0 for step in found.steps) == found.macs
    told, *rest = found.notes
    assert re.fullmatch(r"measured on \S.*, (Linux|Darwin) \S+, (any of|cores?) .*\d( cores)?", told)
    assert rest == []  # the estimate of host-cpu is of such a machine
    label = trace_events([found])["traceEvents"][0]["args"]["name"]
    assert label == f"{demo_files / 'digits.onnx'} in onnxruntime-cpu on {_HERE}"
    assert found.to_json()["device"] == _HERE


def test_the_method_is_that_of_a_profile_here(
    device: _Known, demo_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "LEAST_SECONDS", 0.25)
    monkeypatch.setattr(profiling, "STEP_SECONDS", 0.125)
    profile_on_device(demo_files / "digits.onnx", device=_HERE, rounds=300, threads=2)
    assert device.asked == {
        "rounds": 300, "warmup": profiling.WARMUP_ROUNDS, "threads": 2, "min_seconds": 0.25,
        "max_seconds": profiling.SECONDS, "node_rounds": 100, "node_seconds": 0.125, "timeout_seconds": 600.0,
    }  # fmt: skip


def test_each_model_has_its_own_feeds(device: _Known) -> None:
    one = text_model("""<ir_version: 8, opset_import: ["": 17]>
        first (float[2,3] x) => (float[2,3] y) { [neg] y = Neg (x) }""")
    two = text_model("""<ir_version: 8, opset_import: ["": 17]>
        second (float[5,3] x, float[5,3] z) => (float[5,3] y) { [add] y = Add (x, z) }""")
    race = profile_on_device(one, two, device=_HERE, rounds=5)
    assert [(found.model, found.batch) for found in race.profiles] == [("first", 2), ("second", 5)]
    assert race.speedup is not None and race.speedup > 0


def test_sizes_are_those_that_were_run(device: _Known) -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,S,4] x) => (float[N,S,4] y)
        <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}> { [product] y = MatMul (x, w) }""")
    (found,) = profile_on_device(model, device=_HERE, data={"x": np.ones((1, 7, 4), np.float32)}, rounds=5).profiles
    assert found.macs == 7 * 4 * 4 and found.steps[0].moved_bytes == 4 * (7 * 4 + 4 * 4 + 7 * 4)


@pytest.mark.parametrize(
    ("architecture", "target", "note"),
    [
        ("aarch64", "mobile-cpu", None),
        ("x86_64", "x86-vnni", None),
        ("x86_64", "mobile-cpu", "the prediction is of what mobile-cpu describes, which the device is not known to be"),
        ("riscv64", "host-cpu", "the prediction is of what host-cpu describes, which the device is not known to be"),
        ("aarch64", "openvino", "openvino has no cost estimate: nothing is predicted"),
        ("aarch64", "mobile-cpu-litert", "the prediction is of litert, the measurement of onnxruntime-cpu"),
    ],
)
def test_a_note_says_where_the_estimate_is_of_another_machine(
    device: _Known, demo_files: Path, architecture: str, target: str, note: str | None
) -> None:
    device.machine = Machine("Cortex-A76", "Pi 5", architecture, 4, (2, 3), "Linux 6.6", "1.20")
    (found,) = profile_on_device(demo_files / "digits.onnx", device=_HERE, target=target, rounds=5).profiles
    measured = "measured on Cortex-A76, Pi 5, Linux 6.6, cores 2, 3 of 4"
    assert found.notes == (measured, *([note] if note else []))
    assert found.version == "1.20"


@pytest.mark.parametrize(
    ("cpu", "told"),
    [
        ("Cortex-A76", ()),
        (
            "Cortex-A55",
            ("the prediction is of Cortex-A76 (part 0xd0b), of pi, which the device is not known to be",),
        ),
        ("", ("the prediction is of Cortex-A76 (part 0xd0b), of pi, which the device is not known to be",)),
    ],
)
def test_a_calibrated_profile_is_of_its_own_machine(
    device: _Known, demo_files: Path, cpu: str, told: tuple[str, ...]
) -> None:
    base = load_target("mobile-cpu").profile
    machine = MachineTable(
        processor="Cortex-A76 (part 0xd0b)", architecture="aarch64", runtime_version="onnxruntime-cpu 1.20"
    )
    target = Target(base.model_copy(update={"name": "pi", "machine": machine}))
    device.machine = Machine(cpu, "", "aarch64", 1)
    (found,) = profile_on_device(demo_files / "digits.onnx", device=_HERE, target=target, rounds=5).profiles
    assert found.notes == (f"measured on {cpu + ', ' if cpu else ''}1 core", *told)


def test_a_device_that_tells_little(device: _Known, demo_files: Path) -> None:
    device.machine, device.names_nodes = Machine(), False
    (found,) = profile_on_device(demo_files / "digits.onnx", device=_HERE, target=host_kind(), rounds=5).profiles
    assert found.version == "unknown"
    assert found.notes == (
        f"measured on {_HERE}",
        f"the prediction is of what {host_kind()} describes, which the device is not known to be",
        "the device does not say which nodes its steps compute: what each computes and moves is not known",
    )


def test_no_model_is_refused(device: _Known) -> None:
    with pytest.raises(UsageError, match=r"^profile: there is no model to measure\. Give one at least$"):
        profile_on_device(device=_HERE)
    assert device.asked == {}


def test_the_command_measures_there(cli: CommandLine, folder: Path, device: _Known) -> None:
    ran = cli("profile", "digits.onnx", "--device", _HERE, "--timeout", 77, "--runs", 5, "--json", "-")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert (found["device"], found["runtime"]) == (_HERE, "onnxruntime-cpu")
    assert re.search(rf"^runtime +onnxruntime-cpu {onnxruntime.__version__}, 1 thread, ", ran.err, re.MULTILINE)
    assert re.search(rf"^device +{_HERE}$", ran.err, re.MULTILINE)
    assert device.asked["timeout_seconds"] == 77
    assert cli("profile", "digits.onnx", "--device", _HERE, "--runs", 5).status == 0
    assert device.asked["timeout_seconds"] == 600


def test_time_is_up(cli: CommandLine, folder: Path, device: _Known, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(profiling, "SECONDS", 60.0)
    ran = cli("profile", "digits.onnx", "--device", _HERE, "--timeout", 3)
    assert ran.status == 1
    assert re.match(r"error: local: not done after 3 s, while .*\. Give it more time, or fewer rounds$", ran.error)


def test_a_timeout_without_a_device_is_refused(cli: CommandLine, folder: Path) -> None:
    ran = cli("profile", "digits.onnx", "--timeout", 5)
    assert ran.status == 2
    assert ran.error == "error: --timeout: it bounds what --device does. Give --device, or leave it out."


def test_a_page_says_where_it_was_measured(device: _Known, demo_files: Path) -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install 'onnxpress[report]'")
    race = profile_on_device(demo_files / "digits.onnx", device=_HERE, rounds=5)
    assert f"onnxruntime-cpu on {_HERE}, version " in profile_page(race.profiles, None)
