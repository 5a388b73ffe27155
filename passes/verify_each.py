"""Compare a model's outputs before and after a pass: what `--verify-each` does.

"bits" passes must leave every output equal; "rounding" passes may differ by the pass's own `tolerance`, and
outputs that are not floating point are left out there, because a decision (ArgMax, TopK) between two nearly
equal scores may tip; of "lossy" passes the error is only recorded. No pass may change the shape of an output, but
for one that counts decisions (the boxes of NonMaxSuppression).

A pass states its tolerance for float32. It is multiplied by u / 2^-24, where u is the unit roundoff of the coarsest
floating-point type that it computes (2^-53 of double, 2^-11 of float16, 2^-8 of bfloat16), for a model may well compute
in float16 and give float32. And it is divided by 32 for types of 16 bits and fewer: runtimes sum their products in
float32 and round once per node, where each product of a float32 model is rounded. Folding 20 BatchNormalizations cost
up to 42 u in float32 and 3 u in float16.

The samples are the first few of the calibration data. Where there is none, seeded numbers within the types of
the inputs stand in: enough to tell two graphs apart, and never used to calibrate anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.errors import InternalError, OnnxpressError
from onnxpress.passes.base import Pass, Rewrites

if TYPE_CHECKING:
    from onnxpress.ir.data import DataSource

__all__ = ["Check", "OutputVerifier"]

_SAMPLES = 8
_BATCH = 2  # of seeded inputs, where the model leaves it free: enough to tell samples from one another

_UNIT_ROUNDOFF = {  # of the types that are computed with; others are stored
    onnx_ir.DataType.DOUBLE: 2.0**-53,
    onnx_ir.DataType.FLOAT: 2.0**-24,
    onnx_ir.DataType.FLOAT16: 2.0**-11,
    onnx_ir.DataType.BFLOAT16: 2.0**-8,
}
_STATED_FOR = _UNIT_ROUNDOFF[onnx_ir.DataType.FLOAT]
_ROUNDINGS_SAVED = 32  # by types that are summed in float32, see above
_COUNTING = frozenset({"Compress", "Loop", "NonMaxSuppression", "NonZero", "Unique"})

_Outputs = Mapping[str, npt.NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """What a comparison measured.

    samples: how many were compared. sqnr_db: of the worst floating-point output; inf where all are equal,
    None where nothing was compared, and then `skipped` says why.
    """

    samples: int
    sqnr_db: float | None
    skipped: str = ""


class OutputVerifier:
    """Compares models over one fixed set of samples; keeps the last outputs, which the next pass needs."""

    def __init__(self, data: DataSource | None, *, seed: int = 0) -> None:
        """Compare over the first samples of `data`, or over inputs drawn from `seed`.

        Raises:
            UsageError: no onnxruntime is installed.
        """
        from onnxpress.ir.analysis.execute import require_runtime

        require_runtime()
        self._data = data
        self._seed = seed
        self._last: tuple[onnx_ir.Model, _Outputs] | None = None

    def check(self, one: Pass, rewrites: Rewrites, before: onnx_ir.Model, after: onnx_ir.Model) -> Check:
        """Compare `after` with `before` and measure the difference.

        Raises:
            InternalError: the outputs differ by more than the fidelity of the pass allows, the model no
                longer runs, or the pass changed the model and recorded nothing.
        """
        _check_record(rewrites, before, after)
        try:
            expected = self._outputs(before)
        except Exception as error:  # custom operators, inputs that no seed can guess: not this pass's fault
            return Check(0, None, f"the model before it does not run here: {_first_line(error)}")
        try:
            actual = self._outputs(after)
        except Exception as error:
            raise InternalError(f"left a model that does not run: {_first_line(error)}") from error
        samples = max((len(array) for array in expected.values() if array.ndim), default=1)
        comparison = _Comparison(one, before, samples)
        for name, value in _compared(before).items():
            comparison.compare(value, expected[name], actual[name])
        return Check(samples, _worst_sqnr_db(expected, actual))

    def _outputs(self, model: onnx_ir.Model) -> _Outputs:
        if self._last is None or self._last[0] is not model:
            self._last = (model, self._run(model))
        return self._last[1]

    def _run(self, model: onnx_ir.Model) -> _Outputs:
        from onnxpress.ir.analysis.execute import Session, stream

        names = list(_compared(model))
        if self._data is None:
            found = Session(model, threads=1).run(_seeded_feeds(model, self._seed))
            return {name: found[name] for name in names}
        batches = list(stream(model, self._data, names, samples=_SAMPLES, optimize=False))
        return {name: _join([batch[name] for batch in batches]) for name in names}


def _compared(model: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    """Return the outputs that are compared by name: tensors, not sequences and optionals."""
    tensors = [value for value in model.graph.outputs if isinstance(value.type, onnx_ir.TensorType)]
    return {value.name: value for value in tensors if value.name is not None}


def _join(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(arrays) if arrays[0].ndim else np.stack(arrays)


def _seeded_feeds(model: onnx_ir.Model, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return numbers for every input: floats standard normal, integers 0 or 1, booleans fair."""
    from onnxpress.ir.shapes import batch_dimension, static_shape

    rng = np.random.default_rng(seed)
    batch = batch_dimension(model) or _BATCH
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        shape = static_shape(value, batch=batch)
        if shape is None or value.dtype is None:
            raise InternalError(f"input {value.name!r} has no fixed shape beyond the batch. Give --data")
        drawn = rng.standard_normal(shape) if value.dtype.is_floating_point() else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(drawn).astype(value.dtype.numpy())
    return feeds


def _check_record(rewrites: Rewrites, before: onnx_ir.Model, after: onnx_ir.Model) -> None:
    from onnxpress.ir.text import to_text

    if not rewrites.modified and to_text(before) != to_text(after):
        raise InternalError("changed the model but recorded no site")


class _Comparison:
    """What a pass may change in the outputs of `before`."""

    def __init__(self, one: Pass, before: onnx_ir.Model, samples: int) -> None:
        self._fidelity = one.fidelity
        self._samples = samples
        self._tolerance = _tolerance(one.tolerance, before)
        self._may_tip = one.fidelity != "bits" and any(node.op_type in _COUNTING for node in before.graph.all_nodes())
        shapes = [value.shape for value in before.graph.inputs if value.shape is not None]
        self._given = {dim for shape in shapes for dim in shape if isinstance(dim, int) or dim.value is not None}

    def compare(self, value: onnx_ir.Value, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> None:
        """Raise an InternalError if output `value` changed by more than the pass may change it."""
        name = value.name or ""
        if expected.shape != actual.shape:
            if not self._counts_decisions(value, expected.shape, actual.shape):
                raise InternalError(
                    f"--verify-each: output {name!r} had the shape {list(expected.shape)} and has "
                    f"{list(actual.shape)}, over {self._samples} samples"
                )
        elif self._fidelity == "bits":
            _compare_bits(name, expected, actual, self._samples)
        elif self._fidelity == "rounding" and _is_float(expected):
            _compare_rounding(name, expected, actual, self._samples, self._tolerance)

    def _counts_decisions(self, value: onnx_ir.Value, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
        """Whether the shapes differ only in dimensions that are no number and no dimension of an input."""
        if not self._may_tip or len(old) != len(new):
            return False
        # Results of samples that ran one by one have an axis more than what is declared.
        declared = value.shape if value.shape is not None and len(value.shape) == len(old) else (None,) * len(old)
        differing = [dim for dim, a, b in zip(declared, old, new, strict=True) if a != b]
        return not any(isinstance(dim, int) or dim in self._given for dim in differing)


def _tolerance(stated: tuple[float, float], model: onnx_ir.Model) -> tuple[float, float]:
    """Return (relative, absolute) for the coarsest type in the model, of those stated for float32."""
    types = {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    coarsest = max((roundoff for dtype, roundoff in _UNIT_ROUNDOFF.items() if dtype in types), default=_STATED_FOR)
    factor = coarsest / _STATED_FOR / (_ROUNDINGS_SAVED if coarsest > _STATED_FOR else 1)
    return stated[0] * factor, stated[1] * factor


def _compare_bits(name: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any], samples: int) -> None:
    differs = expected != actual
    if _is_float(expected):
        differs &= ~(np.isnan(expected) & np.isnan(actual))
    if not differs.any():
        return
    error = f", by up to {_errors(expected, actual).max():.3g}" if _is_float(expected) else ""
    raise InternalError(
        f"--verify-each: output {name!r} must stay equal and differs in {np.count_nonzero(differs)} "
        f"of {expected.size} numbers{error}, over {samples} samples"
    )


def _compare_rounding(
    name: str,
    expected: npt.NDArray[Any],
    actual: npt.NDArray[Any],
    samples: int,
    tolerance: tuple[float, float],
) -> None:
    if not expected.size:
        return
    error = float(_errors(expected, actual).max())
    finite = np.abs(_wide(expected)[np.isfinite(_wide(expected))])
    largest = float(finite.max()) if finite.size else 0.0
    allowed = tolerance[0] * largest + tolerance[1]
    if not error <= allowed:
        raise InternalError(
            f"--verify-each: output {name!r} differs by {error:.3g}, which is more than {allowed:.3g} "
            f"({tolerance[0]:g} * max |output| {largest:.3g} + {tolerance[1]:g}), over {samples} samples"
        )


def _worst_sqnr_db(expected: _Outputs, actual: _Outputs) -> float | None:
    found = [
        _sqnr_db(array, actual[name])
        for name, array in expected.items()
        if _is_float(array) and array.shape == actual[name].shape
    ]
    return min(found, default=None)


def _sqnr_db(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    noise = float(np.square(_errors(expected, actual)).sum())
    signal = float(np.square(np.abs(_wide(expected))).sum())
    return sqnr_db(signal, noise)


def _errors(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return |expected - actual|; 0 where both are the same NaN or infinity, inf where only one is."""
    a, b = _wide(expected), _wide(actual)
    with np.errstate(invalid="ignore"):
        error = np.abs(a - b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def _wide(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _is_float(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind in "fc" or onnx_ir.DataType.from_numpy(array.dtype).is_floating_point()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (
        text[0] if text and isinstance(error, OnnxpressError) else f"{type(error).__name__}: {text[0] if text else ''}"
    )
