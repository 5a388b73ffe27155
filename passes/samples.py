"""Whether there are calibration samples enough to fit anything to, and how they are divided."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import onnx_ir

from onnxpress.ir.data import DataSource, bind
from onnxpress.ir.errors import UsageError

__all__ = ["Split", "split_samples"]

_READ = 16  # samples at once
_FEW = 32


@dataclasses.dataclass(frozen=True)
class Split:
    """How many samples, from the first on, a pass is fitted to, and how many after them measure what it did.

    A refit to few samples looks perfect on them, so that what measures has fitted nothing.
    """

    fitted: int
    held_out: int


def split_samples(data: DataSource, model: onnx_ir.Model, pass_name: str, *, samples: int, held_out: int) -> Split:
    """Divide `samples` of the data at most; of these, `held_out` or a third, whichever is less, are held out.

    0 of them where nothing is measured.

    Few samples are a warning, as nobody can tell how much of the model's accuracy they cost.

    Raises:
        InputError: the data does not fit the model.
        UsageError: there is a single sample, or all are equal: nothing follows from them.
    """
    count, varied = _count(bind(data, model), samples)
    if count < 2:
        raise UsageError(
            f"{pass_name}: the data holds a single sample, which can fit or measure, not both. Give a few hundred"
        )
    if not varied:
        raise UsageError(
            f"{pass_name}: all {count} calibration samples are equal, and nothing follows from them. Give real ones"
        )
    if count < _FEW:
        warnings.warn(
            f"{pass_name}: {count} calibration samples are few, and the model may lose accuracy that they do not show. "
            "A few hundred are usual",
            RuntimeWarning,
            stacklevel=2,
        )
    held = max(1, min(held_out, count // 3)) if held_out else 0
    return Split(count - held, held)


def _count(source: DataSource, limit: int) -> tuple[int, bool]:
    """Return how many samples there are, at most `limit`, and whether any differs from the first."""
    count, varied = 0, False
    first = None
    for batch in source.batches(_READ, limit=limit):
        count += batch.size
        first = first or {name: array[:1] for name, array in batch.part(0, 1).feeds.items()}
        varied = varied or any(
            array.shape[1:] != first[name].shape[1:]
            or not np.array_equal(array, np.broadcast_to(first[name], array.shape))
            for name, array in batch.feeds.items()
        )
        if varied and source.count is not None:
            return min(source.count, limit), True
    return count, varied
