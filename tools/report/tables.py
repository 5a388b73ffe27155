"""Tables for people: what was planned, done, gained and lost, on the console that is handed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onnxpress.tools.metrics import SQNR_CEILING_DB
from onnxpress.tools.report.facts import show_facts
from onnxpress.tools.report.numbers import describe_speed, milliseconds, three_digits

if TYPE_CHECKING:
    from rich.console import Console

    from onnxpress.passes.base import Declined, Pass, Site
    from onnxpress.passes.manager import PassRecord
    from onnxpress.passes.registry import PassInfo
    from onnxpress.passes.verify_each import Check
    from onnxpress.tools.comparison import ModelComparison
    from onnxpress.tools.inspection import Inspection
    from onnxpress.tools.metrics import Metrics
    from onnxpress.tools.result import Report

__all__ = [
    "show_comparison",
    "show_inspection",
    "show_pass",
    "show_passes",
    "show_report",
]

_TOP = 5  # rows of a list that a screen has room for; the JSON holds all of them
_NONE = "-"
_FEW_SAMPLES = 200  # with fewer, one sample is more than half a point, and a percentage alone hides that
_SELECTORS = ("include", "exclude")  # options of every pass, and so no example of what is its own


def show_report(console: Console, report: Report) -> None:
    """Print the result of a run: warnings first, then what changed, pass by pass, and what hurts."""
    console.print()
    for line in report.headlines:
        console.print(line, style="bold yellow")
    measured = _Measured(
        report.samples,
        report.sqnr_samples,
        report.samples_of,
        on_calibration_data=report.measured_on == "calibration data",
        here="" if report.is_latency_of_target else " here",
        is_timed=report.after.latency_ms is not None,
    )
    console.print(_metrics_table(report.before, report.after, ("before", "after"), measured))
    console.print(_footnote(measured), style="dim")
    if report.passes:
        console.print(_passes_table(report.passes))
    _show_sites(console, report.worst_sites())
    _show_declined(console, report.passes)
    for line in report.notes:
        console.print(line)


def show_comparison(console: Console, result: ModelComparison) -> None:
    """Print two models side by side."""
    names = Path(result.name_a).name, Path(result.name_b).name
    if names[0] == names[1]:
        names = result.name_a, result.name_b
    is_timed = result.b.latency_ms is not None
    measured = _Measured(result.samples, result.samples, result.samples_of, is_timed=is_timed)
    console.print(_metrics_table(result.a, result.b, names, measured))
    if is_timed or result.samples:
        console.print(_footnote(measured), style="dim")
    if len(result.outputs) > 1:
        table = _table("output", "SQNR", "largest error", "cosine")
        for name, difference in result.outputs.items():
            table.add_row(name, _sqnr(difference.sqnr_db), three_digits(difference.max_abs), f"{difference.cosine:.6f}")
        console.print(table)
    for line in result.notes:
        console.print(line)


def show_inspection(console: Console, found: Inspection) -> None:
    """Print what a model is made of."""
    cost = found.cost
    peak = f"{cost.peak_activation_bytes:,} bytes" + (
        f" or more ({cost.unsized} sizes unknown)" if cost.unsized else ""
    )
    facts = {
        "model": found.model,
        "inputs": ", ".join(map(str, found.inputs)),
        "outputs": ", ".join(map(str, found.outputs)),
        "opset": f"{found.opset} (IR version {found.ir_version})",
        "producer": found.producer or _NONE,
        "parameters": f"{cost.params:,}",
        "MACs": f"{cost.macs:,}" + (f" or more ({len(cost.unknown)} nodes unknown)" if cost.unknown else ""),
        "bytes": f"{found.metrics.size_bytes:,}",
        "of them": ", ".join(f"{kind} {size:,}" for kind, size in cost.bytes_by_type.items()) or _NONE,
        "peak memory": f"{peak} of activations at batch 1",
        "operators": ", ".join(f"{name} {times}" for name, times in found.operators.items()) or _NONE,
        "made by": "onnxpress" if found.manifest else None,
    }
    show_facts(facts)
    heaviest = sorted(cost.nodes, key=lambda node: (-node.macs, -node.weight_bytes))
    heaviest = [node for node in heaviest if node.macs or node.weight_bytes]
    if heaviest:
        table = _table("heaviest nodes", "operator", "MACs", "share", "params", "weight bytes", "output bytes", left=2)
        for node in heaviest[: 2 * _TOP]:
            share = f"{100 * node.macs / cost.macs:.1f} %" if cost.macs else _NONE
            table.add_row(
                node.name,
                node.op_type,
                f"{node.macs:,}",
                share,
                f"{node.params:,}",
                f"{node.weight_bytes:,}",
                f"{node.activation_bytes:,}",
            )
        console.print(table)
        _show_rest(console, len(heaviest) - 2 * _TOP)
    for line in cost.unknown[:_TOP]:
        console.print(f"MACs unknown: {line}")
    _show_rest(console, len(cost.unknown) - _TOP)


def show_passes(console: Console, passes: Sequence[PassInfo]) -> None:
    """Print one line for each pass."""
    table = _table("pass", "fidelity", "what it does", "source", left=4)
    for one in passes:
        table.add_row(one.name, one.fidelity, one.summary, one.source)
    console.print(table)
    console.print("Options and defaults: onnxpress passes NAME")


def show_pass(console: Console, one: PassInfo, cls: type[Pass]) -> None:
    """Print a pass with its options."""
    facts = {
        "pass": one.name,
        "does": one.summary,
        "fidelity": one.fidelity,
        "after": ", ".join(one.after) or None,
        "source": one.source,
    }
    show_facts(facts)
    if not one.options:
        console.print("It takes no options.")
        return
    table = _table("option", "type", "default", "meaning", left=4)
    for option in one.options:
        default = "required" if option.default is None else option.default
        table.add_row(option.name, option.type, default, option.description)
    console.print(table)
    example = next((option for option in one.options if option.name not in _SELECTORS), one.options[0])
    console.print(f'Written as: --passes "{one.name}{{{example.name}={example.default or "..."}}}"')


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What numbers were measured on. here: a word that keeps this machine's latency from reading as another's."""

    samples: int
    sqnr_samples: int
    samples_of: str | None
    on_calibration_data: bool = False
    here: str = ""
    is_timed: bool = True

    @property
    def where(self) -> str:
        """What to add to the name of a row that calibration data flatters."""
        return " on calibration data" if self.on_calibration_data else ""

    def percent(self, value: float) -> str:
        """Return a percentage of the samples, with the count where they are few: "93.75 % (15 of 16)"."""
        count = f" ({round(value * self.samples / 100)} of {self.samples})" if self.samples < _FEW_SAMPLES else ""
        return f"{value:.2f} %{count}"


def _metrics_table(before: Metrics, after: Metrics, names: tuple[str, str], measured: _Measured) -> Table:
    table = _table("", *names, "change")
    table.add_row(
        "bytes",
        f"{before.size_bytes:,}",
        f"{after.size_bytes:,}",
        _ratio(before.size_bytes, after.size_bytes),
    )
    table.add_row("parameters", f"{before.params:,}", f"{after.params:,}", _ratio(before.params, after.params))
    is_known = not (before.has_unknown_macs or after.has_unknown_macs)
    table.add_row("MACs", _macs(before), _macs(after), _ratio(before.macs, after.macs) if is_known else "unknown")
    table.add_row("bits per weight", _number(before.bits_per_weight), _number(after.bits_per_weight), "")
    if before.accuracy is not None and after.accuracy is not None:
        change = f"{after.accuracy - before.accuracy:+.2f} points"
        row = f"accuracy{measured.where}"
        table.add_row(row, measured.percent(before.accuracy), measured.percent(after.accuracy), change)
    if after.agreement is not None:
        table.add_row(f"same top-1 class{measured.where}", "", measured.percent(after.agreement), "")
    if after.sqnr_db is not None:
        table.add_row("SQNR", "", _sqnr(after.sqnr_db), "")
    if before.latency_ms and after.latency_ms:
        change = describe_speed(before.latency_ms, after.latency_ms)
        row = f"latency{measured.here}"
        table.add_row(row, milliseconds(before.latency_ms), milliseconds(after.latency_ms), change)
    return table


def _macs(metrics: Metrics) -> str:
    return f"{metrics.macs:,}" + (" or more" if metrics.has_unknown_macs else "")


def _footnote(measured: _Measured) -> str:
    latency = f"atency{measured.here}: median at batch 1, CPU time, 1 thread."
    if not measured.samples:
        nothing = "No data, so no accuracy and no fidelity: give --data."
        return f"{nothing} L{latency}" if measured.is_timed else nothing
    samples, sqnr_samples = measured.samples, measured.sqnr_samples
    count = f"{samples}" if samples == sqnr_samples else f"{samples} (SQNR: {sqnr_samples})"
    hint = ", for lack of --eval-data" if measured.on_calibration_data else ""
    fidelity = f"Accuracy and fidelity on {count} samples of {measured.samples_of}{hint}"
    return f"{fidelity}; l{latency}" if measured.is_timed else f"{fidelity}."


def _passes_table(passes: Sequence[PassRecord]) -> Table:
    checked = any(one.check is not None for one in passes)
    table = _table("pass", "sites", "declined", "weight bytes", "seconds", *(["outputs"] if checked else []))
    for one in passes:
        table.add_row(
            one.name,
            f"{len(one.rewrites.sites):,}",
            f"{len(one.rewrites.declined):,}",
            f"{one.after.size_bytes:,}",
            f"{one.seconds:.2f}",
            *([_describe_check(one.check)] if checked else []),
        )
    return table


def _describe_check(check: Check | None) -> str:
    if check is None or check.sqnr_db is None:
        return "not compared"
    return _sqnr(check.sqnr_db)


def _show_sites(console: Console, worst: Sequence[tuple[str, Site]]) -> None:
    if not worst:
        return
    table = _table("what hurts most", "operator", "local error", "pass", left=4)
    for name, site in worst[:_TOP]:
        error = _error(*next(iter(site.error.items())))  # the others are in the JSON
        table.add_row(site.name, site.kind, error, name)
    console.print(table)
    _show_rest(console, len(worst) - _TOP)


def _show_declined(console: Console, passes: Iterable[PassRecord]) -> None:
    """Print what each pass left alone, by reason, the most common first."""
    for record in passes:
        by_reason: dict[str, list[Declined]] = {}
        for declined in record.rewrites.declined:
            by_reason.setdefault(declined.reason, []).append(declined)
        if not by_reason:
            continue
        table = _table(f"left alone by {record.name}", "sites", "reason", left=3)
        ordered = sorted(by_reason.items(), key=lambda item: -len(item[1]))
        for reason, sites in ordered[:_TOP]:
            table.add_row(_names(site.name for site in sites), f"{len(sites)}", reason)
        console.print(table)
        _show_rest(console, len(ordered) - _TOP)


def _show_rest(console: Console, count: int) -> None:
    if count > 0:
        console.print(f"  ... and {count} more: see --json", style="dim")


def _table(*columns: str, left: int = 1) -> Table:
    """Return an empty table. left: how many columns hold text; numbers stand to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    return table


def _names(names: Iterable[str], shown: int = 2) -> str:
    every = list(names)
    rest = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + rest


def _ratio(before: int, after: int) -> str:
    if before == after:
        return "same"
    return f"{after / before:.3f}x" if before else _NONE


def _number(value: float | None) -> str:
    return _NONE if value is None else three_digits(value)


def _sqnr(value: float) -> str:
    return "identical" if value >= SQNR_CEILING_DB else f"{value:.1f} dB"


def _error(metric: str, value: float) -> str:
    if metric == "sqnr_db":
        return _sqnr(value)
    return (
        f"{value:.1f} dB ({metric.removesuffix('_db')})"
        if metric.endswith("_db")
        else f"{metric} {three_digits(value)}"
    )
