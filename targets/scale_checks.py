"""Checks of explicit quantization: what QuantizeLinear and DequantizeLinear may say, and what they may stand before.

Each looks at one node and answers with the reason why it breaks the rule, or None. "Stored" is what follows from
constants alone: a weight. Everything else is an activation.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.patterns import dequantize_of, is_quantize, is_stored
from onnxpress.targets.site import Check, Site, element_type, quantized_weight, scale_axis

__all__ = ["SCALE_CHECKS"]

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _check_zero_point(site: Site) -> str | None:
    """Zero points are zero."""
    value = _input(site.node, 2)
    if value is None:
        return None
    stored = constant_numbers(value)
    if stored is None:
        return None if is_stored(value) else f"its zero point {value.name!r} is computed, must be constant zeros"
    nonzero = np.asarray(stored, np.float32).reshape(-1)
    nonzero = nonzero[nonzero != 0]
    return f"its zero point is {nonzero[0]:g}, must be 0" if nonzero.size else None


def _check_forbidden_quantized(site: Site) -> str | None:
    """Reads `types`: what must not be quantized to, or dequantized from, such as a bias of int32."""
    kind = _quantized_type(site)
    return f"it is of {kind}" if kind in site.rule.types else None


def _check_computed_type(site: Site) -> str | None:
    """Reads `types`: what only the result of a QuantizeLinear may be dequantized from."""
    data = _input(site.node, 0)
    producer = None if data is None else data.producer()
    kind = _quantized_type(site)
    if kind not in site.rule.types or not is_stored(data) or (producer is not None and is_quantize(producer)):
        return None
    return f"its stored data are {kind}"


def _check_scale_type(site: Site) -> str | None:
    """Reads `types`: what scales may be."""
    kind = element_type(_input(site.node, 1))
    allowed = site.rule.types
    return None if kind is None or kind in allowed else f"its scale is {kind}, may be {', '.join(sorted(allowed))}"


def _check_constant_scale(site: Site) -> str | None:
    """Scales are constant."""
    scale = _input(site.node, 1)
    return None if scale is None or is_stored(scale) else f"its scale {scale.name!r} is computed"


def _check_positive_scale(site: Site) -> str | None:
    """Scales are above zero."""
    stored = constant_numbers(_input(site.node, 1))
    if stored is None or stored.size == 0:
        return None
    least = float(np.asarray(stored, np.float64).min())
    return None if least > 0 else f"its smallest scale is {least:g}"


def _check_activation_scale(site: Site) -> str | None:
    """An activation has one scale."""
    scale, data = _input(site.node, 1), _input(site.node, 0)
    if scale is None or scale.shape is None or is_stored(data):
        return None
    count = _count(scale)
    if count in (None, 1):
        return None
    return f"the activation {data.name if data else ''!r} has {count} scales, must have one"


def _check_scale_count(site: Site) -> str | None:
    """There are as many scales as channels along the axis."""
    data, scale = _input(site.node, 0), _input(site.node, 1)
    axis = None if data is None or scale is None else scale_axis(site.node)
    if data is None or data.shape is None or axis is None:
        return None
    channels, count = data.shape[axis], _count(scale)
    if not isinstance(channels, int) or count is None or channels == count:
        return None
    return f"it has {count} scales for {channels} channels along axis {axis}"


def _check_zero_point_count(site: Site) -> str | None:
    """There are as many zero points as scales."""
    scales, zeros = _count(_input(site.node, 1)), _count(_input(site.node, 2))
    if scales is None or zeros is None or scales == zeros:
        return None
    return f"it has {zeros} zero points for {scales} scales"


def _check_block_type(site: Site) -> str | None:
    """Reads `types`: what may be scaled in blocks."""
    kind = _quantized_type(site)
    if not _is_blocked(site.node) or kind is None or kind in site.rule.types:
        return None
    return f"{kind} is scaled in blocks, only {', '.join(sorted(site.rule.types))} may be"


def _check_block_axis(site: Site) -> str | None:
    """Blocks lie along one axis, the last or the one before it, and fill it."""
    node = site.node
    data, scale = _input(node, 0), _input(node, 1)
    if not _is_blocked(node) or data is None or data.shape is None or scale is None or scale.shape is None:
        return None
    sizes, blocks = data.shape.dims, scale.shape.dims
    if len(sizes) != len(blocks) or not all(isinstance(size, int) for size in (*sizes, *blocks)):
        return None
    pairs = [(int(size), int(block)) for size, block in zip(sizes, blocks, strict=True)]  # type: ignore[arg-type]
    differing = [axis for axis, (size, block) in enumerate(pairs) if size != block]
    early = [axis for axis in differing if axis < len(sizes) - 2]
    if early:
        return f"its blocks lie along axis {early[0]} of {len(sizes)}, must be one of the last two"
    if len(differing) > 1:
        return f"its blocks lie along the axes {', '.join(map(str, differing))}, must be one"
    for axis in differing:
        size, block = pairs[axis]
        if block == 0 or size % block:
            return f"{size} channels along axis {axis} are no multiple of {block} blocks"
    return None


def _check_block_size(site: Site) -> str | None:
    """Reads `types` and `numbers`: sizes that blocks of these types may have."""
    size = site.node.attributes.get_int("block_size", 0)
    allowed = site.rule.numbers
    if not size or size in allowed or _quantized_type(site) not in site.rule.types:
        return None
    return f"its blocks are of {size}, may be of {', '.join(map(str, allowed))}"


def _check_stored_type(site: Site) -> str | None:
    """Reads `types`: what only stored weights may be quantized to."""
    kind = _quantized_type(site)
    if kind not in site.rule.types or is_stored(_input(site.node, 0)):
        return None
    return f"an activation is quantized to {kind}"


def _check_even_axis(site: Site) -> str | None:
    """Reads `types`: what is packed in pairs along the last axis, which must be even for them."""
    data = _input(site.node, 0)
    if _quantized_type(site) not in site.rule.types or data is None or data.shape is None or not len(data.shape):
        return None
    last = data.shape[-1]
    return f"its last axis has {last} entries" if isinstance(last, int) and last % 2 else None


def _check_readers(site: Site) -> str | None:
    """Reads `types` and `known`: the operators that may read what is dequantized from these types."""
    if _quantized_type(site) not in site.rule.types:
        return None
    for reader in site.node.outputs[0].consumers():
        if reader.op_type not in site.rule.known:
            return f"{_quantized_type(site)} is read by {reader.op_type} {reader.name!r}"
    return None


def _check_float_bias(site: Site) -> str | None:
    """The bias of a product is not quantized."""
    bias = dequantize_of(_input(site.node, 2))
    return None if bias is None else f"its bias is dequantized from {_type_behind(bias) or 'integers'}"


def _check_stored_alone(site: Site) -> str | None:
    """Reads `types`: weights of these types may meet data that are not quantized."""
    weight = quantized_weight(site.node)
    if weight is None or dequantize_of(_input(site.node, 0)) is not None:
        return None
    kind = _type_behind(weight)
    return None if kind is None or kind in site.rule.types else f"its weight is {kind} and its data are not quantized"


def _check_residual(site: Site) -> str | None:
    """Of the operands of an Add, one that a quantized product alone computes is float, and the other is quantized."""
    operands = [value for value in site.node.inputs if value is not None and not is_stored(value)]
    fused = [value for value in operands if _is_quantized_product(value.producer()) and len(value.uses()) == 1]
    rest = [value for value in operands if value not in fused]
    if len(operands) != 2 or not fused or any(dequantize_of(value) is not None for value in rest):
        return None
    return f"its other operand {(rest or fused)[-1].name!r} is not quantized"


def _check_narrow(site: Site) -> str | None:
    """Reads `limit`: the least channels, in and out, at which integers are faster than floats."""
    weight = quantized_weight(site.node)
    stored = weight.inputs[0] if weight is not None else None
    if stored is None or stored.shape is None or len(stored.shape) < 2 or site.node.attributes.get_int("group", 1) != 1:
        return None
    sizes = [size for size in stored.shape.dims[:2] if isinstance(size, int)]
    if not sizes or max(sizes) >= site.limit:
        return None
    return f"it has {' and '.join(map(str, sizes))} channels, out and in, fewer than {site.limit}"


def _check_kernel_area(site: Site) -> str | None:
    """Reads `types` and `limit`: the largest kernel, in positions, of a Conv whose weight is of these types."""
    weight = quantized_weight(site.node)
    stored = weight.inputs[0] if weight is not None else None
    if weight is None or stored is None or stored.shape is None or _type_behind(weight) not in site.rule.types:
        return None
    area = int(np.prod([size for size in stored.shape.dims[2:] if isinstance(size, int)]))
    return f"its kernel has {area} positions, more than {site.limit}" if area > site.limit else None


def _is_quantized_product(node: onnx_ir.Node | None) -> bool:
    """Whether `node` is a product of quantized data and a quantized weight."""
    if node is None or node.op_type not in _PRODUCTS or quantized_weight(node) is None:
        return False
    return dequantize_of(node.inputs[0]) is not None


def _input(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _count(value: onnx_ir.Value | None) -> int | None:
    """Return how many numbers `value` holds; None where that is not written."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return int(np.prod([int(size) for size in value.shape.dims]))  # type: ignore[arg-type]


def _is_blocked(node: onnx_ir.Node) -> bool:
    scale = _input(node, 1)
    if node.attributes.get_int("block_size", 0):
        return True
    return scale is not None and scale.shape is not None and len(scale.shape) > 1


def _quantized_type(site: Site) -> str | None:
    """Return the element type on the quantized side of a QuantizeLinear or DequantizeLinear."""
    node = site.node
    if not is_quantize(node):
        return _type_behind(node)
    return element_type(node.outputs[0]) or element_type(_input(node, 2)) or _default_type(node)


def _default_type(node: onnx_ir.Node) -> str | None:
    """ONNX: without a zero point, and without output_dtype, a QuantizeLinear gives uint8."""
    if node.attributes.get_int("output_dtype", 0):
        return onnx_ir.DataType(node.attributes.get_int("output_dtype", 0)).name.lower()
    return "uint8" if _input(node, 2) is None else None


def _type_behind(dequantize: onnx_ir.Node) -> str | None:
    return element_type(_input(dequantize, 0)) or element_type(_input(dequantize, 2))


SCALE_CHECKS: dict[str, Check] = {
    "activation-scale": Check(_check_activation_scale),
    "block-axis": Check(_check_block_axis),
    "block-size": Check(_check_block_size, ("types", "numbers")),
    "block-type": Check(_check_block_type, ("types",)),
    "computed-type": Check(_check_computed_type, ("types",)),
    "constant-scale": Check(_check_constant_scale),
    "even-axis": Check(_check_even_axis, ("types",)),
    "float-bias": Check(_check_float_bias),
    "forbidden-quantized": Check(_check_forbidden_quantized, ("types",)),
    "kernel-area": Check(_check_kernel_area, ("types", "limit")),
    "narrow": Check(_check_narrow, ("limit",)),
    "positive-scale": Check(_check_positive_scale),
    "readers": Check(_check_readers, ("types", "known")),
    "residual": Check(_check_residual),
    "scale-count": Check(_check_scale_count),
    "scale-type": Check(_check_scale_type, ("types",)),
    "stored-alone": Check(_check_stored_alone, ("types",)),
    "stored-type": Check(_check_stored_type, ("types",)),
    "zero-point": Check(_check_zero_point),
    "zero-point-count": Check(_check_zero_point_count),
}
