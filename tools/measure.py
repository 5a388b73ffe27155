"""What a model costs and how well it does: the numbers of every before/after table.

Work and size are counted, never guessed. Fidelity and accuracy are measured on real samples only. Latency takes
turns between the two models and is CPU time of one thread, which a busy machine does not stretch.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.compare import Difference, accuracy, compare
from onnxpress.ir.analysis.cost import ModelCost, cost
from onnxpress.ir.data import DataSource
from onnxpress.ir.shapes import batch_dimension
from onnxpress.passes.instrument import Progress
from onnxpress.targets.runtimes.onnxruntime_cpu import (
    ModelLike,
    RuntimeRefusalError,
    example_feeds,
    interleaved_latency,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SQNR_CEILING_DB",
    "Metrics",
    "Pair",
    "Subject",
    "comparison_samples",
    "counted",
    "measure_pair",
    "peak_rss_bytes",
    "source_bytes",
]

# Models that compute the same bits have no error to take a ratio of. Unequal float32 results stay near 150 dB.
SQNR_CEILING_DB = 200.0

# A comparison on calibration data alone is a check, not an evaluation: this much work, within these bounds.
_COMPARISON_MACS = 3_000_000_000
_FEWEST_SAMPLES, _MOST_SAMPLES = 8, 64

_WARMUP_ROUNDS = 3
_LATENCY_SECONDS = 0.5  # of both models together


@dataclasses.dataclass(frozen=True)
class Metrics:
    """One model's numbers. None: not measured, because there was nothing to measure it on.

    params: numbers stored in weights. macs: multiply-accumulates at batch 1. size_bytes: of the file with its
    external data. bits_per_weight: of the stored weights. accuracy: top-1 in percent, as the runtime runs it.
    agreement: percent of samples with the original's top-1 class. sqnr_db: of the worst output against the
    original's. latency_ms: median at batch 1, CPU time of one thread.
    """

    params: int
    macs: int
    size_bytes: int
    bits_per_weight: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers under the keys that programs read. SQNR of equal outputs reads `SQNR_CEILING_DB`."""
        sqnr = None if self.sqnr_db is None else min(self.sqnr_db, SQNR_CEILING_DB)
        return {
            "params": self.params,
            "macs": self.macs,
            "bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "sqnr_db": sqnr,
            "latency_ms": self.latency_ms,
        }


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure. runnable: what the runtime opens; a path or bytes spare it a serialization."""

    model: onnx_ir.Model
    runnable: ModelLike
    size_bytes: int

    def count(self) -> Metrics:
        """Return the numbers that need no run."""
        return counted(cost(self.model), self.size_bytes)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models measured side by side.

    samples: how many fidelity and accuracy were measured on; 0 is none. outputs: difference by output.
    notes: what a reader should know about the numbers, a line each.
    """

    before: Metrics
    after: Metrics
    samples: int = 0
    outputs: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def counted(cost: ModelCost, size_bytes: int) -> Metrics:
    """Return the numbers that need no run: `cost` as counted, `size_bytes` as stored."""
    bits = 8 * cost.weight_bytes / cost.params if cost.params else None
    return Metrics(cost.params, cost.macs, size_bytes, bits)


def comparison_samples(macs: int) -> int:
    """Return how many samples a comparison takes when nobody asked for an evaluation."""
    return max(_FEWEST_SAMPLES, min(_MOST_SAMPLES, _COMPARISON_MACS // max(macs, 1)))


def measure_pair(
    before: Subject,
    after: Subject,
    data: DataSource | None,
    *,
    samples: int | None = None,
    rounds: int = 30,
    progress: Progress | None = None,
) -> Pair:
    """Measure two models with the same inputs and outputs.

    data: real samples; None leaves out fidelity and accuracy. samples: at most so many; None takes all.
    rounds: of latency, at most; time bounds them too.
    """
    first, second = before.count(), after.count()
    notes: list[str] = []
    used, outputs = 0, dict[str, Difference]()
    if data is not None:
        found = compare(before.model, after.model, data, samples=samples, progress=progress)
        used, outputs = found.samples, found.outputs
        first = dataclasses.replace(first, accuracy=found.accuracy_before)
        second = dataclasses.replace(
            second,
            accuracy=found.accuracy_after,
            agreement=found.agreement,
            sqnr_db=min((difference.sqnr_db for difference in outputs.values()), default=None),
        )
    try:
        latency = interleaved_latency(
            {"before": before.runnable, "after": after.runnable},
            _one_batch(before, data),
            rounds=rounds,
            warmup=_WARMUP_ROUNDS,
            max_seconds=_LATENCY_SECONDS,
        )
    except RuntimeRefusalError as error:
        notes.append(f"latency not measured: {error}")
    else:
        first = dataclasses.replace(first, latency_ms=latency["before"].median_ms)
        second = dataclasses.replace(second, latency_ms=latency["after"].median_ms)
    return Pair(first, second, used, outputs, tuple(notes))


def source_bytes(source: object, model: onnx_ir.Model) -> int:
    """Return what the model takes where it came from: a file with its external data, or serialized."""
    if not isinstance(source, str | os.PathLike):
        from onnxpress.ir.model_io import size_bytes

        return size_bytes(model)
    return sum(path.stat().st_size for path in {Path(source), *_external_files(model)})


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _external_files(model: onnx_ir.Model) -> Iterable[Path]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, onnx_ir.ExternalTensor):
                yield Path(value.const_value.path)


def _one_batch(subject: Subject, data: DataSource | None) -> dict[str, np.ndarray]:
    """Return feeds of the smallest batch that the model takes: real where there is data, else made up."""
    if data is None:
        return example_feeds(subject.runnable)
    size = batch_dimension(subject.model) or 1
    feeds = data.head(size).feeds
    # A model with a fixed batch above the number of samples: repeat them, time does not depend on the values.
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in feeds.items()}
