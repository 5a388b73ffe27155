"""`onnxpress inspect`: what a model is made of."""

from __future__ import annotations

from onnxpress.tools.cli.options import Force, Json, Model

__all__ = ["inspect"]


def inspect(model: Model, json: Json = None, force: Force = False) -> None:
    """Show what MODEL is made of: parameters, MACs, bytes, nodes."""
    from onnxpress.tools.inspection import inspect as look
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.tables import show_inspection

    check_outputs({"--json": json}, {"MODEL": model}, force=force)
    found = look(model)
    show_inspection(console(), found)
    write_json(json, found.to_json(), overwrite=force)
