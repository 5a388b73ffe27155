"""The table of `pack`: which method coded how many tensors, and what became of their bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onnxpress.tools.report.numbers import three_digits

if TYPE_CHECKING:
    from rich.console import Console

    from onnxpress.tools.container import PackReport

__all__ = ["show_packing"]


def show_packing(console: Console, report: PackReport, written: str | os.PathLike[str] | None = None) -> None:
    """Print what each method did, the total, a warning where the packed model is the larger one, and where it is."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method")
    for heading in ("tensors", "before", "after", "ratio"):
        table.add_column(heading, justify="right")
    for row in report.methods:
        ratio = "" if row.ratio is None else f"{three_digits(row.ratio)}x"
        table.add_row(row.method, f"{row.tensors:,}", f"{row.before:,}", f"{row.after:,}", ratio)
    tensors = sum(row.tensors for row in report.methods)
    table.add_row("file", f"{tensors:,}", f"{report.before:,}", f"{report.after:,}", f"{three_digits(report.ratio)}x")
    console.print(table)
    if report.bits_per_weight is not None:
        console.print(f"{three_digits(report.bits_per_weight)} bits per weight")
    if report.warning:
        console.print(f"warning: {report.warning}", soft_wrap=True)
    if written is not None:
        console.print(f"written: {os.fspath(written)}")
