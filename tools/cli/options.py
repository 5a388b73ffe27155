"""Options that several commands share: one spelling, one help text, one default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "DEFAULT_TARGET",
    "Data",
    "EvalData",
    "Force",
    "Json",
    "Model",
    "Output",
    "Seed",
    "Target",
]

DEFAULT_TARGET = "host-cpu"

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
Output = Annotated[Path | None, typer.Option("-o", metavar="OUT", help="Where the result goes.", show_default=False)]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="T",
        help="What the model shall run on: a name from 'onnxpress targets', or a TOML profile. "
        f"Default: {DEFAULT_TARGET}.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D",
        help="Real samples: an .npz or .npy file, a folder of them or of images, or module:function.",
        show_default=False,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="D",
        help="Samples, best with labels, to measure on: all of them for accuracy and agreement, the first 8 to 32 "
        "for SQNR, which is of the models as they are written, without the runtime's optimizations.",
        show_default=False,
    ),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="F", help="Write the result as JSON; - is stdout.", show_default=False),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Seed of every random choice. Default: 0.", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace output files that exist.")]
