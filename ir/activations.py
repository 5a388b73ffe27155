"""What an activation that clips lets through: Relu and Clip of any opset, read in one place."""

from __future__ import annotations

import math

import onnx_ir

from onnxpress.ir.linear import constant_numbers

__all__ = ["activation_limits", "clip_limits"]


def activation_limits(node: onnx_ir.Node) -> tuple[float, float]:
    """Return what values `node`, a Relu or Clip, lets through; an empty interval (inf, -inf) where that varies."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    low, high = clip_limits(node)
    return (math.inf, -math.inf) if low is None or high is None else (low, high)


def clip_limits(node: onnx_ir.Node) -> tuple[float | None, float | None]:
    """Return the limits of a Clip, infinite where they are left out; None for one that is not constant."""
    return _limit(node, 1, "min", -math.inf), _limit(node, 2, "max", math.inf)


def _limit(node: onnx_ir.Node, index: int, name: str, default: float) -> float | None:
    """Return a limit that is an attribute before opset 11, and an input since."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return node.attributes.get_float(name, default)
    stored = constant_numbers(value)
    return (
        None if stored is None or stored.size != 1 else float(stored.reshape(()))
    )  # exporters write [1] as well as []
