"""What a linear operator can become: forms and ranks, with their price and their error; of these, the sensible ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.linear import Linear, constant_tensor
from onnxpress.passes.constraints import CostEstimator
from onnxpress.passes.factorize.emit import build
from onnxpress.passes.factorize.fit import Objective, fit
from onnxpress.passes.factorize.forms import Factors, Form, Ranks, kernel_of

__all__ = ["Candidate", "Price", "candidates", "price_of"]

_FASTER = 0.05  # of an operator's time: what a form must save to be worth having; the estimate is no better
_FEWER = 0.02  # of its MACs, where nothing estimates time
_EACH = 6  # ranks of one form that are fitted
_SWEEPS = 2  # of alternation, to compare; what is chosen is fitted anew


@dataclasses.dataclass(frozen=True)
class Price:
    """What an operator, or the chain in its place, costs at batch 1.

    macs: None where shapes are unknown. seconds: None where nothing estimates them.
    """

    macs: int | None
    params: int
    seconds: float | None

    @property
    def work(self) -> int:
        """MACs, or what they grow with where nobody knows them."""
        return self.params if self.macs is None else self.macs


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A form at given ranks. error: squared output error, relative to the output's energy. factors: fitted."""

    form: Form
    ranks: Ranks
    price: Price
    error: float
    factors: Factors

    def __str__(self) -> str:
        return self.form.describe(self.ranks)


_Priced: TypeAlias = tuple[Form, Ranks, Price]


def price_of(linear: Linear, estimator: CostEstimator | None) -> Price:
    """Return what the operator costs as it is."""
    held = [value for value in (linear.weight_value, linear.bias_value) if value is not None and len(value.uses()) == 1]
    constants = [constant_tensor(value) for value in held]
    params = sum(tensor.size for tensor in constants if tensor is not None)
    return Price(node_macs(linear.node), params, None if estimator is None else estimator.node_seconds(linear.node))


def candidates(
    linear: Linear,
    forms: Sequence[Form],
    step: int,
    objective: Objective,
    estimator: CostEstimator | None,
    *,
    strict: bool,
    gets_bias: bool,
) -> list[Candidate]:
    """Return fitted forms that are cheaper than the operator, the dearest first, each with less error than the cheaper.

    step: of ranks; strict: nothing else will do, also for an operator that is narrower. Cheaper: in predicted time and
    in MACs; in MACs where nothing predicts time. gets_bias: whether the fit will give it a bias where it has none.
    """
    kernel, dense = kernel_of(linear), price_of(linear, estimator)
    found: list[Candidate] = []
    for form in forms:
        if not form.fits(kernel):
            continue
        priced = [
            (form, ranks, _price(linear, form, ranks, estimator, gets_bias))
            for ranks in form.ranks(kernel, step)
            if not strict or form.counts_terms or not any(rank % step for rank in ranks)
        ]
        for _, ranks, price in _spread([each for each in priced if _pays(each[2], dense)]):
            factors = fit(form, kernel, ranks, objective, sweeps=_SWEEPS)
            found.append(Candidate(form, ranks, price, objective.error(form.weight(factors)), factors))
    return _efficient(found)


def _price(linear: Linear, form: Form, ranks: Ranks, estimator: CostEstimator | None, gets_bias: bool) -> Price:
    """Price the chain without its numbers."""
    shapes = form.shapes(kernel_of(linear), ranks)
    empty = tuple(np.broadcast_to(np.float32(0), shape) for shape in shapes)
    bias = np.zeros(linear.out_channels) if gets_bias else linear.bias()
    # The data as it is, but with no reader added.
    data = onnx_ir.Value(name=linear.data.name, shape=linear.data.shape, type=linear.data.type)
    chain = build(linear, data, form.chains(empty), bias)
    params = sum(value.const_value.size for value in chain.constants if value.const_value is not None)
    seconds = None if estimator is None else sum(estimator.node_seconds(node) for node in chain.nodes)
    macs = [node_macs(node) for node in chain.nodes]
    known = None if None in macs or node_macs(linear.node) is None else sum(each or 0 for each in macs)
    return Price(known, params, seconds)


def _pays(price: Price, dense: Price) -> bool:
    if price.seconds is not None and dense.seconds is not None and price.seconds > (1 - _FASTER) * dense.seconds:
        return False
    return price.work <= (1 - _FEWER) * dense.work


def _spread(priced: Sequence[_Priced]) -> list[_Priced]:
    """Return a few of `priced`, spread evenly over the logarithm of MACs; of those about equal, the first."""
    if len(priced) <= _EACH:
        return list(priced)
    macs = np.log([each[2].work for each in priced])
    wanted = np.linspace(macs.min(), macs.max(), _EACH)
    chosen = dict.fromkeys(int(np.argmin(np.abs(macs - each))) for each in wanted)
    return [priced[index] for index in chosen]


def _efficient(found: Sequence[Candidate]) -> list[Candidate]:
    """Return those that no other beats in error, MACs and time at once, the dearest first."""
    left = [each for each in found if not any(other is not each and _beats(other, each) for other in found)]
    return sorted(left, key=lambda each: -each.price.work)


def _beats(one: Candidate, other: Candidate) -> bool:
    keys = [
        (one.error, other.error),
        (one.price.work, other.price.work),
        (one.price.seconds or 0.0, other.price.seconds or 0.0),
    ]
    return all(a <= b for a, b in keys) and any(a < b for a, b in keys)
