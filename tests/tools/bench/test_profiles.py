"""The benchmark of the cost estimate: rows, their summary, and what is left where a runtime tells no steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxpress.targets.base import Target
from onnxpress.targets.runtimes.timing import Latency
from onnxpress.tools.bench import __main__ as bench
from onnxpress.tools.bench import assets, profiles
from onnxpress.tools.bench.__main__ import main
from onnxpress.tools.profiling import Profile, Race, Step, Times


def test_the_summary_is_of_rows_with_numbers() -> None:
    rows = [
        profiles.Row("a", "x", 1.0, 1.1, 10.0, 5.0),
        profiles.Row("b", "x", 2.0, 1.6, -20.0, 15.0),
        profiles.Row("c", "x", 4.0, 4.0, 0.0, 10.0),
        profiles.Row("d", "x", status="it failed"),
    ]
    found = profiles.summarize(rows)
    assert found == profiles.Summary(3, 10.0, 20.0, pytest.approx(1.0), 10.0)  # type: ignore[arg-type]
    assert profiles.summarize(rows[:1]) is None


def _measured(wall_ms: float, cpu_ms: float, *steps: float) -> Profile:
    made = tuple(Step(str(each), "Conv", each, 0.5, predicted_ms=2 * each) for each in steps)
    times = Times.of(Latency((wall_ms,) * 3, (cpu_ms,) * 3))
    return Profile("m", "t", "r", "1", 1, 1, times, 1.0, 0, 0, 0, 0, 0, made, predicted_ms=cpu_ms)


@pytest.mark.parametrize("steps", [(), (2.0, 4.0)])
def test_rows_of_runtimes_with_and_without_steps_are_written_and_summed_up(
    demo_asset: assets.Asset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: tuple[float, ...],
) -> None:
    each = iter((_measured(8.0, 5.0, *steps), _measured(8.0, 4.0, *steps)))

    def measure(model: object, *, target: Target, rounds: int) -> Race:
        return Race((next(each),))

    monkeypatch.setattr(profiles, "profile", measure)
    found = tmp_path / "rows.json"
    assert main(["profile", "digits", "--by", "float32,low-rank", "--json", str(found)]) == 0
    rows = json.loads(found.read_text(encoding="utf-8"))["rows"]
    shown = [(row["error_percent"], row["node_error_percent"], row["steps_percent"]) for row in rows]
    shares = (120.0, 150.0)  # 6 of 5 and of 4 ms
    assert shown == [(0.0, 100.0, share) if steps else (0.0, None, None) for share in shares]
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("models 2, median error percent 0, worst error percent 0, ")
    assert last.endswith(", median node error percent 100") if steps else "node" not in last


def test_rows_outlive_a_failure_to_tell_them(
    demo_asset: assets.Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(profiles, "profile", lambda model, **options: Race((_measured(8.0, 5.0),)))
    found = tmp_path / "rows.json"
    for name in ("_print_table", "_tell_summary"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match="no such luck"):
            patch.setattr(bench, name, fail)
            main(["profile", "digits", "--by", "float32", "--json", str(found)])
        assert len(json.loads(found.read_text(encoding="utf-8"))["rows"]) == 1
        found.unlink()


def test_steps_are_set_against_the_undisturbed_latency() -> None:
    assert profiles._steps_percent(_measured(8.0, 5.0, 4.0)) == 80
