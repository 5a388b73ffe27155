"""prune-blocks: which blocks there are, which go first, what is left, and what the repair wins back."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxpress.passes.prune.prune_blocks as prune_blocks
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Declined, Rewrites
from onnxpress.passes.constraints import Constraints, Precision
from onnxpress.passes.prune.prune_blocks import PruneBlocks
from onnxpress.passes.registry import get_pass
from tests.support import Array, random_feeds, run, text_model

_DEMO = Path(__file__).parents[3] / "tools" / "demo"
_HEADER = '<ir_version: 8, opset_import: ["": 17]>'
_CHANNELS = 4

# Two residual blocks behind a stem, then class scores. w0 [4, 3, 3, 3]; w1 to w4 [4, 4, 3, 3]; w5 [5, 4].
_BODY = """
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
    [relu] r = Relu (s)
    [conv1] a = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
    [relu1] b = Relu (a)
    [conv2] c = Conv <pads = [1, 1, 1, 1]> (b, w2)
    [add1] d = Add (r, c)
    [relu2] e = Relu (d)
    [conv3] f = Conv <pads = [1, 1, 1, 1]> (e, w3)
    [add2] g = Add (f, e)
    [pool] p = GlobalAveragePool (g)
    [flat] q = Flatten (p)
    [head] out = Gemm <transB = 1> (q, w5)
"""


def _weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    square = (_CHANNELS, _CHANNELS, 3, 3)
    shapes = {
        "w0": (_CHANNELS, 3, 3, 3), "w1": square, "w2": square, "w3": square, "b1": (_CHANNELS,), "w5": (5, _CHANNELS),
    }  # fmt: skip
    return {name: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}


def _model(
    body: str = _BODY,
    weights: dict[str, Array] | None = None,
    *,
    inputs: str = "float[N, 3, 5, 7] x",
    outputs: str = "float[N, 5] out",
) -> onnx_ir.Model:
    """A model from ONNX text; those of `weights` that the body names become its initializers."""
    used = {name: array for name, array in (weights or _weights()).items() if f"{name}," in body or f"{name})" in body}
    extra = "".join(f", float {name}" for name in used)
    model = text_model(f"{_HEADER}\nnet ({inputs}{extra}) => ({outputs})\n{{ {body} }}")
    for value in [value for value in model.graph.inputs if value.name in used]:
        model.graph.inputs.remove(value)
        tensor = onnx_ir.tensor(used[str(value.name)].astype(np.float32), name=value.name)
        value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(used[str(value.name)].shape)
        value.const_value = tensor
        model.graph.register_initializer(value)
    return load(model)


def _data(model: onnx_ir.Model, count: int = 24, seed: int = 1) -> DataSource:
    return open_data(random_feeds(model, seed, batch=count), model=model)


def _prune(model: onnx_ir.Model, data: DataSource | None = None, costs: Any = None, **options: Any) -> Rewrites:
    """Run the pass and check what holds after every run."""
    before = interface(model)
    constraints = Constraints(costs=costs)
    rewrites = PruneBlocks(**options).run(model, Context(constraints=constraints, data=data or _data(model)))
    verify(model)
    assert interface(model) == before
    read = {value for node in model.graph for value in node.inputs}
    assert all(value in read for value in model.graph.initializers.values())
    return rewrites


def _nodes(model: onnx_ir.Model) -> list[str]:
    return [f"{node.name}: {node.op_type} {node.inputs[0].name}" for node in model.graph if node.inputs[0]]


def _reasons(rewrites: Rewrites) -> dict[str, str]:
    return {declined.name: declined.reason for declined in rewrites.declined}


# What is removed.


def test_a_block_goes_and_its_input_takes_its_place() -> None:
    model = _model()
    rewrites = _prune(model, include=["conv1"], ratio=0.9, repair=False)
    assert _nodes(model) == [
        "stem: Conv x",
        "relu: Relu s",
        "relu2: Relu r",
        "conv3: Conv e",
        "add2: Add f",
        "pool: GlobalAveragePool g",
        "flat: Flatten p",
        "head: Gemm q",
    ]
    assert sorted(model.graph.initializers) == ["w0", "w3", "w5"]
    (site,) = rewrites.sites
    assert (site.name, site.kind, site.detail) == (
        "add1",
        "residual block",
        "without 'conv1', 'relu1', 'conv2', 'add1'",
    )
    assert site.before.params == 2 * 16 * 9 + 4 and site.before.macs == 2 * 16 * 9 * 5 * 7
    assert site.after.params == site.after.macs == site.after.size_bytes == 0
    assert site.error["divergence"] > 0


def test_the_rest_computes_what_the_text_without_the_block_does() -> None:
    body = "\n".join(line for line in _BODY.splitlines() if not any(f"[{n}]" in line for n in ("conv3", "add2")))
    expected, model = _model(body.replace("(g)", "(e)")), _model()
    _prune(model, include=["add2"], ratio=0.9, repair=False)
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(expected, feeds)[0], run(model, feeds)[0])


def test_a_branch_of_zeros_goes_first_and_nothing_changes() -> None:
    weights = _weights() | {"w3": np.zeros((_CHANNELS, _CHANNELS, 3, 3))}
    before, model = _model(weights=weights), _model(weights=weights)
    rewrites = _prune(model, ratio=0.5)
    assert [(site.name, dict(site.error)) for site in rewrites.sites] == [("add2", {"divergence": 0.0})]
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(before, feeds)[0], run(model, feeds)[0])
    assert not _prune(model, max_error=0.0).modified


def test_a_pre_norm_transformer_loses_whole_sublayers() -> None:
    model = _transformer()
    rewrites = _prune(model, ratio=0.9, repair=False)
    assert [site.name for site in rewrites.sites] in (["mixed", "grown"], ["grown", "mixed"])
    assert _nodes(model) == ["last: LayerNormalization x"]


def test_a_layer_of_equal_input_and_output_is_a_block() -> None:
    body = """
        [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
        [relu] r = Relu (s)
        [conv1] a = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
        [relu1] b = Relu (a)
        [pool] p = GlobalAveragePool (b)
        [flat] q = Flatten (p)
        [head] out = Gemm <transB = 1> (q, w5)"""
    model = _model(body)
    rewrites = _prune(model, ratio=0.9)
    assert [(site.name, site.kind) for site in rewrites.sites] == [("conv1", "layer")]
    assert _nodes(model)[1:3] == ["relu: Relu s", "pool: GlobalAveragePool r"]


def test_copies_of_the_shortcut_go_with_the_block() -> None:
    body = _BODY.replace("d = Add (r, c)", "d = Add (i, c)").replace("[conv2]", "[copy] i = Identity (r)\n [conv2]")
    model = _model(body)
    _prune(model, include=["add1"], ratio=0.9)
    assert "copy" not in {node.name for node in model.graph}


def test_a_graph_output_keeps_its_name() -> None:
    body = "[stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)\n [conv1] a = Conv <pads = [1, 1, 1, 1]> (s, w1)\n"
    model = _model(body + "[add] y = Add (s, a)", outputs="float[N, 4, 5, 7] y")
    rewrites = _prune(model, ratio=0.9, repair=False)
    assert _nodes(model) == ["stem: Conv x"] and model.graph.outputs[0].name == "y"
    assert [site.name for site in rewrites.sites] == ["add"]


def test_a_block_inside_another_goes_with_it() -> None:
    body = """
        [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
        [conv1] a = Conv <pads = [1, 1, 1, 1]> (s, w1, b1)
        [conv2] b = Conv <pads = [1, 1, 1, 1]> (a, w2)
        [inner] c = Add (a, b)
        [outer] d = Add (s, c)
        [pool] p = GlobalAveragePool (d)
        [flat] q = Flatten (p)
        [head] out = Gemm <transB = 1> (q, w5)"""
    negated = np.zeros((_CHANNELS, _CHANNELS, 3, 3))
    negated[range(_CHANNELS), range(_CHANNELS), 1, 1] = -1.0  # so that inner gives 0, and its branch does not
    model = _model(body, _weights() | {"w2": negated})
    rewrites = _prune(model, ratio=0.5)
    assert [site.name for site in rewrites.sites] == ["outer"]
    assert _reasons(rewrites) == {"inner": "gone with 'outer', which held it"}


# Near misses: the reason, and the model unchanged byte for byte.


def _near_misses() -> dict[str, tuple[str, str, str]]:
    """Name of the clause -> the body that breaks it, the Add, the reason."""
    tail = """
        [pool] p = GlobalAveragePool (d)
        [flat] q = Flatten (p)
        [head] out = Gemm <transB = 1> (q, w5)"""
    head = "[stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)\n [relu] r = Relu (s)\n"
    conv = "[conv1] a = Conv <pads = [1, 1, 1, 1]> (r, w1)\n"
    return {
        "projection": (
            f"{head}{conv}[short] t = Conv <pads = [1, 1, 1, 1]> (r, w2)\n [add] d = Add (t, a)\n{tail}",
            "its shortcut transforms 'r' by 'short'",
            "residual block",
        ),
        "two networks": (
            f"{head}{conv}[neg] n = Neg (x)\n [other] t = Conv <pads = [1, 1, 1, 1]> (n, w0)\n"
            f"[max] m = Max (a, r)\n [add] d = Add (t, m)\n{tail}",
            "neither of its operands is the input of the other's branch",
            "residual block",
        ),
        "second entry": (
            f"{head}{conv}[mul] m = Mul (a, s)\n [add] d = Add (r, m)\n{tail}",
            "its branch reads 's' beside the shortcut 'r'",
            "residual block",
        ),
        "second exit": (
            f"{head}{conv}[relu1] b = Relu (a)\n [add] e = Add (r, b)\n [more] d = Mul (e, a)\n{tail}",
            "value 'a' of its branch is also used by 'more'",
            "residual block",
        ),
        "the result is used twice": (
            f"{head}{conv}[add] e = Add (r, a)\n [more] d = Mul (e, a)\n{tail}",
            "value 'a' of its branch is also used by 'more'",
            "residual block",
        ),
        "no linear operator": (
            f"{head}[gate] a = Sigmoid (r)\n [add] d = Add (r, a)\n{tail}",
            "its branch has no linear operator",
            "residual block",
        ),
        "broadcast": (
            f"{head}[mean] m = GlobalAveragePool (r)\n [conv1] a = Conv <kernel_shape = [1, 1]> (m, w6)\n"
            f"[add] d = Add (r, a)\n{tail}",
            "its input 'r' is [N, 4, 5, 7] and 'a' is [N, 4, 1, 1]",
            "residual block",
        ),
    }


@pytest.mark.parametrize("clause", _near_misses())
def test_an_add_that_is_no_block_is_declined(clause: str) -> None:
    body, reason, kind = _near_misses()[clause]
    model = _model(body, _weights() | {"w6": np.ones((4, 4, 1, 1))})
    before = to_proto_bytes(model)
    rewrites = _prune(model, ratio=0.9)
    assert rewrites.declined[0] == Declined("add", kind, reason)
    assert not rewrites.modified and to_proto_bytes(model) == before


def test_a_value_of_the_branch_that_the_graph_gives_stays() -> None:
    model = _model(outputs="float[N, 5] out, float[N, 4, 5, 7] a")
    rewrites = _prune(model, include=["add1", "type:Gemm"], ratio=0.9)
    assert _reasons(rewrites)["add1"] == "value 'a' of its branch is an output of the graph"
    assert not rewrites.modified


def test_an_input_cannot_take_the_name_of_an_output() -> None:
    body = "[conv] a = Conv <pads = [1, 1, 1, 1]> (x, w9)\n [add] y = Add (x, a)"
    model = _model(body, {"w9": np.ones((3, 3, 3, 3))}, outputs="float[N, 3, 5, 7] y")
    rewrites = _prune(model, ratio=0.9)
    assert _reasons(rewrites)["add"] == "graph output 'y' needs a node of its own graph behind it"
    assert not rewrites.modified


def test_a_branch_with_a_body_stays() -> None:
    body = """
        [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w0)
        [conv1] a = Conv <pads = [1, 1, 1, 1]> (s, w1)
        [flag] k = Constant <value = bool {1}> ()
        [either] b = If (k) <
            then_branch = one () => (float[N, 4, 5, 7] t) { [then] t = Relu (a) },
            else_branch = two () => (float[N, 4, 5, 7] e) { [else] e = Neg (a) }
        >
        [add] y = Add (s, b)"""
    model = _model(body, outputs="float[N, 4, 5, 7] y")
    rewrites = _prune(model, ratio=0.9)
    assert _reasons(rewrites)["add"] == "node 'either' (If) of its branch has a body"
    assert not rewrites.modified


def test_a_model_without_blocks_says_so() -> None:
    model = _model("[stem] s = Conv (x, w0)\n [flat] out = Flatten (s)")
    before = to_proto_bytes(model)
    rewrites = _prune(model)
    reason = "it has no residual block that could go, and no layer of equal input and output"
    assert rewrites.declined == [Declined("model", "model", reason)]
    assert not rewrites.modified and to_proto_bytes(model) == before


def test_outputs_that_cannot_be_measured_keep_every_block() -> None:
    model = _model(
        _BODY.replace("out = Gemm", "z = Gemm") + "[top] out = ArgMax <axis = 1> (z)", outputs="int64[N, M] out"
    )
    rewrites = _prune(model)
    assert _reasons(rewrites)["model"] == "none of its outputs is of floats, by which a removal could be measured"
    assert not rewrites.modified


# Budgets and bounds.


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.2, 0), (0.25, 1), (0.7, 1), (0.9, 2)])
def test_the_ratio_counts_blocks(ratio: float, count: int) -> None:
    rewrites = _prune(_model(), ratio=ratio)
    assert len(rewrites.sites) == count
    assert len(rewrites.declined) == 2 - count


def test_without_a_budget_the_ratio_is_a_quarter() -> None:
    rewrites = _prune(_model())
    assert len(rewrites.sites) == 1
    assert ", and ratio=0.25 (1 of 2 blocks) is met" in rewrites.declined[0].reason


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
def test_macs_and_params_are_met(share: float) -> None:
    for subject in ("macs", "params"):
        model = _model()
        whole = getattr(cost(model), subject)
        options: dict[str, Any] = {subject: share}
        _prune(model, **options)
        assert getattr(cost(model), subject) <= share * whole


def test_a_budget_out_of_reach_is_refused_and_the_model_is_whole() -> None:
    model = _model()
    before = to_proto_bytes(model)
    with pytest.raises(BudgetError) as error:
        _prune(model, macs=0.01)
    assert str(error.value) == (
        "prune-blocks: macs=0.01 cannot be met: without all 2 blocks that may go, 0.201 of the MACs remains. "
        "Ask for 0.201 or more, or use another pass too"
    )
    assert to_proto_bytes(model) == before


@dataclasses.dataclass(frozen=True)
class _Costs:
    """A second for each Conv, nothing for the rest."""

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        return float(node.op_type == "Conv")

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        return 0.0


def test_latency_is_that_of_the_cost_model() -> None:
    model = _model()
    _prune(model, costs=_Costs(), latency=0.5)  # of four convolutions
    assert sum(node.op_type == "Conv" for node in model.graph) == 2


def test_latency_needs_a_cost_model() -> None:
    with pytest.raises(UsageError) as error:
        _prune(_model(), latency=0.5)
    assert str(error.value) == (
        "prune-blocks: latency needs a target that predicts time, and 'any' does not. "
        "Name one, such as --target host-cpu, or give macs instead"
    )


def test_max_sites_and_max_error_hold_removals_back() -> None:
    rewrites = _prune(_model(), ratio=0.9, max_sites=1)
    assert len(rewrites.sites) == 1
    assert rewrites.declined[0].reason.endswith(", and max_sites=1 is reached")
    assert _reasons(_prune(_model(), ratio=0.9, max_sites=0)) == dict.fromkeys(
        ["add1", "add2"], "max_sites=0 is reached"
    )
    model = _model()
    before = to_proto_bytes(model)
    rewrites = _prune(model, ratio=0.9, max_error=0.0)
    assert not rewrites.modified and to_proto_bytes(model) == before
    assert all(declined.reason.endswith(", more than max_error=0") for declined in rewrites.declined)


def test_an_excluded_node_keeps_its_block() -> None:
    rewrites = _prune(_model(), ratio=0.9, exclude=["conv2"])
    assert [site.name for site in rewrites.sites] == ["add2"]
    assert _reasons(rewrites) == {"add1": "node 'conv2' is excluded by 'conv2'"}
    rewrites = _prune(_model(), ratio=0.9, include=["conv2"])
    assert [site.name for site in rewrites.sites] == ["add1"]
    assert _reasons(rewrites) == {"add2": "not in include"}


def test_two_budgets_are_refused() -> None:
    with pytest.raises(UsageError) as error:
        PruneBlocks(ratio=0.3, macs=0.5)
    assert str(error.value) == "prune-blocks: ratio and macs are given: give one of ratio, macs, params, latency"


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"ratio": -0.1}, {"macs": 0.0}, {"params": 1.1}, {"samples": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=rf"^prune-blocks: option '?{next(iter(options))}"):
        PruneBlocks(**options)


def test_it_needs_data() -> None:
    assert get_pass("prune-blocks")().needs_data
    with pytest.raises(UsageError) as error:
        PruneBlocks().run(_model(), Context())
    assert str(error.value) == (
        "prune-blocks: needs calibration data and none was given. "
        "Give a few hundred real samples: --data samples.npz (data=... in Python)"
    )


# Selection.


def test_the_block_that_is_missed_least_goes_first() -> None:
    weights = _weights()
    weights["w2"] = 0.05 * weights["w2"]
    rewrites = _prune(_model(weights=weights), ratio=0.5)
    assert [site.name for site in rewrites.sites] == ["add1"]
    weights = _weights()
    weights["w3"] = 0.05 * weights["w3"]
    rewrites = _prune(_model(weights=weights), ratio=0.5)
    assert [site.name for site in rewrites.sites] == ["add2"]


def test_of_many_candidates_the_nearest_to_identity_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_blocks, "_CANDIDATES", 1)
    weights = _weights()
    weights["w3"] = 0.05 * weights["w3"]
    rewrites = _prune(_model(weights=weights), ratio=0.5)
    assert [site.name for site in rewrites.sites] == ["add2"]
    assert _reasons(rewrites) == {"add1": "not measured: 1 others of 2 candidates change their input less"}
    rewrites = _prune(_model(weights=weights), ratio=0.9)
    assert [site.name for site in rewrites.sites] == ["add2", "add1"]


def test_equal_runs_give_equal_models() -> None:
    first, second = _model(), _model()
    records = [_prune(model, ratio=0.9) for model in (first, second)]
    assert records[0] == records[1]
    assert to_proto_bytes(first) == to_proto_bytes(second)


# Repair.


def test_repair_lowers_the_error_of_a_trained_net() -> None:
    divergences = {}
    for repair in (False, True):
        model = load(_DEMO / "digits.onnx")
        data = open_data(_DEMO / "calibration.npz", model=model)
        for name in ("cleanup", "fold-batchnorm"):
            get_pass(name)().run(model, Context(data=data))
        rewrites = _prune(model, data, repair=repair, include=["block_add"], ratio=0.9)
        assert [site.kind for site in rewrites.sites] == ["residual block"]
        divergences[repair] = dict(rewrites.sites[0].error)
    assert divergences[False]["divergence"] == divergences[True]["divergence"]
    assert divergences[True]["divergence_repaired"] < 0.1 * divergences[True]["divergence"]


def test_a_repair_that_does_not_help_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: onnx_ir.Model, *args: Any, **options: Any) -> None:
        value = model.graph.initializers["w5"]
        value.const_value = onnx_ir.tensor(np.full((5, _CHANNELS), 9.0, np.float32), name="w5")
        node = next(node for node in model.graph if node.name == "head")
        node.resize_inputs(3)
        bias = onnx_ir.val("late", const_value=onnx_ir.tensor(np.arange(5, dtype=np.float32), name="late"))
        model.graph.register_initializer(bias)
        node.replace_input_with(2, bias)

    plain, model = _model(), _model()
    _prune(plain, ratio=0.5, repair=False)
    monkeypatch.setattr(prune_blocks, "repair_sequentially", spoil)
    rewrites = _prune(model, ratio=0.5)
    assert set(rewrites.sites[0].error) == {"divergence"}
    assert to_proto_bytes(plain) == to_proto_bytes(model)


# Generated nets.


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 2)), min_size=1, max_size=4),
    ratio=st.sampled_from([0.25, 0.5, 0.9]),
    seed=st.integers(0, 99),
)
def test_generated_nets_stay_valid(blocks: list[tuple[bool, bool, int]], ratio: float, seed: int) -> None:
    """Blocks of one or two convolutions, the Add's operands either way round, activation behind it or not."""
    lines, value, weights = ["[stem] v0 = Conv <pads = [1, 1, 1, 1]> (x, w0)"], "v0", _weights(seed)
    for index, (swapped, activated, depth) in enumerate(blocks):
        inner = value
        for step in range(depth):
            weights[f"k{index}{step}"] = _weights(seed + index)["w1"]
            lines.append(f"[c{index}{step}] h{index}{step} = Conv <pads = [1, 1, 1, 1]> ({inner}, k{index}{step})")
            inner = f"h{index}{step}"
        operands = f"{inner}, {value}" if swapped else f"{value}, {inner}"
        lines.append(f"[add{index}] y{index} = Add ({operands})")
        value = f"y{index}"
        if activated:
            lines.append(f"[relu{index}] z{index} = Relu ({value})")
            value = f"z{index}"
    lines += [f"[pool] p = GlobalAveragePool ({value})", "[flat] q = Flatten (p)"]
    model = _model("\n".join([*lines, "[head] out = Gemm <transB = 1> (q, w5)"]), weights)
    before = cost(model)
    rewrites = _prune(model, ratio=ratio)
    assert len(rewrites.sites) == math.floor(ratio * len(blocks) + 0.5)
    assert len(rewrites.sites) + len(rewrites.declined) == len(blocks)
    after = cost(model)
    assert before.macs - after.macs == sum(site.before.macs for site in rewrites.sites)
    assert all(np.isfinite(output).all() for output in run(model, random_feeds(model)))


def _transformer() -> onnx_ir.Model:
    """One pre-norm layer of attention and MLP. x: [N, T, 8]."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8)) / 3 for name in ("wq", "wk", "wv", "wo", "wu", "wd")}
    weights |= {name: np.ones(8) for name in ("g1", "g2", "g3")}
    body = """
        [norm] n = LayerNormalization (x, g1)
        [query] q = MatMul (n, wq)
        [key] k = MatMul (n, wk)
        [turn] kt = Transpose <perm = [0, 2, 1]> (k)
        [value] v = MatMul (n, wv)
        [scores] s = MatMul (q, kt)
        [soft] a = Softmax <axis = -1> (s)
        [weighted] h = MatMul (a, v)
        [project] o = MatMul (h, wo)
        [mixed] y = Add (x, o)
        [norm2] m = LayerNormalization (y, g2)
        [up] u = MatMul (m, wu)
        [act] r = Relu (u)
        [down] d = MatMul (r, wd)
        [grown] z = Add (d, y)
        [last] out = LayerNormalization (z, g3)"""
    return _model(body, weights, inputs="float[N, T, 8] x", outputs="float[N, T, 8] out")
