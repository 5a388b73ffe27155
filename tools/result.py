"""What a run of `compress` did, in numbers, and the JSON that programs read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import BudgetError
from onnxpress.passes.base import Amount, Site
from onnxpress.passes.manager import PassRecord
from onnxpress.targets.runtimes.onnxruntime_cpu import Kernels
from onnxpress.tools.metrics import Metrics
from onnxpress.tools.outputs import require_format, write_bytes
from onnxpress.tools.recipe import Recipe
from onnxpress.tools.report.numbers import describe_speed

__all__ = ["DropError", "MeasuredOn", "Report", "Result"]

MeasuredOn = Literal["evaluation data", "calibration data"]

_TEXT_WIDTH = 110  # of the tables as plain text


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What a run did, in numbers. `str` gives the tables that the command line prints.

    before, after: the original and the result. headlines: what a user must not miss, worst first; empty when
    all is well. notes: what else is worth a line. samples: how many of `samples_of` accuracy and agreement
    were measured on, as the runtime runs the models; sqnr_samples: how many SQNR, of the models as written.
    measured_on: what those samples are; None without any. calibration_samples: how many there were.
    lowering: how often each form was emitted. kernels: what the runtime makes of the result. seconds: of all,
    `measuring_seconds` of it spent on running the two models. peak_rss_bytes: of the process. runtime: what timed the
    models; None where they were not timed. is_latency_of_target: whether this machine is what the target describes.
    """

    model: str
    target: str
    pipeline: str
    seed: int
    before: Metrics
    after: Metrics
    kernels: Kernels
    recipe: Recipe
    passes: tuple[PassRecord, ...] = ()
    lowering: Mapping[str, int] = dataclasses.field(default_factory=dict)
    headlines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    samples: int = 0
    sqnr_samples: int = 0
    samples_of: str | None = None
    measured_on: MeasuredOn | None = None
    calibration_samples: int | None = None
    seconds: float = 0.0
    measuring_seconds: float = 0.0
    peak_rss_bytes: int = 0
    runtime: str | None = None
    is_latency_of_target: bool = False

    def __repr__(self) -> str:
        """Say the result in one line; everything is in the tables (`str`) and in `to_json`."""
        before, after = self.before, self.after
        facts = [f"{before.size_bytes:,} to {after.size_bytes:,} bytes"]
        if before.accuracy is not None and after.accuracy is not None:
            facts.append(f"accuracy {before.accuracy:.2f} to {after.accuracy:.2f} %")
        if before.latency_ms and after.latency_ms:
            here = "" if self.is_latency_of_target else " here"
            facts.append(f"latency {describe_speed(before.latency_ms, after.latency_ms)}{here}")
        return f"<Report of {self.model!r} for {self.target}: {', '.join(facts)}>"

    def __str__(self) -> str:
        """Return the tables as plain text."""
        import io

        from rich.console import Console

        from onnxpress.tools.report.tables import show_report

        text = io.StringIO()
        plain = Console(
            file=text, width=_TEXT_WIDTH, color_system=None, force_terminal=False, force_jupyter=False, markup=False,
            highlight=False, emoji=False,
        )  # fmt: skip
        show_report(plain, self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")

    @property
    def speedup(self) -> float | None:
        """How many times faster the result is; above 1 is faster."""
        if not self.before.latency_ms or not self.after.latency_ms:
            return None
        return self.before.latency_ms / self.after.latency_ms

    def worst_sites(self, limit: int | None = None) -> list[tuple[str, Site]]:
        """Return (pass, site) with the largest local error first, as far as errors were measured."""
        found = [(record.name, site) for record in self.passes for site in record.rewrites.sites if site.error]
        return sorted(found, key=lambda item: _quality(item[1]))[:limit]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, under the keys that programs read."""
        return {
            "model": self.model,
            "target": self.target,
            "pipeline": self.pipeline,
            "seed": self.seed,
            "seconds": self.seconds,
            "measuring_seconds": self.measuring_seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "passes": [_record_json(record) for record in self.passes],
            "headlines": list(self.headlines),
            "notes": list(self.notes),
            "speedup": self.speedup,
            "runtime": self.runtime,
            "latency_is_of_target": self.is_latency_of_target,
            "samples": self.samples,
            "sqnr_samples": self.sqnr_samples,
            "samples_of": self.samples_of,
            "measured_on": self.measured_on,
            "calibration_samples": self.calibration_samples,
            "lowering": dict(self.lowering),
            "kernels": {
                "operators": dict(self.kernels.operators),
                "integer": list(self.kernels.integer),
                "unfused": list(self.kernels.unfused),
                "left_float": list(self.kernels.left_float),
            },
            "recipe": self.recipe.model_dump(exclude_none=True),
        }


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """A compressed model with its proof and the recipe that repeats it.

    content: the file of a runtime that reads no ONNX, such as .tflite, to be written as it is; None for others. `model`
    is then what it was made of.
    """

    model: onnx_ir.Model
    report: Report
    content: bytes | None = None

    def __repr__(self) -> str:
        """Say the result in one line."""
        return f"<Result with {self.report!r}>"

    @property
    def recipe(self) -> Recipe:
        """What repeats the run."""
        return self.report.recipe

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write what the target's runtime reads, whole or not at all: the model, or the file of a runtime of its own.

        Raises:
            UsageError: the name says another format than the runtime reads; the path is taken, or cannot be written.
        """
        require_format(path, self.report.target, is_tflite=self.content is not None)
        if self.content is not None:
            write_bytes(path, self.content, overwrite=overwrite)
        else:
            model_io.save(self.model, path, overwrite=overwrite)


class DropError(BudgetError):
    """The result falls short of `max_drop`. Carries the report, so that a user sees by what."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def _quality(site: Site) -> tuple[int, float]:
    """Return what orders sites, those that hurt most first: SQNR of outputs, then of weights, then other errors."""
    for rank, metric in enumerate(("sqnr_db", "weight_sqnr_db")):
        if metric in site.error:
            return rank, site.error[metric]
    return 2, -max(map(abs, site.error.values()))


def _record_json(record: PassRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "options": record.options,
        "seconds": record.seconds,
        "cpu_seconds": record.cpu_seconds,
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "before": _amount_json(site.before),
                "after": _amount_json(site.after),
                "error": dict(site.error),
                "detail": site.detail,
            }
            for site in record.rewrites.sites
        ],
        "declined": [dataclasses.asdict(declined) for declined in record.rewrites.declined],
        "before": _weighed(record.before).to_json(),
        "after": _weighed(record.after).to_json(),
        "check": None if record.check is None else dataclasses.asdict(record.check),
    }


def _amount_json(amount: Amount) -> dict[str, int]:
    return {"params": amount.params, "macs": amount.macs, "bytes": amount.size_bytes}


def _weighed(amount: Amount) -> Metrics:
    """Return what is known of the model between two passes. Its bytes are those of the weights."""
    bits = 8 * amount.size_bytes / amount.params if amount.params else None
    return Metrics(amount.params, amount.macs, amount.size_bytes, bits)
