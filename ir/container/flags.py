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

from onnxpress.ir.container.coder import FLAG_ONE, Array, Decoder, Encoder
from onnxpress.ir.container.folds import Kernel
from onnxpress.ir.container.logs import LOG_BITS, log2_parts
from onnxpress.ir.container.tables import flag_chances, flag_moments

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
_SAMPLE = 24_000  # elements that the regression sees
_STEPS = (6, 6, 2, 1)  # of Newton's method: the first are to get near, and see every so many elements
_RIDGE = 1
_BLOCK = 4096  # elements that are multiplied at a time, which the cache holds
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
        mask = None if coded is None else np.flatnonzero(coded[position, rows])
        features = _features(position, facts, sampled, (means[0][position], means[1][position]), kernel)
        size = sampled.shape[1] * sampled.shape[2]
        block = np.zeros((len(features), size if mask is None else mask.size), np.int8)
        for line, feature in zip(block, features, strict=True):
            if feature is None:
                continue
            if mask is None:
                line.reshape(sampled.shape[1:])[:] = feature
            elif feature.shape == sampled.shape[1:]:
                line[:] = feature.reshape(-1)[mask]
            else:
                line[:] = np.broadcast_to(feature, sampled.shape[1:]).reshape(-1)[mask]
        design.append(block)
        flat = flags[position, rows].reshape(-1)
        wanted.append(flat if mask is None else flat[mask])
    sample, is_set = np.concatenate(design, axis=1), np.concatenate(wanted)
    varies = sample.any(axis=1)  # a kernel of one position has no neighbours
    weights = np.zeros(varies.size, np.int32)
    weights[varies], spent = _regress(sample[varies], is_set)
    return weights, spent


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
        features = _features(position, facts, known, (means[0][position], means[1][position]), kernel)
        chances = flag_chances(_scores(features, weights, flags.shape[1:]))
        values, chances = flags[position].reshape(-1), chances.reshape(-1)
        if coded is not None:
            members = np.flatnonzero(coded[position])
            values, chances = values[members], chances[members]
        encoder.flags(values, chances)


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
    size_m, size_c = known.shape[1:]
    of_rows, of_columns = np.zeros(size_m, np.int64), np.zeros(size_c, np.int64)
    for position in range(known.shape[0]):
        means = _mean(of_rows, max(1, position * size_c)), _mean(of_columns, max(1, position * size_m))
        features = _features(position, facts, known, means, kernel)
        chances = flag_chances(_scores(features, weights, known.shape[1:]))
        if coded is None:
            flags[position] = decoder.flags(chances.reshape(-1)).reshape(chances.shape) == 1
        else:
            members = np.flatnonzero(coded[position])
            flags[position].reshape(-1)[members] = decoder.flags(chances.reshape(-1)[members]) == 1
        np.copyto(known[position], if_set[position], where=flags[position])
        of_rows += known[position].sum(axis=1, dtype=np.int32)
        of_columns += known[position].sum(axis=0, dtype=np.int32)
    return flags


def _features(
    position: int, facts: Facts, known: Array, means: tuple[Array, Array], kernel: Kernel
) -> list[Array | None]:
    """Return the features at one position, each broadcasting to [M, C]; None for neighbours outside of the kernel."""
    row, column = divmod(position, kernel[1])
    features: list[Array | None] = [np.full((1, 1), 64, np.int32)]
    features += [fact[position if fact.shape[0] > 1 else 0] for fact in facts]
    features += [means[0][:, None], means[1][None, :]]
    for down, right in _OFFSETS:
        inside = row + down >= 0 and 0 <= column + right < kernel[1]
        features.append(known[(row + down) * kernel[1] + column + right] if inside else None)
    return features


def _means(known: Array) -> tuple[Array, Array]:
    """Return the means of what is known of each row [S, M] and column [S, C] before each position, in parts of 4."""
    of_rows, of_columns = (known.sum(axis=axis, dtype=np.int32) for axis in (2, 1))
    return _before(of_rows, known.shape[2]), _before(of_columns, known.shape[1])


def _before(sums: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
    """Return for each position the mean of the sums at those before it, over `count` elements each."""
    total = np.cumsum(sums, axis=0, dtype=np.int64) - sums
    seen = np.maximum(np.arange(len(sums), dtype=np.int64) * count, 1)
    return _mean(total, seen[:, None])


def _mean(total: npt.NDArray[np.int64], seen: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int32]:
    means: npt.NDArray[np.int64] = np.minimum(np.maximum(4 * total // seen, -FEATURE_LIMIT), FEATURE_LIMIT)
    return means.astype(np.int32)


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


def _regress(design: npt.NDArray[np.int8], is_set: npt.NDArray[np.bool_]) -> tuple[Weights, float]:
    """Return the weights of a logistic regression, by Newton's method with a slight ridge, and what a flag costs.

    All products and sums are of whole numbers that float64 holds, so that their order, which is the BLAS's, is none of
    the result; and what is not whole is solved element by element. design: [features, flags].
    """
    found, spent = np.zeros(len(design), np.int32), 0
    exact, weighted = np.empty((2, len(design), _BLOCK))
    for part in _STEPS:
        slope = np.multiply(found, -float(_RIDGE << 18), dtype=np.float64)
        bend = np.eye(len(design)) * float(_RIDGE << 22)
        spent = seen = 0
        for start in range(0, design.shape[1], part * _BLOCK):
            wanted = is_set[start : start + part * _BLOCK : part]
            block, product = exact[:, : wanted.size], weighted[:, : wanted.size]
            block[:] = design[:, start : start + part * _BLOCK : part]
            chances, spreads = flag_moments((found @ block).astype(np.int32))
            slope += block @ (wanted * float(FLAG_ONE) - chances)
            np.multiply(block, spreads, out=product)
            bend += product @ block.T
            if part == 1:
                spent += int(((16 << LOG_BITS) - log2_parts(np.where(wanted, chances, FLAG_ONE - chances))).sum())
                seen += wanted.size
        found += np.rint(16 * _solve(bend, slope)).astype(np.int32)
        np.clip(found, -_WEIGHT_LIMIT, _WEIGHT_LIMIT, out=found)
    return found, spent / max(1, seen << LOG_BITS)


def _solve(matrix: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Solve for a positive definite matrix, by elimination; LAPACK's rounding depends on the machine."""
    rows = np.column_stack([matrix, wanted])
    for index in range(len(rows)):
        rows[index] /= rows[index, index]
        factors = rows[:, index].copy()
        factors[index] = 0
        rows -= factors[:, None] * rows[index]
    return rows[:, -1]
