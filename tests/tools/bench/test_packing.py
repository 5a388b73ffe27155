"""The benchmark of the container, on a folder of assets that holds the demo's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.tools.bench import assets
from onnxpress.tools.bench.__main__ import main


def test_rows_are_measured(demo_asset: assets.Asset, tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    assert main(["pack", "dig", "--json", str(written)]) == 0
    (row,) = json.loads(written.read_text(encoding="utf-8"))["rows"]
    assert row["model"] == "digits" and row["packed_bytes"] < 0.95 * row["xz_bytes"] < row["size_bytes"]
    assert row["ratio"] == row["packed_bytes"] / row["size_bytes"]
    assert min(row[key] for key in ("pack_mb_s", "unpack_mb_s", "open_seconds", "open_onnx_seconds")) > 0


def test_a_name_that_fits_no_model_is_told(demo_asset: assets.Asset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "digist"]) == 2
    assert capsys.readouterr().err == (
        "error: no asset model starts with 'digist'. Did you mean 'digits'? There are: digits\n"
    )
