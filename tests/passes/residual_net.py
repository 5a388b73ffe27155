"""A small residual network with an input, class scores and data for it, which tests of lossy passes share."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir

from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.verify import verify
from tests.support import Array, fill_weights, text_model

__all__ = ["CLASSES", "INNER", "STREAM", "residual_data", "residual_net", "residual_weights"]

# A stem, a residual block on it, and class scores. The block's inner channels are a group; the stem's are the stream.
_BODY = """
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    [relu] r = Relu (s)
    [conv1] a = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
    [relu1] b = Relu (a)
    [conv2] c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    [add] d = Add (c, r)
    [relu2] e = Relu (d)
    [pool] p = GlobalAveragePool (e)
    [flat] q = Flatten (p)
    [head] y = Gemm <transB = 1> (q, w3, b3)
"""
STREAM, INNER, CLASSES = 8, 16, 5


def residual_weights(seed: int = 0) -> dict[str, Array]:
    """Return seeded weights by name, scaled to their inputs."""
    rng = np.random.default_rng(seed)
    shapes = {
        "w0": (STREAM, 3, 3, 3), "b0": (STREAM,), "w1": (INNER, STREAM, 3, 3), "b1": (INNER,),
        "w2": (STREAM, INNER, 3, 3), "w3": (CLASSES, STREAM), "b3": (CLASSES,),
    }  # fmt: skip
    return {name: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}


def residual_net(weights: dict[str, Array] | None = None) -> onnx_ir.Model:
    """Return the network, whole, with `weights` or seeded ones."""
    model = text_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 7, 6] x) => (float[N, {CLASSES}] y) {{ {_BODY} }}
    """)
    fill_weights(model, weights or residual_weights())
    verify(model)
    return model


def residual_data(count: int = 48) -> DataSource:
    """Return seeded samples, one at a time."""
    rng = np.random.default_rng(3)
    return open_data([{"x": rng.standard_normal((1, 3, 7, 6)).astype(np.float32)} for _ in range(count)])
