"""`onnxpress compare`: two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxpress.tools.cli.options import Data, Force, Json

__all__ = ["compare"]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The reference, an ONNX model.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="The model beside it.", show_default=False)],
    data: Data = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            "--min-sqnr",
            metavar="DB",
            help="Exit status 1 when an output of B has less SQNR against A.",
            show_default=False,
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            "--min-agreement",
            metavar="PERCENT",
            help="Exit status 1 when B gives A's top-1 class less often.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
    force: Force = False,
) -> None:
    """Compare B with A: fidelity, accuracy, size, MACs, latency.

    Without --data only size, MACs and latency are compared: fidelity on made-up samples would say nothing.
    """
    from onnxpress.tools.comparison import compare as measure
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.console import console
    from onnxpress.tools.report.json_output import write_json
    from onnxpress.tools.report.progress import watch_progress
    from onnxpress.tools.report.tables import show_comparison

    check_outputs({"--json": json}, {"A": a, "B": b, "--data": data}, force=force)
    with watch_progress() as progress:
        result = measure(a, b, data=data, min_sqnr=min_sqnr, min_agreement=min_agreement, progress=progress)
    show_comparison(console(), result)
    write_json(json, result.to_json(), overwrite=force)
    result.require()
