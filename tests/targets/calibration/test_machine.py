"""How machines are named, which of their cores are fast, and what cache a core has alone, on systems of every kind."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from onnxpress.targets.base import Target, load_target
from onnxpress.targets.calibration import machine
from onnxpress.targets.calibration.machine import Machine, fastest_cores, own_cache_kib, this_machine
from onnxpress.targets.schema import MachineTable

_X86 = """processor\t: 0
cpu family\t: 6
model\t\t: 207
model name\t: A Processor
stepping\t: 2

processor\t: 1
cpu family\t: 6
model\t\t: 207
model name\t: A Processor
stepping\t: 2
"""
_ARM = "".join(
    f"processor\t: {core}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
    for core, part in enumerate(("0xd05", "0xd05", "0xd0a"))
)


class _System:
    """A file system that describes cores."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> _System:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
        return self

    def core(self, number: int, *, siblings: str = "", kilohertz: int | None = None) -> _System:
        folder = f"sys/devices/system/cpu/cpu{number}"
        self.write(f"{folder}/topology/thread_siblings_list", siblings or str(number))
        if kilohertz is not None:
            self.write(f"{folder}/cpufreq/cpuinfo_max_freq", str(kilohertz))
        return self

    def cache(self, number: int, index: int, kind: str, size: str, shared: str) -> _System:
        folder = f"sys/devices/system/cpu/cpu{number}/cache/index{index}"
        for name, text in (("type", kind), ("size", size), ("shared_cpu_list", shared)):
            self.write(f"{folder}/{name}", text)
        return self


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _System:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    return _System(tmp_path)


def test_x86_says_its_name(system: _System) -> None:
    system.write("proc/cpuinfo", _X86)
    assert this_machine(system.root).processor == "A Processor (cpu family 6, model 207, stepping 2)"


def test_arm_is_told_by_its_cores_and_its_board(system: _System) -> None:
    system.write("proc/cpuinfo", _ARM).write("proc/device-tree/model", "A Phone Rev 2\0")
    assert this_machine(system.root).processor == (
        "implementer 0x41 part 0xd05 + implementer 0x41 part 0xd0a, A Phone Rev 2"
    )


def test_arm_cores_go_by_the_names_that_lscpu_knows(system: _System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.write("proc/cpuinfo", _ARM)
    monkeypatch.setattr(machine, "_ROOT", system.root)
    monkeypatch.setattr(machine, "_said", lambda *command: "BIOS Model name: none\nModel name:  Cortex-A55\n")
    assert this_machine(system.root).processor == (
        "Cortex-A55 (implementer 0x41 part 0xd05, implementer 0x41 part 0xd0a)"
    )


def test_macos_names_its_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(machine, "_said", lambda *command: "Apple M1" if command[0] == "sysctl" else "")
    assert this_machine().processor == "Apple M1"


def test_an_architecture_is_no_name(system: _System) -> None:
    assert this_machine(system.root).processor is None


@pytest.mark.parametrize(
    ("here", "is_here"),
    [
        (Machine("aarch64", "Cortex-A72"), True),
        (Machine("x86_64", "Cortex-A72"), False),
        (Machine("aarch64", "Neoverse-N1"), False),
        (Machine("aarch64", None), False),
    ],
)
def test_a_target_is_here_by_architecture_and_name(
    here: Machine, is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = MachineTable(architecture="aarch64", processor="Cortex-A72", runtime_version="onnxruntime-cpu 1.31.0")
    target = Target(load_target("mobile-cpu").profile.model_copy(update={"machine": table}))
    monkeypatch.setattr("onnxpress.targets.base.this_machine", lambda: here)
    assert target.is_here is is_here


def test_fast_cores_come_first_whatever_their_numbers(system: _System) -> None:
    for core in range(4):  # two fast ones of two threads each
        system.core(core, siblings="0-1" if core < 2 else "2-3", kilohertz=5_000_000)
    for core in (4, 5):
        system.core(core, kilohertz=3_000_000)
    assert fastest_cores(range(6), 1, system.root) == [2]
    assert fastest_cores(range(6), 2, system.root) == [2, 0]
    assert fastest_cores(range(6), 3, system.root) == [2, 0, 5]
    assert fastest_cores([3, 4], 1, system.root) == [3]  # its sibling is not to be had
    assert sorted(fastest_cores(range(6), 9, system.root)) == [*range(6)]


def test_cores_that_are_alike_are_taken_from_the_end(system: _System) -> None:
    for core in range(4):
        system.core(core)
    assert fastest_cores(range(4), 2, system.root) == [3, 2]


def test_the_cache_is_the_largest_that_a_core_has_alone(system: _System) -> None:
    system.core(2, siblings="2-3")
    system.cache(2, 0, "Data", "48K", "2-3").cache(2, 1, "Instruction", "9M", "2-3")
    system.cache(2, 2, "Unified", "2M", "2-3").cache(2, 3, "Unified", "32M", "0-7")
    assert own_cache_kib(2, system.root) == 2048
    system.core(5).cache(5, 0, "Data", "32K", "5").cache(5, 2, "Unified", "4096K", "4-7")
    assert own_cache_kib(5, system.root) == 32
    assert own_cache_kib(6, system.root) is None
