"""Minimum cuts, held against networkx."""

from __future__ import annotations

import networkx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.passes.quantize.min_cut import FlowGraph

_EDGE = st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 20) | st.none())


@given(st.lists(_EDGE, max_size=30))
def test_the_cut_has_the_capacity_that_networkx_finds(edges: list[tuple[int, int, int | None]]) -> None:
    ours, theirs = FlowGraph(), networkx.DiGraph()
    theirs.add_nodes_from([0, 7])
    ours.add_edge(0, 7, 0)
    for tail, head, capacity in edges:
        if tail == head:
            continue
        ours.add_edge(tail, head, capacity)
        room = float("inf") if capacity is None else capacity
        before = theirs.edges[tail, head]["capacity"] if theirs.has_edge(tail, head) else 0
        theirs.add_edge(tail, head, capacity=before + room)
    try:
        expected = networkx.minimum_cut_value(theirs, 0, 7)
    except networkx.NetworkXUnbounded:
        with pytest.raises(ValueError, match=r"^the sink is joined to the source by infinite edges alone$"):
            ours.source_side(0, 7)
        return
    side = ours.source_side(0, 7)
    assert 0 in side and 7 not in side
    cut = sum(data["capacity"] for tail, head, data in theirs.edges(data=True) if tail in side and head not in side)
    assert cut == expected


def test_a_long_chain_is_cut_at_its_narrowest_place() -> None:
    graph = FlowGraph()
    for node in range(5000):
        graph.add_edge(node, node + 1, 3 if node == 2500 else 7)
    assert graph.source_side(0, 5000) == set(range(2501))
