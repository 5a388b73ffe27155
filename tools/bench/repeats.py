"""How well a profile repeats: the same model profiled again and again, beside a process that keeps a core busy."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator

from onnxpress.tools.bench.assets import Asset, model_path
from onnxpress.tools.profiling import profile

__all__ = ["HEADINGS", "Row", "run"]

HEADINGS = {
    "profiles": "profiles", "undisturbed_ms": "undisturbed ms", "apart_percent": "apart %", "median_ms": "median ms",
    "medians_apart_percent": "medians apart %",
}  # fmt: skip

_PROFILES = 6


@dataclasses.dataclass(frozen=True)
class Row:
    """One model. Times: the least of its profiles. apart: by how much the largest lies above it, percent."""

    model: str
    profiles: int
    undisturbed_ms: float
    apart_percent: float
    median_ms: float
    medians_apart_percent: float


def run(assets: list[Asset], *, rounds: int = 500, tell: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Return a row for each asset."""
    rows = []
    with _busy():
        for asset in assets:
            tell(f"{asset.model} ...")
            times = [profile(model_path(asset), rounds=rounds).profiles[0].times for _ in range(_PROFILES)]
            figures, medians = [each.undisturbed for each in times], [each.median for each in times]
            rows.append(Row(asset.model, _PROFILES, min(figures), _apart(figures), min(medians), _apart(medians)))
    return rows


def _apart(times: list[float]) -> float:
    return 100 * (max(times) / min(times) - 1)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()
