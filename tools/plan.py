"""What a run of `compress` is given, loaded and checked before any work."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.data import DataSource, check_data, open_data
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from onnxpress.ir.opset import default_opset
from onnxpress.ir.verify import check_finite
from onnxpress.passes.base import Context, Pass, SiteOptions
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build, format_pipeline, read_pipeline, to_spec
from onnxpress.passes.selectors import Selection
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.profile_files import BUILT_IN
from onnxpress.tools.recipe import Recipe, installed_versions, portable

if TYPE_CHECKING:
    import onnx

__all__ = ["Plan", "prepare"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that is fully checked and has not begun.

    source: what was given. model: as loaded. name: what reports call it. pipeline: canonical text.
    target_spec: the target as a command line names it. seconds: that loading and checking took.
    """

    source: Any
    model: onnx_ir.Model
    name: str
    target: Target
    target_spec: str
    passes: tuple[Pass, ...]
    pipeline: str
    data: DataSource | None
    eval_data: DataSource | None
    max_drop: float | None
    seed: int
    recipe: Recipe
    seconds: float

    @property
    def repeat_flags(self) -> tuple[str, ...]:
        """Flags that a reproducer's command needs beside model, passes, data and seed."""
        profile = Path(self.target_spec)
        return ("--target", os.fspath(profile.resolve()) if profile.is_file() else self.target_spec)


def prepare(
    model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    *,
    target: str | os.PathLike[str] | Target = "host-cpu",
    passes: str | os.PathLike[str] | Sequence[Pass] | None = None,
    data: Any = None,
    eval_data: Any = None,
    max_drop: float | None = None,
    seed: int = 0,
) -> Plan:
    """Load and check everything that a run needs, cheapest first. Arguments and errors: see `compress`."""
    from onnxpress.ir.analysis.execute import require_runtime

    started = time.perf_counter()
    require_runtime()
    _check_numbers(max_drop, seed, has_data=data is not None or eval_data is not None)
    chosen = target if isinstance(target, Target) else load_target(target)
    built = _build(passes, chosen)
    PassManager(built)  # refuses a wrong order
    for one in built:
        if one.needs_data and data is None:
            Context().require_data(one.name)
    loaded = model_io.load(model)
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else loaded.graph.name or "model"
    _require_opset(loaded, name, chosen)
    _require_finite(loaded, name)
    _check_selectors(built, loaded, Context(constraints=chosen.constraints, seed=seed))
    calibration, evaluation = _open(data, loaded), _open(eval_data, loaded)
    # The digest reads every sample, and so checks it. Evaluation samples have no digest: check them here.
    data_digest = None if calibration is None else calibration.digest()
    if evaluation is not None and not _is_folder(eval_data):
        check_data(evaluation, loaded)
    pipeline = format_pipeline(map(to_spec, built))
    recipe = Recipe(
        model=Path(name).name,
        model_digest=model_io.digest(loaded),
        target=_spell(target) or chosen.name,
        target_digest=_digest(chosen),
        pipeline=pipeline,
        seed=seed,
        data=_spell(data),
        data_digest=data_digest,
        eval_data=_spell(eval_data),
        max_drop=max_drop,
        versions=installed_versions(chosen.profile.runtime),
    )
    return Plan(
        source=model,
        model=loaded,
        name=name,
        target=chosen,
        target_spec=os.fspath(target) if isinstance(target, str | os.PathLike) else chosen.name,
        passes=tuple(built),
        pipeline=pipeline,
        data=calibration,
        eval_data=evaluation,
        max_drop=max_drop,
        seed=seed,
        recipe=recipe,
        seconds=time.perf_counter() - started,
    )


def _digest(target: Target) -> str | None:
    """Return sha256 of the profile, with what it extends; None for a target of this package."""
    if target.name in BUILT_IN and target.profile == load_target(target.name).profile:
        return None
    return hashlib.sha256(target.profile.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _check_numbers(max_drop: float | None, seed: int, *, has_data: bool) -> None:
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be 0 or more.")
    if max_drop is None:
        return
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"--max-drop {max_drop:g}: must be a number of points, 0 or more, such as 0.5.")
    if not has_data:
        raise UsageError(
            "--max-drop: needs samples to measure the drop on. Give --eval-data, or at least --data "
            "(eval_data=..., data=...)."
        )


def _require_opset(model: onnx_ir.Model, name: str, target: Target) -> None:
    """Refuse a model that no pass could bring to the target: opsets are raised where need be, never lowered."""
    opset, highest = default_opset(model), target.constraints.max_opset
    if highest is not None and opset > highest:
        raise InputError(
            f"{name}: uses opset {opset}, and {target.name} takes opsets up to {highest}. "
            f"Export it with opset {highest} or lower, or choose another target."
        )


def _require_finite(model: onnx_ir.Model, name: str) -> None:
    try:
        check_finite(model)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _check_selectors(passes: Sequence[Pass], model: onnx_ir.Model, context: Context) -> None:
    """Check, before any data is read, that every selector matches a node of the model that its pass will see.

    Where one matches nothing in the model as given, an earlier pass may still make the node: those passes run
    once without data. One that needs data ends the check, and the run will tell.

    Raises:
        UsageError: a selector matches nothing.
    """
    for index, one in enumerate(passes):
        if not isinstance(one.options, SiteOptions) or _matches(one.options, model):
            continue
        try:
            seen, _ = PassManager(passes[:index]).run(model, context)
        except OnnxpressError:
            return
        Selection.from_options(one.options, seen, one.name)


def _matches(options: SiteOptions, model: onnx_ir.Model) -> bool:
    try:
        Selection.from_options(options, model, "")
    except UsageError:
        return False
    return True


def _build(passes: str | os.PathLike[str] | Sequence[Pass] | None, target: Target) -> list[Pass]:
    if passes is None:
        return build(target.default_pipeline)
    if isinstance(passes, str | os.PathLike):
        return build(read_pipeline(passes))
    return list(passes)


def _open(spec: Any, model: onnx_ir.Model) -> DataSource | None:
    if spec is None:
        return None
    source = open_data(spec, model=model)
    check_data(source, model, full=False)
    return source


def _is_folder(spec: Any) -> bool:
    """Whether reading all of the data may take long: the images of a folder are decoded one by one."""
    return isinstance(spec, str | os.PathLike) and Path(spec).is_dir()


def _spell(spec: Any) -> str | None:
    """Return what a recipe says of a target or of data: a name or a portable path; None for an object."""
    return portable(os.fspath(spec)) if isinstance(spec, str | os.PathLike) else None
