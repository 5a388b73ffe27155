"""Versions of operators, as TensorFlow's own table has them (tools/versioning/op_version.cc)."""

from __future__ import annotations

from typing import Any

import pytest

from onnxpress.targets.litert.flatbuffer import Grid, Tensor
from onnxpress.targets.litert.versions import operator_version

_IMAGE, _OTHER = (1, 5, 7, 6), (1, 5, 7, 1)


def _float(*shape: int) -> Tensor:
    return Tensor(0, "f", shape, "float32")


def _int8(*shape: int, scale: tuple[float, ...] = (0.5,)) -> Tensor:
    return Tensor(0, "q", shape, "int8", Grid(scale))


_F, _Q = _float(*_IMAGE), _int8(*_IMAGE)
_WEIGHT, _CODES = _float(4, 3, 3, 6), _int8(4, 3, 3, 6)
_F5, _F6, _F7 = (_float(*[2] * count) for count in (5, 6, 7))
_SHAPE = Tensor(0, "s", (4,), "int32")
_HALF = Tensor(0, "h", _IMAGE, "float16")

_Row = tuple[str, list[Tensor | None], Tensor, dict[str, Any], int]
_ROWS: list[_Row] = [
    ("CONV_2D", [_F, _WEIGHT, None], _F, {}, 1),
    ("CONV_2D", [_Q, _CODES, None], _Q, {}, 3),
    ("CONV_2D", [_F, _float(4, 3, 3, 2), None], _F, {}, 6),
    ("CONV_2D", [_Q, _int8(4, 3, 3, 2), None], _Q, {}, 6),
    ("DEPTHWISE_CONV_2D", [_F, _WEIGHT, None], _F, {"dilationWFactor": 1, "dilationHFactor": 1}, 1),
    ("DEPTHWISE_CONV_2D", [_F, _WEIGHT, None], _F, {"dilationWFactor": 1, "dilationHFactor": 2}, 2),
    ("DEPTHWISE_CONV_2D", [_F, _WEIGHT, None], _F, {"dilationWFactor": 2, "dilationHFactor": 1}, 2),
    ("DEPTHWISE_CONV_2D", [_Q, _CODES, None], _Q, {"dilationWFactor": 2, "dilationHFactor": 1}, 3),
    ("FULLY_CONNECTED", [_F, _WEIGHT, _F], _F, {"keepNumDims": False}, 1),
    ("FULLY_CONNECTED", [_Q, _CODES, _F], _Q, {"keepNumDims": False}, 4),
    ("FULLY_CONNECTED", [_F, _WEIGHT, _F], _F, {"keepNumDims": True}, 5),
    ("FULLY_CONNECTED", [_Q, _CODES, _F], _Q, {"keepNumDims": True}, 5),
    ("TRANSPOSE_CONV", [_SHAPE, _WEIGHT, _F], _F, {}, 1),
    ("TRANSPOSE_CONV", [_SHAPE, _CODES, _Q], _Q, {}, 2),
    ("TRANSPOSE_CONV", [_SHAPE, _WEIGHT, _F, None], _F, {}, 1),
    ("TRANSPOSE_CONV", [_SHAPE, _WEIGHT, _F, _F], _F, {}, 3),
    ("TRANSPOSE_CONV", [_SHAPE, _CODES, _Q, _F], _Q, {}, 3),
    ("TRANSPOSE_CONV", [_SHAPE, _WEIGHT, _F, _F], _F, {"fusedActivationFunction": 1}, 4),
    ("RESIZE_BILINEAR", [_F, _SHAPE], _F, {"alignCorners": True, "halfPixelCenters": False}, 1),
    ("RESIZE_BILINEAR", [_Q, _SHAPE], _Q, {"alignCorners": True, "halfPixelCenters": False}, 2),
    ("RESIZE_BILINEAR", [_F, _SHAPE], _F, {"alignCorners": False, "halfPixelCenters": True}, 3),
    ("RESIZE_NEAREST_NEIGHBOR", [_F, _SHAPE], _F, {"alignCorners": False, "halfPixelCenters": False}, 1),
    ("RESIZE_NEAREST_NEIGHBOR", [_Q, _SHAPE], _Q, {"alignCorners": False, "halfPixelCenters": False}, 2),
    ("RESIZE_NEAREST_NEIGHBOR", [_Q, _SHAPE], _Q, {"alignCorners": True, "halfPixelCenters": False}, 3),
    ("RESIZE_NEAREST_NEIGHBOR", [_F, _SHAPE], _F, {"alignCorners": False, "halfPixelCenters": True}, 3),
    ("DEQUANTIZE", [_HALF], _F, {}, 3),
    ("DEQUANTIZE", [_Q], _F, {}, 2),
    ("DEQUANTIZE", [_int8(2, 3, scale=(0.5, 0.25))], _F, {}, 5),
    ("QUANTIZE", [_F], _Q, {}, 1),
    ("QUANTIZE", [_Q], _Q, {}, 1),
    ("MUL", [_F, _F], _F, {}, 1),
    ("MUL", [_Q, _Q], _int8(*_IMAGE, scale=(0.26,)), {}, 2),
    ("MUL", [_Q, _Q], _int8(*_IMAGE, scale=(0.25,)), {}, 3),
    ("LEAKY_RELU", [_Q], _Q, {}, 1),
    ("HARD_SWISH", [_Q], _Q, {}, 1),
    ("RESHAPE", [_Q, _SHAPE], _Q, {}, 1),
    ("SPLIT", [_SHAPE, _F], _F, {}, 1),
    ("SPLIT", [_SHAPE, _Q], _Q, {}, 2),
    ("TRANSPOSE", [_F, _SHAPE], _F, {}, 1),
    ("TRANSPOSE", [_F5, _SHAPE], _F5, {}, 4),
    ("TRANSPOSE", [_F6, _SHAPE], _F6, {}, 6),
    ("TRANSPOSE", [_F7, _SHAPE], _F7, {}, 8),
    ("PAD", [_F5, _SHAPE], _F5, {}, 4),
    ("PADV2", [_F5, _SHAPE, _F], _F5, {}, 4),
    ("STRIDED_SLICE", [_F5, _SHAPE, _SHAPE, _SHAPE], _F5, {}, 4),
    ("SUB", [_F, _float(*_OTHER)], _F, {}, 1),
    ("SUB", [_F5, _F5], _F5, {}, 1),
    ("SUB", [_F5, _F], _F5, {}, 3),
    ("MAXIMUM", [_F5, _float()], _F5, {}, 3),
    ("MINIMUM", [_float(1), _F5], _F5, {}, 3),
    ("DIV", [_F5, _float(1)], _F5, {}, 2),
    ("DIV", [_F, _float(1)], _F, {}, 1),
    ("ADD", [_F5, _float(1)], _F5, {}, 1),
    ("RELU_N1_TO_1", [_Q], _Q, {}, 1),
    ("ELU", [_F], _F, {}, 1),
]
_OF_INT8_SINCE_THE_SECOND = (
    "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "GATHER", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MIRROR_PAD", "PAD",
    "PADV2", "RELU", "RELU6", "SOFTMAX", "SPLIT_V", "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE",
)  # fmt: skip


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: f"{row[0]}-{row[-1]}")
def test_a_version_is_that_of_the_table(row: _Row) -> None:
    kind, inputs, output, fields, version = row
    assert operator_version(kind, inputs, [output], fields) == version


@pytest.mark.parametrize("kind", _OF_INT8_SINCE_THE_SECOND)
def test_most_operators_take_int8_since_their_second_version(kind: str) -> None:
    assert operator_version(kind, [_F, _F], [_F], {}) == 1
    assert operator_version(kind, [_Q, _Q], [_int8(*_IMAGE, scale=(9.0,))], {}) == 2


def test_a_file_names_them() -> None:
    import numpy as np

    from tests.targets.litert.files import body

    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from onnxpress.targets.litert import emit_tflite

    weight = np.ones((4, 3, 3, 3), np.float32)
    model = schema.ModelT.InitFromPackedBuf(emit_tflite(body("y = Conv<group = 1>(x, w)", {"w": weight})), 0)
    assert {code.version for code in model.operatorCodes} == {1}
    weight = np.ones((3, 2, 3, 3), np.float32)
    model = schema.ModelT.InitFromPackedBuf(emit_tflite(body("y = ConvTranspose(x, w)", {"w": weight})), 0)
    versions = {code.builtinCode: code.version for code in model.operatorCodes}
    assert versions[schema.BuiltinOperator.TRANSPOSE_CONV] == 3
