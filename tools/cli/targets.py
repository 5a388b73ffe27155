"""`onnxpress targets`: what models can be compressed for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from onnxpress.tools.cli.options import Force, Json

if TYPE_CHECKING:
    from onnxpress.targets.base import Target

__all__ = ["targets"]


def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One target, or a TOML profile, in full.", show_default=False),
    ] = None,
    json: Json = None,
    force: Force = False,
) -> None:
    """List the targets, or show the whole profile of one."""
    from onnxpress.targets.base import load_target
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.tables import show_target, show_targets

    check_outputs({"--json": json}, {}, force=force)
    if name is not None:
        target = load_target(name)
        show_target(console(), target)
        write_json(json, target.profile.model_dump(mode="json"), overwrite=force)
        return
    found = _load_all()
    show_targets(console(), found)
    write_json(json, [target.profile.model_dump(mode="json") for target in found], overwrite=force)


def _load_all() -> list[Target]:
    """Return every target that loads. A broken plugin is a warning, and the others stay listed."""
    from onnxpress.ir.errors import UsageError
    from onnxpress.targets.base import load_target, target_names
    from onnxpress.tools.report.console import say

    found = []
    for name in target_names():
        try:
            found.append(load_target(name))
        except UsageError as error:
            say(f"warning: {error}")
    return found
