"""Find what a network computes and could do without: residual branches, and layers of equal input and output.

    Y = X + F(X)   =>   Y = X            a residual block: the Add and every node of F
    Y = F(X)       =>   Y = X            a layer: one linear operator with its normalization and activation

Legal when (residual block):
- one operand of the Add is X itself, perhaps through Identity, and the other is computed from X;
- F reads X and constants alone (single entry), and no node of it has a body;
- what F computes inside is used inside alone, and is no graph output; its result is used by the Add alone;
- F holds a Conv, ConvTranspose, Gemm or MatMul, and its result has the shape of X. Equal symbols are equal sizes, and
  a leading dimension without a number stands for the batch;
- X can take the name and the notes of Y, where those matter.
Legal when (layer): the same of its chain, which is part of no residual branch. An Add with a constant is a bias.

Scopes: the main graph. Blocks may hold others, and follow each other: find anew after each removal.
Source: Veit et al. 2016, section 4.1, https://arxiv.org/abs/1605.06431 (residual networks without single blocks).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import onnx_ir

from onnxpress.ir.linear import LINEAR_OPS, constant_tensor
from onnxpress.ir.shapes import describe_shape
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.graph_edits import (
    detach,
    drop_unused_constant,
    is_default_domain,
    quote_names,
    replacement_problem,
    subgraphs_of,
    take_over_output,
)

__all__ = ["Block", "Found", "find_blocks", "remove_block"]

_Places: TypeAlias = Mapping[onnx_ir.Node, int]
_Kind: TypeAlias = Literal["residual block", "layer"]

# What may follow the linear operator of a layer: one data input, and the shape stays.
_FOLLOWERS = frozenset(
    {
        "Add", "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Mul",
        "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Tanh",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Block:
    """What can be removed: `output` becomes `source`.

    name: of the Add, or of the layer's linear operator. nodes: all that goes, in graph order.
    """

    name: str
    kind: _Kind
    source: onnx_ir.Value
    output: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]


@dataclasses.dataclass
class Found:
    """The blocks of a graph in its order, and each Add of two computed values that is none, with its reason."""

    blocks: list[Block] = dataclasses.field(default_factory=list)
    declined: list[Declined] = dataclasses.field(default_factory=list)


def find_blocks(graph: onnx_ir.Graph) -> Found:
    """Return the blocks of `graph`; reads only. The graph is in topological order, as verified models are."""
    places = {node: place for place, node in enumerate(graph)}
    found = Found()
    inside: set[onnx_ir.Node] = set()  # branches of Adds, declined ones too: their layers are no chains of their own
    for add in graph:
        if _is_join(add):
            inside.update(_match_add(add, places, found))
    for node in graph:
        if node.op_type in LINEAR_OPS and is_default_domain(node) and node not in inside:
            layer = _match_layer(node)
            if layer is not None:
                found.blocks.append(layer)
    found.blocks.sort(key=lambda block: places[block.nodes[-1]])
    return found


def remove_block(block: Block) -> None:
    """Let `source` stand for `output` everywhere, and remove the nodes and the constants that only they used."""
    take_over_output(block.output, block.source)
    constants = [value for node in block.nodes for value in node.inputs if value is not None and _is_constant(value)]
    for node in reversed(block.nodes):
        detach(node)
    for value in dict.fromkeys(constants):
        drop_unused_constant(value)


# Residual blocks.


def _is_join(node: onnx_ir.Node) -> bool:
    """Whether `node` adds two different computed values."""
    if node.op_type != "Add" or not is_default_domain(node) or len(node.inputs) != 2:
        return False
    first, second = node.inputs
    if first is None or second is None or first is second:
        return False
    return not _is_constant(first) and not _is_constant(second)


def _match_add(add: onnx_ir.Node, places: _Places, found: Found) -> set[onnx_ir.Node]:
    """Add the block that ends in `add` to `found`, or why there is none; return the nodes of its branches."""
    first, second = _operands(add)
    for shortcut, result in ((first, second), (second, first)):
        for source in _behind_identities(shortcut):
            branch = _branch(source, result, places)
            if branch:
                reason = _problem(add, source, result, branch)
                if reason is None:
                    nodes = _with_idle_identities(add, shortcut, source, branch, places)
                    found.blocks.append(Block(add.name or "", "residual block", source, add.outputs[0], nodes))
                else:
                    found.declined.append(Declined(add.name or "", "residual block", reason))
                return branch
    reason, nodes_beside = _explain_sides(first, second)
    found.declined.append(Declined(add.name or "", "residual block", reason))
    return nodes_beside


def _operands(add: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    first, second = add.inputs
    assert first is not None and second is not None
    return first, second


def _behind_identities(value: onnx_ir.Value) -> Iterator[onnx_ir.Value]:
    """Yield `value`, and the values that it is a copy of, the nearest first."""
    yield value
    node = value.producer()
    while node is not None and _is_identity(node) and node.inputs[0] is not None:
        value = node.inputs[0]
        yield value
        node = value.producer()


def _branch(source: onnx_ir.Value, result: onnx_ir.Value, places: _Places) -> set[onnx_ir.Node]:
    """Return the nodes on the paths from `source` to `result`; none where `result` does not depend on it.

    Nodes that stand before the one that makes `source` cannot read it, so the walk stays near the block.
    """
    producer = source.producer()
    border = -1 if producer is None else places[producer]
    behind: set[onnx_ir.Node] = set()
    pending = [result]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value is source or node is None or node in behind or places.get(node, -1) <= border:
            continue
        behind.add(node)
        pending.extend(_reads(node))
    depending = {source}
    branch: set[onnx_ir.Node] = set()
    for node in sorted(behind, key=lambda node: places[node]):
        if any(value in depending for value in _reads(node)):
            branch.add(node)
            depending.update(node.outputs)
    return branch if result in depending else set()


def _problem(add: onnx_ir.Node, source: onnx_ir.Value, result: onnx_ir.Value, branch: set[onnx_ir.Node]) -> str | None:
    """Return the first clause of the legality that fails."""
    for node in branch:
        if any(True for _ in subgraphs_of(node)):
            return f"node {node.name!r} ({node.op_type}) of its branch has a body"
    return (
        _other_entry(source, branch)
        or _other_exit(result, branch, add)
        or _missing_work(branch)
        or _shape_problem(source, result, add.outputs[0])
        or replacement_problem(add.outputs[0], source)
    )


def _other_entry(source: onnx_ir.Value, branch: set[onnx_ir.Node]) -> str | None:
    for node in _named(branch):
        for value in node.inputs:
            if value is None or value is source or value.producer() in branch or _is_constant(value):
                continue
            return f"its branch reads {value.name!r} beside the shortcut {source.name!r}"
    return None


def _other_exit(result: onnx_ir.Value, branch: set[onnx_ir.Node], add: onnx_ir.Node) -> str | None:
    for value in (value for node in _named(branch) for value in node.outputs):
        if value.is_graph_output():
            return f"value {value.name!r} of its branch is an output of the graph"
        for user in value.consumers():
            if user not in branch and user is not add:
                return f"value {value.name!r} of its branch is also used by {user.name!r}"
    return None


def _missing_work(branch: set[onnx_ir.Node]) -> str | None:
    if any(node.op_type in LINEAR_OPS and is_default_domain(node) for node in branch):
        return None
    return "its branch has no linear operator"


def _shape_problem(source: onnx_ir.Value, *others: onnx_ir.Value) -> str | None:
    for other in others:
        if not _same_shape(source.shape, other.shape):
            ours, theirs = describe_shape(source.shape), describe_shape(other.shape)
            return f"its input {source.name!r} is {ours} and {other.name!r} is {theirs}"
    return None


def _same_shape(one: onnx_ir.Shape | None, other: onnx_ir.Shape | None) -> bool:
    """Whether two shapes are known to be the same, whatever the batch."""
    if one is None or other is None or len(one) != len(other):
        return False
    return all(
        _same_size(a, b) or (axis == 0 and _is_open_batch(a, b))
        for axis, (a, b) in enumerate(zip(one, other, strict=True))
    )


def _same_size(a: int | onnx_ir.SymbolicDim, b: int | onnx_ir.SymbolicDim) -> bool:
    if isinstance(a, int) or isinstance(b, int):
        return a == b
    return a.value is not None and a.value == b.value


def _is_open_batch(a: int | onnx_ir.SymbolicDim, b: int | onnx_ir.SymbolicDim) -> bool:
    """Whether neither has a number, and one of them no name either: shape inference lost the batch on the way."""
    return not isinstance(a, int) and not isinstance(b, int) and None in (a.value, b.value)


def _with_idle_identities(
    add: onnx_ir.Node, shortcut: onnx_ir.Value, source: onnx_ir.Value, branch: set[onnx_ir.Node], places: _Places
) -> tuple[onnx_ir.Node, ...]:
    """Return all that goes with the block: copies of `source` that nothing else reads, too."""
    gone = {*branch, add}
    value = shortcut
    while value is not source and not value.is_graph_output() and gone.issuperset(value.consumers()):
        node = value.producer()
        assert node is not None and node.inputs[0] is not None
        gone.add(node)
        value = node.inputs[0]
    return tuple(sorted(gone, key=lambda node: places[node]))


def _explain_sides(first: onnx_ir.Value, second: onnx_ir.Value) -> tuple[str, set[onnx_ir.Node]]:
    """Say why an Add without an untouched operand is no block; return the nodes of both sides."""
    sides = [_chain(first), _chain(second)]
    reached = [{value: index for index, (value, _) in enumerate(side)} for side in sides]
    common = next((value for value, _ in sides[0] if value in reached[1]), None)
    if common is None:
        return "neither of its operands is the input of the other's branch", set()
    nodes = [
        [node for _, node in side[: index[common]] if node is not None]
        for side, index in zip(sides, reached, strict=True)
    ]
    shortcut = min(nodes, key=lambda side: (sum(node.op_type in LINEAR_OPS for node in side), len(side)))
    steps = quote_names([node.name or "" for node in reversed(shortcut)])
    return f"its shortcut transforms {common.name!r} by {steps}", {*nodes[0], *nodes[1]}


def _chain(value: onnx_ir.Value) -> list[tuple[onnx_ir.Value, onnx_ir.Node | None]]:
    """Return `value` and those before it with their makers, as long as each is made from one computed value."""
    chain: list[tuple[onnx_ir.Value, onnx_ir.Node | None]] = []
    while True:
        node = value.producer()
        chain.append((value, node))
        read = [] if node is None else [each for each in _reads(node) if not _is_constant(each)]
        if len(read) != 1:
            return chain
        value = read[0]


# Layers.


def _match_layer(node: onnx_ir.Node) -> Block | None:
    """Return the layer that `node` begins, where its input and output have the same shape."""
    computed = [value for value in node.inputs if value is not None and not _is_constant(value)]
    if len(computed) != 1 or _feeds_alone(computed[0]) is None:
        return None
    nodes = [node]
    while (following := _follower(nodes[-1])) is not None:
        nodes.append(following)
    source, output = computed[0], nodes[-1].outputs[0]
    if not _same_shape(source.shape, output.shape) or replacement_problem(output, source) is not None:
        return None
    return Block(node.name or "", "layer", source, output, tuple(nodes))


def _feeds_alone(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """Return the only node that uses `value`, which is no graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node


def _follower(node: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the normalization or activation that alone reads `node`, and reads nothing else that is computed."""
    user = _feeds_alone(node.outputs[0])
    if user is None or user.op_type not in _FOLLOWERS or not is_default_domain(user) or len(user.outputs) != 1:
        return None
    computed = [value for value in user.inputs if value is not None and not _is_constant(value)]
    return user if len(computed) == 1 else None


# Nodes and values.


def _is_identity(node: onnx_ir.Node) -> bool:
    return node.op_type == "Identity" and is_default_domain(node)


def _is_constant(value: onnx_ir.Value) -> bool:
    return value.is_initializer() or constant_tensor(value) is not None


def _reads(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    """Yield what `node` reads, in its bodies too."""
    yield from (value for value in node.inputs if value is not None)
    for body in subgraphs_of(node):
        yield from body.outputs
        for inner in body:
            yield from _reads(inner)


def _named(nodes: set[onnx_ir.Node]) -> Sequence[onnx_ir.Node]:
    """Return nodes in an order that does not depend on where they lie in memory."""
    return sorted(nodes, key=lambda node: node.name or "")
