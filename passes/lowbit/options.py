"""Options that the passes to low-bit weights share."""

from __future__ import annotations

from typing import Literal, Self

import pydantic

from onnxpress.passes.base import SiteOptions

__all__ = ["CoarseOptions", "FittedOptions", "LowBitOptions", "WidthOptions"]


class LowBitOptions(SiteOptions):
    """How weights are fitted, and which layers are too sensitive for few bits. Passes say which methods they know."""

    method: str = pydantic.Field(default="gptq", description="how weights are fitted")
    sensitive: Literal["int8", "same", "float"] = pydantic.Field(
        default="int8",
        description="first and last layers and depthwise convolutions: at 8 bits, as the others, or left as they are",
    )
    samples: int = pydantic.Field(default=512, ge=2, description="calibration samples to use, at most")
    sweeps: int = pydantic.Field(
        default=1, ge=1, le=4, description="times that all layers are fitted, each behind what the others became"
    )


class FittedOptions(LowBitOptions):
    """Options of passes that know two methods."""

    method: Literal["gptq", "rtn"] = pydantic.Field(
        default="gptq",
        description="gptq: second order, from data, layer after layer; rtn: to the nearest level, without data",
    )


class CoarseOptions(FittedOptions):
    """Options of passes to so few levels that a second sweep pays."""

    sweeps: int = pydantic.Field(
        default=2, ge=1, le=4, description="times that all layers are fitted, each behind what the others became"
    )


class WidthOptions(LowBitOptions):
    """Options of passes whose encoding comes in several widths: one for all layers, or one for each."""

    bits: int | None = pydantic.Field(default=None, description="width of a weight")
    bytes: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=1,
        description="share of the bytes of the model's weights that may remain; each layer gets a width of its own",
    )
    error_samples: int = pydantic.Field(
        default=64, ge=2, description="bytes: samples, at most a third of all, that measure a width's effect"
    )

    @pydantic.model_validator(mode="after")
    def _has_one_width(self) -> Self:
        if self.bits is not None and self.bytes is not None:
            raise ValueError(f"bits={self.bits} and bytes={self.bytes:g} are given: give one of them")
        return self
