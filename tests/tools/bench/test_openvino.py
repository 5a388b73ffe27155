"""The OpenVINO benchmark: a row for each model, of the target's own pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.tools.bench import assets
from onnxpress.tools.bench.__main__ import main


def test_a_row_is_measured(demo_asset: assets.Asset, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = tmp_path / "rows.json"
    assert main(["openvino", "--rounds", "3", "--limit", "50", "--json", str(found)]) == 0
    (row,) = json.loads(found.read_text())["rows"]
    assert (row["model"], row["images"]) == ("digits", 50)
    assert row["integer"] == row["products"] > 0
    assert abs(row["accuracy"] - row["accuracy_float"]) <= 4.0
    assert min(row["speedup"], row["latency_float_ms"], row["latency_ms"]) > 0


def test_an_unknown_model_is_named(demo_asset: assets.Asset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openvino", "resnot"]) == 2
    assert "no asset model starts with 'resnot'" in capsys.readouterr().err
