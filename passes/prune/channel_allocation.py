"""How a cut is shared out over channel groups: at least loss, or the same share of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from onnxpress.passes.allocation import Levels, allocate
from onnxpress.passes.prune.channel_costs import Budget, ChannelCosts
from onnxpress.passes.prune.sensitivity import Option

__all__ = ["at_least_loss", "in_equal_shares"]


def at_least_loss(
    options: Sequence[Option], costs: ChannelCosts, budget: Budget, remaining: float, max_sites: int | None
) -> Levels:
    """Return the level of each option that brings the cost down to `remaining` at least summed loss.

    max_sites: at most so many are cut, those that save most of what they would without this bound.
    """

    def share_out(losses: Sequence[Sequence[float]]) -> Levels:
        levels, _ = allocate(
            losses,
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

    losses = [option.losses for option in options]
    levels = share_out(losses)
    chosen = _most_saving(options, levels, costs, budget, max_sites)
    if len(chosen) == len(options):
        return levels
    return share_out([curve if site in chosen else curve[:1] for site, curve in enumerate(losses)])


def in_equal_shares(
    options: Sequence[Option], costs: ChannelCosts, budget: Budget, remaining: float, max_sites: int | None
) -> Levels:
    """Return the level of each option where all lose the same share, the least that meets `remaining`.

    Widths come in steps: each option takes the widest cut within the share. max_sites: at most so many are cut, those
    that save most.
    """
    narrowest = [len(option.removals) - 1 for option in options]
    chosen = _most_saving(options, narrowest, costs, budget, max_sites)
    shares = [[count / option.group.size for count in option.removals] for option in options]

    def within(share: float) -> Levels:
        return [bisect_right(steps, share) - 1 if site in chosen else 0 for site, steps in enumerate(shares)]

    steps = sorted({share for site in chosen for share in shares[site]})
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if costs.cost_of(budget, _removals(options, within(steps[middle]))) <= remaining:
            high = middle
        else:
            low = middle + 1
    return within(steps[low])


def _most_saving(
    options: Sequence[Option], levels: Levels, costs: ChannelCosts, budget: Budget, max_sites: int | None
) -> set[int]:
    """Return the options that `max_sites` leaves, of those with a level above 0; all where it does not bind."""
    cut = [site for site, level in enumerate(levels) if level]
    if max_sites is None or len(cut) <= max_sites:
        return set(range(len(options)))
    none = [0] * len(options)
    saved = {site: costs.saved_by(budget, none, site, options[site].removals[levels[site]]) for site in cut}
    return set(sorted(cut, key=lambda site: -saved[site])[:max_sites])


def _removals(options: Sequence[Option], levels: Levels) -> list[int]:
    return [option.removals[level] for option, level in zip(options, levels, strict=True)]
