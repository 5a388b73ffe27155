"""The benchmark from end to end, on a folder of assets that holds the demo's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.tools.bench import assets, ptq
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.bench.child import COMPILERS


def test_rows_name_the_nodes_that_miss_the_integer_kernels(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptq, "COMPILERS", {"onnxpress": COMPILERS["onnxpress"]})
    written = tmp_path / "rows.json"
    assert main(["ptq", "dig", "--rounds", "5", "--limit", "32", "--json", str(written)]) == 0
    rows = {row["compiler"]: row for row in json.loads(written.read_text(encoding="utf-8"))["rows"]}
    assert list(rows) == ["float32", "onnxpress"]
    original, ours = rows["float32"], rows["onnxpress"]
    assert original["cpu_seconds"] is None and original["agreement"] == 100.0 and original["bytes_ratio"] == 1.0
    assert ours["bytes_ratio"] < 0.5 and ours["agreement"] > 90 and ours["macs"] >= original["macs"]
    for row in rows.values():
        assert len(row["unfused_nodes"]) == row["unfused"]
        assert len(row["left_float_nodes"]) == row["left_float"]
    assert original["left_float"] > 0 and all(original["left_float_nodes"])
    assert ours["unfused_nodes"] == [] and ours["fused"] > 0


def test_the_command_says_what_is_wrong_with_its_assets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ONNXPRESS_ASSETS", raising=False)
    assert main(["ptq", "lenet5"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the benchmark needs trained models: set ONNXPRESS_ASSETS to the folder of the assets"
    )
    assert main(["ptq", "lenet6"]) == 2
    assert capsys.readouterr().err.startswith("error: no asset model starts with 'lenet6'. Did you mean 'lenet")
