"""Fold what depends on no input: onnxscript's optimizer, kept to the rules of `constant_rules`.

    Y = Op(constants ...)                    =>   a constant
    Shape(X), Size(X) of a static shape      =>   a constant, and so the arithmetic behind it
    If(constant) <then, else>                =>   the branch taken

Fidelity: exact up to rounding. onnx's reference implementation computes in numpy, and a runtime's own Exp or
MatMul may differ from that in the last bits.

Importing onnxscript costs 0.1 s and 24 MB, its submodules no less: ask `constant_rules.has_work` first.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir
import onnx_ir.passes.common

from onnxpress.ir.inference import infer_shapes, proven_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import note, quantization_of
from onnxpress.passes.base import Declined, Site
from onnxpress.passes.cleanup.constant_rules import CHEAP_ELEMENTS, should_fold
from onnxpress.passes.cleanup.graph_edits import (
    allow_initializers,
    amount,
    fresh_name,
    is_default_domain,
    quote_names,
    release_bodies,
)

__all__ = ["Folded", "fold", "lift"]

_ORIGIN_KEY = "pkg.onnxscript.optimizer.folded_from"  # onnxscript.optimizer.FOLDED_FROM_KEY
_OPSET_OF_SHORT_CONSTANTS = 12  # value_int, value_ints, value_float ...
_UNLIMITED = 1 << 62  # the rules limit sizes


@dataclasses.dataclass(frozen=True)
class Folded:
    """A site per result, named for the node that gave it; and why folding stopped early, if it did."""

    sites: list[Site]
    failure: Declined | None


def lift(model: onnx_ir.Model) -> list[str]:
    """Turn Constant nodes into initializers, in every graph, and return the names of those nodes.

    Those behind a graph output stay.
    """
    found = (node for node in model.graph.all_nodes() if node.op_type == "Constant")
    nodes = [node for node in found if is_default_domain(node)]
    if not nodes:
        return []
    lift_constants = onnx_ir.passes.common.LiftConstantsToInitializersPass
    lift_constants(lift_all_constants=True, size_limit=0)(model)
    allow_initializers(model)
    return [node.name or "" for node in nodes if node.graph is None]


def fold(model: onnx_ir.Model) -> Folded:
    """Fold constants in place, in every graph. Names, types and shapes of inputs and outputs stay.

    What the constants reveal of other shapes is inferred.
    """
    from onnxscript import optimizer

    before = _Snapshot(model)
    failure = None
    with _hidden_overridables(model), _hidden_annotations(model) as hidden, _quiet("onnxscript"):
        try:
            optimizer.fold_constants(
                model,
                onnx_shape_inference=False,  # `infer_shapes` knows more, and keeps the interface
                input_size_limit=CHEAP_ELEMENTS,
                output_size_limit=_UNLIMITED,
                should_fold=_ask,
            )
        except RuntimeError as error:  # an operator that it cannot digest; every step before is whole
            failure = Declined(model.graph.name or "", "constants", f"onnxscript gave up: {error}")
            onnx_ir.passes.common.NameFixPass()(model)
    before.restore(model)
    allow_initializers(model)
    lift(model)
    _spell_out_constants(model)
    sites = before.sites(model)
    if sites and (hidden or _has_gaps(model)):
        infer_shapes(model)
    return Folded(sites, failure)


def _spell_out_constants(model: onnx_ir.Model) -> None:
    """Write the short Constants that onnxscript leaves behind graph outputs as tensors, in older opsets."""
    if model.opset_imports.get("", 0) >= _OPSET_OF_SHORT_CONSTANTS:
        return
    for node in model.graph.all_nodes():
        tensor = constant_tensor(node.outputs[0]) if node.op_type == "Constant" else None
        if tensor is not None and "value" not in node.attributes:
            node.attributes.clear()
            node.attributes["value"] = onnx_ir.AttrTensor("value", tensor)


def _ask(node: onnx_ir.Node) -> bool:
    """Answer onnxscript, which asks about nodes whose inputs are all constant."""
    for value in node.inputs:
        if value is not None:
            # onnxscript keeps the names of all that a constant came from: quadratic on long chains.
            value.meta.pop(_ORIGIN_KEY, None)
    return should_fold(node)


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
        value.name, value.type, value.shape = self.name, self.type, self.shape
        value.doc_string = self.doc_string
        value.metadata_props.update(self.metadata)


class _Snapshot:
    """What onnxscript may lose on the way: faces, names, notes. And what was there, to tell what is new."""

    def __init__(self, model: onnx_ir.Model) -> None:
        graph = model.graph
        self._inputs = [_Face.of(value) for value in graph.inputs]
        self._outputs = [_Face.of(value) for value in graph.outputs]
        self._origins = [_origin(node) for node in graph.all_nodes()]
        outputs = [value for origin in self._origins for value in origin.node.outputs]
        notes = {value.name: quantization_of(value) for value in outputs}
        self._notes = {name: quantization for name, quantization in notes.items() if quantization is not None}

    def restore(self, model: onnx_ir.Model) -> None:
        """Put back names, faces and notes, and take off what onnxscript left on values and removed nodes."""
        for face, value in zip(self._inputs, model.graph.inputs, strict=True):
            face.put_on(value)
        for face, value in zip(self._outputs, model.graph.outputs, strict=True):
            face.put_on(value)
        for value in _values(model):
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


def _has_gaps(model: onnx_ir.Model) -> bool:
    """Whether a type or dimension of some value is known neither as a number nor by an input's name."""
    shapes = [value.shape for value in model.graph.inputs if value.shape is not None]
    names = {dim.value for shape in shapes for dim in shape if not isinstance(dim, int)} - {None}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name and (value.type is None or value.shape is None):
                return True
            if any(not isinstance(dim, int) and dim.value not in names for dim in value.shape or ()):
                return True
    return False


def _values(model: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _origin(node: onnx_ir.Node) -> _Origin:
    constants = tuple(value for value in node.inputs if value is not None and value.is_initializer())
    output = node.outputs[0].name if node.outputs else None
    return _Origin(node, node.name, output, tuple(node.predecessors()), constants)


def _gather(root: _Origin, gone: Mapping[onnx_ir.Node, _Origin], taken: set[onnx_ir.Node]) -> list[_Origin]:
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
    """Hide initializers that are inputs: onnxscript takes them for constants, and drops them when unused."""
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
def _hidden_annotations(model: onnx_ir.Model) -> Iterator[dict[onnx_ir.Value, onnx_ir.Shape | None]]:
    """Leave values only the shapes that are proven: onnxscript takes all that it finds for true. Yield the others."""
    values = (value for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs))
    hidden = {value: value.shape for value in values if value is not None and proven_shape(value) != value.shape}
    for value in hidden:
        value.shape = proven_shape(value)
    try:
        yield hidden
    finally:
        for value, shape in hidden.items():
            value.shape = shape


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
