"""Lower a product with a blocked low-bit weight to onnxruntime's MatMulNBits, which keeps the weight packed as it runs.

    MatMul(X, W) or Gemm(X, W[, B])   =>   MatMulNBits(X, codes [N, K/block, bytes], scales, zero points[, B])

accuracy_level 0: the data stays float32, so that the result differs from that of the dense weight by rounding alone.

It reads an eighth of the bytes, which wins where one row waits for memory, and decodes at every run, which loses with
more rows. Speed over a dense weight, 4 bits, blocks of 32 and 128 alike within 0.1 (onnxruntime 1.32.0, one thread, CPU
time, interleaved, ratio of medians, an Intel Xeon with VNNI; folded is the form of `reals`):

    K = N    rows   MatMulNBits   folded
    1024        1   1.3 - 1.4     1.0
    1024        4   0.6           1.0
    1024       16   0.7           0.9 - 1.0
    2048        1   1.9 - 2.0     0.9 - 1.0
    2048        4   0.9           1.0
    2048       16   0.8           1.0

2 bits at accuracy_level 0 reach 0.04 to 0.08: never.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import Affine
from onnxpress.ir.linear import Linear
from onnxpress.ir.shapes import static_shape
from onnxpress.targets.lowering.emit import Emitter

__all__ = ["fits_nbits", "lower_to_nbits"]

_DOMAIN = "com.microsoft"
_BLOCKS = (16, 32, 64, 128, 256)  # what the operator takes
_LEAST_WEIGHTS = 1 << 20  # 1024 x 1024, the smallest that was measured; smaller ones stay in the processor's cache


def fits_nbits(view: Linear, encoded: Affine, bits: tuple[int, ...]) -> bool:
    """Whether MatMulNBits takes the weight, and is faster with it: for a single row at batch 1. bits: known widths."""
    return (
        view.node.op_type in ("Gemm", "MatMul")
        and view.weight_index == 1
        and encoded.bits in bits
        and encoded.block_size in _BLOCKS
        and encoded.axis == 1 - view.out_axis
        and encoded.size >= _LEAST_WEIGHTS
        and _rows(view.data) == 1
    )


def lower_to_nbits(emit: Emitter, view: Linear, encoded: Affine) -> None:
    """Put MatMulNBits in the place of the layer, under its name."""
    node, name, block = view.node, str(view.weight_value.name), encoded.block_size
    assert block is not None, "fits_nbits asks for blocks"
    offset = 1 << (encoded.bits - 1) if encoded.signed else 0  # the operator's codes are unsigned
    codes = (view.from_stored(encoded.codes).astype(np.int16) + offset).astype(np.uint8)
    blocks = -(-view.in_channels // block)
    codes = np.pad(codes, [(0, 0), (0, blocks * block - view.in_channels)])
    scale = np.ascontiguousarray(view.from_stored(encoded.scale))
    inputs: list[onnx_ir.Value | None] = [
        view.data,
        emit.constant(f"{name}_packed", _pack(codes, encoded.bits).reshape(view.out_channels, blocks, -1)),
        emit.constant(f"{name}_scale", scale.reshape(-1)),
    ]
    zero_point = np.zeros(scale.shape, np.int16) if encoded.zero_point is None else view.from_stored(encoded.zero_point)
    zeros = (zero_point.astype(np.int16) + offset).astype(np.uint8)
    if (zeros != 1 << (encoded.bits - 1)).any():  # what the operator assumes without
        inputs.append(emit.constant(f"{name}_zero_point", _pack(zeros, encoded.bits).reshape(-1)))
    bias = view.bias()
    if bias is not None:
        inputs += [None] * (5 - len(inputs))
        held = view.bias_value
        is_plain = held is not None and held.shape is not None and held.shape.dims == (view.out_channels,)
        inputs.append(held if is_plain else emit.constant(f"{name}_bias", bias))
    attributes = {"K": view.in_channels, "N": view.out_channels, "bits": encoded.bits, "block_size": block}
    _replace(emit, node, inputs, {**attributes, "accuracy_level": 0})


def _replace(emit: Emitter, node: onnx_ir.Node, inputs: list[onnx_ir.Value | None], attributes: dict[str, int]) -> None:
    """Put the operator in the place of `node`. Its output keeps its shape in the file: onnx cannot infer it."""
    old = node.outputs[0]
    new = onnx_ir.val(str(old.name), type=old.type, shape=old.shape)
    graph = node.graph
    assert graph is not None, "layers are found in a graph"
    operator = onnx_ir.node("MatMulNBits", inputs, attributes, domain=_DOMAIN, outputs=[new], name=node.name)
    graph.insert_before(node, operator)
    onnx_ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    given = [value for value in node.inputs[1:] if value is not None]
    graph.remove(node, safe=True)
    for value in given:
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            emit.graph.initializers.pop(str(value.name))
    emit.graph.opset_imports.setdefault(_DOMAIN, 1)


def _rows(data: onnx_ir.Value) -> int | None:
    shape = static_shape(data)
    return None if shape is None else math.prod(shape[:-1])


def _pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Return rows of codes [rows, n] as bytes [rows, ceil(n * bits / 8)], the first code lowest."""
    digits = 8 // bits
    padded = np.pad(codes, [(0, 0), (0, -codes.shape[1] % digits)]).reshape(len(codes), -1, digits)
    shifted = padded << (np.arange(digits) * bits).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=2).astype(np.uint8)
    return packed
