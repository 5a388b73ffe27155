"""Progress of long steps: a bar with the time left on a terminal, one line in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from onnxpress.passes.instrument import Progress, Task
from onnxpress.tools.report.console import console
from onnxpress.tools.report.facts import say

if TYPE_CHECKING:
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

__all__ = ["BarProgress", "LogProgress", "watch_progress"]

_LOG_SECONDS = 10.0  # a log gets one line of a step that takes longer, and none of shorter ones


@contextlib.contextmanager
def watch_progress() -> Iterator[Progress]:
    """Give the progress that suits stderr. Bars vanish when their step is done."""
    if not sys.stderr.isatty():
        yield LogProgress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichBars(*columns, console=console(), transient=True, refresh_per_second=4) as bars:
        yield BarProgress(bars)


class BarProgress(Progress):
    """Bars on a terminal, one per step under way."""

    def __init__(self, bars: RichBars) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Show a bar for `label` until the block ends. total: None where only the end will tell."""
        bar = self._bars.add_task(label, total=total)
        try:
            yield _BarTask(self._bars, bar)
        finally:
            self._bars.remove_task(bar)


class _BarTask(Task):
    def __init__(self, bars: RichBars, bar: TaskID) -> None:
        self._bars = bars
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        self._bars.advance(self._bar, n)


class LogProgress(Progress):
    """Plain lines for steps that take long."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Say once how far `label` has come, when it takes longer than ten seconds."""
        yield _LogTask(label, total)


class _LogTask(Task):
    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        self._is_told = False

    def advance(self, n: int = 1) -> None:
        self._done += n
        passed = time.monotonic() - self._started
        if self._is_told or passed < _LOG_SECONDS:
            return
        self._is_told = True
        say(f"{self._label}: {self._describe(passed)}")

    def _describe(self, seconds: float) -> str:
        if not self._total:
            return f"{self._done} done"
        left = seconds / max(self._done, 1) * max(self._total - self._done, 0)
        return f"{self._done} of {self._total}, about {left:.0f} s left"
