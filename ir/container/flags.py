"""Flags of a kernel tensor, such as "is zero" or "is negative", each with a chance that its surroundings tell.

The chance of a flag is the logistic function of a score, a sum of integer features with integer weights: facts that are
known for the whole tensor, and what was decoded of the same kernel before. One kernel position is coded at a time,
[M, C] flags in one call, so that everything the score reads is there. The encoder fits the weights by logistic
regression, rounds and stores them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxpress.ir.container.coder import Array, Decoder, Encoder
from onnxpress.ir.container.folds import Kernel
from onnxpress.ir.container.tables import SCORE_NAT, flag_chances

__all__ = [
    "FEATURE_LIMIT",
    "Weights",
    "fit_weights",
    "read_flags",
    "read_weights",
    "write_flags",
    "write_weights",
]

Facts = Sequence[npt.NDArray[np.int32]]
Weights = npt.NDArray[np.int32]

FEATURE_LIMIT = 127  # of one feature; with the weight limit, a score stays within 31 bits
_WEIGHT_LIMIT = 1 << 14
_REACH = 2  # how far neighbours are looked at, in kernel positions
_SAMPLE = 40_000  # elements that the regression sees
_NEWTON_STEPS = 4
_OFFSETS = [
    (row, column) for row in range(-_REACH, 1) for column in range(-_REACH, _REACH + 1) if row < 0 or column < 0
]


def fit_weights(
    flags: npt.NDArray[np.bool_], coded: npt.NDArray[np.bool_] | None, facts: Facts, known: Array, kernel: Kernel
) -> tuple[Weights, float]:
    """Return weights, and about what a flag costs with them, in bits.

    flags: [S, M, C]. coded: which of them are; None for all. facts: arrays that broadcast to [S, M, C]. known: what
    decoding a flag makes known, [S, M, C], within FEATURE_LIMIT. Of all but the last, every value lies in int8.
    """
    rows = slice(None, None, max(1, -(-flags.size // _SAMPLE)))
    sampled = known[:, rows]
    row_means, column_means = _means(known)
    means = (row_means[:, rows], column_means)
    facts = [fact[:, rows] if fact.shape[1] > 1 else fact for fact in facts]
    design, wanted = [], []
    for position in range(flags.shape[0]):
        mask = np.ones(sampled.shape[1:], np.bool_) if coded is None else coded[position, rows]
        features = _features(position, facts, sampled, means, kernel)
        block = np.zeros((len(features), int(np.count_nonzero(mask))), np.float32)
        for line, feature in zip(block, features, strict=True):
            if feature is not None:
                line[:] = np.broadcast_to(feature, mask.shape)[mask]
        design.append(block)
        wanted.append(flags[position, rows][mask])
    sample = np.ascontiguousarray(np.concatenate(design, axis=1).T)
    varies = sample.any(axis=0)  # a kernel of one position has no neighbours
    found = np.zeros(varies.size)
    found[varies] = _regress(sample[:, varies] / np.float32(64), np.concatenate(wanted).astype(np.float32))
    weights = np.clip(np.rint(found * SCORE_NAT / 64), -_WEIGHT_LIMIT, _WEIGHT_LIMIT).astype(np.int32)
    scores = sample @ weights.astype(np.float32) / SCORE_NAT
    odds = np.where(np.concatenate(wanted), -scores, scores)
    bits = float(np.logaddexp(0, odds).mean() / np.log(2)) if odds.size else 1.0
    return weights, bits


def write_weights(encoder: Encoder, weights: Weights) -> None:
    """Write what `fit_weights` found."""
    encoder.small(weights)


def read_weights(decoder: Decoder, facts: int) -> Weights:
    """Read the weights of `facts` facts and of the neighbours."""
    return decoder.small(3 + facts + len(_OFFSETS))


def write_flags(
    encoder: Encoder,
    flags: npt.NDArray[np.bool_],
    coded: npt.NDArray[np.bool_] | None,
    facts: Facts,
    known: Array,
    kernel: Kernel,
    weights: Weights,
) -> None:
    """Code flags [S, M, C]; the arguments are those of `fit_weights`."""
    means = _means(known)
    for position in range(flags.shape[0]):
        features = _features(position, facts, known, means, kernel)
        chances = flag_chances(_scores(features, weights, flags.shape[1:]))
        mask = slice(None) if coded is None else coded[position]
        encoder.flags(flags[position][mask].reshape(-1), chances[mask].reshape(-1))


def read_flags(
    decoder: Decoder,
    coded: npt.NDArray[np.bool_] | None,
    facts: Facts,
    if_set: Array,
    known: Array,
    kernel: Kernel,
    weights: Weights,
) -> npt.NDArray[np.bool_]:
    """Read flags [S, M, C].

    known: holds what is known where a flag is 0 (or none is coded); where one is 1 it becomes `if_set`, in place.
    """
    flags = np.zeros(known.shape, np.bool_)
    sums = np.zeros((known.shape[0], known.shape[1]), np.int64), np.zeros((known.shape[0], known.shape[2]), np.int64)
    for position in range(known.shape[0]):
        means = _before(sums[0][: position + 1], known.shape[2]), _before(sums[1][: position + 1], known.shape[1])
        features = _features(position, facts, known, means, kernel)
        chances = flag_chances(_scores(features, weights, known.shape[1:]))
        if coded is None:
            flags[position] = decoder.flags(chances.reshape(-1)).reshape(chances.shape) == 1
        else:
            flags[position][coded[position]] = decoder.flags(chances[coded[position]]) == 1
        np.copyto(known[position], if_set[position], where=flags[position])
        sums[0][position], sums[1][position] = known[position].sum(axis=1), known[position].sum(axis=0)
    return flags


def _features(
    position: int, facts: Facts, known: Array, means: tuple[Array, Array], kernel: Kernel
) -> list[Array | None]:
    """Return the features at one position, each broadcasting to [M, C]; None for neighbours outside of the kernel."""
    row, column = divmod(position, kernel[1])
    features: list[Array | None] = [np.full((1, 1), 64, np.int32)]
    features += [fact[position if fact.shape[0] > 1 else 0] for fact in facts]
    features += [means[0][position][:, None], means[1][position][None, :]]
    for down, right in _OFFSETS:
        inside = row + down >= 0 and 0 <= column + right < kernel[1]
        features.append(known[(row + down) * kernel[1] + column + right] if inside else None)
    return features


def _means(known: Array) -> tuple[Array, Array]:
    """Return the means of what is known of each row [S, M] and column [S, C] before each position, in parts of 4."""
    return _before(known.sum(axis=2, dtype=np.int64), known.shape[2]), _before(
        known.sum(axis=1, dtype=np.int64), known.shape[1]
    )


def _before(sums: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    """Return for each position the mean of the sums at those before it, over `count` elements each."""
    total = np.cumsum(sums, axis=0) - sums
    seen = np.maximum(np.arange(len(sums), dtype=np.int64) * count, 1)
    means: npt.NDArray[np.int32] = np.clip(4 * total // seen[:, None], -FEATURE_LIMIT, FEATURE_LIMIT).astype(np.int32)
    return means


def _scores(features: Sequence[Array | None], weights: Weights, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    total, product = np.zeros(shape, np.int32), np.empty(shape, np.int32)
    for weight, feature in zip(weights, features, strict=True):
        if feature is None or not weight:
            continue
        if feature.size == total.size:
            total += np.multiply(feature, weight, out=product)
        else:
            total += feature * weight
    return total


def _regress(design: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the weights of a logistic regression, by Newton's method with a slight ridge."""
    found = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ found.astype(np.float32), -20, 20)))
        slope = design.T @ (wanted - chance) - found
        bend = (design * (chance * (1 - chance))[:, None]).T @ design + np.eye(design.shape[1])
        found += np.linalg.solve(bend.astype(np.float64), slope)
    return found
