"""The forms that a linear operator's weight can be split into, as products of small factors.

Letters: o output channels, i input channels, a and b kernel rows and columns, r and s ranks, t terms of a sum.

| form | W[o,i,a,b] = | operators | source |
|---|---|---|---|
| channel | U[o,r] V[r,i,a,b] | k x k to r channels, 1x1 | Zhang et al. 2015, https://arxiv.org/abs/1505.06798 |
| spatial | U[o,r,b] V[r,i,a] | k x 1 to r channels, 1 x k | Jaderberg et al. 2014, https://arxiv.org/abs/1405.3866 |
| tucker | U[o,s] G[s,r,a,b] V[r,i] | 1x1 to r, k x k to s, 1x1 | Kim et al. 2016, https://arxiv.org/abs/1511.06530 |
| cp | U[o,r] K[r,a,b] V[r,i] | 1x1, depthwise k x k, 1x1 | Lebedev et al. 2015, https://arxiv.org/abs/1412.6553 |
| cp-rows | U[o,r] A[r,a] B[r,b] V[r,i] | 1x1, depthwise k x 1 and 1 x k, 1x1 | the same, all four axes apart |
| separable | sum over t of P[t,o,i] D[t,i,a,b] | t pairs: depthwise, 1x1 | Guo 2018, https://arxiv.org/abs/1808.05517 |
| separable-rows | sum over t of P[t,o,i] A[t,i,a] B[t,i,b] | t triples: depthwise k x 1 and 1 x k, 1x1 | Freeman 2018 |

(Freeman et al. 2018, EffNet, https://arxiv.org/abs/1801.06434.) For Gemm, MatMul and 1x1 Conv, `channel` is the SVD.

A form computes exactly what a dense operator with the product as its weight does: only its last operators have a bias,
so that zeros from padding stay zeros on the way. Its fit can so be tried, measured and repaired in the dense operator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxpress.ir.linear import Linear

__all__ = ["EINSUM_PATH", "FORMS", "Factors", "Form", "FormName", "Kernel", "Stage", "kernel_of"]

Array: TypeAlias = npt.NDArray[Any]
Factors: TypeAlias = tuple[Array, ...]
Ranks: TypeAlias = tuple[int, ...]
FormName = Literal["channel", "spatial", "tucker", "cp", "cp-rows", "separable", "separable-rows"]
EINSUM_PATH = ("optimal", 1 << 62)  # pair by pair, however large what lies between is: all at once is slow
Extent = Literal["point", "rows", "columns", "full"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The extents of a weight [outputs, inputs, rows, columns]; Gemm and MatMul have one row and column."""

    outputs: int
    inputs: int
    rows: int
    columns: int

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.rows * self.columns

    @property
    def size(self) -> int:
        """Numbers of the weight."""
        return self.outputs * self.inputs * self.taps


def kernel_of(linear: Linear) -> Kernel:
    """Return the extents of an operator with one group and at most two spatial axes."""
    rows, columns = (*linear.kernel, 1, 1)[:2]
    return Kernel(linear.out_channels, linear.in_channels, rows, columns)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One operator of a chain: its weight [out, in/groups, rows, columns] and which part of the kernel it has."""

    weight: Array
    groups: int
    extent: Extent


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to split a weight.

    spec: the factors' letters, for einsum, and those of the weight. shapes: of the factors, at given ranks. ranks:
    those worth trying, in steps. chains: operators to run one after the other, for each branch of a sum.
    """

    name: FormName
    spec: str
    shapes: Callable[[Kernel, Ranks], tuple[tuple[int, ...], ...]]
    ranks: Callable[[Kernel, int], Iterator[Ranks]]
    chains: Callable[[Factors], list[list[Stage]]]
    fits: Callable[[Kernel], bool]

    @property
    def inputs(self) -> list[str]:
        """The letters of each factor."""
        return self.spec.split("->")[0].split(",")

    def weight(self, factors: Sequence[Array]) -> Array:
        """Return the product of the factors, [outputs, inputs, rows, columns]."""
        result: Array = np.einsum(self.spec, *factors, optimize=EINSUM_PATH)
        return result

    @property
    def counts_terms(self) -> bool:
        """Whether its ranks are terms of a sum, and no widths."""
        return self.name.startswith("separable")

    def describe(self, ranks: Ranks) -> str:
        """Return the form and its ranks for people: "spatial, rank 24"."""
        word = "terms" if self.counts_terms else "rank"
        return f"{self.name}, {word} {' and '.join(map(str, ranks))}"


def _steps(most: int, step: int) -> Iterator[int]:
    """Multiples of `step` up to `most`; every number where even one step is more than that."""
    yield from range(step, most + 1, step) if most >= step else range(1, most + 1)


def _single(kernel: Kernel, step: int, each: int) -> Iterator[Ranks]:
    """Ranks at which `each` numbers for one make less than the dense weight."""
    yield from ((rank,) for rank in _steps((kernel.size - 1) // each, step))


def _point(matrix: Array) -> Stage:
    return Stage(matrix[:, :, None, None], 1, "point")


def _channel_chain(factors: Factors) -> list[list[Stage]]:
    outer, inner = factors
    return [[Stage(inner, 1, "full"), _point(outer)]]


def _spatial_chain(factors: Factors) -> list[list[Stage]]:
    outer, inner = factors
    return [[Stage(inner[:, :, :, None], 1, "rows"), Stage(outer[:, :, None, :], 1, "columns")]]


def _tucker_chain(factors: Factors) -> list[list[Stage]]:
    outer, core, inner = factors
    return [[_point(inner), Stage(core, 1, "full"), _point(outer)]]


def _cp_chain(factors: Factors) -> list[list[Stage]]:
    outer, kernels, inner = factors
    return [[_point(inner), Stage(kernels[:, None], len(kernels), "full"), _point(outer)]]


def _cp_rows_chain(factors: Factors) -> list[list[Stage]]:
    outer, rows, columns, inner = factors
    rank = len(rows)
    return [
        [
            _point(inner),
            Stage(rows[:, None, :, None], rank, "rows"),
            Stage(columns[:, None, None, :], rank, "columns"),
            _point(outer),
        ]
    ]


def _separable_chains(factors: Factors) -> list[list[Stage]]:
    points, kernels = factors
    return [
        [Stage(kernel[:, None], len(kernel), "full"), _point(point)]
        for point, kernel in zip(points, kernels, strict=True)
    ]


def _separable_rows_chains(factors: Factors) -> list[list[Stage]]:
    points, rows, columns = factors
    return [
        [
            Stage(row[:, None, :, None], len(row), "rows"),
            Stage(column[:, None, None, :], len(column), "columns"),
            _point(point),
        ]
        for point, row, column in zip(points, rows, columns, strict=True)
    ]


def _tucker_ranks(kernel: Kernel, step: int) -> Iterator[Ranks]:
    for inner in _steps(kernel.inputs - 1, step):
        for outer in _steps(kernel.outputs - 1, step):
            # Far from equal shares of the two sides, one of them is left nearly whole: `channel` or its mirror image.
            if 0.5 <= (inner * kernel.outputs) / (outer * kernel.inputs) <= 2:
                yield inner, outer


def _terms(kernel: Kernel, step: int) -> Iterator[Ranks]:
    yield from ((terms,) for terms in range(1, kernel.taps))


_ALL = (
    Form(
        "channel",
        "or,riab->oiab",
        lambda k, n: ((k.outputs, n[0]), (n[0], k.inputs, k.rows, k.columns)),
        lambda k, step: _single(k, step, k.outputs + k.inputs * k.taps),
        _channel_chain,
        lambda k: True,
    ),
    Form(
        "spatial",
        "orb,ria->oiab",
        lambda k, n: ((k.outputs, n[0], k.columns), (n[0], k.inputs, k.rows)),
        lambda k, step: _single(k, step, k.outputs * k.columns + k.inputs * k.rows),
        _spatial_chain,
        lambda k: k.rows > 1 and k.columns > 1,
    ),
    Form(
        "tucker",
        "os,srab,ri->oiab",
        lambda k, n: ((k.outputs, n[1]), (n[1], n[0], k.rows, k.columns), (n[0], k.inputs)),
        _tucker_ranks,
        _tucker_chain,
        lambda k: k.taps > 1,
    ),
    Form(
        "cp",
        "or,rab,ri->oiab",
        lambda k, n: ((k.outputs, n[0]), (n[0], k.rows, k.columns), (n[0], k.inputs)),
        lambda k, step: _single(k, step, k.outputs + k.taps + k.inputs),
        _cp_chain,
        lambda k: k.taps > 1,
    ),
    Form(
        "cp-rows",
        "or,ra,rb,ri->oiab",
        lambda k, n: ((k.outputs, n[0]), (n[0], k.rows), (n[0], k.columns), (n[0], k.inputs)),
        lambda k, step: _single(k, step, k.outputs + k.rows + k.columns + k.inputs),
        _cp_rows_chain,
        lambda k: k.rows > 1 and k.columns > 1,
    ),
    Form(
        "separable",
        "toi,tiab->oiab",
        lambda k, n: ((n[0], k.outputs, k.inputs), (n[0], k.inputs, k.rows, k.columns)),
        _terms,
        _separable_chains,
        lambda k: k.taps > 1,
    ),
    Form(
        "separable-rows",
        "toi,tia,tib->oiab",
        lambda k, n: ((n[0], k.outputs, k.inputs), (n[0], k.inputs, k.rows), (n[0], k.inputs, k.columns)),
        _terms,
        _separable_rows_chains,
        lambda k: k.rows > 1 and k.columns > 1,
    ),
)
FORMS: Mapping[str, Form] = {form.name: form for form in _ALL}
