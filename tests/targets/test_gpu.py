"""The rules of the target gpu: each has a model that breaks it and only it, and a near miss that keeps it."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir.inference import infer_shapes
from onnxpress.targets.base import load_target
from onnxpress.targets.legality import Illegal, check_model
from tests.support import Array, text_model

_CONSTANTS: dict[str, Array] = {
    "wf": np.ones((4, 4, 3, 3), np.float32),
    "wh": np.ones((4, 4, 3, 3), np.float16),
    "pads": np.zeros(8, np.int64),
    "s": np.array(0.1, np.float32),
    "z": np.array(0, np.int8),
}


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model that keeps every rule, and the same with one thing broken."""

    rule: str
    good: str
    bad: str
    reason: str


_CASES = [
    _Case("unknown-domain", "y = com.microsoft.BiasGelu(x, x)", "y = acme.Relu(x)", "unknown domain 'acme'"),
    _Case("on-cpu", "y = Selu(x)", "y = LpNormalization(x)", "LpNormalization is not among the operators that it has"),
    _Case(
        "half-kernel",
        "f = Flatten(x) y = EyeLike(f)",
        "f = Flatten(x) h = Cast<to = 10>(f) y = EyeLike(h)",
        "'h' is float16",
    ),
    _Case(
        "integer-pad",
        "y = Pad(x, pads)",
        "i = Cast<to = 6>(x) y = Pad(i, pads)",
        "input 0 is int32, may be bool, float16, float32, float64",
    ),
    _Case(
        "brain-float",
        "h = Cast<to = 10>(x) y = LeakyRelu(h)",
        "h = Cast<to = 16>(x) y = LeakyRelu(h)",
        "'h' is bfloat16",
    ),
    _Case("float32", "h = Cast<to = 10>(x) y = Conv(h, wh)", "y = Conv(x, wf)", "it computes in float32"),
    _Case("quantized", "y = DequantizeLinear(z, s)", "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
          "QuantizeLinear is used"),
]  # fmt: skip


def _found(body: str) -> list[Illegal]:
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21, "acme" : 1, "com.microsoft" : 1]>
        g (float[1,4,6,6] x) => (float y) {{ {body} }}
    """)
    for value in {value for node in model.graph for value in node.inputs if value is not None}:
        if value.name in _CONSTANTS:
            tensor = onnx_ir.tensor(_CONSTANTS[value.name], name=value.name)
            value.const_value, value.dtype = tensor, tensor.dtype
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    infer_shapes(model)
    return check_model(model, load_target("gpu").profile)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.rule)
def test_a_rule_fires_on_what_it_is_about_and_on_nothing_else(case: _Case) -> None:
    assert _found(case.good) == []
    found = _found(case.bad)
    assert {each.rule for each in found} == {case.rule}
    assert any(each.reason == case.reason for each in found)


def test_every_rule_has_a_case_and_a_source() -> None:
    rules = load_target("gpu").profile.rules
    assert {case.rule for case in _CASES} == {rule.id for rule in rules}
    assert all(len(rule.source) > 20 for rule in rules)


@pytest.mark.parametrize("name", ["gpu", "tensorrt", "openvino"])
def test_operators_are_spelled_as_onnx_does(name: str) -> None:
    """But for those of opsets so old that onnx no longer lists them."""
    profile = load_target(name).profile
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    experimental = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # removed from ONNX, still in support tables
    named = profile.storage.float32_ops | profile.storage.int4_readers
    named |= profile.quantization.compute | profile.quantization.carry | profile.quantization.fused_activations
    for rule in profile.rules:
        named |= rule.ops | rule.known
    assert named - known - experimental == set()
