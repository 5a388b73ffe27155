"""Remove channels from a model, and repair what is left, from unlabelled samples alone.

    y = W x + b   =>   y' = W' x[kept] + b',   W', b' = argmin E||y' - y||^2

Real channels leave real tensors, so that the model gets smaller and faster on any runtime. Which channels hang
together, over residual additions, concatenations, depthwise convolutions and reshapes, is `ir.analysis.channels`'s
to say.

1. order     the slots of every group by what their readers' outputs lose after a refit (`elimination`), or by `score`
2. widths    those that the target's cost estimate says are faster than the wider ones, in multiples of `multiple`
3. measure   what each such width costs the model's outputs, one group at a time (`sensitivity`)
4. allocate  widths to groups so that the budget is met at least summed loss (`passes.allocation`)
5. remove    all that goes at once
6. repair    layer after layer: inputs of the pruned model, outputs of the original, what a shortcut lost made good for

A strong cut goes in stages, and measures again after each: what a group is worth depends on what has gone already.

Legal when: the group is not frozen (`onnxpress inspect --channels` says why it is) and an operator with weights reads
it in the main graph. Removing what is left of a budget already met does nothing. Fidelity: lossy; each site records the
measured divergence (`ir.analysis.divergence`) of its cut alone. Runs before quantization.
Sources: Hassibi & Stork 1993 (order); He et al. 2017, https://arxiv.org/abs/1707.06168 (refit); Shoham & Gersho 1988
(allocation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.analysis.channels import ChannelGroup, couple, remove, removed_indices
from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.ir.analysis.execute import stream
from onnxpress.ir.analysis.moments import Moments, collect, gram_bytes
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import ancestors
from onnxpress.ir.data import DataSource, bind
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.linear import Linear, linear_ops
from onnxpress.passes.allocation import allocate
from onnxpress.passes.base import Context, Declined, Fidelity, Options, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.prune.channel_costs import Budget, ChannelCosts
from onnxpress.passes.prune.channel_paths import reading_consumers
from onnxpress.passes.prune.scores import Score, path_by, why_no_score
from onnxpress.passes.prune.sensitivity import Option, measure_losses, worthwhile_removals
from onnxpress.passes.repair import repair_sequentially
from onnxpress.passes.selectors import Selection

__all__ = ["PruneChannels", "PruneChannelsOptions"]

_Kept: TypeAlias = dict[str, list[int]]

_DEFAULT_RATIO = 0.25
_STAGE = 0.72  # what a stage may leave of the budget's cost; resnet56 at half its MACs, in two stages instead of one:
# drop 2.8 instead of 3.4 points, at a third 8.8 (three) instead of 15.3
_GRAM_BYTES = 512 << 20  # moments held at once
_COUNTED_AT_ONCE = 16  # samples
_FINEST = 4  # narrower steps than this are slower on every runtime that was measured


class PruneChannelsOptions(SiteOptions):
    """Options of `prune-channels`."""

    ratio: float | None = pydantic.Field(
        default=None, ge=0, lt=1, description="share of the channels that can go that is removed; 0.25 by default"
    )
    macs: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's multiply-accumulates that may remain"
    )
    params: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's parameters that may remain"
    )
    latency: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the predicted time that may remain"
    )
    score: Score = pydantic.Field(
        default="obs",
        description="which channels go first: obs, l1, l2, bn-scale, activation, apoz, thinet, lasso, geometric-median",
    )
    allocation: Literal["measured", "modelled", "uniform"] = pydantic.Field(
        default="measured",
        description="how the cut is shared out: by its measured effect on the outputs, by the readers' modelled error "
        "or by the squared share of each group, which spares none by its worth",
    )
    repair: bool = pydantic.Field(default=True, description="refit every layer behind a cut by least squares")
    sweeps: int = pydantic.Field(default=2, ge=1, le=10, description="how often the repair goes through the layers")
    multiple: int | None = pydantic.Field(
        default=None, ge=1, description="widths are multiples of this; by default what the target's kernels take"
    )
    max_sites: int | None = pydantic.Field(default=None, ge=1, description="cut at most so many groups")
    samples: int = pydantic.Field(default=512, ge=2, description="calibration samples to use, at most")
    error_samples: int = pydantic.Field(
        default=128, ge=2, description="samples, at most a third of all, that measure a cut's effect and fit nothing"
    )

    @pydantic.model_validator(mode="after")
    def _one_budget(self) -> PruneChannelsOptions:
        given = [name for name in ("ratio", "macs", "params", "latency") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: give one of ratio, macs, params and latency")
        return self

    def budget(self) -> tuple[Budget, float]:
        """Return what is bounded, and the share of it that may remain."""
        names: tuple[Budget, ...] = ("macs", "params", "latency")
        for name in names:
            share = getattr(self, name)
            if share is not None:
                return name, share
        return "channels", 1 - (_DEFAULT_RATIO if self.ratio is None else self.ratio)


class PruneChannels(Pass):
    """Remove channels where the outputs lose least, and refit the rest on calibration data."""

    name: ClassVar[str] = "prune-channels"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = PruneChannelsOptions
    after: ClassVar[tuple[str, ...]] = ("cleanup",)
    options: PruneChannelsOptions

    @property
    def needs_data(self) -> bool:
        """Always: what a channel is worth is read off real samples."""
        return True

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Remove channels of `model` in place.

        Raises:
            UsageError: no calibration data, a selector that matches nothing, or latency without a cost estimate.
            BudgetError: less than the budget cannot be reached.
        """
        data = context.require_data(self.name)
        budget, share = self.options.budget()
        if budget == "latency" and context.constraints.costs is None:
            raise UsageError(
                f"{self.name}: latency={share:g} needs a target that estimates time, and "
                f"{context.constraints.target!r} does not. Give macs instead"
            )
        run = _Run(model, data, context, self.options)
        groups, declined = run.eligible()
        record = Rewrites(declined=declined)
        if not groups or share >= 1:
            return record
        run.cut(budget, share, record)
        return record


class _Run:
    """One run. original: the model as it was, which every repair aims at."""

    def __init__(self, model: onnx_ir.Model, data: DataSource, context: Context, options: PruneChannelsOptions) -> None:
        self.model, self.data, self.context, self.options = model, data, context, options
        self.original = model.clone()
        self.selection = Selection.from_options(options, model, PruneChannels.name)
        total = _count(bind(data, model), options.samples)
        # A refit to few samples looks perfect on them, and the widest layers look free to cut.
        held_out = max(1, min(options.error_samples, total // 3))
        self.fitted = max(1, total - held_out)
        self.divergence = Divergence(self.original, data, samples=held_out, skip=total - held_out)
        self.kept: _Kept = {}
        self.removed: dict[str, int] = {}  # slots gone, by group
        self.losses: dict[str, float] = {}
        self.unfit: set[str] = set()  # operators that lost rows, which no target of the original's has

    def eligible(self) -> tuple[list[ChannelGroup], list[Declined]]:
        """Return the groups that may be cut, and why others may not."""
        groups: list[ChannelGroup] = []
        declined: list[Declined] = []
        inside = set(self.model.graph)
        for group in couple(self.model).groups:
            reason = group.frozen or self._why_not(group, inside)
            if reason is None:
                groups.append(group)
            else:
                declined.append(Declined(group.name, "channels", reason))
        return groups, declined

    def _why_not(self, group: ChannelGroup, inside: set[onnx_ir.Node]) -> str | None:
        readers = reading_consumers(group)
        if not readers:
            return "no operator with weights reads them, so that nothing could make good for their loss"
        for op in (*readers, *group.producers):
            if op.node not in inside:
                return f"node {op.node.name!r} lies in the body of a control flow node"
            reason = self.selection.reason(op.node) if op in (group.producers or readers) else None
            if reason is not None:
                return f"node {op.node.name!r}: {reason}"
        for op in readers:
            if (reason := why_no_patches(op)) is not None:
                return f"node {op.node.name!r}: {reason}"
        return why_no_score(group, self.options.score)

    def cut(self, budget: Budget, share: float, record: Rewrites) -> None:
        """Cut in stages until `share` of the budget's cost remains, and record every group."""
        groups, _ = self.eligible()
        sizes = {group.name: group.size for group in groups}
        before = {group.name: group for group in groups}
        start = self._costs(groups)
        total, floor = start.total(budget), start.total(budget) * share
        amounts = {group.name: start.amount_of(index, [0] * len(groups)) for index, group in enumerate(groups)}
        narrowest = [worthwhile_removals(group, i, start, self._multiple(group))[-1] for i, group in enumerate(groups)]
        self._require_reach(budget, share, narrowest, start)
        stages = max(1, round(np.log(share) / np.log(_STAGE))) if budget != "channels" else 1
        for stage in range(1, stages + 1):
            self._stage(budget, max(floor, total * share ** (stage / stages)))
        for index, (name, group) in enumerate(before.items()):
            count = self.removed.get(name, 0)
            if not count:
                reason = "kept: the budget is met at less loss elsewhere"
                if not narrowest[index]:
                    reason = f"no narrower width is faster on {self.context.constraints.target}"
                record.declined.append(Declined(name, "channels", reason))
                continue
            after = start.amount_of(index, [count if other == index else 0 for other in range(len(groups))])
            readers = ", ".join(op.node.name or "" for op in reading_consumers(group)[:3])
            record.sites.append(
                Site(
                    name,
                    "channels",
                    amounts[name],
                    after,
                    {"divergence": self.losses[name]} if self.options.allocation == "measured" else {},
                    f"{count} of {sizes[name]} removed, read by {readers}",
                )
            )

    def _require_reach(self, budget: Budget, share: float, narrowest: list[int], costs: ChannelCosts) -> None:
        """Raise a BudgetError where every group at its narrowest still costs more than asked; before any work."""
        limit = self.options.max_sites
        if limit is not None:
            none = [0] * len(narrowest)
            saved = [costs.saved_by(budget, none, index, count) for index, count in enumerate(narrowest)]
            most = sorted(range(len(narrowest)), key=lambda index: -saved[index])[:limit]
            narrowest = [count if index in most else 0 for index, count in enumerate(narrowest)]
        left = costs.cost_of(budget, narrowest) / costs.total(budget)
        if left <= share:
            return
        asked = f"ratio={1 - share:.4g}" if budget == "channels" else f"{budget}={share:g}"
        reach = f"at most {1 - left:.3g} of the channels can go" if budget == "channels" else f"{left:.3g} remain"
        raise BudgetError(
            f"{PruneChannels.name}: {asked} cannot be reached: with "
            f"{'every group' if limit is None else f'{limit} groups'} at the narrowest width that is faster, {reach}. "
            f"Ask for that or {'less' if budget == 'channels' else 'more'}; multiple=1 allows more widths"
        )

    def _multiple(self, group: ChannelGroup) -> int:
        """Return the step of widths: what is asked for, or the finest that a target with steps runs well."""
        if self.options.multiple is not None:
            return self.options.multiple
        constraints = self.context.constraints
        if constraints.costs is None:
            return constraints.channel_multiple
        return min(constraints.channel_multiple, _FINEST if group.size <= 32 else 2 * _FINEST)

    def _costs(self, groups: Sequence[ChannelGroup]) -> ChannelCosts:
        return ChannelCosts(self.model, groups, self.context.constraints.costs)

    # One stage.

    def _stage(self, budget: Budget, remaining: float) -> None:
        """Cut down to `remaining`, or as near as this stage's widths come."""
        groups, _ = self.eligible()
        costs = self._costs(groups)
        if costs.total(budget) <= remaining:
            return
        options = self._options(groups, costs)
        levels = self._allocate(options, costs, budget, remaining)
        removals = {
            option.group: option.path.order[: option.removals[level]]
            for option, level in zip(options, levels, strict=True)
            if level
        }
        for option, level in zip(options, levels, strict=True):
            if level:
                name = option.group.name
                self.removed[name] = self.removed.get(name, 0) + option.removals[level]
                self.losses[name] = self.losses.get(name, 0.0) + option.losses[level]
        touched = {op.node.name or "" for group in removals for op in (*group.producers, *group.consumers)}
        self._remember_kept(removals)
        remove(self.model, removals)
        if self.options.repair and removals:
            self._repair(touched)

    @staticmethod
    def _counts(options: Sequence[Option], levels: Sequence[int]) -> list[int]:
        return [option.removals[level] for option, level in zip(options, levels, strict=True)]

    def _options(self, groups: Sequence[ChannelGroup], costs: ChannelCosts) -> list[Option]:
        """Find what can be done with every group. Moments are held for a part of the groups at a time."""
        options: list[Option] = []
        present = self.divergence.of(self.model)
        parts = list(_parts(groups))
        with self._task("measuring channels", len(groups)) as task:
            for part in parts:
                layers = {op.node.name: op for group in part for op in reading_consumers(group)}
                moments = collect(
                    self.model, list(layers.values()), self.data, samples=self.fitted, seed=self.context.seed,
                )  # fmt: skip
                zeros = self._zeros(part)
                for group in part:
                    options.append(self._option(group, len(options), costs, moments, zeros, present))
                    task.advance()
        return options

    def _task(self, label: str, total: int) -> Any:
        from onnxpress.passes.instrument import Progress

        return (self.context.progress or Progress()).task(label, total)

    def _option(
        self,
        group: ChannelGroup,
        index: int,
        costs: ChannelCosts,
        moments: Mapping[str, Moments],
        zeros: Mapping[str, npt.NDArray[np.float64]],
        present: float,
    ) -> Option:
        path = path_by(self.options.score, group, moments, zeros)
        removals = worthwhile_removals(group, index, costs, self._multiple(group))
        if self.options.allocation == "measured":
            losses = measure_losses(self.model, group, path, removals, moments, self.divergence, present)
        elif self.options.allocation == "modelled":
            losses = tuple(path.error_of(count) for count in removals)
        else:  # equal shares everywhere: what a cut costs is the square of its share
            losses = tuple((count / group.size) ** 2 * group.size for count in removals)
        return Option(group, path, removals, losses)

    def _zeros(self, groups: Sequence[ChannelGroup]) -> dict[str, npt.NDArray[np.float64]]:
        """Return the share of zeros in each channel of the groups' readers' inputs, where the score asks for it."""
        if self.options.score != "apoz":
            return {}
        axes = {op.data.name or "": op.data_axis for group in groups for op in reading_consumers(group)}
        sums: dict[str, npt.NDArray[np.float64]] = {}
        counts: dict[str, int] = {}
        for batch in stream(self.model, self.data, list(axes), samples=self.options.samples):
            for name, array in batch.items():
                channels = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1)
                sums[name] = sums.get(name, 0) + (channels == 0).sum(axis=1, dtype=np.float64)
                counts[name] = counts.get(name, 0) + channels.shape[1]
        return {name: total / counts[name] for name, total in sums.items()}

    def _allocate(self, options: Sequence[Option], costs: ChannelCosts, budget: Budget, remaining: float) -> list[int]:
        def share_out(losses: Sequence[Sequence[float]]) -> list[int]:
            levels, _ = allocate(
                losses,
                lambda levels: costs.cost_of(budget, self._counts(options, levels)),
                lambda levels, site, level: costs.saved_by(
                    budget,
                    self._counts(options, levels),
                    site,
                    options[site].removals[level] - options[site].removals[levels[site]],
                ),
                remaining,
            )
            return levels

        losses = [option.losses for option in options]
        levels = share_out(losses)
        limit = self.options.max_sites
        if limit is None or sum(level > 0 for level in levels) <= limit:
            return levels
        saved = [
            costs.saved_by(budget, [0] * len(options), site, option.removals[level])
            for site, (option, level) in enumerate(zip(options, levels, strict=True))
        ]
        chosen = set(sorted(range(len(options)), key=lambda site: -saved[site])[:limit])
        return share_out([curve if site in chosen else curve[:1] for site, curve in enumerate(losses)])

    # Removal and repair.

    def _remember_kept(self, removals: Mapping[ChannelGroup, Sequence[int]]) -> None:
        """Note which output channels of each operator of the original are left."""
        gone = {(value.name, axis): indices for (value, axis), indices in removed_indices(removals).items()}
        for op in linear_ops(self.model, subgraphs=False):
            if op.output.shape is None:
                continue
            channels = op.output_axis % len(op.output.shape)
            if any(name == op.output.name and axis != channels for name, axis in gone):
                self.unfit.add(op.node.name or "")
            indices = gone.get((op.output.name, channels))
            if indices is not None:
                name = op.node.name or ""
                held = np.asarray(self.kept.get(name, range(op.out_channels)))
                self.kept[name] = [int(channel) for channel in np.delete(held, indices)]

    def _repair(self, touched: set[str]) -> None:
        """Refit the touched layers and all that comes behind them, once linearly, then past the activations."""
        for sweep in range(self.options.sweeps):
            layers = [op for op in _behind(self.model, touched) if (op.node.name or "") not in self.unfit]
            repair_sequentially(
                self.model, self.original, self.data, layers,
                kept=self.kept, rectified=sweep > 0, samples=self.options.samples, seed=self.context.seed,
                progress=self.context.progress,
            )  # fmt: skip


def _count(source: DataSource, limit: int) -> int:
    """Return how many samples there are, at most `limit`; what only a pass over them tells takes one."""
    known = source.count
    if known is None:
        known = sum(batch.size for batch in source.batches(_COUNTED_AT_ONCE, limit=limit))
    return min(known, limit)


def _behind(model: onnx_ir.Model, touched: set[str]) -> list[Linear]:
    """Return the linear operators named, and those that depend on them, that can be refitted."""
    seeds = {node for node in model.graph if (node.name or "") in touched}
    return [
        op
        for op in linear_ops(model, subgraphs=False)
        if why_no_patches(op) is None and (op.node in seeds or not seeds.isdisjoint(ancestors([op.data])))
    ]


def _parts(groups: Sequence[ChannelGroup]) -> Iterator[list[ChannelGroup]]:
    """Split the groups so that the moments of each part stay within bounds where they can."""
    part: list[ChannelGroup] = []
    held = 0
    for group in groups:
        size = sum(gram_bytes(op) for op in reading_consumers(group))
        if part and held + size > _GRAM_BYTES:
            yield part
            part, held = [], 0
        part.append(group)
        held += size
    if part:
        yield part
