"""What machine this is, as far as its system tells."""

from __future__ import annotations

import dataclasses
import platform
import re
from pathlib import Path

__all__ = ["Machine", "this_machine"]

_CPU_INFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_KIB = {"K": 1, "M": 1024}


@dataclasses.dataclass(frozen=True)
class Machine:
    """processor: its name, or what else tells its kind. cache_kib: of a core's own largest cache."""

    architecture: str
    processor: str
    cache_kib: int | None = None


def this_machine() -> Machine:
    """Return the machine at hand."""
    architecture = platform.machine().lower()
    return Machine(architecture, _processor() or platform.processor() or architecture, _own_cache_kib())


def _processor() -> str | None:
    try:
        text = _CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = dict(
        re.findall(r"^(model name|Hardware|vendor_id|cpu family|model|stepping)\s*:\s*(.+)$", text, re.MULTILINE)
    )
    name = fields.get("model name") or fields.get("Hardware")
    # Virtual machines hide the name, and the numbers tell kinds apart.
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields]
    return None if name is None else f"{name} ({', '.join(numbers)})" if numbers else name


def _own_cache_kib() -> int | None:
    found = re.fullmatch(r"(\d+)([KM])", _read(_CACHES / "index2" / "size"))
    return None if found is None else int(found[1]) * _KIB[found[2]]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
