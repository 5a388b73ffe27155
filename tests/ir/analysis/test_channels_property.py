"""Removing channels whose weights were set to zero changes no output, whatever the graph and the draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis.channels import ChannelGroup, couple, remove, removed_indices
from onnxpress.ir.linear import constant_tensor
from tests.ir.analysis.channel_graphs import BLOCKS, random_model
from tests.support import Array, random_feeds, run

_HEADS = ("conv", "flatten", "pool", "reshape")


def zero(removals: Mapping[ChannelGroup, Sequence[int]]) -> None:
    """Set what a removal takes to zero in every constant."""
    for group, slots in removals.items():
        for member in group.constants:
            tensor = constant_tensor(member.value)
            assert tensor is not None and member.value.is_initializer()
            array = tensor.numpy().copy()
            indices = member.positions[list(slots)].ravel()
            if member.groups == 1:
                np.moveaxis(array, member.axis, 0)[indices] = 0
            else:
                rows, columns = array.shape[0] // member.groups, array.shape[1]
                for index in indices:
                    array[index // columns * rows : (index // columns + 1) * rows, index % columns] = 0
            member.value.const_value = onnx_ir.tensor(array, name=member.value.name)


def draw(groups: Sequence[ChannelGroup], rng: np.random.Generator) -> dict[ChannelGroup, Sequence[int]]:
    """Draw slots of some groups, never all of one."""
    chosen: dict[ChannelGroup, Sequence[int]] = {}
    for group in groups:
        count = int(rng.integers(0, group.size))
        if count:
            chosen[group] = rng.choice(group.size, count, replace=False).tolist()
    return chosen


def params(model: onnx_ir.Model) -> int:
    """Count the numbers in a model's float initializers."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def check(model: onnx_ir.Model, seed: int) -> dict[ChannelGroup, Sequence[int]]:
    """Remove zeroed channels and hold outputs and shapes against what was there; return what went."""
    removals = draw(couple(model).removable, np.random.default_rng(seed))
    zero(removals)
    feeds = random_feeds(model, seed)
    expected, before = run(model, feeds), params(model)
    sizes = {
        (value, axis): value.shape[axis] - len(gone)
        for (value, axis), gone in removed_indices(removals).items()
        if value.shape is not None
    }
    remove(model, removals)
    for one, other in zip(expected, run(model, feeds), strict=True):
        close(other, one)
    for (value, axis), size in sizes.items():
        assert value.shape is not None and value.shape[axis] == size, (value.name, axis)
    if removals:
        assert params(model) < before
    return removals


def close(actual: Array, expected: Array) -> None:
    """Assert equality up to the rounding of sums in another order."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", range(3))
def test_each_block(block: str, seed: int) -> None:
    assert check(random_model(["plain", block], seed, head=_HEADS[seed]), seed)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    head=st.sampled_from(_HEADS),
    batch=st.sampled_from(["N", 1, 2]),
    seed=st.integers(0, 2**16),
)
def test_zeroed_channels_leave_without_a_trace(blocks: list[str], head: str, batch: int | str, seed: int) -> None:
    check(random_model(blocks, seed, head=head, batch=batch), seed)
