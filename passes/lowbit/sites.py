"""Give layers low-bit weights, one after the other: what the passes of this family share.

With data, each layer is fitted to what the original gives at its place (y) from what reaches it through the layers
encoded before it (x), what a shortcut lost included, so that it makes good for part of their loss:

    u, H   = the normal form of E||W x + b - y||^2      (`passes.normal_form`; its ridge holds u near the original)
    codes  = those of the least (w - u)^T H (w - u)     (`fit`)
    b'     = E y - W' E x                               a MatMul takes no bias: its moments are not centred

A second sweep fits all layers anew, and then takes any value beyond a Relu's or Clip's limit for right, where the
original's lies beyond it (`layer_moments`). A weight that was pruned keeps its zeros, and `Sparse` around the encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import ancestors
from onnxpress.ir.encodings import Encoded, Sparse, encoding_of
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.passes.base import Amount, Context, Declined, Rewrites, Site
from onnxpress.passes.cleanup.graph_edits import set_bias, value_names
from onnxpress.passes.layer_moments import layer_moments
from onnxpress.passes.lowbit.family import Family
from onnxpress.passes.lowbit.fit import fit_codes
from onnxpress.passes.lowbit.integers import Integers
from onnxpress.passes.lowbit.options import LowBitOptions
from onnxpress.passes.normal_form import best_bias, normal_form
from onnxpress.passes.samples import split_samples
from onnxpress.passes.selectors import Selection
from onnxpress.passes.weight_sites import layer_amount, replace_weight, why_not_encodable

__all__ = ["Chosen", "encode_layers", "find_layers", "fitted_weight", "mask_of", "rows_of"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]

_FEWEST_WEIGHTS = 128  # below, scales and nodes weigh as much as what is saved
_ERROR_SAMPLES = 64  # that errors are measured on after several sweeps
_POSITIONS = 64  # of each sample that moments are taken at; 256 change top-1 by less than its error


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A layer and the encoding that it gets. why: what makes it an exception, for the record."""

    layer: Linear
    family: Family
    why: str = ""

    @property
    def name(self) -> str:
        return self.layer.node.name or ""


# Which layers.


def find_layers(
    model: onnx_ir.Model, options: LowBitOptions, context: Context, pass_name: str, family: Family
) -> tuple[list[Chosen], list[Declined]]:
    """Return the layers to encode, in graph order, and the linear operators that are not with the reason.

    Raises:
        UsageError: a selector matches nothing.
    """
    selection = Selection.from_options(options, model, pass_name)
    exceptions = _sensitive(model)
    known = context.constraints.encodings
    chosen: list[Chosen] = []
    declined: list[Declined] = []
    for node in model.graph.all_nodes():
        view = as_linear(node)
        if view is None:
            continue
        found = _choose(view, node, model, options, selection, family, exceptions)
        if isinstance(found, Chosen) and found.family.encoding not in known:
            found = (
                f"{found.why or 'a layer'}, and {context.constraints.target} stores no {found.family.encoding} weights"
            )
        if isinstance(found, Chosen):
            chosen.append(found)
        else:
            declined.append(Declined(node.name or "", node.op_type, found))
    return chosen, declined


def _choose(
    view: Linear | str,
    node: onnx_ir.Node,
    model: onnx_ir.Model,
    options: LowBitOptions,
    selection: Selection,
    family: Family,
    exceptions: Mapping[onnx_ir.Node, str],
) -> Chosen | str:
    """Return what `node` becomes, or why it stays as it is."""
    if isinstance(view, str):
        return view
    reason = _problem(view, model, options) or selection.reason(node)
    if reason is not None:
        return reason
    why = exceptions.get(node, "")
    if why and options.sensitive == "float":
        return f"{why}, and sensitive=float leaves it as it is"
    if why and options.sensitive == "int8":
        family = Integers(8)
    else:
        why = ""
    return family.problem(view) or Chosen(view, family, why)


def _problem(layer: Linear, model: onnx_ir.Model, options: LowBitOptions) -> str | None:
    """Say why the weight of `layer` cannot be encoded; None where it can."""
    reason = why_not_encodable(layer, model, _FEWEST_WEIGHTS)
    if reason is None and not np.isfinite(layer.weight()).all():
        reason = f"weight {layer.weight_value.name!r} holds NaN or infinite values"
    return reason or (why_no_patches(layer) if options.method == "gptq" else None)


def _sensitive(model: onnx_ir.Model) -> dict[onnx_ir.Node, str]:
    """Return the layers that few bits hurt most, each with the reason: first and last ones, and depthwise ones.

    First: no linear operator comes before it. Last: none behind it.
    """
    layers = list(linear_ops(model, subgraphs=False))
    nodes = {layer.node for layer in layers}
    before = {layer.node: ancestors([layer.data]) & nodes for layer in layers}
    found = {layer.node: "a depthwise convolution" for layer in layers if layer.is_depthwise}
    followed = set().union(*before.values()) if before else set()
    found |= {layer.node: "a last layer" for layer in layers if layer.node not in followed}
    found |= {layer.node: "a first layer" for layer in layers if not before[layer.node]}
    return found


# What they become.


def encode_layers(
    model: onnx_ir.Model, chosen: Sequence[Chosen], options: LowBitOptions, context: Context, pass_name: str
) -> Rewrites:
    """Encode the weights of the chosen layers (in graph order) in place, and return a site for each.

    Raises:
        UsageError: method=gptq without data, or with too little. InputError: the data does not fit the model.
    """
    record = Rewrites()
    if not chosen:
        return record
    names = value_names(model)
    before = {each.name: layer_amount(each.layer) for each in chosen}
    errors: dict[str, dict[str, float]] = {}
    if options.method != "gptq":
        for each in chosen:
            original = each.layer.weight()
            encoded = fitted_weight(each, original, None, rows_of(original, each.layer), mask_of(each.layer))
            replace_weight(model, each.layer, encoded, names, weight_only=True)
            noise = _energy(original - each.layer.weight())
            errors[each.name] = {"weight_sqnr_db": sqnr_db(_energy(original), noise)}
    else:
        for name, error in _fit_to_data(model, chosen, options, context, pass_name, names):
            errors[name] = {"sqnr_db": sqnr_db(1.0, error)}
    for each in chosen:
        record.sites.append(_site(each, before[each.name], errors[each.name]))
    return record


def _fit_to_data(
    model: onnx_ir.Model,
    chosen: Sequence[Chosen],
    options: LowBitOptions,
    context: Context,
    pass_name: str,
    names: set[str | None],
) -> list[tuple[str, float]]:
    """Fit and store; return each layer's relative output error against the original."""
    data = context.require_data(f"{pass_name}{{method=gptq}}")
    samples = split_samples(data, model, pass_name, samples=options.samples, held_out=0).fitted
    reference = model.clone()
    originals = {node.name: node for node in reference.graph}
    by_name = {each.name: each for each in chosen}
    masks = {each.name: mask_of(each.layer) for each in chosen}
    errors: dict[str, float] = {}
    for sweep in range(options.sweeps):
        label = "fitting weights" if options.sweeps == 1 else f"fitting weights, {sweep + 1} of {options.sweeps}"
        for found in layer_moments(
            model, reference, data, [each.layer for each in chosen], rectified=sweep > 0, samples=samples,
            positions=_POSITIONS, seed=context.seed, progress=context.progress, label=label,
        ):  # fmt: skip
            name = found.layer.node.name or ""
            original = as_linear(originals[name])
            assert isinstance(original, Linear), "the reference is a copy of the model"
            gram, target = normal_form(found.layer, found.moments, original.weight())
            encoded = fitted_weight(by_name[name], original.weight(), gram, target, masks[name])
            errors[name] = _store(model, found.layer, encoded, found.moments, names)
    if options.sweeps > 1:  # the last sweep's targets took the layer's own values for right beyond a Relu's limit
        for found in layer_moments(
            model, reference, data, [each.layer for each in chosen], samples=min(samples, _ERROR_SAMPLES),
            positions=_POSITIONS, seed=context.seed, progress=context.progress, label="measuring errors",
        ):  # fmt: skip
            name = found.layer.node.name or ""
            errors[name] = found.moments.error_of(found.layer.weight(), found.layer.bias())
    return [(each.name, errors[each.name]) for each in chosen]


def _store(model: onnx_ir.Model, layer: Linear, encoded: Encoded, moments: Moments, names: set[str | None]) -> float:
    """Put the weight and the best bias beside it in place, and return the relative output error."""
    replace_weight(model, layer, encoded, names, weight_only=True)
    weight = layer.weight()
    bias = best_bias(layer, moments, weight)
    if bias is not None:
        set_bias(layer.node, bias, model, names)
    return moments.error_of(weight, bias)


def fitted_weight(
    chosen: Chosen, original: _Array, gram: _Float64 | None, target: _Float64, mask: npt.NDArray[np.bool_] | None
) -> Encoded:
    """Return the stored weight of a layer.

    original: [out, in/groups, *kernel]. gram, target: its normal form; gram None where no data tells. mask: as target.
    """
    layer, family = chosen.layer, chosen.family
    rows = target.reshape(-1, target.shape[2])
    importance = np.ones_like(rows)
    if gram is not None:
        diagonals = np.diagonal(gram, axis1=1, axis2=2)
        importance = np.repeat(diagonals, target.shape[1], axis=0)
    if mask is not None:
        importance = importance * mask.reshape(rows.shape)
    codes, alphabet = fit_codes(target, gram, family.start(layer, rows, importance), mask)
    stored = family.encode(layer, layer.to_stored(codes.reshape(original.shape)), alphabet)
    return stored if mask is None else Sparse(layer.to_stored(mask.reshape(original.shape)), stored)


def mask_of(layer: Linear) -> npt.NDArray[np.bool_] | None:
    """Return which weights a pruned layer keeps, [G, out/G, K]; None for one that was not pruned."""
    encoded = encoding_of(layer.weight_value)
    return rows_of(layer.from_stored(encoded.mask), layer) if isinstance(encoded, Sparse) else None


def rows_of(weight: _Array, layer: Linear) -> Any:
    """Return a weight [out, in/groups, *kernel] as [G, out/G, K]; numbers in float64."""
    rows = weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
    return rows if rows.dtype == np.bool_ else rows.astype(np.float64)


def _site(chosen: Chosen, before: Amount, error: Mapping[str, float]) -> Site:
    encoded = encoding_of(chosen.layer.weight_value)
    assert encoded is not None, "it was encoded just now"
    detail = f"{encoded.label}, {encoded.bits_per_weight:.2f} bits a weight"
    if chosen.why:
        detail += f" ({chosen.why})"
    return Site(chosen.name, chosen.layer.node.op_type, before, layer_amount(chosen.layer), error, detail)


def _energy(array: _Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())
