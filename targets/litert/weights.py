"""Constant weights as a .tflite file stores them.

    int8, one scale for each output channel    beside int8 data; else behind a DEQUANTIZE that is folded as it loads
    float16                                    behind a DEQUANTIZE likewise
    float32                                    everything else

An encoding of fewer bits becomes int8 where small integers stand for its levels exactly (`integer_table`): the file
has no smaller form that the fast kernels take. Folding was measured on LiteRT 2.3.0 with XNNPACK: a convolution
behind such a DEQUANTIZE takes the time of a dense one (3x3, 32 to 64 channels: 0.311 against 0.310 ms).
Source of the int8 rules: https://ai.google.dev/edge/litert/models/quantization_spec
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.ir.encodings import Affine, Dense, Encoded, Float16, Sparse, as_levels, encoding_of, integer_table
from onnxpress.ir.linear import Linear

__all__ = ["IntegerWeight", "describe_form", "float16_weight", "integer_bias", "integer_weight", "with_room_for_bias"]

_Array = npt.NDArray[Any]
_Floats = npt.NDArray[np.float32]

_LARGEST_BIAS = 2**30  # half the int32 range: the accumulator needs the rest


@dataclasses.dataclass(frozen=True)
class IntegerWeight:
    """codes: int8 [out, in/groups, *kernel]. scale: float32 [out], > 0."""

    codes: npt.NDArray[np.int8]
    scale: _Floats


def integer_weight(linear: Linear) -> IntegerWeight | None:
    """Return the weight's own numbers as integers, bit for bit; None where it is float, or has none."""
    encoded = encoding_of(linear.weight_value)
    if encoded is None:
        return None
    found = _integers(encoded, linear.out_axis)
    if found is None:
        return None
    codes, scale = found
    per_channel = np.broadcast_to(np.asarray(scale, np.float32).reshape(-1), (linear.out_channels,))
    return IntegerWeight(linear.from_stored(codes), np.ascontiguousarray(per_channel))


def _integers(encoded: Encoded, out_axis: int) -> tuple[npt.NDArray[np.int8], _Floats] | None:
    if isinstance(encoded, Sparse) and isinstance(encoded.inner, Affine):
        encoded = encoded.filled()
    if isinstance(encoded, Affine) and encoded.bits == 8:
        has_zero_point = encoded.zero_point is not None and encoded.zero_point.any()
        if not encoded.signed or has_zero_point or encoded.block_size is not None:
            return None
        return (encoded.codes, encoded.scale) if encoded.axis in (None, out_axis) else None
    levels = as_levels(encoded)
    table = None if levels is None else integer_table(levels, out_axis)
    if levels is None or table is None:
        return None
    return levels.look_up(table.table), table.scale


def float16_weight(linear: Linear) -> npt.NDArray[np.float16] | None:
    """Return the weight [out, in/groups, *kernel] where it is encoded as float16."""
    encoded = _unmasked(encoding_of(linear.weight_value))
    if not isinstance(encoded, Float16):
        return None
    return np.asarray(linear.from_stored(encoded.codes)).view(np.float16)


def _unmasked(encoded: Encoded | None) -> Encoded | None:
    return encoded.filled() if isinstance(encoded, Sparse) else encoded


def describe_form(linear: Linear, *, integer: bool) -> str | None:
    """Return a line for the record, such as `ternary -> int8`; None for a weight without an encoding."""
    encoded = encoding_of(linear.weight_value)
    if encoded is None or isinstance(encoded, Dense):
        return None
    if integer:
        return f"{encoded.label} -> int8"
    if isinstance(_unmasked(encoded), Float16):
        return f"{encoded.label} -> float16, DEQUANTIZE"
    return f"{encoded.label} -> " + ("dense" if integer_weight(linear) is None else "int8, DEQUANTIZE")


def with_room_for_bias(weight: IntegerWeight, bias: _Array | None, data_scale: float) -> IntegerWeight:
    """Return the weight, coarser in channels of almost no weight, whose bias would not fit 32 bits at their scale."""
    if bias is None:
        return weight
    least = (np.abs(bias.astype(np.float64)) / (data_scale * _LARGEST_BIAS)).astype(np.float32)
    if not np.any(weight.scale < least):
        return weight
    scale = np.maximum(weight.scale, least)
    factor = (weight.scale / scale).reshape(-1, *[1] * (weight.codes.ndim - 1))
    return IntegerWeight(np.rint(weight.codes * factor).astype(np.int8), scale)


def integer_bias(
    weight: IntegerWeight, bias: _Array | None, data_scale: float
) -> tuple[npt.NDArray[np.int32], _Floats]:
    """Return the bias [out] as int32, and its scales [out]: kernels add it to the sums of products as it is."""
    scale = (np.float32(data_scale) * weight.scale).astype(np.float32)
    if bias is None:
        return np.zeros(scale.shape, np.int32), scale
    return np.rint(bias.astype(np.float64) / scale).astype(np.int32), scale
