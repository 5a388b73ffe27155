"""What the checks of legality look at: one node, the rule, and the small questions that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.activations import clip_limits
from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.patterns import dequantize_of, is_stored
from onnxpress.targets.schema import Rule

__all__ = [
    "Check",
    "Site",
    "attribute_values",
    "behind_activation",
    "clip_limits",
    "element_type",
    "integers",
    "is_meant",
    "is_transposed",
    "left_weight",
    "quantized_weight",
    "scalar",
    "scale_axis",
]


@dataclasses.dataclass(frozen=True)
class Site:
    """A node under a rule. opset: version of the node's domain that the model imports."""

    node: onnx_ir.Node
    rule: Rule
    opset: int

    @property
    def limit(self) -> int:
        """The rule's limit, for checks that need one: no profile is loaded without it."""
        assert self.rule.limit is not None, f"rule {self.rule.id!r} was not validated: it has no limit"
        return self.rule.limit


@dataclasses.dataclass(frozen=True)
class Check:
    """A question to a node. ask: returns why the node breaks the rule, or None where it does not.

    needs: keys of the rule that it reads, beside `ops`; without them it has nothing to go by, and others it ignores.
    """

    ask: Callable[[Site], str | None]
    needs: tuple[str, ...] = ()


def attribute_values(site: Site, name: str) -> tuple[int | str, ...]:
    """Return the value of an attribute, or the operator's default; several for a list, none where there is neither."""
    attribute = site.node.attributes.get(name)
    found = attribute.value if attribute is not None else _default(site, name)
    listed = found if isinstance(found, tuple | list) else (found,)
    return tuple(each for each in listed if isinstance(each, int | str))


def is_meant(site: Site) -> bool:
    """Whether the node's attributes are those that the rule is about."""
    return all(attribute_values(site, name) == (value,) for name, value in site.rule.where.items())


def _default(site: Site, name: str) -> object:
    try:
        schema = onnx.defs.get_schema(site.node.op_type, site.opset, site.node.domain)
    except onnx.defs.SchemaError:
        return None
    known = schema.attributes.get(name)
    if known is None or known.default_value.type == onnx.AttributeProto.UNDEFINED:
        return None
    value = onnx.helper.get_attribute_value(known.default_value)
    return value.decode() if isinstance(value, bytes) else value


def element_type(value: onnx_ir.Value | None) -> str | None:
    """Return the element type, such as "float32" or "int4"; None where it is unknown."""
    if value is None or value.dtype is None:
        return None
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(value.dtype.name, value.dtype.name.lower())


def scalar(value: onnx_ir.Value | None) -> float | None:
    """Return the number that `value` holds; None where it is not constant or not one number."""
    stored = constant_numbers(value)
    return None if stored is None or stored.size != 1 else float(stored.reshape(()))


def is_transposed(gemm: onnx_ir.Node) -> bool:
    """Whether a Gemm's weight lies as [out, in]."""
    return gemm.attributes.get_int("transB", 0) != 0


def quantized_weight(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the DequantizeLinear that decodes the stored second input of `node`, if one does."""
    found = dequantize_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return found if found is not None and is_stored(found.inputs[0]) else None


def left_weight(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the DequantizeLinear that decodes a product's stored left operand, where the right one is computed."""
    if node.op_type not in ("Gemm", "MatMul") or len(node.inputs) < 2 or quantized_weight(node) is not None:
        return None
    found = dequantize_of(node.inputs[0])
    return found if found is not None and is_stored(found.inputs[0]) else None


def scale_axis(weight: onnx_ir.Node) -> int | None:
    """Return the axis along which a DequantizeLinear has several scales; None for one scale, or unknown shapes."""
    stored, scale = weight.inputs[0], weight.inputs[1]
    if stored is None or stored.shape is None or scale is None or scale.shape is None:
        return None
    if len(stored.shape) == 0 or len(scale.shape) != 1 or scale.shape.dims == (1,):
        return None
    return weight.attributes.get_int("axis", 1) % len(stored.shape)


def behind_activation(node: onnx_ir.Node) -> onnx_ir.Node:
    """Return the Relu or Clip that alone reads the output of `node`, or `node` itself."""
    output = node.outputs[0]
    readers = [use.node for use in output.uses()]
    if len(readers) == 1 and readers[0].op_type in ("Clip", "Relu") and not output.is_graph_output():
        return readers[0]
    return node


def integers(quantize: onnx_ir.Node) -> tuple[int | None, int, int]:
    """Return the zero point (None where it is not constant) and the lowest and highest integer."""
    zero_point = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    if zero_point is None:
        return 0, 0, 255  # ONNX: uint8 with zero point 0
    stored = constant_numbers(zero_point)
    if stored is None or stored.size != 1 or stored.dtype.kind not in "iu":
        return None, 0, 0
    limits = np.iinfo(stored.dtype.name)
    return int(stored.reshape(())), int(limits.min), int(limits.max)
