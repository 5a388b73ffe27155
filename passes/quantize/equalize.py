"""Equalize channel ranges across layers: divide a channel where it is written, multiply it where it is read.

    W1' = S^-1 W1,  b1' = S^-1 b1,  W2' = W2 S,  S = diag(s)        section 4.1
    s_i = sqrt(r1_i r2_i) / r2_i = sqrt(r1_i / r2_i)                eq. 11

r1_i is the largest weight behind output channel i of the first layer, r2_i the largest that reads that
channel in the second; after a step both are sqrt(r1_i r2_i). Steps run over all pairs in graph order until
none changes a channel by more than `threshold`, or `iterations` times. They need only largest magnitudes,
so each weight is scaled and rounded once, at the end.

One range then serves all channels: what per-tensor quantization would lose in small channels, it keeps.
Weights quantized per channel gain only through the inputs of their layer.

Legal where `scaling_links` says. We depart from the paper for dead channels: one that is zero on either
side, or whose scale would lie more than 1024 times off the others', takes the middle (median) of theirs.
Nearly dead weights would blow up their bias, and the bias of dead ones must move with the rest.
Fidelity: exact up to rounding. Each layer's weight and bias is rounded once more, to within u = 6e-8 of
itself for float32, so one pair's outputs are off by at most 3 u times the sum of magnitudes behind them.
With `absorb` the pass is lossy: see `bias_absorption`.
Scopes: the main graph and the bodies of If, Loop and Scan, each pair inside one graph. Order: after
fold-batchnorm, for a BatchNormalization between two layers parts them; before quantize-int8.
Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, section
4.1, https://arxiv.org/abs/1906.04721. A depthwise triple is two pairs here, not one set of three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import pydantic

from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Context, Declined, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.cleanup.graph_edits import replace_constant, value_names
from onnxpress.passes.quantize.bias_absorption import absorb_biases
from onnxpress.passes.quantize.scaling_links import Link, find_links
from onnxpress.passes.selectors import Selection

__all__ = ["Equalize", "EqualizeOptions"]

_LARGEST_SCALE = 1024.0  # apart from the median of the pair's channels

Floats = npt.NDArray[np.float64]


class EqualizeOptions(SiteOptions):
    """Options of equalize."""

    iterations: int = pydantic.Field(default=50, ge=1, description="rounds over all pairs at most")
    threshold: float = pydantic.Field(
        default=0.01, gt=0, description="stop when no channel's scale changes by more than this share"
    )
    absorb: bool = pydantic.Field(default=False, description="move high biases into the next layer (lossy, needs data)")


class Equalize(Pass):
    """Scale channels so that the weights on both sides of an activation share one range."""

    name = "equalize"
    fidelity = "rounding"
    options_type = EqualizeOptions
    after = ("fold-batchnorm",)

    def __init__(self, /, **options: Any) -> None:
        """Check and keep the options."""
        super().__init__(**options)
        assert isinstance(self.options, EqualizeOptions)
        self._options = self.options
        if self._options.absorb:
            self.__dict__["fidelity"] = "lossy"  # of this instance: the option decides

    @property
    def needs_data(self) -> bool:
        """Only to absorb biases: the scales come from the weights."""
        return self._options.absorb

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Equalize in place; with `absorb`, absorb biases afterwards.

        Raises:
            UsageError: `absorb` without calibration data, or a selector that matches nothing.
        """
        data = context.require_data(self.name) if self._options.absorb else None
        selection = Selection.from_options(self._options, model, self.name)
        rewrites = Rewrites()
        links: list[Link] = []
        for found in find_links(model):
            chosen = _choose(found, selection)
            if isinstance(chosen, Link):
                links.append(chosen)
            else:
                rewrites.declined.append(chosen)
        rewrites.sites += self._scale(links, model)
        if data is not None:
            absorbed = absorb_biases(links, model, data, progress=context.progress)
            rewrites.sites += absorbed.sites
            rewrites.declined += absorbed.declined
        return rewrites

    def _scale(self, links: Sequence[Link], model: onnx_ir.Model) -> list[Site]:
        scales = _solve(links, self._options.iterations, self._options.threshold)
        applied = {link: scale for link, scale in scales.items() if _change(scale) > self._options.threshold}
        sites = [_site(link, scale) for link, scale in applied.items()]
        _apply(applied, model)
        return sites


def _choose(found: Link | Declined, selection: Selection) -> Link | Declined:
    if isinstance(found, Declined):
        return found
    node = found.first.node
    reason = selection.reason(node) or selection.reason(found.second.node)
    return found if reason is None else Declined(node.name or "", node.op_type, reason)


class _Ranges:
    """The largest magnitudes of one layer's weight, per pair of channels, under the scales so far.

    written: [out_channels], what output channels are divided by. read: [in_channels], what input channels are
    multiplied with.
    """

    def __init__(self, linear: Linear) -> None:
        weight = np.abs(linear.weight())
        largest: Floats = weight.reshape(*weight.shape[:2], -1).max(axis=2).astype(np.float64)
        self._largest = largest.reshape(linear.groups, -1, weight.shape[1])
        self.written = np.ones(linear.out_channels)
        self.read = np.ones(linear.in_channels)

    def of_outputs(self) -> Floats:
        """Return the largest weight behind each output channel, [out_channels]."""
        largest: Floats = self._scaled().max(axis=2).ravel()
        return largest

    def of_inputs(self) -> Floats:
        """Return the largest weight that reads each input channel, [in_channels]."""
        largest: Floats = self._scaled().max(axis=1).ravel()
        return largest

    def _scaled(self) -> Floats:
        groups, rows, columns = self._largest.shape
        read = self.read.reshape(groups, 1, columns)
        scaled: Floats = self._largest * read / self.written.reshape(groups, rows, 1)
        return scaled


def _solve(links: Sequence[Link], iterations: int, threshold: float) -> dict[Link, Floats]:
    """Return the scale of each link, [channels]. Reads weights only."""
    scales = {link: np.ones(link.channels) for link in links}
    ranges = {linear.node: _Ranges(linear) for link in links for linear in (link.first, link.second)}
    for _ in range(iterations):
        largest_change = 0.0
        for link, scale in scales.items():
            first, second = ranges[link.first.node], ranges[link.second.node]
            new = _step(scale, first.of_outputs(), second.of_inputs().reshape(-1, link.repeat).max(axis=1))
            largest_change = max(largest_change, _change(new / scale))
            scale[:] = new
            first.written = scale
            second.read = np.repeat(scale, link.repeat)
        if largest_change <= threshold:
            break
    return scales


def _step(scale: Floats, writing: Floats, reading: Floats) -> Floats:
    """Return the scale after one step of eq. 11; outliers take the middle of the others."""
    alive = (writing > 0) & (reading > 0)
    if not alive.any():
        return scale
    ratio = np.divide(writing, reading, out=np.ones_like(scale), where=alive)
    wanted = np.log(scale) + 0.5 * np.log(ratio)
    typical = np.quantile(wanted[alive], 0.5, method="lower")  # one of them, so that one stays
    is_outlier = ~alive | (np.abs(wanted - typical) > math.log(_LARGEST_SCALE))
    wanted[is_outlier] = np.median(wanted[~is_outlier])
    new: Floats = np.exp(wanted)
    return new


def _change(factor: Floats) -> float:
    """Return by which share the most changed channel changes, up or down."""
    return float(np.exp(np.abs(np.log(factor)).max()) - 1)


def _apply(scales: Mapping[Link, Floats], model: onnx_ir.Model) -> None:
    written = {link.first.node: scale for link, scale in scales.items()}
    read = {link.second.node: np.repeat(scale, link.repeat) for link, scale in scales.items()}
    layers = {linear.node: linear for link in scales for linear in (link.first, link.second)}
    names = value_names(model)
    for node, linear in layers.items():
        _scale_layer(linear, written.get(node), read.get(node), model, names)


def _scale_layer(
    linear: Linear,
    written: Floats | None,
    read: Floats | None,
    model: onnx_ir.Model,
    names: set[str | None],
) -> None:
    stored = linear.weight()
    weight = stored.astype(np.float64).reshape(linear.groups, -1, *stored.shape[1:])
    kernel = (1,) * len(linear.kernel)
    if read is not None:
        weight *= read.reshape(linear.groups, 1, -1, *kernel)
    if written is not None:
        weight /= written.reshape(linear.groups, -1, 1, *kernel)
    result = linear.to_stored(weight.reshape(stored.shape).astype(stored.dtype))
    bias = linear.bias()
    replace_constant(linear.node, linear.weight_index, result, model, names)
    if bias is not None and written is not None:
        replace_constant(linear.node, 2, (bias / written).astype(bias.dtype), model, names)


def _site(link: Link, scale: Floats) -> Site:
    """Describe a link before it is applied."""
    writing = _Ranges(link.first).of_outputs()
    node, other = link.first.node, link.second.node
    spread = f"channels were {_spread(writing):.3g}x apart, now {_spread(writing / scale):.3g}x"
    return Site(node.name or "", node.op_type, detail=f"with {other.op_type} {other.name!r}: {spread}")


def _spread(ranges: Floats) -> float:
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if alive.size else 1.0
