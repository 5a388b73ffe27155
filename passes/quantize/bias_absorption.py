"""Absorb high biases into the next layer: what a Relu never cuts need not pass through it.

    h = Relu(W1 x + b1), y = W2 h + b2              section 4.1.3, eq. 14 to 17
    c = max(0, mean - 3 std) of W1 x + b1, per channel
    b1' = b1 - c,  b2' = b2 + W2 c

Relu(z - c) + c = max(z, c) = Relu(z) wherever z >= c: the function stays where no sample falls below c, and the
ranges of h shrink by c. The paper takes mean and std from BatchNormalization, which is folded by now; we measure
them over the calibration data, and measure the error too: `sqnr_db` of Relu's output, max(z, c) for Relu(z), and
`below_percent`, the share of values that c lifts, both over that data.

Legal when: the pair is linked; its first operator in between is a Relu, and those behind it commute with adding a
constant to a channel (MaxPool, global pooling, Flatten); the second is a Conv without padding or a Gemm, for at a
padded border some taps would not see the constant; the first is no MatMul, which has no bias; the value can be
fetched.
Source: Nagel et al. 2019, https://arxiv.org/abs/1906.04721
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import ProgressLike, fetchable, stream
from onnxpress.ir.data import DataSource
from onnxpress.ir.linear import Linear
from onnxpress.passes.base import Declined, Rewrites, Site
from onnxpress.passes.cleanup.graph_edits import set_bias, value_names
from onnxpress.passes.quantize.scaling_links import Link

__all__ = ["absorb_biases"]

_DEVIATIONS = 3.0  # section 4.1.3: 99.865 % of a normal distribution lie above mean - 3 std
_WORTH = 1e-3  # of the layer's largest mean + 3 std; less is rounding left by an absorption before
_CARRIERS = frozenset(
    {"Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMean", "Reshape", "Squeeze"}
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
