"""Local layer errors: equal to what a separate computation in numpy gives."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis.layer_error import LayerError, RoundedLayer, measure_layer_errors
from onnxpress.ir.data import open_data
from onnxpress.ir.encodings import Affine
from onnxpress.ir.linear import Linear, linear_ops
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.quantization import Quantization
from tests.support import Array, text_model

_RANGE = Quantization(-1.5, 2.0)


def _conv_net(opset: int = 17, batch: str = "N") -> onnx_ir.Model:
    model = text_model(
        f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        net (float[{batch}, 3, 5, 7] x) => (float[{batch}, 4, 3, 4] out)
        {{ [conv] y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, x, x)
           [relu] out = Relu (y) }}
        """
    )
    rng = np.random.default_rng(0)
    _set(model, 1, "w", rng.standard_normal((4, 3, 3, 3)))
    _set(model, 2, "b", rng.standard_normal(4))
    return load(model)


def _gemm_net() -> onnx_ir.Model:
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 4] out)
        { [gemm] y = Gemm <transB = 1> (x, x)
          [relu] out = Relu (y) }
        """
    )
    _set(model, 1, "w", np.random.default_rng(0).standard_normal((4, 6)))
    return load(model)


def _set(model: onnx_ir.Model, index: int, name: str, array: Array) -> None:
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array.astype(np.float32), name=name))
    model.graph.register_initializer(value)
    next(iter(model.graph)).replace_input_with(index, value)


def _rounded(model: onnx_ir.Model) -> tuple[RoundedLayer, Linear]:
    (view,) = linear_ops(model)
    weight = Affine.quantize(view.to_stored(view.weight()), bits=4, axis=view.out_axis)
    return RoundedLayer(view, _RANGE, weight), view


def _fake(x: Array) -> Array:
    scale = np.float32(3.5 / 255)
    zero_point = np.rint(1.5 / scale)
    return np.asarray((np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale, np.float32)


@pytest.mark.parametrize(("opset", "batch"), [(13, "N"), (17, "N"), (18, "N"), (21, "4")])
def test_a_conv_has_the_error_that_numpy_computes(opset: int, batch: str) -> None:
    from tests.support import run

    model = _conv_net(opset, batch)
    layer, _ = _rounded(model)
    x = np.random.default_rng(1).standard_normal((12, 3, 5, 7)).astype(np.float32)
    (error,) = measure_layer_errors(model, [layer], open_data({"x": x}, model=model), samples=12)

    plain = _conv_net(opset)
    plain.graph.outputs[0] = next(iter(plain.graph)).outputs[0]
    plain.graph.outputs[0].dtype, plain.graph.outputs[0].shape = (
        onnx_ir.DataType.FLOAT,
        onnx_ir.Shape(["N", 4, 3, 4]),
    )
    (real,) = run(plain, {"x": x})
    plain.graph.initializers["w"].const_value = onnx_ir.tensor(layer.weight.dense(), name="w")
    (rounded,) = run(plain, {"x": _fake(x)})
    difference = (real - rounded).astype(np.float64)
    assert error.sqnr_db == pytest.approx(10 * math.log10((real**2).sum() / (difference**2).sum()), abs=1e-3)
    assert error.shift == pytest.approx(difference.mean(axis=(0, 2, 3)), abs=1e-5)
    means = difference.mean(axis=(2, 3))
    assert error.shift_variance == pytest.approx(means.var(axis=0, ddof=1) / 12, rel=1e-3)


def test_a_gemm_has_one_mean_per_output() -> None:
    model = _gemm_net()
    layer, view = _rounded(model)
    x = np.random.default_rng(1).standard_normal((9, 6)).astype(np.float32)
    (error,) = measure_layer_errors(model, [layer], open_data({"x": x}, model=model), samples=9)
    difference = x @ np.asarray(view.weight()).T - _fake(x) @ layer.weight.dense().T
    assert error.shift == pytest.approx(difference.mean(axis=0), abs=1e-5)
    assert error.shift.shape == (view.out_channels,)


def test_the_model_is_only_read() -> None:
    model = _conv_net()
    before = to_proto_bytes(model)
    layer, _ = _rounded(model)
    x = np.zeros((2, 3, 5, 7), np.float32)
    measure_layer_errors(model, [layer], open_data({"x": x}, model=model), samples=2)
    assert to_proto_bytes(model) == before


def test_an_exact_layer_has_infinite_sqnr() -> None:
    model = _gemm_net()
    (view,) = linear_ops(model)
    grid = np.round(np.asarray(view.weight()) * 10)
    view.weight_value.const_value = onnx_ir.tensor(grid.astype(np.float32), name="w")
    weight = Affine.quantize(view.to_stored(grid.astype(np.float32)), axis=view.out_axis, scale=np.ones(4, np.float32))
    x = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 255.0]], np.float32)
    layer = RoundedLayer(view, Quantization(0.0, 255.0), weight)
    (error,) = measure_layer_errors(model, [layer], open_data({"x": x}, model=model), samples=1)
    assert error.sqnr_db == math.inf and not error.significant_shift().any()


def test_no_layers_need_no_run() -> None:
    model = _gemm_net()
    assert measure_layer_errors(model, [], open_data({"x": np.zeros((1, 6), np.float32)}, model=model), samples=1) == []


def test_a_shift_that_chance_explains_is_shrunk_away() -> None:
    error = LayerError(30.0, np.array([1.0, 0.1, 0.0]), np.array([0.25, 0.04, 0.0]))
    assert error.significant_shift().tolist() == [0.75, 0.0, 0.0]
