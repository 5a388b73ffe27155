"""Shapes that a model computes: Shape, then Gather, Concat and the like, into a Reshape.

Their numbers are followed as integers or as "the size of that axis". Where such a number ends in an operator
that takes a shape, it comes out right by itself after a removal. Where it ends anywhere else (the square root
of the head size, as the scale of attention) the model's function would change, so the axis freezes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change, constant_ints, has_input, ints_of
from onnxpress.ir.analysis.coupling.relation import Relation, Size, describe
from onnxpress.ir.linear import constant_tensor

__all__ = ["computed_sizes", "freeze_readers", "set_sizes", "target_sizes"]

# Inputs that take a shape; what their rules make of it is said there.
_TARGETS = frozenset({("Reshape", 1), ("Expand", 1), ("ConstantOfShape", 0), ("Resize", 3)})

Sizes = list[int | Size | None]


def computed_sizes(relation: Relation, node: onnx_ir.Node) -> Sizes | None:
    """Return what the numbers of a node's output are, where it takes a shape apart or together; else None."""
    if node.op_type == "Shape":
        data = relation.input(node, 0)
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", data.rank)
        return [Size(axis) for axis in data.axes()[start:end]]
    if not any(value in relation.computed for value in node.inputs if value is not None):
        return None
    numbers = _numbers(relation, node.inputs[0] if node.inputs else None)
    if node.op_type in ("Identity", "Cast", "Unsqueeze", "Squeeze"):
        return numbers
    if node.op_type == "Concat":
        parts = [_numbers(relation, value) for value in node.inputs]
        return [number for part in parts if part for number in part] if all(parts) else None
    if numbers is None:
        return None
    if node.op_type == "Gather":
        indices = constant_ints(node, 1)
        fits = indices is not None and all(-len(numbers) <= index < len(numbers) for index in indices)
        return [numbers[index] for index in indices] if indices is not None and fits else None
    if node.op_type == "Slice":
        starts, ends = ints_of(node, 1, "starts"), ints_of(node, 2, "ends")
        if starts is None or ends is None or (has_input(node, 4) and constant_ints(node, 4) != [1]):
            return None
        return numbers[starts[0] : ends[0]]
    return None


def freeze_readers(relation: Relation, node: onnx_ir.Node) -> None:
    """Freeze axes whose sizes `node` computes with."""
    for index, value in enumerate(node.inputs):
        numbers = relation.computed.get(value) if value is not None else None
        if numbers and (node.op_type, index) not in _TARGETS:
            axes = [number.axis for number in numbers if isinstance(number, Size)]
            relation.freeze(axes, f"{describe(node)} computes with its size")


def target_sizes(relation: Relation, node: onnx_ir.Node, index: int, name: str = "shape") -> Sizes | None:
    """Return the numbers of a shape that `node` takes; None in place of those that `set_sizes` cannot set.

    Returns:
        None where nothing is known of them.
    """
    known = ints_of(node, index, name)
    if known is not None:
        return list(known)
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value not in relation.computed:
        return None
    pieces = _pieces(value)
    return [
        number if isinstance(number, Size) or number in (-1, 0) or pieces[position] is not None else None
        for position, number in enumerate(relation.computed[value])
    ]


def set_sizes(
    change: Change, node: onnx_ir.Node, index: int, numbers: Sequence[int | None], name: str = "shape"
) -> None:
    """Give `node` a new shape at input `index`; None keeps what stands there.

    A shape that is put together by Concat gets new pieces, in a Concat of the node's own where others read it.
    """
    known = ints_of(node, index, name)
    if known is not None:
        new = [old if number is None else number for old, number in zip(known, numbers, strict=True)]
        if new != known:
            change.set_ints(node, index, name, new)
        return
    value = node.inputs[index]
    assert value is not None
    pieces = _pieces(value)
    todo = [
        (piece, number)
        for piece, number in zip(pieces, numbers, strict=False)
        if piece is not None and number is not None and piece[2] not in (-1, number)
    ]
    if not todo:
        return
    concat = value.producer()
    assert concat is not None and concat.graph is not None
    if len(value.uses()) > 1:
        own = onnx_ir.node("Concat", list(concat.inputs), {"axis": 0}, name=f"{concat.name}_{node.name}")
        own.outputs[0].name = f"{value.name}_{node.name}"
        own.outputs[0].type, own.outputs[0].shape = value.type, value.shape
        concat.graph.insert_after(concat, own)
        node.replace_input_with(index, own.outputs[0])
        concat = own
    for (at, offset, _), number in todo:
        held = constant_ints(concat, at)
        assert held is not None
        held[offset] = number
        change.set_ints(concat, at, "", held)


def _pieces(value: onnx_ir.Value) -> list[tuple[int, int, int] | None]:
    """Return for each position of a Concat's output the constant behind it: input, offset, number."""
    concat = value.producer()
    length = value.shape[0] if value.shape is not None and len(value.shape) else 1
    if concat is None or concat.op_type != "Concat":
        return [None] * (length if isinstance(length, int) else 0)
    found: list[tuple[int, int, int] | None] = []
    for index, part in enumerate(concat.inputs):
        held = constant_ints(concat, index)
        if held is not None:
            found += [(index, offset, number) for offset, number in enumerate(held)]
            continue
        size = part.shape[0] if part is not None and part.shape is not None and len(part.shape) else None
        if not isinstance(size, int):
            return [None] * (length if isinstance(length, int) else 0)
        found += [None] * size
    return found


def _numbers(relation: Relation, value: onnx_ir.Value | None) -> Sizes | None:
    if value is None:
        return None
    if value in relation.computed:
        return relation.computed[value]
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype.is_floating_point() or len(tensor.shape) > 1:
        return None
    return [int(number) for number in tensor.numpy().ravel()]
