"""The benchmarks of fewer MACs: their arguments, how a rival's sparsity is found, and rows for what fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from onnxpress.tools.bench import assets, reducers, reduction
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.bench.child import CompilerError, compile_in_child
from onnxpress.tools.bench.reducers import FACTORIZERS, PRUNERS, bisect_sparsity


@pytest.mark.parametrize(
    ("times", "word"), [("2,x", "x"), ("1", "1"), ("2,,3", ""), ("", ""), ("nan", "nan"), ("inf", "inf"), ("-2", "-2")]
)
def test_a_bad_factor_is_one_line(times: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "lenet5", f"--times={times}"]) == 2
    assert capsys.readouterr().err == (
        f"error: --times {times}: {word!r} is no number above 1. Write them as in 1.5,2,3\n"
    )


def test_factors_are_read_in_order() -> None:
    assert reduction.parse_times("1.25, 3,2") == [1.25, 3.0, 2.0]


def test_compilers_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert reduction.parse_compilers(None, FACTORIZERS) == list(FACTORIZERS)
    assert reduction.parse_compilers("mix, low-rank", FACTORIZERS) == ["mix", "low-rank"]
    assert main(["factorize", "lenet5", "--by", "low-rnk"]) == 2
    assert capsys.readouterr().err.startswith("error: --by low-rnk: 'low-rnk' is no compiler. Did you mean 'low-rank'?")


def test_each_benchmark_has_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    jpeg = ["resnet20_cifar10_jpeg", "resnet56_cifar10_jpeg"]
    pruned = [asset.model for asset in assets.select([], "prune")]
    assert [model for model in pruned if model not in jpeg] == [asset.model for asset in assets.select([], "ptq")]
    assert set(jpeg) < set(pruned)
    assert [asset.model for asset in assets.select(["resnet20_cifar10"], "prune")] == ["resnet20_cifar10"]
    assert [asset.model for asset in assets.select(["resnet20"], "prune")] == ["resnet20_cifar10", jpeg[0]]
    assert main(["ptq", jpeg[0]]) == 2
    assert capsys.readouterr().err.startswith("error: no asset model starts with 'resnet20_cifar10_jpeg'.")


def test_the_least_sparsity_that_meets_the_budget_is_found() -> None:
    tried: list[float] = []

    def cut(sparsity: float) -> float:
        tried.append(sparsity)
        return sparsity

    assert bisect_sparsity(cut, lambda sparsity: sparsity >= 0.3) == 0.3125
    assert tried == [0.5, 0.25, 0.375, 0.3125, 0.28125, 0.296875]
    assert bisect_sparsity(cut, lambda sparsity: sparsity >= 0.3, steps=2) == 0.5
    assert bisect_sparsity(cut, lambda _: False) is None


def test_a_child_that_cannot_meet_its_budget_says_so_in_one_line(demo_files: Path) -> None:
    with pytest.raises(CompilerError) as caught:
        compile_in_child(
            "onnxpress",
            demo_files / "digits.onnx",
            demo_files / "calibration.npz",
            demo_files / "o",
            "input",
            times=1e6,
        )
    assert caught.value.reason.startswith("prune-channels: macs=1e-06 cannot be reached: ")
    assert str(caught.value) == f"bench: onnxpress on digits.onnx failed: {caught.value.reason}"


def test_failing_cells_are_rows(
    demo_asset: assets.Asset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def compile_(compiler: str, model: Path, _: Path, out: Path, __: str, *, times: float) -> dict[str, float]:
        if compiler == "acme":
            raise CompilerError(compiler, model, "no such luck")
        if times == 3:
            out.write_bytes(b"garbage")
        else:
            shutil.copy(model, out)
        return {"cpu_seconds": 1.5, "peak_rss_bytes": 2e6}

    monkeypatch.setattr(reduction, "compile_in_child", compile_)
    monkeypatch.setattr(reducers, "PRUNERS", dict.fromkeys(("onnxpress", "acme", "absent"), PRUNERS["onnxpress"]))
    monkeypatch.setattr(reduction, "PACKAGES", {"absent": "onnxpress_absent"})
    monkeypatch.setenv("COLUMNS", "160")
    written = tmp_path / "rows.json"
    assert main(["prune", "--times", "2,3", "--rounds", "5", "--limit", "32", "--json", str(written)]) == 0
    rows: list[dict[str, Any]] = json.loads(written.read_text(encoding="utf-8"))["rows"]
    assert [(row["compiler"], row["times"]) for row in rows] == [
        ("float32", 1.0), ("onnxpress", 2.0), ("acme", 2.0), ("onnxpress", 3.0), ("acme", 3.0),
    ]  # fmt: skip
    original, same, failed, garbage, _ = rows
    assert original["latency_ratio"] == 1.0 and original["cpu_seconds"] is None
    assert (same["macs_ratio"], same["drop"], same["agreement"], same["status"]) == (
        1.0, 0.0, 100.0, "only 1 times fewer MACs",
    )  # fmt: skip
    assert 0.2 < same["latency_ratio"] < 5 and same["cpu_seconds"] == 1.5
    assert failed == {
        **dict.fromkeys(original), "model": "digits", "compiler": "acme", "times": 2.0, "status": "no such luck",
    }  # fmt: skip
    assert garbage["macs_ratio"] is None and garbage["cpu_seconds"] == 1.5
    assert "digits.onnxpress.3.onnx" in garbage["status"] and "\n" not in garbage["status"]
    told = capsys.readouterr()
    assert "absent is left out: the package onnxpress_absent is not installed" in told.err.splitlines()
    assert told.err.count("digits, 2 times, ") == 2 and told.err.count("no such luck") == 2


@pytest.mark.assets("models/lenet5_mnist.onnx", "datasets/mnist_train.npz", "datasets/mnist_test.npz")
def test_half_the_macs_of_lenet5(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    arguments = ["prune", "lenet5", "--times", "2", "--limit", "500", "--rounds", "5", "--json", str(written)]
    assert main(arguments) == 0
    rows = {row["compiler"]: row for row in json.loads(written.read_text(encoding="utf-8"))["rows"]}
    ours = rows["onnxpress"]
    assert ours["macs_ratio"] >= 2 and ours["status"] == ""
    assert ours["params_ratio"] > 1 and ours["bytes_ratio"] > 1
    assert ours["drop"] < rows["magnitude"]["drop"]


@pytest.mark.assets("models/lenet5_mnist.onnx", "datasets/mnist_train.npz", "datasets/mnist_test.npz")
def test_lenet5_in_forms_of_low_rank(tmp_path: Path) -> None:
    written = tmp_path / "rows.json"
    arguments = ["factorize", "lenet5", "--times", "2", "--limit", "500", "--rounds", "5", "--json", str(written)]
    assert main([*arguments, "--by", "low-rank,weights-channel"]) == 0
    rows = {row["compiler"]: row for row in json.loads(written.read_text(encoding="utf-8"))["rows"]}
    ours = rows["low-rank"]
    assert ours["macs_ratio"] >= 1.99 and ours["status"] == ""
    assert ours["drop"] < 1
