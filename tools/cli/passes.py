"""`onnxpress passes`: the rewrites that there are, with their options."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxpress.tools.cli.options import Force, Json

__all__ = ["passes"]


def passes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One pass, in full.", show_default=False)] = None,
    json: Json = None,
    force: Force = False,
) -> None:
    """List the passes, or show one with its options and defaults."""
    import dataclasses

    from onnxpress.passes.registry import describe, get_pass, pass_names
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.tables import show_pass, show_passes

    check_outputs({"--json": json}, {}, force=force)
    if name is not None:
        chosen = get_pass(name)
        one = describe(chosen)
        show_pass(console(), one, chosen)
        write_json(json, dataclasses.asdict(one), overwrite=force)
        return
    found = [describe(get_pass(known)) for known in pass_names()]
    show_passes(console(), found)
    write_json(json, [dataclasses.asdict(one) for one in found], overwrite=force)
