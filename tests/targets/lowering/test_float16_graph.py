"""Float16 graphs: real types and Casts, float32 at the interface and where measured numbers overflow."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.encodings import Codebook, Float16, Sparse, encoding_of
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.magnitudes import magnitude_of, note_magnitude
from onnxpress.ir.quantization import Quantization, note, quantization_of
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context
from onnxpress.passes.constraints import Constraints, QuantizationScheme
from onnxpress.passes.quantize.float16 import Float16 as Float16Pass
from onnxpress.targets.lowering.float16_graph import lower_float16_graph
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.schema import Storage
from tests.passes.residual_net import residual_data, residual_net
from tests.support import Array, random_feeds, run, tensor_of, text_model

_STORAGE = Storage(source="test", float16_graph=True, float32_ops=frozenset({"ReduceSum"}))
_RNG = np.random.default_rng(3)
_ONES = np.ones((6, 3), np.float32)
_WEIGHT = _RNG.standard_normal((4, 6)).astype(np.float32)


def _model(body: str, **constants: Array) -> onnx_ir.Model:
    """Return the model of `body`, from x [2, 4] to y; `w` is a float16 weight [4, 6], the others are as given."""
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2,4] x) => (float y) {{ {body} }}
    """)
    arrays = {"w": _WEIGHT, **constants}
    for value in {value for node in model.graph.all_nodes() for value in node.inputs if value is not None}:
        if value.name in arrays and value.producer() is None:
            array = arrays[value.name]
            value.const_value = onnx_ir.tensor(array, name=value.name)
            value.dtype, value.shape = value.const_value.dtype, onnx_ir.Shape(array.shape)
            model.graph.register_initializer(value)
    infer_shapes(model)
    if "w" in model.graph.initializers:
        model.graph.initializers["w"].const_value = Float16.quantize(_WEIGHT)
    return model


def _lower(model: onnx_ir.Model, storage: Storage = _STORAGE) -> LoweringReport:
    before = interface(model)
    report = lower_float16_graph(model, QuantizationScheme(), storage, max_opset=21)
    verify(model)
    assert interface(model) == before
    return report


def _operators(model: onnx_ir.Model) -> list[str]:
    """Return operators with the type of their first output."""
    kinds = {"FLOAT": "f32", "FLOAT16": "f16", "INT64": "i64", "BOOL": "bool"}
    return [f"{node.op_type}:{kinds[node.outputs[0].dtype.name]}" for node in model.graph if node.outputs[0].dtype]


def _node(model: onnx_ir.Model, name: str) -> onnx_ir.Node:
    return next(node for node in model.graph if node.name == name)


def test_weights_and_activations_are_float16_and_the_interface_is_not() -> None:
    model = _model("[a] c = MatMul(x, w) [b] r = Relu(c) [d] y = Add(r, k)", k=np.full(6, 0.5, np.float32))
    expected = run(model, random_feeds(model))[0]
    report = _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Relu:f16", "Add:f16", "Cast:f32"]
    kinds = {value.const_value.dtype for value in model.graph.initializers.values() if value.const_value is not None}
    assert kinds == {onnx_ir.DataType.FLOAT16}
    assert model.graph.outputs[0].name == "y"
    assert report.forms == {
        "node -> float16": 3,
        "float16 -> initializer": 1,
        "Cast to float16": 1,
        "Cast to float32": 1,
    }
    np.testing.assert_allclose(run(model, random_feeds(model))[0], expected, rtol=4e-3, atol=4e-3)


def test_a_model_without_a_float16_weight_is_left_alone() -> None:
    model = _model("[a] y = MatMul(x, v)", v=_WEIGHT)
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    assert _lower(model).forms == {}
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_second_run_finds_nothing_to_do() -> None:
    model = _model("[a] y = MatMul(x, w)")
    _lower(model)
    assert _lower(model).forms == {}


def test_what_overflowed_on_calibration_data_stays_in_float32_and_says_so() -> None:
    model = _model("[a] c = MatMul(x, w) [b] s = Mul(c, c) [d] t = Sqrt(s) [e] y = Relu(t)")
    for name, largest in {"a": 300.0, "b": 90000.0, "d": 300.0, "e": 300.0}.items():
        note_magnitude(_node(model, name).outputs[0], largest)
    report = _lower(model)
    assert _operators(model) == [
        *("Cast:f16", "MatMul:f16", "Cast:f32", "Mul:f32", "Sqrt:f32", "Cast:f16", "Relu:f16", "Cast:f32"),
    ]
    assert report.notes == [
        "'b' (Mul) stays in float32: 's' reached 9e+04 on calibration data, and float16 ends at 65504",
        "'d' (Sqrt) stays in float32: 's' reached 9e+04 on calibration data, and float16 ends at 65504",
    ]


@pytest.mark.parametrize(("largest", "kept"), [(16375.0, False), (16377.0, True)])
def test_the_margin_is_a_quarter_of_the_range(largest: float, kept: bool) -> None:
    model = _model("[a] c = MatMul(x, w) [b] y = Relu(c)")
    note_magnitude(_node(model, "a").outputs[0], largest)
    assert ("Relu:f32" in _operators(model)) is True
    _lower(model)
    assert ("MatMul:f32" in _operators(model)) is kept


def test_operators_of_the_target_stay_in_float32() -> None:
    model = _model("[a] c = MatMul(x, w) [b] y = ReduceSum(c)")
    report = _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Cast:f32", "ReduceSum:f32"]
    assert report.notes[0] == "'b' (ReduceSum) stays in float32: the target computes this operator in float32"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (1e5, "its constant 'k' holds 1e+05, and float16 ends at 65504"),
        (1e-12, "its constant 'k' holds 1e-12, which is zero in float16"),
    ],
)
def test_a_constant_that_float16_cannot_hold_keeps_its_reader(number: float, reason: str) -> None:
    model = _model("[a] c = MatMul(x, w) [b] y = Add(c, k)", k=np.array(number, np.float32))
    report = _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Cast:f32", "Add:f32"]
    assert report.notes[0] == f"'b' (Add) stays in float32: {reason}"


def test_a_tiny_bias_vanishes_beside_the_others() -> None:
    model = _model("[a] y = Gemm(x, w, k)", k=np.full(6, 1e-12, np.float32))
    _lower(model)
    assert "Gemm:f16" in _operators(model)


def test_a_constant_with_readers_on_both_sides_is_there_twice() -> None:
    model = _model("[a] c = MatMul(x, w) [b] t = Add(c, k) [d] s = ReduceSum(t) [e] u = Add(s, k) [f] y = ReduceSum(u)",
                   k=np.ones(6, np.float32))  # fmt: skip
    _lower(model)
    assert tensor_of(model, "k_half").dtype == onnx_ir.DataType.FLOAT16


def test_regions_and_scales_of_a_resize_stay_float32() -> None:
    model = _model("[a] c = MatMul(x, w) [b] u = Unsqueeze(c, axes) [r] y = Resize(u, none, scales)",
                   axes=np.array([0, 1], np.int64), none=np.zeros(0, np.float32),
                   scales=np.array([1, 1, 2, 2], np.float32))  # fmt: skip
    _lower(model)
    resize = _node(model, "r")
    assert [value.dtype.name for value in resize.inputs if value is not None and value.dtype] == [
        *("FLOAT16", "FLOAT", "FLOAT"),
    ]


def test_bodies_and_what_they_read_stay_float32() -> None:
    model = _model("""
        [a] c = MatMul(x, w) [k] k = Constant<value = bool {1}>()
        [if] y = If(k) <then_branch = t () => (float[2,6] p) { [p] p = Relu(c) },
                        else_branch = e () => (float[2,6] q) { [q] q = Abs(c) }>
    """)
    report = _lower(model)
    assert "Cast:f32" in _operators(model)
    assert report.notes[0] == "'if' (If) stays in float32: it has a body"
    run(model, random_feeds(model))


def test_what_is_quantized_stays_for_the_next_step() -> None:
    model = _model("[a] c = MatMul(x, w) [b] r = Relu(c) [d] y = Abs(r)")
    note(_node(model, "b").outputs[0], Quantization(0.0, 1.0))
    _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Relu:f16", "Cast:f32", "Abs:f32"]
    noted = [value.name for node in model.graph for value in node.outputs if quantization_of(value) is not None]
    assert noted == ["r_float"], "QuantizeLinear reads float32, which the Cast makes"


def test_a_product_with_a_float16_weight_may_be_quantized_behind() -> None:
    model = _model("[a] c = MatMul(x, w) [b] y = Abs(c)")
    note(_node(model, "a").outputs[0], Quantization(-1.0, 1.0))
    _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Cast:f32", "Abs:f32"]


def test_what_is_fused_into_integers_stays_with_them() -> None:
    """Casts around the activation of a quantized product would keep it from its kernel."""
    model = _model("[a] c = MatMul(x, w) [q] p = MatMul(c, v) [b] r = Relu(p) [d] y = Abs(r)", v=_ONES)
    note(_node(model, "a").outputs[0], Quantization(-1.0, 1.0))
    note(_node(model, "b").outputs[0], Quantization(0.0, 1.0))
    _lower(model)
    assert _operators(model) == ["Cast:f16", "MatMul:f16", "Cast:f32", "MatMul:f32", "Relu:f32", "Abs:f32"]


def test_zeros_of_a_pruned_weight_stay_zeros() -> None:
    model = _model("[a] y = MatMul(x, w)")
    mask = _RNG.random(_WEIGHT.shape) < 0.5
    model.graph.initializers["w"].const_value = Sparse(mask, Float16.quantize(_WEIGHT))
    _lower(model)
    np.testing.assert_array_equal(tensor_of(model, "w_half").numpy() != 0, mask)


@pytest.mark.parametrize("folds", [True, False])
def test_other_encodings_are_cast_where_they_are_unpacked_and_dense_where_not(folds: bool) -> None:
    model = _model("[a] c = MatMul(x, w) [b] y = MatMul(c, v)", v=np.ones((6, 3), np.float32))
    book = Codebook(_RNG.integers(0, 2, (6, 3)).astype(np.uint8), np.array([0.5, 2.0], np.float32))
    model.graph.initializers["v"].const_value = book
    expected = run(model, random_feeds(model))[0]
    report = _lower(model, _STORAGE.model_copy(update={"folds": folds}))
    assert encoding_of(model.graph.initializers["v"]) is not None if folds else "v" not in model.graph.initializers
    assert ("codebook1 -> dense float16" in report.forms) is not folds
    np.testing.assert_allclose(run(model, random_feeds(model))[0], expected, rtol=1e-2, atol=1e-2)


def test_without_data_the_report_says_that_nothing_was_measured() -> None:
    report = _lower(_model("[a] y = MatMul(x, w)"))
    assert report.notes == ["nothing was measured: values that pass 65504 become infinite. Give calibration data"]


def test_the_pass_measures_where_the_target_computes_in_float16() -> None:
    model = residual_net()
    data = residual_data()
    Float16Pass().run(model, Context(constraints=Constraints(float16_activations=True), data=data))
    (batch,) = data.batches(48)
    relu = next(node for node in model.graph if node.name == "relu")
    probe = residual_net()
    probe.graph.outputs[0] = next(node for node in probe.graph if node.name == "relu").outputs[0]
    expected = float(np.abs(run(probe, batch.feeds)[0]).max())
    assert magnitude_of(relu.outputs[0]) == pytest.approx(expected, rel=1e-5)


def test_the_pass_measures_nothing_elsewhere() -> None:
    model = residual_net()
    Float16Pass().run(model, Context(constraints=Constraints(), data=residual_data()))
    assert all(magnitude_of(value) is None for node in model.graph for value in node.outputs)
