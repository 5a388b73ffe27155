"""Losses between measured widths, and which widths are worth having."""

from __future__ import annotations

import onnx_ir
import pytest

from onnxpress.ir.analysis.channels import couple
from onnxpress.passes.prune.channel_costs import ChannelCosts
from onnxpress.passes.prune.sensitivity import interpolate_losses, worthwhile_removals
from tests.ir.analysis.channel_graphs import random_model


def test_a_power_of_the_error_is_followed_everywhere() -> None:
    """Before the first measurement the loss is proportional to the error."""
    removals = tuple(range(17))
    errors = [(count / 16) ** 2 for count in removals]
    measured: list[int] = []

    def measure(count: int) -> float:
        measured.append(count)
        return (count / 16) ** 2

    losses = interpolate_losses(removals, errors, measure)
    assert measured == [4, 8, 12, 16]
    assert losses == pytest.approx(errors, rel=1e-3, abs=1e-9)


def test_measurements_are_kept_where_the_error_says_nothing() -> None:
    losses = interpolate_losses((0, 1, 2, 3, 4), [0.0] * 5, lambda count: count / 10)
    assert losses == pytest.approx((0.0, 0.1, 0.2, 0.3, 0.4), rel=1e-3)


def test_losses_never_fall() -> None:
    losses = interpolate_losses((0, 1, 2), [0.0, 1.0, 2.0], {1: 0.5, 2: 0.1}.__getitem__)
    assert losses == pytest.approx((0.0, 0.5, 0.5))


def test_nothing_to_remove_is_no_loss() -> None:
    assert interpolate_losses((0,), [0.0], lambda count: 1.0) == (0.0,)


def _costs(model: onnx_ir.Model) -> ChannelCosts:
    return ChannelCosts(model, couple(model).removable, None)


def test_widths_are_multiples_in_every_layer_that_is_one() -> None:
    model = random_model(["residual"], 0, head="conv")
    costs = _costs(model)
    for index, group in enumerate(costs.groups):
        for count in worthwhile_removals(group, index, costs, 2):
            assert count == 0 or (group.size - count) % 2 == 0
