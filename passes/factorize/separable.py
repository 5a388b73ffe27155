"""Replace k x k convolutions by sums of depthwise and pointwise pairs (network decoupling), fitted to data.

    W[o,i,a,b]  =>  sum over t of P[t,o,i] D[t,i,a,b]          separable
                    sum over t of P[t,o,i] A[t,i,a] B[t,i,b]   separable-rows: the depthwise kernels split once more

`terms` fixes the number of pairs; auto takes for each convolution what the budget leaves it. Pointwise and depthwise
parts are fitted in turn to the convolution's moments (`fit`); how a budget is shared out and what lies behind is
refitted, is `substitution`'s to say. The pairs run side by side and are added (`emit`).

Legal when: as for `low-rank`, with a kernel of more than one position, and the pairs are faster by the target's
estimate and have fewer MACs. Fidelity: lossy; the same record as `low-rank`'s.
Sources: Guo et al. 2018, https://arxiv.org/abs/1808.05517; Freeman et al. 2018, https://arxiv.org/abs/1801.06434.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import onnx_ir
import pydantic

from onnxpress.passes.base import Context, Fidelity, Options, Pass, Rewrites
from onnxpress.passes.factorize.forms import FORMS, Form
from onnxpress.passes.factorize.options import Budget, SubstitutionOptions
from onnxpress.passes.factorize.substitution import substitute
from onnxpress.passes.order import STRUCTURE

__all__ = ["Separable", "SeparableOptions"]

_DEFAULT_ENERGY = 0.95
_WHATEVER: tuple[Budget, float] = ("energy", 0.0)  # any error will do: the terms were asked for


class SeparableOptions(SubstitutionOptions):
    """Options of `separable`."""

    terms: Literal["auto"] | Annotated[int, pydantic.Field(ge=1)] = pydantic.Field(
        default="auto", description="pairs for each convolution: a number, or auto for what the budget leaves it"
    )
    scheme: tuple[Literal["separable", "separable-rows"], ...] = pydantic.Field(
        default=("separable",), min_length=1, description="forms to choose from: separable, separable-rows"
    )


class Separable(Pass):
    """Replace convolutions by sums of depthwise and pointwise pairs where the outputs lose least, fitted to data."""

    name: ClassVar[str] = "separable"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = SeparableOptions
    after: ClassVar[tuple[str, ...]] = STRUCTURE[: STRUCTURE.index("separable")]
    options: SeparableOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Replace convolutions of `model` in place.

        Raises:
            UsageError: too little data, a selector that matches nothing, or latency without a cost estimate.
            BudgetError: the budget cannot be reached.
        """
        forms = [FORMS[name] for name in dict.fromkeys(self.options.scheme)]
        budget = self.options.budget()
        if self.options.terms != "auto":
            forms = [_with_terms(form, self.options.terms) for form in forms]
            budget = budget or _WHATEVER
        return substitute(model, forms, budget or ("energy", _DEFAULT_ENERGY), self.options, context, self.name)


def _with_terms(form: Form, terms: int) -> Form:
    """Return the form with this number of terms alone."""
    return dataclasses.replace(
        form, ranks=lambda kernel, step: (ranks for ranks in form.ranks(kernel, step) if ranks == (terms,))
    )
