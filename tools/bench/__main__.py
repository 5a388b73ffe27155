"""Benchmarks: every published figure stands behind a command here.

python -m onnxpress.tools.bench ptq [MODEL ...] [--rounds N] [--limit N] [--json FILE|-] [--keep DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from onnxpress.ir.errors import OnnxpressError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m onnxpress.tools.bench", description=__doc__.splitlines()[0])
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    ptq = benchmarks.add_parser("ptq", help="post-training int8 quantization beside onnxruntime's own")
    ptq.add_argument("models", nargs="*", help="asset models, by the start of their name; all by default")
    ptq.add_argument("--rounds", type=int, default=200, help="interleaved latency rounds")
    ptq.add_argument("--limit", type=int, help="evaluate on so many images; all by default")
    ptq.add_argument("--json", help="write the rows as JSON, - for standard output")
    ptq.add_argument("--keep", type=Path, help="keep compiled models and prepared data in this folder")
    options = parser.parse_args(arguments)
    try:
        return _ptq(options)
    except OnnxpressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _ptq(options: argparse.Namespace) -> int:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.ptq import run

    rows = run(
        select(options.models), rounds=options.rounds, limit=options.limit, keep=options.keep,
        tell=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
    )  # fmt: skip
    records = [dataclasses.asdict(row) for row in rows]
    _print_table(records)
    if options.json:
        _write_json(options.json, records)
    return 0


def _write_json(target: str, records: list[dict[str, Any]]) -> None:
    import onnxruntime

    text = json.dumps({"onnxruntime": onnxruntime.__version__, "rows": records}, indent=1)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")


_HEADINGS = {
    "compiler": "compiler", "bytes": "bytes", "bytes_ratio": "of float", "macs": "MACs", "accuracy": "top-1 %",
    "agreement": "same %", "speed_1_thread": "speed t1", "speed_2_threads": "speed t2", "latency_ms": "ms t1",
    "fused": "fused", "unfused": "unfused", "left_float": "float", "cpu_seconds": "CPU s", "peak_rss_bytes": "peak MB",
}  # fmt: skip


def _print_table(records: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from onnxpress.tools.report.console import console

    terminal = console()
    for model in dict.fromkeys(record["model"] for record in records):
        table = Table(title=model, title_justify="left")
        for heading in _HEADINGS.values():
            table.add_column(heading, justify="left" if heading == "compiler" else "right")
        for record in (record for record in records if record["model"] == model):
            table.add_row(*(_cell(key, record[key]) for key in _HEADINGS))
        terminal.print(table)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "peak_rss_bytes":
        return f"{value / 2**20:.0f}"
    if key == "macs":
        return f"{value / 1e6:.1f} M"
    if isinstance(value, float):
        return f"{value:.3f}" if key in ("bytes_ratio", "latency_ms") else f"{value:.2f}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
