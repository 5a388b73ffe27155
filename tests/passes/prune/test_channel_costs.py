"""What a cut will cost is what it costs once it is made."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.channels import couple, remove
from onnxpress.ir.analysis.cost import cost
from onnxpress.passes.prune.channel_costs import ChannelCosts
from onnxpress.passes.prune.eligibility import why_not_prunable
from tests.ir.analysis.channel_graphs import BLOCKS, random_model

# Readers that keep different parts of one constant, and products of two activations, are told in the module.
_FOLLOWED = sorted(
    block for block in BLOCKS if block != "shared_vector" and "attention" not in block and "einsum" not in block
)


@settings(max_examples=30, deadline=None)
@given(block=st.sampled_from(_FOLLOWED), seed=st.integers(0, 99), data=st.data())
def test_costs_are_those_of_the_model_after_the_removal(block: str, seed: int, data: st.DataObject) -> None:
    model = random_model([block], seed)
    groups = [group for group in couple(model).groups if why_not_prunable(group, model) is None]
    costs = ChannelCosts(model, groups, None)
    removed = [data.draw(st.integers(0, group.size - 1)) for group in groups]
    expected = {"macs": costs.cost_of("macs", removed), "params": costs.cost_of("params", removed)}
    remove(model, {group: range(count) for group, count in zip(groups, removed, strict=True) if count})
    found = cost(model)
    assert {"macs": found.macs, "params": found.params} == pytest.approx(expected)
