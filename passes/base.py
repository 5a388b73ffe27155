"""The contract of a pass: typed options, a fidelity, and a complete record of what it did and declined."""

from __future__ import annotations

import abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir
import pydantic

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.constraints import Constraints

if TYPE_CHECKING:
    from onnxpress.ir.data import DataSource
    from onnxpress.passes.instrument import Progress

__all__ = ["Amount", "Context", "Declined", "Fidelity", "Options", "Pass", "Rewrites", "Site", "SiteOptions"]

Fidelity = Literal["bits", "rounding", "lossy"]


class Options(pydantic.BaseModel):
    """Options of a pass: the pipeline syntax, the help text and the recipe schema at once."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_words(cls, given: Any) -> Any:
        """Take `exclude=conv1` for a list of one, and `none` for None, where the option's type says so."""
        if not isinstance(given, Mapping):
            return given
        fields = cls.model_fields
        return {
            key: _read_word(fields[key].annotation, value) if key in fields else value for key, value in given.items()
        }


class SiteOptions(Options):
    """Options of every pass that works node by node."""

    include: tuple[str, ...] = pydantic.Field(
        default=(), description="only these nodes: exact names, globs, or type:Conv"
    )
    exclude: tuple[str, ...] = pydantic.Field(
        default=(), description="never these nodes: exact names, globs, or type:Conv"
    )


@dataclasses.dataclass(frozen=True)
class Amount:
    """What a site or a model weighs: parameters, multiply-accumulates at batch 1, stored weight bytes."""

    params: int = 0
    macs: int = 0
    size_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """One place that a pass rewrote.

    name: the node (or value) that the user knows it by. kind: operator or subject, such as "Conv".
    error: measured local error by metric name with its unit, such as {"sqnr_db": 41.2}; empty if exact.
    detail: one line for people, such as "folded into /conv1/Conv".
    """

    name: str
    kind: str
    before: Amount = Amount()
    after: Amount = Amount()
    error: Mapping[str, float] = dataclasses.field(default_factory=dict)
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Declined:
    """One place where the pattern stood but a stated legality or cost clause failed."""

    name: str
    kind: str
    reason: str


@dataclasses.dataclass
class Rewrites:
    """Everything a pass did to a model, and everything it declined with its reason."""

    sites: list[Site] = dataclasses.field(default_factory=list)
    declined: list[Declined] = dataclasses.field(default_factory=list)

    @property
    def modified(self) -> bool:
        """Whether the model changed. A second run of a converged pass reports False."""
        return bool(self.sites)


@dataclasses.dataclass
class Context:
    """What a pass may know besides the model: nothing global, and no target.

    cache: results of analyses, keyed by (analysis name, model digest, ...); shared by the passes of one run.
    """

    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    data: DataSource | None = None
    seed: int = 0
    progress: Progress | None = None
    cache: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def rng(self) -> np.random.Generator:
        """Return a fresh generator from the run's seed: equal draws for every pass that asks."""
        return np.random.default_rng(self.seed)

    def require_data(self, pass_name: str) -> DataSource:
        """Return the calibration data.

        Raises:
            UsageError: there is none; random data is never a stand-in.
        """
        if self.data is None:
            raise UsageError(
                f"{pass_name}: needs calibration data and none was given. "
                "Give a few hundred real samples: --data samples.npz (data=... in Python)"
            )
        return self.data


class Pass(abc.ABC):
    """A rewrite of a model. Subclasses set the class attributes and implement `run`.

    name: the fixed name in pipelines. fidelity: "bits" (equal outputs), "rounding" (equal up to the
    tolerance its module derives) or "lossy". after: names of passes that, when in the same pipeline, must
    come before this one. tolerance: (relative, absolute), what `--verify-each` allows a "rounding" pass: the
    largest error of an output may be `relative * max |output| + absolute` where all is float32, and what it makes of
    that for other types (`passes.verify_each`).
    """

    name: ClassVar[str]
    fidelity: ClassVar[Fidelity]
    options_type: ClassVar[type[Options]] = Options
    after: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[tuple[float, float]] = (1e-4, 1e-6)

    def __init__(self, /, **options: Any) -> None:
        """Check and keep the options.

        Raises:
            UsageError: an unknown option (with near names) or a value of the wrong kind.
        """
        try:
            self.options = self.options_type(**options)
        except pydantic.ValidationError as error:
            raise UsageError(_explain_options(self.name, self.options_type, options, error)) from None

    @property
    def needs_data(self) -> bool:
        """Whether `run` asks for calibration data; known from the options, before any work."""
        return False

    @abc.abstractmethod
    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Rewrite `model` in place and return the record. The manager hands in a copy."""


def _read_word(annotation: Any, value: Any) -> Any:
    """Return what a bare word of a pipeline means for an option of this type."""
    if not isinstance(value, str | int | float):
        return value
    kinds = _alternatives(annotation)
    if value == "none" and type(None) in kinds:
        return None
    takes_list = all(typing.get_origin(kind) in _LISTS for kind in kinds if kind is not type(None))
    return (value,) if takes_list else value


_LISTS = (tuple, list, set, frozenset)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _explain_options(
    name: str, options: type[Options], given: Mapping[str, Any], error: pydantic.ValidationError
) -> str:
    """Say in one line what is wrong with the first option that pydantic refuses."""
    first = error.errors()[0]
    problem = _problem(first["msg"])
    if not first["loc"]:  # a rule over several options
        return f"{name}: {problem}"
    option = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = options.model_fields
        taken = ", ".join(known) or "none"
        return f"{name}: unknown option {option!r}.{near_names(option, known)} It takes: {taken}"
    if first["type"] == "missing":
        return f"{name}: option {option!r} has no default. Give it: {name}{{{option}=...}}"
    if len(_alternatives(options.model_fields[option].annotation)) > 1:  # one error for each alternative
        of_option = [_problem(other["msg"]) for other in error.errors() if other["loc"][:1] == (option,)]
        return f"{name}: option {option}={given[option]!r}: {'; or '.join(dict.fromkeys(of_option))}"
    return f"{name}: option {'.'.join(map(str, first['loc']))}={first['input']!r}: {problem}"


def _problem(message: str) -> str:
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:]
