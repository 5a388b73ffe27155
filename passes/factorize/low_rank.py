"""Split linear operators into products of low rank, where that is faster and the outputs lose little.

    W = U V       channel, spatial, tucker, cp, cp-rows: see `forms`

scheme=auto tries channel, spatial and cp at several ranks, for each operator. On layers of resnet56, tucker had more
error than cp at equal MACs, and cp-rows the same with one operator more. A chain whose product is cheaper is multiplied
out first (`merge`), which is exact. Fitted to data (`fit`): the error is that of the operator's output, and a budget is
shared out over the operators by what the model's outputs lose (`substitution`).

Legal when: Conv (one group, at most two spatial axes, explicit padding), Gemm or MatMul with a weight of its own, of
256 numbers or more, with no other linear operator right next to it. A form is taken only where the target's estimate
says that it is faster, and has fewer MACs. Fidelity: lossy; each site records its form, the error of its output as
predicted and as it was in the end, and what it alone does to the model's outputs.
Sources: see `forms`; Zhang et al. 2015, https://arxiv.org/abs/1505.06798 (asymmetric fit, ranks by energy).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import onnx_ir
import pydantic

from onnxpress.passes.base import Context, Fidelity, Options, Pass, Rewrites
from onnxpress.passes.factorize.forms import FORMS, FormName
from onnxpress.passes.factorize.options import SubstitutionOptions
from onnxpress.passes.factorize.substitution import substitute
from onnxpress.passes.order import STRUCTURE

__all__ = ["LowRank", "LowRankOptions"]

_Scheme = Literal["auto", "channel", "spatial", "tucker", "cp", "cp-rows", "separable", "separable-rows"]
_DEFAULT_ENERGY = 0.95
_AUTO: tuple[FormName, ...] = ("channel", "spatial", "cp")


class LowRankOptions(SubstitutionOptions):
    """Options of `low-rank`."""

    scheme: tuple[_Scheme, ...] = pydantic.Field(
        default=("auto",),
        min_length=1,
        description="forms to choose from: channel, spatial, cp (auto: these three), tucker, cp-rows, separable, "
        "separable-rows",
    )


class LowRank(Pass):
    """Split operators into chains of low rank where the outputs lose least, fitted to calibration data."""

    name: ClassVar[str] = "low-rank"
    fidelity: ClassVar[Fidelity] = "lossy"
    options_type: ClassVar[type[Options]] = LowRankOptions
    after: ClassVar[tuple[str, ...]] = STRUCTURE[: STRUCTURE.index("low-rank")]
    options: LowRankOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Split operators of `model` in place.

        Raises:
            UsageError: too little data, a selector that matches nothing, or latency without a cost estimate.
            BudgetError: the budget cannot be reached.
        """
        names = [name for each in self.options.scheme for name in (_AUTO if each == "auto" else (each,))]
        forms = [FORMS[name] for name in dict.fromkeys(names)]
        budget = self.options.budget() or ("energy", _DEFAULT_ENERGY)
        return substitute(model, forms, budget, self.options, context, self.name, merge=True)
