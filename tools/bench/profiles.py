"""The cost estimate against the clock: predicted beside measured, for every asset and what passes make of it.

Passes run as quickly as they can be had, mostly without data: time depends on shapes and types, not on how well weights
were fitted. Times are those of `onnxpress profile`, one thread, batch 1.
"""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import OnnxpressError
from onnxpress.passes.base import Context
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import Target, load_target
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.profiling import Profile, profile

__all__ = ["HEADINGS", "VARIANTS", "Row", "Summary", "make_variant", "run", "summarize"]

_CUT = "score=l2,allocation=uniform,repair=false"
VARIANTS = {
    "float32": "",
    "prune": f"prune-channels{{macs=0.6,{_CUT}}}",
    "low-rank": "low-rank{energy=0.9,allocation=modelled}",
    "separable": "separable{energy=0.8,allocation=modelled}",
    "int8": "quantize-int8",
    "prune+int8": f"prune-channels{{macs=0.6,{_CUT}}}, quantize-int8",
    "low-rank+int8": "low-rank{energy=0.9,allocation=modelled}, quantize-int8",
    "ternary": "ternarize{method=rtn}",
    "ternary+int8": "ternarize{method=rtn}, quantize-int8",
}
HEADINGS = {
    "compiler": "variant", "measured_ms": "measured ms", "predicted_ms": "predicted ms", "error_percent": "error %",
    "node_error_percent": "node error %", "steps_percent": "steps, % of total", "status": "status",
}  # fmt: skip

_SAMPLES = 16  # that give activations a range
_LEAST_SHARE = 0.01  # of the time, of steps whose error counts


@dataclasses.dataclass(frozen=True)
class Row:
    """One model. error_percent: predicted over measured time, less one. node_error_percent: median of the sizes of that
    over steps above 1 % of the time. steps_percent: the steps' sum, of the latency by their clock. Both are None where
    the runtime tells no steps. status: why there are no numbers.
    """

    model: str
    compiler: str
    measured_ms: float | None = None
    predicted_ms: float | None = None
    error_percent: float | None = None
    node_error_percent: float | None = None
    steps_percent: float | None = None
    status: str = ""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of all rows with numbers. spearman: rank correlation of predicted and measured time.

    median_node_error_percent: None where no row has one.
    """

    models: int
    median_error_percent: float
    worst_error_percent: float
    spearman: float
    median_node_error_percent: float | None


def run(
    assets: list[Asset],
    variants: Sequence[str] = tuple(VARIANTS),
    *,
    target: str = "host-cpu",
    rounds: int = 500,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset and variant. keep: where prepared data stays."""
    chosen = load_target(target)
    rows = []
    with working_folder(keep) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of few samples: the numbers do not matter here
        for asset in assets:
            for name in variants:
                tell(f"{asset.model}, {name} ...")
                row = Row(asset.model, name)
                try:
                    model = make_variant(asset, VARIANTS[name], chosen.constraints, folder)
                    chosen.lower(model)
                    rows.append(_measured(row, model, chosen, rounds))
                except OnnxpressError as error:
                    rows.append(dataclasses.replace(row, status=" ".join(str(error).split())))
    return rows


def make_variant(asset: Asset, pipeline: str, constraints: Constraints, folder: Path) -> onnx_ir.Model:
    """Return the asset, cleaned up, behind a pipeline of passes; few samples give activations a range."""
    path, calibration, _ = prepare(asset, folder, limit=1)
    original = model_io.load(path)
    data = None
    if "int8" in pipeline:
        data = open_data(dict(open_data(calibration, model=original).head(_SAMPLES).feeds), model=original)
    text = ", ".join(filter(None, ("cleanup, fold-batchnorm", pipeline)))
    return PassManager(build(text)).run(original, Context(constraints=constraints, data=data))[0]


def _measured(row: Row, model: onnx_ir.Model, target: Target, rounds: int) -> Row:
    (found,) = profile(model, target=target, rounds=rounds).profiles
    if found.predicted_ms is None:
        return dataclasses.replace(row, measured_ms=found.times.undisturbed, status=f"{target.name} estimates no time")
    return dataclasses.replace(
        row,
        measured_ms=found.times.undisturbed,
        predicted_ms=found.predicted_ms,
        error_percent=100 * (found.predicted_ms / found.times.undisturbed - 1),
        node_error_percent=_node_error(found),
        steps_percent=_steps_percent(found),
    )


def _node_error(found: Profile) -> float | None:
    errors = [
        abs(step.predicted_ms / step.milliseconds - 1)
        for step in found.steps
        if step.predicted_ms is not None and step.milliseconds and step.share > _LEAST_SHARE
    ]
    return 100 * statistics.median(errors) if errors else None


def _steps_percent(found: Profile) -> float | None:
    return None if found.steps_ms is None else 100 * found.steps_ms / found.clocked_ms


def summarize(rows: Sequence[Row]) -> Summary | None:
    """Return the summary; None where no row has numbers to compare."""
    from scipy.stats import spearmanr

    known = [row for row in rows if row.error_percent is not None]
    if len(known) < 2:
        return None
    errors = [abs(row.error_percent or 0.0) for row in known]
    pairs = [(row.measured_ms, row.predicted_ms) for row in known]
    nodes = [row.node_error_percent for row in known if row.node_error_percent is not None]
    return Summary(
        len(known),
        statistics.median(errors),
        max(errors),
        float(spearmanr(*zip(*pairs, strict=True)).statistic),
        statistics.median(nodes) if nodes else None,
    )
