"""What the passes that set single weights to zero share: which layers they take, in what order, and what they record.

Layers are taken in graph order. With `repair`, each is fitted to what the original gives at its place (y) from what
reaches it through the layers pruned before it (x), so that it makes good for part of their loss, too:

    u, b  = argmin E||W x + b - y||^2 + ridge * mean(diag H) * ||W - W0||^2       (`passes.normal_form`)
    W'    = the weights of the least error around u that keep the pattern          (`sparse_update`)
    b'    = E y - W' E x

Where the output goes straight into an Add with a shortcut, y also holds what the shortcut lost. Without `repair`, x and
y are the original's own, and u = W0. A MatMul takes no bias: its moments are not centred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.moments import Moments, MomentsSum
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import Stepwise, stepwise_batch_size
from onnxpress.ir.data import DataSource
from onnxpress.ir.encodings import Sparse
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.passes.base import Context, Declined, Site, SiteOptions
from onnxpress.passes.cleanup.graph_edits import set_bias, value_names
from onnxpress.passes.instrument import Progress
from onnxpress.passes.layer_moments import layer_moments
from onnxpress.passes.normal_form import best_bias, normal_form
from onnxpress.passes.prune.sparse_update import refit
from onnxpress.passes.selectors import Selection
from onnxpress.passes.weight_sites import layer_amount, replace_weight, why_not_encodable

__all__ = ["Chooser", "SparseOptions", "count_zeros", "find_layers", "sparse_moments", "sparsify"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Mask: TypeAlias = npt.NDArray[np.bool_]

_FEWEST_WEIGHTS = 128  # a layer of fewer has little to give, and every one of its weights matters
_POSITIONS = 64  # of each sample that moments are taken at
_CACHE_BYTES = 128 << 20  # of activations that each model keeps between layers
_READ_BYTES = 24 << 20  # of inner values at a time
_LABEL = "pruning layers"
# Little depends on the ridge of the normal form. Top-1 at 0.01 / 0.03 / 0.1 / 0.3, 256 calibration and 4,000 other
# images (standard error 0.6): resnet20 at ratio 0.75 75.8 / 76.4 / 76.4 / 76.4, at 2:4 79.9 / 79.6 / 79.4 / 79.7;
# lenet300 at ratio 0.75 98.2 / 98.1 / 98.2 / 98.1, at 2:4 98.0 / 98.1 / 98.2 / 98.2 (standard error 0.2).


class SparseOptions(SiteOptions):
    """Options of both passes."""

    method: Literal["obs", "magnitude"] = pydantic.Field(
        default="obs", description="obs: second order, from data; magnitude: the smallest weights, without data"
    )
    repair: bool = pydantic.Field(
        default=True, description="obs: fit each layer to the original's output behind the layers pruned before it"
    )
    samples: int | None = pydantic.Field(default=None, ge=1, description="calibration samples to use; all by default")
    max_sites: int | None = pydantic.Field(default=None, ge=0, description="most layers to prune, the largest first")


class Chooser(Protocol):
    """Which weights of a layer stay."""

    def by_magnitude(self, linear: Linear) -> _Mask:
        """Return the mask of those that stay, [out, in/groups, *kernel]."""
        ...

    def by_error(self, linear: Linear, rows: _Float64, gram: _Float64) -> tuple[_Mask, _Float64]:
        """Return what `sparse_update.obs_mask` does."""
        ...


# Which layers.


def find_layers(
    model: onnx_ir.Model, options: SparseOptions, name: str, problem: Callable[[Linear], str | None]
) -> tuple[list[Linear], list[Declined]]:
    """Return the layers to prune, in graph order, and the linear operators that are not with the reason.

    problem: the pass's own legality, asked last.

    Raises:
        UsageError: a selector matches nothing.
    """
    selection = Selection.from_options(options, model, name)
    layers: list[Linear] = []
    declined: list[Declined] = []
    for node in model.graph.all_nodes():
        view = as_linear(node)
        if view is None:
            continue
        reason = view if isinstance(view, str) else _problem(view, model, options)
        reason = reason or selection.reason(node) or (problem(view) if isinstance(view, Linear) else None)
        if reason is None and isinstance(view, Linear):
            layers.append(view)
        else:
            declined.append(Declined(node.name or "", node.op_type, reason or ""))
    most = len(layers) if options.max_sites is None else options.max_sites
    chosen = {layer.node for layer in sorted(layers, key=_size, reverse=True)[:most]}
    reason = f"max_sites={most}, and it is none of the largest"
    declined += [Declined(one.node.name or "", one.node.op_type, reason) for one in layers if one.node not in chosen]
    return [layer for layer in layers if layer.node in chosen], declined


def _problem(linear: Linear, model: onnx_ir.Model, options: SparseOptions) -> str | None:
    """Say why no pattern can be put on `linear`; None where one can."""
    if linear.is_depthwise:
        return "depthwise: each output channel reads one input channel, and has no weight to spare"
    reason = why_not_encodable(linear, model, _FEWEST_WEIGHTS)
    return reason or (why_no_patches(linear) if options.method == "obs" else None)


def count_zeros(linear: Linear) -> int:
    """Return how many weights are zero."""
    return _size(linear) - int(np.count_nonzero(linear.weight()))


def _size(linear: Linear) -> int:
    return linear.weight().size


# What they become.


def sparsify(
    model: onnx_ir.Model, layers: Sequence[Linear], chooser: Chooser, options: SparseOptions, context: Context
) -> list[Site]:
    """Prune `layers` (in graph order) in place, and return a site for each.

    Raises:
        UsageError: method=obs without data. InputError: the data does not fit the model.
    """
    names = value_names(model)
    if options.method == "magnitude" and context.data is None:
        return [_write_by_magnitude(model, layer, chooser, None, context, names) for layer in layers]
    sites = []
    repair = options.repair and options.method == "obs"
    for layer, moments in sparse_moments(model, layers, context, options.samples, asymmetric=repair):
        if options.method == "magnitude":
            sites.append(_write_by_magnitude(model, layer, chooser, moments, context, names))
        else:
            assert moments is not None, "layers without columns were declined"
            sites.append(_write_by_error(model, layer, chooser, moments, context, names))
    return sites


def _write_by_magnitude(
    model: onnx_ir.Model,
    layer: Linear,
    chooser: Chooser,
    moments: Moments | None,
    context: Context,
    names: set[str | None],
) -> Site:
    """Drop weights and leave all else as it is. The error is that of the output where moments tell it."""
    weight = layer.weight()
    pruned = np.where(chooser.by_magnitude(layer), weight, np.float32(0))
    error = {"weight_sqnr_db": sqnr_db(_energy(weight), _energy(weight - pruned))}
    if moments is not None:
        error = {"sqnr_db": sqnr_db(1.0, moments.error_of(pruned, layer.bias()))}
    return _write(model, layer, pruned, None, error, context, names)


def _write_by_error(
    model: onnx_ir.Model,
    layer: Linear,
    chooser: Chooser,
    moments: Moments,
    context: Context,
    names: set[str | None],
) -> Site:
    gram, rows = normal_form(layer, moments)
    kept, swept = chooser.by_error(layer, rows, gram)
    fitted = np.where(kept, refit(rows, gram, kept, swept), 0.0)
    pruned = fitted.reshape(layer.weight().shape).astype(np.float32)
    bias = best_bias(layer, moments, pruned)
    error = {"sqnr_db": sqnr_db(1.0, moments.error_of(pruned, bias))}
    return _write(model, layer, pruned, bias, error, context, names)


def _write(
    model: onnx_ir.Model,
    layer: Linear,
    weight: _Array,
    bias: _Array | None,
    error: Mapping[str, float],
    context: Context,
    names: set[str | None],
) -> Site:
    before = layer_amount(layer)
    replace_weight(model, layer, Sparse.of(layer.to_stored(weight)), names)
    if bias is not None:
        set_bias(layer.node, bias, model, names)
    zeros = weight.size - int(np.count_nonzero(weight))
    detail = f"{zeros:,} of {weight.size:,} weights are zero"
    if "sparse" not in context.constraints.encodings:
        target = "the target" if context.constraints.target == "any" else context.constraints.target
        detail += f"; {target} stores and multiplies them like the others, so no speed or file size is won"
    return Site(layer.node.name or "", layer.node.op_type, before, layer_amount(layer), error, detail)


def _energy(array: _Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())


# Moments of one layer after the other.


def sparse_moments(
    model: onnx_ir.Model, layers: Sequence[Linear], context: Context, samples: int | None, *, asymmetric: bool
) -> Iterator[tuple[Linear, Moments | None]]:
    """Yield each layer with its moments; None where its columns cannot be cut. A layer may change once it was yielded.

    asymmetric: inputs from `model` as it is by then, targets from the model as it was; else both as it was.

    Raises:
        UsageError: no data. InputError: the data does not fit the model.
    """
    data = context.require_data("method=obs")
    reference = model.clone()
    fit = [layer for layer in layers if why_no_patches(layer) is None]
    if asymmetric:
        for found in layer_moments(
            model, reference, data, fit, samples=samples, positions=_POSITIONS, seed=context.seed,
            cache_bytes=2 * _CACHE_BYTES, limit_bytes=_READ_BYTES, progress=context.progress, label=_LABEL,
        ):  # fmt: skip
            yield found.layer, found.moments
    else:
        yield from _symmetric(model, reference, data, fit, context, samples)
    yield from ((layer, None) for layer in layers if layer not in fit)


def _symmetric(
    model: onnx_ir.Model,
    reference: onnx_ir.Model,
    data: DataSource,
    layers: Sequence[Linear],
    context: Context,
    samples: int | None,
) -> Iterator[tuple[Linear, Moments]]:
    if not layers:
        return
    originals = dict(zip(model.graph, reference.graph, strict=True))
    inputs = [layer.data.name or "" for layer in layers]
    batch_size = stepwise_batch_size([reference], data, inputs[:3], _READ_BYTES)
    original = Stepwise(reference, data, batch_size=batch_size, samples=samples, cache_bytes=_CACHE_BYTES)
    with (context.progress or Progress()).task(_LABEL, len(layers)) as task:
        for index, layer in enumerate(layers):
            total = MomentsSum(layer, positions=_POSITIONS, seed=context.seed)
            stop = originals[layer.node]
            for count, seen in original.read([inputs[index]], stop=stop, later=inputs[index + 1 :]):
                total.add(seen[inputs[index]], samples=count)
            yield layer, total.result().with_target(layer.weight(), layer.bias())
            task.advance()
