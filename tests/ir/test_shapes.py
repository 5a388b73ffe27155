"""Shapes as plain integers: what a batch is, what is unknown, and what fixes it."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.shapes import (
    batch_dimension,
    describe_shape,
    element_count,
    has_shared_batch,
    required_inputs,
    size_bytes,
    static_shape,
)

Dims = list[int | str | None] | None


def _value(dims: Dims, dtype: onnx_ir.DataType | None = onnx_ir.DataType.FLOAT) -> onnx_ir.Value:
    shape = None if dims is None else onnx_ir.Shape(dims)
    return onnx_ir.Value(name="x", shape=shape, type=None if dtype is None else onnx_ir.TensorType(dtype))


def _model(*shapes: Dims) -> onnx_ir.Model:
    inputs = [_value(dims) for dims in shapes]
    for index, value in enumerate(inputs):
        value.name = f"x{index}"
    return onnx_ir.Model(onnx_ir.Graph(inputs, [], nodes=[]), ir_version=8)


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ([], ()),
        (["N", 3, 5], (4, 3, 5)),
        ([None, 3], (4, 3)),
        ([2, 3], (2, 3)),
        (["N"], (4,)),
        ([0, 3], (0, 3)),
        (["N", "C"], None),
        ([2, None, 3], None),
        (None, None),
    ],
)
def test_static_shape(dims: Dims, expected: tuple[int, ...] | None) -> None:
    assert static_shape(_value(dims), batch=4) == expected


def test_element_count_and_bytes() -> None:
    assert element_count(_value(["N", 3, 5]), batch=2) == 30
    assert element_count(_value([])) == 1
    assert element_count(_value(["N", "L"])) is None
    assert size_bytes(_value(["N", 3, 5]), batch=2) == 120
    assert size_bytes(_value([3, 5], onnx_ir.DataType.INT4)) == 8
    assert size_bytes(_value([3, 5], onnx_ir.DataType.STRING)) is None
    assert size_bytes(_value([3, 5], None)) is None
    assert size_bytes(_value(None)) is None


@pytest.mark.parametrize(
    ("shapes", "shared", "batch"),
    [
        ([["N", 3]], True, None),
        ([[None, 3], ["N", 5]], True, None),
        ([[4, 3]], True, 4),
        ([[4, 3], [4, 5]], True, 4),
        ([[1, 3], ["N", 5]], True, 1),
        ([[1, 3], [4, 5]], True, 1),
        ([["N", 3], None], True, None),
        ([["N", 3], []], False, 1),
        ([["N", 3], [2, 5]], False, 1),
        ([["T", 3], ["I", 5]], False, 1),
        ([], True, None),
    ],
)
def test_batch_of_inputs(shapes: list[Dims], shared: bool, batch: int | None) -> None:
    model = _model(*shapes)
    assert has_shared_batch(model) is shared
    assert batch_dimension(model) == batch


def test_input_with_default_is_not_required() -> None:
    model = _model(["N", 3], [2, 5])
    model.graph.inputs[1].const_value = onnx_ir.tensor([[0.0] * 5] * 2, name="x1")
    model.graph.register_initializer(model.graph.inputs[1])
    assert required_inputs(model) == [model.graph.inputs[0]]
    assert batch_dimension(model) is None


def test_describe_shape() -> None:
    assert describe_shape(onnx_ir.Shape(["N", 3, None])) == "[N, 3, ?]"
    assert describe_shape((2, "C")) == "[2, C]"
    assert describe_shape(()) == "[]"
    assert describe_shape(None) == "?"
