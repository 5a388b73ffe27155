"""The check `litert`: what the writer of .tflite files refuses, by the writer itself, so that the two never differ."""

from __future__ import annotations

import onnx_ir

from onnxpress.targets.litert.problems import Problem, fix_and_check

__all__ = ["find_problems"]


def find_problems(model: onnx_ir.Model) -> list[Problem]:
    """Return all that keeps `model` from being written, an open batch fixed at 1. LiteRT need not be installed."""
    return fix_and_check(model.clone())[1]
