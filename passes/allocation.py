"""Share a budget out: how far to take each site, at least summed loss.

Every site offers levels, from 0 (untouched, loss 0) upwards; taking a site to a level costs loss and saves something
that may depend on the levels of other sites too (the cost of a convolution is a product of two widths). Losses are
taken to add up.

Greedy by slope: from where all stand, the move (any site, any higher level) with the least added loss for what it
saves, until the budget is met; what the last moves saved beyond need is then given back, most loss first. For one site
with a convex curve that is Lagrangian allocation; jumps over levels take care of curves that are not convex.
Source: Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Levels", "allocate"]

_FREE = 1e-12  # what counts as no saving

Levels = list[int]


def allocate(
    losses: Sequence[Sequence[float]],
    cost: Callable[[Levels], float],
    saved: Callable[[Levels, int, int], float],
    budget: float,
) -> tuple[Levels, bool]:
    """Return the level of each site, and whether the cost is within the budget then.

    losses: for each site, by level; the first is 0 and they do not fall. cost: of all sites at given levels.
    saved: (levels, site, level) -> what is saved by taking that one site up to `level`. budget: what may remain.
    Where the budget cannot be met, the levels that cost least.
    """
    levels = [0] * len(losses)
    remaining = cost(levels)
    while remaining > budget:
        move = _best_move(losses, levels, saved, remaining - budget)
        if move is None:
            return levels, False
        levels[move[0]] = move[1]
        remaining = cost(levels)
    _give_back(losses, levels, cost, budget)
    return levels, True


def _best_move(
    losses: Sequence[Sequence[float]], levels: Levels, saved: Callable[[Levels, int, int], float], needed: float
) -> tuple[int, int] | None:
    """Return (site, level) of the least added loss for each unit saved; what is saved beyond need counts nothing."""
    best: tuple[float, int, int] | None = None
    for site, curve in enumerate(losses):
        for level in range(levels[site] + 1, len(curve)):
            gain = min(saved(levels, site, level), needed)
            if gain <= _FREE:
                continue
            slope = (curve[level] - curve[levels[site]]) / gain
            if best is None or slope < best[0]:
                best = slope, site, level
    return None if best is None else best[1:]


def _give_back(
    losses: Sequence[Sequence[float]], levels: Levels, cost: Callable[[Levels], float], budget: float
) -> None:
    """Lower levels one site at a time while the budget stays met, the largest fall in loss first."""
    while True:
        best: tuple[float, int, int] | None = None
        for site, level in enumerate(levels):
            for lower in range(level):
                fall = losses[site][level] - losses[site][lower]
                if best is not None and fall <= best[0]:
                    continue
                if cost([*levels[:site], lower, *levels[site + 1 :]]) <= budget:
                    best = fall, site, lower
        if best is None or best[0] <= 0:
            return
        levels[best[1]] = best[2]
