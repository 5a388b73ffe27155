"""One sweep that takes indices out of a model: rewrites, then slices, then shapes; and a check of the result."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir import inference
from onnxpress.ir.analysis.coupling.change import Change, drop_unused
from onnxpress.ir.analysis.coupling.relation import Ints
from onnxpress.ir.analysis.coupling.walk import rule_of
from onnxpress.ir.errors import InternalError
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.verify import verify

__all__ = ["Loss", "remove_indices"]

Use = tuple[onnx_ir.Node, int]
Loss = tuple[onnx_ir.Value, int, Use | None, int, Ints]  # value, axis, reader, groups, indices that go


def remove_indices(model: onnx_ir.Model, losses: Sequence[Loss]) -> None:
    """Remove indices from axes of values; together they must be what `channels.couple` ties.

    Raises:
        InternalError: see `channels.remove`.
    """
    kept: dict[onnx_ir.Value, dict[int, Ints]] = defaultdict(dict)
    cuts: dict[onnx_ir.Value, dict[Use | None, list[_Cut]]] = defaultdict(lambda: defaultdict(list))
    for value, axis, use, groups, gone in losses:
        cut = _Cut(axis, groups, _kept(value, axis, groups, gone))
        if constant_tensor(value) is None:
            kept[value][axis] = cut.kept
        else:
            cuts[value][use].append(cut)
    consistent = inference.is_consistent(model)
    change = Change(model, kept)
    for node in list(onnx_ir.traversal.RecursiveGraphIterator(model.graph)):
        found = rule_of(node)
        if found is not None and found.rewrite is not None and change.touches(node):
            found.rewrite(change, node)
    for value, readers in cuts.items():
        _slice(change, value, readers)
    expected = {value: tuple(change.sizes(value)) for value in kept}
    for value in kept:
        assert value.shape is not None
        dims = [dim if size is None else size for dim, size in zip(value.shape, change.sizes(value), strict=True)]
        value.shape = onnx_ir.Shape(dims)
    inference.infer_shapes(model)
    if consistent and not inference.is_consistent(model):
        raise InternalError("removing channels left a model whose shapes contradict each other.")
    for value, sizes in expected.items():
        _compare(value, sizes)
    verify(model)


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """What stays of an axis. groups > 1: axis 1 of a grouped weight, counted over all groups."""

    axis: int
    groups: int
    kept: Ints


def _kept(value: onnx_ir.Value, axis: int, groups: int, gone: Ints) -> Ints:
    assert value.shape is not None
    size = value.shape[axis]
    if not isinstance(size, int) or (len(gone) and gone[-1] >= size * groups):
        raise InternalError(f"axis {axis} of {value.name!r} has size {size}: the model changed since it was coupled.")
    left = np.setdiff1d(np.arange(size * groups), gone)
    if not len(left):
        raise InternalError(f"removing channels leaves nothing of axis {axis} of {value.name!r} [{size}].")
    return left


def _slice(change: Change, value: onnx_ir.Value, readers: dict[Use | None, list[_Cut]]) -> None:
    """Slice a constant: in place where all readers keep the same, else a copy for each."""
    tensor = constant_tensor(value)
    assert tensor is not None
    uses = {(use.node, use.idx) for use in value.uses()}
    cut_uses = uses if None in readers else {use for use in readers if use is not None}
    shared = cut_uses == uses and not value.is_graph_output() and len({_key(cuts) for cuts in readers.values()}) == 1
    first = next(iter(readers.values()))
    if shared and value.is_initializer():
        array = _cut(tensor.numpy(), first)
        value.const_value = onnx_ir.tensor(array, dtype=tensor.dtype, name=value.name)
        value.shape = onnx_ir.Shape(array.shape)
        return
    made: dict[object, onnx_ir.Value] = {}
    for use, cuts in readers.items():
        for node, index in [use] if use is not None else sorted(uses, key=lambda one: (one[0].name or "", one[1])):
            key = _key(cuts), node.graph
            if key not in made:
                array = _cut(tensor.numpy(), cuts)
                made[key] = change.add(node, value.name or "", onnx_ir.tensor(array, dtype=tensor.dtype))
            node.replace_input_with(index, made[key])
    drop_unused(value)


def _key(cuts: Iterable[_Cut]) -> tuple[tuple[int, int, bytes], ...]:
    return tuple(sorted((cut.axis, cut.groups, cut.kept.tobytes()) for cut in cuts))


def _cut(array: npt.NDArray[np.generic], cuts: Sequence[_Cut]) -> npt.NDArray[np.generic]:
    """Return a copy with what each cut keeps."""
    plain = {cut.axis: cut.kept for cut in cuts if cut.groups == 1}
    grouped = [cut for cut in cuts if cut.groups > 1]
    for cut in grouped:
        array = _cut_groups(array, plain.pop(0, np.arange(array.shape[0])), cut)
    for axis, kept in plain.items():
        array = np.take(array, kept, axis=axis)
    return np.ascontiguousarray(array)


def _cut_groups(array: npt.NDArray[np.generic], rows: Ints, cut: _Cut) -> npt.NDArray[np.generic]:
    """Cut a grouped weight: each group's rows keep what is kept of that group's columns."""
    per_group, columns = array.shape[0] // cut.groups, array.shape[1]
    parts = []
    for group in range(cut.groups):
        own = rows[rows // per_group == group]
        kept = cut.kept[cut.kept // columns == group] % columns
        parts.append(array[own][:, kept])
    if len({part.shape for part in parts}) > 1:
        raise InternalError("a grouped convolution would lose different numbers of channels in its groups.")
    return np.concatenate(parts)


def _compare(value: onnx_ir.Value, expected: Sequence[int | None]) -> None:
    found = [dim if isinstance(dim, int) else None for dim in value.shape] if value.shape is not None else []
    if len(found) != len(expected) or any(
        one is not None and other is not None and one != other for one, other in zip(found, expected, strict=True)
    ):
        raise InternalError(f"removing channels gave {value.name!r} the shape {found}, not {list(expected)}.")
