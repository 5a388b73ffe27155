"""Targets of other distributions: entry points of the group `onnxpress.targets`.

A plugin's entry point is a target, or a function without arguments that returns one, under the target's name. Plugins
are imported when a name is not built in, and for listings. One that fails is a warning, never a crash.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from onnxpress.ir.errors import UsageError

__all__ = ["Plugins", "load_plugins"]

_GROUP = "onnxpress.targets"


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Target = TypeVar("_Target", bound=_Named)


@dataclasses.dataclass(frozen=True)
class Plugins(Generic[_Target]):
    """Targets of plugins by name, and why the others cannot be used."""

    targets: dict[str, _Target] = dataclasses.field(default_factory=dict)
    broken: dict[str, str] = dataclasses.field(default_factory=dict)


def load_plugins(kind: type[_Target], taken: Collection[str]) -> Plugins[_Target]:
    """Import every plugin but those of `taken` names. What fails is warned about and kept as the reason.

    kind: the class that a plugin's target has.
    """
    found: Plugins[_Target] = Plugins()
    for entry in importlib.metadata.entry_points(group=_GROUP):
        if entry.name in taken:
            continue  # the name is taken, and its meaning must not depend on what is installed
        try:
            found.targets[entry.name] = _target(entry, kind)
        except (Exception, SystemExit) as error:  # whatever foreign code does, other targets stay usable
            cause = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            distribution = entry.dist.name if entry.dist is not None else "unknown"
            reason = (
                f"plugin {distribution!r} (entry point {entry.name!r} = {entry.value!r}) "
                f"cannot be used: {' '.join(cause.split())}"
            )
            found.broken[entry.name] = reason
            warnings.warn(f"{reason}. Its target is missing; update or uninstall it", RuntimeWarning, stacklevel=5)
    return found


def _target(entry: importlib.metadata.EntryPoint, kind: type[_Target]) -> _Target:
    loaded = entry.load()
    target = loaded if isinstance(loaded, kind) else loaded()
    if not isinstance(target, kind):
        raise TypeError(f"it gives a {type(target).__name__}, not a {kind.__name__}")
    if target.name != entry.name:
        raise ValueError(f"its target is named {target.name!r}")
    return target
