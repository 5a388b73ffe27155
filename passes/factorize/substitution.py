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

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence, NotMeasurableError
from onnxpress.ir.analysis.execute import BatchRunner, Session, batch_size_within
from onnxpress.ir.analysis.moments import Moments, collect, gram_bytes, parts_within
from onnxpress.ir.data import bind
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.passes.allocation import Levels
from onnxpress.passes.base import Amount, Context, Declined, Rewrites, Site
from onnxpress.passes.factorize.candidates import Candidate, candidates, price_of
from onnxpress.passes.factorize.choice import Place, choose, rising
from onnxpress.passes.factorize.eligibility import why_no_form
from onnxpress.passes.factorize.emit import replace
from onnxpress.passes.factorize.fit import Objective, fit
from onnxpress.passes.factorize.forms import Factors, Form, kernel_of
from onnxpress.passes.factorize.merge import merge_chains
from onnxpress.passes.factorize.options import Budget, SubstitutionOptions
from onnxpress.passes.instrument import Progress
from onnxpress.passes.layer_moments import LayerMoments, layer_moments
from onnxpress.passes.least_squares import DEFAULT_RIDGE
from onnxpress.passes.repair import layers_behind, refit_step, write_parameters
from onnxpress.passes.samples import Split, split_samples
from onnxpress.passes.selectors import Selection

__all__ = ["objective_of", "substitute"]

_Array: TypeAlias = npt.NDArray[Any]

_GRAM_BYTES = 512 << 20  # moments held at once
_LIMIT_BYTES = 24 << 20  # of inner values at a time
_MEASURED = 3  # forms of an operator whose effect on the outputs is measured; between them the error curve tells
_ERROR_SAMPLES = 64  # that the record's errors are measured on
_TRIES = 8  # to meet a budget with what chains cost among their neighbours
_ROUNDING_OF_COSTS = 1e-9
_TINY = 1e-12  # what is no error
_LARGE = 1e6  # what is an error without bounds
_ROUNDING = 1e-3  # of moments, whose products are float32, over the width of a column


def substitute(
    model: onnx_ir.Model,
    forms: Sequence[Form],
    budget: tuple[Budget, float],
    options: SubstitutionOptions,
    context: Context,
    pass_name: str,
    *,
    merge: bool = False,
) -> Rewrites:
    """Give operators of `model` forms of `forms`, in place, so that the budget is met.

    merge: multiply out chains that do not pay first.

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
        with one_blas_thread():  # the systems are small, and threads that wait for each other cost more than they win
            return _Run(model, forms, options, context, pass_name).run(*budget, merge=merge)
    except NotMeasurableError as error:
        raise UsageError(f"{pass_name}: {error}. allocation=modelled does without") from error


def objective_of(linear: Linear, moments: Moments | None, original: _Array) -> Objective:
    """Return the error that forms of `linear` are fitted to; without moments that of its weights alone.

    moments: with targets, centred where the operator can take a bias. original: the weight that a ridge holds it near.
    """
    rows = original.reshape(len(original), -1).astype(np.float64)
    if moments is None:
        return Objective(np.eye(rows.shape[1]), rows, float(np.square(rows).sum()))
    assert moments.cross is not None and moments.target_mean is not None and moments.target_energy is not None
    gram, cross, energy = moments.gram[0].copy(), moments.cross[0], float(moments.target_energy.sum())
    if _takes_bias(linear):
        gram, cross = moments.covariance()[0], moments.cross_covariance()[0]
        energy -= float(np.square(moments.target_mean).sum())
    # What is left of a constant input once it is centred is rounding, which must not pass for data.
    energy_in = max(float(np.trace(gram)), _ROUNDING * float(np.trace(moments.gram[0])), _TINY)
    ridge = DEFAULT_RIDGE * energy_in / len(gram)
    gram[np.diag_indices_from(gram)] += ridge
    squares = float(np.square(rows).sum())
    return Objective(gram, cross + ridge * rows, max(energy, 0.0) + ridge * squares)


def _takes_bias(linear: Linear) -> bool:
    return linear.node.op_type != "MatMul"


class _Run:
    """One run. original: the model as it was once chains were multiplied out, which all fits aim at."""

    original: onnx_ir.Model
    weights: dict[str, _Array]

    def __init__(
        self,
        model: onnx_ir.Model,
        forms: Sequence[Form],
        options: SubstitutionOptions,
        context: Context,
        pass_name: str,
    ) -> None:
        self.model, self.forms, self.options, self.context, self.name = model, forms, options, context, pass_name
        self.selection = Selection.from_options(options, model, pass_name)
        self.costs = context.constraints.costs
        self.progress = context.progress or Progress()
        self.data = context.data
        self.split: Split | None = None
        self.divergence: Divergence | None = None

    def run(self, budget: Budget, number: float, *, merge: bool) -> Rewrites:
        """Choose, fit and emit."""
        record = Rewrites()
        if (budget in ("macs", "params", "latency") and number >= 1) or (budget == "ratio" and number == 0):
            met = self._eligible(record)
            record.declined += [Declined(op.node.name or "", op.node.op_type, "the budget is met") for op in met]
            return record
        if budget in ("macs", "params", "latency") and not any(map(as_linear, self.model.graph.all_nodes())):
            raise BudgetError(f"{self.name}: {budget}={number:g} cannot be reached: the model has no linear operator")
        whole = self._measured(budget)
        if merge:
            record.sites += merge_chains(self.model, self.selection)
        self.original = self.model.clone()
        self.weights = {op.node.name or "": op.weight() for op in linear_ops(self.original, subgraphs=False)}
        layers = self._eligible(record)
        floor = whole * (number + _ROUNDING_OF_COSTS)
        if budget in ("macs", "params", "latency"):
            if record.sites and self._measured(budget) <= floor:
                return record
            if not layers:
                raise BudgetError(f"{self.name}: {budget}={number:g} cannot be reached: {_reasons(record)}")
        if layers and self.data is not None:
            self._take_data(budget)
        elif layers:
            warnings.warn(
                f"{self.name}: no data was given, so that forms are fitted to the weights alone, which costs most of "
                "the accuracy. Give a few hundred samples: --data",
                RuntimeWarning,
                stacklevel=2,
            )
        places = _comparable(list(self._places(layers, budget)), budget)
        if budget == "ratio":
            whole = float(sum(place.dense.work for place in places))
        levels = self._choose(places, budget, number, whole)
        chosen = _chosen(places, levels)
        self._fit(chosen)
        self._record(record, places, levels, self._output_errors(chosen), budget)
        return record

    def _take_data(self, budget: Budget) -> None:
        """Divide the samples, and keep what the original gives on those that measure."""
        assert self.data is not None
        measures = self.options.allocation == "measured" and budget != "energy"
        held_out = self.options.error_samples if measures else 0
        self.split = split_samples(self.data, self.model, self.name, samples=self.options.samples, held_out=held_out)
        if measures:
            self.divergence = Divergence(self.original, self.data, samples=self.split.held_out, skip=self.split.fitted)

    def _measured(self, budget: Budget, model: onnx_ir.Model | None = None) -> float:
        """Return what the model costs in the budget's measure; 0 where the budget is of operators alone."""
        model = model or self.model
        if budget in ("energy", "ratio"):
            return 0.0
        if budget == "latency":
            assert self.costs is not None
            return sum(self.costs.node_seconds(node) for node in model.graph.all_nodes())
        whole = cost(model)
        total = whole.macs if budget == "macs" else whole.params
        if not total:
            raise UsageError(
                f"{self.name}: no layer of the model has {budget} to count, as their shapes are unknown. "
                "Give params, or fix the shapes of the model's inputs"
            )
        return float(total)

    def _choose(self, places: Sequence[Place], budget: Budget, number: float, whole: float) -> Levels:
        """Return the level of each place, such that the model with all of them meets the budget.

        What a chain costs among its new neighbours is only known then, so that less is asked for until it fits.
        """
        present = whole if budget in ("energy", "ratio") else self._measured(budget)
        wanted = whole * (number + _ROUNDING_OF_COSTS)
        limit = wanted
        for _ in range(_TRIES):
            share = number if budget in ("energy", "ratio") else limit / present
            levels = choose(
                places, budget, share, present, max_sites=self.options.max_sites,
                asked=f"{budget}={number:g}", whole=whole, subject=self.name,
            )  # fmt: skip
            if budget in ("energy", "ratio"):
                return levels
            left = self._measured(budget, self._emitted(_chosen(places, levels)))
            if left <= wanted:
                return levels
            limit -= left - wanted
        raise BudgetError(
            f"{self.name}: {budget}={number:g} was not reached: {left / whole:.4g} remain, as forms come in steps. "
            "Ask for more"
        )

    def _emitted(self, chosen: Mapping[str, Candidate]) -> onnx_ir.Model:
        """Return a copy of the model with the chains in it."""
        trial = self.model.clone()
        for op in list(linear_ops(trial, subgraphs=False)):
            candidate = chosen.get(op.node.name or "")
            if candidate is not None:
                gets_bias = self.data is not None and _takes_bias(op)
                bias = np.zeros(op.out_channels) if gets_bias else op.bias()
                replace(trial, op, candidate.form.chains(candidate.factors), bias)
        return trial

    # What may change.

    def _eligible(self, record: Rewrites) -> list[Linear]:
        found = []
        for node in self.model.graph.all_nodes():
            op = as_linear(node)
            if op is None:
                continue
            reason = self.selection.reason(node) or (op if isinstance(op, str) else why_no_form(op))
            if reason is None and node.graph is not self.model.graph:
                reason = "it lies in the body of a control flow node"
            if reason is None and isinstance(op, Linear):
                found.append(op)
            else:
                record.declined.append(Declined(node.name or "", node.op_type, str(reason)))
        return found

    def _places(self, layers: Sequence[Linear], budget: Budget) -> Iterator[Place]:
        """Yield the operators with what they can become. Moments are held for a part of them at a time."""
        with self.progress.task("fitting forms", len(layers)) as task:
            for part in parts_within(layers, gram_bytes, _GRAM_BYTES):
                moments: dict[str, Moments] = {}
                if self.data is not None and self.split is not None:
                    moments = collect(self.model, part, self.data, samples=self.split.fitted, seed=self.context.seed)
                for op in part:
                    yield self._place(op, moments.get(op.node.name or ""), budget)
                    task.advance()

    def _place(self, op: Linear, moments: Moments | None, budget: Budget) -> Place:
        known = None if moments is None else moments.with_target(op.weight(), op.bias())
        objective = objective_of(op, known, op.weight())
        gets_bias = known is not None and _takes_bias(op)
        found = candidates(
            op, self.forms, self._step(op), objective, self.costs,
            strict=self.options.multiple is not None, gets_bias=gets_bias,
        )  # fmt: skip
        levels = rising(found, budget)
        losses = (0.0, *self._losses(op, levels, known))
        return Place(op.node.name or "", price_of(op, self.costs), levels, losses)

    def _step(self, op: Linear) -> int:
        return self.options.multiple or max(
            1, min(self.context.constraints.channel_multiple, op.in_channels, op.out_channels)
        )

    def _losses(self, op: Linear, levels: Sequence[Candidate], moments: Moments | None) -> list[float]:
        """Return what each level adds to the outputs' divergence: a few measured, the others by their error.

        Without a measurement: the error itself, in units of all that the operator gives.
        """
        errors = [max(level.error, _TINY) for level in levels]
        if self.divergence is None or moments is None or not levels:
            return errors  # which rise from level to level
        at = np.unique(np.linspace(0, len(levels) - 1, min(len(levels), _MEASURED)).round().astype(int))
        measured = [min(max(self._measure(op, levels[place], moments), _TINY), _LARGE) for place in at]
        wanted = np.log(errors)
        found = np.interp(wanted, wanted[at], np.log(np.maximum.accumulate(measured)))
        return [float(loss) for loss in np.exp(found)]

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

    # The fit.

    def _fit(self, chosen: Mapping[str, Candidate]) -> None:
        """Fit all that was chosen, in place, and put the chains in."""
        factors = {name: candidate.factors for name, candidate in chosen.items()}
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
                        factors[name] = self._fit_step(step, chosen[name], factors[name])
                    else:
                        refit_step(step, adds_bias=False)
        for op in list(linear_ops(self.model, subgraphs=False)):
            name = op.node.name or ""
            if name in chosen:
                replace(self.model, op, chosen[name].form.chains(factors[name]), op.bias())

    def _output_errors(self, chosen: Mapping[str, Candidate]) -> dict[str, float]:
        """Return the squared error of each chosen operator's output, relative to its variance, on some samples."""
        if self.data is None or not chosen:
            return {}
        ops = {op.node.name or "": op for op in linear_ops(self.original, subgraphs=False)}
        values = {name: ops[name].output.name or "" for name in chosen}
        errors, squares = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, 0.0)
        sums: dict[str, _Array] = {}
        counts = dict.fromkeys(chosen, 0)
        names = list(values.values())
        models = (self.model, self.original)
        size = min(batch_size_within(model, names, _LIMIT_BYTES) for model in models)
        runners = [BatchRunner(model, Session(model, outputs=names, optimize=True)) for model in models]
        for batch in bind(self.data, self.original).batches(size, limit=_ERROR_SAMPLES):
            present, before = (runner.run(batch) for runner in runners)
            for name, value in values.items():
                axis = ops[name].output_axis % before[value].ndim
                others = tuple(each for each in range(before[value].ndim) if each != axis)
                a = before[value].astype(np.float64)
                errors[name] += float(np.square(present[value] - a).sum())
                squares[name] += float(np.square(a).sum())
                total = a.sum(axis=others)
                sums[name] = sums.get(name, np.zeros_like(total)) + total
                counts[name] += a.size // len(total)
        return {
            name: errors[name] / max(squares[name] - float(np.square(sums[name]).sum()) / counts[name], _TINY)
            for name in chosen
        }

    def _steps(self, chosen: Mapping[str, Candidate], *, rectified: bool) -> Iterator[LayerMoments]:
        assert self.data is not None
        behind = layers_behind(self.model, chosen, self.selection) if self.options.repair else []
        refitted = {op.node for op in behind}
        layers = [op for op in linear_ops(self.model, subgraphs=False) if op.node in refitted or op.node.name in chosen]
        return layer_moments(
            self.model, self.original, self.data, layers,
            residual=self.options.repair, rectified=rectified, samples=self.options.samples, seed=self.context.seed,
            progress=self.progress, label="fitting operators",
        )  # fmt: skip

    def _fit_step(self, step: LayerMoments, candidate: Candidate, start: Factors) -> Factors:
        """Fit one operator's factors to what it gets and should give by now, and write them as a dense weight."""
        layer, form = step.layer, candidate.form
        original = self.weights[layer.node.name or ""]
        objective = objective_of(layer, step.moments, original)
        found = fit(form, kernel_of(layer), candidate.ranks, objective, start=start)
        weight = form.weight(found).reshape(original.shape).astype(original.dtype)
        write_parameters(layer, weight, _bias_for(layer, weight, step.moments))
        return found

    # The record.

    def _record(
        self,
        record: Rewrites,
        places: Sequence[Place],
        levels: Levels,
        errors: Mapping[str, float],
        budget: Budget,
    ) -> None:
        kinds = {node.name or "": node.op_type for node in self.original.graph}
        for place, level in zip(places, levels, strict=True):
            kind = kinds[place.name]
            if not level:
                record.declined.append(Declined(place.name, kind, self._why_kept(place, budget)))
                continue
            taken = place.levels[level - 1]
            before, after = place.dense, taken.price
            error = {"output_error": errors[place.name]} if place.name in errors else {}
            error["predicted_error"] = taken.error
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
                    Amount(before.params, before.macs or 0, before.params * width),
                    Amount(after.params, after.macs or 0, after.params * width),
                    error,
                    detail,
                )
            )

    def _why_kept(self, place: Place, budget: Budget) -> str:
        if budget in ("macs", "ratio") and place.dense.macs is None:
            return "its MACs are unknown, as its shapes are: energy and params need none"
        if not place.levels:
            where = self.context.constraints.target
            faster = "" if self.costs is None else f" and is faster on {where}"
            return f"no form of it has fewer MACs{faster}"
        if budget == "energy":
            return f"the closest cheaper form, {place.levels[0]}, loses {place.levels[0].error:.2g} of its output"
        return "kept: the budget is met at less loss elsewhere"


def _bias_for(op: Linear, weight: _Array, moments: Moments) -> _Array | None:
    """Return the bias of least error beside `weight`; None where the operator can take none."""
    if not _takes_bias(op):
        return None
    assert moments.target_mean is not None
    moved = weight.reshape(len(weight), -1).astype(np.float64) @ moments.mean[0]
    result: _Array = (moments.target_mean - moved).astype(op.weight().dtype)
    return result


def _comparable(places: Sequence[Place], budget: Budget) -> list[Place]:
    """Return the places, with nothing to become where their MACs are asked for and nobody knows them."""
    if budget == "macs" or (budget == "ratio" and any(place.dense.macs is not None for place in places)):
        return [place if place.dense.macs is not None else place.untouched() for place in places]
    return list(places)


def _chosen(places: Sequence[Place], levels: Levels) -> dict[str, Candidate]:
    return {place.name: place.levels[level - 1] for place, level in zip(places, levels, strict=True) if level}


def _reasons(record: Rewrites) -> str:
    reasons = list(dict.fromkeys(each.reason for each in record.declined))[:3]
    return f"no operator can be split ({'; '.join(reasons)})"
