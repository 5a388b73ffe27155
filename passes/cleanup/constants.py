"""Fold what depends on no input: onnxscript's optimizer, with rules of our own about what may fold.

    Y = Op(constants ...)                    =>   a constant
    Shape(X), Size(X) of a static shape      =>   a constant, and so the arithmetic behind it
    If(constant) <then, else>                =>   the branch taken

A constant expression folds when: it has one output, which is no graph output and carries no quantization note;
no input is an encoded weight, or can be overridden by a caller; the size of its result is known; it is cheap to
compute; and the file does not grow: the result may take 1 KiB more than the constants that it replaces, and
nothing more where one of those is stored in fewer than 32 bits. So quantized and packed weights stay as they
are stored, whatever decodes them (Cast and Mul, BitShift and BitwiseAnd, Gather from a codebook).
QuantizeLinear and DequantizeLinear never fold: they are meaning, not arithmetic. Neither does what draws random
numbers, nor an operator of another domain.

Fidelity: exact up to rounding. onnx's reference implementation computes in numpy, and a runtime's own Exp or
MatMul may differ from that in the last bits.

Importing onnxscript costs 0.1 s and 24 MB, its submodules no less. `has_work` looks first: for a constant
expression that may fold, a Shape or Size of known dimensions, an If on a constant, and the operators that
onnxscript resolves by itself (CastLike, sequences).
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir
import onnx_ir.passes.common

from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import note, quantization_of
from onnxpress.passes.base import Amount, Declined, Site
from onnxpress.passes.cleanup.duplicates import QUANTIZERS, RANDOM
from onnxpress.passes.cleanup.graph_edits import (
    IR_VERSION_WITH_CONSTANTS,
    amount,
    constant_ints,
    fresh_name,
    is_default_domain,
    quote_names,
    release_bodies,
    subgraphs_of,
)

__all__ = ["Folded", "fold", "has_work", "kept", "lift"]

_GROWTH_BYTES = 1024  # room for masks and position tables, not for weights
_NARROW_BITS = 32  # types below are how weights are stored compactly
_CHEAP_ELEMENTS = 8192  # onnxscript's default limit; here for operators that are slow in numpy
_UNLIMITED = 1 << 62
_ORIGIN_KEY = "pkg.onnxscript.optimizer.folded_from"  # onnxscript.optimizer.FOLDED_FROM_KEY
_UNKNOWN_SIZE = "the size of its result is unknown"

# Linear in their operands, so that no size is too much.
_CHEAP = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Div", "Equal", "Exp", "Flatten", "Floor", "Gather",
        "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg",
        "Not", "Or", "Pow", "Reciprocal", "Relu", "Reshape", "Round", "Sigmoid", "Sign", "Slice", "Sqrt", "Squeeze",
        "Sub", "Tanh", "Transpose", "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
_NEVER = QUANTIZERS | RANDOM | {"Constant"}
_SEQUENCES = frozenset({"ConcatFromSequence", "SplitToSequence"})
_RESOLVED_BY_ONNXSCRIPT = frozenset({"CastLike", "ConcatFromSequence", "SequenceAt", "SplitToSequence"})
_OPSET_FOR_SEQUENCES = 18  # onnxscript resolves sequences into Split and Unsqueeze as they are from here on


@dataclasses.dataclass(frozen=True)
class Folded:
    """A site per result, named for the node that gave it; and why folding stopped early, if it did."""

    sites: list[Site]
    failure: Declined | None


def has_work(model: onnx_ir.Model) -> bool:
    """Whether folding could find something. Reads only, and imports nothing."""
    nodes = list(model.graph.all_nodes())
    return _obstacle(model, nodes) is None and any(_may_fold(node) for node in nodes)


def kept(model: onnx_ir.Model) -> list[Declined]:
    """Return the constant expressions that the rules leave in the graph, with the reason. Reads only."""
    nodes = list(model.graph.all_nodes())
    otherwise = _obstacle(model, nodes) or "onnx's reference implementation cannot compute it"
    found = [(node, _reason_against(node)) for node in nodes if _is_constant_expression(node)]
    return [Declined(node.name or "", node.op_type, reason or otherwise) for node, reason in found]


def lift(model: onnx_ir.Model) -> list[str]:
    """Turn Constant nodes into initializers, in every graph, and return the names of those nodes.

    Those behind a graph output stay, and all of them in models that know no initializers apart from inputs.
    """
    if model.ir_version < IR_VERSION_WITH_CONSTANTS:
        return []
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Constant" and is_default_domain(node)]
    if not nodes:
        return []
    is_sparse = any("sparse_value" in node.attributes for node in nodes)  # onnx-ir lifts no others beside them
    lift_constants = onnx_ir.passes.common.LiftConstantsToInitializersPass(
        lift_all_constants=not is_sparse, size_limit=0
    )
    lift_constants(model)
    return [node.name or "" for node in nodes if node.graph is None]


def fold(model: onnx_ir.Model) -> Folded:
    """Fold constants in place, in every graph. Names, types and shapes of inputs and outputs stay."""
    from onnxscript import optimizer

    before = _Snapshot(model)
    failure = None
    with _hidden_overridables(model), _quiet("onnxscript"):
        try:
            optimizer.fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=_CHEAP_ELEMENTS,
                output_size_limit=_UNLIMITED,
                should_fold=_should_fold,
            )
        except RuntimeError as error:  # one operator that onnxscript cannot digest; each step before it is whole
            failure = Declined(model.graph.name or "", "constants", f"onnxscript gave up: {error}")
            onnx_ir.passes.common.NameFixPass()(model)
    before.restore(model)
    lift(model)
    return Folded(before.sites(model), failure)


def _may_fold(node: onnx_ir.Node) -> bool:
    if not is_default_domain(node):
        return False
    if node.op_type in ("Shape", "Size"):
        return _has_known_dimension(node)
    if node.op_type == "If":
        return constant_tensor(node.inputs[0]) is not None
    if node.op_type in _RESOLVED_BY_ONNXSCRIPT:
        return True
    # An unknown size is a reason to look: onnxscript infers shapes as it goes.
    return _is_constant_expression(node) and _reason_against(node) in (None, _UNKNOWN_SIZE)


def _obstacle(model: onnx_ir.Model, nodes: Iterable[onnx_ir.Node]) -> str | None:
    """Say why nothing may fold in this model at all, or None."""
    if model.ir_version < IR_VERSION_WITH_CONSTANTS:
        return f"IR version {model.ir_version} has no constants apart from inputs"
    if model.opset_imports.get("", 0) < _OPSET_FOR_SEQUENCES:
        for node in nodes:
            if node.op_type in _SEQUENCES and is_default_domain(node):
                return f"onnxscript would rewrite {node.op_type} {node.name!r} for opset {_OPSET_FOR_SEQUENCES}"
    return None


def _has_known_dimension(node: onnx_ir.Node) -> bool:
    """Whether a Shape or Size can give a number that a later node may fold on."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        return False
    dims = source.shape[node.attributes.get_int("start", 0) : node.attributes.get_int("end", None)]
    if all(isinstance(dim, int) for dim in dims):
        return True
    return node.op_type == "Shape" and any(_picks_number(user, dims) for user in node.outputs[0].consumers())


def _picks_number(user: onnx_ir.Node, dims: Sequence[int | onnx_ir.SymbolicDim]) -> bool:
    """Whether `user` gathers only dimensions that are numbers, in the one form that onnxscript resolves."""
    if user.op_type != "Gather":
        return False
    wanted = constant_ints(user, 1)
    in_range = wanted is not None and all(-len(dims) <= index < len(dims) for index in wanted)
    return in_range and all(isinstance(dims[index], int) for index in wanted or ())


def _should_fold(node: onnx_ir.Node) -> bool:
    """Answer onnxscript, which asks about nodes whose inputs are all constant."""
    for value in node.inputs:
        if value is not None:
            # onnxscript keeps the names of all that a constant came from: quadratic on long chains.
            value.meta.pop(_ORIGIN_KEY, None)
    return _is_constant_expression(node) and _reason_against(node) is None


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
    operands = [value for value in dict.fromkeys(node.inputs) if value is not None]
    encoded = [value.name for value in operands if is_encoded(value)]
    if encoded:
        return f"{encoded[0]!r} is an encoded weight"
    size_bytes = _static_bytes(output)
    if size_bytes is None:
        return _UNKNOWN_SIZE
    tensors = [tensor for value in operands if (tensor := constant_tensor(value)) is not None]
    elements = sum(tensor.size for tensor in tensors)
    if node.op_type not in _CHEAP and elements > _CHEAP_ELEMENTS:
        return f"{elements} elements are slow to compute here, the limit is {_CHEAP_ELEMENTS}"
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


@dataclasses.dataclass(frozen=True)
class _Origin:
    """A node as it was before folding."""

    node: onnx_ir.Node
    name: str | None
    output: str | None
    predecessors: tuple[onnx_ir.Node, ...]
    constants: tuple[onnx_ir.Value, ...]


@dataclasses.dataclass(frozen=True)
class _Face:
    """What users see of an input or output."""

    name: str | None
    type: onnx_ir.TypeProtocol | None
    shape: onnx_ir.Shape | None
    doc_string: str | None
    metadata: dict[str, str]

    @staticmethod
    def of(value: onnx_ir.Value) -> _Face:
        shape = None if value.shape is None else value.shape.copy()
        return _Face(value.name, value.type, shape, value.doc_string, dict(value.metadata_props))

    def put_on(self, value: onnx_ir.Value) -> None:
        value.name, value.type, value.shape, value.doc_string = self.name, self.type, self.shape, self.doc_string
        value.metadata_props.update(self.metadata)


class _Snapshot:
    """What onnxscript may lose on the way: faces, names, notes. And what was there, to tell what is gone."""

    def __init__(self, model: onnx_ir.Model) -> None:
        graph = model.graph
        self._inputs = [_Face.of(value) for value in graph.inputs]
        self._outputs = [_Face.of(value) for value in graph.outputs]
        self._origins = [_origin(node) for node in graph.all_nodes()]
        self._notes = {
            value.name: quantization
            for origin in self._origins
            for value in origin.node.outputs
            if (quantization := quantization_of(value)) is not None
        }

    def restore(self, model: onnx_ir.Model) -> None:
        """Put back names, faces and notes, and take off what onnxscript left on values and removed nodes."""
        for face, value in zip(self._inputs, model.graph.inputs, strict=True):
            face.put_on(value)
        for face, value in zip(self._outputs, model.graph.outputs, strict=True):
            face.put_on(value)
        for graph in model.graphs():
            for value in (*graph.initializers.values(), *(output for node in graph for output in node.outputs)):
                value.meta.pop(_ORIGIN_KEY, None)
                value.metadata_props.pop(_ORIGIN_KEY, None)
                if value.name in self._notes and quantization_of(value) is None:
                    note(value, self._notes[value.name])
        for origin in self._gone():
            release_bodies(origin.node)
        self._restore_node_names(model)

    def sites(self, model: onnx_ir.Model) -> list[Site]:
        """Return a site per node that is gone and was not on the way to another one that is gone."""
        results = {name: value for graph in model.graphs() for name, value in graph.initializers.items()}
        gone = {origin.node: origin for origin in self._gone()}
        taken: set[onnx_ir.Node] = set()
        sites = []
        for origin in reversed(gone.values()):
            if origin.node not in taken:
                group = _gather(origin, gone, taken)
                sites.append(_site(group, results.get(origin.output or "")))
        return sites[::-1]

    def _gone(self) -> Iterator[_Origin]:
        return (origin for origin in self._origins if origin.node.graph is None)

    def _restore_node_names(self, model: onnx_ir.Model) -> None:
        survivors = {origin.node: origin.name for origin in self._origins if origin.node.graph is not None}
        for node, name in survivors.items():
            node.name = name
        inherited = {origin.output: origin.name for origin in self._gone()}
        taken = set(survivors.values())
        for node in model.graph.all_nodes():
            if node not in survivors:
                stem = inherited.get(node.outputs[0].name) or f"{node.outputs[0].name}_{node.op_type}"
                node.name = fresh_name(stem, taken)


def _origin(node: onnx_ir.Node) -> _Origin:
    constants = tuple(value for value in node.inputs if value is not None and value.is_initializer())
    return _Origin(node, node.name, node.outputs[0].name, tuple(node.predecessors()), constants)


def _gather(
    root: _Origin, gone: Mapping[onnx_ir.Node, _Origin], taken: set[onnx_ir.Node]
) -> list[_Origin]:
    """Return `root` and the removed nodes that it read, directly or not, as far as they are not taken yet."""
    group, waiting = [], [root]
    while waiting:
        origin = waiting.pop()
        if origin.node in taken:
            continue
        taken.add(origin.node)
        group.append(origin)
        waiting.extend(gone[node] for node in origin.predecessors if node in gone)
    return group


def _site(group: Sequence[_Origin], result: onnx_ir.Value | None) -> Site:
    root = group[0]
    freed = {value for origin in group for value in origin.constants if not value.is_initializer()}
    others = [origin.name or "" for origin in group[1:]]
    detail = "resolved before run time"
    if result is not None and result.const_value is not None:
        detail = f"folded into constant {result.name!r} {list(result.const_value.shape)}"
    if others:
        detail += f", with {quote_names(others)}"
    return Site(
        name=root.name or "",
        kind=root.node.op_type,
        before=amount(freed),
        after=amount([] if result is None else [result]),
        detail=detail,
    )


@contextmanager
def _hidden_overridables(model: onnx_ir.Model) -> Iterator[None]:
    """Hide the defaults of initializers that are inputs: onnxscript takes them for constants, and drops unused ones."""
    hidden = [
        (graph, value, value.const_value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.is_graph_input()
    ]
    for _, value, _ in hidden:
        value.const_value = None
    try:
        yield
    finally:
        for graph, value, tensor in hidden:
            value.const_value = tensor
            graph.register_initializer(value)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's warnings from users: what did not fold is told by `kept`."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
