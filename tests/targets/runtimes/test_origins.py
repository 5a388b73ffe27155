"""Steps of onnxruntime's optimized graph, by the names of the model's nodes that they compute."""

from __future__ import annotations

from pathlib import Path

import onnx_ir
import pytest

from onnxpress.ir.data import open_data
from onnxpress.ir.model_io import load
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from onnxpress.targets.runtimes.onnxruntime_session import open_session
from onnxpress.targets.runtimes.origins import find_origins
from onnxpress.tools.demo import assets as demo


def _demo(quantized: bool) -> onnx_ir.Model:
    model = load(demo.model_path())
    if not quantized:
        return model
    target = load_target("x86-vnni")
    context = Context(constraints=target.constraints, data=open_data(demo.calibration(), model=model))
    model, _ = PassManager(build("cleanup, fold-batchnorm, quantize-int8")).run(model, context)
    target.lower(model)
    return model


def _origins(model: onnx_ir.Model, folder: Path) -> dict[str, tuple[str, ...]]:
    path = folder / "optimized.onnx"
    open_session(model, optimized_path=path)
    return find_origins(model, onnx_ir.load(path))


def test_fused_nodes_go_with_their_layer(tmp_path: Path) -> None:
    found = list(_origins(_demo(False), tmp_path).values())
    assert ("stem_conv", "stem_norm", "stem_relu") in found
    assert ("block_2_conv", "block_2_norm", "block_add", "block_relu") in found  # the sum starts the second layer
    assert ("classifier",) in found


@pytest.mark.parametrize("quantized", [False, True])
def test_every_node_that_data_reach_is_in_one_step(quantized: bool, tmp_path: Path) -> None:
    model = _demo(quantized)
    named = [name for names in _origins(model, tmp_path).values() for name in names]
    assert len(named) == len(set(named))
    left = [node for node in model.graph if node.name not in named]
    assert all(node.op_type == "DequantizeLinear" and node.inputs[0] in _initializers(model) for node in left)
    assert {node.name for node in model.graph} - {node.name for node in left} == set(named)


def _initializers(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    return list(model.graph.initializers.values())


def test_quantized_layers_are_named_by_themselves(tmp_path: Path) -> None:
    found = _origins(_demo(True), tmp_path)
    layers = [names[0] for names in found.values() if names and names[0].endswith("_conv")]
    assert layers == ["stem_conv", "block_1_conv", "block_2_conv", "widen_conv", "middle_conv", "reduce_conv"]
