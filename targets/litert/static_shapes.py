"""Fix what a LiteRT file fixes: every size is a number, the batch included.

Open batches become `batch` (1 by default); every other size must follow from the model's inputs. A .tflite file may
leave sizes open too, but its fast kernels are prepared for fixed ones.
"""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.ir.inference import infer_shapes

__all__ = ["fix_batch", "shape_of"]


def fix_batch(model: onnx_ir.Model, batch: int) -> list[str]:
    """Give every open leading size of an input the number `batch`, and infer all shapes, in place.

    Returns: a line for each input that was changed.

    Raises:
        InputError: an input has another open size, or no shape at all.
    """
    notes = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if value.shape is None:
            raise InputError(f"input {value.name!r} has no shape, and LiteRT needs one. Export the model with shapes")
        sizes = list(value.shape)
        if sizes and not isinstance(sizes[0], int):
            notes.append(f"input {value.name!r}: its open batch {sizes[0]} is fixed at {batch}")
            sizes[0] = batch
        if not all(isinstance(size, int) for size in sizes):
            raise InputError(
                f"input {value.name!r} has the open sizes {[str(size) for size in value.shape]}, and a .tflite file "
                "fixes all of them. Export the model with fixed sizes; only the batch may be open"
            )
        value.shape = onnx_ir.Shape(sizes)
    for value in model.graph.outputs:
        value.shape = None  # what the file says of them was said for the open batch
    infer_shapes(model)
    return notes


def shape_of(value: onnx_ir.Value) -> tuple[int, ...] | None:
    """Return the sizes of a value, None where one of them is open or unknown."""
    if value.shape is None:
        return tuple(value.const_value.shape.numpy()) if value.const_value is not None else None
    if not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
