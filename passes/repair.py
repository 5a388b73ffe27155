"""Repair what compression broke, from moments and without labels: least squares, layer after layer.

    W', b' = argmin  E||W' x + b' - y||^2  +  ridge * mean(diag C) * ||W' - W||^2
    C = E[(x - Ex)(x - Ex)^T],  D = E[(y - Ey)(x - Ex)^T]
    =>  W' = W + (D - W C) (C + ridge * mean(diag C) * I)^-1        b' = Ey - W' Ex

The bias is free, so it centres the problem. `ridge` holds the weights near what they were where the data says nothing.
Source: He et al. 2017, section 3.1, https://arxiv.org/abs/1707.06168 (reconstruction, without ridge and bias).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.ir.analysis.execute import ProgressLike
from onnxpress.ir.analysis.moments import Moments, MomentsSum
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import Stepwise, ancestors, stepwise_batch_size
from onnxpress.ir.data import DataSource
from onnxpress.ir.errors import UsageError
from onnxpress.ir.linear import Linear, as_linear, constant_tensor, linear_ops
from onnxpress.ir.shapes import size_bytes

__all__ = [
    "DEFAULT_RIDGE",
    "Repaired",
    "least_squares",
    "least_squares_of",
    "refit_layer",
    "repair_sequentially",
    "write_parameters",
]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]

# Channels removed by activation energy, every layer refitted, top-1 at a ridge of 1e-3 / 1e-2 / 0.1 / 0.3 / 1:
# mobilenetv2 with a quarter of its hidden channels gone, 100 images: 53.3 / 53.5 / 57.0 / 59.0 / 56.8 (standard error
# 2.5); resnet56 with half of its inner channels gone, 512 images: 77.7 / 77.9 / 77.9 / 77.6 / - (0.9). Choosing it
# layer by layer on held-out halves gave 56.5 and 77.2, in up to twice the time.
DEFAULT_RIDGE = 0.1

_HELD_VALUES = 3  # activations that a step reads at once, about
_BATCHED_WIDTH = 64  # systems up to this size are solved many at once
_SMALLEST_PIVOT = 1e-11  # of a Cholesky factor's squared diagonal against its largest: below, rounding decides


def least_squares(
    moments: Moments,
    weight: _Array,
    bias: _Array | None = None,
    *,
    ridge: float = DEFAULT_RIDGE,
    prior: _Array | None = None,
    fit_bias: bool = True,
) -> tuple[_Array, _Array | None]:
    """Return the weight and bias of the least squared output error, near `prior` by `ridge`; new arrays.

    moments: with targets. weight: [out, in/groups, *kernel], which gives shape, type and the default prior. bias:
    [out], which gives its type, or None. ridge: >= 0, in units of the mean variance of the inputs. fit_bias: False
    where the operator can take none; then nothing is centred, a given bias is held, and None stays None.

    Where the moments do not determine the weight and `ridge` is 0, it moves from the prior as little as possible.
    """
    from scipy import linalg  # noqa: F401  # before its threads are counted

    rows = (weight if prior is None else prior).reshape(moments.groups, -1, moments.width).astype(np.float64)
    cross, target_mean = moments.cross, moments.target_mean
    assert cross is not None and target_mean is not None, "least_squares needs moments with targets"
    with one_blas_thread():
        if fit_bias:
            gram, wanted = moments.covariance(), moments.cross_covariance()
        else:
            offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
            gram = moments.gram
            wanted = cross - offset.reshape(moments.groups, -1, 1) * moments.mean[:, None, :]
        fitted = rows + _solve(gram, wanted - rows @ gram, ridge)
        shift = target_mean - (fitted @ moments.mean[:, :, None]).reshape(-1)
    found = fitted.reshape(weight.shape).astype(weight.dtype)
    if not fit_bias:
        return found, None if bias is None else bias.copy()
    return found, shift.astype(weight.dtype if bias is None else bias.dtype)


def least_squares_of(
    columns: npt.ArrayLike | None,
    moments: Moments,
    weight: _Array,
    bias: _Array | None = None,
    *,
    ridge: float = DEFAULT_RIDGE,
    fit_bias: bool = True,
) -> tuple[_Array, _Array | None]:
    """Return what `least_squares` does, of the weights that are zero but at `columns` of x; None: all."""
    if columns is None:
        return least_squares(moments, weight, bias, ridge=ridge, fit_bias=fit_bias)
    at = _columns_by_group(columns, moments)
    rows = weight.reshape(moments.groups, -1, moments.width)
    left = np.take_along_axis(rows, at, axis=2)
    found, shift = least_squares(
        moments.keep_inputs(columns), left.reshape(len(weight), -1), bias, ridge=ridge, fit_bias=fit_bias
    )
    full = np.zeros_like(rows)
    np.put_along_axis(full, at, found.reshape(left.shape), axis=2)
    return full.reshape(weight.shape), shift


def _columns_by_group(columns: npt.ArrayLike, moments: Moments) -> npt.NDArray[np.int64]:
    """Return `columns` as [groups, 1, kept], to index [groups, out/groups, K]."""
    given = np.asarray(columns, np.int64)
    return np.broadcast_to(given, (moments.groups, given.shape[-1]))[:, None, :]


def refit_layer(linear: Linear, moments: Moments, *, ridge: float = DEFAULT_RIDGE) -> Linear:
    """Give `linear` the weight and bias of least squares, in its graph, and return its new view.

    A Conv, ConvTranspose or Gemm without a bias gets one. A MatMul takes none: its weight is fitted uncentred. A
    constant that other nodes use too is left as it is; this node gets one of its own.
    """
    bias = linear.bias()
    weight, shift = least_squares(moments, linear.weight(), bias, ridge=ridge, fit_bias=linear.node.op_type != "MatMul")
    return write_parameters(linear, weight, shift)


def write_parameters(linear: Linear, weight: _Array, bias: _Array | None) -> Linear:
    """Store `weight` [out, in/groups, *kernel] and `bias` [out] (None: untouched) in the graph; return the new view."""
    node = linear.node
    _store(node, linear.weight_index, linear.weight_value, linear.to_stored(weight), "weight")
    if bias is not None:
        if len(node.inputs) < 3:
            node.resize_inputs(3)
        if node.op_type == "Gemm" and linear.bias_value is None:
            node.attributes.pop("beta", None)  # it had nothing to scale
        _store(node, 2, linear.bias_value, bias, "bias")
    found = as_linear(node)
    assert isinstance(found, Linear), found
    return found


def _store(node: onnx_ir.Node, index: int, held: onnx_ir.Value | None, array: _Array, role: str) -> None:
    """Make input `index` of `node` the constant `array`: in the initializer it has, or in one of its own."""
    graph = node.graph
    assert isinstance(graph, onnx_ir.Graph)
    if held is not None and held.is_initializer() and len(held.uses()) == 1 and not held.is_graph_output():
        before = constant_tensor(held)
        assert before is not None
        held.const_value = onnx_ir.tensor(array, dtype=before.dtype, name=held.name)
        held.shape = onnx_ir.Shape(array.shape)
        return
    name = _unused_name(graph, (held.name if held is not None else None) or f"{node.name}.{role}")
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
    graph.register_initializer(value)
    node.replace_input_with(index, value)


def _unused_name(graph: onnx_ir.Graph, base: str) -> str:
    taken = {value.name for node in graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None}
    taken |= {*graph.initializers, *(value.name for value in (*graph.inputs, *graph.outputs))}
    candidates = itertools.chain([base], (f"{base}.{number}" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


# Layer after layer.


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What the repair of one layer did.

    before, after: relative squared output error against the target, on the data it was fitted to. corrected: whether
    the target includes what the shortcut lost. fitted: False where that gained nothing and the layer was left alone.
    """

    name: str
    before: float
    after: float
    corrected: bool
    fitted: bool


def repair_sequentially(
    model: onnx_ir.Model,
    reference: onnx_ir.Model,
    data: DataSource,
    layers: Sequence[Linear] | None = None,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    residual: bool = True,
    rectified: bool = False,
    ridge: float = DEFAULT_RIDGE,
    samples: int | None = None,
    positions: int | None = 64,
    seed: int = 0,
    cache_bytes: int = 256 << 20,
    limit_bytes: int = 24 << 20,
    progress: ProgressLike | None = None,
) -> list[Repaired]:
    """Refit the layers of `model` in graph order, so that each gives what the same node of `reference` gives.

    Asymmetric: a layer's inputs come from `model` with all earlier layers repaired, its target from the reference, so
    that it makes good for what was lost before it, too. Where its output goes straight into an Add with a shortcut, the
    target includes what the shortcut lost: y_ref + (shortcut_ref - shortcut). With `rectified`, where a Relu or Clip
    behind it clips the original's value, any value beyond the same limit will do, and the target is the present one
    (Zhang et al. 2015, section 2.2, https://arxiv.org/abs/1505.06798, with one step of its alternation a sweep).

    layers: of `model`; None for all that the reference has too. kept: node name -> which output channels of the
    reference's node are left; all for names that it lacks. rectified: see above; it pays where the model is near its
    optimum already, as in a second sweep. ridge: as for `least_squares`. samples, positions, seed: as for
    `moments.collect`.
    cache_bytes: for activations kept between layers; with less, the models run from further back.

    Raises:
        InputError: the data does not fit the models, or turns into NaN or infinity in them.
        UsageError: a layer that the reference lacks, or whose columns cannot be cut.
    """
    originals = {node.name or "": node for node in reference.graph}
    chosen = _repairable(model, originals) if layers is None else _in_graph_order(model, layers, originals)
    if not chosen:
        return []
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
    results = []
    with one_blas_thread(), contextlib.ExitStack() as stack:
        task = stack.enter_context(progress.task("repairing layers", len(steps))) if progress is not None else None
        for index, step in enumerate(steps):
            moments = _moments_of(step, steps[index + 1 :], current, original, kept, positions, seed)
            results.append(_repair(step, moments, kept.get(step.layer.node.name or ""), ridge))
            if task is not None:
                task.advance()
    return results


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


def _repair(step: _Step, moments: Moments, kept: Sequence[int] | None, ridge: float) -> Repaired:
    layer = step.layer
    weight, bias = layer.weight(), layer.bias()
    added = _added_bias(layer)
    wanted = None if added is None else _added_bias(as_linear(step.original))
    if added is not None and wanted is not None:  # as if both belonged to their MatMul
        bias = _numbers(added)
        offset = _numbers(wanted)
        moments = moments.shift_target(offset if kept is None else offset[np.asarray(kept, np.int64)])
    fit_bias = layer.node.op_type != "MatMul" or bias is not None
    new_weight, new_bias = least_squares(moments, weight, bias, ridge=ridge, fit_bias=fit_bias)
    before, after = moments.error_of(weight, bias), moments.error_of(new_weight, new_bias)
    if not after < before:
        return Repaired(layer.node.name or "", before, before, step.shortcut is not None, fitted=False)
    if added is not None and wanted is not None:
        assert new_bias is not None
        added.const_value = onnx_ir.tensor(new_bias, name=added.name)
        new_bias = None
    write_parameters(layer, new_weight, new_bias)
    return Repaired(layer.node.name or "", before, after, step.shortcut is not None, fitted=True)


def _repairable(model: onnx_ir.Model, originals: Mapping[str, onnx_ir.Node]) -> list[Linear]:
    return [
        layer
        for layer in linear_ops(model, subgraphs=False)
        if layer.node.name in originals and why_no_patches(layer) is None
    ]


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
            return None  # a constant in between would move the limit
        value = user.outputs[0]


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


def _added_bias(layer: Linear | str | None) -> onnx_ir.Value | None:
    """Return the constant [out] that an Add puts behind a MatMul, where it is this MatMul's own."""
    if not isinstance(layer, Linear) or layer.node.op_type != "MatMul" or layer.output_axis != -1:
        return None
    if len(layer.output.uses()) != 1 or layer.output.is_graph_output():
        return None
    ((user, index),) = layer.output.uses()
    added = user.inputs[1 - index] if user.op_type == "Add" else None
    if added is None or not added.is_initializer() or len(added.uses()) != 1:
        return None
    tensor = constant_tensor(added)
    return added if tensor is not None and tuple(tensor.shape.numpy()) == (layer.out_channels,) else None


def _numbers(value: onnx_ir.Value) -> _Array:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor.numpy()


# The linear systems.


def _solve(gram: _Float64, right: _Float64, ridge: float) -> _Float64:
    """Return X [G, out, K] with X (gram + ridge * mean(diag) I) = right, of least norm where that is singular."""
    groups, width, _ = gram.shape
    damped = gram.copy()
    diagonal = np.arange(width)
    damped[:, diagonal, diagonal] += ridge * np.trace(gram, axis1=1, axis2=2)[:, None] / width
    if groups > 1 and width <= _BATCHED_WIDTH:
        return _solve_many(damped, right)
    return np.stack([_solve_one(matrix, wanted) for matrix, wanted in zip(damped, right, strict=True)])


def _solve_many(matrices: _Float64, right: _Float64) -> _Float64:
    """Symmetric systems of small matrices through their eigenvectors, which need no second way for singular ones."""
    values, vectors = np.linalg.eigh(matrices)
    inverse = _inverted(values)
    result: _Float64 = ((right @ vectors) * inverse[:, None, :]) @ vectors.transpose(0, 2, 1)
    return result


def _solve_one(matrix: _Float64, right: _Float64) -> _Float64:
    """One symmetric system by Cholesky, or through eigenvectors where that breaks down. right: [out, K]."""
    from scipy import linalg

    try:
        factor, lower = linalg.cho_factor(matrix, lower=True, check_finite=False)
        pivots = np.square(np.diag(factor))
        sound = bool(pivots.min() > _SMALLEST_PIVOT * pivots.max())
    except linalg.LinAlgError:
        sound = False
    solved: _Float64
    if sound:
        solved = linalg.cho_solve((factor, lower), right.T, check_finite=False).T
    else:
        (solved,) = _solve_many(matrix[None], right[None])
    return solved


def _inverted(values: _Float64) -> _Float64:
    """Invert eigenvalues [G, K], those that are zero but for rounding to zero."""
    floor = _SMALLEST_PIVOT * np.abs(values).max(axis=1, keepdims=True)
    result: _Float64 = np.divide(1.0, values, out=np.zeros_like(values), where=values > floor)
    return result
