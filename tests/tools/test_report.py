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


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with LogProgress().task("calibrating", 100) as task:
        task.advance(10)
        assert capsys.readouterr().err == ""
        now[0] += 20
        task.advance(10)
        assert capsys.readouterr().err == "calibrating: 20 of 100, about 80 s left\n"
        now[0] += 5
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
