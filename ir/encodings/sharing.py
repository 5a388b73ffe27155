"""How the parameters of an encoding are shared among weights: by the tensor, by the channel of an axis, by blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.ir.encodings.base import Array, Floats

__all__ = ["checked_scale", "parameter_shape", "positive_axis", "spread"]


def parameter_shape(shape: Sequence[int], axis: int | None, block_size: int | None) -> tuple[int, ...]:
    """Return the shape of scale and zero point for codes of `shape`, as ONNX DequantizeLinear has it."""
    if axis is None:
        if block_size is not None:
            raise ValueError("block_size needs an axis")
        return ()
    if block_size is None:
        return (shape[axis],)
    if block_size < 1:
        raise ValueError(f"block_size must be positive, not {block_size}")
    return (*shape[:axis], -(-shape[axis] // block_size), *shape[axis + 1 :])


def checked_scale(scale: npt.ArrayLike, expected: tuple[int, ...]) -> Floats:
    """Return a scale as float32.

    Raises:
        ValueError: it has another shape than `expected`, or is not positive and finite.
    """
    checked = np.asarray(scale, np.float32)
    if checked.shape != expected:
        raise ValueError(f"scale has shape {list(checked.shape)}, needs {list(expected)}")
    if not np.all((checked > 0) & np.isfinite(checked)):
        raise ValueError("scale must be positive and finite")
    return checked


def spread(parameter: Array, shape: Sequence[int], axis: int | None, block_size: int | None) -> Array:
    """Return scale or zero point so that it broadcasts against codes of `shape`."""
    if axis is None:
        return parameter
    if block_size is None:
        return parameter.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    blocks = np.repeat(parameter, block_size, axis)  # reaches beyond a short last block
    return blocks.swapaxes(0, axis)[: shape[axis]].swapaxes(0, axis)


def positive_axis(axis: int, rank: int) -> int:
    """Return an axis that may count from the end as one that counts from 0.

    Raises:
        ValueError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} is outside a weight of rank {rank}")
    return axis % rank
