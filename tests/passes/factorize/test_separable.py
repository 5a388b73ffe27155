"""separable: as many branches as terms, side by side; what it shares with low-rank is tested there."""

from __future__ import annotations

from typing import Any

import onnx_ir
import pytest

from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.factorize.separable import Separable
from tests.passes.residual_net import residual_data, residual_net


def _run(model: onnx_ir.Model, **options: Any) -> Rewrites:
    return Separable(**options).run(model, Context(constraints=Constraints(), data=residual_data()))


def test_terms_are_as_many_branches_side_by_side() -> None:
    model = residual_net()
    record = _run(model, terms=2, include=["conv1"])
    assert [site.detail for site in record.sites] == ["separable, terms 2"]
    kinds = [(node.op_type, node.attributes.get_int("group", 1)) for node in model.graph][2:7]
    assert kinds == [("Conv", 8), ("Conv", 1), ("Conv", 8), ("Conv", 1), ("Add", 1)]


def test_more_terms_lose_less() -> None:
    errors = []
    for terms in (1, 2, 4):
        (site,) = _run(residual_net(), terms=terms, include=["conv1"]).sites
        errors.append(site.error["output_error"])
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("scheme", ["separable", "separable-rows"])
def test_both_schemes_of_separable_stay_close(scheme: str) -> None:
    model = residual_net()
    _run(model, terms=4, scheme=[scheme])
    assert Divergence(residual_net(), residual_data(), samples=48).of(model) < 0.5
