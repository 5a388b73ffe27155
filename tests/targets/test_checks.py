"""Every clause of a check has a near miss: two graphs that differ in it alone, and only one of them breaks the rule.

The rules' own cases, per target, show what a rule is about. These show where it stops.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import pytest

from onnxpress.targets.legality import CHECKS
from onnxpress.targets.schema import Rule
from onnxpress.targets.site import Site
from tests.support import Array, text_model

_CONSTANTS: dict[str, Array] = {
    "s": np.array(0.5, np.float32),
    "s1": np.array([0.5], np.float32),
    "s3": np.array([0.5, 0.25, 0.125], np.float32),
    "s4": np.full(4, 0.5, np.float32),
    "s6": np.full(6, 0.5, np.float32),
    "z": np.array(128, np.uint8),
    "z0": np.array(0, np.uint8),
    "z1": np.array([128], np.uint8),
    "zs": np.array(0, np.int8),
    "w": np.ones((6, 4, 3, 3), np.int8),
    "wf": np.ones((6, 4, 3, 3), np.float32),
    "w2": np.ones((6, 4), np.int8),
    "wn": np.ones((4, 3, 3, 3), np.int8),
    "m": np.ones((4, 6), np.int8),
    "mt": np.ones((6, 4), np.int8),
    "m4": np.ones((4, 6), ml_dtypes.int4),
    "mu": np.ones((4, 6), np.uint8),
    "l": np.ones((4, 4), np.int8),
    "lu": np.ones((4, 4), np.uint8),
    "b": np.zeros(6, np.float32),
    "b6": np.zeros(6, np.int32),
    "blocks": np.ones((12, 6), np.int8),
    "by4": np.ones((3, 6), np.float32),
    "by5": np.ones((5, 6), np.float32),
    "by2x2": np.ones((6, 3), np.float32),
    "early": np.ones((1, 12, 6), np.float32),
    "blocks3": np.ones((2, 12, 6), np.int8),
    "true": np.array(True),
    "false": np.array(False),
    "ratio": np.array(0.5, np.float32),
    "low": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "trip": np.array(3, np.int64),
    "scales": np.ones(4, np.float32),
    "none": np.zeros(0, np.float32),
}

_IMAGE, _ROWS = "float[1,4,9,9]", "float[3,4]"
_QX = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
_CONV = f"{_QX} wd = DequantizeLinear<axis = 0>(w, s6) [n] c = Conv(xd, wd)"
_QUANTIZE = "q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z)"


def _model(body: str, data: str, opset: int, constants: dict[str, Array]) -> onnx_ir.Model:
    """Return the model of `body`, from x to y. Only constants have types and shapes."""
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : {opset}, "ai.onnx" : {opset}, "other" : 1]>
        g ({data} x) => (float y) {{ {body} }}
    """)
    known = {**_CONSTANTS, **constants}
    for value in {value for node in model.graph.all_nodes() for value in node.inputs if value is not None}:
        if value.name in known and value.producer() is None:
            tensor = onnx_ir.tensor(known[value.name], name=value.name)
            value.const_value, value.dtype, value.shape = tensor, tensor.dtype, onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    return model


def _ask(
    check: str,
    body: str,
    *,
    data: str = _IMAGE,
    opset: int = 21,
    constants: dict[str, Array] | None = None,
    output: str = "",
    **keys: Any,
) -> str | None:
    """Ask a check about the node [n] of `body`. output: a value that the model gives as well. keys: of the rule."""
    model = _model(body, data, opset, constants or {})
    values = {value.name: value for node in model.graph for value in node.outputs}
    if output:
        model.graph.outputs.append(values[output])
    rule = Rule(id="rule", check=check, source="test", advice="none", **keys)
    node = next(node for node in model.graph.all_nodes() if node.name == "n")
    return CHECKS[check].ask(Site(node, rule, opset))


# onnxruntime's fusions.


@pytest.mark.parametrize(
    ("step", "zero_point", "broken"),
    [
        (6 / 254.6, 0, False),  # 0.4 steps beyond the upper limit
        (6 / 254.4, 0, True),
        (6 / 254.6, 128, True),  # and half the range below the lower one
    ],
)
def test_a_clip_s_integers_may_reach_half_a_step_beyond_its_limits(step: float, zero_point: int, broken: bool) -> None:
    constants: dict[str, Array] = {"st": np.array(step, np.float32), "zp": np.array(zero_point, np.uint8)}
    found = _ask("clip-range", "[n] c = Clip(x, low, six) y = QuantizeLinear(c, st, zp)", constants=constants)
    assert (found is not None) == broken


@pytest.mark.parametrize(("limit", "broken"), [(0.2, False), (0.3, True)])
def test_half_a_step_at_the_lower_limit_too(limit: float, broken: bool) -> None:
    """Steps of 0.5: 0.2 is 0.4 of one, 0.3 is 0.6."""
    constants = {"floor": np.array(limit, np.float32), "wide": np.array(1e6, np.float32)}
    found = _ask("clip-range", "[n] c = Clip(x, floor, wide) y = QuantizeLinear(c, s, z0)", constants=constants)
    # The upper limit is broken in either: integers end at 127.5, and nothing is said about that.
    assert (found is not None) == broken


@pytest.mark.parametrize(("limits", "broken"), [("min = 0.0, max = 127.5", False), ("min = 0.0, max = 100.0", True)])
def test_the_limits_of_a_clip_were_attributes_before_opset_11(limits: str, broken: bool) -> None:
    found = _ask("clip-range", f"[n] c = Clip<{limits}>(x) y = QuantizeLinear(c, s, z0)", opset=10)
    assert (found is not None) == broken


def test_without_a_zero_point_integers_are_0_to_255() -> None:
    assert _ask("activation-zero-point", "[n] c = Relu(x) y = QuantizeLinear(c, s)") is None
    assert _ask("clip-range", "[n] c = Clip(x, low, top) y = QuantizeLinear(c, s)",
                constants={"top": np.array(127.5, np.float32)}) is None  # fmt: skip
    assert _ask("clip-range", "[n] c = Clip(x, low, six) y = QuantizeLinear(c, s)") == (
        "its output has the range [0, 127.5], must lie inside [0, 6]"
    )


_BIAS = f"{_QX} wd = DequantizeLinear<axis = 0>(w, s6) bd = DequantizeLinear(b6, bs) [n] y = Conv(xd, wd, bd)"


@pytest.mark.parametrize(("off", "broken"), [(1.009, False), (1.011, True), (0.991, False), (0.989, True)])
def test_a_bias_scale_may_be_off_by_the_tolerance(off: float, broken: bool) -> None:
    found = _ask("bias-scale", _BIAS, constants={"bs": np.full(6, 0.25 * off, np.float32)}, tolerance=0.01)
    assert (found is not None) == broken


@pytest.mark.parametrize(
    ("scales", "weights", "reason"),
    [
        (1, 6, None),
        (6, 6, None),
        (6, 1, None),
        (4, 6, "its bias has 4 scales, must have 6"),
    ],
)
def test_a_bias_has_one_scale_or_as_many_as_its_weight(scales: int, weights: int, reason: str | None) -> None:
    constants = {"bs": np.full(scales, 0.25, np.float32), "s6": np.full(weights, 0.5, np.float32)}
    assert _ask("bias-scale", _BIAS, constants=constants, tolerance=0.01) == reason


def test_a_stored_integer_that_two_read_is_no_activation() -> None:
    shared = "y = Add(c, c)"
    assert _ask("shared-signed", f"q = QuantizeLinear(x, s, zs) [n] c = DequantizeLinear(q, s, zs) {shared}") == (
        "the signed activation 'c' is read 2 times"
    )
    assert _ask("shared-signed", f"[n] c = DequantizeLinear(w, s, zs) {shared}") is None


def test_beta_multiplies_nothing_without_a_bias_and_is_no_matter_without_integers() -> None:
    weight = "wd = DequantizeLinear(m, s)"
    assert _ask("beta", f"{weight} [n] y = Gemm<beta = 2.0>(x, wd, b)", data=_ROWS) == "beta is 2, must be 1"
    assert _ask("beta", f"{weight} [n] y = Gemm<beta = 2.0>(x, wd)", data=_ROWS) is None
    assert _ask("beta", "[n] y = Gemm<beta = 2.0>(x, m, b)", data=_ROWS) is None


def test_a_transposed_gemm_is_not_rewritten_for_its_float_data() -> None:
    assert _ask("float-data", "wd = DequantizeLinear(mt, s) [n] y = Gemm<transB = 1>(x, wd)", data=_ROWS) is None
    assert _ask("float-data", "wd = DequantizeLinear(m, s) [n] y = Gemm(x, wd)", data=_ROWS) is not None
    assert _ask("float-data", "wd = DequantizeLinear(m, s) [n] y = MatMul(x, wd)", data=_ROWS) is not None


@pytest.mark.parametrize(
    ("into", "out", "reason"),
    [
        ("s, z", "s, z", None),
        ("s1, z", "s, z", "'s1' has shape [1], must be a scalar"),
        ("s, z1", "s, z", "'z1' has shape [1], must be a scalar"),
        ("s, z", "s1, z", "'s1' has shape [1], must be a scalar"),
        ("s, z", "s, z1", "'z1' has shape [1], must be a scalar"),
    ],
)
def test_scales_and_zero_points_are_scalars_on_both_sides(into: str, out: str, reason: str | None) -> None:
    body = f"xd = DequantizeLinear(xq, {into}) [n] c = Add(xd, xd) y = QuantizeLinear(c, {out})"
    assert _ask("true-scalar", f"xq = QuantizeLinear(x, s, z) {body}") == reason


@pytest.mark.parametrize(
    ("between", "output", "broken"),
    [
        ("c = Conv(xd, wf)", "", True),
        ("a = Conv(xd, wf) c = Relu(a)", "", True),
        ("a = Conv(xd, wf) c = Clip(a, low, six)", "", True),
        ("a = Conv(xd, wf) c = Sigmoid(a)", "", False),
        ("a = Conv(xd, wf) c = Relu(a)", "a", False),  # what the model gives stays float
        ("a = Conv(xd, wf) c = Relu(a) e = Abs(a)", "", False),
    ],
)
def test_a_float_weight_is_looked_at_behind_its_activation(between: str, output: str, broken: bool) -> None:
    found = _ask("float-weight", f"{_QX} [n] {between} {_QUANTIZE}", output=output)
    assert (found is not None) == broken


def test_the_type_of_a_weight_matters_beside_quantized_data_only() -> None:
    weight = "wd = DequantizeLinear<axis = 1>(mu, s6)"
    inputs = {1: frozenset({"int8"})}
    assert _ask("weight-type", f"{_QX} {weight} [n] y = MatMul(xd, wd)", data=_ROWS, inputs=inputs) is not None
    assert _ask("weight-type", f"{weight} [n] y = MatMul(x, wd)", data=_ROWS, inputs=inputs) is None


def test_a_left_weight_is_fused_as_uint8_and_only_then_its_scales_matter() -> None:
    body = f"{_QX} ld = DequantizeLinear<axis = 0>(lu, s4) [n] y = MatMul(ld, xd)"
    assert _ask("weight-axis", body, data="float[4,5]") == (
        "its left weight has scales along axis 0, must have one scale"
    )
    assert _ask("weight-axis", body.replace("lu", "l"), data="float[4,5]") is None
    assert _ask("weight-axis", body.replace("(ld, xd)", "(ld, x)"), data="float[4,5]") is None


@pytest.mark.parametrize(("axis", "reason"), [(0, None), (-4, None), (-3, "1, must be 0"), (1, "1, must be 0")])
def test_an_axis_may_count_from_the_end(axis: int, reason: str | None) -> None:
    found = _ask("weight-axis", _CONV.replace("axis = 0", f"axis = {axis}"))
    assert found == (reason and f"its weight has scales along axis {reason}")


@pytest.mark.parametrize(
    ("attributes", "broken"),
    [
        ("bits = 8", True),
        ("bits = 8, accuracy_level = 1", True),
        ("bits = 8, accuracy_level = 4", False),
        ("bits = 4", False),
        ("bits = 2, accuracy_level = 4", False),
    ],
)
def test_matmulnbits_computes_fast_with_4_bits_or_at_level_4(attributes: str, broken: bool) -> None:
    found = _ask("accuracy-level", f"[n] y = other.MatMulNBits<{attributes}>(x, x, x)")
    assert (found is not None) == broken


# Support tables.


@pytest.mark.parametrize(
    ("op", "broken"), [("Det", True), ("ai.onnx.Det", True), ("Relu", False), ("other.Det", False)]
)
def test_known_operators_are_those_of_the_default_domain(op: str, broken: bool) -> None:
    assert (_ask("known", f"[n] y = {op}(x)", known=frozenset({"Relu"})) is not None) == broken


@pytest.mark.parametrize(("given", "broken"), [(", false", False), ("", False), (", true", True), (", flag", True)])
def test_an_input_that_must_be_false_may_not_be_computed(given: str, broken: bool) -> None:
    body = f"flag = IsNaN(x) [n] y = Dropout(x, ratio{given})"
    found = _ask("false-input", body, positions=(2,))
    assert found == (f"input 2 {given[2:]!r} must be constant and false" if broken else None)


@pytest.mark.parametrize(("rest", "output", "broken"), [("", "", False), ("j = Abs(i)", "", True), ("", "i", True)])
def test_an_output_is_used_where_it_is_read_or_given(rest: str, output: str, broken: bool) -> None:
    body = f"[n] y, i = MaxPool<kernel_shape = [2, 2]>(x) {rest}"
    found = _ask("outputs", body, output=output, limit=1)
    assert found == ("its output 'i' is used, only 1 may be" if broken else None)


def _branches(then: str, other: str) -> str:
    return f"""
        c = Constant<value = bool {{1}}>()
        [n] y = If(c) <then_branch = a () => ({then}) {{ {then.split()[-1]} = Relu(x) }},
                       else_branch = b () => ({other}) {{ {other.split()[-1]} = Abs(x) }}>
    """


@pytest.mark.parametrize(
    ("then", "other", "reason"),
    [
        ("float[1,4] t", "float[1,5] e", None),
        ("float[1,4] t", "float[4] e", "'t' has rank 2 and 'e' rank 1"),
        ("float[1,4] t", "float[1,4] t", "both branches name their output 't'"),
    ],
)
def test_branches_differ_in_names_and_not_in_ranks(then: str, other: str, reason: str | None) -> None:
    assert _ask("branches", _branches(then, other)) == reason


def _loop(carried: str, after: str, count: str = "trip", collected: bool = False) -> str:
    outputs, scanned = ("y, ys", ", float[] u") if collected else ("y", "")
    last = "u = ReduceMax<keepdims = 0>(v)" if collected else ""
    return f"""
        c = Constant<value = bool {{1}}>() size = Size(x)
        [n] {outputs} = Loop({count}, c, x) <body = l (int64 i, bool k, {carried} v) => (bool k2, {after} w{scanned})
            {{ k2 = Identity(k) w = Concat<axis = 0>(v, v) {last} }}>
    """


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_loop("float[1,4]", "float[1,4]"), None),
        (_loop("float[1,4]", "float[2,4]"), "the carried 'v' changes its shape from [1, 4] to [2, 4]"),
        (_loop("float[1,4]", "float[N,4]"), "the carried 'v' changes its shape from [1, 4] to [N, 4]"),
        (_loop("float[1,4]", "float[1,4]", "size"), None),
        (_loop("float[1,4]", "float[1,4]", "trip", collected=True), None),
        (
            _loop("float[1,4]", "float[1,4]", "size", collected=True),
            "it collects outputs, and how often it runs is computed",
        ),
    ],
)
def test_a_loop_keeps_its_shapes_and_collects_as_often_as_is_written(body: str, reason: str | None) -> None:
    assert _ask("loop", body) == reason


@pytest.mark.parametrize("domain", ["", "ai.onnx."])
def test_an_attribute_that_is_not_given_has_its_default_under_both_names_of_the_domain(domain: str) -> None:
    body = f"[n] y = {domain}Resize(x, none, scales)"
    assert _ask("attributes", body, attributes={"mode": ("linear",)}) == "mode is nearest, may be linear"
    assert _ask("attributes", body, attributes={"mode": ("nearest",)}) is None


def test_a_type_of_the_border_may_not_lie_between_two_casts() -> None:
    types = frozenset({"uint8"})
    model = _model("u = Cast<to = 2>(x) [n] y = Cast<to = 1>(u)", _IMAGE, 21, {})
    model.graph[0].outputs[0].dtype = onnx_ir.DataType.UINT8
    rule = Rule(id="rule", check="border-types", source="test", advice="none", types=types)
    assert CHECKS["border-types"].ask(Site(model.graph[1], rule, 21)) == "'u' is uint8 inside the model"
    assert _ask("border-types", "[n] y = Cast<to = 1>(x)", data="uint8[1,4]", types=types) is None
    assert _ask("border-types", "[n] y = Abs(x)", data="uint8[1,4]", types=types) == "'x' is uint8 outside a Cast"


@pytest.mark.parametrize(("opset", "fires"), [(19, True), (1, False)])
def test_a_check_looks_at_no_node_whose_attributes_are_others(opset: int, fires: bool) -> None:
    """What is not given counts with its default, where the operator has one at that opset."""
    from onnxpress.targets.site import is_meant

    rule = Rule(id="rule", check="present", source="test", advice="none", where={"mode": "nearest"})
    model = _model("[n] y = Resize(x, none, scales)", _IMAGE, opset, {})
    assert is_meant(Site(model.graph[0], rule, opset)) == fires
    linear = _model('[n] y = Resize<mode = "linear">(x, none, scales)', _IMAGE, opset, {})
    assert not is_meant(Site(linear.graph[0], rule, opset))


# Explicit quantization.


@pytest.mark.parametrize(
    ("zero_point", "reason"),
    [
        ("zs", None),
        ("zn", "its zero point is 3, must be 0"),
        ("zc", "its zero point 'zc' is computed, must be constant zeros"),
        ("zf", None),  # decoded from constants, whatever they are
    ],
)
def test_a_zero_point_is_stored_and_zero(zero_point: str, reason: str | None) -> None:
    body = f"zc = Abs(x) zf = Cast<to = 3>(zs) [n] y = QuantizeLinear(x, s, {zero_point})"
    assert _ask("zero-point", body, constants={"zn": np.array(3, np.int8)}) == reason


_TWO = f"{_QX} wd = DequantizeLinear(w, s) a = Conv(xd, wd) e = Conv(xd, wd)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{_TWO} [n] y = Add(a, e)", "its other operand 'e' is not quantized"),
        (f"{_TWO} [n] y = Add(a, xd)", None),
        (f"{_TWO} [n] y = Add(a, x)", "its other operand 'x' is not quantized"),
        (f"{_TWO} [n] y = Add(x, x)", None),
        (f"{_TWO} f = Abs(a) [n] y = Add(a, x)", None),  # what others read too is not added up in place
    ],
)
def test_of_an_add_s_operands_one_is_fused_and_the_other_quantized(body: str, reason: str | None) -> None:
    assert _ask("residual", body) == reason


@pytest.mark.parametrize(("attributes", "broken"), [("", True), ("<group = 1>", True), ("<group = 2>", False)])
def test_channels_of_a_group_are_not_called_narrow(attributes: str, broken: bool) -> None:
    found = _ask("narrow", f"wd = DequantizeLinear(wn, s) [n] y = Conv{attributes}(x, wd)", limit=16)
    assert found == ("it has 4 and 3 channels, out and in, fewer than 16" if broken else None)
    assert _ask("narrow", f"wd = DequantizeLinear(wn, s) [n] y = Conv{attributes}(x, wd)", limit=4) is None


@pytest.mark.parametrize(
    ("data", "scale", "reason"),
    [
        ("blocks", "by4", None),
        ("blocks", "by5", "12 channels along axis 0 are no multiple of 5 blocks"),
        ("blocks", "by2x2", "its blocks lie along the axes 0, 1, must be one"),
        ("blocks3", "early", "its blocks lie along axis 0 of 3, must be one of the last two"),
        ("blocks3", "middle", None),
        ("blocks3", "odd", "6 channels along axis 2 are no multiple of 4 blocks"),
        ("blocks3", "both", "its blocks lie along axis 0 of 3, must be one of the last two"),
    ],
)
def test_blocks_lie_along_one_of_the_last_two_axes_and_fill_it(data: str, scale: str, reason: str | None) -> None:
    constants = {
        "middle": np.ones((2, 3, 6), np.float32),
        "odd": np.ones((2, 12, 4), np.float32),
        "both": np.ones((1, 5, 6), np.float32),
    }
    assert _ask("block-axis", f"[n] y = DequantizeLinear({data}, {scale})", constants=constants) == reason


def test_a_block_size_is_that_of_some_types() -> None:
    keys: dict[str, Any] = {"types": frozenset({"int4"}), "numbers": (64,)}
    assert _ask("block-size", "[n] y = DequantizeLinear<block_size = 2>(m4, by4)", **keys) == (
        "its blocks are of 2, may be of 64"
    )
    assert _ask("block-size", "[n] y = DequantizeLinear<block_size = 2>(m, by4)", **keys) is None


@pytest.mark.parametrize(
    ("call", "broken"),
    [
        ("QuantizeLinear<output_dtype = 22>(x, s)", True),  # int4
        ("QuantizeLinear<output_dtype = 3>(x, s)", False),
        ("QuantizeLinear(x, s)", False),  # uint8, as ONNX says
    ],
)
def test_output_dtype_says_what_is_quantized_to(call: str, broken: bool) -> None:
    found = _ask("forbidden-quantized", f"[n] q = {call} y = DequantizeLinear(q, s)", types=frozenset({"int4"}))
    assert found == ("it is of int4" if broken else None)
    unsaid = _ask("forbidden-quantized", f"[n] q = {call} y = DequantizeLinear(q, s)", types=frozenset({"uint8"}))
    assert (unsaid is not None) == (call == "QuantizeLinear(x, s)")


@pytest.mark.parametrize(("call", "broken"), [("(blocks, by4)", True), ("(blocks, s)", False), ("(w2, s6)", False)])
def test_a_scale_of_several_axes_means_blocks_without_a_block_size_too(call: str, broken: bool) -> None:
    found = _ask("block-type", f"[n] y = DequantizeLinear{call}", types=frozenset({"int4"}))
    assert found == ("int8 is scaled in blocks, only int4 may be" if broken else None)


_ANY = """
    [n] c = Constant<value = float {1.0}>() d = Neg(x)
    i = If(true) <then_branch = t () => (float a) { a = Identity(c) }, else_branch = e () => (float b) { b = Neg(c) }>
    l = Loop(trip, true, c) <body = turn (int64 k, bool go, float h) => (bool on, float m)
        { on = Identity(go) m = Neg(h) }>
"""


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_without_operators_looks_at_any_node(check: str) -> None:
    """A rule need not name its operators, and then meets nodes without inputs, and bodies."""
    model = _model(_ANY, _IMAGE, 17, {})
    rule = Rule(
        id="any", check=check, source="s", advice="a", limit=1, positions=(0,), numbers=(1,), tolerance=0.1,
        inputs={0: frozenset({"int8"}), 1: frozenset({"int8"})}, domains=frozenset({""}), types=frozenset({"int8"}),
    )  # fmt: skip
    for node in model.graph.all_nodes():
        reason = CHECKS[check].ask(Site(node, rule, 17))
        assert reason is None or reason
