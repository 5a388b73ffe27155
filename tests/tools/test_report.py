"""What people see: progress on terminals and in logs, numbers with units, and strict JSON."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxpress.tools.report.console import console
from onnxpress.tools.report.json_output import json_text, write_json
from onnxpress.tools.report.numbers import describe_speed, three_digits
from onnxpress.tools.report.progress import BarProgress, LogProgress, watch_progress


def test_json_is_strict_and_plain() -> None:
    document = {
        "inf": math.inf, "nan": math.nan, "numpy": np.float32(0.5), "count": np.int64(3), "path": Path("a/b"),
        "tuple": (1, {"x": -math.inf}), "set": {2, 1}, "text": "naïve", 5: None,
    }  # fmt: skip
    assert json.loads(json_text(document), parse_constant=pytest.fail) == {
        "inf": None, "nan": None, "numpy": 0.5, "count": 3, "path": "a/b", "tuple": [1, {"x": None}],
        "set": [1, 2], "text": "naïve", "5": None,
    }  # fmt: skip
    assert json_text(document).isascii()


def test_json_goes_to_stdout_or_a_file_or_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(None, [1])
    assert capsys.readouterr().out == ""
    write_json("-", [1])
    assert json.loads(capsys.readouterr().out) == [1]
    write_json(str(tmp_path / "a.json"), [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


def test_console_without_a_terminal_keeps_names_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "/a/long/name" * 12
    console().print(f"[bold]{name}[/bold]", style="bold red")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.replace("\n", "") == f"[bold]{name}[/bold]"
    assert console().width == 160
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.33, "0.330"), (16.0, "16.0"), (224.4, "224"), (1234.0, "1,230"), (9.996, "10.0"), (999.6, "1,000"),
        (-0.5, "-0.500"), (0.00012345, "0.000123"), (2e-8, "2.00e-08"), (3e7, "3.00e+07"), (0.0, "0"),
        (math.inf, "inf"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("after", "text"),
    [(2.0, "5.00x faster"), (0.5, "20.0x faster"), (9.7, "1.03x faster"), (9.71, "same"), (10.0, "same"),
     (10.3, "same"), (10.31, "1.03x SLOWER"), (25.0, "2.50x SLOWER")],
)  # fmt: skip
def test_speed_within_noise_is_the_same(after: float, text: str) -> None:
    assert describe_speed(10.0, after) == text


def test_a_log_gets_one_line_of_a_long_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with LogProgress().task("calibrating", 100) as task:
        task.advance(10)
        assert capsys.readouterr().err == ""
        now[0] += 20
        task.advance(10)
        assert capsys.readouterr().err == "calibrating: 20 of 100, about 80 s left\n"
        now[0] += 50
        task.advance()
        assert capsys.readouterr().err == ""
    with LogProgress().task("reading", None) as task:
        now[0] += 11
        task.advance(7)
    assert capsys.readouterr().err == "reading: 7 done\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bars_that_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with watch_progress() as progress:
        assert isinstance(progress, BarProgress)
        with progress.task("calibrating", 100) as task:
            task.advance(40)
            progress._bars.refresh()
        with pytest.raises(ValueError, match="broken"), progress.task("failing", 3):
            raise ValueError("broken")
        assert progress._bars.tasks == []
    assert "calibrating" in terminal.getvalue() and "40/100" in terminal.getvalue()


def test_no_terminal_gets_no_bars() -> None:
    with watch_progress() as progress:
        assert isinstance(progress, LogProgress)
