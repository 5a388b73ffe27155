"""What it costs a model's outputs when one channel group gets narrower, measured, for every width worth having."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.channels import ChannelGroup
from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.linear import linear_ops
from onnxpress.passes.least_squares import DEFAULT_RIDGE
from onnxpress.passes.prune.channel_costs import ChannelCosts
from onnxpress.passes.prune.channel_paths import refitted_without, silenced
from onnxpress.passes.prune.elimination import Path
from onnxpress.passes.repair import write_parameters

__all__ = ["Option", "interpolate_losses", "measure_losses", "worthwhile_removals"]

_FASTER = 0.01  # of the time that a group's nodes take: what a narrower width must save to be worth having
_TINY = 1e-12  # what is no loss
_STILL = 1e-6  # of the logarithm of an error, by which it grows at least with each width
_MEASURED = 4  # widths of a group that are executed; between them its error curve tells


@dataclasses.dataclass(frozen=True)
class Option:
    """What can be done with a group.

    order: its slots, the first to go first. removals: how many may go, from 0 up. losses: what each of these adds.
    """

    group: ChannelGroup
    order: tuple[int, ...]
    removals: tuple[int, ...]
    losses: tuple[float, ...]

    def untouched(self) -> Option:
        """Return the option to do nothing."""
        return dataclasses.replace(self, removals=self.removals[:1], losses=self.losses[:1])


def worthwhile_removals(group: ChannelGroup, index: int, costs: ChannelCosts, multiple: int) -> tuple[int, ...]:
    """Return how many slots may go, ascending from 0: such that widths are multiples of `multiple`, and each is faster
    than the wider ones by the target's estimate; without an estimate, all multiples."""
    none = [0] * len(costs.groups)
    full = costs.seconds(none, index)
    best = full
    found = [0]
    for count in range(1, group.size):
        if not costs.keeps_multiple(index, count, multiple):
            continue
        seconds = costs.seconds([*none[:index], count, *none[index + 1 :]], index)
        if full is None or best is None or seconds is None or seconds < best - _FASTER * full:
            found.append(count)
            best = seconds
    return tuple(found)


def measure_losses(
    model: onnx_ir.Model,
    group: ChannelGroup,
    path: Path,
    removals: Sequence[int],
    moments: Mapping[str, Moments],
    divergence: Divergence,
    present: float,
    *,
    refit: bool = True,
) -> tuple[float, ...]:
    """Return the divergence that each of `removals` adds, everything else as it is.

    present: the divergence of `model` itself. refit: whether the readers are fitted to what is left. Some of the
    removals are executed, with zeros in place of the slots.
    """

    def measure(count: int) -> float:
        trial = model.clone()
        layers = {op.node.name: op for op in linear_ops(trial, subgraphs=False)}
        slots = path.order[:count]
        without = refitted_without(group, slots, moments, DEFAULT_RIDGE) if refit else silenced(group, slots)
        for name, (weight, bias) in without.items():
            write_parameters(layers[name], weight, bias)
        return divergence.of(trial) - present

    return interpolate_losses(removals, [path.error_of(count) for count in removals], measure)


def interpolate_losses(
    removals: Sequence[int], errors: Sequence[float], measure: Callable[[int], float]
) -> tuple[float, ...]:
    """Return a loss for each of `removals`, which never falls: a few measured, the others between them.

    errors: a curve of the same shape, known everywhere: the loss is taken to be a power of it between two measurements,
    and proportional to it before the first.
    """
    last = len(removals) - 1
    at = np.unique(np.linspace(0, last, min(last, _MEASURED) + 1).round().astype(int))[1:]
    if not len(at):
        return (0.0,)
    measured = np.log(np.maximum.accumulate([max(measure(removals[place]), _TINY) for place in at]))
    # Where the curve stands still, the count of slots tells the widths apart.
    wanted = np.log(np.maximum.accumulate(np.maximum(errors[1:], _TINY))) + _STILL * np.arange(last)
    between = np.interp(wanted, wanted[at - 1], measured)
    before = np.arange(last) < at[0] - 1
    between[before] = measured[0] + wanted[before] - wanted[at[0] - 1]
    found = np.maximum.accumulate([0.0, *np.exp(between)])
    return tuple(float(loss) for loss in found)
