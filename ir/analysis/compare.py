"""Measure how far one model's outputs are from another's on real samples, and how often both are right.

    SQNR      10 log10(sum(a^2) / sum((a - b)^2)) in dB, a before, b after
    cosine    sum(a b) / sqrt(sum(a^2) sum(b^2))
    max_abs   the largest |a - b|

All sums are float64 and gathered batch by batch, so that memory does not grow with the samples. Unless asked
otherwise both models run as written: onnxruntime's own rewrites, above all those of Q/DQ, change the numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import (
    DEFAULT_LIMIT_BYTES,
    BatchRunner,
    ProgressLike,
    Session,
    batch_size_within,
    fetchable,
    track,
)
from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.ir.shapes import describe_shape, required_inputs

__all__ = ["Comparison", "Difference", "compare", "compare_runs", "numeric_outputs"]

_Array = npt.NDArray[Any]
Run = Callable[[Batch], Mapping[str, _Array]]

_NO_CLASS = -1  # of scores whose shape is not the other model's
_PIECE = 1 << 18  # numbers that are widened to float64 at once


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a value is from the original's.

    sqnr_db: inf where both are equal, -inf where the original is all zero or only one of them is finite.
    max_abs: in the value's own unit. cosine: 1 where both are equal, 0 where one of them is all zero.
    """

    sqnr_db: float
    max_abs: float
    cosine: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same samples.

    samples: how many. outputs, values: differences by name, in the order of the model and of the request.
    agreement: percent of samples to which both give the same class; None where no output is scores.
    accuracy_before, accuracy_after: percent right; None without labels or scores.
    """

    samples: int
    outputs: dict[str, Difference]
    values: dict[str, Difference]
    agreement: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None


def compare(
    before: onnx_ir.Model,
    after: onnx_ir.Model,
    data: DataSource,
    *,
    values: Sequence[str] = (),
    samples: int | None = None,
    optimize: bool = False,
    threads: int = 1,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    progress: ProgressLike | None = None,
) -> Comparison:
    """Run both models over `data` and measure the differences.

    The models may fix different batch sizes. Scores are the first output that is [N, classes] or
    [N, classes, 1, 1], of floats, with two classes or more; or class numbers, an integer [N].

    values: inner values of both models. samples: at most so many. optimize: False runs what is written, True
    as onnxruntime would for a user.

    Raises:
        InputError: the models differ in names, types or shapes of inputs or outputs; the data does not fit,
            or its labels are no classes of the output; a model fails on it.
        UsageError: one of `values` cannot be fetched from both.
    """
    _require_same_interface(before, after)
    names = numeric_outputs(before)
    _require_values(before, after, values)
    source = bind(data, before)
    runners = [_runner(model, [*names, *values], optimize=optimize, threads=threads) for model in (before, after)]
    size = min(batch_size_within(model, [*names, *values], limit_bytes) for model in (before, after))
    first, second = runners
    return compare_runs(
        first.run, second.run, source, names, values=values, samples=samples, batch_size=size, progress=progress
    )


def compare_runs(
    before: Run,
    after: Run,
    source: DataSource,
    outputs: Sequence[str],
    *,
    values: Sequence[str] = (),
    samples: int | None = None,
    batch_size: int = 1,
    progress: ProgressLike | None = None,
) -> Comparison:
    """Compare whatever runs batches and returns arrays by name, such as a model in another runtime.

    source: bound to the model's inputs. outputs, values: names that both return; scores are sought among `outputs`.
    """
    sums = {name: _Sums() for name in [*outputs, *values]}
    classes = _Classes(outputs)
    total = 0
    with track(progress, "comparing", source, samples) as task:
        for batch in source.batches(batch_size, limit=samples):
            first, second = before(batch), after(batch)
            for name, entry in sums.items():
                entry.add(first[name], second[name])
            classes.add(source.name, batch, first, second)
            total += batch.size
            task.advance(batch.size)
    found = {name: entry.result() for name, entry in sums.items()}
    return Comparison(
        samples=total,
        outputs={name: found[name] for name in outputs},
        values={name: found[name] for name in values},
        agreement=classes.agreement,
        accuracy_before=classes.accuracy_before,
        accuracy_after=classes.accuracy_after,
    )


# Differences.


class _Sums:
    """What a difference is made of, over any number of arrays."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.other = 0.0
        self.product = 0.0
        self.noise = 0.0
        self.max_abs = 0.0

    def add(self, before: _Array, after: _Array) -> None:
        """Add two arrays; those of different shapes differ without bound."""
        if before.shape != after.shape:
            self.noise = self.max_abs = math.inf
            return
        first, second = before.reshape(-1), after.reshape(-1)
        for start in range(0, first.size, _PIECE):
            stop = start + _PIECE
            self._add(first[start:stop].astype(np.float64), second[start:stop].astype(np.float64))

    def _add(self, first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> None:
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.all():
            equal = (first == second) | (np.isnan(first) & np.isnan(second))
            if not (finite | equal).all():
                self.noise = self.max_abs = math.inf
            first, second = first[finite], second[finite]
        if first.size == 0:
            return
        error = first - second
        self.signal += float(first @ first)
        self.other += float(second @ second)
        self.product += float(first @ second)
        self.noise += float(error @ error)
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))

    def result(self) -> Difference:
        """Return the difference over everything added."""
        if self.noise == 0.0:
            return Difference(math.inf, self.max_abs, 1.0)
        norms = math.sqrt(self.signal * self.other)
        cosine = max(-1.0, min(1.0, self.product / norms)) if norms > 0.0 else 0.0
        return Difference(sqnr_db(self.signal, self.noise), self.max_abs, cosine)


# Classes.


class _Classes:
    """Counts samples that two models put into the same class, and into the class of the label."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._scores: str | None = None
        self._samples = self._same = self._labelled = self._right_before = self._right_after = 0

    def add(self, data_name: str, batch: Batch, before: Mapping[str, _Array], after: Mapping[str, _Array]) -> None:
        """Count one batch. The output that holds the classes is chosen from the first."""
        if self._samples == 0:
            self._scores = _find_scores(self._names, before, batch)
        self._samples += batch.size
        if self._scores is None:
            return
        scores, others = before[self._scores], after[self._scores]
        first = _predicted(scores)
        second = _predicted(others) if others.shape == scores.shape else np.full_like(first, _NO_CLASS)
        self._same += int((first == second).sum())
        labels = None if batch.labels is None else _label_classes(data_name, batch.labels, before[self._scores])
        if labels is not None:
            self._labelled += batch.size
            self._right_before += int((first == labels).sum())
            self._right_after += int((second == labels).sum())

    @property
    def agreement(self) -> float | None:
        """Percent."""
        return None if self._scores is None else _percent(self._same, self._samples)

    @property
    def accuracy_before(self) -> float | None:
        """Percent."""
        return _percent(self._right_before, self._labelled)

    @property
    def accuracy_after(self) -> float | None:
        """Percent."""
        return _percent(self._right_after, self._labelled)


def _percent(count: int, total: int) -> float | None:
    return 100.0 * count / total if total else None


def _find_scores(names: Iterable[str], outputs: Mapping[str, _Array], batch: Batch) -> str | None:
    """Return the first output of scores; with labels, class numbers will do."""
    names = list(names)
    scores = [name for name in names if _is_scores(outputs[name], batch.size)]
    if not scores and batch.labels is not None:
        scores = [name for name in names if _is_class_numbers(outputs[name], batch.size)]
    return scores[0] if scores else None


def _is_scores(array: _Array, samples: int) -> bool:
    """Whether an array is floats [samples, classes] of two classes or more, perhaps with axes of 1."""
    return (
        np.issubdtype(array.dtype, np.inexact)
        and array.ndim >= 2
        and len(array) == samples
        and array.shape[1] > 1
        and math.prod(array.shape[2:]) == 1
    )


def _is_class_numbers(array: _Array, samples: int) -> bool:
    return np.issubdtype(array.dtype, np.integer) and array.ndim >= 1 and len(array) == array.size == samples


def _predicted(array: _Array) -> _Array:
    """Return [samples] class numbers."""
    if np.issubdtype(array.dtype, np.integer):
        return array.reshape(-1)
    predicted: _Array = array.reshape(array.shape[:2]).argmax(axis=1)
    return predicted


def _label_classes(data_name: str, labels: _Array, scores: _Array) -> _Array | None:
    """Return [samples] class numbers of labels [N], [N, 1] or one-hot [N, classes]; None for other kinds."""
    classes = scores.shape[1] if scores.ndim > 1 and not np.issubdtype(scores.dtype, np.integer) else None
    if labels.ndim == 2 and labels.shape[1] == classes:
        hot: _Array = labels.argmax(axis=1)
        return hot
    if labels.size != len(labels) or not np.issubdtype(labels.dtype, np.number):
        return None
    numbers = labels.reshape(-1)
    if not np.issubdtype(numbers.dtype, np.integer) and not np.array_equal(numbers, np.round(numbers)):
        return None
    if classes is not None and numbers.size and not (numbers.min() >= 0 and numbers.max() < classes):
        raise InputError(
            f"data {data_name!r}: labels go from {numbers.min()} to {numbers.max()}, and the model has the "
            f"classes 0 to {classes - 1}"
        )
    return numbers


# Models.


def _runner(model: onnx_ir.Model, names: Sequence[str], *, optimize: bool, threads: int) -> BatchRunner:
    return BatchRunner(model, Session(model, outputs=names, optimize=optimize, threads=threads))


def numeric_outputs(model: onnx_ir.Model) -> list[str]:
    """Return the outputs that can be compared: tensors of numbers."""
    names = [
        str(value.name)
        for value in model.graph.outputs
        if (value.type is None or isinstance(value.type, onnx_ir.TensorType)) and value.dtype != onnx_ir.DataType.STRING
    ]
    if not names:
        raise InputError("the model has no output that is a tensor of numbers")
    return names


def _require_same_interface(before: onnx_ir.Model, after: onnx_ir.Model) -> None:
    for kind, first, second in (
        ("input", required_inputs(before), required_inputs(after)),
        ("output", before.graph.outputs, after.graph.outputs),
    ):
        ours = {str(value.name): value for value in first}
        theirs = {str(value.name): value for value in second}
        if set(ours) != set(theirs):
            raise InputError(
                f"the models cannot be compared: expected the {kind}s {_listing(ours)} as in the first "
                f"model, got {_listing(theirs)}"
            )
        for name, value in ours.items():
            if not _is_alike(value, theirs[name]):
                raise InputError(
                    f"the models cannot be compared: {kind} {name!r}: expected {_describe(value)} as in the "
                    f"first model, got {_describe(theirs[name])}"
                )


def _is_alike(first: onnx_ir.Value, second: onnx_ir.Value) -> bool:
    """Whether type and shape agree as far as they are known; the leading dimension is free."""
    if first.dtype is not None and second.dtype is not None and first.dtype != second.dtype:
        return False
    if first.shape is None or second.shape is None:
        return True
    if len(first.shape) != len(second.shape):
        return False
    pairs = zip(first.shape[1:], second.shape[1:], strict=True)
    return all(one == two or not (isinstance(one, int) and isinstance(two, int)) for one, two in pairs)


def _require_values(before: onnx_ir.Model, after: onnx_ir.Model, names: Sequence[str]) -> None:
    for name in names:
        for model, which in ((before, "first"), (after, "second")):
            if not fetchable(model, name):
                raise UsageError(f"the {which} model has no value {name!r} that can be compared")


def _listing(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _describe(value: onnx_ir.Value) -> str:
    if value.dtype is None:
        return f"? {describe_shape(value.shape)}"
    dtype = "string" if value.dtype == onnx_ir.DataType.STRING else value.dtype.numpy().name
    return f"{dtype} {describe_shape(value.shape)}"


def _describe_all(model: onnx_ir.Model, names: Iterable[str]) -> str:
    outputs = {value.name: value for value in model.graph.outputs}
    return ", ".join(f"{name!r} {_describe(outputs[name])}" for name in names)
