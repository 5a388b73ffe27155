"""Orders in which the slots of a channel group may go, by the criteria of the literature.

| score | the slot that goes first has | source |
|---|---|---|
| l1, l2 | the smallest norm of the weights that make it | Li et al. 2017, https://arxiv.org/abs/1608.08710 |
| bn-scale | the smallest scale in the normalization behind it | Liu et al. 2017, https://arxiv.org/abs/1708.06519 |
| activation | the least energy, E[x^2] | Hu et al. 2016 use the mean; energy is what least squares sees |
| apoz | the largest share of zeros | Hu et al. 2016, https://arxiv.org/abs/1607.03250 |
| thinet | the least error of the readers' outputs, greedily, no refit | Luo 2017, https://arxiv.org/abs/1707.06342 |
| lasso | the first coefficient to vanish as the penalty grows | He et al. 2017, https://arxiv.org/abs/1707.06168 |
| geometric-median | the least distance to all others, its stand-ins | He 2019, https://arxiv.org/abs/1811.00250 |

The default, obs, is in `elimination`: the least error of the readers' outputs after a refit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.channels import ChannelGroup
from onnxpress.ir.analysis.moments import Moments
from onnxpress.ir.linear import Linear, constant_tensor
from onnxpress.passes.prune.channel_paths import consumers_of, reading_consumers, slot_columns
from onnxpress.passes.prune.elimination import Consumer, Path, eliminate, follow

__all__ = ["WEIGHT_SCORES", "Score", "order_by_weights", "path_by", "why_no_score"]

Score = Literal["obs", "l1", "l2", "bn-scale", "activation", "apoz", "thinet", "lasso", "geometric-median"]
WEIGHT_SCORES: tuple[Score, ...] = ("l1", "l2", "bn-scale", "geometric-median")  # that need no data
_Floats: TypeAlias = npt.NDArray[np.float64]

_LASSO_STEPS, _LASSO_SWEEPS = 60, 40  # penalties, each this factor above the last; sweeps of coordinate descent
_LASSO_FACTOR = 1.2


def why_no_score(group: ChannelGroup, score: Score) -> str | None:
    """Return why `score` says nothing of this group, or None."""
    if score in ("l1", "l2", "geometric-median") and not group.producers:
        return f"score={score} reads the weights that make the channels, and no operator with weights does"
    if score == "bn-scale" and not _scales(group):
        return "score=bn-scale finds no BatchNormalization on them; run it before fold-batchnorm"
    return None


def path_by(score: Score, group: ChannelGroup, moments: Mapping[str, Moments], zeros: Mapping[str, _Floats]) -> Path:
    """Return the path of removal by `score`, with the errors that its order costs after least squares.

    moments: of the readers' inputs, by node name. zeros: for score=apoz, the share of zeros of each channel of the
    readers' activations, by value name.
    """
    consumers = consumers_of(group, moments)
    if score == "obs":
        return eliminate(consumers)
    if score == "thinet":
        return follow(consumers, _greedy(_interaction(consumers)))
    if score == "lasso":
        return follow(consumers, _lasso(_interaction(consumers)))
    return follow(consumers, _ascending(_worth(score, group, moments, zeros)))


def order_by_weights(score: Score, group: ChannelGroup) -> tuple[int, ...]:
    """Return the slots of `group` by one of WEIGHT_SCORES, the first to go first."""
    return tuple(_ascending(_worth(score, group, {}, {})))


def _ascending(worth: _Floats) -> list[int]:
    order: list[int] = np.argsort(worth, kind="stable").tolist()
    return order


def _worth(score: Score, group: ChannelGroup, moments: Mapping[str, Moments], zeros: Mapping[str, _Floats]) -> _Floats:
    """Return what each slot is worth, [slots]."""
    parts: list[_Floats]
    if score == "bn-scale":
        parts = [np.abs(values).sum(axis=1) for values in _scales(group)]
    elif score == "activation":
        parts = [_energy(group, op, moments[op.node.name or ""]) for op in reading_consumers(group)]
    elif score == "apoz":
        parts = [_activity(group, op, zeros[op.data.name or ""]) for op in reading_consumers(group)]
    elif score == "geometric-median":
        parts = [_distances(_rows(group))]
    else:
        parts = [np.abs(_rows(group)).sum(axis=1) if score == "l1" else np.square(_rows(group)).sum(axis=1)]
    result: _Floats = np.sum(parts, axis=0)
    return result


def _distances(rows: _Floats) -> _Floats:
    """Return the sum of each row's distances to all others, [slots]."""
    squares = np.square(rows).sum(axis=1)
    between = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    result: _Floats = np.sqrt(np.maximum(between, 0)).sum(axis=1)
    return result


def _rows(group: ChannelGroup) -> _Floats:
    """Return the weights that make each slot, [slots, weights]."""
    parts = []
    for op in group.producers:
        channels = group.positions(op.output, op.output_axis)
        assert channels is not None, "a producer makes the group's channels"
        weight = op.weight().reshape(op.out_channels, -1).astype(np.float64)
        parts.append(weight[channels].reshape(len(channels), -1))
    return np.concatenate(parts, axis=1)


def _scales(group: ChannelGroup) -> list[_Floats]:
    """Return the scale of each BatchNormalization on the group, [slots, each]."""
    found = []
    for member in group.constants:
        uses = [(use.node, use.idx) for use in member.value.uses()]
        tensor = constant_tensor(member.value)
        if tensor is not None and any(node.op_type == "BatchNormalization" and index == 1 for node, index in uses):
            found.append(tensor.numpy().astype(np.float64)[member.positions])
    return found


def _energy(group: ChannelGroup, op: Linear, moments: Moments) -> _Floats:
    """Return the energy of each slot, relative to all that `op` reads, [slots]."""
    diagonals = np.diagonal(moments.gram, axis1=1, axis2=2)
    total = float(diagonals.sum()) or 1.0
    found: _Floats = np.sum(
        [diagonals[number][columns].sum(axis=1) for number, columns in enumerate(slot_columns(group, op))], axis=0
    )
    return found / total


def _activity(group: ChannelGroup, op: Linear, zeros: _Floats) -> _Floats:
    """Return the mean share of numbers other than zero in each slot, [slots]."""
    channels = group.positions(op.data, op.data_axis)
    assert channels is not None
    result: _Floats = (1 - zeros[channels]).mean(axis=1)
    return result


def _interaction(consumers: Sequence[Consumer]) -> _Floats:
    """Return A [slots, slots]: the error of scaling slot s by 1 - b_s is b^T A b, relative to the readers' energy.

    A[s, t] = sum over i in s, j in t of (W^T W)[i, j] * E[x x^T][i, j], summed over consumers.
    """
    slots = len(consumers[0].positions)
    total = np.zeros((slots, slots))
    for consumer in consumers:
        weight, moments = np.asarray(consumer.weight, np.float64), np.asarray(consumer.moments, np.float64)
        product = (weight.T @ weight) * moments
        energy = float(product.sum())
        member = np.zeros((slots, len(moments)))
        member[np.arange(slots)[:, None], consumer.positions] = 1
        total += member @ product @ member.T * (1 / energy if energy > 0 else 0.0)
    return total


def _greedy(interaction: _Floats) -> list[int]:
    """Return the order in which the removed slots' summed error grows least at every step."""
    left = list(range(len(interaction)))
    towards = np.zeros(len(interaction))  # sum over removed t of A[s, t]
    order: list[int] = []
    while left:
        added = np.array([interaction[slot, slot] + 2 * towards[slot] for slot in left])
        order.append(left.pop(int(np.argmin(added))))
        towards += interaction[order[-1]]
    return order


def _lasso(interaction: _Floats) -> list[int]:
    """Return the order in which coefficients vanish: min over b of (1-b)^T A (1-b) + penalty * sum |b|."""
    slots = len(interaction)
    diagonal = np.maximum(np.diagonal(interaction), 1e-300)
    wanted = interaction.sum(axis=1)
    coefficients = np.ones(slots)
    order: list[int] = []
    penalty = 2e-3 * float(np.abs(wanted).max())
    for _ in range(_LASSO_STEPS):
        for _ in range(_LASSO_SWEEPS):
            before = coefficients.copy()
            for slot in range(slots):
                rest = wanted[slot] - interaction[slot] @ coefficients + diagonal[slot] * coefficients[slot]
                shrunk = np.sign(rest) * max(abs(rest) - penalty / 2, 0.0)
                coefficients[slot] = shrunk / diagonal[slot]
            if np.abs(coefficients - before).max() < 1e-4:
                break
        gone = [slot for slot in np.flatnonzero(coefficients == 0).tolist() if slot not in order]
        order += sorted(gone, key=lambda slot: float(diagonal[slot]))
        if len(order) == slots:
            break
        penalty *= _LASSO_FACTOR
    rest = [slot for slot in range(slots) if slot not in order]
    return [*order, *sorted(rest, key=lambda slot: abs(float(coefficients[slot])))]
