"""Targets: a device profile together with what can be done with it.

A target is found by name among the built-in profiles and the plugins (entry-point group `onnxpress.targets`), or as
the path of a TOML file. A file may begin with `extends = "host-cpu"`, or the path of another file, and then holds only
what differs: tables are merged key by key, rules by their id, everything else is replaced.

A plugin's entry point is a `Target`, or a function without arguments that returns one. A plugin that fails to load is a
warning that names its distribution, and the run goes on without it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.resources
import os
import pathlib
import tomllib
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, cast

import onnx_ir
import pydantic

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.base import Context
from onnxpress.passes.constraints import Constraints, QuantizationScheme
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.legality import CHECKS, Illegal, check_model
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.schema import Profile

__all__ = ["Target", "load_target", "target_names"]

_GROUP = "onnxpress.targets"
_BUILT_IN = ("host-cpu", "mobile-cpu")

# Loaded when a target lowers, so that listing targets stays quick.
_LOWERINGS = {"qdq": "onnxpress.targets.lowering.qdq:lower_qdq"}


class _Lowering(Protocol):
    def __call__(self, model: onnx_ir.Model, scheme: QuantizationScheme) -> LoweringReport: ...


class Target:
    """What a model is made for: the profile, and the constraints, checks and lowering that follow from it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile

    def __repr__(self) -> str:
        return f"Target({self.name!r})"

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.profile.name

    @property
    def summary(self) -> str:
        """One line for lists."""
        return self.profile.summary

    @property
    def default_pipeline(self) -> str:
        """The pipeline text that runs where a user gives none."""
        return self.profile.pipeline

    @functools.cached_property
    def constraints(self) -> Constraints:
        """What the target asks of passes."""
        profile = self.profile
        costs = None
        if profile.roofline is not None:
            costs = RooflineCost(profile.roofline, profile.quantization)
        return Constraints(
            target=profile.name,
            channel_multiple=profile.channel_multiple,
            max_opset=profile.opset.max,
            encodings=tuple(encoding.name for encoding in profile.encodings),
            quantization=profile.quantization.scheme(),
            costs=costs,
        )

    def check(self, model: onnx_ir.Model) -> list[Illegal]:
        """Return every place where `model` breaks a rule of the target, by rule and source."""
        return check_model(model, self.profile)

    def lower(self, model: onnx_ir.Model, context: Context | None = None) -> LoweringReport:
        """Turn notes and encodings of `model` into operators of the target's runtime, in place."""
        report = LoweringReport()
        for step in self.profile.lowering:
            report.add(_lowering(step)(model, self.profile.quantization.scheme()))
        return report


def target_names() -> list[str]:
    """Return the names of all targets, built-in ones first."""
    return [*_BUILT_IN, *sorted(set(_plugins()) - set(_BUILT_IN))]


def load_target(name: str | os.PathLike[str]) -> Target:
    """Return the target of that name, or of that TOML file.

    Raises:
        UsageError: no such target (with near names), or a profile that cannot be used: the message names the file,
        the key and what was expected there.
    """
    text = os.fspath(name)
    if text in _BUILT_IN:
        return Target(_profile(_built_in(text), f"target {text!r}"))
    path = pathlib.Path(text)
    if path.suffix == ".toml":
        return Target(_profile(_read(path), str(path)))
    plugins = _plugins()
    if text in plugins:
        return _load_plugin(plugins[text])
    known = target_names()
    raise UsageError(
        f"unknown target {text!r}.{near_names(text, known)} "
        f"There are: {', '.join(known)}; or give the path of a profile, such as phone.toml"
    )


# Profiles.


def _built_in(name: str) -> dict[str, Any]:
    source = importlib.resources.files("onnxpress.targets.profiles") / f"{name}.toml"
    return tomllib.loads(source.read_text(encoding="utf-8"))


def _read(path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> dict[str, Any]:
    """Read a profile and what it extends. above: the files that led here, to find circles."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"target profile {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"target profile {path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"target profile {path}: not TOML: {error}") from None
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise UsageError(f"target profile {path}: extends = {base!r}: must be a target's name or a path")
    return _merge(_read_base(base, path, (*above, path.resolve())), raw)


def _read_base(base: str, path: pathlib.Path, above: tuple[pathlib.Path, ...]) -> dict[str, Any]:
    if base in _BUILT_IN:
        return _built_in(base)
    if not base.endswith(".toml"):
        raise UsageError(
            f"target profile {path}: extends = {base!r}: no such target.{near_names(base, _BUILT_IN)} "
            f"There are: {', '.join(_BUILT_IN)}; or give the path of a .toml file"
        )
    other = path.parent / base
    if other.resolve() in above:
        raise UsageError(f"target profile {path}: extends = {base!r}: leads back to itself")
    return _read(other, above)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it: tables key by key, lists of rules by id, the rest replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        elif key == "rules" and isinstance(old, list) and isinstance(value, list):
            by_id = {rule.get("id"): rule for rule in [*old, *value] if isinstance(rule, dict)}
            merged[key] = list(by_id.values())
        else:
            merged[key] = value
    return merged


def _profile(raw: Mapping[str, Any], origin: str) -> Profile:
    """Check a profile.

    Raises:
        UsageError: naming `origin`, the key, and what was expected there.
    """
    try:
        profile = Profile.model_validate(raw)
    except pydantic.ValidationError as error:
        raise UsageError(f"{origin}: {_explain(raw, error)}") from None
    for rule in profile.rules:
        if rule.check not in CHECKS:
            near = near_names(rule.check, CHECKS)
            raise UsageError(f"{origin}: rule {rule.id!r}: there is no check {rule.check!r}.{near}")
    for step in profile.lowering:
        if step not in _LOWERINGS:
            raise UsageError(f"{origin}: lowering: there is no step {step!r}. There are: {', '.join(_LOWERINGS)}")
    return profile


def _explain(raw: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location) or "the profile"
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"unknown key {key}.{near_names(location[-1], known)} Known here: {', '.join(known)}"
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[0].lower() + problem[1:]
    shown = repr(first["input"])
    return f"{key}: {problem}" if len(shown) > 60 else f"{key} = {shown}: {problem}"


def _known_keys(location: list[str]) -> list[str]:
    """Return the keys of the table at `location`, found by walking the schema's classes."""
    table: Any = Profile
    for part in location:
        if isinstance(table, type) and issubclass(table, pydantic.BaseModel):
            table = _table_of(table.model_fields[part].annotation)
    return sorted(table.model_fields)


def _table_of(annotation: Any) -> Any:
    """Return the class of a table inside an annotation such as `tuple[Rule, ...]`, `dict[str, Rates]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    inner = (_table_of(argument) for argument in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)


# Plugins.


def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=_GROUP)}


def _load_plugin(entry: importlib.metadata.EntryPoint) -> Target:
    distribution = entry.dist.name if entry.dist is not None else "unknown"
    try:
        loaded = entry.load()
        target = loaded if isinstance(loaded, Target) else loaded()
        if not isinstance(target, Target):
            raise TypeError(f"gives a {type(target).__name__}, not a Target")
    except Exception as error:  # whatever a plugin does wrong must not look like a fault of ours
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"target {entry.name!r} of the distribution {distribution!r} does not load: {cause}"
        ) from error
    return target


def _lowering(step: str) -> _Lowering:
    module, _, function = _LOWERINGS[step].partition(":")
    return cast(_Lowering, getattr(importlib.import_module(module), function))
