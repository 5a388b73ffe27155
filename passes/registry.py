"""The passes that there are, by name: built in, registered in Python, and from installed plugins.

Built-in passes are known by a table and imported when asked for, so that looking at the table costs nothing.
Plugins are installed distributions with entry points in the group `onnxpress.passes`; an entry point names a
Pass class, or a module that registers its passes with `register_pass`. They are imported when a name is
neither built in nor registered, and for listings. One that fails to import is a warning, never a crash.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import re
import sys
import types
import typing
import warnings
from typing import Any, TypeVar

from pydantic.fields import FieldInfo

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.base import Pass
from onnxpress.passes.pipeline import format_value

__all__ = [
    "OptionInfo",
    "PassInfo",
    "describe",
    "get_pass",
    "is_known",
    "pass_names",
    "register_pass",
    "type_text",
]

_GROUP = "onnxpress.passes"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")  # what pipeline text can spell
_PassClass = TypeVar("_PassClass", bound=type[Pass])

_BUILT_IN = {
    "cleanup": "onnxpress.passes.cleanup.cleanup:Cleanup",
    "fold-batchnorm": "onnxpress.passes.cleanup.fold_batchnorm:FoldBatchnorm",
    "prune-channels": "onnxpress.passes.prune.prune_channels:PruneChannels",
    "prune-blocks": "onnxpress.passes.prune.prune_blocks:PruneBlocks",
    "low-rank": "onnxpress.passes.factorize.low_rank:LowRank",
    "separable": "onnxpress.passes.factorize.separable:Separable",
    "prune-weights": "onnxpress.passes.prune.prune_weights:PruneWeights",
    "prune-nm": "onnxpress.passes.prune.prune_nm:PruneNm",
    "equalize": "onnxpress.passes.quantize.equalize:Equalize",
    "quantize-weights": "onnxpress.passes.lowbit.quantize_weights:QuantizeWeights",
    "ternarize": "onnxpress.passes.lowbit.ternarize:Ternarize",
    "binarize": "onnxpress.passes.lowbit.binarize:Binarize",
    "palettize": "onnxpress.passes.lowbit.palettize:Palettize",
    "power-of-two": "onnxpress.passes.lowbit.power_of_two:PowerOfTwo",
    "quantize-int8": "onnxpress.passes.quantize.quantize_int8:QuantizeInt8",
    "float16": "onnxpress.passes.quantize.float16:Float16",
    "pack": "onnxpress.passes.lowbit.pack:Pack",
}


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """One option of a pass, as its user writes it. default: pipeline text, None where one must be given."""

    name: str
    type: str
    default: str | None
    description: str


@dataclasses.dataclass(frozen=True)
class PassInfo:
    """What there is to know about a pass before running it; `dataclasses.asdict` is its JSON form.

    source: "built-in", "plugin NAME" with the distribution's name, or "registered by MODULE".
    """

    name: str
    fidelity: str
    summary: str
    source: str
    after: tuple[str, ...]
    options: tuple[OptionInfo, ...]


class _Registry:
    """Passes beyond the built-in ones, in the order in which they came."""

    def __init__(self) -> None:
        self.registered: dict[str, type[Pass]] = {}
        self.distributions: dict[str, str] = {}  # name of a plugin's pass -> name of its distribution
        self.broken: dict[str, str] = {}  # name of an entry point -> why its plugin gives no pass
        self.plugins_loaded = False

    def add(self, cls: type[Pass]) -> None:
        """Register `cls`; the same class defined again, as in a notebook, replaces its elder."""
        name = _checked_name(cls)
        other = _BUILT_IN.get(name) or (_path(self.registered[name]) if name in self.registered else None)
        if other is not None and other != _path(cls):
            raise UsageError(
                f"pass name {name!r} is taken: {_path(cls)} asks for it and {other} has it. "
                "Give the new pass another name"
            )
        if name not in _BUILT_IN:
            self.registered[name] = cls

    def load_plugins(self) -> None:
        """Import every plugin, once. What fails is warned about and kept as the reason."""
        if self.plugins_loaded:
            return
        self.plugins_loaded = True
        for entry in importlib.metadata.entry_points(group=_GROUP):
            known = set(self.registered)
            try:
                self._add_loaded(entry.load())
            except (Exception, SystemExit) as error:  # whatever foreign code does, others' passes stay usable
                self._warn(entry, error)
            distribution = _distribution(entry)
            self.distributions.update(dict.fromkeys(set(self.registered) - known, distribution))

    def _add_loaded(self, loaded: object) -> None:
        if isinstance(loaded, type) and issubclass(loaded, Pass):
            self.add(loaded)
        elif not isinstance(loaded, types.ModuleType):  # a module has registered its passes by itself
            raise TypeError(f"it names a {type(loaded).__name__}, not a Pass class or a module")

    def _warn(self, entry: importlib.metadata.EntryPoint, error: BaseException) -> None:
        cause = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        reason = (
            f"plugin {_distribution(entry)!r} (entry point {entry.name!r} = {entry.value!r}) "
            f"cannot be used: {' '.join(cause.split())}"
        )
        self.broken[entry.name] = reason
        advice = "Its passes are missing; update or uninstall it"
        warnings.warn(f"{reason}. {advice}", RuntimeWarning, stacklevel=4)


_registry = _Registry()


def register_pass(cls: _PassClass) -> _PassClass:
    """Make a Pass class known under its `name`; returns it, so it serves as a decorator.

    Raises:
        UsageError: the name is taken by another class, or pipeline text cannot spell it.
        TypeError: `cls` is no Pass class.
    """
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise TypeError(f"register_pass takes a Pass class, got {cls!r}")
    _registry.add(cls)
    return cls


def get_pass(name: str) -> type[Pass]:
    """Return the class of the pass `name`, importing it when it is built in.

    Raises:
        UsageError: there is no such pass; says near names, or why its plugin failed.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return typing.cast("type[Pass]", getattr(importlib.import_module(module), attribute))
    if name not in _registry.registered:
        _registry.load_plugins()
    if name in _registry.registered:
        return _registry.registered[name]
    if name in _registry.broken:
        raise UsageError(f"unknown pass {name!r}: {_registry.broken[name]}")
    known = pass_names()
    raise UsageError(f"unknown pass {name!r}.{near_names(name, known)} There are: {', '.join(known)}")


def pass_names() -> list[str]:
    """Return the names of all passes: the built-in ones in their usual order, then others sorted."""
    _registry.load_plugins()
    return [*_BUILT_IN, *sorted(_registry.registered)]


def is_known(name: str) -> bool:
    """Whether `name` is a pass without looking for plugins."""
    return name in _BUILT_IN or name in _registry.registered


def describe(cls: type[Pass]) -> PassInfo:
    """Return what a listing or a help page says about a pass."""
    return PassInfo(
        name=cls.name,
        fidelity=cls.fidelity,
        summary=_summary(cls),
        source=_source(cls),
        after=cls.after,
        options=tuple(_describe_option(name, field) for name, field in cls.options_type.model_fields.items()),
    )


def _describe_option(name: str, field: FieldInfo) -> OptionInfo:
    has_default = not field.is_required()
    default = field.get_default(call_default_factory=True, validated_data={}) if has_default else None
    return OptionInfo(
        name=name,
        type=", ".join([type_text(field.annotation), *map(_bound_text, field.metadata)]).rstrip(", "),
        default=_default_text(default) if has_default else None,
        description=field.description or "",
    )


def _default_text(default: object) -> str:
    try:
        return format_value(default)
    except TypeError:  # can be set in Python only
        return repr(default)


def type_text(annotation: Any) -> str:
    """Spell a type as its user writes values of it: choices by name, any sequence or set as a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is typing.Literal:
        return " | ".join(format_value(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (tuple, list, set, frozenset):
        kinds = dict.fromkeys(type_text(argument) for argument in arguments if argument is not Ellipsis)
        return f"list of {' | '.join(kinds)}"
    return _PLAIN_TYPES.get(annotation) or str(getattr(annotation, "__name__", annotation))


_PLAIN_TYPES: dict[Any, str] = {bool: "true | false", str: "text"}


def _bound_text(constraint: object) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
    parts = (f"{sign} {getattr(constraint, key)}" for key, sign in signs.items() if hasattr(constraint, key))
    return ", ".join(parts)


def _summary(cls: type[Pass]) -> str:
    """Return the first line that documents the pass: the module's where the class says nothing of its own."""
    module = sys.modules.get(cls.__module__)
    for text in (cls.__dict__.get("__doc__"), module.__doc__ if module else None):
        if text and text.strip():
            return str(text.strip().splitlines()[0])
    return ""


def _source(cls: type[Pass]) -> str:
    if cls.name in _BUILT_IN:
        return "built-in"
    if cls.name in _registry.distributions:
        return f"plugin {_registry.distributions[cls.name]}"
    return f"registered by {cls.__module__}"


def _checked_name(cls: type[Pass]) -> str:
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{_path(cls)}: the pass name {name!r} cannot stand in pipeline text. "
            "Use letters, digits, '-', '_' and '.', with a letter first"
        )
    if getattr(cls, "fidelity", None) not in ("bits", "rounding", "lossy"):
        raise UsageError(f"{_path(cls)}: the pass {name!r} lacks a fidelity. Set it to 'bits', 'rounding' or 'lossy'")
    return name


def _path(cls: type[Pass]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _distribution(entry: importlib.metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module
