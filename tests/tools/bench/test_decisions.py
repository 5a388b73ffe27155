"""The benchmark of decisions: which nodes a rewrite made of which, and when estimate and clock agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import pytest

from onnxpress.targets.base import Target
from onnxpress.targets.runtimes.timing import Latency
from onnxpress.tools.bench import assets, decisions
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.bench.decisions import Row, Site
from onnxpress.tools.profiling import Profile, Race, Step, Times


@pytest.mark.parametrize(
    ("predicted", "measured", "is_right", "is_clear"),
    [
        ((1.0, 2.0), (3.0, 4.0), True, True),
        ((2.0, 1.0), (4.0, 3.0), True, True),
        ((1.0, 2.0), (4.0, 3.0), False, True),
        ((1.0, 2.0), (3.0, 2.9), False, False),
    ],
)
def test_a_decision_is_right_where_the_clock_agrees(
    predicted: tuple[float, float], measured: tuple[float, float], is_right: bool, is_clear: bool
) -> None:
    site = Site("a", predicted, measured)
    assert (site.is_right, site.is_clear) == (is_right, is_clear)


def test_rows_count_what_is_clear_and_name_what_is_wrong() -> None:
    sites = (
        Site("a", (1.0, 2.0), (3.0, 4.0)),
        Site("b", (1.0, 2.0), (4.0, 3.0)),
        Site("c", (1.0, 2.0), (3.0, 2.9)),
        Site("d", (2.0, 1.0), (4.0, 3.0)),
    )
    found = decisions._summed_up(Row("m", "low-rank"), sites)
    assert (found.sites, found.slower, found.right, found.right_percent) == (4, 1, 2, 50.0)
    assert found.clear_right_percent == pytest.approx(200 / 3)
    assert (found.clear, found.wrong) == (3, "b")
    none = decisions._summed_up(Row("m", "low-rank"), ())
    assert (none.right_percent, none.clear_right_percent, none.wrong) == (None, None, "")


@pytest.mark.parametrize("rewrite", ["separable", "int8"])
def test_every_rewritten_node_is_timed_with_what_it_became(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewrite: str
) -> None:
    models: list[onnx_ir.Model] = []

    def steps(model: onnx_ir.Model) -> Iterator[Step]:
        for node in model.graph:
            yield Step(node.name or "", node.op_type, 1.0, 0.1)

    def measure(*given: onnx_ir.Model, target: Target, rounds: int) -> Race:
        models.extend(given)
        times = Times.of(Latency((1.0,) * 3))
        made = (Profile("m", "t", "r", "1", 1, 1, times, 1.0, 0, 0, 0, 0, 0, tuple(steps(model))) for model in given)
        return Race(tuple(made))

    monkeypatch.setattr(decisions, "profile", measure)
    found = tmp_path / "rows.json"
    assert main(["decisions", "digits", "--by", rewrite, "--target", "x86-vnni", "--json", str(found)]) == 0
    row, *totals = json.loads(found.read_text(encoding="utf-8"))["rows"]
    original, rewritten = models
    assert [(each["model"], each["compiler"], each["sites"]) for each in totals] == [("all", rewrite, row["sites"])] * 2
    assert row["sites"] > 1
    linear = {node.name for node in original.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    grown = len(rewritten.graph) > len(original.graph)
    for site in row["details"]:
        assert site["name"] in linear and min(site["predicted"]) > 0
        # Each node takes a millisecond here, so that the sum counts them.
        assert site["measured"][0] == 1.0 and (site["measured"][1] > 1.0) == (grown and rewrite == "separable")


def test_a_target_without_an_estimate_decides_nothing(capsys: pytest.CaptureFixture[str], demo_asset: object) -> None:
    assert main(["decisions", "digits", "--target", "tensorrt"]) == 2
    assert "tensorrt has no cost estimate, and declines nothing as slower" in capsys.readouterr().err
