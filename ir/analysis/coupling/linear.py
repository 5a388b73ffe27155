"""Operators with weights: convolutions and matrix products.

A grouped convolution needs as many channels in each group after removal as every other group. Two ways lead
there. With many small groups whole groups go, input and output channels together (a depthwise convolution is
the extreme). With few large groups each group gives up one input (or output) channel at a time: a *balance*.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change
from onnxpress.ir.analysis.coupling.elementwise import broadcast
from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Place, Relation, describe

__all__ = ()  # rules register themselves


def _goes_by_groups(groups: int, inputs: int, outputs: int) -> bool:
    """Whether whole groups are removed: where that gives the finer choice. Channel counts are per group."""
    return inputs == 1 or groups >= max(inputs, outputs)


def _channels(node: onnx_ir.Node, weight: tuple[int | None, ...]) -> tuple[int, int, int]:
    """Return the groups, and the input and output channels of each."""
    groups = node.attributes.get_int("group", 1)
    rows, columns = weight[:2]
    if rows is None or columns is None:
        raise NoRule("the size of its weight is unknown")
    if groups < 1 or rows % groups:
        raise NoRule(f"its weight does not divide into {groups} groups")
    if node.op_type == "ConvTranspose":
        return groups, rows // groups, columns
    return groups, columns, rows // groups


def _rewrite_groups(change: Change, node: onnx_ir.Node) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None and weight is not None and weight.shape is not None
    sizes = [dim if isinstance(dim, int) else None for dim in weight.shape]
    groups, inputs, outputs = _channels(node, tuple(sizes))
    if groups > 1 and _goes_by_groups(groups, inputs, outputs):
        left, rest = divmod(len(change.kept(data, 1)), inputs)
        assert rest == 0, describe(node)
        node.attributes["group"] = onnx_ir.AttrInt64("group", left)


@rule("Conv", "ConvTranspose", rewrite=_rewrite_groups)
def _convolution(relation: Relation, node: onnx_ir.Node) -> None:
    """Y[n, m, ...] = sum over c of X[n, c, ...] * W[m, c, ...] + B[m]; ConvTranspose has W[c, m, ...]."""
    data, weight, result = relation.input(node, 0), relation.input(node, 1), relation.output(node)
    if data.rank < 3 or weight.rank < 3:
        raise NoRule("it has no spatial axis")
    groups, inputs, outputs = _channels(node, weight.sizes)
    relation.same(data[0], result[0])
    relation.freeze((*data.axes(2), *result.axes(2)), f"spatial axis of {describe(node)}")
    relation.freeze(weight.axes(2), f"kernel of {describe(node)}")
    transposed = node.op_type == "ConvTranspose"
    into, out_of = (0, 1) if transposed else (1, 0)
    if groups == 1:
        relation.same(weight[into], data[1])
        relation.same(weight[out_of], result[1])
    elif _goes_by_groups(groups, inputs, outputs):
        relation.freeze([weight[1]], f"channels in each group of {describe(node)}")
        relation.same(weight[0], data[1] if transposed else result[1])
        _tie_groups(relation, data[1], inputs, result[1], outputs, groups)
    else:
        relation.same(weight[0], data[1] if transposed else result[1])
        relation.same(relation.grouped(weight, groups), result[1] if transposed else data[1])
        relation.balance(data[1], groups)
        relation.balance(result[1], groups)
    bias = relation.optional(node, 2)
    if bias is not None:
        relation.same(bias[0], result[1])


def _tie_groups(relation: Relation, before: int, inputs: int, after: int, outputs: int, groups: int) -> None:
    """Tie all input and output channels of each group."""
    if inputs == outputs == 1:
        relation.same(before, after)
        return
    first = np.arange(groups) * inputs
    for index in range(1, inputs):
        relation.tie(before, first, before, first + index)
    for index in range(outputs):
        relation.tie(before, first, after, np.arange(groups) * outputs + index)


@rule("Gemm")
def _gemm(relation: Relation, node: onnx_ir.Node) -> None:
    """Y[m, n] = sum over k of A[m, k] * B[k, n] + C broadcast."""
    left, right, result = relation.input(node, 0), relation.input(node, 1), relation.output(node)
    if left.rank != 2 or right.rank != 2:
        raise NoRule("an operand has not rank 2")
    by_left = bool(node.attributes.get_int("transA", 0))
    by_right = bool(node.attributes.get_int("transB", 0))
    relation.same(left[1 if by_left else 0], result[0])
    relation.same(right[0 if by_right else 1], result[1])
    relation.same(left[0 if by_left else 1], right[1 if by_right else 0])
    bias = relation.optional(node, 2)
    if bias is not None:
        broadcast(relation, [bias], result)


@rule("MatMul")
def _matmul(relation: Relation, node: onnx_ir.Node) -> None:
    """Y[..., m, n] = sum over k of A[..., m, k] * B[..., k, n]; leading axes broadcast; vectors have k alone."""
    left, right, result = relation.input(node, 0), relation.input(node, 1), relation.output(node)
    if not left.rank or not right.rank:
        raise NoRule("an operand is a scalar")
    relation.same(left[-1], right[-2] if right.rank > 1 else right[-1])
    if left.rank > 1:
        relation.same(left[-2], result[-2] if right.rank > 1 else result[-1])
    if right.rank > 1:
        relation.same(right[-1], result[-1])
    _batch(relation, (left, right), result)


def _batch(relation: Relation, operands: tuple[Place, Place], result: Place) -> None:
    vectors = sum(place.rank == 1 for place in operands)  # each takes one axis off the end of the result
    for operand in operands:
        for back in range(3, operand.rank + 1):
            axis = operand[-back]
            if operand.sizes[-back] == 1:
                relation.free(axis)
                continue
            relation.same(axis, result[vectors - back])
            if min(place.rank for place in operands) >= back:
                relation.batch([axis])
    relation.free(*result.axes())


@rule("Einsum")
def _einsum(relation: Relation, node: onnx_ir.Node) -> None:
    """A letter is one axis wherever it stands: `bhqd,bhkd->bhqk`."""
    equation = node.attributes.get_string("equation").replace(" ", "")
    if "." in equation or "->" not in equation:
        raise NoRule(f"its equation {equation!r} has an ellipsis or no result")
    terms, result_term = equation.split("->")
    letters: dict[str, list[int]] = {}
    places = [relation.input(node, index) for index in range(len(node.inputs))]
    for term, place in zip((*terms.split(","), result_term), (*places, relation.output(node)), strict=True):
        if len(set(term)) != len(term) or len(term) != place.rank:
            raise NoRule(f"its equation {equation!r} repeats a letter in one operand")
        for axis, letter in enumerate(term):
            if place.sizes[axis] == 1:
                relation.free(place[axis])
            else:
                letters.setdefault(letter, []).append(place[axis])
    shared = set.intersection(*map(set, terms.split(",")))
    for letter, axes in letters.items():
        for axis in axes[1:]:
            relation.same(axes[0], axis)
        relation.free(*axes)
        if equation.count(letter) == 1:
            relation.freeze(axes, f"{describe(node)} sums over it")
        elif letter in result_term and letter in shared and len(places) > 1:
            relation.batch(axes)
