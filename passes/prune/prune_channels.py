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
it in the main graph (`eligibility`). Fidelity: lossy; with allocation=measured each site records the divergence
(`ir.analysis.divergence`) of its cut alone. Runs before quantization. `ratio` counts only channels that can go, so that
it asks for nothing where none can; the other budgets are of the whole model, and an error where they are missed.
Sources: Hassibi & Stork 1993 (order); He et al. 2017, https://arxiv.org/abs/1707.06168 (refit); Shoham & Gersho 1988
(allocation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.analysis.channels import ChannelGroup, couple
from onnxpress.ir.analysis.divergence import Divergence, NotMeasurableError
from onnxpress.ir.analysis.execute import stream
from onnxpress.ir.analysis.moments import Moments, collect, gram_bytes, parts_within
from onnxpress.ir.data import DataSource
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.passes.allocation import Levels
from onnxpress.passes.base import Context, Declined, Fidelity, Options, Pass, Rewrites, Site
from onnxpress.passes.budget import BudgetOptions
from onnxpress.passes.instrument import Progress
from onnxpress.passes.prune.channel_allocation import at_least_loss, in_equal_shares, most_saving
from onnxpress.passes.prune.channel_costs import Budget, ChannelCosts
from onnxpress.passes.prune.channel_cuts import ChannelCuts
from onnxpress.passes.prune.channel_paths import reading_consumers
from onnxpress.passes.prune.eligibility import divide
from onnxpress.passes.prune.scores import WEIGHT_SCORES, Score, order_by_weights, path_by
from onnxpress.passes.prune.sensitivity import Option, measure_losses, worthwhile_removals
from onnxpress.passes.samples import Split, split_samples
from onnxpress.passes.selectors import Selection

__all__ = ["PruneChannels", "PruneChannelsOptions"]

_DEFAULT_RATIO = 0.25
_STAGE = 0.72  # what a stage may leave of the budget's cost; resnet56 at half its MACs, in two stages instead of one:
# drop 2.8 instead of 3.4 points, at a third 8.8 (three) instead of 15.3
_GRAM_BYTES = 512 << 20  # moments held at once
_FINEST = 4  # narrower steps than this are slower on every runtime that was measured
_ROUNDING = 1e-9  # of a sum of costs
_SHOWN_STEPS = 1000  # shares are told in steps of a thousandth
_SHOWN = 3  # names or reasons in a message


class PruneChannelsOptions(BudgetOptions):
    """Options of `prune-channels`."""

    budgets: ClassVar[tuple[str, ...]] = ("ratio", *BudgetOptions.budgets)

    ratio: float | None = pydantic.Field(
        default=None, ge=0, lt=1, description="share of the channels that can go that is removed; 0.25 by default"
    )
    score: Score = pydantic.Field(
        default="obs",
        description="which channels go first: obs, l1, l2, bn-scale, activation, apoz, thinet, lasso, geometric-median",
    )
    allocation: Literal["measured", "modelled", "uniform"] = pydantic.Field(
        default="measured",
        description="how the cut is shared out: by its measured effect on the outputs, by the readers' modelled error "
        "or the same share of every group",
    )
    repair: bool = pydantic.Field(default=True, description="refit every layer behind a cut by least squares")
    sweeps: int = pydantic.Field(default=2, ge=1, le=10, description="how often the repair goes through the layers")
    multiple: int | None = pydantic.Field(
        default=None, ge=1, description="widths are multiples of this; by default what the target's kernels take"
    )
    max_sites: int | None = pydantic.Field(default=None, ge=1, description="cut at most so many groups")

    def budget(self) -> tuple[Budget, float]:
        """Return what is bounded, and the share of it that may remain."""
        name, number = self.given_budget() or ("ratio", _DEFAULT_RATIO)
        return ("channels", 1 - number) if name == "ratio" else (cast("Budget", name), number)

    def describe_budget(self) -> str:
        """Return the budget as it is written in a pipeline."""
        name, share = self.budget()
        return f"ratio={1 - share:.4g}" if name == "channels" else f"{name}={share:g}"


class PruneChannels(Pass):
    """Remove channels where the outputs lose least, and refit the rest on calibration data."""

    name: ClassVar[str] = "prune-channels"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = PruneChannelsOptions
    after: ClassVar[tuple[str, ...]] = ("cleanup",)
    options: PruneChannelsOptions

    @property
    def needs_data(self) -> bool:
        """But where weights alone choose the channels, all groups lose the same share, and nothing is refitted."""
        options = self.options
        return options.repair or options.allocation != "uniform" or options.score not in WEIGHT_SCORES

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Remove channels of `model` in place.

        Raises:
            UsageError: no calibration data or too little, a selector that matches nothing, or latency without a cost
                estimate.
            BudgetError: the budget cannot be reached.
        """
        data = context.require_data(self.name) if self.needs_data else None
        budget, share = self.options.budget()
        if budget == "latency" and context.constraints.costs is None:
            raise UsageError(
                f"{self.name}: latency={share:g} needs a target that estimates time, and "
                f"{context.constraints.target!r} does not. Give macs instead"
            )
        selection = Selection.from_options(self.options, model, self.name)
        groups, declined = divide(couple(model), model, selection, self.options.score)
        record = Rewrites(declined=declined)
        if share >= 1:
            return record
        if not groups:
            if budget != "channels" or self.options.include or self.options.exclude:
                raise BudgetError(_nothing_can_go(self.options, declined))
            return record
        try:
            _Run(model, groups, selection, data, context, self.options).cut(budget, share, record)
        except NotMeasurableError as error:
            raise UsageError(f"{self.name}: {error}. allocation=modelled does without") from error
        return record


def _nothing_can_go(options: PruneChannelsOptions, declined: Sequence[Declined]) -> str:
    """Say that a budget is out of reach as no group may be cut, with the reasons that stand for most."""
    names: dict[str, list[str]] = {}
    for each in declined:
        names.setdefault(each.reason, []).append(each.name)
    most = sorted(names.items(), key=lambda item: -len(item[1]))[:_SHOWN]
    reasons = "; ".join(f"{_listed(found)}: {reason}" for reason, found in most)
    because = f" ({reasons})" if reasons else ": it has none that an operator with weights reads"
    return (
        f"{PruneChannels.name}: {options.describe_budget()} cannot be reached: no channel of this model can go{because}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


class _Run:
    """One run: `groups` of `model`, as it came in, are cut stage by stage."""

    def __init__(
        self,
        model: onnx_ir.Model,
        groups: list[ChannelGroup],
        selection: Selection,
        data: DataSource | None,
        context: Context,
        options: PruneChannelsOptions,
    ) -> None:
        self.model, self.groups, self.selection, self.data = model, groups, selection, data
        self.context, self.options = context, options
        self.progress = context.progress or Progress()
        self.cuts = ChannelCuts(model)
        self.costs = self._costs(groups)
        self.split: Split | None = None
        if data is not None:
            held_out = options.error_samples if options.allocation == "measured" else 0
            self.split = split_samples(data, model, PruneChannels.name, samples=options.samples, held_out=held_out)
        self.removed: dict[str, int] = {}  # slots gone, by group
        self.losses: dict[str, float] = {}
        self.touched: set[str] = set()  # nodes that lost channels
        self.chosen: set[str] | None = None  # the groups that max_sites leaves, once they are known

    def cut(self, budget: Budget, share: float, record: Rewrites) -> None:
        """Cut until `share` of the budget's cost remains, and record every group."""
        if not self.costs.total(budget):
            raise UsageError(
                f"{PruneChannels.name}: {self.options.describe_budget()}: no layer of the model has {budget} to count, "
                "as their shapes are unknown. Give params or ratio, or fix the shapes of the model's inputs"
            )
        whole = range(len(self.groups))
        full = [self.costs.amount_of(index, [0] * len(self.groups)) for index in whole]
        narrowest = [counts[-1] for counts in self._removals(self.groups, self.costs)]
        self._require_reach(budget, share, narrowest)
        chooser = self._chooser()
        total = self.costs.total(budget)
        floor = total * (share + _ROUNDING)
        # The cost of channels is their number: it does not change with what has gone.
        stages = max(1, round(np.log(share) / np.log(_STAGE))) if budget != "channels" else 1
        for stage in range(1, stages):
            self._stage(budget, total * share ** (stage / stages), floor, chooser)
        # What the costs do not follow can leave the last stage short of the budget.
        while self._stage(budget, floor, floor, chooser):
            pass
        if (left := self._left(budget)) > floor:
            raise BudgetError(
                f"{PruneChannels.name}: {self.options.describe_budget()} was not reached: {left / total:.4g} of the "
                f"{budget} remain, as widths come in steps. Ask for more{self._advice()}"
            )
        self._repair()
        for index, group in enumerate(self.groups):
            count = self.removed.get(group.name, 0)
            if not count:
                record.declined.append(Declined(group.name, "channels", self._why_kept(group, narrowest[index])))
                continue
            after = self.costs.amount_of(index, [count if other == index else 0 for other in whole])
            readers = ", ".join(op.node.name or "" for op in reading_consumers(group)[:_SHOWN])
            error = {"divergence": self.losses[group.name]} if self.options.allocation == "measured" else {}
            detail = f"{count} of {group.size} removed, read by {readers}"
            record.sites.append(Site(group.name, "channels", full[index], after, error, detail))

    def _left(self, budget: Budget) -> float:
        """Return what the model costs now."""
        if budget == "channels":
            return self.costs.total(budget) - sum(self.removed.values())
        return self._costs(self._present_groups()).total(budget)

    def _present_groups(self) -> list[ChannelGroup]:
        return divide(couple(self.model), self.model, self.selection, self.options.score)[0]

    def _why_kept(self, group: ChannelGroup, narrowest: int) -> str:
        if not narrowest:
            return self._no_narrower(group)
        if self.chosen is not None and group.name not in self.chosen:
            return f"kept: max_sites={self.options.max_sites}, and others save more"
        if self.options.allocation == "uniform":
            return "kept: its first narrower width is more than the equal share"
        return "kept: the budget is met at less loss elsewhere"

    def _no_narrower(self, group: ChannelGroup) -> str:
        """Say why a group has no width but the one it has."""
        index, multiple = self.groups.index(group), self._multiple(group)
        if not any(self.costs.keeps_multiple(index, count, multiple) for count in range(1, group.size)):
            return f"no narrower width is a multiple of {multiple}"
        return f"no narrower width is faster on {self.context.constraints.target}"

    def _require_reach(self, budget: Budget, share: float, narrowest: list[int]) -> None:
        """Raise a BudgetError where every group at its narrowest still costs more than asked; before any work."""
        limit = self.options.max_sites
        if limit is not None:
            most = most_saving(narrowest, self.costs, budget, limit)
            narrowest = [count if index in most else 0 for index, count in enumerate(narrowest)]
        left = self.costs.cost_of(budget, narrowest) / self.costs.total(budget)
        if left <= share + _ROUNDING:
            return
        if not any(narrowest):
            raise BudgetError(
                f"{PruneChannels.name}: {self.options.describe_budget()} cannot be reached: for "
                f"{self.groups[0].name!r}, say, {self._no_narrower(self.groups[0])}{self._advice()}"
            )
        cut = "every group" if limit is None else f"{limit} of the groups"
        width = "narrowest width" + ("" if self.context.constraints.costs is None else " that is faster")
        # Rounded such that what is told can be asked for.
        if budget == "channels":
            reach = (
                f"at most {math.floor((1 - left + _ROUNDING) * _SHOWN_STEPS) / _SHOWN_STEPS:g} of the channels can go"
            )
        else:
            reach = f"{math.ceil((left - _ROUNDING) * _SHOWN_STEPS) / _SHOWN_STEPS:g} remain"
        raise BudgetError(
            f"{PruneChannels.name}: {self.options.describe_budget()} cannot be reached: with {cut} at the {width}, "
            f"{reach}. Ask for that or {'less' if budget == 'channels' else 'more'}{self._advice()}"
        )

    def _advice(self) -> str:
        """Return what else would allow more, of the options that bound it."""
        more = []
        if any(self._multiple(group) > 1 for group in self.groups):
            more.append("multiple=1 allows more widths")
        if self.options.max_sites is not None:
            more.append("a larger max_sites allows more groups")
        return "".join(f"; {each}" for each in more)

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

    def _removals(self, groups: Sequence[ChannelGroup], costs: ChannelCosts) -> list[tuple[int, ...]]:
        """Return what each group may lose; nothing more where `max_sites` chose others."""
        return [
            worthwhile_removals(group, index, costs, self._multiple(group))
            if self.chosen is None or group.name in self.chosen
            else (0,)
            for index, group in enumerate(groups)
        ]

    def _chooser(self) -> _Chooser | None:
        """Return what chooses on data; None where weights alone do."""
        if self.split is None or self.data is None:
            return None
        if self.options.allocation == "uniform" and self.options.score in WEIGHT_SCORES:
            return None
        return _Chooser(
            self.model, self.cuts.original, self.data, self.split, self.options, self.context.seed, self.progress
        )

    def _stage(self, budget: Budget, remaining: float, floor: float, chooser: _Chooser | None) -> bool:
        """Cut down to `remaining`, or as near as this stage's widths come; return whether anything went.

        floor: what will remain in the end, by which `max_sites` chooses its groups.
        """
        if self._left(budget) <= remaining:
            return False
        self._repair_for_next()
        groups = self._present_groups()
        costs = self._costs(groups)
        removals = self._removals(groups, costs)
        if chooser is None:
            options = [
                Option(group, order_by_weights(self.options.score, group), counts, (0.0,) * len(counts))
                for group, counts in zip(groups, removals, strict=True)
            ]
        else:
            options = chooser.options(groups, removals)
        share_out = in_equal_shares if self.options.allocation == "uniform" else at_least_loss
        if self.options.max_sites is not None and self.chosen is None:
            levels = share_out(options, costs, budget, floor)
            self.chosen = self._choose(options, levels, costs, budget, floor, self.options.max_sites)
            options = [option if option.group.name in self.chosen else option.untouched() for option in options]
        levels = share_out(options, costs, budget, remaining)
        cut = [(option, level) for option, level in zip(options, levels, strict=True) if level]
        for option, level in cut:
            name = option.group.name
            self.removed[name] = self.removed.get(name, 0) + option.removals[level]
            self.losses[name] = self.losses.get(name, 0.0) + option.losses[level]
        self.touched |= self.cuts.remove(
            {option.group: option.order[: option.removals[level]] for option, level in cut}
        )
        return bool(cut)

    @staticmethod
    def _choose(
        options: Sequence[Option], levels: Levels, costs: ChannelCosts, budget: Budget, floor: float, count: int
    ) -> set[str]:
        """Return the groups that are cut at all: those that save most at `levels`, if they can meet the budget."""
        at_level = [option.removals[level] for option, level in zip(options, levels, strict=True)]
        narrowest = [option.removals[-1] for option in options]
        chosen = most_saving(at_level, costs, budget, count)
        alone = [gone if index in chosen else 0 for index, gone in enumerate(narrowest)]
        if costs.cost_of(budget, alone) > floor:
            chosen = most_saving(narrowest, costs, budget, count)
        return {options[index].group.name for index in chosen}

    def _repair_for_next(self) -> None:
        """Repair what earlier stages cut, on the samples that fit: the others measure the next stage."""
        if self.touched and self.split is not None:
            self._repair(self.split.fitted)

    def _repair(self, samples: int | None = None) -> None:
        """Refit what lies behind all cuts; on all samples by default."""
        if not self.options.repair or not self.touched:
            return
        assert self.data is not None, "a repair needs data"
        self.cuts.repair(
            self.touched, self.data,
            but=self.selection, sweeps=self.options.sweeps, samples=samples or self.options.samples,
            seed=self.context.seed, progress=self.progress,
        )  # fmt: skip


class _Chooser:
    """Finds on data what can be done with each group of a model and what that loses."""

    def __init__(
        self,
        model: onnx_ir.Model,
        original: onnx_ir.Model,
        data: DataSource,
        split: Split,
        options: PruneChannelsOptions,
        seed: int,
        progress: Progress,
    ) -> None:
        self.model, self.data, self._options, self.seed, self.progress = model, data, options, seed, progress
        self.fitted = split.fitted
        self.divergence: Divergence | None = None
        if options.allocation == "measured":
            self.divergence = Divergence(original, data, samples=split.held_out, skip=split.fitted)

    def options(self, groups: Sequence[ChannelGroup], removals: Sequence[tuple[int, ...]]) -> list[Option]:
        """Return what can be done with every group. Moments are held for a part of the groups at a time."""
        options: list[Option] = []
        present = 0.0 if self.divergence is None else self.divergence.of(self.model)
        with self.progress.task("measuring channels", len(groups)) as task:
            for part in parts_within(groups, _gram_bytes_of, _GRAM_BYTES):
                layers = {op.node.name: op for group in part for op in reading_consumers(group)}
                moments = collect(self.model, list(layers.values()), self.data, samples=self.fitted, seed=self.seed)
                zeros = self._zeros(part)
                for group in part:
                    options.append(self._option(group, removals[len(options)], moments, zeros, present))
                    task.advance()
        return options

    def _option(
        self,
        group: ChannelGroup,
        removals: tuple[int, ...],
        moments: Mapping[str, Moments],
        zeros: Mapping[str, npt.NDArray[np.float64]],
        present: float,
    ) -> Option:
        path = path_by(self._options.score, group, moments, zeros)
        if self.divergence is None:
            losses = tuple(path.error_of(count) for count in removals)
        else:
            losses = measure_losses(
                self.model, group, path, removals, moments, self.divergence, present, refit=self._options.repair
            )
        return Option(group, path.order, removals, losses)

    def _zeros(self, groups: Sequence[ChannelGroup]) -> dict[str, npt.NDArray[np.float64]]:
        """Return the share of zeros in each channel of the groups' readers' inputs, where the score asks for it."""
        if self._options.score != "apoz":
            return {}
        axes = {op.data.name or "": op.data_axis for group in groups for op in reading_consumers(group)}
        sums: dict[str, npt.NDArray[np.float64]] = {}
        counts: dict[str, int] = {}
        for batch in stream(self.model, self.data, list(axes), samples=self.fitted):
            for name, array in batch.items():
                channels = np.moveaxis(array, axes[name], 0).reshape(array.shape[axes[name]], -1)
                sums[name] = sums.get(name, 0) + (channels == 0).sum(axis=1, dtype=np.float64)
                counts[name] = counts.get(name, 0) + channels.shape[1]
        return {name: total / counts[name] for name, total in sums.items()}


def _gram_bytes_of(group: ChannelGroup) -> int:
    return sum(gram_bytes(op) for op in reading_consumers(group))
