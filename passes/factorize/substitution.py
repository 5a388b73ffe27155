"""Give linear operators cheaper forms, so that a budget is met at least output error: what this family shares.

1. candidates  for every operator the forms and ranks that are faster there, fitted to its moments (`candidates`)
2. measure     what some of them cost the model's outputs, one operator at a time, on samples that fitted nothing
3. allocate    one form or none to each operator, so that the budget is met at least summed loss (`passes.allocation`)
4. fit         operator after operator: inputs of the changed model, outputs of the original, what a shortcut lost made
               good for; those that keep their form and lie behind a change are refitted, too (`passes.layer_moments`)
5. emit        the chains, at the very end: until then each is tried as the dense weight that it equals

Without data the weights alone are fitted, what they lose stands for the outputs' loss, and nothing behind is refitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir
import pydantic

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence, NotMeasurableError
from onnxpress.ir.analysis.moments import Moments, collect, gram_bytes
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.analysis.stepwise import ancestors
from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.passes.allocation import Levels, allocate
from onnxpress.passes.base import Amount, Context, Declined, Rewrites, Site, SiteOptions
from onnxpress.passes.factorize.candidates import Candidate, Price, candidates, price_of
from onnxpress.passes.factorize.emit import replace
from onnxpress.passes.factorize.fit import Objective, fit
from onnxpress.passes.factorize.forms import Factors, Form, kernel_of
from onnxpress.passes.instrument import Progress
from onnxpress.passes.layer_moments import LayerMoments, layer_moments
from onnxpress.passes.least_squares import DEFAULT_RIDGE
from onnxpress.passes.repair import refit_step, write_parameters
from onnxpress.passes.samples import Split, split_samples
from onnxpress.passes.selectors import Selection

__all__ = ["Budget", "SubstitutionOptions", "objective_of", "substitute"]

Budget: TypeAlias = Literal["energy", "ratio", "macs", "params", "latency"]

_GRAM_BYTES = 512 << 20  # moments held at once
_MEASURED = 3  # forms of an operator whose effect on the outputs is measured; between them the error curve tells
_FEWEST = 256  # numbers of a weight that is worth a second operator
_ROUNDING = 1e-9  # of a sum of costs
_TINY = 1e-12  # what is no error
_BUDGETS: tuple[Budget, ...] = ("energy", "ratio", "macs", "params", "latency")


class SubstitutionOptions(SiteOptions):
    """Options of the passes of this family."""

    energy: float | None = pydantic.Field(
        default=None,
        gt=0,
        le=1,
        description="share of each operator's output that is kept, at least; the cheapest form",
    )
    ratio: float | None = pydantic.Field(
        default=None, ge=0, lt=1, description="share of the MACs of the operators that can be split that is removed"
    )
    macs: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's multiply-accumulates that may remain"
    )
    params: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the model's parameters that may remain"
    )
    latency: float | None = pydantic.Field(
        default=None, gt=0, le=1, description="share of the predicted time that may remain"
    )
    allocation: Literal["measured", "modelled"] = pydantic.Field(
        default="measured", description="how the cut is shared out: by its measured effect on the outputs, or modelled"
    )
    repair: bool = pydantic.Field(default=True, description="refit what lies behind a change by least squares")
    sweeps: int = pydantic.Field(default=2, ge=1, le=10, description="how often the fit goes through the operators")
    multiple: int | None = pydantic.Field(
        default=None, ge=1, description="ranks are multiples of this; by default what the target's kernels take"
    )
    max_sites: int | None = pydantic.Field(default=None, ge=1, description="change at most so many operators")
    samples: int = pydantic.Field(default=512, ge=2, description="calibration samples to use, at most")
    error_samples: int = pydantic.Field(
        default=128, ge=2, description="samples, at most a third of all, that measure a form's effect and fit nothing"
    )

    @pydantic.model_validator(mode="after")
    def _one_budget(self) -> SubstitutionOptions:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given: give one of {', '.join(_BUDGETS)}")
        return self

    def budget(self) -> tuple[Budget, float] | None:
        """Return what is bounded, with its number, or None where nothing was given."""
        for name in _BUDGETS:
            number = getattr(self, name)
            if number is not None:
                return name, float(number)
        return None


def substitute(
    model: onnx_ir.Model,
    forms: Sequence[Form],
    budget: tuple[Budget, float],
    options: SubstitutionOptions,
    context: Context,
    pass_name: str,
) -> Rewrites:
    """Give operators of `model` forms of `forms`, in place, so that the budget is met.

    Raises:
        UsageError: too little data, a selector that matches nothing, or latency without a cost estimate.
        BudgetError: the budget cannot be reached.
    """
    if budget[0] == "latency" and context.constraints.costs is None:
        raise UsageError(
            f"{pass_name}: latency={budget[1]:g} needs a target that estimates time, and "
            f"{context.constraints.target!r} does not. Give macs instead"
        )
    try:
        return _Run(model, forms, options, context, pass_name).run(*budget)
    except NotMeasurableError as error:
        raise UsageError(f"{pass_name}: {error}. allocation=modelled does without") from error


@dataclasses.dataclass
class _Place:
    """A linear operator that may change. levels: what it can become, after staying as it is; losses: of each."""

    name: str
    dense: Price
    levels: list[Candidate]
    losses: list[float] = dataclasses.field(default_factory=list)

    def price(self, level: int) -> Price:
        return self.levels[level - 1].price if level else self.dense


def objective_of(linear: Linear, moments: Moments | None, *, ridge: float = DEFAULT_RIDGE) -> Objective:
    """Return the error that forms of `linear` are fitted to; without moments that of its weights alone.

    moments: with targets. They are centred where the operator can take a bias.
    """
    weight = linear.weight().reshape(linear.out_channels, -1).astype(np.float64)
    if moments is None:
        return Objective(np.eye(weight.shape[1]), weight, float(np.square(weight).sum()))
    assert moments.cross is not None and moments.target_mean is not None and moments.target_energy is not None
    centred = _takes_bias(linear)
    gram = moments.covariance()[0] if centred else moments.gram[0]
    cross = moments.cross_covariance()[0] if centred else moments.cross[0]
    energy = moments.target_energy - np.square(moments.target_mean) if centred else moments.target_energy
    damping = ridge * float(np.trace(gram)) / len(gram) or _TINY
    gram = gram + damping * np.eye(len(gram))
    return Objective(gram, cross + damping * weight, float(energy.sum()) + damping * float(np.square(weight).sum()))


def _takes_bias(linear: Linear) -> bool:
    return linear.node.op_type != "MatMul"


class _Run:
    """One run. original: the model as it was, which all fits aim at."""

    def __init__(
        self,
        model: onnx_ir.Model,
        forms: Sequence[Form],
        options: SubstitutionOptions,
        context: Context,
        pass_name: str,
    ) -> None:
        self.model, self.forms, self.options, self.context, self.name = model, forms, options, context, pass_name
        self.original = model.clone()
        self.weights = {op.node.name or "": op.weight() for op in linear_ops(self.original, subgraphs=False)}
        self.costs = context.constraints.costs
        self.progress = context.progress or Progress()
        self.data = context.data
        self.split: Split | None = None
        self.divergence: Divergence | None = None

    def run(self, budget: Budget, number: float) -> Rewrites:
        """Choose, fit and emit."""
        record = Rewrites()
        layers = self._eligible(record)
        if (budget in ("macs", "params", "latency") and number >= 1) or (budget == "ratio" and number == 0):
            record.declined += [Declined(op.node.name or "", op.node.op_type, "the budget is met") for op in layers]
            return record
        if not layers and budget in ("macs", "params", "latency"):
            raise BudgetError(f"{self.name}: {budget}={number:g} cannot be reached: {_reasons(record)}")
        if layers and self.data is not None:
            measured = self.options.allocation == "measured" and budget != "energy"
            self.split = split_samples(
                self.data, self.model, self.name,
                samples=self.options.samples, held_out=self.options.error_samples if measured else 0,
            )  # fmt: skip
            if measured:
                self.divergence = Divergence(
                    self.original, self.data, samples=self.split.held_out, skip=self.split.fitted
                )
        places = list(self._places(layers, budget))
        levels = self._choose(places, budget, number)
        chosen = {place.name: place.levels[level - 1] for place, level in zip(places, levels, strict=True) if level}
        errors = self._fit(chosen)
        self._record(record, places, levels, errors, budget)
        return record

    # What may change.

    def _eligible(self, record: Rewrites) -> list[Linear]:
        selection = Selection.from_options(self.options, self.model, self.name)
        found = []
        for node in self.model.graph:
            op = as_linear(node)
            if op is None:
                continue
            reason = selection.reason(node) or (op if isinstance(op, str) else _why_not(op))
            if reason is None and isinstance(op, Linear):
                found.append(op)
            else:
                record.declined.append(Declined(node.name or "", node.op_type, str(reason)))
        return found

    def _places(self, layers: Sequence[Linear], budget: Budget) -> Iterator[_Place]:
        """Yield the operators with what they can become. Moments are held for a part of them at a time."""
        with self.progress.task("fitting forms", len(layers)) as task:
            for part in _parts(layers):
                moments: dict[str, Moments] = {}
                if self.data is not None and self.split is not None:
                    moments = collect(self.model, part, self.data, samples=self.split.fitted, seed=self.context.seed)
                for op in part:
                    yield self._place(op, moments.get(op.node.name or ""), budget)
                    task.advance()

    def _place(self, op: Linear, moments: Moments | None, budget: Budget) -> _Place:
        known = None if moments is None else moments.with_target(op.weight(), op.bias())
        objective = objective_of(op, known)
        gets_bias = known is not None and _takes_bias(op)
        levels = candidates(op, self.forms, self._step(op), objective, self.costs, gets_bias=gets_bias)
        place = _Place(op.node.name or "", price_of(op, self.costs), _rising(levels, budget))
        place.losses = [0.0, *self._losses(op, place.levels, known, objective)]
        return place

    def _step(self, op: Linear) -> int:
        multiple = self.options.multiple or self.context.constraints.channel_multiple
        return max(1, min(multiple, op.in_channels, op.out_channels))

    def _losses(
        self, op: Linear, levels: Sequence[Candidate], moments: Moments | None, objective: Objective
    ) -> list[float]:
        """Return what each level adds to the outputs' divergence: a few measured, the others by their error.

        Without a measurement: the error itself, in units of all that the operator gives.
        """
        errors = [max(level.error, _TINY) for level in levels]
        if self.divergence is None or moments is None or not levels:
            return list(np.maximum.accumulate(errors)) if errors else []
        at = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), _MEASURED)).round().astype(int))
        measured = np.maximum.accumulate([max(self._measure(op, levels[place], moments), _TINY) for place in at])
        known, wanted = np.log(errors), np.log(np.maximum.accumulate(errors))
        found = np.exp(np.interp(wanted, np.maximum.accumulate(known)[at], np.log(measured)))
        return [float(loss) for loss in np.maximum.accumulate(found)]

    def _measure(self, op: Linear, level: Candidate, moments: Moments) -> float:
        """Return the divergence of the model with this one operator changed."""
        assert self.divergence is not None
        trial = self.model.clone()
        node = next(node for node in trial.graph if node.name == op.node.name)
        copy = as_linear(node)
        assert isinstance(copy, Linear)
        weight = level.form.weight(level.factors).reshape(op.weight().shape)
        write_parameters(copy, weight.astype(op.weight().dtype), _bias_for(copy, weight, moments))
        return self.divergence.of(trial)

    # What is chosen.

    def _choose(self, places: Sequence[_Place], budget: Budget, number: float) -> Levels:
        if budget == "energy":
            levels = [_deepest(place, 1 - number) for place in places]
            return self._limited(places, levels, "macs", None)
        total = self._total(places, budget)
        share = 1 - number if budget == "ratio" else number
        measure: Budget = "macs" if budget == "ratio" else budget
        floor = total * (share + _ROUNDING)
        narrowest = [len(place.levels) for place in places]
        within = self._limited(places, narrowest, measure, None)
        left = total - sum(_saved(place, level, measure) for place, level in zip(places, within, strict=True))
        if left > floor:
            raise BudgetError(self._out_of_reach(budget, number, left / total, places))
        levels = _share_out(places, measure, total, floor)
        assert levels is not None, "the cheapest forms are within reach"
        return self._limited(places, levels, measure, lambda some: _share_out(some, measure, total, floor))

    def _limited(
        self,
        places: Sequence[_Place],
        levels: Levels,
        measure: Budget,
        again: Callable[[Sequence[_Place]], Levels | None] | None,
    ) -> Levels:
        """Return the levels with at most `max_sites` above 0: those that save most; shared out again among them."""
        limit = self.options.max_sites
        saved = [_saved(place, level, measure) for place, level in zip(places, levels, strict=True)]
        if limit is None or sum(level > 0 for level in levels) <= limit:
            return levels
        most = set(sorted(range(len(places)), key=lambda index: -saved[index])[:limit])
        if again is None:
            return [level if index in most else 0 for index, level in enumerate(levels)]
        deepest = [_saved(place, len(place.levels), measure) for place in places]
        for chosen in (most, set(sorted(range(len(places)), key=lambda index: -deepest[index])[:limit])):
            some = [
                place if index in chosen else dataclasses.replace(place, levels=[], losses=[0.0])
                for index, place in enumerate(places)
            ]
            found = again(some)
            if found is not None:
                return found
        raise BudgetError(f"{self.name}: the budget cannot be met with max_sites={limit}. Give more of them")

    def _total(self, places: Sequence[_Place], budget: Budget) -> float:
        if budget == "ratio":
            return float(sum(place.dense.macs for place in places))
        if budget == "latency":
            assert self.costs is not None
            return sum(self.costs.node_seconds(node) for node in self.model.graph.all_nodes())
        whole = cost(self.model)
        total = whole.macs if budget == "macs" else whole.params
        if not total:
            raise UsageError(
                f"{self.name}: no layer of the model has {budget} to count, as their shapes are unknown. "
                "Fix the shapes of the model's inputs"
            )
        return float(total)

    def _out_of_reach(self, budget: Budget, number: float, left: float, places: Sequence[_Place]) -> str:
        able = sum(bool(place.levels) for place in places)
        text = f"{self.name}: {budget}={number:g} cannot be reached: "
        if not able:
            where = self.context.constraints.target
            return (
                f"{text}no operator has a form that is cheaper{'' if self.costs is None else f' and faster on {where}'}"
            )
        steps = 1000
        if budget == "ratio":
            reach = f"at most {np.floor((1 - left + _ROUNDING) * steps) / steps:g} of their MACs can go"
        else:
            reach = f"{np.ceil((left - _ROUNDING) * steps) / steps:g} remain"
        limit = "" if self.options.max_sites is None else "; a larger max_sites allows more operators"
        return f"{text}with {able} of {len(places)} operators in their cheapest form, {reach}{limit}"

    # The fit.

    def _fit(self, chosen: dict[str, Candidate]) -> dict[str, float]:
        """Fit all that was chosen, in place, and put the chains in; return the output error of each operator then."""
        factors = {name: candidate.factors for name, candidate in chosen.items()}
        errors = {name: candidate.error for name, candidate in chosen.items()}
        for op in list(linear_ops(self.model, subgraphs=False)):
            name = op.node.name or ""
            if name in chosen:
                weight = chosen[name].form.weight(factors[name]).reshape(op.weight().shape)
                write_parameters(op, weight.astype(op.weight().dtype), None)
        if self.data is not None and chosen:
            for sweep in range(self.options.sweeps):
                for step in self._steps(chosen, rectified=sweep > 0):
                    name = step.layer.node.name or ""
                    if name in chosen:
                        factors[name], errors[name] = self._fit_step(step, chosen[name], factors[name])
                    elif self.options.repair:
                        refit_step(step)
        for op in list(linear_ops(self.model, subgraphs=False)):
            name = op.node.name or ""
            if name in chosen:
                replace(self.model, op, chosen[name].form.chains(factors[name]), op.bias())
        return errors

    def _steps(self, chosen: dict[str, Candidate], *, rectified: bool) -> Iterator[LayerMoments]:
        assert self.data is not None
        seeds = {node for node in self.model.graph if node.name in chosen}
        layers = [
            op
            for op in linear_ops(self.model, subgraphs=False)
            if why_no_patches(op) is None
            and all(len(value.uses()) == 1 for value in (op.weight_value, op.bias_value) if value is not None)
            and (op.node in seeds or not seeds.isdisjoint(ancestors([op.data])))
        ]
        return layer_moments(
            self.model, self.original, self.data, layers,
            residual=self.options.repair, rectified=rectified, samples=self.options.samples, seed=self.context.seed,
            progress=self.progress, label="fitting operators",
        )  # fmt: skip

    def _fit_step(self, step: LayerMoments, candidate: Candidate, start: Factors) -> tuple[Factors, float]:
        """Fit one operator's factors to what it gets and should give by now, and write them as a dense weight."""
        layer, form = step.layer, candidate.form
        prior = self.weights[layer.node.name or ""]
        objective = _with_prior(layer, step.moments, prior)
        found = fit(form, kernel_of(layer), candidate.ranks, objective, start=start)
        weight = form.weight(found).reshape(prior.shape).astype(prior.dtype)
        bias = _bias_for(layer, weight, step.moments)
        write_parameters(layer, weight, bias)
        return found, step.moments.error_of(weight, bias if bias is not None else layer.bias())

    # The record.

    def _record(
        self,
        record: Rewrites,
        places: Sequence[_Place],
        levels: Levels,
        errors: dict[str, float],
        budget: Budget,
    ) -> None:
        for place, level in zip(places, levels, strict=True):
            kind = next(op.node.op_type for op in linear_ops(self.original) if op.node.name == place.name)
            if not level:
                record.declined.append(Declined(place.name, kind, self._why_kept(place, budget)))
                continue
            taken = place.levels[level - 1]
            before, after = place.dense, taken.price
            error = {"predicted_error": taken.error, "output_error": errors[place.name]}
            if self.divergence is not None:
                error["divergence"] = place.losses[level]
            detail = str(taken)
            if before.seconds and after.seconds is not None:
                detail += f"; {after.seconds / before.seconds:.2f} of the predicted time"
            if self.data is None:
                detail += "; fitted to the weights alone"
            width = self.weights[place.name].dtype.itemsize
            record.sites.append(
                Site(
                    place.name,
                    kind,
                    Amount(before.params, before.macs, before.params * width),
                    Amount(after.params, after.macs, after.params * width),
                    error,
                    detail,
                )
            )

    def _why_kept(self, place: _Place, budget: Budget) -> str:
        if not place.levels:
            where = self.context.constraints.target
            faster = "" if self.costs is None else f" and is faster on {where}"
            return f"no form of it has fewer MACs{faster}"
        if budget == "energy":
            return f"the closest cheaper form, {place.levels[0]}, loses {place.levels[0].error:.2g} of its output"
        return "kept: the budget is met at less loss elsewhere"


def _why_not(op: Linear) -> str | None:
    """Return why an operator has no other form at all, or None."""
    if op.node.op_type == "ConvTranspose":
        return "ConvTranspose has no form here yet"
    if op.groups > 1:
        return f"its channels lie in {op.groups} groups already"
    if len(op.kernel) > 2:
        return f"its kernel has {len(op.kernel)} axes, and forms have two at most"
    if op.weight().size < _FEWEST:
        return f"its weight has {op.weight().size} numbers, too few to split"
    if op.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its auto_pad leaves the padding to the operator; cleanup writes it out"
    if len(op.weight_value.uses()) > 1:
        return f"it shares its weight {op.weight_value.name!r}"
    if is_encoded(op.weight_value):
        return f"its weight {op.weight_value.name!r} is encoded already"
    if (reason := why_no_patches(op)) is not None:
        return reason
    for neighbour in (op.data.producer(), *(op.output.consumers() if len(op.output.uses()) == 1 else ())):
        if neighbour is not None and isinstance(as_linear(neighbour), Linear):
            return f"node {neighbour.name!r} is right next to it, so that the two are a product already"
    return None


def _with_prior(layer: Linear, moments: Moments, prior: np.ndarray) -> Objective:
    """Return `objective_of` with the ridge towards the original weight."""
    plain = objective_of(layer, moments, ridge=0.0)
    rows = prior.reshape(len(prior), -1).astype(np.float64)
    damping = DEFAULT_RIDGE * float(np.trace(plain.gram)) / len(plain.gram) or _TINY
    gram = plain.gram + damping * np.eye(len(plain.gram))
    return Objective(gram, plain.cross + damping * rows, plain.energy + damping * float(np.square(rows).sum()))


def _bias_for(op: Linear, weight: np.ndarray, moments: Moments) -> np.ndarray | None:
    """Return the bias of least error beside `weight`; None where the operator can take none."""
    if not _takes_bias(op):
        return None
    assert moments.target_mean is not None
    moved = weight.reshape(len(weight), -1).astype(np.float64) @ moments.mean[0]
    result: np.ndarray = (moments.target_mean - moved).astype(op.weight().dtype)
    return result


def _rising(found: Sequence[Candidate], budget: Budget) -> list[Candidate]:
    """Return those that save ever more of the budget at ever more error."""

    def spent(candidate: Candidate) -> float:
        price = candidate.price
        if budget == "latency":
            return price.seconds or 0.0
        return price.params if budget == "params" else price.macs

    levels: list[Candidate] = []
    for candidate in sorted(found, key=lambda each: (each.error, spent(each))):
        if not levels or spent(candidate) < spent(levels[-1]):
            levels.append(candidate)
    return levels


def _saved(place: _Place, level: int, measure: Budget) -> float:
    before, after = place.dense, place.price(level)
    if measure == "latency":
        return (before.seconds or 0.0) - (after.seconds or 0.0)
    return before.params - after.params if measure == "params" else before.macs - after.macs


def _share_out(places: Sequence[_Place], measure: Budget, total: float, floor: float) -> Levels | None:
    """Return the levels of least summed loss that bring `total` down to `floor`; None where none do."""
    levels, is_met = allocate(
        [place.losses for place in places],
        lambda levels: total - sum(_saved(place, level, measure) for place, level in zip(places, levels, strict=True)),
        lambda levels, site, level: _saved(places[site], level, measure) - _saved(places[site], levels[site], measure),
        floor,
    )
    return levels if is_met else None


def _deepest(place: _Place, error: float) -> int:
    """Return the cheapest level within an error, 0 where there is none."""
    return max((number for number, level in enumerate(place.levels, 1) if level.error <= error), default=0)


def _reasons(record: Rewrites) -> str:
    reasons = list(dict.fromkeys(each.reason for each in record.declined))[:3]
    return f"no operator can be split ({'; '.join(reasons)})" if reasons else "the model has no linear operator"


def _parts(layers: Sequence[Linear]) -> Iterator[list[Linear]]:
    """Split the operators so that the moments of each part stay within bounds where they can."""
    part: list[Linear] = []
    held = 0
    for layer in layers:
        size = gram_bytes(layer)
        if part and held + size > _GRAM_BYTES:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part
