"""Merge a Slice into the Slice that feeds it.

    Z = Slice(Slice(X, axes=A), axes=B)   =>   Z = Slice(X, axes=A+B)

Two copies become one: a strided shortcut (`x[:, :, ::2, ::2]` from exporters that cut one axis at a time)
writes a quarter of the input instead of a half and then a quarter.

Legal when: the inner output has one use, is no graph output, and carries no quantization note that X lacks;
both nodes lie in one graph; every start, end, axis and step is constant; the axes differ, counted from the
front. Slices of different axes do not see each other, whatever their steps and clamping.
Fidelity: exact in bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Declined
from onnxpress.passes.cleanup.graph_edits import (
    add_initializer,
    constant_ints,
    detach,
    fresh_name,
    is_default_domain,
)

__all__ = ["Cut", "Merge", "match", "merge", "read_slice"]

_FIRST_OPSET_WITH_INPUTS = 10  # Slice-1 holds starts, ends and axes as attributes and has no steps


@dataclasses.dataclass(frozen=True)
class Cut:
    """What a Slice cuts: one entry per axis, as written."""

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Merge:
    """Two Slices that can be one: `outer` stays and cuts `cut` from the data of `inner`."""

    inner: onnx_ir.Node
    outer: onnx_ir.Node
    cut: Cut


def read_slice(node: onnx_ir.Node, opset: int) -> Cut | None:
    """Return what a Slice cuts, or None where a part of it is not constant or does not fit together."""
    parts: list[Sequence[int] | None]
    if opset < _FIRST_OPSET_WITH_INPUTS:
        parts = [node.attributes.get_ints(name) for name in ("starts", "ends", "axes", "steps")]
    elif any(value is not None and constant_tensor(value) is None for value in node.inputs[1:]):
        return None
    else:
        parts = [constant_ints(node, index) for index in range(1, 5)]
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        return None
    return Cut(tuple(starts), tuple(ends), tuple(axes), tuple(steps))


def match(outer: onnx_ir.Node, opset: int) -> Merge | Declined | None:
    """Reads only. None: no Slice behind a Slice. Declined: a stated legality clause fails."""
    inner = _producing_slice(outer)
    if inner is None:
        return None
    between, source = inner.outputs[0], inner.inputs[0]
    where = f"output {between.name!r} of Slice {inner.name!r}"
    if between.is_graph_output():
        return _declined(outer, f"{where} is a graph output")
    if len(between.uses()) != 1:
        return _declined(outer, f"{where} has {len(between.uses())} uses, needs 1")
    if inner.graph is not outer.graph:
        return _declined(outer, f"Slice {inner.name!r} lies in another graph")
    if quantization_of(between) != quantization_of(source) and quantization_of(between) is not None:
        return _declined(outer, f"{where} carries a quantization note of its own")
    cuts = read_slice(inner, opset), read_slice(outer, opset)
    if cuts[0] is None or cuts[1] is None:
        name = (inner if cuts[0] is None else outer).name
        return _declined(outer, f"starts, ends, axes or steps of Slice {name!r} are not constant")
    axes = _count_from_front(cuts[0].axes + cuts[1].axes, source)
    if axes is None:
        return _declined(outer, f"negative axes, and the rank of {between.name!r} is unknown")
    twice = sorted({axis for axis in axes if axes.count(axis) > 1})
    if twice:
        return _declined(outer, f"both Slices cut axis {twice[0]}")
    return Merge(inner, outer, _join(cuts[0], cuts[1], axes))


def merge(found: Merge, model: onnx_ir.Model, names: set[str | None]) -> list[onnx_ir.Value]:
    """Let the outer Slice do the work of both, and remove the inner one. Name and output stay the outer's.

    names: see `fresh_name`. Returns: the new index constants; the old ones may be left without use.
    """
    outer, cut = found.outer, found.cut
    outer.replace_input_with(0, found.inner.inputs[0])
    detach(found.inner)
    if len(outer.inputs) == 1:
        for key in ("starts", "ends", "axes"):
            outer.attributes[key] = onnx_ir.AttrInt64s(key, getattr(cut, key))
        return []
    return _write_inputs(outer, cut, model, names)


def _write_inputs(outer: onnx_ir.Node, cut: Cut, model: onnx_ir.Model, names: set[str | None]) -> list[onnx_ir.Value]:
    assert outer.graph is not None
    parts = {"starts": cut.starts, "ends": cut.ends, "axes": cut.axes}
    if any(step != 1 for step in cut.steps):
        parts["steps"] = cut.steps
    outer.resize_inputs(1 + len(parts))
    added = []
    for index, (part, numbers) in enumerate(parts.items(), start=1):
        name = fresh_name(f"{outer.outputs[0].name}_{part}", names)
        added.append(add_initializer(model, outer.graph, name, np.array(numbers, np.int64)))
        outer.replace_input_with(index, added[-1])
    return added


def _producing_slice(outer: onnx_ir.Node) -> onnx_ir.Node | None:
    if not _is_slice(outer) or outer.inputs[0] is None:
        return None
    inner = outer.inputs[0].producer()
    return inner if inner is not None and _is_slice(inner) and inner.inputs[0] is not None else None


def _is_slice(node: onnx_ir.Node) -> bool:
    return node.op_type == "Slice" and is_default_domain(node)


def _count_from_front(axes: Sequence[int], source: onnx_ir.Value | None) -> tuple[int, ...] | None:
    if all(axis >= 0 for axis in axes):
        return tuple(axes)
    shape = None if source is None else proven_shape(source)
    rank = 0 if shape is None else shape.rank()
    return tuple(axis % rank for axis in axes) if rank else None


def _join(inner: Cut, outer: Cut, axes: tuple[int, ...]) -> Cut:
    return Cut(inner.starts + outer.starts, inner.ends + outer.ends, axes, inner.steps + outer.steps)


def _declined(outer: onnx_ir.Node, reason: str) -> Declined:
    return Declined(outer.name or "", "Slice", reason)
