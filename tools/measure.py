"""Measure two models side by side.

Work and size are counted, never guessed. Fidelity and accuracy are measured on real samples only. For latency
the two models take turns; it is CPU time of one thread, which a busy machine does not stretch.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir

from onnxpress.ir import model_io, onnx_file
from onnxpress.ir.analysis.compare import Comparison, Difference, compare
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.container import packing
from onnxpress.ir.data import DataSource
from onnxpress.ir.shapes import batch_dimension
from onnxpress.passes.instrument import Progress
from onnxpress.targets.runtimes.onnxruntime_cpu import example_feeds, interleaved_latency
from onnxpress.targets.runtimes.onnxruntime_session import ModelLike
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.tools.metrics import SQNR_CEILING_DB, Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Effort",
    "Pair",
    "Subject",
    "first_feeds",
    "measure_pair",
    "source_bytes",
]

# What a batch's values may take: larger ones gain no speed, and the runtime keeps what the largest needed.
_BATCH_BYTES = 1 << 20
_WARMUP_ROUNDS = 3
_LATENCY_SECONDS = 0.5  # of both models together

_RUNTIME_LOSS_DB = 3.0  # half of the noise, or more, comes from the runtime and not from the model


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is run. None: all samples that there are.

    written: samples for SQNR, of the models as they are written, which is slow. run: samples for accuracy and
    agreement, of the models as the runtime runs them. rounds: of latency, at most; time bounds them too.
    """

    written: int | None = None
    run: int | None = None
    rounds: int = 30

    @classmethod
    def check(cls, macs: int, rounds: int = 30) -> Effort:
        """Return what is enough to notice a mistake, where nobody asked for an evaluation: bounded work."""
        return cls(_within(650_000_000, macs, 8, 32), _within(2_600_000_000, macs, 16, 128), rounds)


def _within(budget_macs: int, macs: int, least: int, most: int) -> int:
    return max(least, min(most, budget_macs // max(macs, 1)))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure. runnable: what the runtime opens; a path or bytes spare it a serialization."""

    model: onnx_ir.Model
    runnable: ModelLike
    size_bytes: int

    @functools.cached_property
    def counted(self) -> Metrics:
        """The numbers that need no run."""
        return Metrics.counted(cost(self.model), self.size_bytes)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models measured side by side.

    samples: how many accuracy and agreement were measured on; 0 is none. sqnr_samples: the same for SQNR.
    outputs: difference by output. notes: what a reader should know about the numbers, a line each.
    """

    before: Metrics
    after: Metrics
    samples: int = 0
    sqnr_samples: int = 0
    outputs: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def measure_pair(
    before: Subject,
    after: Subject,
    data: DataSource | None,
    effort: Effort,
    progress: Progress | None = None,
    *,
    timed: bool = True,
) -> Pair:
    """Measure two models with the same inputs and outputs. data: None leaves out fidelity and accuracy."""
    pair = Pair(before.counted, after.counted)
    if data is not None:
        pair = _compared(pair, before.model, after.model, data, effort, progress)
    return _timed(pair, before, after, data, effort.rounds) if timed else pair


def _compared(
    pair: Pair,
    before: onnx_ir.Model,
    after: onnx_ir.Model,
    data: DataSource,
    effort: Effort,
    progress: Progress | None,
) -> Pair:
    """Add fidelity of the models as they are written, and accuracy of the models as they are run."""
    written = compare(before, after, data, samples=effort.written, limit_bytes=_BATCH_BYTES, progress=progress)
    as_run = compare(
        before, after, data, samples=effort.run, optimize=True, limit_bytes=_BATCH_BYTES, progress=progress
    )
    sqnr, sqnr_run = _worst_db(written), _worst_db(as_run)
    notes = pair.notes
    if sqnr is not None and sqnr_run is not None and sqnr_run < min(sqnr, SQNR_CEILING_DB) - _RUNTIME_LOSS_DB:
        notes += (
            f"onnxruntime's own optimizations cost fidelity: SQNR {sqnr:.1f} dB as written, {sqnr_run:.1f} dB as run",
        )
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, accuracy=as_run.accuracy_before),
        after=dataclasses.replace(pair.after, accuracy=as_run.accuracy_after, agreement=as_run.agreement, sqnr_db=sqnr),
        samples=as_run.samples,
        sqnr_samples=written.samples,
        outputs=written.outputs,
        notes=notes,
    )


def _worst_db(found: Comparison) -> float | None:
    return min((difference.sqnr_db for difference in found.outputs.values()), default=None)


def _timed(pair: Pair, before: Subject, after: Subject, data: DataSource | None, rounds: int) -> Pair:
    """Add latency: the two models take turns."""
    try:
        latency = interleaved_latency(
            {"before": before.runnable, "after": after.runnable},
            first_feeds(before, data),
            rounds=rounds,
            warmup=_WARMUP_ROUNDS,
            max_seconds=_LATENCY_SECONDS,
        )
    except RuntimeRefusalError as error:
        return dataclasses.replace(pair, notes=(*pair.notes, f"latency not measured: {error}"))
    return dataclasses.replace(
        pair,
        before=dataclasses.replace(pair.before, latency_ms=latency["before"].median_ms),
        after=dataclasses.replace(pair.after, latency_ms=latency["after"].median_ms),
    )


def first_feeds(subject: Subject, data: DataSource | None) -> dict[str, np.ndarray]:
    """Return feeds of the smallest batch that the model takes: real where there is data, else made up."""
    if data is None:
        return example_feeds(subject.runnable)
    size = batch_dimension(subject.model) or 1
    ranks = {value.name: len(value.shape) for value in subject.model.graph.inputs if value.shape is not None}
    return {
        # A model without an axis of samples takes one sample as it is. One with a fixed batch above the
        # number of samples gets them repeated: time does not depend on the values.
        name: array[0, ...]
        if array.ndim == ranks.get(name, array.ndim) + 1
        else np.resize(array, (size, *array.shape[1:]))
        for name, array in data.head(size).feeds.items()
    }


def source_bytes(source: object, model: onnx_ir.Model) -> int:
    """Return what the model takes where it came from: a file with its data files, or serialized."""
    if not isinstance(source, str | os.PathLike):
        return model_io.size_bytes(model)
    path = Path(source)
    return path.stat().st_size + sum(file.stat().st_size for file in _data_files(path, model))


def _data_files(path: Path, model: onnx_ir.Model) -> set[Path]:
    weights = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    if packing.is_packed(path) or path.stat().st_size > sum(tensor.nbytes for tensor in weights if tensor is not None):
        return set()  # all weights are inside
    tensors = onnx_file.tensors_of(onnx_file.read(path).proto)
    locations = (entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location")
    return {path.parent / location for location in locations}
