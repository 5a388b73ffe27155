"""Legality: each rule fires on the one thing it is about, and the runtime itself agrees that it matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

from onnxpress.targets.base import load_target
from onnxpress.targets.legality import CHECKS, Illegal, check_model
from onnxpress.targets.runtimes.onnxruntime_cpu import example_feeds, inspect_kernels, smoke_run
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.support import Array, random_feeds, run, text_model

Constant = Array | onnx_ir.Tensor[Any]

_RNG = np.random.default_rng(7)
_CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "so": np.array(0.11, np.float32),
    "s6": np.array(6 / 255, np.float32),
    "s7": np.array(7 / 255, np.float32),
    "s1": np.array([0.03], np.float32),
    "z": np.array(128, np.uint8),
    "z0": np.array(0, np.uint8),
    "z2": np.array(2, np.uint8),
    "zs": np.array(0, np.int8),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "w": _RNG.integers(-63, 64, (6, 6, 3, 3)).astype(np.int8),
    "wu": _RNG.integers(0, 256, (6, 6, 3, 3)).astype(np.uint8),
    "wdouble": np.ones((6, 6, 3, 3), np.float64),
    "wf": _RNG.standard_normal((6, 6, 3, 3)).astype(np.float32),
    "ws": _RNG.uniform(0.001, 0.003, 6).astype(np.float32),
    "wzu": np.full(6, 128, np.uint8),
    "wz": np.zeros(6, np.int8),
    "b": np.arange(6, dtype=np.int32) * 1000,
    "m": _RNG.integers(-63, 64, (6, 4)).astype(np.int8),
    "ms": _RNG.uniform(0.001, 0.003, 4).astype(np.float32),
    "mf": _RNG.standard_normal((6, 4)).astype(np.float32),
    "mz": np.zeros(4, np.int8),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "mb": np.full(4, 0.5, np.float32),
    "l": _RNG.integers(-63, 64, (6, 3)).astype(np.int8),
    "lu": _RNG.integers(0, 256, (6, 3)).astype(np.uint8),
}
_CONSTANTS["bs"] = (_CONSTANTS["s"] * _CONSTANTS["ws"]).astype(np.float32)
_CONSTANTS["bs_off"] = (_CONSTANTS["bs"] * 1.1).astype(np.float32)

_IMAGE, _ROWS = "float[1,6,9,9]", "float[3,6]"

_CONV = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wd = DequantizeLinear<axis = 0>(w, ws)
    c = Conv<pads = [1, 1, 1, 1]>(xd, wd)
    cq = QuantizeLinear(c, so, z)
    y = DequantizeLinear(cq, so, z)
"""
_CONV_RELU = _CONV.replace("cq = QuantizeLinear(c, so, z)", "r = Relu(c) cq = QuantizeLinear(r, so, z0)")
_CONV_CLIP = _CONV.replace("cq = QuantizeLinear(c, so, z)", "r = Clip(c, zero, six) cq = QuantizeLinear(r, s6, z0)")
_CONV_BIAS = _CONV.replace(
    "c = Conv<pads = [1, 1, 1, 1]>(xd, wd)",
    "bd = DequantizeLinear<axis = 0>(b, bs) c = Conv<pads = [1, 1, 1, 1]>(xd, wd, bd)",
)
_RESIDUAL = (
    _CONV.replace("y = DequantizeLinear(cq, so, z)", "")
    + """
    cd = DequantizeLinear(cq, so, z)
    a = Add(cd, xd)
    aq = QuantizeLinear(a, so, z)
    y = DequantizeLinear(aq, so, z)
"""
)
_SIGNED = _RESIDUAL.replace("z)", "zs)")
_GEMM = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    md = DequantizeLinear<axis = 1>(m, ms, mz)
    c = Gemm(xd, md, mb)
    cq = QuantizeLinear(c, so, z)
    y = DequantizeLinear(cq, so, z)
"""
_MATMUL = _GEMM.replace("Gemm(xd, md, mb)", "MatMul(xd, md)")
_LEFT = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    ld = DequantizeLinear(lu, s, z)
    c = MatMul(ld, xd)
    cq = QuantizeLinear(c, so, z)
    y = DequantizeLinear(cq, so, z)
"""
_POOL = """
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    c = AveragePool<kernel_shape = [2, 2]>(xd)
    cq = QuantizeLinear(c, so, z)
    y = DequantizeLinear(cq, so, z)
"""


def _model(body: str, data: str = _IMAGE, **constants: Constant) -> onnx_ir.Model:
    """Return the model of `body`, from x to y, with the constants that it reads."""
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "acme" : 1]>
        g ({data} x) => (float y) {{ {body} }}
    """)
    known: dict[str, Constant] = {**_CONSTANTS, **constants}
    for value in {value for node in model.graph for value in node.inputs if value is not None}:
        if value.name in known:
            given = known[value.name]
            tensor = given if isinstance(given, onnx_ir.Tensor) else onnx_ir.tensor(given, name=value.name)
            value.const_value, value.dtype = tensor, tensor.dtype
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def _found(model: onnx_ir.Model) -> list[Illegal]:
    return check_model(model, load_target("x86-vnni").profile)


def _is_refused(model: onnx_ir.Model) -> bool:
    try:
        smoke_run(model, example_feeds(model))
    except RuntimeRefusalError:
        return True
    return False


def _is_unfused(model: onnx_ir.Model) -> bool:
    """Whether the runtime kept more Q/DQ than the two at the borders."""
    operators = inspect_kernels(model).operators
    return operators["QuantizeLinear"] + operators["DequantizeLinear"] > 2


def _is_refused_or_unfused(model: onnx_ir.Model) -> bool:
    """What onnxruntime refused up to version 1.31, it computes in float from 1.32 on."""
    return _is_refused(model) or _is_unfused(model)


def _is_changed(model: onnx_ir.Model) -> bool:
    """Whether the runtime's optimizations move the result by more than one step of 0.11."""
    import onnxruntime

    feeds = random_feeds(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    step = 0.0011 if "QuantizeLinear" not in {node.op_type for node in model.graph} else 0.111
    return bool(np.abs(session.run(None, feeds)[0] - run(model, feeds)[0]).max() > step)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model that keeps every rule, and the same with one thing broken.

    seen: what the runtime does with the broken one and not with the other; None where only a clock tells.
    """

    rule: str
    good: str
    bad: str
    reason: str
    node: str
    data: str = _IMAGE
    seen: Callable[[onnx_ir.Model], bool] | None = _is_unfused


_INT4 = onnx_ir.Tensor(
    np.zeros((6, 6, 3, 3), np.dtype("int8")).astype(onnx_ir.DataType.INT4.numpy()),
    dtype=onnx_ir.DataType.INT4,
)

_CASES = [
    _Case(
        "unknown-domain",
        "y = Relu(x)",
        "y = acme.Relu(x)",
        "unknown domain 'acme'",
        "Relu_0",
        seen=_is_refused,
    ),
    _Case(
        "conv-type",
        "i = Cast<to = 1>(x) y = Conv(i, wf)",
        "i = Cast<to = 11>(x) y = Conv(i, wdouble)",
        "input 0 is float64, may be float16, float32",
        "Conv_1",
        seen=_is_refused,
    ),
    _Case(
        "no-kernel",
        "i = Cast<to = 1>(x) y = Erf(i)",
        "i = Cast<to = 12>(x) y = Erf(i)",
        "",
        "Erf_1",
        seen=None,
    ),
    _Case(
        "scalar-scale",
        _RESIDUAL,
        _RESIDUAL.replace("(x, s,", "(x, s1,").replace("(xq, s,", "(xq, s1,"),
        "'s1' has shape [1], must be a scalar",
        "Add_6",
        seen=_is_refused_or_unfused,
    ),
    _Case(
        "product-weight-axis",
        _MATMUL,
        _MATMUL.replace("axis = 1>(m, ms, mz)", "axis = 0>(m, ws)"),
        "its weight has scales along axis 0, must be 1",
        "MatMul_3",
        data=_ROWS,
        seen=_is_refused_or_unfused,
    ),
    _Case(
        "product-weight-axis",
        _GEMM.replace("Gemm(", "Gemm<transB = 1>(").replace("axis = 1>(m,", "axis = 0>(mt,"),
        _GEMM.replace("Gemm(", "Gemm<transB = 1>(").replace("axis = 1>(m, ms, mz)", "axis = 1>(mt, ws, wz)"),
        "its weight has scales along axis 1, must be 0",
        "Gemm_3",
        data=_ROWS,
        seen=None,
    ),
    _Case(
        "product-weight-axis",
        _LEFT,
        _LEFT.replace("DequantizeLinear(lu, s, z)", "DequantizeLinear<axis = 0>(lu, ws, wzu)"),
        "its left weight has scales along axis 0, must have one scale",
        "MatMul_3",
        data=_ROWS,
        seen=_is_refused_or_unfused,
    ),
    _Case(
        "left-weight",
        _LEFT,
        _LEFT.replace("(lu, s, z)", "(l, s)"),
        "its left weight goes into DequantizeLinear as int8, must be uint8",
        "MatMul_3",
        data=_ROWS,
    ),
    _Case(
        "left-weight",
        _LEFT,
        "ld = DequantizeLinear<axis = 0>(l, ws) y = MatMul(ld, x)",
        "its left operand is a quantized weight and its data are not quantized",
        "MatMul_1",
        data=_ROWS,
        seen=lambda model: bool(inspect_kernels(model).unfused),
    ),
    _Case(
        "left-weight",
        _LEFT,
        _LEFT.replace("MatMul", "Gemm").replace("Linear(lu, s, z)", "Linear<axis = 0>(lu, ws, wzu)"),
        "its left weight has several scales, must have one",
        "Gemm_3",
        data=_ROWS,
    ),
    _Case(
        "conv-weight-axis",
        _CONV,
        _CONV.replace("axis = 0", "axis = 1"),
        "its weight has scales along axis 1, must be 0",
        "Conv_3",
        seen=_is_changed,
    ),
    _Case(
        "float-weight-between-integers",
        _CONV,
        _CONV.replace("Conv<pads = [1, 1, 1, 1]>(xd, wd)", "Conv<pads = [1, 1, 1, 1]>(xd, wf)"),
        "its weight is float32 between integers",
        "Conv_3",
        seen=_is_changed,
    ),
    _Case(
        "weight-only-product",
        _MATMUL,
        "md = DequantizeLinear<axis = 1>(m, ms) y = MatMul(x, md)",
        "its weight is quantized and its data are not",
        "MatMul_1",
        data=_ROWS,
        seen=_is_changed,
    ),
    _Case(
        "weight-only-conv",
        _CONV,
        "wd = DequantizeLinear<axis = 0>(w, ws) y = Conv<pads = [1, 1, 1, 1]>(x, wd)",
        "its weight is quantized and its data are not",
        "Conv_1",
        seen=lambda model: bool(inspect_kernels(model).unfused),
    ),
    _Case(
        "weight-type",
        _CONV,
        _CONV.replace("(w, ws)", "(w4, ws)"),
        "its weight goes into DequantizeLinear as int4, must be int8",
        "Conv_3",
    ),
    _Case(
        "weight-type",
        _CONV,
        _CONV.replace("(w, ws)", "(wu, ws, wzu)"),
        "its weight goes into DequantizeLinear as uint8, must be int8",
        "Conv_3",
        seen=None,
    ),
    _Case(
        "open-output",
        _CONV,
        "\n".join(_CONV.splitlines()[:4]) + " y = Conv<pads = [1, 1, 1, 1]>(xd, wd)",
        "its output 'y' is also read in float",
        "Conv_3",
        seen=lambda model: bool(inspect_kernels(model).unfused),
    ),
    _Case(
        "open-output",
        _RESIDUAL,
        _RESIDUAL.replace("a = Add(cd,", "c2 = QuantizeLinear(c, s, z) c3 = DequantizeLinear(c2, s, z) a = Add(c3,"),
        "its output 'c' is quantized in 2 ways",
        "Conv_3",
    ),
    _Case(
        "relu-zero-point",
        _CONV_RELU,
        _CONV_RELU.replace("z0)", "z)"),
        "its output has zero point 128, must be 0",
        "Relu_4",
    ),
    _Case(
        "clip-range",
        _CONV_CLIP,
        _CONV_CLIP.replace("s6", "s7"),
        "its output has the range [0, 7], must lie inside [0, 6]",
        "Clip_4",
    ),
    _Case(
        "clip-range",
        _CONV_CLIP,
        _CONV_CLIP.replace("z0", "z2"),
        "its output has the range [-0.0470588, 5.95294], must lie inside [0, 6]",
        "Clip_4",
    ),
    _Case(
        "bias-scale",
        _CONV_BIAS,
        _CONV_BIAS.replace("bs)", "bs_off)"),
        "the scale of its bias is off from data scale x weight scale by a factor of up to 1.1",
        "Conv_4",
    ),
    _Case(
        "signed-residual",
        _RESIDUAL,
        _SIGNED,
        "the signed activation 'xd' is read 2 times",
        "DequantizeLinear_1",
    ),
    _Case(
        "gemm-zero-point",
        _GEMM,
        _GEMM.replace("(m, ms, mz)", "(m, ms)"),
        "its weight has no zero point",
        "Gemm_3",
        _ROWS,
    ),
    _Case(
        "gemm-beta",
        _GEMM,
        _GEMM.replace("Gemm(", "Gemm<beta = 2.0>("),
        "beta is 2, must be 1",
        "Gemm_3",
        _ROWS,
    ),
    _Case(
        "transposed-conv",
        _CONV,
        _CONV.replace("Conv<", "ConvTranspose<").replace("axis = 0", "axis = 1"),
        "is quantized on both sides",
        "ConvTranspose_3",
    ),
    _Case(
        "loses-in-integers",
        _POOL.replace("AveragePool", "MaxPool").replace("so", "s"),
        _POOL,
        "is quantized on both sides",
        "AveragePool_2",
        seen=None,
    ),
    _Case(
        "float-pad",
        "xq = QuantizeLinear(x, s, z) pq = Pad(xq, pads, z) y = DequantizeLinear(pq, s, z)",
        "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) p = Pad(xd, pads) "
        "pq = QuantizeLinear(p, s, z) y = DequantizeLinear(pq, s, z)",
        "is quantized on both sides",
        "Pad_2",
    ),
    _Case(
        "dynamic-conv",
        _CONV,
        "q, t, p = DynamicQuantizeLinear(x) i = ConvInteger<pads = [1, 1, 1, 1]>(q, w) y = Cast<to = 1>(i)",
        "ConvInteger is used",
        "ConvInteger_1",
        seen=None,
    ),
    _Case(
        "nbits-accuracy-level",
        "y = com.microsoft.MatMulNBits<K = 6, N = 4, bits = 4, block_size = 16>(x, packed, scales)",
        "y = com.microsoft.MatMulNBits<K = 6, N = 4, bits = 8, block_size = 16>(x, packed, scales)",
        "8 bits at accuracy_level 0",
        "MatMulNBits_0",
        seen=None,
    ),
]


def _build(body: str, data: str) -> onnx_ir.Model:
    model = _model(body, data, mt=np.ascontiguousarray(_CONSTANTS["m"].T), w4=_INT4)
    if body.startswith("i = Cast<"):
        model.graph[0].outputs[0].dtype = onnx_ir.DataType(model.graph[0].attributes.get_int("to"))
    return model


@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case.rule}-{case.reason[:20]}")
def test_each_rule_fires_on_its_one_clause(case: _Case) -> None:
    good, bad = _build(case.good, case.data), _build(case.bad, case.data)
    rules = {rule.id: rule for rule in load_target("x86-vnni").profile.rules}
    assert _found(good) == []
    found = [each for each in _found(bad) if each.rule == case.rule]
    assert [each.node for each in found] == [case.node]
    assert case.reason in found[0].reason
    assert (found[0].severity, found[0].advice) == (rules[case.rule].severity, rules[case.rule].advice)
    if case.seen is not None:
        assert (case.seen(good), case.seen(bad)) == (False, True)


def test_every_rule_of_every_profile_has_a_case() -> None:
    profiles = [load_target(name).profile for name in ("x86-vnni", "x86-avx2", "mobile-cpu")]
    assert {rule.id for profile in profiles for rule in profile.rules} == {case.rule for case in _CASES}
    assert {rule.check for profile in profiles for rule in profile.rules} <= set(CHECKS)


def test_a_finding_reads_as_one_line() -> None:
    found = _found(_build(_CONV_RELU.replace("z0)", "z)"), _IMAGE))
    assert str(found[0]) == (
        "node 'Relu_4' (Relu): its output has zero point 128, must be 0 [relu-zero-point, measured: the Conv "
        "before it is left in float, 0.75 times the float model's speed]. "
        "Quantize the output of Relu with the lowest integer as zero point."
    )


def test_versions_outside_the_range_are_illegal() -> None:
    model = _model("y = Relu(x)")
    model.opset_imports[""] = 27
    model.ir_version = 14
    source = "measured on onnxruntime 1.31.1; docs/Versioning.md: full support starts at opset 7"
    ir_source = "measured on onnxruntime 1.31.1; 1.32.0 loads up to 14"
    assert [str(found) for found in _found(model)] == [
        f"the model: opset 27 lies outside 7 to 26 [opset, {source}]. "
        "Convert it with onnx.version_converter to opset 26.",
        f"the model: IR version 14 lies above 13 [ir-version, {ir_source}]. Export it with ir_version=13.",
    ]
    assert {found.severity for found in _found(model)} == {"illegal"}


def test_a_finding_is_written_down_without_its_node_which_is_no_part_of_what_it_says() -> None:
    (found,) = _found(_model("y = acme.Relu(x)"))
    assert found.at is not None and found.at.op_type == "Relu"
    assert found.to_json() == {
        "node": "Relu_0",
        "op_type": "Relu",
        "rule": "unknown-domain",
        "severity": "illegal",
        "reason": "unknown domain 'acme'",
        "source": found.source,
        "advice": found.advice,
    }
    assert found == dataclasses.replace(found, at=None) and "at=" not in repr(found)


@pytest.mark.parametrize("name", ["x86-vnni", "gpu"])
def test_what_the_runtime_saves_after_its_own_optimizations_has_known_domains(name: str, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "saved.onnx")
    data = onnx_ir.to_proto(_model("y = Conv(x, wb)", wb=np.ones((16, 6, 3, 3), np.float32))).SerializeToString()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    saved = onnx_ir.load(tmp_path / "saved.onnx")
    found = check_model(saved, load_target(name).profile)
    assert [each for each in found if each.rule == "unknown-domain"] == []


def test_a_weight_only_gemm_needs_no_zero_point() -> None:
    """Nothing would be fused with one: what is said about it is that its data are float."""
    model = _build("md = DequantizeLinear<axis = 1>(m, ms) y = Gemm(x, md, mb)", _ROWS)
    assert [found.rule for found in _found(model)] == ["weight-only-product"]


@pytest.mark.parametrize(("factor", "said"), [(100.0, "100"), (0.01, "100"), (0.5, "2"), (1.5, "1.5")])
def test_a_wrong_bias_scale_is_named_by_its_factor_whichever_way_it_is_off(factor: float, said: str) -> None:
    model = _model(_CONV_BIAS, bs=(_CONSTANTS["bs"] * factor).astype(np.float32))
    (found,) = (each for each in _found(model) if each.rule == "bias-scale")
    assert found.reason.endswith(f" by a factor of up to {said}")


@pytest.mark.parametrize(("factor", "fires"), [(1.005, False), (1.02, True), (0.995, False), (0.98, True)])
def test_the_runtime_s_tolerance_for_a_bias_scale_is_one_in_a_hundred(factor: float, fires: bool) -> None:
    model = _model(_CONV_BIAS, bs=(_CONSTANTS["bs"] * factor).astype(np.float32))
    assert ("bias-scale" in {found.rule for found in _found(model)}) == fires


def test_a_float_weight_between_integers_is_called_by_its_type() -> None:
    """It is not always float32."""
    model = _model(f"{_CONV}".replace("(xd, wd)", "(xd, wh)"), wh=_CONSTANTS["wf"].astype(np.float16))
    (found,) = (each for each in _found(model) if each.rule == "float-weight-between-integers")
    assert found.reason == "its weight is float16 between integers"


def test_bodies_of_control_flow_are_visited() -> None:
    model = text_model("""
        <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] a) { a = acme.Relu(x) },
                else_branch = e () => (float[2] b) { b = Relu(x) }
            >
        }
    """)
    assert [(found.op_type, found.rule) for found in _found(model)] == [("Relu", "unknown-domain")]


def test_an_output_of_the_model_is_read_in_float() -> None:
    model = _model(_CONV)
    assert _found(model) == []
    conv = model.graph[3]
    conv.outputs[0].shape = onnx_ir.Shape([1, 6, 9, 9])
    conv.outputs[0].dtype = onnx_ir.DataType.FLOAT
    model.graph.outputs.append(conv.outputs[0])
    assert [(found.rule, found.node) for found in _found(model)] == [("open-output", "Conv_3")]
    assert inspect_kernels(model).unfused == ("Conv_3",)


def test_a_packed_weight_counts_as_stored() -> None:
    """Decoded by plain operators that the runtime folds, it fuses as a stored one does."""
    packed = _CONV.replace(
        "wd = DequantizeLinear<axis = 0>(w, ws)",
        "wc = Cast<to = 3>(wi) wd = DequantizeLinear<axis = 0>(wc, ws)",
    )
    model = _model(packed, wi=_CONSTANTS["w"].astype(np.int32))
    model.graph[2].outputs[0].dtype = onnx_ir.DataType.INT8
    assert _found(model) == []
    assert not _is_unfused(model)
    alone = _model(
        "wc = Cast<to = 3>(wi) wd = DequantizeLinear<axis = 0>(wc, ws) y = Conv<pads = [1, 1, 1, 1]>(x, wd)",
        wi=_CONSTANTS["w"].astype(np.int32),
    )
    assert [found.rule for found in _found(alone)] == ["weight-only-conv"]


def test_the_kernel_rule_names_operator_types_and_version() -> None:
    model = _build("i = Cast<to = 12>(x) y = Erf(i)", _IMAGE)
    (found,) = _found(model)
    assert found.reason.startswith("no kernel for Erf of opset 13 on uint32 in onnxruntime ")
    with pytest.raises(RuntimeRefusalError, match="Erf"):
        smoke_run(model)


def test_an_unknown_opset_of_a_domain_is_no_crash() -> None:
    model = _model("y = com.microsoft.Gelu(x)")
    assert _found(model) == []


@pytest.mark.parametrize(
    "body",
    [
        "y = Conv(x, w0)",
        "wd = DequantizeLinear(w0, s) y = Conv(x, wd)",
        "xd = DequantizeLinear(x, s) wd = DequantizeLinear<axis = 3>(w, ws) y = Conv(xd, wd, s1)",
        "xd = DequantizeLinear(x, ws) wd = DequantizeLinear(w, s)bd = DequantizeLinear(b, ms) y = Conv(xd, wd, bd)",
        "xd = DequantizeLinear(x, s) wd = DequantizeLinear(w, s)bd = DequantizeLinear(b, ms) y = Conv(xd, wd, bd)",
        "c = Clip(x, s, w) q = QuantizeLinear(c, none, z) y = DequantizeLinear(q, none, z)",
        "c = Clip(x, x, six) q = QuantizeLinear(c, x) y = DequantizeLinear(q, x)",
        "c = Clip(x) q = QuantizeLinear(c, s6, z) y = DequantizeLinear(q, s6, z)",
        "y = MatMulNBits(x)",
        "y = Gemm<beta = 0.5>(x, x)",
    ],
)
def test_odd_models_are_no_crash(body: str) -> None:
    """Invalid graphs too: another check speaks about those."""
    for target in ("x86-vnni", "x86-avx2", "mobile-cpu"):
        check_model(_model(body, none=np.array(0, np.float32), w0=np.array(3, np.int8)), load_target(target).profile)


def test_a_node_that_is_refused_is_reported_once() -> None:
    model = _build("i = Cast<to = 11>(x) y = Conv(i, wdouble)", _IMAGE)
    assert [found.rule for found in _found(model)] == ["conv-type"]  # and not no-kernel as well


def test_bodies_of_functions_are_visited_once_under_their_own_opsets() -> None:
    model = text_model("""
        <ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        g (float[2] x) => (float[2] y) { t = mine.Twice(x) y = mine.Twice(t) }
        <domain: "mine", opset_import: ["" : 21, "acme" : 1]>
        Twice (a) => (b) { [bad] b = acme.Add(a, a) }
    """)
    assert [(found.node, found.rule, found.reason) for found in _found(model)] == [
        ("bad", "unknown-domain", "unknown domain 'acme'")
    ]


def test_calls_of_functions_are_their_bodies() -> None:
    model = text_model("""
        <ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        g (float[2] x) => (float[2] y) { y = mine.Twice(x) }
        <domain: "mine", opset_import: ["" : 21]>
        Twice (a) => (b) { b = Add(a, a) }
    """)
    assert _found(model) == []


def test_a_long_chain_before_a_quantizer_is_not_followed() -> None:
    """Each step reads the last one twice: following all of them would never end."""
    body = "v0 = Mul(x, x)" + "".join(f" v{i + 1} = Mul(v{i}, v{i})" for i in range(3000))
    body += " q = QuantizeLinear(v3000, s, zs) d = DequantizeLinear(q, s, zs) a = Add(d, d) y = Relu(a)"
    assert [found.rule for found in _found(_model(body))] == ["signed-residual"]
