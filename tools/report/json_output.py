"""JSON for programs: strict (no NaN, no Infinity), one document, stdout or a file written whole."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxpress.tools.outputs import STDOUT, write_text

__all__ = ["json_text", "write_json"]


def json_text(document: object) -> str:
    """Return `document` as indented JSON. Numbers that JSON cannot hold become null."""
    return json.dumps(_plain(document), indent=2, allow_nan=False) + "\n"


def write_json(destination: str | None, document: object, *, overwrite: bool = False) -> None:
    """Write `document` to a file, or to stdout for `-`; None writes nothing.

    Raises:
        UsageError: the file exists and `overwrite` is not set, or it cannot be written.
    """
    if destination is None:
        return
    if destination == STDOUT:
        sys.stdout.write(json_text(document))
        sys.stdout.flush()
        return
    write_text(destination, json_text(document), overwrite=overwrite)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
