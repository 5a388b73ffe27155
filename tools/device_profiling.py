"""Where a model's time goes on another machine: `onnxpress profile --device`.

The method is that of `profiling`: the same rounds in the same bursts, in onnxruntime, whose times are summed up alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.errors import UsageError
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.devices.base import DeviceRun, Machine, ModelRun
from onnxpress.targets.devices.device import open_device
from onnxpress.targets.prediction import Prediction, predict
from onnxpress.targets.profile_files import HOST, host_kind
from onnxpress.targets.runtimes.base import Feeds
from onnxpress.targets.runtimes.fixed_shapes import fix_shapes
from onnxpress.tools import profiling
from onnxpress.tools.profiling import Effort, Profile, Race, Times, find_steps, gaps, model_names, why_not_predicted

if TYPE_CHECKING:
    import onnx

__all__ = ["TIMEOUT_SECONDS", "profile_on_device"]

TIMEOUT_SECONDS = 600.0
_RUNTIME = "onnxruntime-cpu"
_X86, _ARM = ("x86_64", "amd64", "i686"), ("aarch64", "arm64", "armv8l", "armv7l")
_ARCHITECTURES = {
    "x86-vnni": _X86, "x86-avx2": _X86, "mobile-cpu": _ARM, "mobile-cpu-s8": _ARM, "mobile-cpu-v8": _ARM,
    "mobile-cpu-a55": _ARM, "mobile-cpu-x1": _ARM,
}  # fmt: skip


def profile_on_device(
    *models: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    device: str,
    target: str | os.PathLike[str] | Target = "host-cpu",
    data: Any = None,
    rounds: int = 500,
    threads: int = 1,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Race:
    """Measure one model or several side by side in onnxruntime on another machine. Arguments: as `profile`.

    device: such as `ssh://user@host` (`targets.devices`). target: whose cost estimate stands beside the measurement;
    where it is not one of that machine, a note says so. timeout_seconds: for all of it.

    Raises:
        UsageError: no model, target, device, or program on it. RuntimeRefusalError: it refuses a model. DeviceError: it
        is gone, or time is up. InputError: a model or data that cannot be used.
    """
    if not models:
        raise UsageError("profile: there is no model to measure. Give one at least")
    chosen = target if isinstance(target, Target) else load_target(target)
    there = open_device(device)
    loaded = [model_io.load(model) for model in models]
    effort = Effort(data, rounds, threads)
    feeds = [effort.feeds(model) for model in loaded]
    names = model_names(models, loaded)
    keys = names if len(set(names)) == len(names) else [f"{name} ({index + 1})" for index, name in enumerate(names)]
    found = there.run(
        dict(zip(keys, loaded, strict=True)), feeds, rounds=rounds, warmup=profiling.WARMUP_ROUNDS, threads=threads,
        min_seconds=profiling.LEAST_SECONDS, max_seconds=profiling.SECONDS, node_rounds=effort.step_rounds,
        node_seconds=profiling.STEP_SECONDS, timeout_seconds=timeout_seconds,
    )  # fmt: skip
    profiles = [
        _profile(name, model, given, found.models[key], found, device, chosen, threads)
        for name, key, model, given in zip(names, keys, loaded, feeds, strict=True)
    ]
    return Race(tuple(profiles))


def _profile(
    name: str,
    model: onnx_ir.Model,
    feeds: Feeds,
    found: ModelRun,
    run: DeviceRun,
    device: str,
    target: Target,
    threads: int,
) -> Profile:
    fixed = fix_shapes(model, feeds).model
    counted, predicted = cost(fixed), predict(fixed, target.profile)
    return Profile(
        model=name,
        target=target.name,
        runtime=_RUNTIME,
        version=run.machine.runtime_version or "unknown",
        threads=threads,
        batch=next((int(array.shape[0]) for array in feeds.values() if array.ndim), None),
        times=Times.of(found.latency),
        create_ms=None if found.load_seconds is None else found.load_seconds * 1e3,
        memory_bytes=run.peak_rss_bytes,
        size_bytes=model_io.size_bytes(model),
        params=counted.params,
        macs=counted.macs,
        peak_activation_bytes=counted.peak_activation_bytes,
        steps=tuple(find_steps(fixed, found.node_times, counted, predicted)),
        predicted_ms=None if predicted is None else predicted.seconds * 1e3,
        device=device,
        notes=(
            *_notes(run.machine, device, target, predicted),
            *gaps("the device", fixed, counted, found.node_times, predicted, threads),
        ),
        is_predicted_here=_describes(target, run.machine) and target.profile.runtime == _RUNTIME and threads == 1,
        inputs={name: tuple(array.shape) for name, array in feeds.items()},
    )


def _notes(machine: Machine, device: str, target: Target, predicted: Prediction | None) -> Iterator[str]:
    facts = [machine.cpu, machine.board, machine.os, _cores(machine)]
    yield f"measured on {', '.join(fact for fact in facts if fact) or device}"
    if (why := why_not_predicted(target, _RUNTIME, predicted)) is not None:
        yield why
    elif not _describes(target, machine):
        described = target.profile.machine
        what = f"what {target.name} describes" if described is None else f"{described.processor}, of {target.name}"
        yield f"the prediction is of {what}, which the device is not known to be"


def _cores(machine: Machine) -> str:
    if machine.cores <= 1:
        return "1 core" if machine.cores else ""
    if len(machine.cores_used) in (0, machine.cores):
        return f"any of {machine.cores} cores"
    used = ", ".join(map(str, machine.cores_used))
    return f"core{'s' if len(machine.cores_used) > 1 else ''} {used} of {machine.cores}"


def _describes(target: Target, machine: Machine) -> bool:
    """Whether the target's estimate is of such a machine: of its processor, or of its architecture in general."""
    described = target.profile.machine
    if described is not None:  # which is told with numbers in brackets, where the system tells them
        return described.processor.partition(" (")[0] == machine.cpu.partition(" (")[0]
    kind = host_kind() if target.name == HOST else target.name
    return machine.architecture.lower() in _ARCHITECTURES.get(kind, ())
