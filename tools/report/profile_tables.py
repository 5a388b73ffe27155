"""Profiles for people: where the time goes, two models by node, a table over runtimes, and what a calibration found."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onnxpress.ir.shapes import describe_shape
from onnxpress.tools.report.facts import show_facts
from onnxpress.tools.report.numbers import describe_speed, milliseconds, three_digits

if TYPE_CHECKING:
    from rich.console import Console

    from onnxpress.tools.calibration import Calibration
    from onnxpress.tools.profiling import Profile, Step
    from onnxpress.tools.runtimes import RuntimeRow

__all__ = ["show_calibration", "show_comparison_by_node", "show_profile", "show_runtimes"]

_TOP = 15
_BAR = 12  # characters of the longest bar
_NONE = "-"
_TICK_MS = 0.002
_TOO_MUCH = 1.1  # of the latency, for all steps together
_NARROW = 110  # columns of a terminal, below which a table of steps leaves out these of its own
_WIDE_ONLY = ("kernel", "", "bound by", "GB/s", "fused")
_TEXT = ("step", "kernel", "", "bound by", "fused")


def show_profile(console: Console, found: Profile, *, every: bool = False) -> None:
    """Print one model: totals, then the steps that take the most time. every: all of them, in the order they run."""
    times = found.times
    clock = "CPU time" if times.cpu_median is not None else "elapsed time"
    predicted = None
    if found.predicted_ms is not None:
        off = f" ({100 * (found.predicted_ms / times.undisturbed - 1):+.0f} %)" if found.is_predicted_here else ""
        other = "" if found.is_predicted_here else ", which is not of what was measured: see below"
        predicted = f"{milliseconds(found.predicted_ms)}{off}, by the estimate of {found.target}{other}"
    rate = f" ({three_digits(2 * found.macs / times.undisturbed / 1e6)} GFLOP/s)" if found.macs else ""
    facts = {
        "model": found.model,
        "input": ", ".join(f"{name} {describe_shape(shape)}" for name, shape in found.inputs.items()) or None,
        "runtime": f"{found.runtime} {found.version}, {found.threads} thread{'s' if found.threads > 1 else ''}, "
        f"batch {found.batch or 1}",
        "device": found.device,
        "latency": f"{milliseconds(times.undisturbed)} {clock}, undisturbed: the fastest twentieth of {times.rounds} "
        f"runs, whose halves agree within {100 * times.repeats:.0f} %",
        "all runs": f"median {three_digits(times.median)}; 10 to 90 %: {three_digits(times.p10)} to "
        f"{three_digits(times.p90)}; 99 %: {three_digits(times.p99)}; quartiles {100 * times.spread:.0f} % apart",
        "elapsed": f"{milliseconds(times.wall_undisturbed)} the fastest, {milliseconds(times.wall_median)} median",
        "predicted": predicted,
        "loaded in": None if found.create_ms is None else milliseconds(found.create_ms),
        "memory": f"{found.memory_bytes / 2**20:.1f} MiB resident, {found.peak_activation_bytes:,} bytes of values",
        "bytes": f"{found.size_bytes:,}",
        "MACs": f"{found.macs:,}{rate}",
        "parameters": f"{found.params:,}",
    }
    show_facts(facts)
    if found.steps:
        _show_steps(console, found, every=every)
    else:
        console.print(f"{found.runtime} tells no times by node")
    for line in found.notes:
        console.print(line)


def _show_steps(console: Console, found: Profile, *, every: bool) -> None:
    ordered = list(found.steps) if every else sorted(found.steps, key=lambda step: -step.milliseconds)[:_TOP]
    longest = max(step.milliseconds for step in found.steps) or 1.0
    rows = [_cells(step, round(_BAR * step.milliseconds / longest)) for step in ordered]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    headings = [each for each in rows[0] if console.width >= _NARROW or each not in _WIDE_ONLY]
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _TEXT else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row[heading] for heading in headings))
    console.print(table)
    if (rest := len(found.steps) - len(ordered)) > 0:
        console.print(f"  ... and {rest} more: --all, or --json", style="dim")
    if found.steps_ms is not None:
        of_all = found.steps_ms / found.clocked_ms
        doubt = ": the machine was disturbed while they were timed, run it again" if of_all > _TOO_MUCH else ""
        console.print(
            f"The steps take {milliseconds(found.steps_ms)} of {found.node_clock} time, {100 * of_all:.0f} % of the "
            f"latency{doubt}"
        )


def _cells(step: Step, bar: int) -> dict[str, str]:
    return {
        "step": step.name,
        "kernel": step.kind,
        "": "█" * bar,
        "ms": _ms(step),
        "share": f"{100 * step.share:.1f} %",
        "predicted": _NONE if step.predicted_ms is None else three_digits(step.predicted_ms),
        "bound by": step.bound or "",
        "GFLOP/s": three_digits(step.gflops) if step.macs and step.gflops is not None else "",
        "GB/s": "" if step.gb_per_s is None else three_digits(step.gb_per_s),
        "of roofline": "" if step.roofline is None or not step.macs else f"{100 * step.roofline:.0f} %",
        "fused": _short(step.fused),
    }


def show_comparison_by_node(
    console: Console, first: Profile, second: Profile, speedup: float | None, *, every: bool = False
) -> None:
    """Print two models side by side, by the node that each step mostly is. every: all, in the order they run."""
    table = _table("node", "kernel A", "kernel B", text=3)
    for heading in ("ms A", "ms B", "change"):
        table.add_column(heading, justify="right")
    pairs = _pairs(first.steps, second.steps)
    shown = pairs if every else sorted(pairs, key=_longest)[:_TOP]
    for a, b in shown:
        name = (a or b).name  # type: ignore[union-attr]
        table.add_row(
            name, a.kind if a else _NONE, b.kind if b else _NONE, *(_ms(each) for each in (a, b)),
            "" if a is None or b is None or _is_tick(a, b) else describe_speed(a.milliseconds, b.milliseconds),
        )  # fmt: skip
    console.print(table)
    if (rest := len(pairs) - len(shown)) > 0:
        console.print(f"  ... and {rest} more: --all, or --json", style="dim")
    if speedup is not None:
        before, after = first.times.undisturbed, second.times.undisturbed
        console.print(f"A {milliseconds(before)}, B {milliseconds(after)}: {describe_speed(before, after)}")


def _longest(pair: tuple[Step | None, Step | None]) -> float:
    return -max(each.milliseconds for each in pair if each is not None)


def _pairs(first: Sequence[Step], second: Sequence[Step]) -> list[tuple[Step | None, Step | None]]:
    left = {step.name: step for step in second}
    found: list[tuple[Step | None, Step | None]] = [(step, left.pop(step.name, None)) for step in first]
    return [*found, *((None, step) for step in left.values())]


def show_runtimes(console: Console, rows: Sequence[RuntimeRow]) -> None:
    """Print one model in every runtime."""
    table = _table("runtime", "version", text=2)
    for heading in ("ms", "of onnxruntime", "spread", "same top-1 class", "largest error", "bytes", "prepared in s"):
        table.add_column(heading, justify="right")
    for row in (row for row in rows if row.times is not None):
        assert row.times is not None
        agreement = "" if row.agreement is None else f"{row.agreement:.1f} % of {row.samples}"
        table.add_row(
            row.runtime, row.version, three_digits(row.times.undisturbed),
            "" if row.ratio is None else f"{row.ratio:.2f}", f"{100 * row.times.spread:.0f} %", agreement,
            "" if row.error is None else f"{row.error:.1e}", f"{row.size_bytes or 0:,}",
            f"{row.prepare_seconds or 0:.1f}",
        )  # fmt: skip
    console.print(table)
    for row in (row for row in rows if row.times is None):
        console.print(f"{row.runtime}: {row.status}")
    console.print(
        "ms: undisturbed, of the first sample or as many as the model's own batch holds, CPU time of one thread where "
        "one computes; error: over the largest output"
    )


def show_calibration(console: Console, found: Calibration, path: str | os.PathLike[str]) -> None:
    """Print what was measured and how well the estimate fits it."""
    show_facts(
        {
            "profile": os.fspath(path),
            "target": f"{found.name}, which extends {found.base}",
            "machine": found.machine.title,
            "samples": f"{len(found.fitted.samples)}",
            "fit": f"half of them within {100 * found.fitted.median_error:.0f} %",
        }
    )
    table = _table("kernel", text=1)
    for heading in ("samples", "half within"):
        table.add_column(heading, justify="right")
    for kind, (count, median) in found.fitted.errors_by_kind().items():
        table.add_row(kind, f"{count}", f"{100 * median:.0f} %")
    console.print(table)
    console.print(f"{found.seconds:.0f} s. Use it: --target {os.fspath(path)}")


def _ms(step: Step | None) -> str:
    if step is None:
        return _NONE
    return f"< {_TICK_MS:g}" if step.milliseconds < _TICK_MS else three_digits(step.milliseconds)


def _is_tick(first: Step, second: Step) -> bool:
    """Whether two times are closer than profilers tell, whose clocks count microseconds."""
    return abs(first.milliseconds - second.milliseconds) < _TICK_MS or not (first.milliseconds and second.milliseconds)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" +{len(names) - 2}" if len(names) > 2 else "")


def _table(*columns: str, text: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < text else "right", overflow="fold")
    return table
