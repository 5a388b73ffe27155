"""Checks of what onnxruntime's optimizer and kernels take: which quantized graphs it fuses, and which it changes.

Each looks at one node and answers with the reason why it breaks the rule, or None. What they say was seen on its
optimized graphs and their outputs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.linear import constant_numbers, constant_tensor
from onnxpress.targets.patterns import dequantize_of, is_quantize, is_stored, quantizers_of
from onnxpress.targets.site import (
    Check,
    Site,
    behind_activation,
    clip_limits,
    element_type,
    integers,
    is_transposed,
    left_weight,
    quantized_weight,
    scalar,
    scale_axis,
)

__all__ = ["FUSION_CHECKS"]

_DECODED_TYPES = ("int8", "uint8", "int4", "uint4")


# Checks: does the runtime take it at all?


def _check_kernel(site: Site) -> str | None:
    """The installed onnxruntime has a CPU kernel. Passes where none is installed."""
    from onnxpress.targets.runtimes.onnxruntime_kernels import installed_kernels

    kernels = installed_kernels()
    reason = None if kernels is None else kernels.missing(site.node, site.opset)
    return reason and f"{reason} in onnxruntime {kernels.version if kernels else ''}"


def _check_true_scalar(site: Site) -> str | None:
    """Scales and zero points around the operator are true scalars, not tensors of shape [1]."""
    around = [dequantize_of(value) for value in site.node.inputs]
    around += [use.node for value in site.node.outputs for use in value.uses() if is_quantize(use.node)]
    for node in around:
        for value in () if node is None else node.inputs[1:3]:
            if value is not None and value.shape is not None and value.shape.dims == (1,):
                return f"{value.name!r} has shape [1], must be a scalar"
    return None


def _check_weight_axis(site: Site) -> str | None:
    """A per-channel scale of the weight counts output channels."""
    node = site.node
    weight = left_weight(node) if node.op_type == "MatMul" else None
    if weight is not None:
        # The runtime fuses unsigned ones only, and then refuses to run them.
        is_fused = element_type(weight.inputs[0]) == "uint8" and dequantize_of(node.inputs[1]) is not None
        axis = scale_axis(weight) if is_fused else None
        return None if axis is None else f"its left weight has scales along axis {axis}, must have one scale"
    weight = quantized_weight(node)
    axis = None if weight is None else scale_axis(weight)
    if weight is None or weight.inputs[0] is None or weight.inputs[0].shape is None or axis is None:
        return None
    shape = weight.inputs[0].shape
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        if groups != 1:
            return f"its weight has scales along axis {axis} in {groups} groups, must have one scale"
        return None if axis == 1 else f"its weight has scales along axis {axis}, must be 1"
    is_outputs_last = node.op_type == "MatMul" or (node.op_type == "Gemm" and not is_transposed(node))
    expected = len(shape) - 1 if is_outputs_last else 0
    return None if axis == expected else f"its weight has scales along axis {axis}, must be {expected}"


# Checks: does it reach the integer kernel?


def _check_weight_only(site: Site) -> str | None:
    """A weight behind a DequantizeLinear meets data that are quantized too."""
    weight = quantized_weight(site.node)
    if weight is None or dequantize_of(site.node.inputs[0]) is not None:
        return None
    return "its weight is quantized and its data are not"


def _check_weight_type(site: Site) -> str | None:
    """Reads `inputs`: the types that a quantized weight may be stored in."""
    weight = quantized_weight(site.node)
    kind = element_type(weight.inputs[0]) if weight is not None else None
    allowed = site.rule.inputs.get(1, frozenset())
    if kind is None or kind in allowed or dequantize_of(site.node.inputs[0]) is None:
        return None
    return f"its weight goes into DequantizeLinear as {kind}, must be {', '.join(sorted(allowed))}"


def _check_left_weight(site: Site) -> str | None:
    """Reads `inputs`: the types that a product's quantized left operand may have; with one scale, by quantized data."""
    node = site.node
    weight = left_weight(node)
    if weight is None:
        return None
    if dequantize_of(node.inputs[1]) is None:
        return "its left operand is a quantized weight and its data are not quantized"
    kind = element_type(weight.inputs[0])
    allowed = site.rule.inputs.get(0, frozenset())
    if kind is not None and kind not in allowed:
        return f"its left weight goes into DequantizeLinear as {kind}, must be {', '.join(sorted(allowed))}"
    return None if scale_axis(weight) is None else "its left weight has several scales, must have one"


def _check_weight_zero_point(site: Site) -> str | None:
    """A quantized weight beside quantized data has a zero point, even if it is zero."""
    weight = quantized_weight(site.node)
    if weight is None or dequantize_of(site.node.inputs[0]) is None:
        return None
    if len(weight.inputs) > 2 and weight.inputs[2] is not None:
        return None
    return "its weight has no zero point"


def _check_open_output(site: Site) -> str | None:
    """The output of a quantized operator is read by QuantizeLinear alone, in one way."""
    if quantized_weight(site.node) is None or dequantize_of(site.node.inputs[0]) is None:
        return None
    output = behind_activation(site.node).outputs[0]
    quantizers = quantizers_of(output)
    if not quantizers:
        return f"its output {output.name!r} is also read in float"
    ways = {tuple(quantize.inputs[1:]) for quantize in quantizers}
    return None if len(ways) == 1 else f"its output {output.name!r} is quantized in {len(ways)} ways"


def _check_activation_zero_point(site: Site) -> str | None:
    """The quantized output of a Relu starts at the lowest integer."""
    for quantize in quantizers_of(site.node.outputs[0]):
        zero_point, lowest, _ = integers(quantize)
        if zero_point is not None and zero_point != lowest:
            return f"its output has zero point {zero_point}, must be {lowest}"
    return None


def _check_clip_range(site: Site) -> str | None:
    """The integers behind a Clip reach no further than its limits, by less than half a step."""
    low, high = clip_limits(site.node)
    for quantize in quantizers_of(site.node.outputs[0]):
        zero_point, lowest, highest = integers(quantize)
        step = scalar(quantize.inputs[1])
        if zero_point is None or step is None or step <= 0 or low is None or high is None:
            continue
        if low / step + zero_point > lowest + 0.5 or high / step + zero_point < highest - 0.5:
            first, last = (lowest - zero_point) * step, (highest - zero_point) * step
            return f"its output has the range [{first:g}, {last:g}], must lie inside [{low:g}, {high:g}]"
    return None


def _check_bias_scale(site: Site) -> str | None:
    """Reads `tolerance`: how far, relatively, a bias's scale may be from data scale x weight scale."""
    node = site.node
    bias = dequantize_of(node.inputs[2]) if len(node.inputs) > 2 else None
    data = None if bias is None else dequantize_of(node.inputs[0])
    weight = quantized_weight(node)
    if bias is None or data is None or weight is None:
        return None
    actual, factor, scale = constant_numbers(bias.inputs[1]), scalar(data.inputs[1]), constant_numbers(weight.inputs[1])
    if actual is None or factor is None or scale is None:
        return None
    expected = factor * scale.astype(np.float64).reshape(-1)
    if actual.size not in (1, expected.size) and expected.size != 1:
        return f"its bias has {actual.size} scales, must have {expected.size}"
    quotients = actual.astype(np.float64).reshape(-1) / np.maximum(expected, np.finfo(np.float64).tiny)
    if float(np.abs(quotients - 1).max()) <= (site.rule.tolerance or 0.0):
        return None
    factors = np.maximum(quotients, 1 / np.maximum(quotients, np.finfo(np.float64).tiny))  # too large, or too small
    return f"the scale of its bias is off from data scale x weight scale by a factor of up to {factors.max():.3g}"


def _check_shared_signed(site: Site) -> str | None:
    """A signed activation is read by one operator only."""
    node = site.node
    uses = len(node.outputs[0].uses())
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if node.op_type != "DequantizeLinear":
        return None
    kind = element_type(node.inputs[0]) or element_type(zero_point)
    if kind != "int8" or uses < 2 or is_stored(node.inputs[0]):
        return None
    return f"the signed activation {node.outputs[0].name!r} is read {uses} times"


def _check_beta(site: Site) -> str | None:
    """A quantized Gemm adds its bias as it is."""
    node = site.node
    beta = node.attributes.get_float("beta", 1.0)
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    if beta == 1.0 or not has_bias or quantized_weight(node) is None:
        return None
    return f"beta is {beta:g}, must be 1"


def _check_between_integers(site: Site) -> str | None:
    """The operator does not stand between DequantizeLinear and QuantizeLinear."""
    node = site.node
    if not node.inputs or dequantize_of(node.inputs[0]) is None or not quantizers_of(node.outputs[0]):
        return None
    return "is quantized on both sides"


def _check_accuracy_level(site: Site) -> str | None:
    """MatMulNBits of 2 or 8 bits computes on 8-bit activations (accuracy_level 4)."""
    bits = site.node.attributes.get_int("bits", 4)
    level = site.node.attributes.get_int("accuracy_level", 0)
    return None if bits == 4 or level == 4 else f"{bits} bits at accuracy_level {level}"


# Checks: does the runtime compute what the graph says?


def _check_float_weight(site: Site) -> str | None:
    """A float weight does not stand between quantized data and a quantized output."""
    node = site.node
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or constant_tensor(weight) is None or dequantize_of(node.inputs[0]) is None:
        return None
    if not quantizers_of(behind_activation(node).outputs[0]):
        return None
    return f"its weight is {element_type(weight)} between integers"


def _check_float_data(site: Site) -> str | None:
    """A quantized weight of a matrix product does not meet float data: they would be quantized on the way."""
    node = site.node
    if quantized_weight(node) is None or dequantize_of(node.inputs[0]) is not None:
        return None
    if node.op_type == "Gemm" and is_transposed(node):
        return None
    return "its weight is quantized and its data are not"


def _check_decoded_weight(site: Site) -> str | None:
    """Reads `limit`: inputs from which on a product of float data may have no weight that is merely scaled integers."""
    node = site.node
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or len(weight.shape) < 2 or dequantize_of(node.inputs[0]) is not None:
        return None
    inputs = weight.shape[-1] if node.op_type == "Gemm" and is_transposed(node) else weight.shape[-2]
    if isinstance(inputs, int) and inputs < site.limit:
        return None
    kind = _scaled_from(weight)
    return None if kind is None else f"its weight is decoded from {kind} and its data are float"


def _scaled_from(weight: onnx_ir.Value) -> str | None:
    """Return the stored type of a weight that a Cast and a Mul, or a DequantizeLinear, decodes; a Transpose may follow.

    None where anything else decodes it, or nothing scales it.
    """
    node = weight.producer()
    if node is not None and node.op_type == "Transpose":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is not None and node.op_type == "Mul":
        casts = [value.producer() for value in node.inputs if value is not None and constant_tensor(value) is None]
        node = casts[0] if len(casts) == 1 else None
        if node is None or node.op_type != "Cast":
            return None
    elif node is None or node.op_type != "DequantizeLinear":
        return None
    kind = element_type(node.inputs[0])
    return kind if constant_tensor(node.inputs[0]) is not None and kind in _DECODED_TYPES else None


FUSION_CHECKS: dict[str, Check] = {
    "accuracy-level": Check(_check_accuracy_level),
    "activation-zero-point": Check(_check_activation_zero_point),
    "beta": Check(_check_beta),
    "between-integers": Check(_check_between_integers),
    "bias-scale": Check(_check_bias_scale, ("tolerance",)),
    "clip-range": Check(_check_clip_range),
    "decoded-weight": Check(_check_decoded_weight, ("limit",)),
    "float-data": Check(_check_float_data),
    "float-weight": Check(_check_float_weight),
    "kernel": Check(_check_kernel),
    "left-weight": Check(_check_left_weight, ("inputs.0",)),
    "open-output": Check(_check_open_output),
    "shared-signed": Check(_check_shared_signed),
    "true-scalar": Check(_check_true_scalar),
    "weight-axis": Check(_check_weight_axis),
    "weight-only": Check(_check_weight_only),
    "weight-type": Check(_check_weight_type, ("inputs.1",)),
    "weight-zero-point": Check(_check_weight_zero_point),
}
