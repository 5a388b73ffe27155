"""Benchmarks: every published figure stands behind a command here.

python -m onnxpress.tools.bench ptq [MODEL ...] [--rounds N] [--limit N] [--keep DIR] [--json FILE|-]
python -m onnxpress.tools.bench prune [MODEL ...] [--times 1.25,1.5,2,3] [--by COMPILER,...] [all options of ptq]
python -m onnxpress.tools.bench factorize [MODEL ...] [--times 1.25,1.5,2,3] [--by COMPILER,...] [all options of ptq]
python -m onnxpress.tools.bench lowbit [MODEL ...] [--by PIPELINE,...] [all options of ptq]
python -m onnxpress.tools.bench targets [MODEL ...] [--by PASS,...] [--targets T,...] [--markdown FILE] [all of ptq]
python -m onnxpress.tools.bench profile [MODEL ...] [--by VARIANT,...] [--target T] [all options of ptq but --limit]
python -m onnxpress.tools.bench decisions [MODEL ...] [--by REWRITE,...] [--target T] [the same]
python -m onnxpress.tools.bench repeats [MODEL ...] [--rounds N] [--json FILE|-]
python -m onnxpress.tools.bench openvino [MODEL ...] [all options of ptq]
python -m onnxpress.tools.bench arm64 [MODEL ...] [--targets T,...] [--device DEVICE] [all options of ptq but --rounds]
python -m onnxpress.tools.bench pack [MODEL ...] [--json FILE|-]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from onnxpress.ir.errors import OnnxpressError, UsageError
from onnxpress.tools.outputs import check_outputs

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m onnxpress.tools.bench", description=__doc__.splitlines()[0])
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("models", nargs="*", help="asset models, by name or its start; all by default")
    shared.add_argument("--json", help="write the rows as JSON, - for standard output")
    shared.add_argument("--force", action="store_true", help="replace a JSON file that exists")
    kept, timed, evaluated = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    kept.add_argument("--keep", type=Path, help="keep compiled models and prepared data in this folder")
    timed.add_argument("--rounds", type=_positive, default=200, help="interleaved latency rounds")
    evaluated.add_argument("--limit", type=_positive, help="evaluate on so many images; all by default")
    usual = [shared, kept, timed, evaluated]
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    benchmarks.add_parser("ptq", parents=usual, help="post-training int8 quantization beside onnxruntime's own")
    for name, what in (("prune", "channel pruning"), ("factorize", "low rank and separable convolutions")):
        reduction = benchmarks.add_parser(name, parents=usual, help=f"{what} without labels, beside baselines")
        reduction.add_argument("--times", default="1.25,1.5,2,3", help="how many times fewer MACs to ask for, > 1 each")
        reduction.add_argument("--by", help="compilers to run, with commas between; all by default")
    lowbit = benchmarks.add_parser("lowbit", parents=usual, help="weights of 1 to 8 bits, packed and run")
    lowbit.add_argument("--by", help="pipelines to run, with commas between; all by default")
    targets = benchmarks.add_parser("targets", parents=usual, help="every pass on every target, run there")
    targets.add_argument("--by", help="passes to run, with commas between; all by default")
    targets.add_argument("--targets", help="targets to lower to, with commas between; all by default")
    targets.add_argument("--markdown", type=Path, help="write the table as a page")
    for name, what in (("profile", "predicted beside measured time"), ("decisions", "what is slower, node by node")):
        predicting = benchmarks.add_parser(name, parents=[shared, kept, timed], help=what)
        predicting.add_argument("--by", help="variants to time, with commas between; all by default")
        predicting.add_argument("--target", default="host-cpu", help="whose estimate predicts: a name, or a profile")
        predicting.set_defaults(rounds=500)
    repeats = benchmarks.add_parser("repeats", parents=[shared, timed], help="profiles beside a busy process")
    repeats.set_defaults(rounds=500)
    benchmarks.add_parser("openvino", parents=usual, help="int8 beside float, both on OpenVINO")
    arm64 = benchmarks.add_parser(
        "arm64", parents=[shared, kept, evaluated], help="mobile-cpu's results on emulated Arm64 beside here"
    )
    arm64.add_argument("--targets", default="mobile-cpu", help="targets to lower to, with commas between")
    arm64.add_argument("--device", help="another device to compare with; by default emulation is set up below --keep")
    benchmarks.add_parser("pack", parents=[shared], help="the .onnxp container beside xz")
    options = parser.parse_args(arguments)
    try:
        check_outputs({"--json": options.json}, {}, force=options.force)
        bench = {
            "ptq": _ptq, "lowbit": _lowbit, "targets": _targets, "openvino": _openvino, "pack": _pack,
            "profile": _profile, "decisions": _decisions, "repeats": _repeats, "arm64": _arm64,
        }  # fmt: skip
        rows, headings = bench.get(options.benchmark, _reduction)(options)
    except OnnxpressError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of --keep, most of all
        print(f"error: {error}", file=sys.stderr)
        return UsageError.exit_code
    if options.json:  # first: what took hours outlives whatever goes wrong in telling it
        _write_json(options.json, rows)
    _print_table(rows, headings)
    if options.benchmark == "profile":
        _tell_summary(rows)
    return int(bool(rows) and all(row.get("status") for row in rows))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be 1 at least")
    return number


_Rows: TypeAlias = list[dict[str, Any]]
_Headings: TypeAlias = dict[str, str]


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _ptq(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.ptq import run

    rows = run(select(options.models, "ptq"), rounds=options.rounds, limit=options.limit, keep=options.keep, tell=_tell)
    return [dataclasses.asdict(row) for row in rows], _PTQ_HEADINGS


def _reduction(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.reducers import FACTORIZERS, PRUNERS
    from onnxpress.tools.bench.reduction import parse_compilers, parse_times, run

    compilers = parse_compilers(options.by, PRUNERS if options.benchmark == "prune" else FACTORIZERS)
    rows = run(
        select(options.models, options.benchmark), parse_times(options.times), compilers,
        rounds=options.rounds, limit=options.limit, keep=options.keep, tell=_tell,
    )  # fmt: skip
    return [dataclasses.asdict(row) for row in rows], _REDUCTION_HEADINGS


def _lowbit(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.encoders import ENCODERS, TUNED
    from onnxpress.tools.bench.lowbit import HEADINGS, run
    from onnxpress.tools.bench.reduction import parse_compilers

    rows = run(
        select(options.models, "lowbit"),
        parse_compilers(options.by, [*ENCODERS, *TUNED]),
        rounds=options.rounds, limit=options.limit, keep=options.keep, tell=_tell,
    )  # fmt: skip
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _targets(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.reduction import parse_compilers
    from onnxpress.tools.bench.targets import HEADINGS, PASSES, TARGETS, markdown, run

    rows = run(
        select(options.models, "ptq"),
        parse_compilers(options.by, PASSES, what="pass"),
        parse_compilers(options.targets, TARGETS, option="--targets", what="target"),
        rounds=options.rounds, limit=options.limit, keep=options.keep, tell=_tell,
    )  # fmt: skip
    if options.markdown:
        options.markdown.write_text(markdown(rows), encoding="utf-8")
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _profile(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.profiles import HEADINGS, VARIANTS, run
    from onnxpress.tools.bench.reduction import parse_compilers

    rows = run(
        select(options.models, "ptq"),
        parse_compilers(options.by, VARIANTS, what="variant"),
        target=options.target, rounds=options.rounds, keep=options.keep, tell=_tell,
    )  # fmt: skip
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _tell_summary(records: _Rows) -> None:
    from onnxpress.tools.bench.profiles import Row, summarize

    summary = summarize([Row(**record) for record in records])
    if summary is not None:
        known = {key: value for key, value in dataclasses.asdict(summary).items() if value is not None}
        _tell(", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in known.items()))


def _decisions(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.decisions import HEADINGS, REWRITES, run
    from onnxpress.tools.bench.reduction import parse_compilers

    rows = run(
        select(options.models, "ptq"),
        parse_compilers(options.by, REWRITES, what="rewrite"),
        target=options.target, rounds=options.rounds, keep=options.keep, tell=_tell,
    )  # fmt: skip
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _repeats(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.repeats import HEADINGS, run

    rows = run(select(options.models, "ptq"), rounds=options.rounds, tell=_tell)
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _openvino(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.assets import select
    from onnxpress.tools.bench.openvino import HEADINGS, run

    rows = run(select(options.models, "ptq"), rounds=options.rounds, limit=options.limit, keep=options.keep, tell=_tell)
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _arm64(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.arm64 import HEADINGS, MODELS, TARGETS, run
    from onnxpress.tools.bench.arm64_system import make_system
    from onnxpress.tools.bench.assets import select, working_folder
    from onnxpress.tools.bench.reduction import parse_compilers

    targets = parse_compilers(options.targets, TARGETS, option="--targets", what="target")
    with working_folder(options.keep) as folder:
        device = options.device or make_system(folder / "arm64", _tell)
        assets = select(options.models or list(MODELS), "ptq")
        rows = run(assets, targets, device, limit=options.limit, keep=folder, tell=_tell)
    return [dataclasses.asdict(row) for row in rows], HEADINGS


def _pack(options: argparse.Namespace) -> tuple[_Rows, _Headings]:
    from onnxpress.tools.bench.packing import HEADINGS, run

    return [dataclasses.asdict(row) for row in run(options.models, tell=_tell)], HEADINGS


def _write_json(target: str, records: _Rows) -> None:
    import onnxruntime

    text = json.dumps({"onnxruntime": onnxruntime.__version__, "rows": records}, indent=1)
    if target == "-":
        print(text)
    else:
        Path(target).write_text(text + "\n", encoding="utf-8")


_PTQ_HEADINGS = {
    "compiler": "compiler", "bytes": "bytes", "bytes_ratio": "of float", "macs": "MACs", "accuracy": "top-1 %",
    "agreement": "same %", "speed_1_thread": "speed t1", "speed_2_threads": "speed t2", "latency_ms": "ms t1",
    "fused": "fused", "unfused": "unfused", "left_float": "float", "cpu_seconds": "CPU s", "peak_rss_bytes": "peak MB",
}  # fmt: skip
_REDUCTION_HEADINGS = {
    "compiler": "compiler", "times": "asked", "macs_ratio": "MACs /", "params_ratio": "params /",
    "bytes_ratio": "bytes /", "accuracy": "top-1 %", "drop": "drop", "agreement": "same %",
    "latency_ratio": "time t1", "cpu_seconds": "CPU s", "peak_rss_bytes": "peak MB", "status": "status",
}  # fmt: skip


def _print_table(records: _Rows, headings: _Headings) -> None:
    from rich.table import Table

    from onnxpress.tools.report.console import console

    terminal = console()
    for model in dict.fromkeys(record["model"] for record in records):
        table = Table(title=model, title_justify="left")
        for key, heading in headings.items():
            table.add_column(heading, justify="left" if key in ("compiler", "status") else "right")
        for record in (record for record in records if record["model"] == model):
            table.add_row(*(_cell(key, record[key]) for key in headings))
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
