"""`onnxpress compress`: a smaller and faster model for a target, with the proof."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxpress.ir.errors import UsageError
from onnxpress.tools.cli.options import (
    DEFAULT_TARGET,
    Data,
    EvalData,
    Force,
    Json,
    Model,
    Output,
    Seed,
    Target,
)

if TYPE_CHECKING:
    from onnxpress.tools.recipe import Recipe

__all__ = ["compress"]


def compress(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Argument(metavar="OUT", help="Where the result goes; or give -o.", show_default=False),
    ] = None,
    output: Output = None,
    target: Target = None,
    passes: Annotated[
        str | None,
        typer.Option(
            "--passes",
            metavar="PIPELINE|FILE",
            help="Passes in order, such as 'cleanup, fold-batchnorm, quantize-int8', or a file that holds "
            "them. Default: the target's own.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    eval_data: EvalData = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            metavar="POINTS",
            help="Most that accuracy may fall, in percentage points (without labels: agreement with the "
            "original). More: exit status 1, and only the JSON is written.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    seed: Seed = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="IN.toml", help="Repeat a run; options given here win.", show_default=False),
    ] = None,
    save_recipe: Annotated[
        Path | None,
        typer.Option("--save-recipe", metavar="OUT.toml", help="Keep what repeats this run.", show_default=False),
    ] = None,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="Run the model before and after each pass.")
    ] = False,
    print_after_all: Annotated[
        bool, typer.Option("--print-after-all", help="Print the model's text after each pass.")
    ] = False,
    print_after_change: Annotated[
        bool, typer.Option("--print-after-change", help="Print what each pass changed in the model's text.")
    ] = False,
    crash_dir: Annotated[
        Path | None,
        typer.Option(
            "--crash-dir",
            metavar="DIR",
            help="Where a failing pass leaves a reproducer.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Make MODEL smaller and faster for a target, with the proof.

    Without --passes the target's own pipeline runs. The result is loaded and run once before it is written
    to OUT.

    Without --eval-data the two models are compared on calibration data: accuracy and agreement on its first 16
    to 128 samples (all of them with --max-drop), SQNR on the first 8 to 32; fewer the more a sample costs.
    """
    from onnxpress.tools.outputs import check_outputs

    destination = _destination(model, out, output)
    check_outputs(
        {"OUT": destination, "--json": json, "--save-recipe": save_recipe},
        {
            "MODEL": model,
            "--data": data,
            "--eval-data": eval_data,
            "--recipe": recipe,
            "--passes": passes,
            "--target": target,
        },
        force=force,
    )
    given = _read_recipe(recipe)
    if given.data_digest is not None and given.data is None and data is None:
        raise UsageError("the recipe was made with calibration data handed over in Python. Give the same with --data.")

    from onnxpress.tools.cli.run import compress_and_tell
    from onnxpress.tools.plan import prepare

    plan = prepare(
        model,
        target=_first(target, given.target, DEFAULT_TARGET),
        passes=_first(passes, given.pipeline),
        data=_first(data, given.data),
        eval_data=_first(eval_data, given.eval_data),
        max_drop=_first(max_drop, given.max_drop),
        seed=_first(seed, given.seed, 0),
    )
    _check_recipe(given, plan.recipe, target_given=target is not None, data_given=data is not None)
    compress_and_tell(
        plan,
        destination,
        json=json,
        save_recipe=save_recipe,
        force=force,
        verify_each=verify_each,
        print_after_all=print_after_all,
        print_after_change=print_after_change,
        crash_dir=crash_dir,
    )


def _destination(model: Path, out: Path | None, output: Path | None) -> Path:
    if out is not None and output is not None:
        raise UsageError(f"OUT is given twice: {str(out)!r} and -o {str(output)!r}. Give one.")
    destination = out or output
    if destination is None:
        suggestion = model.with_name(f"{model.stem}-small.onnx")
        raise UsageError(f"OUT is missing. Say where the result goes: onnxpress compress {model} {suggestion}")
    return destination


def _read_recipe(path: Path | None) -> Recipe:
    from onnxpress.tools.recipe import Recipe

    return Recipe() if path is None else Recipe.read(path)


def _check_recipe(given: Recipe, planned: Recipe, *, target_given: bool, data_given: bool) -> None:
    """Check that the files at hand are the recipe's, and tell of versions that may change the result."""
    from onnxpress.tools.report.facts import say

    if planned.model_digest is not None:
        given.check_model(planned.model_digest, planned.model or "model")
    if not target_given:
        given.check_target(planned.target_digest, planned.target or "target")
    if given.data_digest is not None and planned.data_digest is not None and not data_given:
        given.check_data(planned.data_digest, planned.data or "data")
    if others := given.other_versions():
        say(f"warning: the recipe was made with {', '.join(others)}: the result may differ")


def _first(*values: Any) -> Any:
    """Return the first value that is given."""
    return next((value for value in values if value is not None), None)
