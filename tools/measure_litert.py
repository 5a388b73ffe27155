"""Measure a .tflite file beside the ONNX model that it was made of.

Accuracy, agreement and SQNR: the original in onnxruntime, the result in LiteRT, as a user would run each. Latency:
both in LiteRT, the original as a float .tflite file of its own, so that the gain is the model's and not the runtime's.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.compare import compare_runs, numeric_outputs
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.execute import BatchRunner, Session
from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.passes.base import Context
from onnxpress.passes.instrument import Progress
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.litert import Emitted, emit
from onnxpress.targets.runtimes.litert import LiteRtSession, interleaved_latency
from onnxpress.targets.runtimes.onnxruntime_cpu import Kernels
from onnxpress.tools.measure import Effort, Pair, Subject
from onnxpress.tools.metrics import Metrics

__all__ = ["emit_original", "litert_kernels", "measure_litert"]

_EXACT = "cleanup, fold-batchnorm"  # what any converter does to a float model, and loses nothing by
_BATCH = 32  # samples that the original computes at once
_WARMUP_ROUNDS = 3
_LATENCY_SECONDS = 1.0  # of both files together
_NOTE = (
    "accuracy, agreement and SQNR: the original in onnxruntime, the result in LiteRT; latency: both in LiteRT, the "
    "original as a float .tflite file"
)


def emit_original(model: onnx_ir.Model, context: Context) -> Emitted:
    """Return the original as a float .tflite file.

    Raises:
        UsageError: LiteRT is not installed. InputError: LiteRT cannot run the model.
    """
    folded, _ = PassManager(build(_EXACT)).run(model, Context(constraints=context.constraints, seed=context.seed))
    return emit(folded)


def litert_kernels(emitted: Emitted) -> Kernels:
    """Return what a file is made of, in the terms of a report."""
    return Kernels(collections.Counter(emitted.operators), emitted.integer, (), emitted.real)


def measure_litert(
    before: Subject,
    original: bytes,
    after: onnx_ir.Model,
    result: Emitted,
    data: DataSource | None,
    effort: Effort,
    progress: Progress | None = None,
) -> Pair:
    """Measure the file `result`, made of `after`, beside the model `before`, whose own file is `original`.

    data: None leaves out fidelity and accuracy.

    Raises:
        RuntimeRefusalError: LiteRT does not load or run a file.
    """
    session = LiteRtSession(result.content)
    counted = Metrics.counted(cost(after), len(result.content))
    stored = 8 * result.constant_bytes / counted.params if counted.params else None
    pair = Pair(before.counted, dataclasses.replace(counted, bits_per_weight=stored), notes=(_NOTE,))
    kinds = session.input_types
    feeds = {name: np.full(shape, 0.5).astype(kinds[name]) for name, shape in session.input_shapes.items()}
    if data is not None:
        pair = _compared(pair, before.model, session, data, effort, progress)
        first = data.head(1).feeds
        feeds = {name: np.resize(first[name], shape) for name, shape in session.input_shapes.items()}
    latency = interleaved_latency(
        {"before": original, "after": result.content}, feeds, rounds=effort.rounds, warmup=_WARMUP_ROUNDS,
        max_seconds=_LATENCY_SECONDS,
    )  # fmt: skip
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, latency_ms=latency["before"].median_ms),
        after=dataclasses.replace(pair.after, latency_ms=latency["after"].median_ms),
    )


def _compared(
    pair: Pair,
    original: onnx_ir.Model,
    session: LiteRtSession,
    data: DataSource,
    effort: Effort,
    progress: Progress | None,
) -> Pair:
    names = numeric_outputs(original)
    runner = BatchRunner(original, Session(original, outputs=names, optimize=True))

    def run(batch: Batch) -> dict[str, np.ndarray]:
        return session.run_samples({name: batch.feeds[name] for name in session.input_shapes})

    found = compare_runs(
        runner.run, run, bind(data, original), names, samples=effort.run, batch_size=_BATCH, progress=progress
    )
    worst = min((difference.sqnr_db for difference in found.outputs.values()), default=None)
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, accuracy=found.accuracy_before),
        after=dataclasses.replace(pair.after, accuracy=found.accuracy_after, agreement=found.agreement, sqnr_db=worst),
        samples=found.samples,
        sqnr_samples=found.samples,
        outputs=found.outputs,
    )
