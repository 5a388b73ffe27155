"""What may fold: the rules about constant expressions that keep a file from growing.

A constant expression (a node whose inputs are all constant) folds when: it has one output, which is no graph
output, carries no quantization note, and is a scalar where a Range reads it; no input is an encoded weight, or
can be overridden by a caller; the size of its result is known; it is cheap to compute; and the file does not
grow: the result may take 1 KiB more than the constants that it replaces, and nothing more where one of those is
stored in fewer than 32 bits.

Nothing folds in a model where onnxscript would break a node in passing: sequences before opset 18, a CastLike
whose attributes are no defaults, an If in front of a Range of anything but scalars.

So quantized and packed weights stay as they are stored, whatever decodes them (Cast and Mul, BitShift and
BitwiseAnd, Gather from a codebook). QuantizeLinear and DequantizeLinear never fold: they are meaning, not
arithmetic. Neither does what draws random numbers, nor an operator of another domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx_ir

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.duplicates import QUANTIZERS, RANDOM
from onnxpress.passes.cleanup.graph_edits import is_default_domain, subgraphs_of

__all__ = ["CHEAP_ELEMENTS", "has_work", "kept", "should_fold"]

CHEAP_ELEMENTS = 8192  # onnxscript's default limit; here for operators that are slow in numpy

_GROWTH_BYTES = 1024  # room for masks and position tables, not for weights
_NARROW_BITS = 32  # types below are how weights are stored compactly

# Linear in their operands, so that no size is too much.
_CHEAP = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Exp", "Flatten", "Floor",
        "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod",
        "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Reshape", "Round", "Sigmoid", "Sign",
        "Slice", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
_NEVER = QUANTIZERS | RANDOM | {"Constant"}
_SEQUENCES = frozenset({"ConcatFromSequence", "SplitToSequence"})
_RESOLVED_BY_ONNXSCRIPT = _SEQUENCES | {"CastLike", "SequenceAt"}
_CAST_DEFAULTS = {"saturate": 1, "round_mode": "up"}  # of CastLike
_OPSET_FOR_SEQUENCES = 18  # onnxscript resolves sequences into Split and Unsqueeze as they are from here on


def has_work(model: onnx_ir.Model) -> bool:
    """Whether folding could find something. Reads only, and imports nothing.

    It can for a constant expression that may fold, a Shape or Size of known dimensions, an If on a constant,
    and operators that onnxscript resolves by itself (CastLike, sequences).
    """
    nodes = list(model.graph.all_nodes())
    return _obstacle(model, nodes) is None and any(_may_fold(node) for node in nodes)


def kept(model: onnx_ir.Model, *, gave_up: bool) -> list[Declined]:
    """Return the constant expressions that are left in the graph, with the reason. Reads only.

    gave_up: whether onnxscript failed before it was done.
    """
    nodes = list(model.graph.all_nodes())
    otherwise = "onnxscript gave up" if gave_up else "onnx's reference implementation cannot compute it"
    otherwise = _obstacle(model, nodes) or otherwise
    found = [(node, _reason_against(node)) for node in nodes if _is_constant_expression(node)]
    return [Declined(node.name or "", node.op_type, reason or otherwise) for node, reason in found]


def should_fold(node: onnx_ir.Node) -> bool:
    """Whether the node is a constant expression that may fold. Reads only."""
    return _is_constant_expression(node) and _reason_against(node) is None


def _may_fold(node: onnx_ir.Node) -> bool:
    if not is_default_domain(node):
        return False
    if node.op_type in ("Shape", "Size"):
        return _has_known_dimension(node)
    if node.op_type == "If":
        return constant_tensor(node.inputs[0]) is not None
    if node.op_type in _RESOLVED_BY_ONNXSCRIPT:
        return True
    return should_fold(node)


def _obstacle(model: onnx_ir.Model, nodes: Iterable[onnx_ir.Node]) -> str | None:
    """Say why nothing may fold in this model at all, or None."""
    opset = model.opset_imports.get("", 0)
    for node in nodes:
        why = _obstacle_at(node, opset) if is_default_domain(node) else None
        if why is not None:
            return f"beside {node.op_type} {node.name!r}, {why}"
    return None


def _obstacle_at(node: onnx_ir.Node, opset: int) -> str | None:
    """Say what onnxscript, which does not ask about every node, would do to this one in folding others."""
    if node.op_type in _SEQUENCES and opset < _OPSET_FOR_SEQUENCES:
        return f"which onnxscript would rewrite for opset {_OPSET_FOR_SEQUENCES}"
    if node.op_type == "CastLike":
        lost = [name for name, value in node.attributes.items() if value.value != _CAST_DEFAULTS.get(name)]
        return f"which onnxscript would rewrite without its {lost[0]}" if lost else None
    if node.op_type == "If":
        ranges = [user for value in node.outputs for user in _ranges_of_ranked(value)]
        return f"whose branch, once taken, may leave Range {ranges[0].name!r} a constant with axes" if ranges else None
    return None


def _ranges_of_ranked(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Return the Ranges that read `value`, if it has axes: onnxruntime computes with [1], but not as a constant."""
    users = value.consumers() if value.shape else ()
    return [user for user in users if user.op_type == "Range" and is_default_domain(user)]


def _has_known_dimension(node: onnx_ir.Node) -> bool:
    """Whether a Shape or Size can give a number that a later node may fold on."""
    source = node.inputs[0]
    shape = None if source is None else proven_shape(source)
    if shape is None:
        return False
    dims = shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
    if all(isinstance(dim, int) for dim in dims):
        return True
    return node.op_type == "Shape" and any(_picks_number(user, dims) for user in node.outputs[0].consumers())


def _picks_number(user: onnx_ir.Node, dims: Sequence[int | onnx_ir.SymbolicDim]) -> bool:
    """Whether `user` gathers dimensions that are numbers, in the one form that onnxscript resolves."""
    if user.op_type != "Gather" or user.attributes.get_int("axis", None) != 0:
        return False
    wanted = constant_tensor(user.inputs[1])
    if wanted is None or len(wanted.shape) != 1:
        return False
    indices = wanted.numpy().tolist()
    return all(-len(dims) <= index < len(dims) and isinstance(dims[index], int) for index in indices)


def _is_constant_expression(node: onnx_ir.Node) -> bool:
    """Whether the node computes the same in every run, and is one that may be asked to fold at all."""
    if not is_default_domain(node) or node.op_type in _NEVER or any(subgraphs_of(node)):
        return False
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(constant_tensor(value) is not None for value in given)


def _reason_against(node: onnx_ir.Node) -> str | None:
    """Return the clause that keeps a constant expression in the graph, or None."""
    if len(node.outputs) != 1:
        return f"it has {len(node.outputs)} outputs, needs 1"
    output = node.outputs[0]
    if output.is_graph_output():
        return f"{output.name!r} is a graph output"
    if quantization_of(output) is not None:
        return f"{output.name!r} carries a quantization note"
    if ranges := _ranges_of_ranked(output):
        return f"Range {ranges[0].name!r} takes no constant with axes"
    operands = [value for value in dict.fromkeys(node.inputs) if value is not None]
    encoded = [value.name for value in operands if is_encoded(value)]
    if encoded:
        return f"{encoded[0]!r} is an encoded weight"
    size_bytes = _static_bytes(output)
    if size_bytes is None:
        return "the size of its result is unknown"
    tensors = [tensor for value in operands if (tensor := constant_tensor(value)) is not None]
    elements = sum(tensor.size for tensor in tensors)
    if node.op_type not in _CHEAP and elements > CHEAP_ELEMENTS:
        return f"{elements} elements are slow to compute here, the limit is {CHEAP_ELEMENTS}"
    return _growth_reason(node, operands, tensors, size_bytes)


def _growth_reason(
    node: onnx_ir.Node,
    operands: Sequence[onnx_ir.Value],
    tensors: Sequence[onnx_ir.TensorProtocol],
    size_bytes: int,
) -> str | None:
    pairs = zip(operands, tensors, strict=True)
    freed = sum(
        tensor.nbytes
        for value, tensor in pairs
        if not value.is_graph_output() and all(use.node is node for use in value.uses())
    )
    narrow = [tensor.dtype.name for tensor in tensors if tensor.dtype.bitwidth < _NARROW_BITS]
    limit = 0 if narrow else _GROWTH_BYTES
    if size_bytes - freed <= limit:
        return None
    why = f"stored as {narrow[0]}, nothing may be added" if narrow else f"the limit is {limit}"
    return f"its result takes {size_bytes} bytes and frees {freed}: {why}"


def _static_bytes(value: onnx_ir.Value) -> int | None:
    """Return the bytes that `value` takes, or None where its type or a dimension is unknown."""
    if value.dtype is None or value.dtype == onnx_ir.DataType.STRING or value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return math.ceil(math.prod(dims) * value.dtype.itemsize) if len(dims) == len(value.shape) else None
