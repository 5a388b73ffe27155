"""BatchNormalization folds into the linear operator before it, in every layout, and only where that is legal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.errors import UsageError
from onnxpress.ir.model_io import load
from onnxpress.ir.quantization import Quantization, note, quantization_of
from onnxpress.passes.base import Context
from onnxpress.passes.cleanup.fold_batchnorm import FoldBatchnorm
from tests.passes.cleanup.check import Outcome, apply
from tests.support import random_feeds, run

Array = npt.NDArray[Any]
_TOLERANCE = 1e-5
_NORM = ("gamma", "beta", "mean", "var")


@dataclasses.dataclass
class _Layer:
    """One linear operator and the BatchNormalization behind it."""

    op_type: str
    data: tuple[int | str, ...]
    weight: tuple[int, ...]
    channels: int
    bias: tuple[int, ...] | None = None
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    norm: dict[str, Any] = dataclasses.field(default_factory=dict)
    opset: int = 17
    dtype: type[np.floating] = np.float32
    weight_on_left: bool = False
    seed: int = 0

    def arrays(self) -> dict[str, Array]:
        """Draw the constants, from distributions like a trained net's."""
        rng = np.random.default_rng(self.seed)
        arrays = {
            "w": rng.standard_normal(self.weight),
            "gamma": rng.uniform(-2, 2, self.channels),
            "beta": rng.standard_normal(self.channels),
            "mean": rng.standard_normal(self.channels),
            "var": rng.uniform(0.01, 4, self.channels),
        }
        if self.bias is not None:
            arrays["b"] = rng.standard_normal(self.bias)
        return {name: np.asarray(array, self.dtype) for name, array in arrays.items()}

    def proto(self, **replaced: Array) -> onnx.ModelProto:
        """Build the model x -> [linear] z -> [norm] y."""
        arrays = self.arrays() | replaced
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        inputs = ["w", "x"] if self.weight_on_left else ["x", "w"]
        inputs += ["b"] if self.bias is not None else []
        out = ["N", *["D"] * (len(self.data) - 1)]
        for axis in range(1, len(out)):
            out[axis] = f"D{axis}"
        graph = onnx.helper.make_graph(
            [
                onnx.helper.make_node(self.op_type, inputs, ["z"], "linear", **self.attributes),
                onnx.helper.make_node("BatchNormalization", ["z", *_NORM], ["y"], "norm", **self.norm),
            ],
            "g",
            [onnx.helper.make_tensor_value_info("x", kind, self.data)],
            [onnx.helper.make_tensor_value_info("y", kind, out)],
            [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        opsets = [onnx.helper.make_opsetid("", self.opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


_CONV = _Layer("Conv", ("N", 3, 5, 7), (6, 3, 3, 3), 6)
_LAYERS = {
    "conv": _CONV,
    "conv with bias": dataclasses.replace(_CONV, bias=(6,)),
    "conv 1d": _Layer("Conv", ("N", 3, 7), (5, 3, 3), 5, attributes={"pads": [1, 0]}),
    "conv 3d": _Layer("Conv", ("N", 2, 4, 5, 6), (3, 2, 2, 3, 2), 3, bias=(3,)),
    "conv, strided, dilated, padded": dataclasses.replace(
        _CONV, attributes={"strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 0, 1]}
    ),
    "conv in groups": _Layer("Conv", ("N", 4, 5, 7), (6, 2, 3, 3), 6, bias=(6,), attributes={"group": 2}),
    "depthwise": _Layer("Conv", ("N", 4, 5, 7), (8, 1, 3, 3), 8, attributes={"group": 4}),
    "transposed": _Layer("ConvTranspose", ("N", 3, 5, 7), (3, 4, 2, 3), 4, attributes={"strides": [2, 2]}),
    "transposed in groups": _Layer(
        "ConvTranspose", ("N", 4, 3, 5), (4, 3, 2, 3), 6, bias=(6,), attributes={"group": 2}
    ),
    "gemm": _Layer("Gemm", ("N", 5), (5, 7), 7),
    "gemm transposed": _Layer("Gemm", ("N", 5), (7, 5), 7, bias=(7,), attributes={"transB": 1}),
    "gemm with one bias for all": _Layer("Gemm", ("N", 5), (5, 7), 7, bias=(1,)),
    "gemm with a bias of rank 2": _Layer("Gemm", ("N", 5), (5, 7), 7, bias=(1, 7)),
    "gemm with a scalar bias": _Layer("Gemm", ("N", 5), (5, 7), 7, bias=()),
    "gemm with beta and no bias": _Layer("Gemm", ("N", 5), (5, 7), 7, attributes={"beta": 0.5}),
    "matmul": _Layer("MatMul", ("N", 5), (5, 7), 7),
    "large epsilon": dataclasses.replace(_CONV, norm={"epsilon": 0.1}),
    "float64": _Layer("Gemm", ("N", 5), (5, 7), 7, dtype=np.float64),
    "opset 7": dataclasses.replace(_CONV, opset=7),
    "opset 9": dataclasses.replace(_CONV, opset=9, norm={"momentum": 0.5}),
    "opset 14": dataclasses.replace(_CONV, opset=14, norm={"training_mode": 0}),
    "opset 21": dataclasses.replace(_CONV, opset=21),
}


def _fold(source: onnx.ModelProto | onnx_ir.Model | str, tolerance: float = _TOLERANCE) -> Outcome:
    return apply(source, FoldBatchnorm(), tolerance=tolerance)


def test_before_and_after() -> None:
    outcome = _fold("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,1,5,7] x) => (float[N,2,5,7] y)
        <float[2,1,1,1] w = {1, 2}, float[2] gamma = {3, 4}, float[2] beta = {1, 1}, float[2] mean = {1, 2},
         float[2] var = {0.75, 3.75}> {
            [conv] z = Conv(x, w)
            [norm] n = BatchNormalization<epsilon=0.25>(z, gamma, beta, mean, var)
            [relu] y = Relu(n)
        }
    """)
    assert onnx_ir.to_onnx_text(outcome.after) == (
        "<\n"
        "   ir_version: 8,\n"
        '   opset_import: ["" : 17]\n'
        ">\n"
        "g (float[N,1,5,7] x) => (float[N,2,5,7] y) \n"
        "   <float[2,1,1,1] w =  {3,4}, float[2] conv_bias =  {-2,-3}, "
        "float[2,1,1,1] w, float[2] conv_bias, float[N,2,5,7] n>\n"
        "{\n"
        "   [conv] n = Conv (x, w, conv_bias)\n"
        "   [relu] y = Relu (n)\n"
        "}"
    )
    assert outcome.told == [("norm", "BatchNormalization", "folded into Conv 'conv'")]
    site = outcome.rewrites.sites[0]
    assert (site.before.params, site.after.params) == (10, 4)
    assert (site.before.size_bytes, site.after.size_bytes) == (40, 16)
    assert site.before.macs == site.after.macs == 2 * 5 * 7


@pytest.mark.parametrize("name", _LAYERS)
def test_the_function_stays(name: str) -> None:
    layer = _LAYERS[name]
    outcome = _fold(layer.proto(), 1e-13 if layer.dtype == np.float64 else _TOLERANCE)
    assert outcome.ops == ["Gemm" if layer.op_type == "MatMul" else layer.op_type]
    assert outcome.names == ["linear"]
    kept = {"w", "b" if layer.bias is not None else "linear_bias"}
    assert set(outcome.after.graph.initializers) == kept
    site = outcome.rewrites.sites[0]
    costs = cost(outcome.before), cost(outcome.after)
    assert site.after.size_bytes - site.before.size_bytes == costs[1].weight_bytes - costs[0].weight_bytes


def test_float16_is_folded_in_float64() -> None:
    layer = dataclasses.replace(_CONV, dtype=np.float16)
    model = load(layer.proto())
    FoldBatchnorm().run(model, Context())
    arrays = {name: array.astype(np.float64) for name, array in layer.arrays().items()}
    scale = arrays["gamma"] / np.sqrt(arrays["var"] + 1e-5)
    weight, bias = (model.graph.initializers[name].const_value for name in ("w", "linear_bias"))
    assert weight is not None and bias is not None
    np.testing.assert_array_equal(weight, (arrays["w"] * scale[:, None, None, None]).astype(np.float16))
    np.testing.assert_array_equal(bias, (arrays["beta"] - arrays["mean"] * scale).astype(np.float16))


def test_bfloat16_is_folded_in_float64() -> None:
    model = load(dataclasses.replace(_CONV, dtype=np.float64).proto())
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = onnx_ir.tensor(value.const_value.numpy().astype(ml_dtypes.bfloat16), name=value.name)
    arrays = {n: np.asarray(v.const_value, np.float64) for n, v in model.graph.initializers.items()}
    FoldBatchnorm().run(model, Context())
    scale = arrays["gamma"] / np.sqrt(arrays["var"] + 1e-5)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    expected = (arrays["w"] * scale[:, None, None, None]).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(weight.numpy(), expected)


def test_constant_nodes_are_folded_and_go() -> None:
    outcome = _fold("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,1,5,7] x) => (float[N,2,5,7] y) {
            w = Constant<value = float[2,1,1,1] {1, 2}>()
            one = Constant<value = float[2] {1, 1}>()
            var = Constant<value = float[2] {0.75, 3.75}>()
            z = Conv(x, w)
            y = BatchNormalization<epsilon=0.25>(z, one, one, one, var)
        }
    """)
    assert outcome.ops == ["Conv"]
    assert (outcome.rewrites.sites[0].before.params, outcome.rewrites.sites[0].after.params) == (6, 4)


def test_two_in_a_row_fold_into_one_conv() -> None:
    proto = _CONV.proto()
    proto.graph.node.append(onnx.helper.make_node("BatchNormalization", ["y", *_NORM], ["z2"], "norm2"))
    proto.graph.output[0].name = "z2"
    outcome = _fold(proto)
    assert outcome.ops == ["Conv"]


def test_nodes_in_branches_are_folded() -> None:
    outcome = _fold("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,1,5,7] x, bool c) => (float[N,2,5,7] y)
        <float[2,1,1,1] w = {1, 2}, float[2] gamma = {3, 4}, float[2] beta = {1, 1}, float[2] mean = {1, 2},
         float[2] var = {0.75, 3.75}> {
            y = If(c) <
                then_branch = yes () => (float[N,2,5,7] t) {
                    a = Conv(x, w) t = BatchNormalization(a, gamma, beta, mean, var)
                },
                else_branch = no () => (float[N,2,5,7] e) { e = Conv(x, w) }
            >
        }
    """)
    assert outcome.ops == ["If", "Conv", "Conv"]


def test_a_shared_weight_and_bias_are_copied() -> None:
    proto = dataclasses.replace(_CONV, bias=(6,)).proto()
    proto.graph.node.append(onnx.helper.make_node("Conv", ["x", "w", "b"], ["u"], "other"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", "A", "B", "C"]))
    outcome = _fold(proto)
    assert set(outcome.after.graph.initializers) == {"w", "b", "w_linear", "b_linear"}
    assert cost(outcome.after).params - cost(outcome.before).params == 6 * 27 + 6 - 4 * 6


def test_parameters_that_others_read_stay() -> None:
    proto = _CONV.proto()
    proto.graph.node.append(onnx.helper.make_node("Neg", ["gamma"], ["u"], "other"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("u", TensorProto.FLOAT, [6]))
    assert set(_fold(proto).after.graph.initializers) == {"w", "linear_bias", "gamma"}


def test_the_output_takes_over_what_was_known_of_it() -> None:
    model = load(_CONV.proto())
    note(model.graph[1].outputs[0], Quantization(-1.0, 1.0))
    FoldBatchnorm().run(model, Context())
    assert quantization_of(model.graph[0].outputs[0]) == Quantization(-1.0, 1.0)


# Near misses: each breaks one clause alone.


def _declines(source: onnx.ModelProto | onnx_ir.Model | str, reason: str, *, runs: bool = True) -> None:
    outcome = apply(source, FoldBatchnorm(), runs=runs)
    assert outcome.unchanged
    assert outcome.declined == [("norm", reason)]


def test_training_stays() -> None:
    proto = dataclasses.replace(_CONV, norm={"training_mode": 1}).proto()
    proto.graph.node[1].output.extend(["m", "v"])
    _declines(proto, "training_mode is 1", runs=False)


def test_training_by_outputs_stays() -> None:
    proto = dataclasses.replace(_CONV, opset=9).proto()
    proto.graph.node[1].output.extend(["m", "v", "sm", "sv"])
    _declines(proto, "it has 5 outputs, as in training", runs=False)


def test_parameters_per_position_stay() -> None:
    layer = dataclasses.replace(_CONV, opset=8, norm={"spatial": 0})
    proto = layer.proto(**{name: np.ones((6, 3, 5), np.float32) for name in _NORM})
    _declines(proto, "spatial is 0: it has parameters for every position", runs=False)


def test_opset_6_stays() -> None:
    proto = dataclasses.replace(_CONV, opset=6, norm={"is_test": 1}).proto()
    _declines(proto, "opset 6, needs 7 or later", runs=False)


@pytest.mark.parametrize("name", _NORM)
def test_an_overridable_parameter_stays(name: str) -> None:
    proto = _CONV.proto()
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, [6]))
    _declines(proto, f"parameter {name!r} is not constant")


@pytest.mark.parametrize(("name", "shape"), [("w", [6, 3, 3, 3]), ("b", [6])])
def test_an_overridable_weight_or_bias_stays(name: str, shape: list[int]) -> None:
    proto = dataclasses.replace(_CONV, bias=(6,)).proto()
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    kind = {"w": "weight", "b": "bias"}[name]
    _declines(proto, f"Conv 'linear': {kind} {name!r} is a graph input, which the caller may set")


def test_what_is_not_linear_stays() -> None:
    proto = _CONV.proto()
    proto.graph.node.insert(1, onnx.helper.make_node("Relu", ["z"], ["r"], "relu"))
    proto.graph.node[2].input[0] = "r"
    _declines(proto, "fed by Relu 'relu', which is not linear")


def test_a_graph_input_stays() -> None:
    proto = _CONV.proto()
    proto.graph.node[1].input[0] = "x"
    for name in _NORM:
        tensor = next(one for one in proto.graph.initializer if one.name == name)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(3, np.float32), name))
    proto.graph.node.append(onnx.helper.make_node("Neg", ["z"], ["u"], "other"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", "A", "B", "C"]))
    _declines(proto, "fed by 'x', which no node computes")


def test_a_gemm_with_alpha_stays() -> None:
    layer = _Layer("Gemm", ("N", 5), (5, 7), 7, attributes={"alpha": 2.0})
    _declines(layer.proto(), "Gemm 'linear': alpha=2, needs 1")


def test_a_gemm_with_beta_stays() -> None:
    layer = _Layer("Gemm", ("N", 5), (5, 7), 7, bias=(7,), attributes={"beta": 0.5})
    _declines(layer.proto(), "Gemm 'linear': beta=0.5, needs 1")


def test_a_second_use_stays() -> None:
    proto = _CONV.proto()
    proto.graph.node.append(onnx.helper.make_node("Neg", ["z"], ["u"], "other"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("u", TensorProto.FLOAT, ["N", "A", "B", "C"]))
    _declines(proto, "output 'z' of Conv 'linear' has 2 uses, needs 1")


def test_a_graph_output_stays() -> None:
    proto = _CONV.proto()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", "A", "B", "C"]))
    _declines(proto, "output 'z' of Conv 'linear' is a graph output")


def test_another_graph_stays() -> None:
    _declines(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,1,5,7] x, bool c) => (float[N,2,5,7] y)
        <float[2,1,1,1] w = {1, 2}, float[2] gamma = {3, 4}, float[2] beta = {1, 1}, float[2] mean = {1, 2},
         float[2] var = {0.75, 3.75}> {
            [linear] a = Conv(x, w)
            y = If(c) <
                then_branch = yes () => (float[N,2,5,7] t) {
                    [norm] t = BatchNormalization(a, gamma, beta, mean, var)
                },
                else_branch = no () => (float[N,2,5,7] e) { e = Conv(x, w) }
            >
        }
        """,
        "Conv 'linear' lies in another graph",
    )


def test_a_noted_value_stays() -> None:
    model = load(_CONV.proto())
    note(model.graph[0].outputs[0], Quantization(-1.0, 1.0))
    rewrites = FoldBatchnorm().run(model, Context())
    assert not rewrites.modified
    reason = "output 'z' of Conv 'linear' carries a quantization note"
    assert [one.reason for one in rewrites.declined] == [reason]


@pytest.mark.parametrize("name", ["w", "b"])
def test_an_encoded_weight_stays(name: str) -> None:
    layer = dataclasses.replace(_CONV, bias=(6,))
    model = load(layer.proto())
    encode(model.graph.initializers[name], Affine.quantize(layer.arrays()[name], axis=0))
    rewrites = FoldBatchnorm().run(model, Context())
    assert not rewrites.modified
    assert [one.reason for one in rewrites.declined] == [f"Conv 'linear': {name!r} is an encoded weight"]


def test_a_matmul_of_rank_3_stays() -> None:
    layer = _Layer("MatMul", ("N", 7, 5), (5, 7), 7)
    _declines(layer.proto(), "MatMul 'linear' has rank 3, needs 2")


def test_a_matmul_of_unknown_rank_stays() -> None:
    model = load(_Layer("MatMul", ("N", 5), (5, 7), 7).proto())
    model.graph[0].outputs[0].shape = None
    rewrites = FoldBatchnorm().run(model, Context())
    assert [one.reason for one in rewrites.declined] == ["the rank of MatMul 'linear' is unknown, needs 2"]


def test_a_matmul_whose_rank_only_an_annotation_knows_stays() -> None:
    proto = _Layer("MatMul", ("N", 5), (5, 7), 7).proto()
    matmul = proto.graph.node[0]
    proto.graph.node.insert(0, onnx.helper.make_node("Unheard", [matmul.input[0]], ["before"], domain="my.ops"))
    matmul.input[0] = "before"
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    for name, size in (("before", 5), (matmul.output[0], 7)):
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size]))
    rewrites = FoldBatchnorm().run(load(proto), Context())
    assert [one.reason for one in rewrites.declined] == ["the rank of MatMul 'linear' is unknown, needs 2"]


def test_a_matmul_with_its_constant_on_the_left_stays() -> None:
    layer = _Layer("MatMul", (2, 5, 3), (7, 5), 7, weight_on_left=True)
    _declines(layer.proto(), "MatMul 'linear' has its constant on the left, where no bias fits")


def test_a_negative_variance_stays() -> None:
    proto = _CONV.proto(var=np.array([1, 1, -2, 1, 1, 1], np.float32))
    _declines(proto, "var + epsilon is -1.99999 in channel 2, must be above 0")


def test_a_wrong_number_of_parameters_stays() -> None:
    proto = _CONV.proto(**{name: np.ones(1, np.float32) for name in _NORM})
    _declines(proto, "1 parameters for 6 channels", runs=False)


def test_numbers_that_do_not_fit_stay() -> None:
    layer = dataclasses.replace(_CONV, dtype=np.float16)
    proto = layer.proto(gamma=np.full(6, 60000, np.float16), var=np.full(6, 1e-4, np.float16))
    _declines(proto, "the folded numbers do not fit float16", runs=False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"exclude": ["norm"]}, "excluded by 'norm'"),
        ({"exclude": ["type:Conv"]}, "excluded by 'type:Conv'"),
        ({"include": ["other"]}, "not in include"),
    ],
)
def test_what_is_not_selected_stays(options: dict[str, list[str]], reason: str) -> None:
    proto = _CONV.proto()
    proto.graph.node.append(onnx.helper.make_node("Neg", ["y"], ["u"], "other"))
    proto.graph.output[0].name = "u"
    outcome = apply(proto, FoldBatchnorm(**options))
    assert outcome.unchanged
    assert outcome.declined == [("norm", reason)]


@pytest.mark.parametrize("selector", ["norm", "linear", "type:BatchNormalization"])
def test_including_either_node_is_enough(selector: str) -> None:
    model = load(_CONV.proto())
    assert FoldBatchnorm(include=[selector]).run(model, Context()).modified


def test_a_selector_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        FoldBatchnorm(exclude=["norn"]).run(load(_CONV.proto()), Context())
    assert str(caught.value) == "fold-batchnorm: exclude='norn' matches no node. Did you mean 'norm'?"


def test_another_domain_is_another_operator() -> None:
    proto = _CONV.proto()
    proto.graph.node[1].domain = "my.ops"
    proto.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
    outcome = apply(proto, FoldBatchnorm(), runs=False)
    assert outcome.unchanged and outcome.declined == []


# Any layer.


@st.composite
def _layers(draw: st.DrawFn) -> _Layer:
    op_type = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    seed, biased = draw(st.integers(0, 99)), draw(st.booleans())
    opset, epsilon = draw(st.sampled_from([9, 13, 14, 17, 21])), draw(st.sampled_from([1e-5, 1e-3, 0.5]))
    common: dict[str, Any] = {"opset": opset, "seed": seed, "norm": {"epsilon": epsilon}}
    if op_type in ("Gemm", "MatMul"):
        inner, outer = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        if op_type == "MatMul":
            return _Layer(op_type, ("N", inner), (inner, outer), outer, **common)
        turned = draw(st.booleans())
        biased = biased or opset < 11  # Gemm's bias was required
        bias = draw(st.sampled_from([(outer,), (1,), (1, outer), (1, 1), ()])) if biased else None
        weight = (outer, inner) if turned else (inner, outer)
        gemm = {"transB": int(turned)}
        return _Layer(op_type, ("N", inner), weight, outer, bias=bias, attributes=gemm, **common)
    groups, inner, outer = (draw(st.integers(1, 3)) for _ in range(3))
    rank = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    strides = [draw(st.integers(1, 2)) for _ in range(rank)]
    pads = [draw(st.integers(0, size - 1)) for size in kernel] * 2
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "pads": pads}
    data: tuple[int | str, ...] = ("N", inner * groups, *(5 + axis for axis in range(rank)))
    channels = outer * groups
    stored = (channels, inner, *kernel) if op_type == "Conv" else (inner * groups, outer, *kernel)
    one_each = (channels,) if biased else None
    return _Layer(op_type, data, stored, channels, bias=one_each, attributes=attributes, **common)


@given(_layers())
@settings(max_examples=50)
def test_any_layer_keeps_its_function(layer: _Layer) -> None:
    outcome = _fold(layer.proto(), 3e-5)  # gamma / sqrt(0.01) magnifies both sides' rounding
    assert outcome.ops == ["Gemm" if layer.op_type == "MatMul" else layer.op_type]
    assert cost(outcome.after).params <= cost(outcome.before).params


@pytest.mark.assets("models/resnet20_cifar10.onnx", "models/vgg_small_cifar10.onnx")
@pytest.mark.parametrize(("name", "count"), [("resnet20_cifar10", 19), ("vgg_small_cifar10", 8)])
def test_assets_fold_completely(name: str, count: int, assets: Path) -> None:
    before = load(assets / "models" / f"{name}.onnx")
    after = before.clone()
    rewrites = FoldBatchnorm().run(after, Context())
    assert (len(rewrites.sites), len(rewrites.declined)) == (count, 0)
    feeds = random_feeds(before)
    expected, actual = run(before, feeds)[0], run(after, feeds)[0]
    assert np.abs(actual - expected).max() <= 1e-6 * np.abs(expected).max()
