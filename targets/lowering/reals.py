"""Lower an encoded weight to float32 behind constants, for readers that compute in float.

    few levels          =>   integers (`unpack`) -> Cast -> Mul            where the levels are multiples of a scale
                             Gather or GatherElements of float32 levels    where they are not
    affine, else        =>   integers -> Cast [-> Sub] -> Mul              in blocks: between two Reshapes
    float16, bfloat16   =>   initializer -> Cast
    float8              =>   initializer -> Cast -> Mul

Every form gives the encoding's dense numbers bit for bit. It is Cast and Mul because onnxruntime folds those once at
load; a DequantizeLinear before a Conv it would run each time, and lose its blocked layout besides.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir

from onnxpress.ir.encodings import (
    Affine,
    BFloat16,
    Codebook,
    Encoded,
    Float8,
    Float16,
    Levels,
    Sparse,
    as_levels,
    integer_table,
)
from onnxpress.ir.encodings.base import Array, Floats
from onnxpress.targets.lowering.unpack import Chain, compact, look_up, shape_of, shared_row

__all__ = ["FLOAT8_OPSET", "INT4_OPSET", "lower_to_float", "lower_to_int4"]

FLOAT8_OPSET = 19  # Cast takes 8-bit floats
INT4_OPSET = 21  # DequantizeLinear takes 4-bit integers, and blocks
_FLOAT = onnx_ir.DataType.FLOAT
_CAST_AND_MUL_BYTES = 220  # what the two operators behind integer levels take in a file


def lower_to_float(chain: Chain, encoded: Encoded, opset: int) -> tuple[onnx_ir.Value, str] | None:
    """Append what computes the dense weight, and return it with the name of the form; None where there is no form."""
    if isinstance(encoded, Sparse) and not isinstance(encoded.inner, Levels):
        return lower_to_float(chain, encoded.filled(), opset)
    levels = as_levels(encoded)
    if levels is not None:
        return _lower_levels(chain, compact(levels))
    if isinstance(encoded, Affine):
        return _lower_affine(chain, encoded)
    if isinstance(encoded, Float16 | BFloat16):
        return chain.cast(chain.constant("half", encoded.codes), _FLOAT), "Cast"
    if isinstance(encoded, Float8) and opset >= FLOAT8_OPSET:
        real = chain.cast(chain.constant("f8", encoded.codes), _FLOAT)
        return _scaled(chain, real, encoded.scale, encoded.axis), "Cast, Mul"
    return None


def lower_to_int4(chain: Chain, encoded: Encoded) -> tuple[onnx_ir.Value, str] | None:
    """Append DequantizeLinear of 4-bit integers, as they are; None where `encoded` is something else.

    Blocks must divide their axis: runtimes that take this form ask for it (TensorRT, `IDequantizeLayer`).
    """
    if not isinstance(encoded, Affine) or encoded.bits != 4:
        return None
    attributes: dict[str, int] = {} if encoded.axis is None else {"axis": encoded.axis}
    if encoded.axis is not None and encoded.block_size is not None:
        if encoded.codes.shape[encoded.axis] % encoded.block_size:
            return None
        attributes["block_size"] = encoded.block_size
    kind = ml_dtypes.int4 if encoded.signed else ml_dtypes.uint4
    inputs = [chain.constant("q", encoded.codes.astype(kind)), chain.constant("scale", encoded.scale)]
    if encoded.zero_point is not None:
        inputs.append(chain.constant("zero_point", encoded.zero_point.astype(kind)))
    return chain.add("DequantizeLinear", inputs, _FLOAT, encoded.codes.shape, attributes), "DequantizeLinear"


def _lower_levels(chain: Chain, levels: Levels) -> tuple[onnx_ir.Value, str]:
    table = levels.table
    found = integer_table(levels, levels.axis or 0)
    if found is not None:
        integers = shared_row(found.table)
        if len(integers) == 1 or integers.nbytes + found.scale.nbytes + _CAST_AND_MUL_BYTES < table.nbytes:
            real = look_up(chain, levels, integers, _FLOAT)
            return _scaled(chain, real, found.scale, levels.axis), "unpacked, Mul"
    steps = np.abs(table).max(axis=1)
    row = table[:1] / steps[0] if steps[0] > 0 else table[:1]
    if len(table) > 1 and np.array_equal(row * steps[:, None], table):
        scale = np.repeat(steps, levels.indices.shape[levels.axis or 0] // len(table))
        return _scaled(chain, look_up(chain, levels, row, _FLOAT), scale, levels.axis), "unpacked, Gather, Mul"
    return look_up(chain, levels, table, _FLOAT), "unpacked, Gather" if len(table) == 1 else "unpacked, GatherElements"


def _lower_affine(chain: Chain, encoded: Affine) -> tuple[onnx_ir.Value, str]:
    """Lower codes that are no levels of few tables: of 8 and 16 bits, and in blocks."""
    shape, axis, block = encoded.codes.shape, encoded.axis, encoded.block_size
    parameters = [array for array in (encoded.zero_point, encoded.scale) if array is not None]
    if axis is None or block is None:
        spread = [array if axis is None else array.reshape(_along(axis, len(shape))) for array in parameters]
        real = _multiply(chain, _integers(chain, encoded, shape), spread)
        return real, "Cast, Mul"
    if shape[axis] % block == 0:
        blocks = (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])
        spread = [np.expand_dims(array, axis + 1) for array in parameters]
        real = _multiply(chain, _integers(chain, encoded, blocks), spread)
        return chain.reshape(real, shape), "blocks, Cast, Mul"
    # The last block is short: repeat scales and zero points up to the weight's own end.
    block_of = chain.emit.constant(f"blocks_of_{block}", (np.arange(shape[axis]) // block).astype(np.int32))
    real = _multiply(chain, _integers(chain, encoded, shape), parameters, (block_of, axis))
    return real, "short blocks, Cast, Mul"


def _integers(chain: Chain, encoded: Affine, shape: tuple[int, ...]) -> onnx_ir.Value:
    """Append what gives the codes as float32, zero points still in them, in that shape."""
    if encoded.bits >= 8:
        return chain.cast(chain.constant("q", encoded.codes.reshape(shape)), _FLOAT)
    lowest = -(1 << (encoded.bits - 1)) if encoded.signed else 0
    row = np.arange(lowest, lowest + (1 << encoded.bits), dtype=np.int8)
    indices = (encoded.codes.astype(np.int8) - np.int8(lowest)).astype(np.uint8)
    levels = compact(Codebook(indices, row.astype(np.float32)))
    return look_up(chain, levels, levels.table.astype(np.int8), _FLOAT, shape)


def _multiply(
    chain: Chain, real: onnx_ir.Value, parameters: list[Array], repeated: tuple[onnx_ir.Value, int] | None = None
) -> onnx_ir.Value:
    """Append Sub where there is a zero point, and Mul. parameters: [zero point,] scale, which broadcast.

    repeated: indices and axis by which to repeat them first.
    """
    for array in parameters:
        is_scale = array.dtype == np.float32
        value = chain.constant("scale" if is_scale else "zero_point", array)
        if not is_scale:
            value = chain.cast(value, _FLOAT)
        if repeated is not None:
            indices, axis = repeated
            longer = (*array.shape[:axis], shape_of(real)[axis], *array.shape[axis + 1 :])
            value = chain.add("Gather", [value, indices], _FLOAT, longer, {"axis": axis})
        real = chain.add("Mul" if is_scale else "Sub", [real, value], _FLOAT, shape_of(real))
    return real


def _scaled(chain: Chain, real: onnx_ir.Value, scale: Floats, axis: int | None) -> onnx_ir.Value:
    if scale.ndim and axis is not None:
        scale = scale.reshape(_along(axis, len(shape_of(real))))
    return chain.add("Mul", [real, chain.constant("scale", scale)], _FLOAT, shape_of(real))


def _along(axis: int, rank: int) -> list[int]:
    return [-1 if at == axis else 1 for at in range(rank)]
