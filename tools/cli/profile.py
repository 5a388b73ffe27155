"""`onnxpress profile`: where a model's time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxpress.ir.errors import UsageError
from onnxpress.tools.cli.options import DEFAULT_TARGET, Data, Force, Json, Model, Target

__all__ = ["profile"]

_ALL = "all"


def profile(
    model: Model,
    target: Target = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="R",
            show_default=False,
            help="What runs it; the target's own by default. 'all' is a table over those that are here.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="D",
            show_default=False,
            help="Another machine: ssh://user@host, which needs Python with onnxruntime; adb://serial, which needs "
            "onnxruntime_perf_test; or qemu://SYSROOT, an Arm64 Linux under emulation.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1,
            show_default=False,
            help="Of all that --device does; 600 by default.",
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="OTHER", help="A second model, side by side by node.", show_default=False),
    ] = None,
    data: Data = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", min=5, help="Rounds at most; time bounds them too.")
    ] = 500,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Of the runtime.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Print every step, in the order in which they run.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", metavar="F.json", help="Write a trace for chrome://tracing.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="F.html", help="Write a page with pictures.", show_default=False),
    ] = None,
    json: Json = None,
    force: Force = False,
) -> None:
    """Measure MODEL in a runtime, node by node, beside what the target's cost estimate predicts.

    Times are CPU time of one thread where one thread computes, which a busy machine stretches least. Without --data the
    input is made up: time hardly depends on its numbers. It does on sizes: a model that leaves some open needs --data.
    --json of MODEL alone is its profile; with --compare it holds both as a list, "models", and the "speedup".
    """
    from onnxpress.tools.outputs import check_outputs

    outputs = {"--json": json, "--trace": trace, "--report": report}
    inputs = {"MODEL": model, "--compare": compare, "--data": data, "--target": target}
    check_outputs(outputs, inputs, force=force)
    if device is not None and runtime is not None:
        raise UsageError("--device: it runs models in its onnxruntime. Leave --runtime out.")
    if timeout is not None and device is None:
        raise UsageError("--timeout: it bounds what --device does. Give --device, or leave it out.")
    if runtime == _ALL:
        _require_alone(target=target, compare=compare, trace=trace, report=report, all=every or None)
        _table(model, data, runs, threads, json, force)
    else:
        _profile(
            model, target, runtime, device, timeout, compare, data, runs, threads, every, trace, report, json, force
        )


def _require_alone(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name}: --runtime all makes a table, and has no use for it. Name one runtime.")


def _table(model: Path, data: str | None, runs: int, threads: int, json: str | None, force: bool) -> None:
    import dataclasses

    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.profile_tables import show_runtimes
    from onnxpress.tools.runtimes import compare_runtimes

    rows = compare_runtimes(model, data=data, rounds=runs, threads=threads)
    show_runtimes(console(), rows)
    told = [{**dataclasses.asdict(row), "times": None if row.times is None else row.times.to_json()} for row in rows]
    write_json(json, {"model": str(model), "runtimes": told}, overwrite=force)


def _profile(
    model: Path,
    target: str | None,
    runtime: str | None,
    device: str | None,
    timeout: float | None,
    other: Path | None,
    data: str | None,
    runs: int,
    threads: int,
    every: bool,
    trace: Path | None,
    report: Path | None,
    json: str | None,
    force: bool,
) -> None:
    from onnxpress.targets.base import load_target
    from onnxpress.tools.device_profiling import TIMEOUT_SECONDS, profile_on_device
    from onnxpress.tools.outputs import write_text
    from onnxpress.tools.profiling import profile as measure
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import json_text, write_json
    from onnxpress.tools.report.profile_page import profile_page, require_plotly
    from onnxpress.tools.report.profile_tables import show_comparison_by_node, show_profile
    from onnxpress.tools.report.trace import trace_events

    if report is not None:
        require_plotly()
    chosen = load_target(target or DEFAULT_TARGET)
    models = [model, *([] if other is None else [other])]
    if device is None:
        found = measure(*models, target=chosen, runtime=runtime, data=data, rounds=runs, threads=threads)
    else:
        found = profile_on_device(
            *models, device=device, target=chosen, data=data, rounds=runs, threads=threads,
            timeout_seconds=TIMEOUT_SECONDS if timeout is None else timeout,
        )  # fmt: skip
    for one in found.profiles:
        show_profile(console(), one, every=every)
    if other is not None:
        first, second = found.profiles
        show_comparison_by_node(console(), first, second, found.speedup, every=every)
    if trace is not None:
        write_text(trace, json_text(trace_events(found.profiles)), overwrite=force)
    if report is not None:
        write_text(report, profile_page(found.profiles, chosen.profile.roofline), overwrite=force)
    write_json(json, found.to_json(), overwrite=force)
