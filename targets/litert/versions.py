"""Which version of an operator a file asks for: the least that computes it, so that an older runtime refuses the file
instead of misreading it, and loads every file that it can.

Source: tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc, GetBuiltinOperatorVersion, for what is written
here: float32, int8 on both sides, and constants of float16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.targets.litert.flatbuffer import Tensor

__all__ = ["operator_version"]

_Tensors = Sequence["Tensor | None"]
_Fields = Mapping[str, Any]
_Special = Callable[[_Tensors, _Tensors, _Fields], int]

# Since when their data may be int8; those that are not named took it from the first.
_SECOND = (
    "ABS", "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CONCATENATION", "DEPTH_TO_SPACE",
    "DEQUANTIZE", "EXP", "GATHER", "GELU", "LOG", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN",
    "MINIMUM", "MIRROR_PAD", "MUL", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT", "SQUARED_DIFFERENCE",
    "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
)  # fmt: skip
_INT8: dict[str, int] = {
    **dict.fromkeys(_SECOND, 2),
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "FULLY_CONNECTED": 4,
}
_DATA = {"SPLIT": 1, "TRANSPOSE_CONV": 2}  # where the data are, if not first
_PLAIN_AXES = 4  # more came later, for most operators


def operator_version(kind: str, inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    """Return the version of an operator, 1 or more. kind: its name in `BuiltinOperator`. fields: of its options."""
    special = _SPECIAL.get(kind)
    found = 0 if special is None else special(inputs, outputs, fields)
    if found:
        return found
    data = inputs[_DATA.get(kind, 0)]
    return _INT8.get(kind, 1) if data is not None and data.is_integer else 1


# What else counts than the type of the data; 0 where nothing of it is there.


def _conv_2d(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    data, weight = _shapes(inputs[:2])
    return 6 if weight[-1] != data[-1] else 0  # groups


def _depthwise_conv_2d(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    is_dilated = fields.get("dilationWFactor", 1) != 1 or fields.get("dilationHFactor", 1) != 1
    return 2 if is_dilated and not _is_integer(inputs[0]) else 0


def _fully_connected(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    return 5 if fields.get("keepNumDims") else 0


def _transpose_conv(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    if fields.get("fusedActivationFunction"):
        return 4
    return 3 if len(inputs) == 4 and inputs[3] is not None else 0  # a bias


def _mul(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    first, second, product = (0.0 if each is None or each.grid is None else each.grid.scale[0]
                              for each in (*inputs[:2], outputs[0]))  # fmt: skip
    return 3 if first and second and product and first * second / product >= 1 else 0


def _dequantize(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    (data,) = inputs
    if data is None or data.dtype == "float16":
        return 3
    return 5 if data.grid is not None and len(data.grid.scale) > 1 else 0


def _resize_bilinear(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    return 3 if fields.get("halfPixelCenters") else 0


def _resize_nearest(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    return 3 if fields.get("halfPixelCenters") or fields.get("alignCorners") else 0


def _transpose(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
    (axes,) = map(len, _shapes(inputs[:1]))
    return {5: 4, 6: 6}.get(axes, 8 if axes > 6 else 0)


def _many_axes(version: int) -> _Special:
    """More than four axes."""
    return lambda inputs, outputs, fields: version if len(_shapes(inputs[:1])[0]) > _PLAIN_AXES else 0


def _broadcast(version: int) -> _Special:
    """Two shapes, one of them of more than four axes."""

    def find(inputs: _Tensors, outputs: _Tensors, fields: _Fields) -> int:
        first, second = _shapes(inputs[:2])
        return version if first != second and max(len(first), len(second)) > _PLAIN_AXES else 0

    return find


_SPECIAL: dict[str, _Special] = {
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "DEQUANTIZE": _dequantize,
    "DIV": _broadcast(2),
    "FULLY_CONNECTED": _fully_connected,
    "MAXIMUM": _broadcast(3),
    "MINIMUM": _broadcast(3),
    "MUL": _mul,
    "PAD": _many_axes(4),
    "PADV2": _many_axes(4),
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "STRIDED_SLICE": _many_axes(4),
    "SUB": _broadcast(3),
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transpose_conv,
}


def _is_integer(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_integer


def _shapes(tensors: _Tensors) -> list[tuple[int, ...]]:
    return [() if each is None else each.shape for each in tensors]
