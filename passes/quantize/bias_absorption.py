"""Absorb high biases into the next layer: what a Relu never cuts need not pass through it.

    h = Relu(W1 x + b1), y = W2 h + b2              section 4.1.3, eq. 14 to 17
    c = max(0, mean - 3 std) of W1 x + b1, per channel
    b1' = b1 - c,  b2' = b2 + W2 c

Relu(z - c) + c = max(z, c) = Relu(z) wherever z >= c: the function stays where no sample falls below c, and
the ranges of h shrink by c. The paper takes mean and std from BatchNormalization, which is folded by now;
we measure them over the calibration data, and measure the error too: `sqnr_db` of Relu's output, max(z, c)
for Relu(z), and `below_percent`, the share of values that c lifts, both over that data.

Legal when: the pair is linked; its first operator in between is a Relu, and those behind it commute with
adding a constant to a channel (MaxPool, global pooling, Flatten); the second is a Conv without padding or a
Gemm, for at a padded border some taps would not see the constant; the first is no MatMul, which has no
bias; the value can be fetched.
Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import ProgressLike, fetchable, stream
from onnxpress.ir.data import DataSource
from onnxpress.passes.base import Declined, Rewrites, Site
from onnxpress.passes.cleanup.graph_edits import set_bias, value_names
from onnxpress.passes.quantize.scaling_links import Link

__all__ = ["absorb_biases"]

_DEVIATIONS = 3.0  # section 4.1.3: 99.865 % of a normal distribution lie above mean - 3 std
_WORTH = 1e-3  # of the layer's largest mean + 3 std; less is rounding left by an absorption before
_CARRIERS = frozenset(
    {
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "ReduceMean",
        "Reshape",
        "Squeeze",
    }
)

Floats = npt.NDArray[np.float64]


def absorb_biases(
    links: Iterable[Link],
    model: onnx_ir.Model,
    data: DataSource,
    *,
    progress: ProgressLike | None = None,
) -> Rewrites:
    """Absorb in place wherever it is legal and a channel has something to absorb. Streams the data twice."""
    rewrites = Rewrites()
    legal: list[Link] = []
    for link in links:
        reason = _reason_against(link, model)
        if reason is None:
            legal.append(link)
        else:
            rewrites.declined.append(_declined(link, reason))
    if not legal:
        return rewrites
    constants = _measure_constants(legal, model, data, progress)
    errors = _measure_errors(constants, model, data, progress)
    names = value_names(model)
    for link in legal:
        if link not in constants:
            rewrites.declined.append(_declined(link, "no channel's mean lies 3 deviations above 0"))
            continue
        rewrites.sites.append(_site(link, constants[link], errors[link]))
        _absorb(link, constants[link], model, names)
    return rewrites


def _reason_against(link: Link, model: onnx_ir.Model) -> str | None:
    second = link.second.node
    where = f"{second.op_type} {second.name!r}"
    if link.first.node.op_type == "MatMul":
        return "MatMul has no bias"
    if not link.between or link.between[0].op_type != "Relu":
        return f"no Relu stands before {where}"
    for node in link.between[1:]:
        if node.op_type not in _CARRIERS:
            return f"{node.op_type} {node.name!r} does not carry a constant through"
    if second.op_type not in ("Conv", "Gemm"):
        return f"{where} has no place for a constant"
    if _has_padding(second):
        return f"{where} pads, and a border would not see the constant"
    if not fetchable(model, link.first.output.name or ""):
        return f"{link.first.output.name!r} lies in a body of another node and cannot be measured"
    return None


def _has_padding(node: onnx_ir.Node) -> bool:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(node.attributes.get_ints("pads", ()))


def _measure_constants(
    links: Sequence[Link], model: onnx_ir.Model, data: DataSource, progress: ProgressLike | None
) -> dict[Link, Floats]:
    """Return c, [channels], for the links that have a channel to absorb."""
    counts = dict.fromkeys(links, 0)
    totals = {link: np.zeros(link.channels) for link in links}
    squares = {link: np.zeros(link.channels) for link in links}
    for link, values in _observe(links, model, data, progress, "measuring activations"):
        counts[link] += len(values)
        totals[link] += values.sum(axis=0)
        squares[link] += np.square(values).sum(axis=0)
    constants = {}
    for link in links:
        mean = totals[link] / counts[link]
        spread = _DEVIATIONS * np.sqrt(np.maximum(squares[link] / counts[link] - mean**2, 0))
        floor = _WORTH * np.max(np.abs(mean) + spread)
        constant = np.where(mean - spread > floor, mean - spread, 0.0)
        if constant.any():
            constants[link] = constant
    return constants


def _measure_errors(
    constants: Mapping[Link, Floats], model: onnx_ir.Model, data: DataSource, progress: ProgressLike | None
) -> dict[Link, dict[str, float]]:
    """Return per link what max(z, c) in place of Relu(z) costs over the data."""
    sums = {link: np.zeros(4) for link in constants}
    for link, values in _observe(list(constants), model, data, progress, "measuring absorption"):
        kept = np.maximum(values, 0)
        lift = np.maximum(constants[link] - kept, 0)
        below = float(np.count_nonzero(lift))
        sums[link] += np.array([np.square(kept).sum(), np.square(lift).sum(), below, float(lift.size)])
    return {link: _error(*totals.tolist()) for link, totals in sums.items()}


def _error(signal: float, noise: float, below: float, count: float) -> dict[str, float]:
    return {"sqnr_db": sqnr_db(signal, noise), "below_percent": 100 * below / count}


def _observe(
    links: Sequence[Link],
    model: onnx_ir.Model,
    data: DataSource,
    progress: ProgressLike | None,
    label: str,
) -> Iterator[tuple[Link, Floats]]:
    """Yield each link with its first layer's output, [samples and positions, channels], a batch at a time."""
    names = {link: str(link.first.output.name) for link in links}
    if not links:
        return
    for batch in stream(model, data, list(names.values()), label=label, progress=progress):
        for link, name in names.items():
            channels_last = np.moveaxis(batch[name], link.first.output_axis, -1)
            yield link, channels_last.reshape(-1, link.channels).astype(np.float64)


def _absorb(link: Link, constant: Floats, model: onnx_ir.Model, names: set[str | None]) -> None:
    for linear, change in ((link.first, -constant), (link.second, _passed_on(link, constant))):
        bias = linear.bias()
        total = change if bias is None else bias.astype(np.float64) + change
        set_bias(linear.node, total.astype(linear.weight().dtype), model, names)


def _passed_on(link: Link, constant: Floats) -> Floats:
    """Return W2 c, summed over the kernel, [out channels of the second]."""
    second = link.second
    weight = second.weight().astype(np.float64)
    taps = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
    grouped = taps.reshape(second.groups, -1, taps.shape[1])
    read = np.repeat(constant, link.repeat).reshape(second.groups, -1, 1)
    passed: Floats = (grouped @ read).ravel()
    return passed


def _site(link: Link, constant: Floats, error: Mapping[str, float]) -> Site:
    node, other = link.first.node, link.second.node
    channels = int(np.count_nonzero(constant))
    detail = f"bias of {channels} of {link.channels} channels absorbed by {other.op_type} {other.name!r}"
    return Site(node.name or "", node.op_type, error=error, detail=detail)


def _declined(link: Link, reason: str) -> Declined:
    node = link.first.node
    return Declined(node.name or "", node.op_type, f"no bias absorbed: {reason}")
