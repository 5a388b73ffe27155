"""The benchmark of targets: a row for each pass and target, run by the target's runtime, and the page made of them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir
import pytest

from onnxpress.passes.pipeline import parse
from onnxpress.targets.base import Target, target_names
from onnxpress.targets.runtimes.base import Feeds
from onnxpress.targets.runtimes.onnxruntime import OnnxRuntime, PreparedSession
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import load_runtime
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
    assert {row["is_stand_in"] for row in found[:3]} == {False} and {row["is_stand_in"] for row in found[3:]} == {True}
    text = page.read_text(encoding="utf-8")
    assert "`tensorrt` had no runtime of their own here: `onnxruntime-cpu` ran them, and they have no speed." in text
    assert "| passes | x86-vnni | tensorrt |\n|---|---|---|\n| `cleanup` | +0.00, " in text
    assert "## digits" in text and impossible["status"] in text
    assert "digits, quantize-int8 for tensorrt ..." in capsys.readouterr().err


def test_a_refusal_of_the_float_model_is_a_status_and_the_others_go_on(
    demo_asset: assets.Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(OnnxRuntime):
        def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> PreparedSession:
            raise RuntimeRefusalError("Refusing: does not\nload the model")

    refusing = Refusing("openvino", "Refusing", "CPUExecutionProvider", None)
    known = load_runtime
    monkeypatch.setattr(targets, "load_runtime", lambda name: refusing if name == "openvino" else known(name))
    monkeypatch.setattr(Target, "is_here", False)
    rows = targets.run([demo_asset], ["cleanup", "float16"], ["openvino", "x86-vnni"], rounds=5, limit=16)
    assert [(row.compiler, row.target) for row in rows] == [
        (name, target) for target in ("openvino", "x86-vnni") for name in ("cleanup", "float16")
    ]
    assert [row.status for row in rows[:2]] == ["the float model: Refusing: does not load the model"] * 2
    assert all(row.accuracy is not None and row.is_elsewhere for row in rows[2:])
    assert not any(row.is_stand_in for row in rows)
    assert "| `cleanup` | the float model: Refusing: does not load the model | +0.00, " in targets.markdown(rows)


def test_the_page_says_of_its_rows_how_they_came_about() -> None:
    def page(*, is_stand_in: bool = False, is_elsewhere: bool = False) -> str:
        row = targets.Row("m", "cleanup", "mobile-cpu", "litert", is_stand_in, is_elsewhere)
        return " ".join(targets.markdown([row]).split())

    stand_in = "had no runtime of their own here: `litert` ran them"
    elsewhere = "On another machine than they describe:"
    assert stand_in not in page() and elsewhere not in page() and "bytes are of the .tflite file" in page()
    assert f"`mobile-cpu` {stand_in}, and they have no speed." in page(is_stand_in=True)
    assert f"{elsewhere} `mobile-cpu`." in page(is_elsewhere=True)


@pytest.mark.parametrize(
    ("benchmark", "option"),
    [("profile", "--limit"), ("arm64", "--rounds"), ("pack", "--rounds"), ("pack", "--limit"), ("pack", "--keep")],
)
def test_options_that_a_benchmark_would_ignore_are_refused(
    benchmark: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([benchmark, option, "1"])
    assert caught.value.code == 2 and f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_a_target_that_is_not_known_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "lenet5", "--targets", "tensort"]) == 2
    assert capsys.readouterr().err.startswith("error: --targets tensort: 'tensort' is no target. Did you mean 'tensor")
