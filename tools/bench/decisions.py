"""Is what passes decline as slower really slower? Each decision beside the clock.

A pass declines a rewrite that the target's estimate calls slower. Here every rewrite is made that saves MACs or bytes,
whatever the estimate says of it, and original and result are timed node by node (`onnxpress profile`). For each site
the estimate's answer, before and after in its own numbers, stands beside what the same nodes took.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir

from onnxpress.ir.errors import OnnxpressError, UsageError
from onnxpress.passes.constraints import CostEstimator, Precision
from onnxpress.targets.base import Target, load_target
from onnxpress.tools.bench.assets import Asset, working_folder
from onnxpress.tools.bench.profiles import make_variant
from onnxpress.tools.profiling import Profile, profile

__all__ = ["HEADINGS", "REWRITES", "Row", "Site", "run"]

REWRITES = {
    "low-rank": "low-rank{energy=0.9,allocation=modelled}",
    "separable": "separable{energy=0.8,allocation=modelled}",
    "int8": "quantize-int8{placement=all,tail=int8}",
}
HEADINGS = {
    "compiler": "rewrite", "sites": "sites", "slower": "really slower", "right": "right", "right_percent": "right %",
    "clear": "clear ones", "clear_right_percent": "right of these %", "wrong": "wrong", "status": "status",
}  # fmt: skip

_CLEAR = 0.05  # times that are closer than this are as good as equal
_LEAST_MS = 0.002  # what the profiler's clock of a microsecond can tell apart


@dataclasses.dataclass(frozen=True)
class Site:
    """One rewrite. Times in milliseconds, before and after, as predicted and as measured."""

    name: str
    predicted: tuple[float, float]
    measured: tuple[float, float]

    @property
    def is_right(self) -> bool:
        """Whether estimate and clock agree on which is slower."""
        return (self.predicted[1] > self.predicted[0]) == (self.measured[1] > self.measured[0])

    @property
    def is_clear(self) -> bool:
        """Whether the clock tells the two apart."""
        before, after = self.measured
        return abs(after - before) > _CLEAR * max(before, after)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model under one rewrite. clear: how many sites the clock tells apart. wrong: names of those of them where the
    estimate is wrong. status: why there are no numbers.
    """

    model: str
    compiler: str
    sites: int = 0
    slower: int = 0
    right: int = 0
    right_percent: float | None = None
    clear: int = 0
    clear_right_percent: float | None = None
    wrong: str = ""
    status: str = ""
    details: tuple[Site, ...] = ()


def run(
    assets: list[Asset],
    rewrites: Sequence[str] = tuple(REWRITES),
    *,
    target: str = "host-cpu",
    rounds: int = 500,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset and rewrite, for each rewrite of all assets, and of all. keep: where data stays.

    Raises:
        UsageError: the target has no estimate to ask.
    """
    chosen = load_target(target)
    costs = chosen.constraints.costs
    if costs is None:
        raise UsageError(f"{chosen.name} has no cost estimate, and declines nothing as slower. Give --target x86-vnni")
    rows = []
    with working_folder(keep) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of few samples: the numbers do not matter here
        for asset in assets:
            for name in rewrites:
                tell(f"{asset.model}, {name} ...")
                row = Row(asset.model, name)
                try:
                    found = tuple(_sites(asset, name, chosen, costs, folder, rounds))
                except OnnxpressError as error:
                    rows.append(dataclasses.replace(row, status=" ".join(str(error).split())))
                else:
                    rows.append(_summed_up(row, found))
    return [*rows, *(_total(rows, [name]) for name in rewrites), _total(rows, rewrites)]


def _total(rows: Sequence[Row], rewrites: Sequence[str]) -> Row:
    sites = tuple(site for row in rows if row.compiler in rewrites for site in row.details)
    return dataclasses.replace(_summed_up(Row("all", ", ".join(rewrites)), sites), details=())


def _summed_up(row: Row, sites: tuple[Site, ...]) -> Row:
    clear = [site for site in sites if site.is_clear]
    right, clear_right = (sum(site.is_right for site in some) for some in (sites, clear))
    return dataclasses.replace(
        row,
        sites=len(sites),
        slower=sum(site.measured[1] > site.measured[0] for site in sites),
        right=right,
        right_percent=100 * right / len(sites) if sites else None,
        clear=len(clear),
        clear_right_percent=100 * clear_right / len(clear) if clear else None,
        wrong=" ".join(site.name for site in clear if not site.is_right),
        details=sites,
    )


def _sites(asset: Asset, name: str, target: Target, costs: CostEstimator, folder: Path, rounds: int) -> Iterator[Site]:
    unpriced = dataclasses.replace(target.constraints, costs=None)  # so that nothing is declined for its sake
    original, rewritten = (make_variant(asset, text, unpriced, folder) for text in ("", REWRITES[name]))
    predicted = _predicted(original, rewritten, costs, "int8" if name == "int8" else "float32")
    for model in (original, rewritten):
        target.lower(model)
    before, after = profile(original, rewritten, target=target, rounds=rounds).profiles
    was, became = _times(before), _times(after)
    for site, (nodes, times) in predicted.items():
        measured = was.get(site, 0.0), sum(became.get(node, 0.0) for node in nodes)
        if min(measured) > _LEAST_MS:
            yield Site(site, times, measured)


def _predicted(
    original: onnx_ir.Model, rewritten: onnx_ir.Model, costs: CostEstimator, precision: Precision
) -> Mapping[str, tuple[tuple[str, ...], tuple[float, float]]]:
    """Return for each rewritten node what it became, and the estimate before and after, in milliseconds."""
    nodes = {node.name or "": node for node in original.graph}
    made = {node.name or "": node for node in rewritten.graph}
    found = {}
    for site, node in nodes.items():
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        if precision == "int8":
            parts: tuple[str, ...] = (site,) if site in made else ()
        else:
            parts = tuple(name for name in made if _belongs(name, site) and (name == site or name not in nodes))
        if len(parts) > (precision == "float32"):  # rewritten: into several nodes, or in place
            after = sum(costs.node_seconds(made[part], precision) for part in parts)
            found[site] = parts, (1e3 * costs.node_seconds(node), 1e3 * after)
    return found


def _belongs(name: str, site: str) -> bool:
    return re.fullmatch(re.escape(site) + r"(_\d+)?", name) is not None


def _times(found: Profile) -> dict[str, float]:
    """Return the milliseconds of each step by the node that does most of its work."""
    return {step.name: step.milliseconds for step in found.steps}
