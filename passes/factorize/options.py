"""The options that the passes of this family share."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias, cast

import pydantic

from onnxpress.passes.budget import BudgetOptions

__all__ = ["Budget", "SubstitutionOptions"]

Budget: TypeAlias = Literal["energy", "ratio", "macs", "params", "latency"]


class SubstitutionOptions(BudgetOptions):
    """Options of the passes of this family."""

    budgets: ClassVar[tuple[str, ...]] = ("energy", "ratio", *BudgetOptions.budgets)

    energy: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=1,
        description="share of each operator's output that is kept, at least, by the cheapest form; 0.95 where no "
        "budget is given",
    )
    ratio: float | None = pydantic.Field(
        default=None, ge=0, lt=1, description="share of the MACs of the operators that can be split that is removed"
    )
    allocation: Literal["measured", "modelled"] = pydantic.Field(
        default="measured", description="how the cut is shared out: by its measured effect on the outputs, or modelled"
    )
    repair: bool = pydantic.Field(default=True, description="refit what lies behind a change by least squares")
    sweeps: int = pydantic.Field(default=2, ge=1, le=10, description="how often the fit goes through the operators")
    multiple: int | None = pydantic.Field(
        default=None,
        ge=1,
        description="ranks are multiples of this; by default what the target's kernels take, or less where operators "
        "are narrower",
    )
    max_sites: int | None = pydantic.Field(default=None, ge=1, description="change at most so many operators")

    def budget(self) -> tuple[Budget, float] | None:
        """Return what is bounded, with its number, or None where nothing was given."""
        given = self.given_budget()
        return None if given is None else (cast("Budget", given[0]), given[1])
