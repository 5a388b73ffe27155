"""Fix what a LiteRT file fixes: every size is a number, the batch included.

Open batches become `batch` (1 by default); every other size must follow from the model's inputs. A .tflite file may
leave sizes open too, but its fast kernels are prepared for fixed ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir

from onnxpress.ir.inference import infer_shapes

__all__ = ["fix_batch", "open_inputs", "shape_of"]


def open_inputs(model: onnx_ir.Model) -> Iterator[str]:
    """Yield what keeps sizes open: inputs without a shape, or with another open size than the batch."""
    for value in _inputs(model):
        if value.shape is None:
            yield f"input {value.name!r} has no shape, and LiteRT needs one: export the model with shapes"
        elif not all(isinstance(size, int) for size in list(value.shape)[1:]):
            yield (
                f"input {value.name!r} has the open sizes {[str(size) for size in value.shape]}, and a .tflite file "
                "fixes all of them: export the model with fixed sizes; only the batch may be open"
            )


def fix_batch(model: onnx_ir.Model, batch: int) -> list[str]:
    """Give every open leading size of an input the number `batch`, and infer all shapes, in place.

    No other size is open. Returns: a line for each input that was changed.
    """
    notes = []
    for value in _inputs(model):
        sizes = list(value.shape or ())
        if sizes and not isinstance(sizes[0], int):
            notes.append(f"input {value.name!r}: its open batch {sizes[0]} is fixed at {batch}")
            value.shape = onnx_ir.Shape([batch, *sizes[1:]])
    for value in model.graph.outputs:
        if value.producer() is not None:
            value.shape = None  # what the file says of them was said for the open batch
    infer_shapes(model)
    return notes


def _inputs(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    return (value for value in model.graph.inputs if not value.is_initializer())


def shape_of(value: onnx_ir.Value) -> tuple[int, ...] | None:
    """Return the sizes of a value, None where one of them is open or unknown."""
    if value.shape is None:
        return tuple(value.const_value.shape.numpy()) if value.const_value is not None else None
    if not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
