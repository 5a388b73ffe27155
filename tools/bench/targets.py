"""Every pass on every target: is it legal there, does its runtime compute the compressed graph, and what does it gain.

A model is compressed once for all targets, behind `cleanup, fold-batchnorm`; passes whose answer depends on what a
target computes in integers or float16 run once for each. Each target lowers its own copy. Fidelity is the
signal-to-noise ratio of the runtime's outputs against the compressed graph in onnxruntime without optimizations;
accuracy is the runtime's, on all evaluation images; speed is CPU time of one thread over that of the float model in
the same runtime, all files of a model and target interleaved. Targets whose runtime is not here run on onnxruntime's
CPU provider, and their speed is not measured. Those whose runtime is here are timed, on another machine than they
describe where that is so: rows and page say it.
"""

from __future__ import annotations

import dataclasses
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import Session
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import OnnxpressError, UsageError
from onnxpress.passes.base import Context
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.runtimes.base import Array, Feeds, Prepared, Runtime, race
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.metrics import SQNR_CEILING_DB

__all__ = ["HEADINGS", "PASSES", "TARGETS", "Row", "markdown", "run"]

TARGETS = ("x86-vnni", "mobile-cpu", "mobile-cpu-litert", "openvino", "gpu", "tensorrt")
PASSES = {
    "cleanup": "",
    "prune-channels": "prune-channels{ratio=0.1}",
    "low-rank": "low-rank{energy=0.95}",
    "separable": "separable{energy=0.9}",
    "quantize-int8": "quantize-int8",
    "ternarize": "ternarize",
    "palettize": "palettize",
    "float16": "float16",
}
HEADINGS = {
    "compiler": "passes", "target": "target", "runtime": "run by", "illegal": "illegal", "sqnr_db": "SQNR dB",
    "accuracy": "top-1 %", "drop": "drop", "bytes_ratio": "of float", "speed": "speed t1", "status": "status",
}  # fmt: skip

_PAGE = """# Every pass on every target

Written by `python -m onnxpress.tools.bench targets --markdown docs/targets.md`, evaluated on the first so many test
images as each table says (`--limit`). Each cell: points of top-1 accuracy lost against the original in onnxruntime;
bytes of what the runtime reads, of the original file; speed over the float model in the same runtime, CPU time of one
thread; and how near the runtime's outputs come to those of the compressed graph, as a signal-to-noise ratio. A cell
says where nodes are illegal, or why there is no number. All passes run behind `cleanup, fold-batchnorm`, calibrated on
256 images (ImageNet nets: 100) and not fine-tuned.
"""
_LITERT = "On `mobile-cpu-litert` bytes are of the .tflite file, whose weights are int8 at the narrowest."
_WIDTH = 120  # of the page's lines of text

_FIRST = "cleanup, fold-batchnorm"
_PER_TARGET = ("quantize-int8", "float16")  # these ask the target what it computes in integers or in float16
_STAND_IN = "onnxruntime-cpu"
_FIDELITY_IMAGES = 16
_LATENCY_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One model, pass and target.

    runtime: what ran it. is_stand_in: in place of the target's own, which is not here. is_elsewhere: by the target's
    own, on another machine than it describes. illegal: nodes that break a rule of the target. sqnr_db: of the first
    output on 16 images, against the compressed graph. accuracy: top-1 in percent, on `images`; drop: the original's in
    onnxruntime less this, in points. bytes_ratio: of what the runtime reads over the original's file. speed: times
    faster than the float model in that runtime; None by a stand-in. status: why there is no number.
    """

    model: str
    compiler: str
    target: str
    runtime: str
    is_stand_in: bool = False
    is_elsewhere: bool = False
    illegal: int | None = None
    sqnr_db: float | None = None
    accuracy: float | None = None
    drop: float | None = None
    bytes_ratio: float | None = None
    speed: float | None = None
    images: int = 0
    status: str = ""


def run(
    assets: list[Asset],
    passes: Sequence[str] = tuple(PASSES),
    targets: Sequence[str] = TARGETS,
    *,
    rounds: int = 200,
    limit: int | None = None,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset, pass and target. keep: where prepared data stays."""
    rows: list[Row] = []
    with working_folder(keep) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of few calibration images: they are a benchmark's choice
        for asset in assets:
            bench = _Bench(asset, folder, limit, tell)
            compressed = bench.compress_all([name for name in passes if name not in _PER_TARGET])
            for name in targets:
                rows += bench.on_target(load_target(name), passes, compressed, rounds)
    return rows


class _Bench:
    """One model, and its images."""

    def __init__(self, asset: Asset, folder: Path, limit: int | None, tell: Callable[[str], None]) -> None:
        path, calibration, evaluation = prepare(asset, folder, limit=limit)
        self._asset, self._tell = asset, tell
        self._original = model_io.load(path)
        self._size = path.stat().st_size
        self._calibration = open_data(calibration, model=self._original)
        with np.load(evaluation) as arrays:
            self._images, self._labels = arrays[asset.input_name], arrays["labels"]
        self._float = self._compress("cleanup", load_target(TARGETS[0]).constraints)
        reference = load_runtime(_STAND_IN).prepare(self._original, self._feeds(0))
        self._accuracy = self._score(reference)

    def compress_all(self, passes: Iterable[str]) -> dict[str, onnx_ir.Model | str]:
        """Return what the passes make of the model, not lowered; for one that fails, why."""
        constraints = load_target(TARGETS[0]).constraints
        return {name: self._try_compress(name, constraints) for name in passes}

    def on_target(
        self, target: Target, passes: Sequence[str], shared: dict[str, onnx_ir.Model | str], rounds: int
    ) -> Iterator[Row]:
        """Yield the target's rows."""
        runtime, is_real = _runtime(target)
        rows = {
            name: Row(
                self._asset.model, name, target.name, runtime.name, is_stand_in=not is_real,
                is_elsewhere=is_real and runtime.single_thread_clock is not None and not target.is_here,
            )
            for name in passes
        }  # fmt: skip
        try:
            ready: dict[str, Prepared] = {"": runtime.prepare(self._float, self._feeds(0))}
        except OnnxpressError as error:
            cause = f"the float model: {' '.join(str(error).split())}"
            yield from (dataclasses.replace(row, status=cause) for row in rows.values())
            return
        for name, row in rows.items():
            self._tell(f"{self._asset.model}, {name} for {target.name} ...")
            model = shared[name] if name in shared else self._try_compress(name, target.constraints)
            try:
                rows[name] = self._measure(row, model, target, runtime, ready)
            except OnnxpressError as error:
                rows[name] = dataclasses.replace(row, status=" ".join(str(error).split()))
        times = race(runtime, ready, rounds=rounds, max_seconds=_LATENCY_SECONDS) if is_real else {}
        for name, row in rows.items():
            yield dataclasses.replace(row, speed=speedup(times[""], times[name])) if name in times else row

    def _compress(self, name: str, constraints: Constraints) -> onnx_ir.Model:
        text = ", ".join(filter(None, (_FIRST, PASSES[name])))
        context = Context(constraints=constraints, data=self._calibration)
        return PassManager(build(text)).run(self._original, context)[0]

    def _try_compress(self, name: str, constraints: Constraints) -> onnx_ir.Model | str:
        self._tell(f"{self._asset.model}, {name} ...")
        try:
            return self._compress(name, constraints)
        except OnnxpressError as error:
            return " ".join(str(error).split())

    def _measure(
        self, row: Row, model: onnx_ir.Model | str, target: Target, runtime: Runtime, ready: dict[str, Prepared]
    ) -> Row:
        if isinstance(model, str):
            return dataclasses.replace(row, status=model)
        lowered = model.clone()
        target.lower(lowered)
        illegal = sum(found.severity == "illegal" for found in target.check(lowered))
        ready[row.compiler] = prepared = runtime.prepare(lowered, self._feeds(0))
        accuracy = self._score(prepared)
        return dataclasses.replace(
            row,
            illegal=illegal,
            sqnr_db=self._fidelity(model, prepared),
            accuracy=accuracy,
            drop=self._accuracy - accuracy,
            bytes_ratio=prepared.size_bytes / self._size,
            images=len(self._labels),
        )

    def _feeds(self, index: int) -> Feeds:
        return {self._asset.input_name: self._images[index : index + 1]}

    def _run(self, prepared: Prepared, index: int) -> Array:
        prepared.feed(self._feeds(index))
        prepared.compute()
        return next(iter(prepared.fetch().values()))

    def _score(self, prepared: Prepared) -> float:
        classes = [self._run(prepared, index).reshape(-1).argmax() for index in range(len(self._labels))]
        return 100 * float(np.mean(np.array(classes) == self._labels))

    def _fidelity(self, compressed: onnx_ir.Model, prepared: Prepared) -> float:
        session = Session(compressed)
        signal = noise = 0.0
        for index in range(min(_FIDELITY_IMAGES, len(self._labels))):
            expected = next(iter(session.run(self._feeds(index)).values())).astype(np.float64)
            signal += float(np.square(expected).sum())
            noise += float(np.square(expected - self._run(prepared, index)).sum())
        return min(sqnr_db(signal, noise), SQNR_CEILING_DB)


def _runtime(target: Target) -> tuple[Runtime, bool]:
    """Return what runs the target's models here, and whether that is its own runtime."""
    runtime = load_runtime(target.profile.runtime)
    try:
        runtime.version()
    except UsageError:
        return load_runtime(_STAND_IN), False
    return runtime, True


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a page: one table a model, passes down, targets across."""
    lines = [_PAGE.rstrip("\n"), *_circumstances(rows), ""]
    for model in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == model]
        targets = list(dict.fromkeys(row.target for row in mine))
        images = max(row.images for row in mine)
        lines += [
            f"## {model}",
            "",
            f"Accuracy on {images} images.",
            "",
            f"| passes | {' | '.join(targets)} |",
            "|---|" + "---|" * len(targets),
        ]
        for name in dict.fromkeys(row.compiler for row in mine):
            cells = {row.target: _cell(row) for row in mine if row.compiler == name}
            lines.append(f"| `{name}` | {' | '.join(cells[target] for target in targets)} |")
        lines.append("")
    return "\n".join(lines)


def _circumstances(rows: Sequence[Row]) -> list[str]:
    """Return what the rows say of how they came about, in lines of text."""
    stand_ins = {row.target: row.runtime for row in rows if row.is_stand_in}
    elsewhere = dict.fromkeys(row.target for row in rows if row.is_elsewhere)
    said = [
        f"{_listed(target for target in stand_ins if stand_ins[target] == runtime)} had no runtime of their own here: "
        f"`{runtime}` ran them, and they have no speed."
        for runtime in dict.fromkeys(stand_ins.values())
    ]
    if elsewhere:
        said.append(f"On another machine than they describe: {_listed(elsewhere)}.")
    if any(row.runtime == "litert" for row in rows):
        said.append(_LITERT)
    return textwrap.wrap(" ".join(said), _WIDTH, break_on_hyphens=False)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(row: Row) -> str:
    if row.status or row.accuracy is None or row.drop is None or row.sqnr_db is None:
        return row.status.replace("|", "/")
    speed = "" if row.speed is None else f", {row.speed:.2f}x"
    illegal = f", {row.illegal} ILLEGAL" if row.illegal else ""
    return f"{row.drop:+.2f}, {row.bytes_ratio:.3f}{speed}, {row.sqnr_db:.0f} dB{illegal}"
