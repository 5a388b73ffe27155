"""`onnxpress targets`: what models can be compressed for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from onnxpress.tools.cli.options import Force, Json

__all__ = ["targets"]


def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One target, or a TOML profile, in full.", show_default=False),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Every key that a profile may have, and every check of its rules.")
    ] = False,
    json: Json = None,
    force: Force = False,
) -> None:
    """List the targets, show the whole profile of one, or what a profile of your own may say."""
    from onnxpress.targets.base import load_target, target_names
    from onnxpress.targets.profile_keys import describe_checks, describe_keys
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.target_tables import show_schema, show_target, show_targets

    check_outputs({"--json": json}, {}, force=force)
    if schema:
        keys, checks = describe_keys(), describe_checks()
        show_schema(console(), keys, checks)
        described = {"keys": [asdict(key) for key in keys], "checks": [asdict(check) for check in checks]}
        write_json(json, described, overwrite=force)
        return
    if name is not None:
        target = load_target(name)
        show_target(console(), target)
        write_json(json, target.profile.model_dump(mode="json"), overwrite=force)
        return
    found = [load_target(known) for known in target_names()]
    show_targets(console(), found)
    write_json(json, [target.profile.model_dump(mode="json") for target in found], overwrite=force)
