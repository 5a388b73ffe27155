"""The options of passes that cut a model down to a budget."""

from __future__ import annotations

from typing import ClassVar, Self

import pydantic

from onnxpress.passes.base import SiteOptions

__all__ = ["BudgetOptions"]


class BudgetOptions(SiteOptions):
    """One budget, and the samples to meet it with at least loss. Subclasses may have budgets of their own.

    budgets: the names of all the options that are one.
    """

    budgets: ClassVar[tuple[str, ...]] = ("macs", "params", "latency")

    macs: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's multiply-accumulates that may remain"
    )
    params: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's parameters that may remain"
    )
    latency: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the predicted time that may remain"
    )
    samples: int = pydantic.Field(default=512, ge=2, description="calibration samples to use, at most")
    error_samples: int = pydantic.Field(
        default=128, ge=2, description="samples, at most a third of all, that measure a change's effect and fit nothing"
    )

    @pydantic.model_validator(mode="after")
    def _has_one_budget(self) -> Self:
        given = [name for name in self.budgets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: give one of {', '.join(self.budgets)}")
        return self

    def given_budget(self) -> tuple[str, float] | None:
        """Return name and number of the budget; None where there is none."""
        given = [(name, float(getattr(self, name))) for name in self.budgets if getattr(self, name) is not None]
        return given[0] if given else None
