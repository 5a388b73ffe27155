"""`onnxpress inspect`: what a model is made of."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxpress.tools.cli.options import Force, Json, Model

__all__ = ["inspect"]


Channels = Annotated[
    bool, typer.Option("--channels", help="Show which channels belong together, and which can be removed.")
]


def inspect(model: Model, channels: Channels = False, json: Json = None, force: Force = False) -> None:
    """Show what MODEL is made of: parameters, MACs, bytes, nodes."""
    from onnxpress.tools.inspection import inspect as look
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.channels import show_channels
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.tables import show_inspection

    check_outputs({"--json": json}, {"MODEL": model}, force=force)
    found = look(model, channels=channels)
    show_inspection(console(), found)
    if found.channels is not None:
        show_channels(console(), found.channels)
    write_json(json, found.to_json(), overwrite=force)
