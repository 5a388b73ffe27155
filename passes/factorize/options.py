"""The options that the passes of this family share."""

from __future__ import annotations

from typing import Literal, TypeAlias

import pydantic

from onnxpress.passes.base import SiteOptions

__all__ = ["Budget", "SubstitutionOptions"]

Budget: TypeAlias = Literal["energy", "ratio", "macs", "params", "latency"]
_BUDGETS: tuple[Budget, ...] = ("energy", "ratio", "macs", "params", "latency")


class SubstitutionOptions(SiteOptions):
    """Options of the passes of this family."""

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
    macs: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's multiply-accumulates that may remain"
    )
    params: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's parameters that may remain"
    )
    latency: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the predicted time that may remain"
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
    samples: int = pydantic.Field(default=512, ge=2, description="calibration samples to use, at most")
    error_samples: int = pydantic.Field(
        default=128, ge=2, description="samples, at most a third of all, that measure a form's effect and fit nothing"
    )

    @pydantic.model_validator(mode="after")
    def _one_budget(self) -> SubstitutionOptions:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: give one of {', '.join(_BUDGETS)}")
        return self

    def budget(self) -> tuple[Budget, float] | None:
        """Return what is bounded, with its number, or None where nothing was given."""
        for name in _BUDGETS:
            number = getattr(self, name)
            if number is not None:
                return name, float(number)
        return None
