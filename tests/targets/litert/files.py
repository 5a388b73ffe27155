"""What the LiteRT tests share: models from text, and both runtimes' outputs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.quantization import Quantization, note
from onnxpress.passes.constraints import IntegerScheme, QuantizationScheme
from onnxpress.targets.lowering.qdq import lower_qdq
from tests.support import Array, fill_weights, random_feeds, run, text_model

__all__ = ["SCHEME", "body", "both", "int8_steps", "named_graph", "noted"]

pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT: pip install 'onnxpress[litert]'")
pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'onnxpress[litert]'")

SCHEME = QuantizationScheme(activation=IntegerScheme(signed=True, symmetric=False), bias="int32")


def named_graph(text: str, arrays: Mapping[str, Array], opset: int = 17) -> onnx_ir.Model:
    """Return the model of a whole graph in text, with its weights."""
    model = text_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    fill_weights(model, arrays)
    return model


def body(
    nodes: str, arrays: Mapping[str, Array] | None = None, shape: Sequence[int] = (1, 3, 5, 7), opset: int = 17
) -> onnx_ir.Model:
    """Return a model from x of `shape` to y, its size left to inference; a float input is called x."""
    sizes = ",".join(map(str, shape))
    model = named_graph(f"g (float[{sizes}] x) => (float y) {{ {nodes} }}", arrays or {}, opset)
    infer_shapes(model)
    return model


def both(model: onnx_ir.Model, *, seed: int = 0, channels_last: bool = False) -> tuple[list[Array], list[Array]]:
    """Return the outputs of onnxruntime and of LiteRT on the same numbers, in order."""
    from onnxpress.targets.litert import emit_tflite
    from onnxpress.targets.runtimes.litert import LiteRtSession

    feeds = random_feeds(model, seed, batch=1)
    found = LiteRtSession(emit_tflite(model, channels_last=channels_last)).run(
        {name: array.transpose(0, 2, 3, 1) if channels_last else array for name, array in feeds.items()}
    )
    return run(model, feeds), [found[str(value.name)] for value in model.graph.outputs]


def noted(model: onnx_ir.Model, ranges: Mapping[str, tuple[float, float]]) -> onnx_ir.Model:
    """Note clipping ranges on the values of these names."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if str(value.name) in ranges:
            note(value, Quantization(*ranges[str(value.name)]))
    return model


def int8_steps(model: onnx_ir.Model, *, seed: int = 0) -> tuple[float, dict[str, int]]:
    """Return how many steps of the output's integers LiteRT is off at most from the QDQ model, and its operators.

    The last noted value must be the output.
    """
    from onnxpress.ir.quantization import integer_parameters, quantization_of
    from onnxpress.targets.litert import emit
    from onnxpress.targets.runtimes.litert import LiteRtSession

    (output,) = model.graph.outputs
    range_ = quantization_of(output)
    assert range_ is not None
    scale, _ = integer_parameters(range_, signed=True, symmetric=False)
    feeds = random_feeds(model, seed, batch=1)
    file = emit(model)
    (found,) = LiteRtSession(file.content).run(feeds).values()
    written = model.clone()
    lower_qdq(written, SCHEME)
    (expected,) = run(written, feeds)
    return float(np.abs(found - expected).max() / scale), dict(file.operators)
