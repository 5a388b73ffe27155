"""The built-in profiles: complete, consistent with passes and runtime, and honest about their sources."""

from __future__ import annotations

import importlib.resources
import json
import tomllib

import onnx
import pytest

from onnxpress.passes.pipeline import parse
from onnxpress.passes.quantize.units import find_units
from onnxpress.passes.registry import pass_names
from onnxpress.targets.base import load_target
from onnxpress.targets.schema import Profile
from tests.support import text_model

_PHONES = ("mobile-cpu", "mobile-cpu-s8", "mobile-cpu-v8", "mobile-cpu-a55", "mobile-cpu-x1")
_NAMES = (*_PHONES, "x86-vnni", "x86-avx2")  # of one runtime, with a roofline
_ALL = (*_NAMES, "mobile-cpu-litert", "tensorrt", "gpu", "openvino")


def _profile(name: str) -> Profile:
    return load_target(name).profile


@pytest.mark.parametrize("name", _ALL)
def test_the_default_pipeline_parses_and_knows_its_passes(name: str) -> None:
    assert {spec.name for spec in parse(_profile(name).pipeline)} <= set(pass_names())


@pytest.mark.parametrize("name", _NAMES)
def test_operators_are_spelled_as_onnx_does(name: str) -> None:
    profile = _profile(name)
    known = {schema.name for schema in onnx.defs.get_all_schemas()} | {"MatMulNBits"}
    scheme = profile.quantization
    named = scheme.compute | scheme.carry | scheme.same_scale | scheme.fused_activations
    for rule in profile.rules:
        named |= rule.ops
    assert profile.roofline is not None
    named |= profile.roofline.absorbed | set(profile.roofline.elements) - {"default"}
    assert named - known == set()


@pytest.mark.parametrize("name", _NAMES)
def test_what_is_quantized_has_an_integer_cost_and_the_rest_none(name: str) -> None:
    """Else a pass would enter integers for free, or never."""
    profile = _profile(name)
    assert profile.roofline is not None
    for op in profile.quantization.carry:
        assert profile.roofline.elements[op].kernel("int8") is not None, op
    assert profile.roofline.elements["default"].int8 is None


# A plain use of every operator that a profile may carry, from a and b [N,8,6,6] to y.
_CARRIED = {
    "Add": "Add(a, b)",
    "AveragePool": "AveragePool<kernel_shape = [2, 2]>(a)",
    "Concat": "Concat<axis = 1>(a, b)",
    "Expand": "Expand(a, shape)",
    "Flatten": "Flatten(a)",
    "Gather": "Gather<axis = 1>(a, indices)",
    "GlobalAveragePool": "GlobalAveragePool(a)",
    "HardSwish": "HardSwish(a)",
    "Identity": "Identity(a)",
    "LeakyRelu": "LeakyRelu(a)",
    "MaxPool": "MaxPool<kernel_shape = [2, 2]>(a)",
    "Mul": "Mul(a, b)",
    "Pad": "Pad(a, pads)",
    "ReduceMean": "ReduceMean(a)",
    "Reshape": "Reshape(a, shape)",
    "Resize": "Resize(a, , scales)",
    "Sigmoid": "Sigmoid(a)",
    "Slice": "Slice(a, indices, indices)",
    "Split": "Split<axis = 1>(a, indices)",
    "Squeeze": "Squeeze(a)",
    "Sub": "Sub(a, b)",
    "Tanh": "Tanh(a)",
    "Transpose": "Transpose(a)",
    "Unsqueeze": "Unsqueeze(a, indices)",
}


@pytest.mark.parametrize("name", _ALL)
def test_passes_can_quantize_what_is_carried(name: str) -> None:
    """Else the profile promises what no pass does."""
    scheme = _profile(name).quantization.scheme()
    for op in sorted(scheme.carry):
        outputs = "y, z" if op == "Split" else "y"
        model = text_model(f"""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[N,8,6,6] a, float[N,8,6,6] b) => (float y)
            <int64[4] shape = {{1, 8, 6, 6}}, int64[2] indices = {{3, 5}}, int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}},
             float[4] scales = {{1, 1, 2, 2}}>
            {{ {outputs} = {_CARRIED[op]} }}
        """)
        units, declined = find_units(model.graph, scheme)
        assert (op, len(units), declined) == (op, 1, [])


@pytest.mark.parametrize("name", _ALL)
def test_versions_lie_within_what_onnx_knows(name: str) -> None:
    profile = _profile(name)
    assert 1 <= profile.opset.min < 13 <= profile.opset.max <= onnx.defs.onnx_opset_version()
    assert profile.ir_version is None or profile.ir_version.max <= onnx.IR_VERSION


@pytest.mark.parametrize("name", _ALL)
def test_dumping_is_deterministic_and_complete(name: str) -> None:
    dumped = _profile(name).model_dump(mode="json")
    assert dumped["quantization"]["carry"] == sorted(_profile(name).quantization.carry)
    assert Profile.model_validate(json.loads(json.dumps(dumped))) == _profile(name)


@pytest.mark.parametrize("name", _PHONES)
def test_estimates_say_so(name: str) -> None:
    host, mobile = _profile("x86-vnni").roofline, _profile(name).roofline
    assert host is not None and host.source.startswith("measured: ")
    assert mobile is not None and mobile.source.startswith("estimate ") and "not measured" in mobile.source
    assert "\n" not in mobile.source


def test_the_phone_inherits_no_measured_speed() -> None:
    """Every number of the roofline that differs between machines is restated, or free (0) on both."""
    host, mobile = _profile("x86-vnni").roofline, _profile("mobile-cpu").roofline
    assert host is not None and mobile is not None
    for op, rates in host.elements.items():
        assert mobile.elements[op] != rates or rates.float32 == 0, op
    for key in (
        "conv",
        "pointwise",
        "depthwise",
        "grouped",
        "gemm",
        "bandwidth_gb_per_s",
        "cache_gb_per_s",
        "overhead_us",
    ):
        assert getattr(mobile, key) != getattr(host, key), key
    for key in ("convert_ns", "layout_ns", "output_ns"):
        assert getattr(mobile, key) != getattr(host, key), key


def test_signed_activations_are_only_a_trouble_on_x86() -> None:
    assert "signed-residual" in {rule.id for rule in _profile("x86-vnni").rules}
    assert "signed-residual" not in {rule.id for rule in _profile("mobile-cpu").rules}
    (rule,) = (rule for rule in _profile("mobile-cpu").rules if rule.id == "weight-type")
    assert rule.inputs == {1: frozenset({"int8", "uint8"})}


@pytest.mark.parametrize("name", _ALL)
def test_the_file_is_plain_toml(name: str) -> None:
    text = (importlib.resources.files("onnxpress.targets.profiles") / f"{name}.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text)["name"] == name
    assert max(map(len, text.splitlines())) <= 120
