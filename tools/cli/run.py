"""Carry out a checked plan of `compress`, show it to people, and write what was asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.tools.plan import Plan
    from onnxpress.tools.result import Report

__all__ = ["compress_and_tell"]

_NO_OUT = "no output was asked for"


def compress_and_tell(
    plan: Plan,
    destination: Path | None,
    *,
    json: str | None = None,
    save_recipe: Path | None = None,
    force: bool = False,
    verify_each: bool = False,
    print_after_all: bool = False,
    print_after_change: bool = False,
    crash_dir: Path | None = None,
) -> Report:
    """Run `plan` with progress, write the model, the recipe and the JSON, and print the tables.

    destination: None writes no model; one that ends in .onnxp is packed. Output paths were checked before. The JSON
    says under `written` where the model is; false, with the `reason`, where there is none; `packing` is what packing
    it took.

    Raises:
        OnnxpressError: as `tools.compress.run`; then nothing is written, but the JSON of a missed `max_drop`.
    """
    from onnxpress.tools.compress import Watch, run, with_written_size
    from onnxpress.tools.container import SUFFIX, pack
    from onnxpress.tools.outputs import require_format
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.facts import say, show_plan
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.packing import show_packing
    from onnxpress.tools.report.progress import watch_progress
    from onnxpress.tools.result import DropError

    if destination is not None:
        require_format(destination, plan.target.name, is_tflite=plan.target.profile.runtime == "litert")
    show_plan(plan)
    try:
        with watch_progress() as progress:
            watch = Watch(
                verify_each=verify_each,
                print_after_all=print_after_all,
                print_after_change=print_after_change,
                printer=say,
                crash_dir=crash_dir,
                progress=progress,
            )
            result = run(plan, watch)
    except DropError as error:
        _show(error.report)
        say(_describe_time(error.report))
        write_json(json, {**error.report.to_json(), "written": False, "reason": str(error)}, overwrite=force)
        raise
    packing = None
    if destination is not None and destination.suffix == SUFFIX:
        packing = pack(result.model, destination, overwrite=force)
    elif destination is not None:
        result.save(destination, overwrite=force)
    if save_recipe is not None:
        result.recipe.write(save_recipe, overwrite=force)
    report = result.report if packing is None else with_written_size(result.report, packing.after)
    _show(report)
    written: dict[str, Any] = {"written": False, "reason": _NO_OUT}
    if packing is not None:
        show_packing(console(), packing)
    if destination is not None:
        say(f"written: {os.fspath(destination)}")
        written = {"written": os.fspath(destination)}
    if packing is not None:
        written["packing"] = packing.to_json()
    say(_describe_time(report))
    write_json(json, {**report.to_json(), **written}, overwrite=force)
    return report


def _describe_time(report: Report) -> str:
    return f"{report.seconds:.1f} s in all, {report.measuring_seconds:.1f} s of them measuring"


def _show(report: Report) -> None:
    # Imported late, so that the tables' memory does not come on top of the run's.
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.tables import show_report

    show_report(console(), report)
