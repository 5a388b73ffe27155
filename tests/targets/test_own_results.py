"""What our own passes make is legal on every target, loads, and computes the compressed graph's function."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.encodings import Affine, encoding_of
from onnxpress.ir.model_io import load
from onnxpress.ir.quantization import Quantization, note, quantization_of
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.runtimes.onnxruntime_cpu import smoke_run
from onnxpress.tools.demo import assets as demo
from tests.passes.prune import sparse_support
from tests.passes.residual_net import residual_data, residual_net
from tests.support import Array, random_feeds, run

_TARGETS = ("tensorrt", "gpu", "openvino")
_PIPELINES = (
    "cleanup",
    "prune-channels{ratio=0.08,multiple=4}",
    "low-rank{energy=0.9}",
    "separable",
    "prune-nm",
    "quantize-int8",
    "ternarize",
    "palettize",
    "quantize-weights{bits=4}",
    "float16",
    "pack",
    "ternarize, quantize-int8",
    "quantize-weights{bits=4,block=0}, quantize-int8",
    "quantize-int8, float16",
)

# Least signal-to-noise ratio of the lowered graph against the compressed one, in decibels: of 8-bit activations that
# were calibrated on a few samples, of float16 (2^-11 a value, 66 dB, over a few layers), of the order of float sums.
_INT8_DB, _HALF_DB, _FLOAT_DB = 28.0, 55.0, 90.0


def _sqnr_db(expected: Array, got: Array) -> float:
    noise = np.square(expected.astype(np.float64) - got).sum()
    return 200.0 if noise == 0 else float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise))


def _compress(target: Target, pipeline: str, model: onnx_ir.Model, data: DataSource) -> tuple[onnx_ir.Model, float]:
    """Return the model after the passes, not lowered, and how near its lowering must come."""
    context = Context(constraints=target.constraints, data=data)
    model, _ = PassManager(build(pipeline)).run(model, context)
    values = [value for node in model.graph for value in node.outputs]
    if any(quantization_of(value) is not None for value in values):
        return model, _INT8_DB
    encodings = [encoding_of(value) for value in model.graph.initializers.values()]
    is_half = any(each is not None and each.kind == "float16" for each in encodings)
    return model, _HALF_DB if is_half and target.profile.storage.float16_graph else _FLOAT_DB


def _check(target: Target, pipeline: str, model: onnx_ir.Model, data: DataSource, feeds: dict[str, Array]) -> None:
    compressed, least_db = _compress(target, pipeline, model, data)
    expected = run(compressed, feeds)[0]
    target.lower(compressed)
    illegal = [str(found) for found in target.check(compressed) if found.severity == "illegal"]
    assert illegal == []
    assert smoke_run(compressed, feeds)
    assert _sqnr_db(expected, run(compressed, feeds)[0]) >= least_db
    if target.profile.runtime == "openvino" and importlib.util.find_spec("openvino") is not None:
        from onnxpress.targets.runtimes.openvino import CompiledModel

        assert _sqnr_db(expected, CompiledModel(compressed, feeds).run(feeds)[0]) >= min(least_db, 80.0)


# The rules of onnxruntime's CPU targets have tests against the runtime itself: here a few pipelines do.
_CPU_TARGETS = ("x86-vnni", "x86-avx2", "mobile-cpu", "mobile-cpu-s8", "mobile-cpu-v8")
_CPU = [(target, pipeline) for target in _CPU_TARGETS for pipeline in ("prune-nm", *_PIPELINES[-3:])]


@pytest.mark.parametrize(
    ("target", "pipeline"), [*((target, pipeline) for target in _TARGETS for pipeline in _PIPELINES), *_CPU]
)
def test_small_networks(target: str, pipeline: str) -> None:
    chosen = load_target(target)
    net = residual_net()
    _check(chosen, pipeline, net, residual_data(24), random_feeds(net, batch=4))
    net = sparse_support.net()
    data = sparse_support.data_of(net, 24)
    (batch,) = sparse_support.data_of(net, 4, seed=9).batches(4)
    _check(chosen, pipeline, net, data, dict(batch.feeds))


@pytest.mark.parametrize("pipeline", ["quantize-int8", "float16"])
@pytest.mark.parametrize("target", _TARGETS)
def test_the_demo(target: str, pipeline: str) -> None:
    (name, calibration), (_, images) = (
        next(item for item in arrays().items() if item[0] != "labels") for arrays in (demo.calibration, demo.evaluation)
    )
    model = load(demo.model_path())
    data = open_data({name: calibration[:32]}, model=model)
    _check(load_target(target), f"cleanup, fold-batchnorm, {pipeline}", model, data, {name: images[:16]})


@pytest.mark.assets("models/resnet20_cifar10.onnx", "datasets/cifar10_calib.npz")
@pytest.mark.parametrize(("target", "pipeline"), [("tensorrt", "quantize-int8"), ("gpu", "float16"),
                                                  ("openvino", "quantize-int8")])  # fmt: skip
def test_a_real_network(target: str, pipeline: str) -> None:
    """With shortcuts that pad and slice, which quantized networks must get past each runtime."""
    rng = np.random.default_rng(0)
    model = load(Path(os.environ["ONNXPRESS_ASSETS"]) / "models/resnet20_cifar10.onnx")
    name = str(model.graph.inputs[0].name)
    samples = rng.standard_normal((16, 3, 32, 32)).astype(np.float32)
    data = open_data({name: samples[:8]}, model=model)
    _check(load_target(target), f"cleanup, fold-batchnorm, {pipeline}", model, data, {name: samples[8:]})


@pytest.mark.parametrize("target", _TARGETS)
def test_a_second_lowering_finds_nothing_to_do(target: str) -> None:
    chosen = load_target(target)
    pipeline = "float16" if target == "gpu" else "quantize-int8"
    model, _ = _compress(chosen, pipeline, residual_net(), residual_data(8))
    chosen.lower(model)
    assert chosen.lower(model).forms == {}


# What single forms become.


def test_an_add_goes_into_the_accumulator_of_its_last_layer() -> None:
    """TensorRT: one operand of a residual Add is what a Conv sums up, in float; the other is quantized."""
    target = load_target("tensorrt")
    model, _ = _compress(target, "quantize-int8", residual_net(), residual_data(8))
    target.lower(model)
    add = next(node for node in model.graph if node.op_type == "Add")
    producers = [producer.op_type for producer in (value.producer() for value in add.inputs if value) if producer]
    assert producers == ["Conv", "DequantizeLinear"]
    biases = [node.inputs[2] for node in model.graph if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2]
    assert biases and all(value is not None and value.dtype == onnx_ir.DataType.FLOAT for value in biases)


@pytest.mark.parametrize("operands", ["a, b", "b, a"])
def test_of_two_layers_the_later_one_takes_the_add(operands: str) -> None:
    """The earlier one is computed by then; its result waits as integers."""
    target = load_target("tensorrt")
    rng = np.random.default_rng(1)
    model = sparse_support.model_of(
        f"[first] a = MatMul(x, w1) [last] b = MatMul(x, w2) [add] out = Add({operands})",
        {"w1": rng.standard_normal((16, 6)), "w2": rng.standard_normal((16, 6))},
        inputs="float[N, 16] x",
    )
    for value in (model.graph.inputs[0], *(node.outputs[0] for node in model.graph)):
        note(value, Quantization(-4.0, 4.0))
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = Affine.quantize(value.const_value.numpy(), axis=1, name=value.name)
    target.lower(model)
    add = next(node for node in model.graph if node.name == "add")
    producers = [producer for producer in (value.producer() for value in add.inputs if value) if producer]
    assert {producer.op_type for producer in producers} == {"MatMul", "DequantizeLinear"}
    assert "last" in {producer.name for producer in producers}


def test_int4_beside_float16_is_dequantized_to_float16() -> None:
    target = load_target("tensorrt")
    rng = np.random.default_rng(1)
    shapes = {"w1": (128, 128), "w2": (128, 64), "w3": (64, 6)}
    model = sparse_support.model_of(
        "[a] a = MatMul(x, w1) [b] b = MatMul(a, w2) [c] out = MatMul(b, w3)",
        {name: rng.standard_normal(shape) / 8 for name, shape in shapes.items()},
        inputs="float[N, 128] x",
    )
    passes = build("quantize-weights{bits=4,block=64,method=rtn,sensitive=float}, float16")
    model, _ = PassManager(passes).run(model, Context(constraints=target.constraints))
    feeds = random_feeds(model)
    expected = run(model, feeds)[0]
    report = target.lower(model)
    assert report.forms["affine4 -> DequantizeLinear in float16"] == 1
    assert [found for found in target.check(model) if found.severity != "setup"] == []
    assert _sqnr_db(expected, run(model, feeds)[0]) >= _HALF_DB


@pytest.mark.parametrize(
    ("block", "form"), [(64, "affine4 -> DequantizeLinear"), (32, "affine4 -> dense"), (0, "affine4 -> dense")]
)
def test_int4_stands_in_the_blocks_that_the_kernels_take(block: int, form: str) -> None:
    target = load_target("tensorrt")
    rng = np.random.default_rng(1)
    shapes = {"w1": (128, 128), "w2": (128, 64), "w3": (64, 4)}
    model = sparse_support.model_of(
        "[a] a = MatMul(x, w1) [b] b = MatMul(a, w2) [c] out = MatMul(b, w3)",
        {name: rng.standard_normal(shape) for name, shape in shapes.items()},
        inputs="float[N, 128] x",
    )
    passes = build(f"quantize-weights{{bits=4,block={block},method=rtn}}")
    model, _ = PassManager(passes).run(model, Context(constraints=target.constraints))
    feeds = random_feeds(model)
    expected = run(model, feeds)[0]
    report = target.lower(model)
    assert report.forms[form] == 1
    assert [
        found for found in target.check(model) if found.severity == "illegal" or found.rule.startswith("int4")
    ] == []
    np.testing.assert_allclose(run(model, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    told = [note for note in report.notes if "for lack of a smaller form beside float data: 1 of affine4" in note]
    assert bool(told) is ("dense" in form)
    assert all(
        note.endswith(
            "1 of affine4: 'w2'. 4 bits are for Gemm or MatMul whose input channels are whole blocks of 64 or 128: "
            "give quantize-weights block=64"
        )
        for note in told
    )


def test_a_transposed_convolution_has_scales_along_its_output_channels() -> None:
    """TensorRT: axis 1 of [C, M, kH, kW]."""
    target = load_target("tensorrt")
    rng = np.random.default_rng(2)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 4, 2, 2), "w3": (4, 4, 1, 1)}
    model = sparse_support.model_of(
        "[a] a = Conv(x, w1) [r] r = Relu(a) [b] b = ConvTranspose<strides = [2, 2]>(r, w2) [s] s = Relu(b) "
        "[c] out = Conv(s, w3)",
        {name: rng.standard_normal(shape) for name, shape in shapes.items()},
        inputs="float[N, 3, 9, 9] x",
        out="N, 4, 14, 14",
    )
    feeds = {"x": rng.standard_normal((4, 3, 9, 9)).astype(np.float32)}
    data = open_data(feeds, model=model)
    compressed, least_db = _compress(target, "quantize-int8", model, data)
    expected = run(compressed, feeds)[0]
    target.lower(compressed)
    assert [str(found) for found in target.check(compressed) if found.severity == "illegal"] == []
    (transposed,) = (node for node in compressed.graph if node.op_type == "ConvTranspose")
    weight = transposed.inputs[1].producer()  # type: ignore[union-attr]
    assert weight is not None and weight.attributes.get_int("axis") == 1
    assert _sqnr_db(expected, run(compressed, feeds)[0]) >= least_db
