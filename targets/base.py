"""Targets: a device profile together with what can be done with it.

A target is found by name among the built-in profiles and the plugins (`plugins`), or as the path of a TOML file
(`profile_files`).
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import platform
from typing import Protocol, cast

import onnx_ir

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.constraints import Constraints, QuantizationScheme
from onnxpress.targets.calibration.machine import this_machine
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.legality import Illegal, check_model
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.plugins import Plugins, load_plugins
from onnxpress.targets.profile_files import BUILT_IN, HOST, LOWERINGS, built_in_profile, host_kind, read_profile
from onnxpress.targets.schema import Profile, Storage

__all__ = ["Target", "load_target", "target_names"]

_X86 = ("x86_64", "amd64")


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
    def is_here(self) -> bool:
        """Whether this machine is what the profile describes, so that times taken here are the target's.

        A machine whose processor the system does not name is none that was described.
        """
        described = self.profile.machine
        if described is not None:
            here = this_machine()
            return (here.architecture, here.processor) == (described.architecture, described.processor)
        if self.profile.runtime == "openvino":
            return platform.machine().lower() in _X86
        return self.name in (HOST, host_kind())

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
    return [*BUILT_IN, *sorted(_plugins().targets)]


def load_target(name: str | os.PathLike[str]) -> Target:
    """Return the target of that name, or of that TOML file.

    Raises:
        UsageError: no such target (with near names), or a profile that cannot be used: the message names the
        file, the key and what was expected there.
    """
    text = os.fspath(name)
    if text in BUILT_IN:
        return Target(built_in_profile(text))
    path = pathlib.Path(text)
    if path.suffix == ".toml":
        return Target(read_profile(path))
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


@functools.cache
def _plugins() -> Plugins[Target]:
    return load_plugins(Target, taken=BUILT_IN)


def _lowering(step: str) -> _Lowering:
    module, _, function = LOWERINGS[step].partition(":")
    return cast(_Lowering, getattr(importlib.import_module(module), function))
