"""The benchmark of targets: a row for each pass and target, run by the target's runtime, and the page made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.passes.pipeline import parse
from onnxpress.targets.base import target_names
from onnxpress.tools.bench import assets, targets
from onnxpress.tools.bench.__main__ import main


def test_passes_and_targets_are_known() -> None:
    assert set(targets.TARGETS) <= set(target_names())
    assert all(parse(text)[0].name == name for name, text in targets.PASSES.items() if text)


def test_rows_have_all_numbers_or_the_reason(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(targets.PASSES, "low-rank", "low-rank{macs=0.001}")
    rows, page = tmp_path / "rows.json", tmp_path / "targets.md"
    arguments = ["targets", "--by", "cleanup,quantize-int8,low-rank", "--targets", "x86-vnni,tensorrt"]
    arguments += ["--rounds", "5", "--limit", "32", "--json", str(rows), "--markdown", str(page)]
    assert main(arguments) == 0
    found = json.loads(rows.read_text())["rows"]
    assert [(row["target"], row["compiler"]) for row in found] == [
        (target, name) for target in ("x86-vnni", "tensorrt") for name in ("cleanup", "quantize-int8", "low-rank")
    ]
    clean, int8, impossible, _, engine, _ = found
    assert clean["drop"] == 0 and clean["illegal"] == 0 and clean["sqnr_db"] > 90 and clean["speed"] > 0
    assert int8["bytes_ratio"] < 0.4 and int8["sqnr_db"] > 20
    assert impossible["accuracy"] is None and impossible["status"].startswith("low-rank: ")
    assert engine["runtime"] == "onnxruntime-cpu" and engine["speed"] is None and engine["illegal"] == 0
    text = page.read_text(encoding="utf-8")
    assert "| passes | x86-vnni | tensorrt |\n|---|---|---|\n| `cleanup` | +0.00, " in text
    assert "## digits" in text and impossible["status"] in text
    assert "digits, quantize-int8 for tensorrt ..." in capsys.readouterr().err


def test_a_target_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "lenet5", "--targets", "tensort"]) == 2
    assert capsys.readouterr().err.startswith("error: --targets tensort: 'tensort' is no target. Did you mean 'tensor")
