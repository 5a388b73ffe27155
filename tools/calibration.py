"""Measure this machine into a target profile: the work behind `onnxpress calibrate`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxpress.ir.errors import UsageError
from onnxpress.passes.instrument import Progress
from onnxpress.targets.base import Target, load_target, target_names
from onnxpress.targets.calibration.fit import Fit, fit
from onnxpress.targets.calibration.machine import Machine, this_machine
from onnxpress.targets.calibration.measure import measure
from onnxpress.targets.profile_files import BUILT_IN, HOST, host_kind, parse_profile
from onnxpress.targets.runtimes.base import Runtime
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.schema import Roofline
from onnxpress.tools.profiling import pinned

__all__ = ["Calibration", "calibrate"]

_NOT_A_NAME = re.compile(r"[^a-z0-9._-]+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SUFFIX = ".toml"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A profile that was measured. text: of its file, which was read back. base: what it extends. seconds: of all."""

    name: str
    base: str
    text: str
    machine: Machine
    fitted: Fit
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as plain values."""
        errors = self.fitted.errors_by_kind()
        return {
            "name": self.name,
            "base": self.base,
            "machine": dataclasses.asdict(self.machine),
            "roofline": self.fitted.roofline.model_dump(mode="json"),
            "samples": len(self.fitted.samples),
            "median_error": self.fitted.median_error,
            "errors": {kind: {"samples": count, "median": median} for kind, (count, median) in errors.items()},
            "seconds": self.seconds,
        }


def calibrate(
    output: str | os.PathLike[str], *, target: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Calibration:
    """Time small models on this machine and fit a cost estimate to them: about a minute on two cores of a server.

    output: where the profile will lie, which is not written here. The target is named for it; what a name cannot hold
    becomes `-`. target: whose rules and runtime it takes over, by default those of this machine.

    Raises:
        UsageError: `output` is no name for a target; no such target, one that no file can extend, or that has no
            estimate to start from; a runtime that is not here or tells no times by node.
    """
    started, path = time.perf_counter(), Path(output)
    name = _name(path)
    base, extends = _base(target, path)
    if base.profile.roofline is None:
        raise UsageError(f"calibrate: {base.name} has no roofline to start from. Give --target x86-vnni or mobile-cpu")
    runtime = load_runtime(base.profile.runtime)
    version, machine = runtime.version(), this_machine()
    if runtime.node_clock is None:
        raise _without_times(runtime)

    def text_of(roofline: Roofline, remarks: list[str]) -> str:
        """Return the profile's text, which is known to load."""
        head = [f"extends = {_toml(extends)}", f"name = {_toml(name)}"]
        text = "\n".join([*remarks, "", *head, *_lines(base, machine, version, roofline)]) + "\n"
        parse_profile(text, path)
        return text

    text_of(base.profile.roofline, [])  # what is wrong with all but the numbers is known before they are measured
    with pinned(1):
        measurement = measure(_with_cache(base, machine), runtime, progress or Progress())
    if not measurement.samples:
        raise _without_times(runtime)
    fitted = fit(_with_cache(base, machine).profile, measurement)
    text = text_of(
        fitted.roofline,
        [
            f"# Measured by `onnxpress calibrate`: {len(fitted.samples)} layers and operators, timed by node.",
            f"# The fit misses half of them by less than {100 * fitted.median_error:.0f} %. Its numbers hold together:",
            "# one of them alone means little.",
        ],
    )
    return Calibration(name, extends, text, machine, fitted, time.perf_counter() - started)


def _without_times(runtime: Runtime) -> UsageError:
    return UsageError(f"calibrate: {runtime.title} tells no times by node, which an estimate is fitted to")


def _name(path: Path) -> str:
    """Return the name of the target that the file `path` is to hold."""
    shown = f"calibrate: {os.fspath(path)!r}"
    if path.suffix != _SUFFIX:
        other = path.with_name(path.name + _SUFFIX)
        raise UsageError(f"{shown}: targets are read from files that end in {_SUFFIX}. Name it {os.fspath(other)!r}")
    name = _NOT_A_NAME.sub("-", path.stem.lower()).lstrip("._-").rstrip(".-") or "calibrated"
    if name in target_names():
        raise UsageError(f"{shown}: there is a target {name!r} already. Give the file another name")
    return name


def _base(target: str | os.PathLike[str] | None, path: Path) -> tuple[Target, str]:
    """Return what the profile is to extend, and how the file `path` names it."""
    text = HOST if target is None else os.fspath(target)
    if text == HOST:
        text = host_kind()  # which stays what it is where the file is taken to another machine
    base = load_target(text)
    if text in BUILT_IN:
        return base, text
    source = Path(text)
    if source.suffix != _SUFFIX:
        raise UsageError(
            f"calibrate: --target {text}: comes with a plugin, and a profile extends built-in targets and files. "
            "Give one of those, such as x86-vnni"
        )
    try:
        return base, Path(os.path.relpath(source.resolve(), path.parent.resolve())).as_posix()
    except ValueError:  # on another drive
        return base, source.resolve().as_posix()


def _with_cache(base: Target, machine: Machine) -> Target:
    assert base.profile.roofline is not None
    if machine.cache_kib is None:
        return base
    roofline = base.profile.roofline.model_copy(update={"cache_kib": machine.cache_kib})
    return Target(base.profile.model_copy(update={"roofline": roofline}))


def _lines(base: Target, machine: Machine, version: str, roofline: Roofline) -> Iterator[str]:
    runtime = base.profile.runtime
    yield f"summary = {_toml(f'{runtime} on {machine.title}: as {base.name}, speeds measured')}"
    yield ""
    yield "[machine]"
    yield f"architecture = {_toml(machine.architecture)}"
    yield f"processor = {_toml(machine.title)}"
    yield f"runtime_version = {_toml(f'{runtime} {version}')}"
    yield ""
    yield from _roofline(roofline, f"measured: onnxpress calibrate, {runtime} {version}, one thread")


def _roofline(roofline: Roofline, source: str) -> Iterator[str]:
    fields = roofline.model_dump(mode="json", exclude_none=True) | {"source": source}
    tables = {key: fields.pop(key) for key in ("elements",)}
    yield "[roofline]"
    for key, value in fields.items():
        yield f"{key} = {_toml(value)}"
    for key, table in tables.items():
        yield ""
        yield f"[roofline.{key}]"
        for entry, value in table.items():
            yield f"{_key(entry)} = {_toml(value)}"


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    """Return a value as TOML spells it: as JSON does, but for tables, and the delete character in strings."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
