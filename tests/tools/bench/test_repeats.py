"""The benchmark of repeatability: profiles of one model beside a process that keeps a core busy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onnxpress.targets.runtimes.timing import Latency
from onnxpress.tools.bench import assets, repeats
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.profiling import Profile, Race, Times


def test_the_least_and_how_far_the_others_lie_above_it(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    each = iter([1.0, 1.5, 1.2, 1.1, 1.0, 1.3])

    def begin(*arguments: Any) -> subprocess.Popen[bytes]:
        busy.append(start(*arguments))
        return busy[-1]

    def measure(model: Path, *, rounds: int) -> Race:
        assert model.name == "digits.onnx" and rounds == 500
        assert [process.poll() for process in busy] == [None]  # it runs meanwhile
        times = Times.of(Latency((next(each),) * 3 + (2.0,) * 4))
        return Race((Profile("m", "t", "r", "1", 1, 1, times, 1.0, 0, 0, 0, 0, 0),))

    monkeypatch.setattr(subprocess, "Popen", begin)
    monkeypatch.setattr(repeats, "profile", measure)
    found = tmp_path / "rows.json"
    assert main(["repeats", "digits", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text(encoding="utf-8"))["rows"]
    assert (row["profiles"], row["undisturbed_ms"], row["median_ms"]) == (6, 1.0, 2.0)
    assert (row["apart_percent"], row["medians_apart_percent"]) == (pytest.approx(50), 0.0)
    assert [process.poll() is not None for process in busy] == [True]
