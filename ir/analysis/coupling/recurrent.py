"""LSTM, GRU and RNN: hidden units, whose weights stand once for every gate."""

from __future__ import annotations

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change
from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Relation, describe

__all__ = ()  # rules register themselves

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_PEEPHOLES = 3


def _rewrite_hidden_size(change: Change, node: onnx_ir.Node) -> None:
    places = [value for value in node.outputs if value.name]
    assert places and places[0].shape is not None
    size = change.size(places[0], len(places[0].shape) - 1)
    assert size is not None
    node.attributes["hidden_size"] = onnx_ir.AttrInt64("hidden_size", size)


@rule("RNN", "GRU", "LSTM", rewrite=_rewrite_hidden_size)
def _recurrent(relation: Relation, node: onnx_ir.Node) -> None:
    """W [D, gates * H, I], R [D, gates * H, H], B [D, 2 * gates * H], P [D, 3 * H], states [D, N, H]."""
    data, weight, recurrence = (relation.input(node, index) for index in range(3))
    size, gates = recurrence.sizes[2], _GATES[node.op_type]
    if size is None or weight.sizes[1] != gates * size:
        raise NoRule("its hidden size is unknown")
    hidden = recurrence[2]
    for place, copies in ((weight, gates), (recurrence, gates)):
        relation.freeze([place[0]], f"directions of {describe(node)}")
        _repeat(relation, place[1], hidden, copies, size)
    relation.same(data[2], weight[2])
    relation.freeze(data.axes(0, 2), f"time or batch of {describe(node)}")
    for index, copies in ((3, 2 * gates), (7, _PEEPHOLES)):
        parameter = relation.optional(node, index)
        if parameter is not None:
            relation.freeze([parameter[0]], f"directions of {describe(node)}")
            _repeat(relation, parameter[1], hidden, copies, size)
    lengths = relation.optional(node, 4)
    if lengths is not None:
        relation.freeze(lengths.axes(), f"lengths of {describe(node)}")
    states = [relation.optional(node, index) for index in ((5, 6) if node.op_type == "LSTM" else (5,))]
    for state in (*states, *relation.outputs(node)):
        if state is not None:
            relation.same(state[-1], hidden)
            relation.freeze(state.axes(0, -1), f"time or batch of {describe(node)}")


def _repeat(relation: Relation, axis: int, hidden: int, copies: int, size: int) -> None:
    relation.tie(axis, np.arange(copies * size), hidden, np.tile(np.arange(size), copies))
