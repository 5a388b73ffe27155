"""Fewer MACs on every asset at several budgets, without labels, beside baselines, measured in one run.

For each model: the original, and for each budget every compiler of one table of `reducers` that is installed, on at
most 512 calibration images. Accuracy runs with the runtime's optimizations on. The latencies of all files of one model
are interleaved in shuffled rounds: CPU time of the calling thread. A compiler that fails, or that cannot meet a budget,
leaves a row that says why.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.errors import OnnxpressError, UsageError, near_names
from onnxpress.ir.model_io import load
from onnxpress.targets.runtimes.onnxruntime_cpu import interleaved_latency
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.bench.child import CompilerError, compile_in_child
from onnxpress.tools.bench.evaluation import Evaluation
from onnxpress.tools.bench.reducers import PACKAGES

__all__ = ["Row", "parse_compilers", "parse_times", "run"]

_SAMPLES = 512
_ORIGINAL = "float32"
_SLACK = 1e-3  # of the asked factor: rounding, no more


@dataclasses.dataclass(frozen=True)
class Row:
    """One model file. status: one line on why there is none, or why it misses the budget; unmeasured numbers are None.

    times: how many times fewer MACs were asked for. *_ratio of MACs, params and bytes: the original's over this one's;
    latency_ratio: this one's time over the original's, one thread. drop: accuracy lost, in points. agreement: percent
    of images that get the original's class. cpu_seconds, peak_rss_bytes: what compiling cost.
    """

    model: str
    compiler: str
    times: float
    macs_ratio: float | None = None
    params_ratio: float | None = None
    bytes_ratio: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    agreement: float | None = None
    latency_ratio: float | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: float | None = None
    status: str = ""


def parse_times(text: str) -> list[float]:
    """Return the factors that `text` lists with commas between.

    Raises:
        UsageError: one of them is no finite number above 1.
    """
    times = []
    for word in text.split(","):
        try:
            factor = float(word)
        except ValueError:
            factor = 0.0
        if not 1 < factor < float("inf"):
            raise UsageError(f"--times {text}: {word.strip()!r} is no number above 1. Write them as in 1.5,2,3")
        times.append(factor)
    return times


def parse_compilers(
    text: str | None, known: Iterable[str], *, option: str = "--by", what: str = "compiler"
) -> list[str]:
    """Return the compilers that `text` lists with commas between; all that are known where there is none.

    option, what: where the text was given, and what a message calls an entry.

    Raises:
        UsageError: one of them is not known; with near names.
    """
    names = list(known)
    if text is None:
        return names
    chosen = [word.strip() for word in text.split(",")]
    for name in chosen:
        if name not in names:
            raise UsageError(
                f"{option} {text}: {name!r} is no {what}.{near_names(name, names)} There are: {', '.join(names)}"
            )
    return chosen


def run(
    assets: list[Asset],
    times: Sequence[float],
    compilers: Iterable[str],
    *,
    rounds: int = 200,
    limit: int | None = None,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset, budget and compiler. keep: where compiled models and prepared data stay."""
    installed = _installed(compilers, tell)
    rows = []
    with working_folder(keep) as folder:
        for asset in assets:
            rows.extend(_bench(asset, times, installed, folder, rounds, limit, tell))
    return rows


def _installed(compilers: Iterable[str], tell: Callable[[str], None]) -> list[str]:
    found = []
    for name in compilers:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            tell(f"{name} is left out: the package {PACKAGES[name]} is not installed")
        else:
            found.append(name)
    return found


def _bench(
    asset: Asset,
    times: Sequence[float],
    compilers: Sequence[str],
    folder: Path,
    rounds: int,
    limit: int | None,
    tell: Callable[[str], None],
) -> list[Row]:
    if asset.samples is not None:
        asset = dataclasses.replace(asset, samples=_SAMPLES)
    original, calibration, evaluation = prepare(asset, folder, limit=limit)
    table = _Table(asset, original, calibration, evaluation)
    rows = {original: table.measure(Row(asset.model, _ORIGINAL, 1.0), original)}
    for factor in times:
        for compiler in compilers:
            tell(f"{asset.model}, {factor:g} times, {compiler} ...")
            out = folder / f"{asset.model}.{compiler}.{factor:g}.onnx"
            rows[out] = table.row(compiler, factor, out)
    paths = {str(path): path for path, row in rows.items() if row.macs_ratio is not None}
    latencies = interleaved_latency(paths, table.evaluation.images.head(1).feeds, rounds=rounds, threads=1)
    base = latencies[str(original)]
    return [
        row
        if row.macs_ratio is None
        else dataclasses.replace(row, latency_ratio=1 / speedup(base, latencies[str(path)]))
        for path, row in rows.items()
    ]


class _Table:
    """What the rows of one model have in common: the original's numbers and the images."""

    def __init__(self, asset: Asset, original: Path, calibration: Path, evaluation: Path) -> None:
        self.asset, self.original, self.calibration = asset, original, calibration
        model = load(original)
        self.cost = cost(model)
        self.evaluation = Evaluation(original, evaluation)

    def row(self, compiler: str, times: float, out: Path) -> Row:
        """Compile and measure all but the latency; what fails is told in the row's status."""
        row = Row(self.asset.model, compiler, times)
        try:
            spent = compile_in_child(compiler, self.original, self.calibration, out, self.asset.input_name, times=times)
            row = dataclasses.replace(row, cpu_seconds=spent["cpu_seconds"], peak_rss_bytes=spent["peak_rss_bytes"])
            # Once alone, so that a file that the runtime refuses does not spoil the timing of the others.
            interleaved_latency({compiler: out}, self.evaluation.images.head(1).feeds, rounds=1, warmup=1)
            row = self.measure(row, out)
        except CompilerError as error:
            return dataclasses.replace(row, status=error.reason)
        except OnnxpressError as error:
            return dataclasses.replace(row, status=" ".join(str(error).split()))
        assert row.macs_ratio is not None, "measured just now"
        if row.macs_ratio < times * (1 - _SLACK):
            row = dataclasses.replace(row, status=f"only {row.macs_ratio:.3g} times fewer MACs")
        return row

    def measure(self, row: Row, path: Path) -> Row:
        """Fill in what the model at `path` costs and how well it does."""
        model = load(path)
        found = cost(model)
        return dataclasses.replace(
            row,
            macs_ratio=self.cost.macs / found.macs,
            params_ratio=self.cost.params / found.params,
            bytes_ratio=self.original.stat().st_size / path.stat().st_size,
            **dataclasses.asdict(self.evaluation.score(path)),
        )
