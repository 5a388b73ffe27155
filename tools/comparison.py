"""Two models side by side: the numbers behind `onnxpress compare`."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.compare import Difference
from onnxpress.ir.data import check_data, open_data
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.shapes import describe_shape, required_inputs
from onnxpress.passes.instrument import Progress
from onnxpress.tools.measure import Effort, Subject, measure_pair, source_bytes
from onnxpress.tools.metrics import SQNR_CEILING_DB, Metrics

if TYPE_CHECKING:
    import onnx

    AnyModel = str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model

__all__ = ["ModelComparison", "compare"]


@dataclasses.dataclass(frozen=True)
class ModelComparison:
    """Model B measured beside model A, which is the reference.

    samples: how many accuracy and fidelity were measured on, from `samples_of`; 0 where no data was given.
    outputs: B's difference from A by output. failures: thresholds that B misses, a line each; or what is other
    about its inputs or outputs, and then nothing is measured.
    """

    name_a: str
    name_b: str
    a: Metrics
    b: Metrics
    samples: int
    samples_of: str | None
    outputs: Mapping[str, Difference]
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    def require(self) -> None:
        """Do nothing when every threshold holds, and inputs and outputs are alike.

        Raises:
            BudgetError: one does not, or they are not.
        """
        if self.failures:
            raise BudgetError(f"{self.name_b} differs from {self.name_a}: {'; '.join(self.failures)}")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "a": {"model": self.name_a, **self.a.to_json()},
            "b": {"model": self.name_b, **self.b.to_json()},
            "samples": self.samples,
            "samples_of": self.samples_of,
            "outputs": {
                name: {
                    "sqnr_db": min(difference.sqnr_db, SQNR_CEILING_DB),
                    "max_abs": difference.max_abs,
                    "cosine": difference.cosine,
                }
                for name, difference in self.outputs.items()
            },
            "notes": list(self.notes),
            "failures": list(self.failures),
        }


def compare(
    a: AnyModel,
    b: AnyModel,
    data: Any = None,
    *,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    progress: Progress | None = None,
) -> ModelComparison:
    """Measure `b` beside `a`, as far as their inputs and outputs are alike. Neither is changed.

    data: real samples, anything that `ir.data.open_data` takes; all are used. None leaves out fidelity and
    accuracy. min_sqnr: in dB, for every output. min_agreement: percent of samples with the same top-1 class.

    Raises:
        UsageError: a threshold without data. InputError: a model or data that cannot be used.
    """
    if min_agreement is not None and not 0 <= min_agreement <= 100:
        raise UsageError(f"--min-agreement {min_agreement:g}: must be a percentage, 0 to 100.")
    if min_sqnr is not None and math.isnan(min_sqnr):
        raise UsageError("--min-sqnr nan: must be a number of decibels, such as 30.")
    if data is None and not (min_sqnr is None and min_agreement is None):
        raise UsageError("a threshold needs samples to measure on. Give --data, or data=...")
    first, second = model_io.load(a), model_io.load(b)
    name_a, name_b = (
        os.fspath(source) if isinstance(source, str | os.PathLike) else loaded.graph.name or letter
        for source, loaded, letter in ((a, first, "A"), (b, second, "B"))
    )
    if (difference := _interface_difference(first, second)) is not None:
        counted = (_subject(a, first).counted, _subject(b, second).counted)
        return ModelComparison(name_a, name_b, *counted, 0, None, {}, failures=(difference,))
    source = None
    if data is not None:
        source = open_data(data, model=first)
        check_data(source, first)
    pair = measure_pair(_subject(a, first), _subject(b, second), source, Effort(), progress)
    found = ModelComparison(
        name_a=name_a,
        name_b=name_b,
        a=pair.before,
        b=pair.after,
        samples=pair.samples,
        samples_of=None if source is None else source.name,
        outputs=pair.outputs,
        notes=pair.notes,
    )
    return dataclasses.replace(found, failures=tuple(_failures(found, min_sqnr, min_agreement)))


def _subject(source: AnyModel, model: onnx_ir.Model) -> Subject:
    runnable = source if isinstance(source, str | os.PathLike) else model
    return Subject(model, runnable, source_bytes(source, model))


def _interface_difference(a: onnx_ir.Model, b: onnx_ir.Model) -> str | None:
    """Say what is other about the inputs or outputs of `b`. Order and batch size are free."""
    for kind, first, second in (
        ("input", required_inputs(a), required_inputs(b)),
        ("output", a.graph.outputs, b.graph.outputs),
    ):
        ours, theirs = ({str(value.name): value for value in values} for values in (first, second))
        if set(ours) != set(theirs):
            return f"it has the {kind}s {_listing(theirs)}, not {_listing(ours)}"
        for name, value in ours.items():
            if not _is_alike(value, theirs[name]):
                return f"{kind} {name!r} is {_describe(theirs[name])}, not {_describe(value)}"
    return None


def _is_alike(first: onnx_ir.Value, second: onnx_ir.Value) -> bool:
    """Whether type and shape agree as far as they are known, but for the leading dimension."""
    if first.dtype is not None and second.dtype is not None and first.dtype != second.dtype:
        return False
    if first.shape is None or second.shape is None:
        return True
    if len(first.shape) != len(second.shape):
        return False
    pairs = zip(first.shape[1:], second.shape[1:], strict=True)
    return all(one == two or not (isinstance(one, int) and isinstance(two, int)) for one, two in pairs)


def _describe(value: onnx_ir.Value) -> str:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return f"{dtype} {describe_shape(value.shape)}"


def _listing(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _failures(found: ModelComparison, min_sqnr: float | None, min_agreement: float | None) -> list[str]:
    failures = []
    if min_sqnr is not None:
        failures += [
            f"output {name!r} has {difference.sqnr_db:.1f} dB SQNR, wanted {min_sqnr:g}"
            for name, difference in found.outputs.items()
            if not difference.sqnr_db >= min_sqnr
        ]
    if min_agreement is not None:
        agreement = found.b.agreement
        if agreement is None:
            failures.append(f"no output holds class scores, so no agreement; wanted {min_agreement:g} %")
        elif agreement < min_agreement:
            failures.append(f"agreement is {agreement:.2f} %, wanted {min_agreement:g}")
    return failures
