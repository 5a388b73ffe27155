"""Targets: a device profile together with what can be done with it.

A target is found by name among the built-in profiles and the plugins (entry-point group `onnxpress.targets`),
or as the path of a TOML file. A file may begin with `extends = "x86-vnni"`, or the path of another file, and
then holds only what differs: tables are merged key by key, rules by their id, everything else is replaced;
rules that do not hold there are named in `without_rules`.

`host-cpu` is this machine: it stands for the built-in target whose kernels the installed runtime has here.

A plugin's entry point is a `Target`, or a function without arguments that returns one, under the target's
name. Plugins are imported when a name is not built in, and for listings. One that fails is a warning, never a
crash.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.resources
import os
import pathlib
import platform
import tomllib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, cast

import onnx_ir
import pydantic

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.constraints import Constraints, QuantizationScheme
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.input_checks import INPUT_CHECKS
from onnxpress.targets.legality import CHECKS, Illegal, check_model
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.profile_keys import FILE_KEYS, table_of
from onnxpress.targets.schema import COMMON_KEYS, Profile, Rule, Storage
from onnxpress.targets.toml_lines import line_of

__all__ = ["Target", "load_target", "target_names"]

_GROUP = "onnxpress.targets"
_LONGEST_SHOWN = 60  # characters of a wrong value that a message repeats
_BUILT_IN = ("host-cpu", "mobile-cpu", "mobile-cpu-litert", "x86-vnni", "x86-avx2", "tensorrt", "gpu", "openvino")

_HOST = "host-cpu"
_ARM = ("aarch64", "arm64")

# Loaded when a target lowers, so that listing targets stays quick.
_LOWERINGS = {
    "qdq": "onnxpress.targets.lowering.qdq:lower_qdq",
    "float16-graph": "onnxpress.targets.lowering.float16_graph:lower_float16_graph",
}


class _Lowering(Protocol):
    def __call__(
        self, model: onnx_ir.Model, scheme: QuantizationScheme, storage: Storage, *, max_opset: int
    ) -> LoweringReport: ...


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
            encodings=profile.encodings,
            quantization=profile.quantization.scheme(),
            costs=costs,
            float16_activations=profile.storage.float16_graph,
        )

    def check(self, model: onnx_ir.Model) -> list[Illegal]:
        """Return every place where `model` breaks a rule of the target, by rule and source."""
        return check_model(model, self.profile)

    def lower(self, model: onnx_ir.Model) -> LoweringReport:
        """Turn notes and encodings of `model` into operators of the target's runtime, in place."""
        report = LoweringReport()
        for step in self.profile.lowering:
            scheme, storage = self.profile.quantization.scheme(), self.profile.storage
            report.add(_lowering(step)(model, scheme, storage, max_opset=self.profile.opset.max))
        return report


def target_names() -> list[str]:
    """Return the names of all targets that can be loaded, built-in ones first."""
    return [*_BUILT_IN, *sorted(_plugins().targets)]


def load_target(name: str | os.PathLike[str]) -> Target:
    """Return the target of that name, or of that TOML file.

    Raises:
        UsageError: no such target (with near names), or a profile that cannot be used: the message names the
        file, the key and what was expected there.
    """
    text = os.fspath(name)
    if text in _BUILT_IN:
        return Target(_profile(_built_in(text), f"target {text!r}"))
    path = pathlib.Path(text)
    if path.suffix == ".toml":
        return Target(_own_profile(path))
    plugins = _plugins()
    if text in plugins.targets:
        return plugins.targets[text]
    if text in plugins.broken:
        raise UsageError(f"target {text!r}: {plugins.broken[text]}")
    known = target_names()
    raise UsageError(
        f"unknown target {text!r}.{near_names(text, known)} "
        f"There are: {', '.join(known)}; or give the path of a profile, such as phone.toml"
    )


# Profiles.


def _built_in(name: str) -> dict[str, Any]:
    if name == _HOST:
        kind = _host_kind()
        return {**_built_in(kind), "name": name, "summary": f"this machine, which is one of {kind}"}
    source = importlib.resources.files("onnxpress.targets.profiles") / f"{name}.toml"
    raw = tomllib.loads(source.read_text(encoding="utf-8"))
    base = raw.pop("extends", None)
    return raw if base is None else _extend(_built_in(base), raw, f"target {name!r}")


def _host_kind() -> str:
    """Return the built-in target that describes the machine at hand."""
    if platform.machine().lower() in _ARM:
        return "mobile-cpu"
    from onnxpress.targets.runtimes.onnxruntime_host import saturates_products

    return "x86-avx2" if saturates_products() else "x86-vnni"


def _own_profile(path: pathlib.Path) -> Profile:
    """Return the profile of a file. What it says is checked to the end, since nobody else has."""
    raw, origin = _read(path), f"target profile {path}"
    text = path.read_text(encoding="utf-8")
    profile = _profile(raw, origin, text)
    if profile.name in _BUILT_IN:
        where = _line(text, ("name",))
        raise UsageError(f"{origin}{where}: name = {profile.name!r}: is that of a built-in target; give it another")
    _validate_pipeline(profile, origin, text)
    return profile


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
    if base is None and "without_rules" not in raw:
        return raw
    if not isinstance(base, str):
        shown = "is missing" if base is None else f"= {base!r}"
        raise UsageError(f"target profile {path}: extends {shown}: must be a target's name or a path")
    extended = _read_base(base, path, (*above, path.resolve()))
    if "name" not in raw:
        raise UsageError(
            f"target profile {path}: key name is missing: it cannot keep that of {base!r}, which it extends"
        )
    return _extend(extended, raw, f"target profile {path}")


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


def _extend(base: Mapping[str, Any], raw: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the profile `base` changed by `raw`, which may leave out rules of `base` by id."""
    without = raw.pop("without_rules", [])
    if not isinstance(without, list):
        raise UsageError(f"{origin}: without_rules = {without!r}: must be a list")
    rules = base.get("rules", [])
    inherited = [str(rule.get("id")) for rule in rules] if _are_tables(rules) else []
    for name in without:
        if name not in inherited:
            raise UsageError(f"{origin}: without_rules: there is no rule {name!r}.{near_names(name, inherited)}")
    if without:
        base = {**base, "rules": [rule for rule in rules if rule.get("id") not in without]}
    return _merge(base, raw)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it: tables key by key, rules by id, the rest replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        elif key == "rules" and _are_tables(old) and _are_tables(value):
            merged[key] = list({rule.get("id"): rule for rule in [*old, *value]}.values())
        else:
            merged[key] = value
    return merged


def _are_tables(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _profile(raw: Mapping[str, Any], origin: str, text: str = "") -> Profile:
    """Check a profile. text: of the file that it was read from, to tell lines.

    Raises:
        UsageError: naming `origin`, the line, the key, and what was expected there.
    """
    try:
        profile = Profile.model_validate(raw)
    except pydantic.ValidationError as error:
        where = _line(text, _locate(raw, error.errors()[0]["loc"]))
        raise UsageError(f"{origin}{where}: {_explain(raw, error)}") from None
    for rule in profile.rules:
        _validate_rule(rule, origin, text)
    for step in profile.lowering:
        if step not in _LOWERINGS:
            known, where = ", ".join(_LOWERINGS), _line(text, ("lowering",))
            raise UsageError(f"{origin}{where}: lowering: there is no step {step!r}. There are: {known}")
    return profile


def _validate_rule(rule: Rule, origin: str, text: str) -> None:
    """Raise a UsageError where a rule's check is unknown, lacks a key, or is given one that it would ignore."""
    known = {**{name: check.needs for name, check in CHECKS.items()}, **dict.fromkeys(INPUT_CHECKS, ())}
    here = f"{origin}{_line(text, ('rules', rule.id, 'check'))}: rule {rule.id!r}"
    if rule.check not in known:
        raise UsageError(f"{here}: there is no check {rule.check!r}.{near_names(rule.check, known)}")
    needs = known[rule.check]
    for key in needs:
        if not _is_given(rule, key):
            raise UsageError(f"{here}: check {rule.check!r} needs the key {key}")
    for key in sorted(rule.model_fields_set - COMMON_KEYS - {need.partition(".")[0] for need in needs}):
        where = _line(text, ("rules", rule.id, key))
        reads = f"reads {', '.join(needs)}" if needs else "reads no key of its own"
        raise UsageError(f"{origin}{where}: rule {rule.id!r}: check {rule.check!r} does not read {key}: it {reads}")


def _is_given(rule: Rule, key: str) -> bool:
    """Whether the rule holds anything under a key, or under an entry of it: "inputs.1"."""
    name, _, entry = key.partition(".")
    value = getattr(rule, name)
    return bool(value.get(int(entry)) if entry else value is not None if name == "limit" else value)


def _validate_pipeline(profile: Profile, origin: str, text: str) -> None:
    """Raise a UsageError where the default pipeline has a pass or an option that there is not."""
    from onnxpress.passes.pipeline import build

    try:
        build(profile.pipeline)
    except UsageError as error:
        problem = str(error).removeprefix("pipeline: ")
        raise UsageError(f"{origin}{_line(text, ('pipeline',))}: pipeline: {problem}") from None


def _line(text: str, location: Sequence[int | str]) -> str:
    """Return ", line 12" where `text` sets that key, nothing where it does not: it may come from another file."""
    line = line_of(text, location)
    return "" if line is None else f", line {line}"


def _locate(raw: Any, location: Iterable[int | str]) -> list[int | str]:
    """Return a key's place with rules by their id: their numbers differ where a file extends another."""
    found: list[int | str] = []
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            raw = None
        named = raw if isinstance(part, int) and isinstance(raw, dict) else {}
        found.append(named.get("id", part))
    return found


def _explain(raw: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(_spell(raw, first["loc"]))
    if first["type"] == "missing":
        return f"key {key} is missing"
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        return f"unknown key {key}.{near_names(str(first['loc'][-1]), known)} Known here: {', '.join(known)}"
    problem = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    problem = problem.replace("Input should be", "must be")
    shown = repr(first["input"])
    where = key if len(shown) > _LONGEST_SHOWN else f"{key} = {shown}"
    return f"{where}: {problem}" if key else problem


def _spell(raw: Any, location: Iterable[int | str]) -> Iterator[str]:
    """Yield the parts of a key. Entries of a list of tables go by their id or name, not by their place."""
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            raw = None
        named = raw if isinstance(part, int) and isinstance(raw, dict) else {}
        yield str(named.get("id", named.get("name", part)))


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Return the keys of the table at `location`, found by walking the schema's classes."""
    table = Profile
    for part in location:
        if part in table.model_fields:  # else an index, or the name of an entry, inside the same field
            table = table_of(table.model_fields[str(part)].annotation)
    return sorted([*table.model_fields, *(() if location else FILE_KEYS)])


# Plugins.


@dataclasses.dataclass(frozen=True)
class _Plugins:
    """Targets of plugins by name, and why the others cannot be used."""

    targets: dict[str, Target] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)


@functools.cache
def _plugins() -> _Plugins:
    """Import every plugin, once. What fails is warned about and kept as the reason."""
    found = _Plugins()
    for entry in importlib.metadata.entry_points(group=_GROUP):
        if entry.name in _BUILT_IN:
            continue  # the name is taken, and its meaning must not depend on what is installed
        try:
            found.targets[entry.name] = _plugin_target(entry)
        except (Exception, SystemExit) as error:  # whatever foreign code does, other targets stay usable
            cause = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            distribution = entry.dist.name if entry.dist is not None else "unknown"
            reason = (
                f"plugin {distribution!r} (entry point {entry.name!r} = {entry.value!r}) "
                f"cannot be used: {' '.join(cause.split())}"
            )
            found.broken[entry.name] = reason
            warnings.warn(f"{reason}. Its target is missing; update or uninstall it", RuntimeWarning, stacklevel=4)
    return found


def _plugin_target(entry: importlib.metadata.EntryPoint) -> Target:
    loaded = entry.load()
    target = loaded if isinstance(loaded, Target) else loaded()
    if not isinstance(target, Target):
        raise TypeError(f"it gives a {type(target).__name__}, not a Target")
    if target.name != entry.name:
        raise ValueError(f"its target is named {target.name!r}")
    return target


def _lowering(step: str) -> _Lowering:
    module, _, function = _LOWERINGS[step].partition(":")
    return cast(_Lowering, getattr(importlib.import_module(module), function))
