"""Fold BatchNormalization into the linear operator that feeds it.

    Z = BatchNormalization(Conv(X, W, B), gamma, beta, mean, var)   =>   Z = Conv(X, W', B')
    s  = gamma / sqrt(var + epsilon)        [M]
    W' = W * s along the output channels    [M, C/group, *k], seen through `ir.linear`
    B' = (B - mean) * s + beta              [M], B = 0 where there is none

The same for ConvTranspose (channels counted inside each group) and Gemm. MatMul has no bias: where a constant
stands on its right and its output has rank 2, it becomes a Gemm of the same name.

Legal when: BatchNormalization runs inference with one set of parameters per channel (training_mode 0, one
output, `spatial` 1, opset 7 or later); its parameters, the weight and the bias are constants that no caller
can override, and carry no encoding; the linear operator's output has one use, in the same graph, is no
graph output and carries no quantization note; output channels lie on axis 1 and there are as many as
parameters; var + epsilon is positive; the folded numbers fit the weight's type.
A weight or bias that others read too is copied, never changed under them.

Fidelity: exact up to rounding; computed in float64 and rounded once. Each of the K = C/group * prod(k)
products behind an output is off by one rounding of W', and the sum by K more: |error| <= (2 K + 4) u
sum(|W' x| + |B'|), u = 6e-8 for float32. Roundings cancel: whole nets of 55 layers and K up to 2304 stay
within 1e-6 of the largest output, and one layer within 1e-5, the tolerance of the tests.
Scopes: the main graph and the bodies of If, Loop and Scan. Order: cleanup first finds more, for it removes
what stands between the two nodes; equalize and quantize-int8 come after.
Source: Jacob et al. 2018, section 3.2, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.inference import proven_shape
from onnxpress.ir.linear import Linear, as_linear, constant_tensor
from onnxpress.ir.quantization import quantization_of
from onnxpress.passes.base import Context, Declined, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.cleanup.graph_edits import (
    amount,
    detach,
    drop_unused_constant,
    inherit,
    is_default_domain,
    replace_constant,
    set_bias,
    value_names,
)
from onnxpress.passes.selectors import Selection

__all__ = ["FoldBatchnorm", "Match", "match", "rewrite"]

_EPSILON = float(np.float32(1e-5))  # ONNX default, all opsets; attributes are float32, also for float64 data
_FIRST_OPSET = 7  # from here on the number of outputs, later an attribute, tells training from inference

Floats = npt.NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class Match:
    """A BatchNormalization, the linear operator behind it, and what becomes of that.

    weight: stored layout and type. bias: [M], the weight's type.
    """

    linear: Linear
    norm: onnx_ir.Node
    weight: Floats
    bias: Floats


class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul that feeds it."""

    name = "fold-batchnorm"
    fidelity = "rounding"
    options_type = SiteOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Fold in place, wherever it is legal."""
        assert isinstance(self.options, SiteOptions)
        chosen = _Chosen(self.options, model)
        rewrites = Rewrites()
        names = value_names(model)
        opset = model.opset_imports.get("", 1)
        for node in list(model.graph.all_nodes()):
            found = match(node, opset)
            if isinstance(found, Match):
                left_out = chosen.reason(found)
                found = found if left_out is None else _declined(node, left_out)
            if isinstance(found, Match):
                rewrites.sites.append(rewrite(found, model, names))
            elif found is not None:
                rewrites.declined.append(found)
        return rewrites


def match(norm: onnx_ir.Node, opset: int) -> Match | Declined | None:
    """Reads only. None: no BatchNormalization. Declined: it is one, but a stated legality clause fails."""
    if norm.op_type != "BatchNormalization" or not is_default_domain(norm):
        return None
    reason = _training_reason(norm, opset)
    if reason is not None:
        return _declined(norm, reason)
    parameters = [constant_tensor(value) for value in norm.inputs[1:5]]
    for value, tensor in zip(norm.inputs[1:5], parameters, strict=True):
        if tensor is None:
            return _declined(norm, f"parameter {_name(value)!r} is not constant")
    linear = _feeding_linear(norm)
    if isinstance(linear, str):
        return _declined(norm, linear)
    reason = _output_reason(linear, norm) or _channel_reason(linear)
    if reason is not None:
        return _declined(norm, reason)
    gamma, beta, mean, var = (np.asarray(tensor, np.float64) for tensor in parameters)
    if gamma.shape != (linear.out_channels,):
        return _declined(norm, f"{gamma.size} parameters for {linear.out_channels} channels")
    spread = var + norm.attributes.get_float("epsilon", _EPSILON)
    if not (spread > 0).all():
        channel = int(np.argmin(spread > 0))
        return _declined(norm, f"var + epsilon is {spread[channel]:g} in channel {channel}, must be above 0")
    scale = gamma / np.sqrt(spread)
    return _fold(linear, norm, scale, beta - mean * scale)


def _fold(linear: Linear, norm: onnx_ir.Node, scale: Floats, shift: Floats) -> Match | Declined:
    """Return the match with Z = scale * linear(X) + shift folded into weight and bias."""
    stored = linear.weight()
    per_channel = scale.reshape(-1, *(1,) * (stored.ndim - 1))
    bias = linear.bias()
    with np.errstate(over="ignore", invalid="ignore"):  # told as a reason below
        weight = (stored.astype(np.float64) * per_channel).astype(stored.dtype)
        offset = (shift + (0.0 if bias is None else bias.astype(np.float64) * scale)).astype(stored.dtype)
    if not (np.isfinite(weight).all() and np.isfinite(offset).all()):
        return _declined(norm, f"the folded numbers do not fit {stored.dtype}")
    return Match(linear, norm, linear.to_stored(weight), offset)


def rewrite(found: Match, model: onnx_ir.Model, names: set[str | None]) -> Site:
    """Fold, and remove BatchNormalization with the parameters that only it read.

    names: see `fresh_name`. The operator's output takes over name, type and shape of BatchNormalization's.
    """
    linear, node, norm = found.linear, found.linear.node, found.norm
    constants = (linear.weight_value, linear.bias_value, *norm.inputs[1:5])
    touched = list(dict.fromkeys(value for value in constants if value is not None))
    before = amount(touched)
    weight = replace_constant(node, linear.weight_index, found.weight, model, names)
    if node.op_type == "MatMul":
        node = _to_gemm(node)
    bias = set_bias(node, found.bias, model, names)
    inherit(node.outputs[0], norm.outputs[0])
    norm.outputs[0].replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    detach(norm)
    for value in touched:
        drop_unused_constant(value)
    kept = [value for value in touched if value.graph is not None]
    after = amount(dict.fromkeys([*kept, weight, bias]))
    macs = node_macs(node) or 0
    return Site(
        name=norm.name or "",
        kind="BatchNormalization",
        before=dataclasses.replace(before, macs=macs),
        after=dataclasses.replace(after, macs=macs),
        detail=f"folded into {node.op_type} {node.name!r}",
    )


def _to_gemm(matmul: onnx_ir.Node) -> onnx_ir.Node:
    """Replace a MatMul of rank 2 by the Gemm that has room for a bias, under its name."""
    gemm = onnx_ir.node("Gemm", [*matmul.inputs, None], name=matmul.name)
    gemm.metadata_props.update(matmul.metadata_props)
    assert matmul.graph is not None
    matmul.graph.insert_before(matmul, gemm)
    inherit(gemm.outputs[0], matmul.outputs[0])
    matmul.outputs[0].replace_all_uses_with(gemm.outputs[0])
    detach(matmul)
    return gemm


def _training_reason(norm: onnx_ir.Node, opset: int) -> str | None:
    if opset < _FIRST_OPSET:
        return f"opset {opset}, needs {_FIRST_OPSET} or later"
    if norm.attributes.get_int("training_mode", 0):
        return "training_mode is 1"
    outputs = [output for output in norm.outputs if output.name]
    if len(outputs) != 1:
        return f"it has {len(outputs)} outputs, as in training"
    if not norm.attributes.get_int("spatial", 1):
        return "spatial is 0: it has parameters for every position"
    return None


def _feeding_linear(norm: onnx_ir.Node) -> Linear | str:
    source = norm.inputs[0]
    node = source.producer() if source is not None else None
    if source is None or node is None:
        return f"fed by {_name(source)!r}, which no node computes"
    linear = as_linear(node)
    if linear is None:
        return f"fed by {node.op_type} {node.name!r}, which is not linear"
    if isinstance(linear, str):
        return f"{node.op_type} {node.name!r}: {linear}"
    for value in (linear.weight_value, linear.bias_value):
        if is_encoded(value):
            return f"{node.op_type} {node.name!r}: {_name(value)!r} is an encoded weight"
    return linear


def _output_reason(linear: Linear, norm: onnx_ir.Node) -> str | None:
    output, node = linear.output, linear.node
    where = f"output {output.name!r} of {node.op_type} {node.name!r}"
    if output.is_graph_output():
        return f"{where} is a graph output"
    if len(output.uses()) != 1:
        return f"{where} has {len(output.uses())} uses, needs 1"
    if node.graph is not norm.graph:
        return f"{node.op_type} {node.name!r} lies in another graph"
    if quantization_of(output) is not None:
        return f"{where} carries a quantization note"
    return None


def _channel_reason(linear: Linear) -> str | None:
    """Say why the operator's output channels are not BatchNormalization's, or have no place for a bias."""
    if linear.node.op_type != "MatMul":
        return None
    where = f"MatMul {linear.node.name!r}"
    if linear.weight_index == 0:
        return f"{where} has its constant on the left, where no bias fits"
    shape = proven_shape(linear.output)
    if shape is None:
        return f"the rank of {where} is unknown, needs 2"
    return None if len(shape) == 2 else f"{where} has rank {len(shape)}, needs 2"


class _Chosen:
    """The pairs that `include` and `exclude` leave: including either node is enough, excluding either too."""

    def __init__(self, options: SiteOptions, model: onnx_ir.Model) -> None:
        name = FoldBatchnorm.name
        self._included = Selection.from_options(SiteOptions(include=options.include), model, name)
        self._excluded = Selection.from_options(SiteOptions(exclude=options.exclude), model, name)

    def reason(self, found: Match) -> str | None:
        """Say why the pair is left out, or None."""
        linear, norm = found.linear.node, found.norm
        included = None if self._included.has(linear) else self._included.reason(norm)
        return included or self._excluded.reason(norm) or self._excluded.reason(linear)


def _declined(norm: onnx_ir.Node, reason: str) -> Declined:
    return Declined(norm.name or "", "BatchNormalization", reason)


def _name(value: onnx_ir.Value | None) -> str:
    return (value.name or "") if value is not None else ""
