"""What machine this is, as far as its system tells: its name, its fastest cores, and the cache that a core has alone.

On Linux an x86 processor says its name in /proc/cpuinfo. Arm's cores have numbers there, and lscpu knows their names;
since many boards share a core, the board's name goes with them.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Machine", "fastest_cores", "own_cache_kib", "this_machine", "usable_cores"]

_ROOT = Path("/")
_CORES = "sys/devices/system/cpu"
_KIB = {"K": 1, "M": 1024}
_NUMBERS = ("cpu family", "model", "stepping")  # virtual machines hide the name, and the numbers tell kinds apart
_ARM_NUMBERS = {"CPU implementer": "implementer", "CPU part": "part"}
_BOARDS = ("proc/device-tree/model", "sys/class/dmi/id/product_name")
_SECONDS = 5.0  # that a command may take to name the processor


@dataclasses.dataclass(frozen=True)
class Machine:
    """processor: its name, with what else tells its kind; None where the system does not name it. cache_kib: of the
    largest cache that the fastest core has alone."""

    architecture: str
    processor: str | None
    cache_kib: int | None = None

    @property
    def title(self) -> str:
        """What to call it, named or not."""
        return self.processor or f"an {self.architecture} processor without a name"


def this_machine(root: Path = _ROOT) -> Machine:
    """Return the machine at hand. root: of the file system that describes it."""
    cores = fastest_cores(usable_cores(), 1, root)
    cache = own_cache_kib(cores[0], root) if cores else None
    return Machine(platform.machine().lower(), _processor(root), cache)


def usable_cores() -> list[int]:
    """Return the cores that the calling thread may run on; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def fastest_cores(cores: Iterable[int], count: int, root: Path = _ROOT) -> list[int]:
    """Return so many of `cores`, or all: those of the highest frequency, no two of them one core's threads if possible.

    Among equals those of high numbers come first: systems do their own work on the first ones.
    """
    known = sorted(cores)

    def order(core: int) -> tuple[int, int, int]:
        before = [other for other in _siblings(core, root) if other in known and other < core]
        return len(before), -_number(root / _CORES / f"cpu{core}/cpufreq/cpuinfo_max_freq"), -core

    return sorted(known, key=order)[:count]


def own_cache_kib(core: int, root: Path = _ROOT) -> int | None:
    """Return the KiB of the largest cache that no other core reads data through; None where none is told."""
    mine = _siblings(core, root)
    sizes = []
    for folder in sorted((root / _CORES / f"cpu{core}/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM])", _read(folder / "size"))
        shared = set(_listed(_read(folder / "shared_cpu_list")))
        if size is not None and shared and shared <= mine and _read(folder / "type") != "Instruction":
            sizes.append(int(size[1]) * _KIB[size[2]])
    return max(sizes, default=None)


def _siblings(core: int, root: Path) -> set[int]:
    """Return the threads of the core that `core` is one of, itself among them."""
    return {core, *_listed(_read(root / _CORES / f"cpu{core}/topology/thread_siblings_list"))}


def _listed(text: str) -> Iterator[int]:
    """Yield the numbers of a list as Linux writes it, such as `0-3,8`."""
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        yield from range(int(first), int(last or first) + 1)


# The name.


def _processor(root: Path) -> str | None:
    system = platform.system()
    if system == "Darwin":
        return _said("sysctl", "-n", "machdep.cpu.brand_string") or None
    if system != "Linux":
        return platform.processor() or None
    fields = _fields(_read(root / "proc/cpuinfo"))
    if "model name" in fields and "CPU implementer" not in fields:
        numbers = [f"{key} {fields[key][-1]}" for key in _NUMBERS if key in fields]
        return _with(fields["model name"][-1], numbers)
    return _arm_processor(fields, root)


def _arm_processor(fields: dict[str, list[str]], root: Path) -> str | None:
    """Return the names of the cores, and of the board that they are on."""
    columns = [[f"{short} {each}" for each in fields.get(key, [])] for key, short in _ARM_NUMBERS.items()]
    kinds = list(dict.fromkeys(" ".join(each) for each in zip(*columns, strict=False)))
    names = re.findall(r"^Model name:\s*(\S.*?)\s*$", _said("lscpu") if root == _ROOT else "", re.MULTILINE)
    boards = [*filter(None, (_read(root / path) for path in _BOARDS)), *fields.get("Hardware", [])]
    cores = _with(" + ".join(names), kinds) if names else " + ".join(kinds)
    return ", ".join(filter(None, (cores, *boards[:1]))) or None


def _with(name: str, numbers: list[str]) -> str:
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _fields(text: str) -> dict[str, list[str]]:
    """Return the values of each key in /proc/cpuinfo, which repeats them for each core."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([^:\n]+?)\s*:[ \t]*(\S.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value.strip())
    return found


@functools.cache
def _said(*command: str) -> str:
    """Return what a command writes; "" where there is none."""
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout.decode("utf-8", "replace").strip()


def _number(path: Path) -> int:
    text = _read(path)
    return int(text) if text.isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
