"""How rules cut a model: islands, what cuts them, the change that helps most, and a verdict in plain words."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.model_io import load
from onnxpress.targets.base import load_target
from onnxpress.targets.legality import check_model
from onnxpress.targets.partition import Partition, partition
from tests.support import text_model


def _model(body: str, inputs: str = "float[1,4,6,6] x") -> onnx_ir.Model:
    return load(
        text_model(f"""
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g ({inputs}) => (float[1,4,6,6] y) {{ {body} }}
        """)
    )


def _cut(body: str, target: str = "tensorrt", inputs: str = "float[1,4,6,6] x") -> Partition:
    model = _model(body, inputs)
    profile = load_target(target).profile
    return partition(model, check_model(model, profile), profile)


def test_a_model_without_a_cut_is_one_island() -> None:
    found = _cut("[a] r = Relu(x) [b] s = Abs(x) [c] y = Add(r, s)")
    assert (found.nodes, found.on_target, found.islands, found.changes) == (3, 3, 1, ())
    assert found.verdict == "The whole model runs on tensorrt: 3 nodes."


def test_one_node_in_a_chain_cuts_it_in_two() -> None:
    found = _cut("[a] r = Relu(x) [bad] s = Bernoulli(r) [c] y = Abs(s)")
    assert (found.nodes, found.on_target, found.islands) == (3, 2, 2)
    assert found.verdict == (
        "2 of 3 nodes run on tensorrt, in 2 islands; the rest needs another runtime, with copies between. "
        "What helps most: Bernoulli ('bad', rule operator). Replace it by operators from that list; fold what is "
        "constant with --passes cleanup. Then 3 run there, in 1 island."
    )


def test_in_brief_it_gives_no_advice() -> None:
    assert _cut("[a] r = Relu(x) [bad] s = Bernoulli(r) [c] y = Abs(s)").brief == (
        "2 of 3 nodes run on tensorrt, in 2 islands; the rest needs another runtime, with copies between. "
        "What helps most: Bernoulli ('bad', rule operator). Then 3 run there, in 1 island."
    )


def test_a_shortcut_round_a_cut_does_not_join_what_it_separates() -> None:
    """The Add waits for the cut, and what it reads beside it is needed before."""
    found = _cut("[a] r = Relu(x) [bad] s = Bernoulli(r) [c] y = Add(s, r)")
    assert found.islands == 2


def test_a_branch_that_meets_others_behind_a_cut_belongs_there() -> None:
    found = _cut("[bad] s = Bernoulli(x) [a] r = Relu(z) [b] t = Abs(r) [c] y = Add(s, t)", inputs="float[1,4,6,6] x, "
                 "float[1,4,6,6] z")  # fmt: skip
    assert (found.on_target, found.islands) == (3, 1)


def test_a_branch_that_ends_before_a_cut_keeps_what_it_reads() -> None:
    """Counted from the outputs alone, [p] would wait for the longer branch, and stand apart from [s]."""
    found = _cut("""
        [s] s = Relu(x) [t] t = Neg(s) [p] p = Abs(s) [bad] q = Bernoulli(p)
        [c1] c1 = Relu(z) [b1] b1 = Bernoulli(c1) [c2] c2 = Relu(b1) [b2] b2 = Bernoulli(c2) [c3] c3 = Relu(b2)
        [j] y = Add(c3, q)
    """, inputs="float[1,4,6,6] x, float[1,4,6,6] z")  # fmt: skip
    assert (found.on_target, found.islands) == (7, 4)


def test_a_node_with_two_causes_stays_where_it_is_until_both_are_mended() -> None:
    found = _cut("""
        [a] r = Relu(x) [k] c = Constant<value = bool {1}>()
        [if] s = If(c) <then_branch = t () => (float[1,4,6,6] u) { [in] u = Bernoulli(r) },
                        else_branch = e () => (float[1,4,6,6] v) { [other] v = acme.Thing(r) }>
        [b] y = Abs(s)
    """)
    assert (found.on_target, found.islands) == (2, 2)
    assert [(change.op_type, change.on_target, change.islands) for change in found.changes] == [
        ("Bernoulli", 2, 2),
        ("Thing", 2, 2),
    ]


def test_an_input_with_a_value_of_its_own_is_a_constant() -> None:
    """As IR version 3 wrote every initializer."""
    model = _model("[n] d = Bernoulli(w) [a] y = Mul(x, d)", inputs="float[1,4,6,6] x, float[1,4,6,6] w")
    weight = model.graph.inputs[1]
    weight.const_value = onnx_ir.tensor(np.ones((1, 4, 6, 6), np.float32), name="w")
    model.graph.register_initializer(weight)
    profile = load_target("tensorrt").profile
    found = partition(model, check_model(model, profile), profile)
    assert (found.nodes, found.on_target, found.unfolded) == (1, 1, 1)


def test_a_cut_at_the_end_leaves_one_island() -> None:
    assert _cut("[a] r = Relu(x) [b] s = Abs(r) [bad] y = Bernoulli(s)").islands == 1


def test_the_change_that_helps_most_is_named_first() -> None:
    found = _cut("""
        [a] r = Relu(x) [b1] s = Bernoulli(r) [c] t = Abs(s) [b2] u = Bernoulli(t) [d] v = Abs(u)
        [e] w = acme.Thing(v) [f] y = Abs(w)
    """)
    assert (found.on_target, found.islands) == (4, 4)
    assert [(change.op_type, change.nodes, change.islands, change.on_target) for change in found.changes] == [
        ("Bernoulli", ("b1", "b2"), 2, 6),
        ("Thing", ("e",), 3, 5),
    ]


def test_an_operator_that_is_only_slow_cuts_too() -> None:
    """onnxruntime runs on the CPU what its CUDA provider has no kernel for."""
    found = _cut("[a] r = Relu(x) [bad] s = LpNormalization(r) [c] y = Abs(s)", "gpu")
    assert (found.on_target, found.islands) == (2, 2)
    assert found.changes[0].rule == "on-cpu"


def test_slow_nodes_that_run_there_cut_nothing() -> None:
    assert _cut("[p] y = AveragePool<kernel_shape = [1, 1], ceil_mode = 1>(x)").verdict.startswith("The whole model")


def test_what_follows_from_constants_is_not_counted() -> None:
    found = _cut("[k] c = Constant<value_float = 2.0>() [n] d = Bernoulli(c) [a] y = Mul(x, d)")
    assert (found.nodes, found.on_target, found.islands) == (1, 1, 1)


def test_a_node_with_a_body_is_cut_by_a_node_of_it() -> None:
    found = _cut("""
        [a] r = Relu(x) [k] c = Constant<value = bool {1}>()
        [if] s = If(c) <then_branch = t () => (float[1,4,6,6] u) { [in] u = Bernoulli(r) },
                        else_branch = e () => (float[1,4,6,6] v) { v = Abs(r) }>
        [b] y = Abs(s)
    """)
    assert (found.nodes, found.on_target, found.islands) == (3, 2, 2)
    assert found.changes[0].nodes == ("in",)


def test_a_refused_node_of_constants_has_to_be_folded_first() -> None:
    found = _cut("[k] c = Constant<value_float = 2.0>() [n] d = Det(c) [a] y = Mul(x, d)")
    assert (found.on_target, found.unfolded) == (1, 1)
    assert found.verdict == (
        "The whole model runs on tensorrt: 1 node, but 1 constant node must be folded first: --passes cleanup."
    )
    found = _cut("[k] c = Constant<value_float = 2.0>() [n] d = Det(c) [m] e = Det(d) [a] r = Mul(x, e) [b] y = Det(r)")
    assert (found.on_target, found.unfolded) == (1, 2)
    assert found.verdict.endswith(" in 1 island. But 2 constant nodes must be folded first: --passes cleanup.")


def test_a_node_of_constants_that_is_only_slow_is_folded_as_it_loads() -> None:
    found = _cut("[k] c = Constant<value_float = 2.0>() [n] d = LpNormalization(c) [a] y = Mul(x, d)", "gpu")
    assert (found.on_target, found.unfolded) == (1, 0)


def test_two_nodes_of_one_name_are_two_nodes() -> None:
    """Names are unique in files that were loaded, not in graphs that were made."""
    model = _model("[a] r = Bernoulli(x) [b] s = Relu(r) [c] t = Bernoulli(s) [d] y = Abs(t)")
    for node in model.graph:
        node.name = "same"
    profile = load_target("tensorrt").profile
    found = partition(model, check_model(model, profile), profile)
    assert (found.nodes, found.on_target, found.islands) == (4, 2, 2)


def test_a_call_is_cut_by_a_node_of_its_function() -> None:
    model = text_model("""
        <ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        g (float[2] x) => (float[2] y) { [a] r = mine.Outer(x) [b] s = Relu(r) [c] y = mine.Outer(s) }
        <domain: "mine", opset_import: ["" : 21, "mine" : 1]> Outer (p) => (q) { q = mine.Inner(p) }
        <domain: "mine", opset_import: ["" : 21]> Inner (p) => (q) { [bad] q = Bernoulli(p) }
    """)
    profile = load_target("tensorrt").profile
    found = partition(model, check_model(model, profile), profile)
    assert (found.nodes, found.on_target, found.islands) == (3, 1, 1)
    assert [change.nodes for change in found.changes] == [("bad",)]


def test_a_model_that_is_refused_as_a_whole_says_so() -> None:
    model = _model("y = Relu(x)")
    model.opset_imports[""] = 8
    profile = load_target("tensorrt").profile
    found = partition(model, check_model(model, profile), profile)
    assert found.verdict == "tensorrt refuses the model as a whole: opset 8 lies outside 9 to 24."
    assert found.brief == "tensorrt refuses the model as a whole."


@pytest.mark.parametrize("count", [0, 1, 5])
def test_islands_are_one_more_than_cuts_in_a_chain(count: int) -> None:
    body = "v0 = Relu(x) " + "".join(f"b{i} = Bernoulli(v{i}) v{i + 1} = Relu(b{i}) " for i in range(count))
    assert _cut(f"{body} y = Abs(v{count})").islands == count + 1


def test_it_is_all_plain_values() -> None:
    found = _cut("[a] r = Relu(x) [bad] s = Bernoulli(r) [c] y = Abs(s)")
    assert found.to_json() == {**dataclasses.asdict(found), "verdict": found.verdict}
