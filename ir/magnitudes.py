"""Measured magnitudes: the largest number that calibration data gave a value, noted on it for lowerings to read.

A note lies in the value's `meta`, so it survives `Model.clone()` and never reaches a file.
"""

from __future__ import annotations

import onnx_ir

__all__ = ["magnitude_of", "note_magnitude"]

_KEY = "onnxpress.magnitude"


def note_magnitude(value: onnx_ir.Value, largest: float) -> None:
    """Note that no number of `value` was larger than `largest`, in real units, whatever its sign; inf for no bound."""
    value.meta[_KEY] = largest


def magnitude_of(value: onnx_ir.Value | None) -> float | None:
    """Return what was noted, None where nothing was measured."""
    found = None if value is None else value.meta.get(_KEY)
    return found if isinstance(found, float) else None
