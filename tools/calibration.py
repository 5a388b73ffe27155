"""Measure this machine into a target profile: the work behind `onnxpress calibrate`."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from onnxpress.ir.errors import UsageError
from onnxpress.passes.instrument import Progress
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.calibration.fit import Fit, fit
from onnxpress.targets.calibration.machine import Machine, this_machine
from onnxpress.targets.calibration.measure import measure
from onnxpress.targets.profile_files import host_kind
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.schema import Roofline
from onnxpress.tools.profiling import pinned

__all__ = ["Calibration", "calibrate"]

_NOT_A_NAME = re.compile(r"[^a-z0-9._-]+")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A profile that was measured. text: its TOML file. base: the target that it extends. seconds: of all."""

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


def calibrate(name: str, *, target: str | None = None, progress: Progress | None = None) -> Calibration:
    """Time small models on this machine and fit a cost estimate to them, in a minute or two.

    name: of the new target; what a name cannot hold becomes `-`. target: whose rules and runtime it takes over, by
    default those of this machine.

    Raises:
        UsageError: no such target, one that has no estimate to start from, or a runtime that is not here or tells no
        times by node.
    """
    started = time.perf_counter()
    base = load_target(target or host_kind())
    if base.profile.roofline is None:
        raise UsageError(f"calibrate: {base.name} has no roofline to start from. Give --target x86-vnni or mobile-cpu")
    runtime = load_runtime(base.profile.runtime)
    version, machine = runtime.version(), this_machine()
    if not runtime.tells_node_times:
        raise UsageError(f"calibrate: {runtime.title} tells no times by node, which an estimate is fitted to")
    with pinned(1):
        measurement = measure(_with_cache(base, machine), runtime, progress or Progress())
    fitted = fit(_with_cache(base, machine).profile, measurement)
    named = _NOT_A_NAME.sub("-", name.lower()).strip("-.") or "calibrated"
    text = "\n".join(_lines(named, base, machine, version, fitted)) + "\n"
    return Calibration(named, base.name, text, machine, fitted, time.perf_counter() - started)


def _with_cache(base: Target, machine: Machine) -> Target:
    assert base.profile.roofline is not None
    if machine.cache_kib is None:
        return base
    roofline = base.profile.roofline.model_copy(update={"cache_kib": machine.cache_kib})
    return Target(base.profile.model_copy(update={"roofline": roofline}))


def _lines(name: str, base: Target, machine: Machine, version: str, fitted: Fit) -> Iterator[str]:
    runtime = base.profile.runtime
    yield f"# Measured by `onnxpress calibrate`: {len(fitted.samples)} layers and operators, timed by node."
    yield f"# The fit misses half of them by less than {100 * fitted.median_error:.0f} %."
    yield ""
    yield f"extends = {json.dumps(base.name)}"
    yield f"name = {json.dumps(name)}"
    yield f"summary = {json.dumps(f'{runtime} on {machine.processor}: as {base.name}, speeds measured')}"
    yield ""
    yield "[machine]"
    yield f"architecture = {json.dumps(machine.architecture)}"
    yield f"processor = {json.dumps(machine.processor)}"
    yield f"runtime_version = {json.dumps(f'{runtime} {version}')}"
    yield ""
    yield from _roofline(fitted.roofline, f"measured: onnxpress calibrate, {runtime} {version}, one thread")


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
            yield f"{entry} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)  # strings, numbers, truth values and lists of them are spelled alike
