"""Which linear operators may be given another form, and why others may not."""

from __future__ import annotations

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.linear import Linear, as_linear

__all__ = ["why_no_form"]

_FEWEST = 256  # numbers of a weight that is worth a second operator


def why_no_form(op: Linear) -> str | None:
    """Return why an operator has no other form at all, or None."""
    if op.node.op_type == "ConvTranspose":
        return "ConvTranspose has no form here yet"
    if op.groups > 1:
        return f"its channels lie in {op.groups} groups already"
    if len(op.kernel) > 2:
        return f"its kernel has {len(op.kernel)} axes, and forms have two at most"
    if op.weight().size < _FEWEST:
        return f"its weight has {op.weight().size} numbers, too few to split"
    if op.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its auto_pad leaves the padding to the operator; cleanup writes it out"
    if len(op.weight_value.uses()) > 1:
        return f"it shares its weight {op.weight_value.name!r}"
    if is_encoded(op.weight_value):
        return f"its weight {op.weight_value.name!r} is encoded already"
    if op.weight_value.is_graph_output():
        return f"its weight {op.weight_value.name!r} is an output of the model"
    for neighbour in (op.data.producer(), *(op.output.consumers() if len(op.output.uses()) == 1 else ())):
        if neighbour is not None and isinstance(as_linear(neighbour), Linear):
            return f"node {neighbour.name!r} is right next to it, so that the two are a product already"
    return None
