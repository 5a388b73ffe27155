"""The benchmark of few bits: its pipelines run on the demo, and those that fail leave a row that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.passes.pipeline import parse
from onnxpress.tools.bench import assets, encoders
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.bench.lowbit import pipelines

_TUNED = [text for texts in encoders.TUNED.values() for text in texts.values()]


@pytest.mark.parametrize("text", [*encoders.ENCODERS.values(), *_TUNED])
def test_every_pipeline_can_be_read(text: str) -> None:
    assert parse(text)


@pytest.mark.parametrize("name", encoders.TUNED)
def test_tuned_pipelines_are_for_the_models_that_they_were_tuned_for(name: str) -> None:
    assert pipelines("lenet5_mnist", [name]) == {name: encoders.TUNED[name]["lenet5"]}
    assert list(pipelines("resnet20_cifar10", ["int8", name])) == ["int8"]


def test_a_pipeline_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lowbit", "lenet5", "--by", "ternray"]) == 2
    assert capsys.readouterr().err.startswith("error: --by ternray: 'ternray' is no compiler. Did you mean 'ternary'")


def test_rows_have_all_numbers_or_the_reason(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(encoders.ENCODERS, "codebook-mixed", "palettize{bytes=0.001}")
    found = tmp_path / "rows.json"
    chosen = "int8,ternary,codebook-mixed"
    assert main(["lowbit", "--by", chosen, "--rounds", "3", "--limit", "64", "--json", str(found)]) == 0
    original, int8, ternary, mixed = json.loads(found.read_text())["rows"]
    assert [row["compiler"] for row in (original, int8, ternary, mixed)] == ["float32", *chosen.split(",")]
    assert original["drop"] == 0 and original["agreement"] == 100 and original["latency_ratio"] == 1
    assert ternary["times_smaller"] > int8["times_smaller"] > 3 and ternary["times_packed"] > ternary["times_smaller"]
    assert int8["latency_of_int8"] == 1 and ternary["bits_per_weight"] < 3 < int8["bits_per_weight"]
    assert mixed["accuracy"] is None and mixed["status"].startswith("palettize: bytes=0.001 cannot be reached: ")
    printed = capsys.readouterr()
    assert "digits, ternary ..." in printed.err
