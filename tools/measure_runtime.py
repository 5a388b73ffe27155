"""Measure a result in its target's own runtime, where that is not onnxruntime's CPU provider.

Accuracy, agreement and SQNR: the original in onnxruntime, the result in its runtime, as a user would run each.
Latency: both in the runtime, so that the gain is the model's and not the runtime's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.compare import compare_runs, numeric_outputs
from onnxpress.ir.analysis.execute import BatchRunner, Session
from onnxpress.ir.data import DataSource, bind
from onnxpress.ir.errors import UsageError
from onnxpress.passes.instrument import Progress
from onnxpress.targets.base import Target
from onnxpress.targets.runtimes.base import Prepared, Runtime, race, sample_runner
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from onnxpress.tools.measure import Effort, Pair, Subject
from onnxpress.tools.metrics import Metrics

__all__ = ["measure_on", "runtime_of"]

_BATCH = 32  # samples that the original computes at once
_WARMUP_ROUNDS = 3
_LATENCY_SECONDS = 1.0  # of both models together


def runtime_of(target: Target) -> tuple[Runtime | None, str]:
    """Return the runtime that the target's models are for, if it is installed here; and what is missing, or ""."""
    name = target.profile.runtime
    if name not in RUNTIMES:
        return None, f"{name} is not driven by this version"
    runtime = load_runtime(name)
    try:
        runtime.version()
    except UsageError as error:
        return None, str(error)
    return runtime, ""


def measure_on(
    runtime: Runtime,
    before: Subject,
    original: Prepared,
    result: Prepared,
    counted: Metrics,
    data: DataSource | None,
    effort: Effort,
    progress: Progress | None = None,
) -> Pair:
    """Measure `result` beside `before`, which is `original` in the same runtime.

    counted: the numbers of the result that need no run. data: None leaves out fidelity and accuracy.

    Raises:
        RuntimeRefusalError: the runtime fails.
    """
    note = f"latency: both in {runtime.title}"
    pair = Pair(before.counted, counted)
    if data is not None:
        note = f"accuracy, agreement and SQNR: the original in onnxruntime, the result in {runtime.title}; {note}"
        pair = _compared(pair, before.model, result, data, effort, progress)
    for each in (original, result):
        each.feed({name: np.resize(array, each.ports[name].shape) for name, array in _one(each, data).items()})
    latency = race(
        runtime, {"before": original, "after": result}, rounds=effort.rounds, warmup=_WARMUP_ROUNDS,
        max_seconds=_LATENCY_SECONDS,
    )  # fmt: skip
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, latency_ms=latency["before"].median_ms),
        after=dataclasses.replace(pair.after, latency_ms=latency["after"].median_ms),
        notes=(note,),
    )


def _one(prepared: Prepared, data: DataSource | None) -> dict[str, np.ndarray]:
    """Return a sample of the data, or made-up numbers: 0.5, or 1 of integers."""
    if data is not None:
        first = data.head(1).feeds
        return {name: first[name] for name in prepared.ports}
    return {name: np.full(port.shape, 0.5 if port.dtype.kind == "f" else 1, port.dtype)
            for name, port in prepared.ports.items()}  # fmt: skip


def _compared(
    pair: Pair,
    original: onnx_ir.Model,
    result: Prepared,
    data: DataSource,
    effort: Effort,
    progress: Progress | None,
) -> Pair:
    names = numeric_outputs(original)
    runner = BatchRunner(original, Session(original, outputs=names, optimize=True))
    found = compare_runs(
        runner.run, sample_runner(original, result).run, bind(data, original), names,
        samples=effort.run, batch_size=_BATCH, progress=progress,
    )  # fmt: skip
    worst = min((difference.sqnr_db for difference in found.outputs.values()), default=None)
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, accuracy=found.accuracy_before),
        after=dataclasses.replace(pair.after, accuracy=found.accuracy_after, agreement=found.agreement, sqnr_db=worst),
        samples=found.samples,
        sqnr_samples=found.samples,
        outputs=found.outputs,
    )
