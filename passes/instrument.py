"""What may be watched while passes run: progress, time, and the model after each pass."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import onnx_ir

__all__ = ["ModelPrinter", "Printer", "Progress", "Task", "Timing", "Timings"]

Printer = Callable[[str], None]


class Task:
    """One long step under way. This one shows nothing; a front end overrides it."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more units of the task's total are done."""


class Progress:
    """Where long steps report how far they are. This one shows nothing; a front end overrides `task`."""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Open a step for the length of a `with` block. total: units to come, or None where nobody knows."""
        yield Task()


@dataclasses.dataclass
class Timing:
    """How long one step took: seconds on the clock, and seconds of CPU over all threads of this process."""

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Timings:
    """Timings of steps in the order in which they began.

    >>> timings = Timings()
    >>> with timings.measure("cleanup") as timing:
    ...     pass
    >>> timing.name, timings.entries == [timing]
    ('cleanup', True)
    """

    def __init__(self) -> None:
        """Start with no entry."""
        self.entries: list[Timing] = []

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[Timing]:
        """Time a `with` block, also when it raises; the numbers are there once it is left."""
        timing = Timing(name)
        self.entries.append(timing)
        clock, cpu = time.perf_counter(), time.process_time()
        try:
            yield timing
        finally:
            timing.seconds = time.perf_counter() - clock
            timing.cpu_seconds = time.process_time() - cpu


class ModelPrinter:
    """Prints a model's text after passes: all of it after every pass, or the difference that a pass made.

    every: the whole text after every pass. changes: a unified diff after each pass that changed something,
    and one line after each that did not.
    """

    def __init__(self, printer: Printer, *, every: bool = False, changes: bool = False) -> None:
        """Print through `printer`, one call a pass and mode."""
        self._printer = printer
        self._every = every
        self._changes = changes
        self._last: str | None = None

    def start(self, model: onnx_ir.Model) -> None:
        """Remember the model before the first pass, to tell what that one changes."""
        if self._changes:
            self._last = _text(model)

    def show(self, title: str, model: onnx_ir.Model) -> None:
        """Print `model` as it is after the pass that `title` names."""
        if not (self._every or self._changes):
            return
        text = _text(model)
        if self._every:
            self._printer(f"// after {title}\n{text}")
        if self._changes and self._last is not None:
            self._printer(_describe_change(title, self._last, text))
            self._last = text


def _describe_change(title: str, before: str, after: str) -> str:
    from onnxpress.ir.text import diff

    if before == after:
        return f"// {title}: no change"
    return f"// changed by {title}\n{diff(before, after)}"


def _text(model: onnx_ir.Model) -> str:
    from onnxpress.ir.text import to_text

    return to_text(model)
