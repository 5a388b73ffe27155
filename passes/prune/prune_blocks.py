"""Remove whole residual blocks, and layers of equal input and output, that the outputs miss least.

    Y = X + F(X)   =>   Y = X        `residual_blocks` says when that is legal

1. measure   for each block, how far the outputs of the model without it are from the original's (`divergence`)
2. remove    the block of least divergence for what it saves: blocks (`ratio`), MACs, parameters or predicted time
3. again     the most promising of the rest are measured anew without it, until the budget is met
4. repair    the next layers behind each removed block are refitted to the original's values (`passes.repair`), if
             that lowers the divergence; on samples that measured nothing, where there are enough

Cost: about 64 measurements, of `error_samples` samples each, and one more for each block removed. Of more than 48
candidates, those are measured first that change their input least, by E||F(X)||^2 / E||X||^2, akin to block influence.

Legal when: see `residual_blocks`. Fidelity: lossy; each site records the divergence measured without it and all sites
before it, and the last one also what the repair left. Scopes: the main graph. After fold-batchnorm, so that the repair
sees a branch end in its Add. Ties are broken by graph order, and no number is drawn: equal runs give equal models.

Budgets count from the model as it comes in, so a second run with the same `ratio`, `macs`, `params` or `latency`
removes more. `max_error=0` removes nothing but what changes nothing on the samples; when that is gone, nothing.

Sources: Veit et al. 2016, section 4.1, https://arxiv.org/abs/1605.06431 (residual networks survive the loss of
blocks); Men et al. 2024, section 3, https://arxiv.org/abs/2403.03853 (ShortGPT: block influence, one-shot removal).
We measure the outputs themselves, and anew after each removal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Self

import numpy as np
import onnx_ir
import pydantic

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.ir.analysis.execute import stream
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.data import DataSource
from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.linear import Linear, linear_ops
from onnxpress.ir.shapes import static_shape
from onnxpress.passes.base import Amount, Context, Declined, Fidelity, Options, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.budget import BudgetOptions
from onnxpress.passes.cleanup.graph_edits import drop_unused_constant, quote_names
from onnxpress.passes.instrument import Progress, Task
from onnxpress.passes.prune.residual_blocks import Block, find_blocks, remove_block
from onnxpress.passes.repair import repair_sequentially
from onnxpress.passes.samples import split_samples
from onnxpress.passes.selectors import Selection

__all__ = ["PruneBlocks", "PruneBlocksOptions"]

_DEFAULT_RATIO = 0.25
# resnet56 without 3 of 25 blocks, chosen by 32 (two sets of them), 64 and 85 images: top-1 falls by 0.6 and 4.7, 0.5
# and 1.2 points (standard error of a difference: about 0.6); without 6, by 4.0 and 3.5, 2.4 and 5.0. In the 4.7, 32
# images could not tell that the repair helps. The few images that are near a boundary decide.
_ERROR_SAMPLES = 64
_CANDIDATES = 48  # measured at first
_MEASUREMENTS = 64  # in all, and one more for each block removed; resnet56 has 25 candidates
_SCREENING_SAMPLES = 8  # that choose the candidates, where there are more
_POSITIONS = 64  # of each sample that a repaired layer is fitted to
# Layers refitted behind each removed block. Divergence on other images with 3 / 6 / 12 / all of them: mobilenetv2
# without 3 blocks, 68 images, 0.336 / 0.350 / 0.350 / 0.481; without 1, - / 0.077 / - / 0.131, unrepaired 0.135;
# resnet56 without 6, 224 images, 0.295 / 0.270 / 0.271 / 0.271. Far behind, least squares fits noise.
_REACH = 6
_SUBJECTS = {"ratio": "blocks", "macs": "MACs", "params": "parameters", "latency": "predicted time"}


class PruneBlocksOptions(BudgetOptions):
    """Options of `prune-blocks`. `include` and `exclude` select a block by the name of any of its nodes."""

    budgets: ClassVar[tuple[str, ...]] = ("ratio", *BudgetOptions.budgets)

    ratio: float | None = pydantic.Field(
        default=None, ge=0, lt=1, description="share of the removable blocks to remove; 0.25 where no budget is given"
    )
    max_sites: int | None = pydantic.Field(default=None, ge=0, description="most blocks to remove")
    max_error: float | None = pydantic.Field(
        default=None, ge=0, description="largest divergence of the outputs, before repair, that a removal may lead to"
    )
    error_samples: int = pydantic.Field(
        default=_ERROR_SAMPLES, ge=2, description="samples that measure each candidate: at most a third of all"
    )
    repair: bool = pydantic.Field(default=True, description="refit the layers behind the removed blocks")

    @property
    def budget(self) -> tuple[str, float]:
        """Name and value of the budget."""
        return self.given_budget() or ("ratio", _DEFAULT_RATIO)


class PruneBlocks(Pass):
    """Remove the residual blocks and equal-width layers that the outputs miss least, and repair what follows."""

    name: ClassVar[str] = "prune-blocks"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = PruneBlocksOptions
    after: ClassVar[tuple[str, ...]] = ("cleanup", "fold-batchnorm")
    options: PruneBlocksOptions

    @property
    def needs_data(self) -> bool:
        """Always: what a block is worth is measured."""
        return True

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Remove blocks of `model` in place.

        Raises:
            UsageError: no calibration data, a selector that matches nothing, latency without a cost model.
            BudgetError: the budget cannot be met without all the blocks there are.
        """
        data = context.require_data(self.name)
        rewrites = Rewrites()
        blocks = self._candidates(model, rewrites)
        budget = _Budget.of(self.options, model, blocks, context)
        if budget.is_met(model):
            rewrites.declined.extend(_declined(block, f"{budget} is met with it") for block in blocks)
            return rewrites
        _require_possible(model, blocks, budget)
        original = model.clone()
        split = split_samples(data, model, self.name, samples=self.options.samples, held_out=self.options.error_samples)
        divergence = Divergence(original, data, samples=split.held_out, skip=split.fitted)
        ranked = _by_influence(model, blocks, data) if len(blocks) > _CANDIDATES else blocks
        search = _Search(original, blocks, ranked, budget, self.options, divergence)
        with (context.progress or Progress()).task("measuring blocks") as task:
            search.run(task)
        rewrites.sites = _remove(model, search.removed)
        rewrites.declined.extend(_declined(block, search.reason(block.name)) for block in search.kept)
        if rewrites.sites and self.options.repair:
            left = _repair(model, original, data, split.fitted, divergence, context)
            last = rewrites.sites[-1]
            if left is not None:
                rewrites.sites[-1] = dataclasses.replace(last, error={**last.error, "divergence_repaired": left})
        return rewrites

    def _candidates(self, model: onnx_ir.Model, rewrites: Rewrites) -> list[Block]:
        """Return the blocks that may go, in graph order, and record why others may not."""
        found = find_blocks(model.graph)
        rewrites.declined.extend(found.declined)
        chosen = _Selected(self.options, model)
        blocks = []
        for block in found.blocks:
            reason = chosen.reason(block)
            if reason is None:
                blocks.append(block)
            else:
                rewrites.declined.append(_declined(block, reason))
        if not found.blocks:
            reason = "it has no residual block that could go, and no layer of equal input and output"
            rewrites.declined.append(Declined("model", "model", reason))
        elif not any(_is_float(value) for value in model.graph.outputs):
            reason = "none of its outputs is of floats, by which a removal could be measured"
            rewrites.declined.append(Declined("model", "model", reason))
            return []
        return blocks


def _declined(block: Block, reason: str) -> Declined:
    return Declined(block.name, block.kind, reason)


def _is_float(value: onnx_ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


class _Selected:
    """Which blocks the selectors leave: one excluded node keeps its block, one included node will do."""

    def __init__(self, options: SiteOptions, model: onnx_ir.Model) -> None:
        self._included = Selection.from_options(SiteOptions(include=options.include), model, PruneBlocks.name)
        self._excluded = Selection.from_options(SiteOptions(exclude=options.exclude), model, PruneBlocks.name)

    def reason(self, block: Block) -> str | None:
        """Say why `block` is left out; None where it is not."""
        for node in block.nodes:
            reason = self._excluded.reason(node)
            if reason is not None:
                return f"node {node.name!r} is {reason}"
        reasons = [self._included.reason(node) for node in block.nodes]
        return None if None in reasons else reasons[0]


# Budgets.


@dataclasses.dataclass(frozen=True)
class _Budget:
    """How much of a model may remain. weigh: in the unit of `limit`. subject: what it counts, for people."""

    text: str
    subject: str
    limit: float
    weigh: Callable[[onnx_ir.Model], float]

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, options: PruneBlocksOptions, model: onnx_ir.Model, blocks: Sequence[Block], context: Context) -> Self:
        """Raises UsageError where nothing predicts time."""
        name, share = options.budget
        text = f"{name}={share:g}"
        if name == "ratio":
            names = {block.name for block in blocks}
            gone = math.floor(share * len(blocks) + 0.5)
            return cls(
                f"{text} ({gone} of {len(blocks)} blocks)", _SUBJECTS[name], len(blocks) - gone,
                lambda each: sum(node.name in names for node in each.graph),
            )  # fmt: skip
        weigh = _weigher(name, context)
        return cls(text, _SUBJECTS[name], share * weigh(model), weigh)

    def is_met(self, model: onnx_ir.Model) -> bool:
        """Whether `model` is small enough."""
        return self.weigh(model) <= self.limit


def _weigher(name: str, context: Context) -> Callable[[onnx_ir.Model], float]:
    if name == "macs":
        return lambda model: cost(model).macs
    if name == "params":
        return lambda model: cost(model).params
    costs = context.constraints.costs
    if costs is None:
        raise UsageError(
            f"{PruneBlocks.name}: latency needs a target that predicts time, and {context.constraints.target!r} does "
            "not. Name one, such as --target host-cpu, or give macs instead"
        )
    return lambda model: sum(costs.node_seconds(node) for node in model.graph.all_nodes())


def _require_possible(model: onnx_ir.Model, blocks: Sequence[Block], budget: _Budget) -> None:
    """Raise a BudgetError where removing all `blocks` would not meet the budget."""
    bare = model.clone()
    names = {block.name for block in blocks}
    # From the end: the blocks before stay what they are, and those inside a removed one are gone.
    for block in reversed([block for block in find_blocks(bare.graph).blocks if block.name in names]):
        if all(node.graph is not None for node in block.nodes):
            remove_block(block)
    least, whole = budget.weigh(bare), budget.weigh(model)
    if least > budget.limit:
        least_share = math.ceil(1000 * least / whole) / 1000
        raise BudgetError(
            f"{PruneBlocks.name}: {budget} cannot be met: without all {len(blocks)} blocks that may go, "
            f"{least_share:g} of the {budget.subject} remains. Ask for {least_share:g} or more, or use another pass too"
        )


# Selection.


@dataclasses.dataclass(frozen=True)
class _Trial:
    """What one more removal does to the present model. saving: in the budget's unit. place: of the block."""

    name: str
    divergence: float
    saving: float
    place: int

    @property
    def score(self) -> tuple[float, int]:
        """Divergence for what is saved, the least first; then graph order."""
        return (self.divergence / self.saving if self.saving > 0 else math.inf), self.place


class _Search:
    """Removes block after block from a copy of the model.

    removed: the trials that were taken, in their order. kept: the other blocks.
    """

    def __init__(
        self,
        model: onnx_ir.Model,
        blocks: Sequence[Block],
        ranked: Sequence[Block],
        budget: _Budget,
        options: PruneBlocksOptions,
        divergence: Divergence,
    ) -> None:
        """blocks: in graph order. ranked: the same, those first that are to be measured first."""
        self.removed: list[_Trial] = []
        self._blocks = blocks
        self._places = {block.name: place for place, block in enumerate(blocks)}
        self._ranks = {block.name: rank for rank, block in enumerate(ranked)}
        self._model = model
        self._budget = budget
        self._most = math.inf if options.max_sites is None else options.max_sites
        self._max_error = math.inf if options.max_error is None else options.max_error
        self._divergence = divergence
        self._last: dict[str, _Trial] = {}
        self._left = _MEASUREMENTS

    @property
    def kept(self) -> list[Block]:
        names = {trial.name for trial in self.removed}
        return [block for block in self._blocks if block.name not in names]

    def run(self, task: Task) -> None:
        """Remove until the budget is met, or nothing may go."""
        while len(self.removed) < self._most and not self._budget.is_met(self._model):
            best = self._best(task)
            if best is None:
                return
            trial, self._model = best
            self.removed.append(trial)

    def reason(self, name: str) -> str:
        """Say why the block `name` was kept."""
        if all(node.name != name for node in self._model.graph):
            return f"gone with {quote_names([trial.name for trial in self.removed])}, which held it"
        trial = self._last.get(name)
        if trial is None and self._last:
            return f"not measured: {len(self._last)} others of {len(self._blocks)} candidates change their input less"
        if trial is None:
            return f"max_sites={self._most} is reached"
        if not trial.saving > 0:
            return f"without it no {self._budget.subject} would be saved"
        without = f"without it the outputs diverge by {trial.divergence:.3g}"
        if not trial.divergence <= self._max_error:
            return f"{without}, more than max_error={self._max_error:g}"
        if not math.isfinite(trial.divergence):
            return without
        if self._budget.is_met(self._model):
            return f"{without}, and {self._budget} is met"
        if len(self.removed) >= self._most:
            return f"{without}, and max_sites={self._most} is reached"
        return f"no block any more without {quote_names([trial.name for trial in self.removed])}"

    def _best(self, task: Task) -> tuple[_Trial, onnx_ir.Model] | None:
        """Return the best trial and what it leaves. Nearly all blocks are measured at first, then the promising."""
        names = [block.name for block in find_blocks(self._model.graph).blocks if block.name in self._places]
        names.sort(key=self._expected)
        count = max(1, self._left // self._removals_left()) if self._last else _CANDIDATES
        best: tuple[_Trial, onnx_ir.Model] | None = None
        for index, name in enumerate(names):
            if index >= count and best is not None:
                break
            trial, model = self._try(name)
            task.advance()
            if self._is_allowed(trial) and (best is None or trial.score < best[0].score):
                best = trial, model
        return best

    def _expected(self, name: str) -> tuple[int, tuple[float, int]]:
        """Order blocks by what was measured last, the best first: then come those not measured, then those too bad."""
        last = self._last.get(name)
        if last is None:
            return 1, (0.0, self._ranks[name])
        return (0 if self._is_allowed(last) else 2), last.score

    def _try(self, name: str) -> tuple[_Trial, onnx_ir.Model]:
        model = self._model.clone()
        _remove_named(model, name)
        saving = self._budget.weigh(self._model) - self._budget.weigh(model)
        trial = _Trial(name, self._divergence.of(model), saving, self._places[name])
        self._last[name] = trial
        self._left -= 1
        return trial, model

    def _is_allowed(self, trial: _Trial) -> bool:
        return trial.saving > 0 and trial.divergence <= self._max_error and math.isfinite(trial.divergence)

    def _removals_left(self) -> int:
        """Return about how many blocks must still go: what is over the budget, in savings of the mean block."""
        mean = float(np.mean([trial.saving for trial in self._last.values()]))
        over = self._budget.weigh(self._model) - self._budget.limit
        expected = math.ceil(over / mean) if mean > 0 else len(self._places)
        return max(1, min(expected, len(self._places)))


def _by_influence(model: onnx_ir.Model, blocks: Sequence[Block], data: DataSource) -> list[Block]:
    """Return the blocks, those first whose output is nearest to their input: E||Y - X||^2 / E||X||^2."""
    values = dict.fromkeys(name or "" for block in blocks for name in (block.source.name, block.output.name))
    errors, weights = np.zeros(len(blocks)), np.zeros(len(blocks))
    for arrays in stream(model, data, list(values), samples=_SCREENING_SAMPLES):
        for index, block in enumerate(blocks):
            source, output = (arrays[value.name or ""].astype(np.float64) for value in (block.source, block.output))
            errors[index] += np.square(output - source).sum()
            weights[index] += np.square(source).sum()
    influence = np.nan_to_num(errors / np.maximum(weights, np.finfo(np.float64).tiny), nan=math.inf)
    return [blocks[index] for index in np.argsort(influence, kind="stable")]


# Removal and repair.


def _repair(
    model: onnx_ir.Model,
    original: onnx_ir.Model,
    data: DataSource,
    samples: int,
    divergence: Divergence,
    context: Context,
) -> float | None:
    """Refit what lies behind the removed blocks; return the divergence then, None where that was not lowered."""
    layers = _layers_behind(model, original, samples)
    if not layers:
        return None
    before, held = divergence.of(model), _Parameters(model.graph)
    repair_sequentially(
        model, original, data, layers,
        samples=samples, positions=_POSITIONS, seed=context.seed, progress=context.progress,
    )  # fmt: skip
    after = divergence.of(model)
    if after < before:
        return after
    held.restore()
    return None


def _remove(model: onnx_ir.Model, trials: Iterable[_Trial]) -> list[Site]:
    """Remove the blocks of `trials` from `model`, in their order."""
    costs = {node.name: node for node in cost(model).nodes}
    sites = []
    for trial in trials:
        block = _remove_named(model, trial.name)
        nodes = [costs[node.name or ""] for node in block.nodes]
        before = Amount(
            params=sum(node.params for node in nodes),
            macs=sum(node.macs for node in nodes),
            size_bytes=sum(node.weight_bytes for node in nodes),
        )
        detail = f"without {quote_names([node.name for node in nodes], limit=len(nodes))}"
        sites.append(Site(block.name, block.kind, before, Amount(), {"divergence": trial.divergence}, detail))
    return sites


def _remove_named(model: onnx_ir.Model, name: str) -> Block:
    """Remove the block `name` of `model`; return what it was."""
    block = next(block for block in find_blocks(model.graph).blocks if block.name == name)
    remove_block(block)
    return block


def _layers_behind(model: onnx_ir.Model, original: onnx_ir.Model, samples: int) -> list[Linear]:
    """Return the layers of `model` to refit: the first few behind each removed block that read what it changed."""
    layers = {layer.node.name: layer for layer in linear_ops(model, subgraphs=False) if _is_fit(layer, samples)}
    left = {node.name for node in model.graph}
    touched: set[onnx_ir.Value] = set()
    chosen: list[Linear] = []
    reach = 0
    for node in original.graph:
        is_gone = node.name not in left
        reach = _REACH if is_gone else reach
        if not is_gone and not any(value in touched for value in node.inputs):
            continue
        touched.update(node.outputs)
        if node.name in layers and reach > 0:
            chosen.append(layers[node.name])
            reach -= 1
    return chosen


def _is_fit(layer: Linear, samples: int) -> bool:
    """Whether `layer` can be refitted: float numbers, and more equations than unknowns as far as sizes are known."""
    if why_no_patches(layer) is not None or is_encoded(layer.weight_value):
        return False
    width = layer.in_channels // layer.groups * math.prod(layer.kernel)
    shape = static_shape(layer.output)
    positions = _POSITIONS if shape is None else min(_POSITIONS, math.prod(shape[1:]) // layer.out_channels)
    return samples * positions > width


class _Parameters:
    """What the nodes of a graph read, and the numbers of its constants, to be put back."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self._graph = graph
        self._inputs = [(node, tuple(node.inputs)) for node in graph]
        self._held = {value: (value.const_value, value.shape) for value in graph.initializers.values()}

    def restore(self) -> None:
        """Put all of it back, and drop constants that came since."""
        for node, inputs in self._inputs:
            node.resize_inputs(len(inputs))
            for index, value in enumerate(inputs):
                if node.inputs[index] is not value:
                    node.replace_input_with(index, value)
        for value, (tensor, shape) in self._held.items():
            value.const_value, value.shape = tensor, shape
        for value in list(self._graph.initializers.values()):
            if value not in self._held:
                drop_unused_constant(value)
