"""How far the outputs of a changed model are from those of its original, as one number.

    sum((a - b)^2) / sum(a^2)        a: the original's output, b: the changed model's

Class scores ([N, classes], two classes or more) are centred sample by sample first: a shift of all of them decides
nothing. What is not finite in the original (masked scores) is left out. The numbers of several outputs are added. 0 is
equal; 1 is what giving zeros would do.

On scores this ranks changes better than the Kullback-Leibler divergence of their softmax does: networks are sure of
samples that they were trained on, as calibration data often are, and what is sure of itself hides its losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import BatchRunner, Session, batch_size_within
from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.ir.errors import UsageError

__all__ = ["Divergence", "NotMeasurableError"]

_Array: TypeAlias = npt.NDArray[Any]
_LIMIT_BYTES = 24 << 20  # of inner values at a time
_TINY = 1e-12  # of a relative error's denominator, so that an output of zeros divides


class NotMeasurableError(UsageError):
    """The outputs of a model are none that a divergence could be measured of."""


class Divergence:
    """Outputs of an original model on a fixed set of samples, to hold changed models against."""

    def __init__(self, original: onnx_ir.Model, data: DataSource, *, samples: int, skip: int = 0) -> None:
        """Run `original` once. The samples and its outputs stay in memory.

        skip: samples to leave out before, such as those that a change was fitted to: what was fitted flatters itself.

        Raises:
            InputError: the data does not fit the model, or it fails on them.
            NotMeasurableError: an original without an output of floats.
        """
        names = [value.name or "" for value in original.graph.outputs]
        size = batch_size_within(original, names, _LIMIT_BYTES)
        self._batches = list(_after(bind(data, original).batches(size, limit=skip + samples), skip))
        self._wanted = [
            {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.floating)}
            for found in self._runs(original)
        ]
        if not self._wanted[0]:
            raise NotMeasurableError("the model has no output of floating point numbers to measure a divergence of")

    def of(self, model: onnx_ir.Model) -> float:
        """Return the divergence of `model`, which has the original's interface; inf where it gives NaN.

        Raises:
            NotMeasurableError: an output has another shape than the original's, as that of a detector may.
        """
        errors: dict[str, float] = {}
        energies: dict[str, float] = {}
        for found, wanted in zip(self._runs(model), self._wanted, strict=True):
            for name, array in wanted.items():
                if found[name].shape != array.shape:
                    raise NotMeasurableError(
                        f"output {name!r} is {list(found[name].shape)} where the original's is {list(array.shape)}, so "
                        "that no divergence can be measured"
                    )
                finite = np.isfinite(array)
                a, b = _comparable(array, finite), _comparable(found[name], finite)
                errors[name] = errors.get(name, 0.0) + float(np.square(a - b).sum())
                energies[name] = energies.get(name, 0.0) + float(np.square(a).sum())
        value = sum(error / max(energies[name], _TINY) for name, error in errors.items())
        return value if np.isfinite(value) else float("inf")

    def _runs(self, model: onnx_ir.Model) -> list[Mapping[str, _Array]]:
        runner = BatchRunner(model, Session(model, optimize=True))
        return [runner.run(batch) for batch in self._batches]


def _after(batches: Iterable[Batch], skip: int) -> Iterator[Batch]:
    """Yield the batches without the first `skip` samples."""
    for batch in batches:
        if skip < batch.size:
            yield batch.part(skip, batch.size)
        skip = max(0, skip - batch.size)


def _comparable(output: _Array, finite: npt.NDArray[np.bool_]) -> _Array:
    wide = np.where(finite, output, 0).astype(np.float64)
    is_scores = wide.ndim == 2 and wide.shape[1] > 1
    return wide - wide.mean(axis=1, keepdims=True) if is_scores else wide
