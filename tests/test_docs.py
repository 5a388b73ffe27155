"""docs/targets.md is what the benchmark `targets` writes: every pass and target of it, and nothing illegal."""

from __future__ import annotations

import re
from pathlib import Path

from onnxpress.tools.bench.assets import ASSETS
from onnxpress.tools.bench.targets import PASSES, TARGETS

_TEXT = (Path(__file__).resolve().parents[1] / "docs" / "targets.md").read_text(encoding="utf-8")


def test_every_network_pass_and_target_is_there() -> None:
    models = re.findall(r"^## (\w+)$", _TEXT, re.MULTILINE)
    assert models == [asset.model for asset in ASSETS if "ptq" in asset.benchmarks]
    assert _TEXT.count(f"| passes | {' | '.join(TARGETS)} |\n") == len(models)
    assert re.findall(r"^\| `([\w-]+)` \|", _TEXT, re.MULTILINE) == [*PASSES] * len(models)


def test_every_cell_has_its_numbers() -> None:
    rows = [line for line in _TEXT.splitlines() if line.startswith("| `")]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    assert len(cells) == len(rows) * len(TARGETS) and "ILLEGAL" not in _TEXT
    assert all(re.fullmatch(r"[+-]\d+\.\d\d, \d\.\d{3}(, \d+\.\d\dx)?, \d+ dB", cell) for cell in cells)
