"""One model in every runtime that is here: converted, run, held to onnxruntime's answers, and timed.

Each runtime computes on the first sample for its time, and on all of them for agreement. They do not take turns:
runtimes in one process disturb each other.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.data import Batch, DataSource, open_data
from onnxpress.ir.errors import InputError, UsageError
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
    scores. error: largest difference over onnxruntime's largest output.
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
    rounds: int = 300,
    threads: int = 1,
) -> list[RuntimeRow]:
    """Return a row for each runtime; what is not installed or refuses the model says so there.

    data: samples, of which up to 200 are compared; made-up numbers, one sample, where there are none.

    Raises:
        UsageError: no such runtime; onnxruntime is not here. InputError: a model or data that cannot be used.
    """
    loaded = model_io.load(model)
    source = None if data is None else open_data(data, model=loaded)
    feeds = first_feeds(Subject(loaded, loaded, 0), source)
    samples = _samples(source, feeds)
    with pinned(threads):
        reference = _run(loaded, load_runtime(_REFERENCE).prepare(loaded, feeds), samples)
        rows = [_row(load_runtime(name), loaded, feeds, samples, reference, rounds, threads) for name in runtimes]
    base = next((row.times for row in rows if row.runtime == _REFERENCE), None)
    if base is None:
        return rows
    return [
        row if row.times is None else dataclasses.replace(row, ratio=row.times.undisturbed / base.undisturbed)
        for row in rows
    ]


def _samples(source: DataSource | None, feeds: Feeds) -> Feeds:
    if source is None:
        return feeds
    return dict(source.head(_SAMPLES).feeds)


def _run(model: onnx_ir.Model, prepared: Prepared, samples: Feeds) -> dict[str, Array]:
    return sample_runner(model, prepared).run(Batch(dict(samples)))


def _row(
    runtime: Runtime,
    model: onnx_ir.Model,
    feeds: Feeds,
    samples: Feeds,
    reference: Mapping[str, Array],
    rounds: int,
    threads: int,
) -> RuntimeRow:
    row = RuntimeRow(runtime.name)
    try:
        row = dataclasses.replace(row, version=runtime.version())
        started = time.perf_counter()
        prepared = runtime.prepare(model, feeds, threads=threads)
        prepared_in = time.perf_counter() - started
        found = _run(model, prepared, samples)
        prepared.feed(feeds)
        latency = race(
            runtime, {"": prepared}, threads=threads, rounds=rounds, warmup=_WARMUP_ROUNDS,
            min_seconds=_LEAST_SECONDS, max_seconds=_SECONDS,
        )[""]  # fmt: skip
    except (RuntimeRefusalError, UsageError, InputError) as error:
        return dataclasses.replace(row, status=" ".join(str(error).split()))
    return dataclasses.replace(
        row,
        times=Times.of(latency),
        samples=len(next(iter(samples.values()))),
        agreement=_agreement(found, reference),
        error=_error(found, reference),
        size_bytes=prepared.size_bytes,
        prepare_seconds=prepared_in,
    )


def _agreement(found: Mapping[str, Array], reference: Mapping[str, Array]) -> float | None:
    """Return for how many percent the first output is largest at the same place; None where it is no scores."""
    name = next(iter(reference))
    expected = reference[name]
    if expected.ndim < 2 or expected[0].size < 2:
        return None
    classes = [each.reshape(len(each), -1).argmax(axis=1) for each in (found[name], expected)]
    return 100 * float(np.mean(classes[0] == classes[1]))


def _error(found: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    errors = [
        float(np.abs(found[name].astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))
        for name, expected in reference.items()
        if expected.size and expected.dtype.kind == "f"
    ]
    return max(errors, default=0.0)
