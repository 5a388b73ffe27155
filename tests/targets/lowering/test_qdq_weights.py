"""Lowered weights: the same numbers bit for bit, folded as the model loads, fused between integers, and small."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.encodings import Affine, Encoded, encode, integer_table, on_integer_grid
from onnxpress.ir.model_io import load, name_nodes, to_proto_bytes
from onnxpress.ir.quantization import Quantization, clear, note
from onnxpress.ir.verify import verify
from onnxpress.passes.constraints import QuantizationScheme
from onnxpress.targets.base import load_target
from onnxpress.targets.lowering.qdq import lower_qdq
from onnxpress.targets.lowering.report import LoweringReport
from onnxpress.targets.schema import Storage
from tests.support import fill_weights, run, text_model
from tests.targets.lowering.weights import KINDS, encoded_weight, optimized_operators, stored_bytes

_TARGETS = ("host-cpu", "mobile-cpu", "x86-vnni", "x86-avx2")
_UNPACKS = {"Cast", "Gather", "GatherElements", "Reshape", "Slice", "Add", "Sub", "Mul", "Transpose", "Pad"}


def _as_file(model: onnx_ir.Model) -> onnx.ModelProto:
    """Return what is written to a file."""
    return onnx.load_model_from_string(to_proto_bytes(model))


def _read_model(encoded: Encoded, opset: int = 17) -> onnx_ir.Model:
    """y = x + w, so that x = 0 reads the weight."""
    shape = tuple(encoded.shape.numpy())
    dims = ",".join(map(str, shape))
    model = text_model(
        f"""<ir_version: 9, opset_import: ["": {opset}]>
        net (float[{dims}] x) => (float[{dims}] y) {{ [add] y = Add (x, w) }}"""
    )
    fill_weights(model, {"w": np.zeros(shape)})
    encode(model.graph.initializers["w"], encoded)
    return model


def _read(model: onnx_ir.Model, shape: tuple[int, ...]) -> np.ndarray:
    (got,) = run(model, {"x": np.zeros(shape, np.float32)})
    return got


def _lower(model: onnx_ir.Model, target: str = "x86-vnni") -> LoweringReport:
    found = load_target(target)
    report = found.lower(model)
    verify(model)
    assert found.check(model) == []
    return report


# In front of readers that compute in float.


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize("kind", KINDS)
def test_a_float_reader_gets_the_dense_numbers_bit_for_bit_and_the_runtime_folds_them(
    kind: str, axis: int | None
) -> None:
    shape = (12, 10, 3, 3)
    encoded = encoded_weight(kind, shape, axis)
    model = _read_model(encoded)
    report = _lower(model)
    assert np.array_equal(_read(model, shape), encoded.dense())
    assert report.notes == [] and not any(form.endswith("-> dense") for form in report.forms)
    operators, _ = optimized_operators(model)
    assert operators == {"Add": 1}


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_target_stores_every_encoding(kind: str, target: str) -> None:
    shape = (8, 8)
    encoded = encoded_weight(kind, shape)
    model = _read_model(encoded, opset=19)
    report = _lower(model, target)
    assert report.notes == []
    assert np.array_equal(_read(model, shape), encoded.dense())


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(0, 2**16),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_axis(kind: str, dims: list[int], seed: int, data: st.DataObject) -> None:
    shape = tuple(dims)
    axis = data.draw(st.none() | st.integers(0, len(shape) - 1))
    encoded = encoded_weight(kind, shape, axis, seed)
    model = _read_model(encoded, opset=19)
    _lower(model)
    assert np.array_equal(_read(model, shape), encoded.dense())


@given(
    st.sampled_from([kind for kind in KINDS if "float" not in kind]),
    st.sampled_from([(64, 37, 3, 3), (41, 100), (2500,), (3, 50, 17)]),
    st.integers(0, 2**16),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_weights_that_are_large_enough_to_pack(
    kind: str, shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    axis = data.draw(st.none() | st.integers(0, len(shape) - 1))
    encoded = encoded_weight(kind, shape, axis, seed)
    model = _read_model(encoded)
    _lower(model)
    assert np.array_equal(_read(model, shape), encoded.dense())


@pytest.mark.parametrize("axis", [0, 1, None])
@pytest.mark.parametrize(
    "kind",
    [
        "ternary",
        "affine4",
        "affine4-blocks",
        "binary1",
        "codebook3",
        "codebook8",
        "codebook12",
        "codebook16",
    ],
)
def test_large_weights_unpack_in_chains_of_their_own(kind: str, axis: int | None) -> None:
    shape = (301, 437)  # 131,537 codes: over 2^17, and no multiple of 2, 3, 4, 5 or 8
    encoded = encoded_weight(kind, shape, axis)
    model = _read_model(encoded)
    _lower(model)
    assert "Split" not in {node.op_type for node in model.graph}
    assert np.array_equal(_read(model, shape), encoded.dense())
    assert optimized_operators(model)[0] == {"Add": 1}
    assert stored_bytes(model.graph.initializers.values()) < encoded.packed_bytes + 9000


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("affine2", 1.6), ("affine4", 4.0), ("ternary", 1.6), ("ternary-two-scales", 1.6), ("binary1", 1.0),
        ("binary2", 2.0), ("binary3", 3.0), ("power2", 1.6), ("power3", 3.0), ("power4", 4.0), ("power5", 5.0),
        ("power6", 6.0), ("codebook3", 1.6), ("codebook5", 2.6), ("codebook8", 3.0), ("codebook12", 3.6),
        ("codebook16", 4.0), ("codebook17", 4.2), ("codebook100", 7.0), ("affine4-blocks", 4.0 + 32 / 4),
        ("affine8", 8.0), ("affine16", 16.0), ("bfloat16", 16.0), ("float8e5m2", 8.0), ("sparse+ternary", 1.6),
    ],
)  # fmt: skip
def test_what_is_stored_is_what_the_codes_need(kind: str, bits: float) -> None:
    """And scales, a table of what bytes mean, and a few shapes: at most 8 numbers a channel and 6 KB."""
    encoded = encoded_weight(kind, (100, 400), axis=None if "blocks" not in kind else 1)
    model = _read_model(encoded)
    _lower(model)
    stored = stored_bytes(model.graph.initializers.values())
    needed = encoded.size * bits / 8
    assert needed <= stored <= needed + 6000
    assert len(onnx_ir.to_proto(model).SerializeToString()) < stored + 3000


# Where the data is integers.

_CONV = """
    <ir_version: 9, opset_import: ["": 17]>
    net (float[N, 16, 6, 7] x) => (float[N, 24, 6, 7] y)
    { [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      [relu] y = Relu (c) }
"""
_GEMM = """
    <ir_version: 9, opset_import: ["": 17]>
    net (float[N, 144] x) => (float[N, 24] y) { [gemm] y = Gemm <transB = 1> (x, w, b) }
"""
_GEMM_ROWS = _GEMM.replace("<transB = 1>", "")
_MATMUL = """
    <ir_version: 9, opset_import: ["": 17]>
    net (float[N, 144] x) => (float[N, 24] y) { [matmul] y = MatMul (x, w) }
"""
_GROUPED = """
    <ir_version: 9, opset_import: ["": 17]>
    net (float[N, 16, 6, 7] x) => (float[N, 24, 6, 7] y)
    { [conv] y = Conv <pads = [1, 1, 1, 1], group = 4> (x, w, b) }
"""
_STEM = _CONV.replace("N, 16,", "N, 6,")
_LAYERS: dict[str, tuple[str, tuple[int, ...], int, str]] = {
    "conv": (_CONV, (24, 16, 3, 3), 0, "QLinearConv"),
    "stem": (_STEM, (24, 6, 3, 3), 0, "QLinearConv"),
    "grouped": (_GROUPED, (24, 4, 3, 3), 0, "QLinearConv"),
    "gemm": (_GEMM, (24, 144), 0, "QGemm"),
    "gemm-rows": (_GEMM_ROWS, (144, 24), 1, "QGemm"),
    "matmul": (_MATMUL, (144, 24), 1, "QLinearMatMul"),
}
_INTEGER_KINDS = [kind for kind in KINDS if kind.startswith(("affine2", "affine4")) and "blocks" not in kind]
_INTEGER_KINDS += ["affine8", "ternary", "binary1", "power2", "power3", "power4", "sparse+affine4", "sparse+ternary"]
_ROUNDED_KINDS = ["ternary-two-scales", "binary3", "codebook3", "codebook8", "codebook16", "codebook100"]
_FLOAT_KINDS = ["codebook16", "affine4-blocks", "float16", "bfloat16", "affine16", "codebook300", "power6"]


def _quantized(
    layer: str, kind: str, axis: int | None = -1, *, rounded: bool = False, bias: bool = True
) -> onnx_ir.Model:
    """A layer between quantized values, its weight encoded. axis: -1 for the output channels."""
    text, shape, out_axis, _ = _LAYERS[layer]
    model = text_model(text if bias else text.replace("w, b", "w"))
    rng = np.random.default_rng(5)
    fill_weights(model, {"w": np.zeros(shape), "b": rng.standard_normal(24)})
    name_nodes(model)
    encoded = encoded_weight(kind, shape, out_axis if axis == -1 else axis)
    encode(model.graph.initializers["w"], on_integer_grid(encoded, out_axis) if rounded else encoded)
    note(model.graph.inputs[0], Quantization(-2.0, 3.0))
    note(model.graph.outputs[0], Quantization(0.0 if "Relu" in text else -40.0, 40.0))
    return model


def _with_dense_weights(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return a copy with the weights' numbers in place of their encodings."""
    reference = model.clone()
    for value in reference.graph.initializers.values():
        if isinstance(value.const_value, Encoded):
            value.const_value = onnx_ir.tensor(value.const_value.dense(), name=value.name)
    return reference


def _assert_same_function(model: onnx_ir.Model, target: str = "x86-vnni", atol: float = 1e-3) -> LoweringReport:
    """Lower `model` in place and compare with dense weights between the same QuantizeLinear pairs.

    The sums of up to 145 float products differ by rounding, which may move an output over a rounding boundary by one
    step: allowed for 2 % of them.
    """
    reference = _with_dense_weights(model)
    load_target(target).lower(reference)
    report = _lower(model, target)
    rng = np.random.default_rng(7)
    shape = [2 if not isinstance(dim, int) else dim for dim in model.graph.inputs[0].shape or ()]
    feeds = {"x": rng.normal(0.3, 1, shape).astype(np.float32)}
    (expected,), (got,) = run(reference, feeds), run(model, feeds)
    close = np.isclose(got, expected, rtol=0, atol=atol)
    assert close.mean() >= 0.98
    assert np.abs(got - expected).max() <= 80 / 255 * 1.01
    assert np.abs(expected).max() > 0
    return report


@pytest.mark.parametrize("layer", _LAYERS)
@pytest.mark.parametrize("kind", _INTEGER_KINDS)
def test_between_integers_every_encoding_of_integers_runs_in_the_integer_kernel(kind: str, layer: str) -> None:
    model = _quantized(layer, kind)
    report = _assert_same_function(model)
    assert [note for note in report.notes if "padded" not in note] == []
    operators, _ = optimized_operators(model)
    kernel = _LAYERS[layer][3]
    assert operators.pop(kernel) == 1
    assert set(operators) <= {"QuantizeLinear", "DequantizeLinear", "Pad", "Transpose"}  # Transpose: of the image
    assert operators.get("Pad", 0) == (layer == "stem")


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("axis", [-1, None])
@pytest.mark.parametrize("kind", _ROUNDED_KINDS)
def test_a_table_rounded_to_integers_runs_in_the_integer_kernel(kind: str, axis: int | None, target: str) -> None:
    model = _quantized("conv", kind, axis, rounded=True)
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, Encoded) and integer_table(weight, 0) is not None
    assert _assert_same_function(model, target).notes == []
    operators, _ = optimized_operators(model)
    assert operators.pop("QLinearConv") == 1
    assert set(operators) <= {"QuantizeLinear", "DequantizeLinear", "Transpose"}


@pytest.mark.parametrize("layer", ["conv", "gemm"])
@pytest.mark.parametrize("kind", _FLOAT_KINDS)
def test_a_weight_without_integers_computes_in_float_and_is_not_rounded_by_the_runtime(kind: str, layer: str) -> None:
    model = _quantized(layer, kind)
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, Encoded)
    report = _assert_same_function(model)
    assert report.notes == [
        f"'{layer}' computes in float: no 8-bit integers stand for its weight 'w' ({weight.label})",
        f"'{layer}' stays in float: a Clip that changes nothing keeps the runtime from rounding it",
    ]
    operators, held = optimized_operators(model)
    assert set(operators) & {"QLinearConv", "QGemm"} == set()
    assert not set(operators) & (_UNPACKS - {"Reshape"})
    if layer == "gemm":  # the weight of a Conv lies in another order there
        dense = weight.dense()
        assert any(array.shape == dense.shape and np.array_equal(array, dense) for array in held.values())


@pytest.mark.parametrize("kind", ["affine4", "ternary", "codebook3"])
def test_a_gemm_that_writes_float_fuses_with_its_bias_in_int32(kind: str) -> None:
    model = _quantized("gemm", kind, rounded=True)
    clear(model.graph.outputs[0])
    report = _assert_same_function(model, atol=5 / 255 * 1.05 / 2)  # half a step of the bias: data scale * weight scale
    assert report.forms["bias -> int32 DequantizeLinear"] == 1
    assert optimized_operators(model)[0] == {"QuantizeLinear": 1, "QGemm": 1}


@given(st.sampled_from(_INTEGER_KINDS), st.sampled_from(sorted(_LAYERS)), st.sampled_from([-1, None]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_layer_with_one_scale_or_many_and_a_bias_or_none(
    kind: str, layer: str, axis: int | None, bias: bool
) -> None:
    _assert_same_function(_quantized(layer, kind, axis, bias=bias))


def test_a_transposed_conv_takes_its_scales_along_axis_1() -> None:
    model = text_model(
        """<ir_version: 9, opset_import: ["": 17]>
        net (float[N, 24, 5, 6] x) => (float[N, 24, 7, 8] y) { [up] y = ConvTranspose <group = 2> (x, w) }"""
    )
    fill_weights(model, {"w": np.zeros((24, 12, 3, 3))})
    encode(model.graph.initializers["w"], encoded_weight("ternary", (24, 12, 3, 3), 1))
    note(model.graph.inputs[0], Quantization(-2.0, 3.0))
    report = LoweringReport()
    before = _with_dense_weights(model)
    load_target("x86-vnni").lower(before)
    report = load_target("x86-vnni").lower(model)  # which the target calls slow, and no pass does
    assert report.forms["ternary -> unpacked, DequantizeLinear"] == 1
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 24, 5, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(model, feeds)[0], run(before, feeds)[0], rtol=1e-5, atol=1e-5)


def test_a_weight_of_two_readers_of_which_one_is_integer_gets_both_forms_and_is_stored_once() -> None:
    model = text_model(
        """<ir_version: 9, opset_import: ["": 17]>
        net (float[N, 16, 6, 7] x, float[N, 16, 6, 7] z) => (float[N, 64, 6, 7] y, float[N, 64, 6, 7] f)
        { [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w)
          [other] f = Conv <pads = [1, 1, 1, 1]> (z, w) }"""
    )
    fill_weights(model, {"w": np.zeros((64, 16, 3, 3))})
    encoded = encoded_weight("ternary", (64, 16, 3, 3))
    encode(model.graph.initializers["w"], encoded)
    note(model.graph.inputs[0], Quantization(-2.0, 3.0))
    note(model.graph.outputs[0], Quantization(-40.0, 40.0))
    before = _with_dense_weights(model)
    _lower(before)
    report = _lower(model)
    assert sorted(report.forms) == [
        "ternary -> unpacked, DequantizeLinear",
        "ternary -> unpacked, Mul",
        "value -> QuantizeLinear, DequantizeLinear",
    ]
    assert stored_bytes(model.graph.initializers.values()) < encoded.size / 5 + 2000
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 16, 6, 7)).astype(np.float32) for name in ("x", "z")}
    for got, expected in zip(run(model, feeds), run(before, feeds), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    operators, _ = optimized_operators(model)
    assert operators.pop("QLinearConv") == 1 and operators.pop("Conv") == 1
    assert not set(operators) & (_UNPACKS - {"Transpose"})  # of the image


# Near misses.


def test_a_weight_that_is_a_graph_output_stays_dense() -> None:
    encoded = encoded_weight("ternary", (60, 60))
    model = _read_model(encoded)
    model.graph.outputs.append(model.graph.initializers["w"])
    report = _lower(model)
    assert report.notes == [_stored_dense("ternary")]
    assert np.array_equal(run(model, {"x": np.zeros((60, 60), np.float32)})[1], encoded.dense())


def test_an_8_bit_float_raises_the_opset_only_where_the_target_allows_it() -> None:
    encoded = encoded_weight("float8e4m3fn", (8, 8))
    model = _read_model(encoded, opset=17)
    _lower(model)
    assert model.graph.opset_imports[""] == 19
    assert np.array_equal(_read(model, (8, 8)), encoded.dense())
    model = _read_model(encoded, opset=17)
    report = lower_qdq(model, QuantizationScheme(), max_opset=18)
    assert model.graph.opset_imports[""] == 17
    assert report.notes == [_stored_dense("float8e4m3fn")]


@pytest.mark.parametrize("kind", ["ternary", "affine4", "affine8", "codebook16"])
def test_a_runtime_that_does_not_fold_gets_nothing_to_unpack(kind: str) -> None:
    storage = Storage(source="test", folds=False)
    model = _read_model(encoded_weight(kind, (60, 60)))
    lower_qdq(model, QuantizationScheme(), storage)
    assert [node.op_type for node in model.graph] == ["Add"]
    model = _quantized("conv", kind, rounded=True)
    lower_qdq(model, QuantizationScheme(), storage)
    assert not {node.op_type for node in model.graph} & _UNPACKS
    assert optimized_operators(model)[0]["QLinearConv"] == 1


@pytest.mark.parametrize("kind", ["ternary", "affine4-blocks", "float16"])
def test_a_weight_inside_a_body_is_computed_outside(kind: str) -> None:
    encoded = encoded_weight(kind, (60, 60))
    model = text_model(
        """<ir_version: 9, opset_import: ["": 17]>
        net (float[60, 60] x, bool c) => (float[60, 60] y) {
          [if] y = If (c) <then_branch = t () => (float[60, 60] a) { [add] a = Add (x, w) },
                      else_branch = e () => (float[60, 60] b) { [same] b = Identity (x) }>
        }"""
    )
    (then, *_) = model.graph.subgraphs()
    add = next(iter(then))
    value = onnx_ir.val("w", const_value=onnx_ir.tensor(np.zeros((60, 60), np.float32), name="w"))
    then.register_initializer(value)
    add.replace_input_with(1, value)
    encode(value, encoded)
    _lower(model)
    assert stored_bytes(then.initializers.values()) == 0
    feeds = {"x": np.zeros((60, 60), np.float32), "c": np.array(True)}
    assert np.array_equal(run(model, feeds)[0], encoded.dense())
    assert optimized_operators(model)[0] == {"If": 1}


def test_a_shared_scale_does_not_share_the_weight() -> None:
    """Two layers with equal shapes: shapes, tables and scales are stored once, codes are not mixed up."""
    model = text_model(
        """<ir_version: 9, opset_import: ["": 17]>
        net (float[100, 100] x) => (float[100, 100] y, float[100, 100] z)
        { [one] y = Add (x, w) [two] z = Add (x, v) }"""
    )
    fill_weights(model, {"w": np.zeros((100, 100)), "v": np.zeros((100, 100))})
    weights = [encoded_weight("ternary", (100, 100), None, seed) for seed in (1, 2)]
    for name, encoded in zip("wv", weights, strict=True):
        encode(model.graph.initializers[name], encoded)
    _lower(model)
    got = run(model, {"x": np.zeros((100, 100), np.float32)})
    assert all(np.array_equal(array, encoded.dense()) for array, encoded in zip(got, weights, strict=True))
    sizes = sorted(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    assert sizes[-2:] == [3**5 * 5, 4000]  # one table and one row of bytes for both


# Products with blocked weights.


def _product(op: str, encoded: Encoded, rows: str = "N", bias: bool = False) -> onnx_ir.Model:
    depth, width = 1088, 1024
    turned = op == "Gemm"
    call = f"Gemm <transB = 1> (x, w{', b' if bias else ''})" if turned else "MatMul (x, w)"
    model = text_model(
        f"""<ir_version: 9, opset_import: ["": 17]>
        net (float[{rows}, {depth}] x) => (float[{rows}, {width}] y) {{ [product] h = {call} [relu] y = Relu (h) }}"""
    )
    shape = (width, depth) if turned else (depth, width)
    weights = {"w": np.zeros(shape), "b": np.linspace(-1, 1, width)}
    fill_weights(model, weights)
    encode(model.graph.initializers["w"], encoded)
    return model


def _blocked(op: str, bits: int = 4, block: int = 32, **options: Any) -> Affine:
    shape = (1024, 1088) if op == "Gemm" else (1088, 1024)
    weights = np.random.default_rng(0).standard_normal(shape) + 0.2
    return Affine.quantize(weights, bits=bits, axis=1 if op == "Gemm" else 0, block_size=block, **options)


@pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"symmetric": False, "signed": False}])
@pytest.mark.parametrize("block", [32, 128])  # 1088 is 8.5 times 128
@pytest.mark.parametrize(("op", "bias"), [("Gemm", True), ("Gemm", False), ("MatMul", False)])
def test_one_row_times_4_bits_in_blocks_keeps_the_weight_packed(
    op: str, bias: bool, block: int, options: dict[str, bool]
) -> None:
    encoded = _blocked(op, block=block, **options)
    model = _product(op, encoded, bias=bias)
    reference = _with_dense_weights(model)
    report = _lower(model)
    assert report.forms == {"affine4 -> MatMulNBits": 1} and report.notes == []
    assert [(node.name, node.op_type) for node in model.graph] == [("product", "MatMulNBits"), ("relu", "Relu")]
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 1088)).astype(np.float32)}
    (expected,), (got,) = run(reference, feeds), run(model, feeds)
    # Sums of 1088 products in another order: 1088 * 2^-24 of the sum of magnitudes at most.
    assert np.abs(got - expected).max() <= 1088 * 2**-24 * np.abs(feeds["x"]).sum(axis=1).max() * 4
    assert optimized_operators(model)[0] == {"MatMulNBits": 1, "Relu": 1}
    counted = cost(load(_as_file(model)))
    assert (counted.macs, counted.unknown, counted.unsized) == (encoded.size, (), 0)
    scales = encoded.scale.size + (encoded.zero_point is not None) * -(-encoded.scale.size // 2 // 1024) * 1024
    assert counted.params >= encoded.size and abs(counted.params - encoded.size - bias * 1024 - scales) <= 1024


@pytest.mark.parametrize(
    ("encoded", "rows"),
    [
        (_blocked("MatMul"), "16"),
        (_blocked("MatMul", bits=2), "N"),
        (_blocked("MatMul", bits=8), "N"),
        (_blocked("MatMul", block=17), "N"),
        (Affine.quantize(np.ones((1088, 1024)), bits=4, axis=1, block_size=32), "N"),
        (Affine.quantize(np.ones((1088, 1024)), bits=4, axis=1), "N"),
    ],
    ids=["16 rows", "2 bits", "8 bits", "blocks of 17", "blocks along the outputs", "no blocks"],
)
def test_what_that_operator_does_not_run_faster_is_folded_instead(encoded: Affine, rows: str) -> None:
    model = _product("MatMul", encoded, rows)
    report = _lower(model)
    assert not any("NBits" in form for form in report.forms)
    operators, held = optimized_operators(model)
    assert operators == {"MatMul": 1, "Relu": 1}
    assert any(np.array_equal(array, encoded.dense()) for array in held.values())


@pytest.mark.parametrize("kind", ["affine4", "affine4-blocks", "affine4-blocks-asymmetric", "affine4-asymmetric"])
@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_target_that_takes_4_bit_integers_gets_them(kind: str, axis: int | None) -> None:
    encoded = encoded_weight(kind, (12, 8), axis)
    model = _read_model(encoded)
    storage = Storage(source="test", folds=False, int4_dequantize=True)
    report = lower_qdq(model, QuantizationScheme(), storage, max_opset=21)
    verify(model)
    assert report.forms == {"affine4 -> DequantizeLinear": 1}
    assert [node.op_type for node in model.graph] == ["DequantizeLinear", "Add"]
    assert np.array_equal(_read(model, (12, 8)), encoded.dense())
    assert stored_bytes(model.graph.initializers.values()) <= encoded.size / 2 + 4 * encoded.parameter_bits


def test_4_bit_integers_need_whole_blocks_and_their_opset() -> None:
    storage = Storage(source="test", folds=True, int4_dequantize=True)
    model = _read_model(encoded_weight("affine4-blocks", (10, 8)))
    assert lower_qdq(model, QuantizationScheme(), storage, max_opset=21).forms == {
        "affine4 -> short blocks, Cast, Mul": 1
    }
    model = _read_model(encoded_weight("affine4", (10, 8)))
    assert lower_qdq(model, QuantizationScheme(), storage, max_opset=20).forms == {"affine4 -> unpacked, Mul": 1}


# What is counted.


@pytest.mark.parametrize(
    "kind", ["affine2", "affine4", "ternary", "binary1", "power3", "power4", "codebook3", "codebook16"]
)
def test_a_packed_model_read_again_has_the_parameters_of_an_8_bit_one(kind: str) -> None:
    model, plain = _quantized("conv", kind, rounded=True), _quantized("conv", "affine8")
    _lower(model)
    _lower(plain)
    packed, whole = (cost(load(_as_file(each))) for each in (model, plain))
    assert packed.unknown == () and packed.unsized == 0
    assert (packed.params, packed.macs) == (whole.params, whole.macs)
    assert sum(node.params for node in packed.nodes) == packed.params
    assert packed.weight_bytes == stored_bytes(model.graph.initializers.values()) < whole.weight_bytes + 300


def _stored_dense(label: str) -> str:
    return f"stored dense, for lack of a smaller form beside float data: 1 of {label}: 'w'. Leave the pass out"
