"""`onnxpress check`: whether a model may run on a target, by rule and source."""

from __future__ import annotations

from typing import Annotated

import typer

from onnxpress.ir.errors import BudgetError
from onnxpress.tools.cli.options import DEFAULT_TARGET, Force, Json, Model, Target

__all__ = ["check"]


def check(
    model: Model,
    target: Target = None,
    every: Annotated[bool, typer.Option("--all", help="Name every node, and not only each rule's first few.")] = False,
    json: Json = None,
    force: Force = False,
) -> None:
    """Say what in MODEL a target cannot run, by rule and source, into how many parts that cuts it, and what would help.

    Exit status 1 when something is illegal there.
    """
    from onnxpress.tools.legality import check as look
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.target_tables import show_check

    check_outputs({"--json": json}, {"MODEL": model}, force=force)
    found = look(model, target=target or DEFAULT_TARGET)
    show_check(console(), found, all_nodes=every)
    write_json(json, found.to_json(), overwrite=force)
    if not found.legal:
        raise BudgetError(f"{found.summary}. What each asks for stands above.")
