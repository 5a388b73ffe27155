"""Ask the installed onnxruntime what the integer kernels of this machine do.

On x86-64 without VNNI, two neighbouring products of unsigned data and signed weights are added in 16 bits, and saturate
(VPMADDUBSW). Nothing says so: the sum is wrong. Which kernels run depends on the processor, the runtime's version and
how it was built, so it is the runtime that is asked, with a product that shows it.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx

__all__ = ["saturates_products"]

_DEPTH = 64  # a multiple of what any kernel takes at once


@functools.cache
def saturates_products() -> bool:
    """Whether sums of uint8 x int8 products saturate here. True where no onnxruntime is there to ask."""
    try:
        import onnxruntime
    except ImportError:
        return True
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _largest_product().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"x": np.full((1, _DEPTH), 255, np.uint8)})[0]
    return bool((found != 255 * 127 * _DEPTH).any())


def _largest_product() -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(np.full((_DEPTH, 16), 127, np.int8), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "largest_product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, _DEPTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, 16])],
        [weight],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
