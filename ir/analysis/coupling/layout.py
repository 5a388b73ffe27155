"""Operators that move elements without computing: Reshape, Transpose, Concat, Split, Slice, Pad, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change, constant_ints, has_input, ints_of
from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import Ints, NoRule, Place, Relation, Size, describe
from onnxpress.ir.analysis.coupling.sizes import set_sizes, target_sizes

__all__ = ["fold"]

_LAST = np.iinfo(np.int64).max


# Reshape and its kin.


def fold(relation: Relation, before: Place, after: Place, where: str) -> None:
    """Tie the axes of two row-major views of the same elements.

    Axes that stand at equal places from the left or the right with equal sizes, known or not, are the same.
    The rest falls into blocks of equal product, or freezes where a size is not fixed.
    """
    relation.free(*before.axes(), *after.axes())
    sizes = dict(zip((*before.axes(), *after.axes()), (*before.sizes, *after.sizes), strict=True))
    left = [axis for axis in before.axes() if sizes[axis] != 1]
    right = [axis for axis in after.axes() if sizes[axis] != 1]

    def alike(one: int, other: int) -> bool:
        if sizes[one] is not None or sizes[other] is not None:
            return bool(sizes[one] == sizes[other])
        name = before.dims[one - before.first]
        named = name is not None and name == after.dims[other - after.first]
        if named or relation.root(one) == relation.root(other):
            return True
        rest = _product(sizes, [axis for axis in left if axis != one])
        return rest is not None and rest == _product(sizes, [axis for axis in right if axis != other])

    for end in (-1, 0):
        while left and right and alike(left[end], right[end]):
            relation.same(left.pop(end), right.pop(end))
    product = _product(sizes, left)
    if not product or product != _product(sizes, right):
        relation.freeze((*left, *right), f"{where} folds it with an axis of no fixed size")
        return
    while left or right:
        one, other = [left.pop(0)], [right.pop(0)]
        while (a := _product(sizes, one)) != (b := _product(sizes, other)):
            assert a is not None and b is not None
            (one if a < b else other).append((left if a < b else right).pop(0))
        if len(one) == len(other) == 1:
            relation.same(one[0], other[0])
        else:
            relation.block(one, other, where)


def _product(sizes: dict[int, int | None], axes: Sequence[int]) -> int | None:
    known = [size for axis in axes if (size := sizes[axis]) is not None]
    return math.prod(known) if len(known) == len(axes) else None


def _rewrite_target(change: Change, node: onnx_ir.Node) -> None:
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None and data.shape is not None
    known = ints_of(node, 1, "shape")
    numbers: list[int | None] = []
    for axis, size in enumerate(change.sizes(result)):
        held = known[axis] if known is not None else None
        copies = held == 0 and not node.attributes.get_int("allowzero", 0)
        stays = held == -1 or (copies and axis < len(data.shape) and change.size(data, axis) == size)
        numbers.append(None if stays else size)
    set_sizes(change, node, 1, numbers)


def _rewrite_expand(change: Change, node: onnx_ir.Node) -> None:
    held = node.inputs[1]
    assert held is not None and held.shape is not None and isinstance(held.shape[0], int)
    sizes = change.sizes(node.outputs[0])
    known: list[int | None] = [*(constant_ints(node, 1) or ())]
    known = known or [None for _ in range(held.shape[0])]
    numbers = [None if one == 1 else size for one, size in zip(known, sizes[-held.shape[0] :], strict=True)]
    set_sizes(change, node, 1, numbers)


@rule("Reshape", rewrite=_rewrite_target)
def _reshape(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = the elements of X in another shape."""
    data, result = relation.input(node, 0), relation.output(node)
    _tie_target(relation, node, result)
    copies = not node.attributes.get_int("allowzero", 0)
    for axis, number in enumerate(ints_of(node, 1, "shape") or []):
        if number == 0 and copies and data.sizes[axis] is None and result.sizes[axis] is None:
            relation.same(data[axis], result[axis])
    fold(relation, data, result, describe(node))


def _tie_target(relation: Relation, node: onnx_ir.Node, result: Place, index: int = 1) -> None:
    """Tie axes to the axes whose sizes the model computes their sizes from."""
    numbers = target_sizes(relation, node, index)
    if numbers is None:
        relation.freeze(result.axes(), f"{describe(node)} computes its size")
        return
    for axis, number in enumerate(numbers, result.rank - len(numbers)):  # Expand's may be shorter
        if isinstance(number, Size):
            if relation.size(number.axis) == relation.size(result[axis]):
                relation.same(result[axis], number.axis)
            else:
                relation.freeze([result[axis]], f"{describe(node)} computes its size")
        elif number is None:
            relation.freeze([result[axis]], f"{describe(node)} computes its size")


@rule("Flatten")
def _flatten(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X with the axes before `axis` folded into one, and those from it on into another."""
    fold(relation, relation.input(node, 0), relation.output(node), describe(node))


def _rewrite_squeeze(change: Change, node: onnx_ir.Node) -> None:
    """Name the axes to squeeze, so that a channel axis of one channel left is none of them."""
    data = node.inputs[0]
    assert data is not None and data.shape is not None
    if "axes" in node.attributes or has_input(node, 1):
        return
    axes = [axis for axis, dim in enumerate(data.shape) if dim == 1]
    if change.model.graph.opset_imports.get("", 0) < 13:
        node.attributes["axes"] = onnx_ir.AttrInt64s("axes", axes)
    else:
        change.set_input(node, 1, np.asarray(axes, np.int64))


@rule("Squeeze", rewrite=_rewrite_squeeze)
def _squeeze(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X without axes of size 1."""
    data, result = relation.input(node, 0), relation.output(node)
    axes = ints_of(node, 1, "axes")
    if axes is None and (has_input(node, 1) or None in data.sizes):
        raise NoRule("which axes it drops is unknown")
    dropped = {axis % data.rank for axis in axes} if axes is not None else None
    if dropped is None:
        dropped = {axis for axis, size in enumerate(data.sizes) if size == 1}
    relation.free(*(data[axis] for axis in dropped))
    relation.same_axes((data[axis] for axis in range(data.rank) if axis not in dropped), result.axes())


@rule("Unsqueeze")
def _unsqueeze(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X with new axes of size 1."""
    data, result = relation.input(node, 0), relation.output(node)
    axes = ints_of(node, 1, "axes")
    if axes is None:
        raise NoRule("its axes are computed")
    new = {axis % result.rank for axis in axes}
    relation.free(*(result[axis] for axis in new))
    relation.same_axes(data.axes(), (result[axis] for axis in range(result.rank) if axis not in new))


@rule("Transpose")
def _transpose(relation: Relation, node: onnx_ir.Node) -> None:
    """Axis k of Y is axis perm[k] of X."""
    data, result = relation.input(node, 0), relation.output(node)
    order = node.attributes.get_ints("perm", tuple(reversed(range(data.rank))))
    relation.same_axes((data[axis] for axis in order), result.axes())


@rule("Expand", rewrite=_rewrite_expand)
def _expand(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X broadcast to a shape."""
    data, result = relation.input(node, 0), relation.output(node)
    _tie_target(relation, node, result)
    _repeat(relation, data, result)


def _repeat(relation: Relation, data: Place, result: Place) -> None:
    for back in range(1, data.rank + 1):
        if data.sizes[-back] != 1:
            relation.same(data[-back], result[-back])
    relation.free(*data.axes(), *result.axes())


@rule("Tile")
def _tile(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X repeated along its axes."""
    data, result = relation.input(node, 0), relation.output(node)
    repeats = constant_ints(node, 1)
    if repeats is None or len(repeats) != data.rank:
        raise NoRule("its repeats are computed")
    for axis, times in enumerate(repeats):
        size = data.sizes[axis]
        if times == 1:
            relation.same(data[axis], result[axis])
        elif size is None or size == 1:
            relation.freeze((data[axis], result[axis]), f"{describe(node)} repeats it")
        else:
            each = np.tile(np.arange(size), times)
            relation.tie(result[axis], np.arange(size * times), data[axis], each)


# Joining and selecting.


@rule("Concat")
def _concat(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = the inputs end to end along `axis`."""
    result = relation.output(node)
    joined = node.attributes.get_int("axis", 1) % result.rank
    start: int | None = 0
    for index in range(len(node.inputs)):
        part = relation.input(node, index)
        for axis in range(result.rank):
            if axis != joined:
                relation.same(part[axis], result[axis])
        size = part.sizes[joined]
        if start is None or size is None:
            relation.freeze((part[joined], result[joined]), f"{describe(node)} joins axes of no fixed size")
            start = None
            continue
        relation.tie(part[joined], np.arange(size), result[joined], np.arange(start, start + size))
        start += size


def _rewrite_split(change: Change, node: onnx_ir.Node) -> None:
    data = node.inputs[0]
    assert data is not None and data.shape is not None
    axis = node.attributes.get_int("axis", 0) % len(data.shape)
    sizes = [change.size(value, axis) for value in node.outputs]
    if change.indices(data, axis) is None:
        return
    node.attributes.pop("num_outputs", None)
    numbers = [size for size in sizes if size is not None]
    if change.model.graph.opset_imports.get("", 0) < 13:
        node.attributes["split"] = onnx_ir.AttrInt64s("split", numbers)
    else:
        change.set_input(node, 1, np.asarray(numbers, np.int64))


@rule("Split", rewrite=_rewrite_split)
def _split(relation: Relation, node: onnx_ir.Node) -> None:
    """Y1, Y2, ... = ranges of X along `axis`."""
    data = relation.input(node, 0)
    axis = node.attributes.get_int("axis", 0) % data.rank
    start = 0
    for value in node.outputs:
        part = relation.value(value)
        for other in range(data.rank):
            if other != axis:
                relation.same(data[other], part[other])
        size = part.sizes[axis]
        if size is None:
            raise NoRule("its sizes are computed")
        relation.tie(data[axis], np.arange(start, start + size), part[axis], np.arange(size))
        start += size


def _slices(node: onnx_ir.Node, rank: int) -> list[tuple[int, int, int, int]] | None:
    """Return (axis, start, end, step) of each axis that is sliced, or None where they are computed."""
    starts, ends = ints_of(node, 1, "starts"), ints_of(node, 2, "ends")
    axes, steps = ints_of(node, 3, "axes"), constant_ints(node, 4)
    if starts is None or ends is None or (has_input(node, 4) and steps is None):
        return None
    if axes is None:
        if has_input(node, 3):
            return None
        axes = list(range(len(starts)))
    steps = steps or [1] * len(starts)
    return [(axis % rank, *rest) for axis, *rest in zip(axes, starts, ends, steps, strict=True)]  # type: ignore[misc]


def _sliced(size: int, start: int, end: int, step: int) -> Ints:
    """Return which indices a Slice takes; ends beyond the axis are cut, as in Python."""
    if step < 0 and end < -size:
        return np.arange(size)[start::step]
    return np.arange(size)[start:end:step]


def _rewrite_slice(change: Change, node: onnx_ir.Node) -> None:
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None and data.shape is not None
    slices = _slices(node, len(data.shape))
    assert slices is not None, describe(node)
    starts, ends = [entry[1] for entry in slices], [entry[2] for entry in slices]
    for position, (axis, start, end, step) in enumerate(slices):
        if change.indices(data, axis) is None:
            continue
        size = data.shape[axis]
        assert isinstance(size, int)
        chosen = _sliced(size, start, end, step)
        left = np.searchsorted(change.kept(data, axis), chosen[change.kept(result, axis)])
        if not len(left):
            starts[position] = ends[position] = 0
            continue
        starts[position], ends[position] = int(left[0]), int(left[-1]) + (1 if step > 0 else -1)
        if ends[position] < 0:
            ends[position] = -_LAST
        assert (np.diff(left) == step).all(), describe(node)
    change.set_ints(node, 1, "starts", starts)
    change.set_ints(node, 2, "ends", ends)


@rule("Slice", rewrite=_rewrite_slice)
def _slice(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = ranges of X, with steps. Along an axis that loses indices the step must be 1 or -1."""
    data, result = relation.input(node, 0), relation.output(node)
    slices = _slices(node, data.rank)
    if slices is None:
        raise NoRule("its bounds are computed")
    touched = {entry[0] for entry in slices}
    for axis in range(data.rank):
        if axis not in touched:
            relation.same(data[axis], result[axis])
    for axis, start, end, step in slices:
        size = data.sizes[axis]
        if size is None:
            relation.freeze((data[axis], result[axis]), f"{describe(node)} cuts an axis of no fixed size")
        elif step not in (1, -1):
            relation.freeze((data[axis], result[axis]), f"{describe(node)} steps over it by {step}")
        else:
            chosen = _sliced(size, start, end, step)
            relation.tie(data[axis], chosen, result[axis], np.arange(len(chosen)))


def _rewrite_gather(change: Change, node: onnx_ir.Node) -> None:
    data, result, held = node.inputs[0], node.outputs[0], node.inputs[1]
    assert data is not None and data.shape is not None and held is not None
    axis = node.attributes.get_int("axis", 0) % len(data.shape)
    size, indices = data.shape[axis], constant_ints(node, 1)
    if change.indices(data, axis) is None or indices is None:
        return
    assert isinstance(size, int)
    picked = np.asarray(indices, np.int64) % size
    tensor = held.const_value
    one = held.shape is not None and len(held.shape) == 1
    if one:
        picked = picked[change.kept(result, axis)]
    left = np.searchsorted(change.kept(data, axis), picked)
    dtype = np.dtype(np.int64) if tensor is None else tensor.dtype.numpy()
    shape = (-1,) if one or held.shape is None else tuple(int(dim) for dim in held.shape)  # type: ignore[arg-type]
    change.set_input(node, 1, left.astype(dtype).reshape(shape))


@rule("Gather", rewrite=_rewrite_gather)
def _gather(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X at given indices of `axis`: a selection where they are constant, else a look-up of rows."""
    data, result = relation.input(node, 0), relation.output(node)
    axis = node.attributes.get_int("axis", 0) % data.rank
    indices = constant_ints(node, 1)
    held = node.inputs[1]
    if held is None or held.shape is None:
        raise NoRule("the rank of its indices is unknown")
    rank = len(held.shape)
    for other in range(data.rank):
        if other != axis:
            relation.same(data[other], result[other if other < axis else other - 1 + rank])
    added = result.axes(axis, axis + rank)
    size = data.sizes[axis]
    if indices is None:
        relation.freeze([data[axis]], f"{describe(node)} looks it up")
        relation.same_axes(relation.input(node, 1).axes(), added)
    elif size is None:
        relation.freeze((data[axis], *added), f"{describe(node)} picks from an axis of no fixed size")
    elif rank == 1:
        picked = np.asarray(indices, np.int64) % size
        relation.tie(data[axis], picked, result[axis], np.arange(len(picked)))
    else:
        relation.freeze_at(data[axis], np.asarray(indices, np.int64) % size, f"{describe(node)} picks it")
        relation.freeze(added, f"picked by {describe(node)}")


# Padding.


def _pads(node: onnx_ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """Return how much is added before and after each axis, or None where that is computed."""
    name = "pads" if "pads" in node.attributes else "paddings"
    pads = ints_of(node, 1, name)
    axes = constant_ints(node, 3)
    if pads is None or (has_input(node, 3) and axes is None):
        return None
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    found = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        found[axis] = pads[position], pads[position + len(axes)]
    return found


def _rewrite_pad(change: Change, node: onnx_ir.Node) -> None:
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None and data.shape is not None
    rank = len(data.shape)
    pads = _pads(node, rank)
    assert pads is not None, describe(node)
    axes = constant_ints(node, 3) or list(range(rank))
    new = list(pads)
    for axis, (before, after) in enumerate(pads):
        if change.indices(data, axis) is None and change.indices(result, axis) is None:
            continue
        size = data.shape[axis]
        assert isinstance(size, int)
        kept, out = change.kept(data, axis), change.kept(result, axis)
        new[axis] = (
            int((out < before).sum()) if before >= 0 else -int((kept < -before).sum()),
            int((out >= size + before).sum()) if after >= 0 else -int((kept >= size + after).sum()),
        )
    name = "pads" if "pads" in node.attributes else "paddings"
    change.set_ints(node, 1, name, [new[axis][side] for side in (0, 1) for axis in axes])


@rule("Pad", rewrite=_rewrite_pad)
def _pad(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X with a constant (or reflected) border. Constant positions are atoms of their own."""
    data, result = relation.input(node, 0), relation.output(node)
    pads = _pads(node, data.rank)
    if pads is None:
        raise NoRule("its pads are computed")
    mode = node.attributes.get_string("mode", "constant")
    for axis, (before, after) in enumerate(pads):
        size = data.sizes[axis]
        if not before and not after:
            relation.same(data[axis], result[axis])
        elif size is None or mode != "constant":
            relation.freeze((data[axis], result[axis]), f"{describe(node)} pads it ({mode})")
        else:
            inside = np.arange(max(0, -before), size - max(0, -after))
            relation.tie(data[axis], inside, result[axis], inside + before)


# Space.


@rule("DepthToSpace")
def _depth_to_space(relation: Relation, node: onnx_ir.Node) -> None:
    """Blocks of b * b channels become b * b pixels of one channel."""
    data, result = relation.input(node, 0), relation.output(node)
    size = node.attributes.get_int("blocksize", 1)
    channels = result.sizes[1]
    if channels is None:
        raise NoRule("the number of channels is unknown")
    each = np.arange(channels * size * size)
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"
    _spread(relation, data, result, each, each // (size * size) if by_column else each % channels, node)


@rule("SpaceToDepth")
def _space_to_depth(relation: Relation, node: onnx_ir.Node) -> None:
    """b * b pixels of one channel become b * b channels."""
    data, result = relation.input(node, 0), relation.output(node)
    size = node.attributes.get_int("blocksize", 1)
    channels = data.sizes[1]
    if channels is None:
        raise NoRule("the number of channels is unknown")
    each = np.arange(channels * size * size)
    by_column = node.attributes.get_string("mode", "DCR") == "CRD"
    _spread(relation, result, data, each, each // (size * size) if by_column else each % channels, node)


def _spread(relation: Relation, deep: Place, wide: Place, deep_at: Ints, wide_at: Ints, node: onnx_ir.Node) -> None:
    relation.same(deep[0], wide[0])
    relation.tie(deep[1], deep_at, wide[1], wide_at)
    relation.freeze((*deep.axes(2), *wide.axes(2)), f"spatial axis of {describe(node)}")


def _rewrite_resize(change: Change, node: onnx_ir.Node) -> None:
    if not has_input(node, 3):
        return
    axes = node.attributes.get_ints("axes", ())
    result = node.outputs[0]
    sizes = change.sizes(result)
    if "axes" in node.attributes:
        sizes = [sizes[axis] for axis in axes]
    set_sizes(change, node, 3, sizes, "")


@rule("Resize", "Upsample", rewrite=_rewrite_resize)
def _resize(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X on another grid: axes of equal size are the same, the others are space."""
    data, result = relation.input(node, 0), relation.output(node)
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NoRule("it crops")
    sizes = target_sizes(relation, node, 3, "") if has_input(node, 3) else None
    if has_input(node, 3) and (sizes is None or any(number is None for number in sizes[1:2])):
        raise NoRule("its sizes are computed")
    for axis in range(data.rank):
        size = data.sizes[axis]
        if axis < 2 and size == result.sizes[axis]:
            relation.same(data[axis], result[axis])
        else:
            relation.freeze((data[axis], result[axis]), f"spatial axis of {describe(node)}")


def _rewrite_constant_of_shape(change: Change, node: onnx_ir.Node) -> None:
    set_sizes(change, node, 0, change.sizes(node.outputs[0]))


@rule("ConstantOfShape", rewrite=_rewrite_constant_of_shape)
def _constant_of_shape(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = one number everywhere: its indices follow whatever they meet."""
    result = relation.output(node)
    _tie_target(relation, node, result, 0)
    relation.free(*result.axes())
