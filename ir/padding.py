"""Padding that integer kernels are known to get wrong, where a target says so."""

from __future__ import annotations

import onnx_ir

__all__ = ["averages_padding", "steps_over_padding"]


def averages_padding(node: onnx_ir.Node) -> bool:
    """Whether `node` is an AveragePool that counts its padding (count_include_pad), and has some.

    What auto_pad adds depends on the image, so SAME_UPPER and SAME_LOWER count as some.
    """
    if node.op_type != "AveragePool" or not node.attributes.get_int("count_include_pad", 0):
        return False
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    return automatic.startswith("SAME") or (automatic == "NOTSET" and any(node.attributes.get_ints("pads", ())))


def steps_over_padding(node: onnx_ir.Node) -> bool:
    """Whether `node` is an ungrouped Conv of kernel 1 in all axes, and pads one in which it has a stride.

    With auto_pad a kernel of 1 pads nothing.
    """
    weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or node.attributes.get_int("group", 1) != 1:
        return False
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or any(size != 1 for size in weight.shape[2:]):
        return False
    count = len(weight.shape) - 2
    pads, strides = node.attributes.get_ints("pads", ()), node.attributes.get_ints("strides", ())
    return any(stride > 1 and any(pads[axis::count]) for axis, stride in enumerate(strides))
