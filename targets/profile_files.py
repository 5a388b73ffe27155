"""Profiles in files: read, extended, checked to the end, and explained where something is wrong.

A file may begin with `extends = "x86-vnni"`, or the path of another file, and then holds only what differs: tables are
merged key by key, rules by their id, everything else is replaced; rules that do not hold there are named in
`without_rules`. `host-cpu` is this machine: it stands for the built-in target whose kernels the installed runtime has
here.
"""

from __future__ import annotations

import importlib.resources
import pathlib
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import pydantic

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.targets.input_checks import INPUT_CHECKS
from onnxpress.targets.legality import CHECKS, MODEL_CHECKS
from onnxpress.targets.profile_keys import FILE_KEYS, table_of
from onnxpress.targets.schema import COMMON_KEYS, Profile, Rule
from onnxpress.targets.toml_lines import line_of

__all__ = ["BUILT_IN", "HOST", "LOWERINGS", "built_in_profile", "host_kind", "parse_profile", "read_profile"]

BUILT_IN = (
    "host-cpu", "mobile-cpu", "mobile-cpu-s8", "mobile-cpu-v8", "mobile-cpu-a55", "mobile-cpu-x1", "mobile-cpu-litert",
    "x86-vnni", "x86-avx2", "tensorrt", "gpu", "openvino",
)  # fmt: skip
# Loaded when a target lowers, so that listing targets stays quick.
LOWERINGS = {
    "qdq": "onnxpress.targets.lowering.qdq:lower_qdq",
    "float16-graph": "onnxpress.targets.lowering.float16_graph:lower_float16_graph",
}

_LONGEST_CHAIN = 16  # files that extend one another
_LONGEST_SHOWN = 60  # characters of a wrong value that a message repeats
HOST = "host-cpu"
_ARM = ("aarch64", "arm64")


def built_in_profile(name: str) -> Profile:
    """Return the profile of a built-in target."""
    return _profile(_built_in(name), f"target {name!r}")


def read_profile(path: pathlib.Path) -> Profile:
    """Return the profile of a file. What it says is checked to the end, its pipeline too, since nobody else has.

    Raises:
        UsageError: naming the file, the line where one sets it, the key, and what was expected there.
    """
    return parse_profile(_text(path), path)


def parse_profile(text: str, path: pathlib.Path) -> Profile:
    """Return the profile that `path` is, or will be, with `text` as its content. Errors: see `read_profile`.

    What it extends is looked for beside `path`.
    """
    raw, origin = _complete(_parse(text, path), path), f"target profile {path}"
    profile = _profile(raw, origin, text)
    if profile.name in BUILT_IN:
        where = _line(text, ("name",))
        raise UsageError(f"{origin}{where}: name = {profile.name!r}: is that of a built-in target; give it another")
    _validate_pipeline(profile, origin, text)
    return profile


def _built_in(name: str) -> dict[str, Any]:
    if name == HOST:
        kind = host_kind()
        return {**_built_in(kind), "name": name, "summary": f"this machine, which is one of {kind}"}
    source = importlib.resources.files("onnxpress.targets.profiles") / f"{name}.toml"
    raw = tomllib.loads(source.read_text(encoding="utf-8"))
    base = raw.pop("extends", None)
    return raw if base is None else _extend(_built_in(base), raw, f"target {name!r}")


def host_kind() -> str:
    """Return the built-in target that describes the machine at hand."""
    if platform.machine().lower() in _ARM:
        return "mobile-cpu"
    from onnxpress.targets.runtimes.onnxruntime_host import saturates_products

    return "x86-avx2" if saturates_products() else "x86-vnni"


def _complete(raw: dict[str, Any], path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> dict[str, Any]:
    """Return a profile laid over what it extends. above: the files that led here, to find circles."""
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


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"target profile {path}: there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a null character in the path
        raise UsageError(f"target profile {path}: cannot be read: {error}") from None


def _parse(text: str, path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"target profile {path}: not TOML that can be read: it is nested too deeply") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"target profile {path}: not TOML: {error}") from None
    except ValueError:  # Python reads 4300 digits
        raise UsageError(f"target profile {path}: not TOML that can be read: a number has too many digits") from None


def _read_base(base: str, path: pathlib.Path, above: tuple[pathlib.Path, ...]) -> dict[str, Any]:
    if base in BUILT_IN:
        return _built_in(base)
    if not base.endswith(".toml"):
        raise UsageError(
            f"target profile {path}: extends = {base!r}: no such target.{near_names(base, BUILT_IN)} "
            f"There are: {', '.join(BUILT_IN)}; or give the path of a .toml file"
        )
    if "\0" in base:
        raise UsageError(f"target profile {path}: extends = {base!r}: a path holds no null character")
    if len(above) > _LONGEST_CHAIN:
        raise UsageError(f"target profile {path}: extends = {base!r}: more than {_LONGEST_CHAIN} files in a row")
    other = path.parent / base
    if other.resolve() in above:
        raise UsageError(f"target profile {path}: extends = {base!r}: leads back to itself")
    return _complete(_parse(_text(other), other), other, above)


def _extend(base: Mapping[str, Any], raw: dict[str, Any], origin: str) -> dict[str, Any]:
    """Return the profile `base` changed by `raw`, which may leave out rules of `base` by id."""
    without = raw.pop("without_rules", [])
    if not isinstance(without, list) or not all(isinstance(name, str) for name in without):
        raise UsageError(f"{origin}: without_rules = {without!r}: must be a list of ids")
    _check_own_rules(raw.get("rules"), origin)
    rules = base.get("rules", [])
    inherited = [str(rule.get("id")) for rule in rules] if _are_tables(rules) else []
    for name in without:
        if name not in inherited:
            raise UsageError(f"{origin}: without_rules: there is no rule {name!r}.{near_names(name, inherited)}")
    if without:
        base = {**base, "rules": [rule for rule in rules if rule.get("id") not in without]}
    return _merge(base, raw)


def _check_own_rules(rules: Any, origin: str) -> None:
    """Raise a UsageError for what merging would hide: a rule without an id, and two of one.

    Once merged, they are counted with those of the base, and the last of two is all that is left.
    """
    ids = [rule.get("id") for rule in rules] if _are_tables(rules) else []
    for index, name in enumerate(ids):
        if name is None:
            raise UsageError(f"{origin}: key rules.{index}.id is missing")
        if not isinstance(name, str):
            raise UsageError(f"{origin}: rules.{index}.id = {name!r}: must be a valid string")
        if name in ids[:index]:
            raise UsageError(f"{origin}: rules: id {name!r} appears twice")


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it: tables key by key, rules by id, the rest replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge(old, value)
        elif key == "rules" and _are_tables(old) and _are_tables(value):
            merged[key] = _merge_rules([*old, *value])
        else:
            merged[key] = value
    return merged


def _merge_rules(rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rules of which a later one has taken the place of an earlier one with its id."""
    merged: dict[str | int, dict[str, Any]] = {}
    for index, rule in enumerate(rules):
        name = rule.get("id")
        merged[name if isinstance(name, str) else index] = rule  # what is no id is told when the whole is checked
    return list(merged.values())


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
        if step not in LOWERINGS:
            known, where = ", ".join(LOWERINGS), _line(text, ("lowering",))
            raise UsageError(f"{origin}{where}: lowering: there is no step {step!r}. There are: {known}")
    return profile


def _validate_rule(rule: Rule, origin: str, text: str) -> None:
    """Raise a UsageError where a rule's check is unknown, lacks a key, or is given one that it would ignore."""
    known = {
        **{name: check.needs for name, check in CHECKS.items()},
        **dict.fromkeys((*INPUT_CHECKS, *MODEL_CHECKS), ()),
    }
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


def _entries(raw: Any, location: Iterable[int | str]) -> Iterator[tuple[int | str, Mapping[str, Any]]]:
    """Yield each part of a key's place, with the table that it is in a list of tables, and with none elsewhere."""
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            raw = None
        yield part, raw if isinstance(part, int) and isinstance(raw, dict) else {}


def _locate(raw: Any, location: Iterable[int | str]) -> list[int | str]:
    """Return a key's place with rules by their id: their numbers differ where a file extends another."""
    return [_told(entry, ("id",), part) for part, entry in _entries(raw, location)]


def _spell(raw: Any, location: Iterable[int | str]) -> str:
    """Return a key with its tables. Entries of a list of tables go by their id or name, not by their place."""
    return ".".join(str(_told(entry, ("id", "name"), part)) for part, entry in _entries(raw, location))


def _told(entry: Mapping[str, Any], keys: Iterable[str], part: int | str) -> int | str:
    """Return the first text that `entry` holds under one of `keys`; `part`, its place, where there is none."""
    return next((entry[key] for key in keys if isinstance(entry.get(key), str)), part)


def _explain(raw: Mapping[str, Any], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = _spell(raw, first["loc"])
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


def _known_keys(location: Sequence[int | str]) -> list[str]:
    """Return the keys of the table at `location`, found by walking the schema's classes."""
    table = Profile
    for part in location:
        if part in table.model_fields:  # else an index, or the name of an entry, inside the same field
            table = table_of(table.model_fields[str(part)].annotation)
    return sorted([*table.model_fields, *(() if location else FILE_KEYS)])
