"""Whether a 4-bit weight may stand as INT4 before a DequantizeLinear: what a target's storage table says of it."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.encodings import Affine, Encoded
from onnxpress.targets.schema import Storage

__all__ = ["takes_int4"]


def takes_int4(value: onnx_ir.Value, encoded: Encoded | None, storage: Storage) -> bool:
    """Whether the target takes `value`, which `encoded` stands for, in this form, for every reader that it has."""
    if not storage.int4_dequantize or not isinstance(encoded, Affine) or encoded.bits != 4:
        return False
    uses = [(use.node, use.idx) for use in value.uses()]
    if storage.int4_readers and not all(node.op_type in storage.int4_readers and index == 1 for node, index in uses):
        return False
    if not storage.int4_blocks:
        return True
    shape = encoded.codes.shape
    is_plain = encoded.signed and (encoded.zero_point is None or not encoded.zero_point.any())
    if encoded.block_size not in storage.int4_blocks or not is_plain or shape[-1] % 2:
        return False
    return all(encoded.axis == _in_axis(node, len(shape)) for node, _ in uses)


def _in_axis(product: onnx_ir.Node, rank: int) -> int:
    """Return the axis of a Gemm's or MatMul's right operand along which its input channels lie."""
    is_transposed = product.op_type == "Gemm" and product.attributes.get_int("transB", 0) != 0
    return rank - 1 if is_transposed else rank - 2
