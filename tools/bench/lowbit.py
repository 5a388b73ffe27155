"""Weights of few bits on every asset: accuracy, bytes as .onnx and as .onnxp, load time and speed, measured in one run.

For each model: the original and what every pipeline of `encoders` makes of it, on 512 calibration images where there
are as many. Accuracy runs with the runtime's optimizations on. Latencies of all files of one model are interleaved in
shuffled rounds, CPU time of the calling thread; loading is the CPU time of creating a session, the least of three. A
pipeline that fails leaves a row that says why.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.errors import OnnxpressError
from onnxpress.ir.model_io import load
from onnxpress.targets.runtimes.onnxruntime_cpu import interleaved_latency
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.bench.child import CompilerError, encode_in_child
from onnxpress.tools.bench.encoders import ENCODERS, TUNED
from onnxpress.tools.bench.evaluation import Evaluation
from onnxpress.tools.container import open_session, pack

__all__ = ["HEADINGS", "Row", "pipelines", "run"]

HEADINGS = {
    "compiler": "pipeline", "accuracy": "top-1 %", "drop": "drop", "agreement": "same %", "size_bytes": ".onnx",
    "times_smaller": "times", "packed_bytes": ".onnxp", "times_packed": "times", "bits_per_weight": "bits/weight",
    "load_ratio": "load", "latency_ratio": "time t1", "latency_of_int8": "of int8", "cpu_seconds": "CPU s",
    "peak_rss_bytes": "peak MB", "status": "status",
}  # fmt: skip

_SAMPLES = 512
_LOADS = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One model file. status: one line on why there is none; unmeasured numbers are None.

    drop: accuracy lost, in points. agreement: percent of images that get the original's class. times_smaller,
    times_packed: the original .onnx file's bytes over the .onnx's and the .onnxp's. bits_per_weight: of the weights in
    the .onnx. load_ratio, latency_ratio: CPU time to create a session and to run it, one thread, over the original's.
    latency_of_int8: time to run over that of the row "int8". cpu_seconds, peak_rss_bytes: what compiling cost.
    """

    model: str
    compiler: str
    accuracy: float | None = None
    drop: float | None = None
    agreement: float | None = None
    size_bytes: int | None = None
    times_smaller: float | None = None
    packed_bytes: int | None = None
    times_packed: float | None = None
    bits_per_weight: float | None = None
    load_seconds: float | None = None
    load_ratio: float | None = None
    latency_ratio: float | None = None
    latency_of_int8: float | None = None
    cpu_seconds: float | None = None
    peak_rss_bytes: float | None = None
    status: str = ""


def run(
    assets: list[Asset],
    encoders: Sequence[str],
    *,
    rounds: int = 200,
    limit: int | None = None,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset and pipeline. keep: where compiled models and prepared data stay."""
    rows = []
    with working_folder(keep) as folder:
        for asset in assets:
            rows.extend(_bench(asset, encoders, folder, rounds, limit, tell))
    return rows


def pipelines(model: str, encoders: Sequence[str]) -> dict[str, str]:
    """Return the pipelines of the encoders by name, without those that are tuned for other models alone."""
    tuned = {name: text for name, texts in TUNED.items() for start, text in texts.items() if model.startswith(start)}
    known = ENCODERS | tuned
    return {name: known[name] for name in encoders if name in known}


def _bench(
    asset: Asset,
    encoders: Sequence[str],
    folder: Path,
    rounds: int,
    limit: int | None,
    tell: Callable[[str], None],
) -> list[Row]:
    if asset.samples is not None:
        asset = dataclasses.replace(asset, samples=_SAMPLES)
    original, calibration, evaluation = prepare(asset, folder, limit=limit)
    table = _Table(asset, original, evaluation)
    rows = {original: table.measure(Row(asset.model, "float32"), original, folder)}
    for name, text in pipelines(asset.model, encoders).items():
        tell(f"{asset.model}, {name} ...")
        out = folder / f"{asset.model}.{name}.onnx"
        row = Row(asset.model, name)
        try:
            spent = encode_in_child(text, original, calibration, out)
            row = dataclasses.replace(row, cpu_seconds=spent["cpu_seconds"], peak_rss_bytes=spent["peak_rss_bytes"])
            rows[out] = table.measure(row, out, folder)
        except CompilerError as error:
            rows[out] = dataclasses.replace(row, status=error.reason)
        except OnnxpressError as error:
            rows[out] = dataclasses.replace(row, status=" ".join(str(error).split()))
    return _timed(rows, original, table, rounds)


def _timed(rows: dict[Path, Row], original: Path, table: _Table, rounds: int) -> list[Row]:
    """Add latencies of all files, interleaved."""
    paths = {str(path): path for path, row in rows.items() if row.accuracy is not None}
    latencies = interleaved_latency(paths, table.evaluation.images.head(1).feeds, rounds=rounds, threads=1)
    base = latencies[str(original)]
    int8 = next(
        (latencies[str(path)] for path, row in rows.items() if row.compiler == "int8" and str(path) in paths), None
    )
    return [
        row
        if str(path) not in paths
        else dataclasses.replace(
            row,
            latency_ratio=1 / speedup(base, latencies[str(path)]),
            latency_of_int8=None if int8 is None else 1 / speedup(int8, latencies[str(path)]),
        )
        for path, row in rows.items()
    ]


class _Table:
    """What the rows of one model have in common: the original's numbers and the images."""

    def __init__(self, asset: Asset, original: Path, evaluation: Path) -> None:
        self.size_bytes = original.stat().st_size
        self.evaluation = Evaluation(original, evaluation)
        self.load_seconds = _load_seconds(original)

    def measure(self, row: Row, path: Path, folder: Path) -> Row:
        """Fill in all but the latency."""
        found = cost(load(path))
        packed = pack(path, folder / f"{path.stem}.onnxp", overwrite=True).after
        size, seconds = path.stat().st_size, _load_seconds(path)
        return dataclasses.replace(
            row,
            **dataclasses.asdict(self.evaluation.score(path)),
            size_bytes=size,
            times_smaller=self.size_bytes / size,
            packed_bytes=packed,
            times_packed=self.size_bytes / packed,
            bits_per_weight=8 * found.weight_bytes / found.params,
            load_seconds=seconds,
            load_ratio=seconds / self.load_seconds,
        )


def _load_seconds(path: Path) -> float:
    taken = []
    for _ in range(_LOADS):
        start = time.thread_time()
        open_session(path)
        taken.append(time.thread_time() - start)
    return min(taken)
