"""`onnxpress targets`: what models can be compressed for."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxpress.tools.cli.options import Force, Json

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
    from onnxpress.targets.base import load_target, target_names
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
    found = [load_target(known) for known in target_names()]
    show_targets(console(), found)
    write_json(json, [target.profile.model_dump(mode="json") for target in found], overwrite=force)
