"""The optional packages behind this target, imported when they are needed and not before."""

from __future__ import annotations

import importlib
from typing import Any

from onnxpress.ir.errors import UsageError

__all__ = ["require_interpreter", "require_schema"]

_ADVICE = "pip install 'onnxpress[litert]'"


def require_schema() -> Any:
    """Return the module of flatbuffer classes that ships with the runtime.

    Raises:
        UsageError: LiteRT or flatbuffers is not installed.
    """
    _require("flatbuffers", "writing a .tflite file needs flatbuffers")
    return _require("ai_edge_litert.schema_py_generated", "writing a .tflite file needs the schema of LiteRT")


def require_interpreter() -> Any:
    """Return the module that runs .tflite files.

    Raises:
        UsageError: LiteRT is not installed.
    """
    return _require("ai_edge_litert.interpreter", "running a .tflite file needs LiteRT")


def _require(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{why}, and it is not installed: {_ADVICE}") from error
