"""`onnxpress unpack`: the model that was packed, as `save` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onnxpress.tools.cli.options import Force, Output

__all__ = ["unpack"]

Packed = Annotated[Path, typer.Argument(metavar="FILE.onnxp", help="A packed model.", show_default=False)]


def unpack(packed: Packed, out: Output = None, force: Force = False) -> None:
    """Restore the model in FILE.onnxp, every number and name as it was."""
    from onnxpress.ir.errors import UsageError
    from onnxpress.tools.container import unpack as run
    from onnxpress.tools.outputs import check_outputs
    from onnxpress.tools.report.facts import say

    if out is None:
        named = packed.with_suffix(".onnx").name
        raise UsageError(f"-o OUT is missing. Say where the result goes: onnxpress unpack {packed} -o {named}")
    check_outputs({"-o": out}, {"FILE.onnxp": packed}, force=force)
    size = run(packed, out, overwrite=force)
    say(f"written: {out} ({size:,} bytes)")
