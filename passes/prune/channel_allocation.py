"""How a cut is shared out over channel groups: at least loss, or the same share of each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from onnxpress.passes.allocation import Levels, allocate
from onnxpress.passes.prune.channel_costs import Budget, ChannelCosts
from onnxpress.passes.prune.sensitivity import Option

__all__ = ["at_least_loss", "in_equal_shares", "most_saving"]


def at_least_loss(options: Sequence[Option], costs: ChannelCosts, budget: Budget, remaining: float) -> Levels:
    """Return the level of each option that brings the cost down to `remaining` at least summed loss."""
    levels, _ = allocate(
        [option.losses for option in options],
        lambda levels: costs.cost_of(budget, _removals(options, levels)),
        lambda levels, site, level: costs.saved_by(
            budget,
            _removals(options, levels),
            site,
            options[site].removals[level] - options[site].removals[levels[site]],
        ),
        remaining,
    )
    return levels


def in_equal_shares(options: Sequence[Option], costs: ChannelCosts, budget: Budget, remaining: float) -> Levels:
    """Return the level of each option where all lose the same share, up to one width, the least that meets `remaining`.

    Widths come in steps, which are taken one by one: the least share first, and of equal ones the first in the graph.
    """
    moves = sorted(
        (count / option.group.size, site, level)
        for site, option in enumerate(options)
        for level, count in enumerate(option.removals[1:], 1)
    )

    def after(count: int) -> Levels:
        levels = [0] * len(options)
        for _, site, level in moves[:count]:
            levels[site] = level
        return levels

    def is_met(count: int) -> bool:
        return costs.cost_of(budget, _removals(options, after(count))) <= remaining

    return after(bisect_left(range(len(moves)), True, key=is_met))


def most_saving(removals: Sequence[int], costs: ChannelCosts, budget: Budget, count: int) -> list[int]:
    """Return the indices of the `count` groups that save most by losing `removals`, each alone, of those that save."""
    none = [0] * len(removals)
    saved = [costs.saved_by(budget, none, index, gone) if gone else 0.0 for index, gone in enumerate(removals)]
    return sorted((index for index, each in enumerate(saved) if each > 0), key=lambda index: -saved[index])[:count]


def _removals(options: Sequence[Option], levels: Levels) -> list[int]:
    return [option.removals[level] for option, level in zip(options, levels, strict=True)]
