"""Progress, timings and printing after passes."""

from __future__ import annotations

import doctest
import time

import onnx_ir
import pytest

from onnxpress.passes import instrument
from onnxpress.passes.instrument import ModelPrinter, Progress, Timings


def test_progress_without_a_front_end_does_nothing() -> None:
    with Progress().task("calibrate", 3) as outer, Progress().task("unknown length") as inner:
        outer.advance()
        inner.advance(2)


def test_timings_tell_waiting_from_working() -> None:
    timings = Timings()
    with timings.measure("wait"):
        time.sleep(0.02)
    with timings.measure("work"):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
    wait, work = timings.entries
    assert (wait.name, work.name) == ("wait", "work")
    assert wait.seconds >= 0.02 > wait.cpu_seconds
    assert work.cpu_seconds >= 0.02


def test_timings_keep_a_step_that_raises() -> None:
    timings = Timings()
    with pytest.raises(KeyError), timings.measure("broken"):
        time.sleep(0.005)
        raise KeyError
    assert timings.entries[0].seconds >= 0.005


def _model() -> onnx_ir.Model:
    return onnx_ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x) => (float[N, 3] y) {
            [first] h = Relu (x)
            [second] y = Neg (h)
        }
    """)


def _record(*, every: bool = False, changes: bool = False) -> list[str]:
    """Return what is printed over a pass that changes a node and one that does nothing."""
    printed: list[str] = []
    printer, model = ModelPrinter(printed.append, every=every, changes=changes), _model()
    printer.start(model)
    changed = model.clone()
    changed.graph[0].op_type = "Abs"
    printer.show("first-pass{k=1}", changed)
    printer.show("second-pass", changed.clone())
    return printed


def test_print_after_every_pass() -> None:
    first, second = _record(every=True)
    assert first.splitlines()[0] == "// after first-pass{k=1}"
    assert "Abs" in first and "Relu" not in first
    assert second.splitlines()[1:] == first.splitlines()[1:]


def test_print_after_a_change_only_shows_the_difference() -> None:
    first, second = _record(changes=True)
    assert first.splitlines()[0] == "// changed by first-pass{k=1}"
    changed = [line for line in first.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[0] for line in changed] == ["-", "+"]
    assert "Relu" in changed[0] and "Abs" in changed[1]
    assert second == "// second-pass: no change"


def test_print_nothing_unless_asked() -> None:
    assert _record() == []
    assert len(_record(every=True, changes=True)) == 4


def test_docstring_examples() -> None:
    assert doctest.testmod(instrument).failed == 0
