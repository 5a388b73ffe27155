"""One model in every runtime that is here: converted, run, held to onnxruntime's answers, and timed.

Each runtime computes on the first sample for its time, and on all of them for agreement. They do not take turns:
runtimes in one process disturb each other.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.data import Batch, open_data
from onnxpress.ir.errors import OnnxpressError
from onnxpress.targets.runtimes.base import Array, Feeds, Prepared, Runtime, race, sample_runner
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from onnxpress.tools.measure import Subject, first_feeds
from onnxpress.tools.profiling import Times, pinned

if TYPE_CHECKING:
    import onnx

__all__ = ["RuntimeRow", "compare_runtimes"]

_REFERENCE = "onnxruntime-cpu"
_WARMUP_ROUNDS = 5
_LEAST_SECONDS, _SECONDS = 2.0, 4.0  # of each runtime's rounds
_SAMPLES = 200


@dataclasses.dataclass(frozen=True)
class RuntimeRow:
    """A model in one runtime. status: why there are no numbers.

    ratio: time over onnxruntime's. agreement: percent of `samples` with onnxruntime's top-1 class; None without
    scores. error: of the worst output, the largest difference over onnxruntime's largest number, or the share that
    differs where it is no floats; nan where one of the two gives no number and the other does. Both are None where
    onnxruntime does not run the model.
    """

    runtime: str
    version: str = ""
    times: Times | None = None
    ratio: float | None = None
    samples: int = 0
    agreement: float | None = None
    error: float | None = None
    size_bytes: int | None = None
    prepare_seconds: float | None = None
    status: str = ""


def compare_runtimes(
    model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    *,
    runtimes: Sequence[str] = tuple(RUNTIMES),
    data: Any = None,
    rounds: int = 500,
    threads: int = 1,
) -> list[RuntimeRow]:
    """Return a row for each runtime; what is not installed or refuses the model says so there.

    data: samples, of which up to 200 are compared; made-up numbers, one sample, where there are none.

    Raises:
        UsageError: no such runtime; onnxruntime is not here. InputError: a model or data that cannot be used.
        RuntimeRefusalError: there is no data, and onnxruntime, which is asked what to make up, does not load the model.
    """
    loaded = model_io.load(model)
    source = None if data is None else open_data(data, model=loaded)
    feeds = first_feeds(Subject(loaded, loaded, 0), source)
    asked = _Asked(loaded, feeds, None if source is None else source.head(_SAMPLES), rounds, threads)
    with pinned(threads):
        reference = _reference(asked)
        rows = [_row(load_runtime(name), asked, reference) for name in runtimes]
    base = next((row.times for row in rows if row.runtime == _REFERENCE), None)
    if base is None:
        return rows
    return [
        row if row.times is None else dataclasses.replace(row, ratio=row.times.undisturbed / base.undisturbed)
        for row in rows
    ]


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What every runtime is asked. feeds: what is timed. batch: the samples; None where the feeds are all there is."""

    model: onnx_ir.Model
    feeds: Feeds
    batch: Batch | None
    rounds: int
    threads: int

    @property
    def samples(self) -> int:
        if self.batch is not None:
            return self.batch.size
        return min((len(array) for array in self.feeds.values() if array.ndim), default=1)

    def run(self, prepared: Prepared) -> dict[str, Array]:
        """Return the outputs for all samples."""
        if self.batch is not None:
            return sample_runner(self.model, prepared).run(self.batch)
        prepared.feed(self.feeds)
        prepared.compute(timed=False)
        return prepared.fetch()


def _reference(asked: _Asked) -> dict[str, Array] | None:
    try:
        return asked.run(load_runtime(_REFERENCE).prepare(asked.model, asked.feeds))
    except RuntimeRefusalError:
        return None


def _row(runtime: Runtime, asked: _Asked, reference: Mapping[str, Array] | None) -> RuntimeRow:
    row = RuntimeRow(runtime.name)
    try:
        row = dataclasses.replace(row, version=runtime.version())
        started = time.perf_counter()
        prepared = runtime.prepare(asked.model, asked.feeds, threads=asked.threads)
        prepared_in = time.perf_counter() - started
        found = asked.run(prepared)
        if reference is not None:
            _require_alike(found, reference, runtime.title)
        prepared.feed(asked.feeds)
        latency = race(
            runtime, {"": prepared}, threads=asked.threads, rounds=asked.rounds, warmup=_WARMUP_ROUNDS,
            min_seconds=_LEAST_SECONDS, max_seconds=_SECONDS,
        )[""]  # fmt: skip
    except OnnxpressError as error:
        return dataclasses.replace(row, status=" ".join(str(error).split()))
    return dataclasses.replace(
        row,
        times=Times.of(latency),
        samples=asked.samples,
        agreement=None if reference is None else _agreement(found, reference),
        error=None if reference is None else _error(found, reference),
        size_bytes=prepared.size_bytes,
        prepare_seconds=prepared_in,
    )


def _require_alike(found: Mapping[str, Array], reference: Mapping[str, Array], title: str) -> None:
    """Refuse outputs that cannot be compared."""
    for name, expected in reference.items():
        if name not in found:
            raise RuntimeRefusalError(f"{title}: gives no output {name!r}")
        if found[name].shape != expected.shape:
            raise RuntimeRefusalError(
                f"{title}: gives output {name!r} the shape {list(found[name].shape)}, onnxruntime "
                f"{list(expected.shape)}"
            )


def _agreement(found: Mapping[str, Array], reference: Mapping[str, Array]) -> float | None:
    """Return for how many percent the first output is largest at the same place; None where it is no scores."""
    name = next(iter(reference))
    expected = reference[name]
    if expected.ndim < 2 or not expected.size or expected[0].size < 2:
        return None
    classes = [each.reshape(len(each), -1).argmax(axis=1) for each in (found[name], expected)]
    return 100 * float(np.mean(classes[0] == classes[1]))


def _error(found: Mapping[str, Array], reference: Mapping[str, Array]) -> float | None:
    """Return the `error` of a row; None where there is nothing to compare."""
    errors = [_error_of(found[name], expected) for name, expected in reference.items() if expected.size]
    return float(np.max(errors)) if errors else None  # which is nan if one of them is, as max() is not


def _error_of(found: Array, expected: Array) -> float:
    if expected.dtype.kind != "f":
        return float(np.mean(found != expected))
    known = np.isfinite(expected)
    if not np.array_equal(found[~known], expected[~known], equal_nan=True) or not np.isfinite(found[known]).all():
        return math.nan
    difference = np.abs(found[known].astype(np.float64) - expected[known])
    return float(difference.max(initial=0.0) / max(np.abs(expected[known]).max(initial=0.0), 1e-30))
