"""Moments of one layer after the other, between a model that changes on the way and the original that it should equal.

Asymmetric: a layer's inputs come from the model with all earlier layers changed, its target from the original, so that
what is fitted to them makes good for what was lost before, too. Where the output goes straight into an Add with a
shortcut, the target includes what the shortcut lost: y_ref + (shortcut_ref - shortcut). `rectified`: where a Relu or
Clip behind it clips the original's value, any value beyond the same limit will do, and the target is the present one
(Zhang et al. 2015, section 2.2, https://arxiv.org/abs/1505.06798, with one step of its alternation a sweep).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.ir.analysis.execute import ProgressLike
from onnxpress.ir.analysis.moments import Moments, MomentsSum
from onnxpress.ir.analysis.stepwise import Stepwise, ancestors, stepwise_batch_size
from onnxpress.ir.data import DataSource
from onnxpress.ir.errors import UsageError
from onnxpress.ir.linear import Linear, constant_tensor
from onnxpress.ir.shapes import size_bytes

__all__ = ["LayerMoments", "layer_moments"]

_Array: TypeAlias = npt.NDArray[Any]

_HELD_VALUES = 3  # activations that a step reads at once, about


@dataclasses.dataclass(frozen=True)
class LayerMoments:
    """A layer of the model, the same node of the original, and moments with targets from one to the other.

    corrected: whether the target includes what the shortcut lost.
    """

    layer: Linear
    original: onnx_ir.Node
    moments: Moments
    corrected: bool


def layer_moments(
    model: onnx_ir.Model,
    reference: onnx_ir.Model,
    data: DataSource,
    layers: Sequence[Linear],
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    residual: bool = True,
    rectified: bool = False,
    samples: int | None = None,
    positions: int | None = 64,
    seed: int = 0,
    cache_bytes: int = 256 << 20,
    limit_bytes: int = 24 << 20,
    progress: ProgressLike | None = None,
    label: str = "repairing layers",
) -> Iterator[LayerMoments]:
    """Yield each layer in graph order with its moments. Its weights may change before the next is asked for.

    layers: of `model`, in its main graph, whose columns can be cut. kept: node name -> which output channels of the
    reference's node are left; all for names that it lacks. residual: whether targets include what shortcuts lost.
    rectified: see above; it pays where the model is near its optimum already, as in a second sweep. samples, positions,
    seed: as for `moments.collect`. cache_bytes: for activations kept between layers; with less, the models run from
    further back.

    Raises:
        InputError: the data does not fit the models, or turns into NaN or infinity in them.
        UsageError: a layer that the reference lacks, or whose channels it does not have.
    """
    originals = {node.name or "": node for node in reference.graph}
    chosen = _in_graph_order(model, layers, originals)
    if not chosen:
        return
    kept = kept or {}
    nodes = [layer.node for layer in chosen]
    steps = [
        _Step(layer, originals, set(nodes[index + 1 :]), residual=residual, rectified=rectified)
        for index, layer in enumerate(chosen)
    ]
    largest = sorted((size_bytes(layer.data) or 0, layer.data.name or "") for layer in chosen)[-_HELD_VALUES:]
    size = stepwise_batch_size([model, reference], data, [name for _, name in largest], limit_bytes)
    current, original = (
        Stepwise(each, data, batch_size=size, samples=samples, cache_bytes=cache_bytes // 2)
        for each in (model, reference)
    )
    with one_blas_thread(), contextlib.ExitStack() as stack:
        task = stack.enter_context(progress.task(label, len(steps))) if progress is not None else None
        for index, step in enumerate(steps):
            moments = _moments_of(step, steps[index + 1 :], current, original, kept, positions, seed)
            yield LayerMoments(step.layer, step.original, moments, step.shortcut is not None)
            if task is not None:
                task.advance()


class _Step:
    """What one layer's repair reads: its input in the model, its output in the reference, the shortcut in both."""

    def __init__(
        self,
        layer: Linear,
        originals: Mapping[str, onnx_ir.Node],
        pending: set[onnx_ir.Node],
        *,
        residual: bool,
        rectified: bool,
    ) -> None:
        self.layer = layer
        self.original = originals[layer.node.name or ""]
        self.data = layer.data.name or ""
        self.output = self.original.outputs[0].name or ""
        self.shortcut = _shortcut(layer, originals, pending) if residual else None
        self.limits = _limits(layer, self.shortcut is not None) if rectified else None

    @property
    def model_values(self) -> list[str]:
        return [
            self.data,
            *(self.shortcut[:1] if self.shortcut else ()),
            *([self.layer.output.name or ""] if self.limits else ()),
        ]

    @property
    def reference_values(self) -> list[str]:
        return [self.output, *(self.shortcut[1:] if self.shortcut else ())]


def _moments_of(
    step: _Step,
    later: Sequence[_Step],
    current: Stepwise,
    original: Stepwise,
    kept: Mapping[str, Sequence[int]],
    positions: int | None,
    seed: int,
) -> Moments:
    name = step.layer.node.name or ""
    total = MomentsSum(step.layer, positions=positions, seed=seed)
    inputs = current.read(
        step.model_values,
        stop=step.layer.node,
        later=[value for other in later for value in other.model_values],
    )
    outputs = original.read(
        step.reference_values,
        stop=step.original,
        after=True,
        later=[value for other in later for value in other.reference_values],
    )
    for (samples, seen), (_, wanted) in zip(inputs, outputs, strict=True):
        chosen = [wanted[value] for value in step.reference_values]
        if name in kept:
            indices = np.asarray(kept[name], np.int64)
            chosen = [np.take(array, indices, axis=step.layer.output_axis) for array in chosen]
        target = chosen[0]
        if target.shape[step.layer.output_axis] != step.layer.out_channels:
            raise UsageError(
                f"repair: node {name!r} has {step.layer.out_channels} output channels and its original "
                f"{target.shape[step.layer.output_axis]}. Say in `kept` which are left"
            )
        correction: tuple[_Array, ...] = ()
        if step.shortcut is not None:
            now = seen[step.shortcut[0]]
            if now.shape == target.shape and chosen[1].shape == target.shape:
                correction = (chosen[1], now)
            else:
                # It is broadcast, so that no target of its own shape holds what it lost, and no limit behind the Add.
                step.shortcut = step.limits = None
        if step.limits is not None:
            target = _rectified(target, seen[step.layer.output.name or ""], correction, step.limits)
        total.add(seen[step.data], target, samples=samples, correction=correction)
    return total.result()


def _in_graph_order(
    model: onnx_ir.Model, layers: Sequence[Linear], originals: Mapping[str, onnx_ir.Node]
) -> list[Linear]:
    places = {node: index for index, node in enumerate(model.graph)}
    for layer in layers:
        name = layer.node.name
        if layer.node not in places:
            raise UsageError(f"repair: node {name!r} is not in the main graph of the model")
        if name not in originals:
            raise UsageError(f"repair: the reference has no node {name!r} in its main graph")
    return sorted(layers, key=lambda layer: places[layer.node])


def _limits(layer: Linear, behind_add: bool) -> tuple[float, float] | None:
    """Return (low, high) of the Relu or Clip that alone reads the layer's output, or the sum it goes into."""
    value = layer.output
    while True:
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        ((user, _),) = value.uses()
        if user.op_type == "Relu":
            return 0.0, math.inf
        if user.op_type == "Clip" and len(user.inputs) > 1:
            ends = [constant_tensor(end) for end in (*user.inputs, None)[1:3]]
            given = [None if end is None else float(end.numpy().reshape(-1)[0]) for end in ends]
            return (-math.inf if given[0] is None else given[0]), (math.inf if given[1] is None else given[1])
        if user.op_type != "Add" or not behind_add or any(constant_tensor(each) is not None for each in user.inputs):
            return None  # a constant in between would move the limit, and so would a second shortcut
        value, behind_add = user.outputs[0], False


def _rectified(target: _Array, found: _Array, correction: Sequence[_Array], limits: tuple[float, float]) -> _Array:
    """Return the target where what follows clips it: there any value beyond the limit does, such as the present one.

    target, found: the layer's output in the reference and in the model. correction: (reference's, model's) shortcut.
    """
    plus, minus = correction if correction else (0.0, 0.0)
    wanted, present = target + plus, found + minus
    low, high = limits
    moved = np.where(wanted <= low, np.minimum(present, low), wanted)
    moved = np.where(wanted >= high, np.maximum(present, high), moved)
    result: _Array = (moved - plus).astype(target.dtype)
    return result


def _shortcut(
    layer: Linear, originals: Mapping[str, onnx_ir.Node], pending: set[onnx_ir.Node]
) -> tuple[str, str] | None:
    """Return the other operand of the Add that `layer` feeds, in the model and the reference, once it is final.

    None where there is no such Add, or where that operand depends on this layer or on one that is still to be repaired:
    of two branches that meet, the later one answers for both.
    """
    value = layer.output
    while True:
        if len(value.uses()) != 1 or value.is_graph_output():
            return None
        ((user, index),) = value.uses()
        original = originals.get(user.name or "")
        if user.op_type != "Add" or original is None or original.op_type != "Add":
            return None
        other, other_original = user.inputs[1 - index], original.inputs[1 - index]
        assert other is not None and other_original is not None
        if constant_tensor(other) is None:
            break
        value = user.outputs[0]
    if not other.name or not other_original.name or constant_tensor(other_original) is not None:
        return None
    return None if ancestors([other]) & {layer.node, *pending} else (other.name, other_original.name)
