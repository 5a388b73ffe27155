"""Repair what compression broke, from moments and without labels: least squares, layer after layer.

Each layer is fitted to what the original gives at its place, from what reaches it through the layers repaired before it
(`layer_moments`), by `least_squares`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import ProgressLike
from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import ancestors
from onnxpress.ir.data import DataSource
from onnxpress.ir.linear import Linear, as_linear, constant_tensor, linear_ops
from onnxpress.passes.cleanup.graph_edits import drop_unused_constant
from onnxpress.passes.layer_moments import LayerMoments, layer_moments
from onnxpress.passes.least_squares import DEFAULT_RIDGE, least_squares
from onnxpress.passes.selectors import Selection

__all__ = ["Repaired", "layers_behind", "refit_layer", "refit_step", "repair_sequentially", "write_parameters"]

_Array: TypeAlias = npt.NDArray[Any]


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
    if held is not None:
        drop_unused_constant(held)


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

    See `layer_moments` for the targets, and for `kept`, `residual`, `rectified`, `samples`, `positions`, `seed` and the
    bounds in bytes.

    layers: of `model`; None for all that the reference has too. ridge: as for `least_squares`.

    Raises:
        InputError: the data does not fit the models, or turns into NaN or infinity in them.
        UsageError: a layer that the reference lacks, or whose columns cannot be cut.
    """
    if layers is None:
        names = {node.name for node in reference.graph}
        layers = [
            layer
            for layer in linear_ops(model, subgraphs=False)
            if layer.node.name in names and why_no_patches(layer) is None
        ]
    kept = kept or {}
    return [
        refit_step(step, kept.get(step.layer.node.name or ""), ridge)
        for step in layer_moments(
            model, reference, data, layers,
            kept=kept, residual=residual, rectified=rectified, samples=samples, positions=positions, seed=seed,
            cache_bytes=cache_bytes, limit_bytes=limit_bytes, progress=progress,
        )
    ]  # fmt: skip


def refit_step(
    step: LayerMoments, kept: Sequence[int] | None = None, ridge: float = DEFAULT_RIDGE, *, adds_bias: bool = True
) -> Repaired:
    """Refit one layer to its moments, if that gains anything.

    kept, ridge: as for `repair_sequentially`. adds_bias: whether a layer that could have a bias and has none gets one.
    """
    layer, moments = step.layer, step.moments
    weight, bias = layer.weight(), layer.bias()
    added = _added_bias(layer)
    wanted = None if added is None else _added_bias(as_linear(step.original))
    if added is not None and wanted is not None:  # as if both belonged to their MatMul
        bias = _numbers(added)
        offset = _numbers(wanted)
        moments = moments.shift_target(offset if kept is None else offset[np.asarray(kept, np.int64)])
    fit_bias = (layer.node.op_type != "MatMul" and adds_bias) or bias is not None
    new_weight, new_bias = least_squares(moments, weight, bias, ridge=ridge, fit_bias=fit_bias)
    before, after = moments.error_of(weight, bias), moments.error_of(new_weight, new_bias)
    if not after < before:
        return Repaired(layer.node.name or "", before, before, step.corrected, fitted=False)
    if added is not None and wanted is not None:
        assert new_bias is not None
        added.const_value = onnx_ir.tensor(new_bias, name=added.name)
        new_bias = None
    write_parameters(layer, new_weight, new_bias)
    return Repaired(layer.node.name or "", before, after, step.corrected, fitted=True)


def layers_behind(model: onnx_ir.Model, changed: Collection[str], but: Selection) -> list[Linear]:
    """Return the linear operators named in `changed`, and those behind them, that a refit may give other numbers.

    Not those that `but` excludes, nor those that share a constant: a refit would untie them, and the model grow.
    """
    seeds = {node for node in model.graph if (node.name or "") in changed}
    return [
        op
        for op in linear_ops(model, subgraphs=False)
        if why_no_patches(op) is None
        and all(len(value.uses()) == 1 for value in (op.weight_value, op.bias_value) if value is not None)
        and not but.excludes(op.node)
        and (op.node in seeds or not seeds.isdisjoint(ancestors([op.data])))
    ]


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
