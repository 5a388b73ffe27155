"""Shapes of values as plain integers, at a chosen batch size.

A leading dimension without a number stands for the batch. Any other dimension without a number is unknown,
and so is everything derived from it: callers get None and decide, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir

__all__ = [
    "batch_dimension",
    "describe_shape",
    "element_count",
    "has_shared_batch",
    "required_inputs",
    "size_bytes",
    "static_shape",
]


def static_shape(value: onnx_ir.Value, *, batch: int = 1) -> tuple[int, ...] | None:
    """Return the shape of `value` at `batch`: a leading dimension without a number counts as the batch.

    Returns:
        None where the rank or any later dimension is unknown. A scalar has the shape ().
    """
    if value.shape is None:
        return None
    dims = tuple(value.shape)
    sizes = [dim if isinstance(dim, int) else None for dim in dims]
    if sizes and sizes[0] is None:
        sizes[0] = batch
    known = [size for size in sizes if size is not None]
    return tuple(known) if len(known) == len(sizes) else None


def element_count(value: onnx_ir.Value, *, batch: int = 1) -> int | None:
    """Return how many numbers `value` holds at `batch`, or None where its shape is unknown."""
    shape = static_shape(value, batch=batch)
    return None if shape is None else math.prod(shape)


def size_bytes(value: onnx_ir.Value, *, batch: int = 1) -> int | None:
    """Return the bytes that `value` takes at `batch`, sub-byte types packed.

    Returns:
        None where type or shape is unknown, and for strings, which have no size of their own.
    """
    count = element_count(value, batch=batch)
    if count is None or value.dtype is None or value.dtype in _SIZELESS:
        return None
    return math.ceil(count * value.dtype.itemsize)


def required_inputs(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    """Return the inputs that must be fed: those without a default among the initializers."""
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def has_shared_batch(model: onnx_ir.Model) -> bool:
    """Whether the leading dimensions of all required inputs are one and the same batch.

    They are when all have the same number or the same name, or none; 1 goes with anything. Where they are not
    (a scalar, a state [layers, N, H] with fixed layers, texts [T, L] beside images [I, C, H, W]), only whole
    feeds make sense.
    """
    shapes = [value.shape for value in required_inputs(model) if value.shape is not None]
    if any(len(shape) == 0 for shape in shapes):
        return False
    leading = {dim if isinstance(dim, int) else dim.value for dim in (shape[0] for shape in shapes)}
    return len(leading - {1, None}) <= 1


def batch_dimension(model: onnx_ir.Model) -> int | None:
    """Return the batch size that the model's required inputs fix, or None where it is free.

    Inputs without a shared batch take one sample at a time: 1.
    """
    if not has_shared_batch(model):
        return 1
    leading = [value.shape[0] for value in required_inputs(model) if value.shape is not None]
    return min((dim for dim in leading if isinstance(dim, int)), default=None)


def describe_shape(shape: Iterable[object] | None) -> str:
    """Write a shape for people: `[N, 3, 32, 32]`; `?` for a dimension without number or name, or no rank."""
    if shape is None:
        return "?"
    return f"[{', '.join(_describe_dim(dim) for dim in shape)}]"


_SIZELESS = frozenset({onnx_ir.DataType.STRING, onnx_ir.DataType.UNDEFINED})


def _describe_dim(dim: object) -> str:
    if isinstance(dim, int):
        return str(dim)
    name = dim.value if isinstance(dim, onnx_ir.SymbolicDim) else dim
    return str(name) if name is not None else "?"
