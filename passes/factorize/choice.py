"""Which form each operator takes, so that a budget is met at least summed loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from onnxpress.ir.errors import BudgetError
from onnxpress.passes.allocation import Levels, allocate
from onnxpress.passes.factorize.candidates import Candidate, Price
from onnxpress.passes.factorize.options import Budget

__all__ = ["Place", "choose", "rising"]

_ROUNDING = 1e-9  # of a sum of costs
_SHOWN_STEPS = 1000  # shares are told in steps of a thousandth


@dataclasses.dataclass(frozen=True)
class Place:
    """A linear operator that may change.

    levels: what it can become, after staying as it is, ever cheaper. losses: of staying, 0, and of each level.
    """

    name: str
    dense: Price
    levels: tuple[Candidate, ...]
    losses: tuple[float, ...]

    def saved(self, level: int, measure: Budget) -> float:
        """Return what a level saves of the budget's measure; level 0 nothing."""
        return _spent(self.dense, measure) - _spent(self.levels[level - 1].price, measure) if level else 0.0

    def untouched(self) -> Place:
        """Return the place with nothing to become."""
        return dataclasses.replace(self, levels=(), losses=(0.0,))


def rising(found: Iterable[Candidate], budget: Budget) -> tuple[Candidate, ...]:
    """Return those that save ever more of the budget at ever more error."""
    levels: list[Candidate] = []
    for candidate in sorted(found, key=lambda each: (each.error, _spent(each.price, budget))):
        if not levels or _spent(candidate.price, budget) < _spent(levels[-1].price, budget):
            levels.append(candidate)
    return tuple(levels)


def choose(
    places: Sequence[Place],
    budget: Budget,
    number: float,
    total: float,
    *,
    max_sites: int | None,
    asked: str,
    whole: float,
    subject: str,
) -> Levels:
    """Return the level of each place.

    total: what the budget's measure is now, of which `number` is a share; for ratio that of the places alone, and of no
    use for energy. asked, whole, subject: what the user asked for, of how much, and of which pass, for messages.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    if budget == "energy":
        levels = [
            max((level for level, each in enumerate(place.levels, 1) if each.error <= 1 - number), default=0)
            for place in places
        ]
        most = _most_saving(places, levels, budget, max_sites)
        return [level if index in most else 0 for index, level in enumerate(levels)]
    share = 1 - number if budget == "ratio" else number
    floor = total * (share + _ROUNDING)
    deepest = [len(place.levels) for place in places]
    able = _most_saving(places, deepest, budget, max_sites)
    left = total - sum(places[index].saved(deepest[index], budget) for index in able)
    if left > floor:
        raise BudgetError(_out_of_reach(places, budget, left / (whole or total), max_sites, f"{subject}: {asked}"))
    levels = _share_out(places, budget, total, floor)
    most = _most_saving(places, levels, budget, max_sites)
    if sum(level > 0 for level in levels) <= len(most):
        return levels
    if total - sum(places[index].saved(deepest[index], budget) for index in most) > floor:
        most = able
    some = [place if index in most else place.untouched() for index, place in enumerate(places)]
    return _share_out(some, budget, total, floor)


def _spent(price: Price, budget: Budget) -> float:
    if budget == "latency":
        return price.seconds or 0.0
    return price.params if budget == "params" else price.work


def _most_saving(places: Sequence[Place], levels: Levels, budget: Budget, count: int | None) -> set[int]:
    """Return the indices of the `count` places that save most at `levels`, of those that change; None: all these."""
    changed = [index for index, level in enumerate(levels) if level]
    return set(sorted(changed, key=lambda index: -places[index].saved(levels[index], budget))[:count])


def _share_out(places: Sequence[Place], budget: Budget, total: float, floor: float) -> Levels:
    levels, _ = allocate(
        [place.losses for place in places],
        lambda levels: total - sum(place.saved(level, budget) for place, level in zip(places, levels, strict=True)),
        lambda levels, site, level: places[site].saved(level, budget) - places[site].saved(levels[site], budget),
        floor,
    )
    return levels


def _out_of_reach(places: Sequence[Place], budget: Budget, left: float, max_sites: int | None, asked: str) -> str:
    able = min(sum(bool(place.levels) for place in places), len(places) if max_sites is None else max_sites)
    text = f"{asked} cannot be reached: "
    if not able:
        return f"{text}no operator has a form that is cheaper"
    # Rounded such that what is told can be asked for.
    if budget == "ratio":
        reach = f"at most {math.floor((1 - left + _ROUNDING) * _SHOWN_STEPS) / _SHOWN_STEPS:g} of their MACs can go"
    else:
        reach = f"{math.ceil((left - _ROUNDING) * _SHOWN_STEPS) / _SHOWN_STEPS:g} remain"
    limit = "" if max_sites is None else "; a larger max_sites allows more operators"
    return f"{text}with {able} of {len(places)} operators in their cheapest form, {reach}{limit}"
