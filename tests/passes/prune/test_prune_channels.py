"""prune-channels: what goes, what stays and why, what the repair wins back, and that nothing is ever broken."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.model_io import to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints, Precision
from onnxpress.passes.prune.channel_cuts import ChannelCuts
from onnxpress.passes.prune.prune_channels import PruneChannels
from onnxpress.passes.prune.scores import Score
from onnxpress.targets.base import load_target
from tests.ir.analysis.channel_graphs import BLOCKS, random_model
from tests.passes.residual_net import INNER as _INNER
from tests.passes.residual_net import STREAM as _STREAM
from tests.passes.residual_net import residual_data as _data
from tests.passes.residual_net import residual_net as _model
from tests.passes.residual_net import residual_weights as _weights
from tests.support import random_feeds, run, text_model

_SCORES: tuple[Score, ...] = ("obs", "l1", "l2", "activation", "apoz", "thinet", "lasso", "geometric-median")


def _prune(
    model: onnx_ir.Model, *, data: DataSource | None = None, constraints: Constraints | None = None, **options: Any
) -> Rewrites:
    context = Context(constraints=constraints or Constraints(), data=data or _data())
    return PruneChannels(**options).run(model, context)


def _width(model: onnx_ir.Model, name: str) -> int:
    node = next(node for node in model.graph if node.name == name)
    tensor = constant_tensor(node.inputs[1])
    assert tensor is not None
    return int(tensor.shape.numpy()[0])


# Budgets.


@pytest.mark.parametrize(("budget", "share"), [("macs", 0.6), ("params", 0.5), ("macs", 0.3)])
def test_the_budget_is_met_in_the_model_itself(budget: str, share: float) -> None:
    model = _model()
    before = cost(model)
    options: dict[str, Any] = {budget: share}
    record = _prune(model, **options)
    after = cost(model)
    assert getattr(after, budget) <= share * getattr(before, budget)
    assert record.sites and all(site.after.params < site.before.params for site in record.sites)
    assert all(site.after.macs < site.before.macs and site.after.size_bytes < site.before.size_bytes
               for site in record.sites)  # fmt: skip
    verify(model)
    assert interface(model) == interface(_model())


def test_ratio_is_the_share_of_channels_removed() -> None:
    model = _model()
    _prune(model, ratio=0.5)
    removed = _STREAM - _width(model, "stem") + _INNER - _width(model, "conv1")
    assert removed == (_STREAM + _INNER) // 2


def test_the_default_removes_a_quarter() -> None:
    model = _model()
    _prune(model)
    assert _STREAM - _width(model, "stem") + _INNER - _width(model, "conv1") == (_STREAM + _INNER) // 4


def test_latency_is_the_estimate_of_the_target() -> None:
    model, constraints = _model(), load_target("x86-vnni").constraints
    costs = constraints.costs
    assert costs is not None
    before = sum(costs.node_seconds(node) for node in model.graph)
    _prune(model, constraints=constraints, latency=0.9)
    assert sum(costs.node_seconds(node) for node in model.graph) <= 0.9 * before


def test_latency_without_an_estimate_is_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        _prune(_model(), latency=0.9)
    assert str(caught.value) == (
        "prune-channels: latency=0.9 needs a target that estimates time, and 'any' does not. Give macs instead"
    )


def test_a_budget_out_of_reach_says_what_is() -> None:
    model = _model()
    with pytest.raises(BudgetError) as caught:
        _prune(model, macs=0.001)
    assert str(caught.value) == (
        "prune-channels: macs=0.001 cannot be reached: with every group at the narrowest width, 0.018 remain. "
        "Ask for that or more"
    )
    with pytest.raises(BudgetError, match=r"ratio=0.99 cannot be reached: .* at most 0.916 of the channels can go\."):
        _prune(model, ratio=0.99)
    with pytest.raises(BudgetError) as caught:
        _prune(model, macs=0.05, multiple=4, max_sites=1)
    assert str(caught.value).endswith(
        "0.315 remain. Ask for that or more; multiple=1 allows more widths; a larger max_sites allows more groups"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"macs": 0.5, "include": ["head"]}, "'head': graph output 'y'"),
        ({"macs": 0.5, "exclude": ["*"]}, "'stem': node 'stem': excluded by '*'"),
        ({"ratio": 0.5, "exclude": ["*"]}, "'stem': node 'stem': excluded by '*'"),
        ({"params": 0.5, "score": "bn-scale"}, "score=bn-scale finds no BatchNormalization on them"),
    ],
)
def test_a_budget_with_nothing_to_cut_is_an_error_with_the_reasons(options: dict[str, Any], reason: str) -> None:
    model = _model()
    with pytest.raises(BudgetError) as caught:
        _prune(model, **options)
    assert "cannot be reached: no channel of this model can go (" in str(caught.value)
    assert reason in str(caught.value)
    assert to_proto_bytes(model) == to_proto_bytes(_model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "prune-channels: option ratio=1.0: input should be less than 1"),
        ({"ratio": -0.1}, "prune-channels: option ratio=-0.1: input should be greater than or equal to 0"),
        ({"macs": 0.0}, "prune-channels: option macs=0.0: input should be greater than 0"),
        (
            {"ratio": 0.5, "macs": 0.5},
            "prune-channels: ratio and macs are given: give one of ratio, macs, params, latency",
        ),
    ],
)  # fmt: skip
def test_wrong_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        PruneChannels(**options)
    assert str(caught.value).startswith(message)


def test_no_data_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^prune-channels: needs calibration data and none was given\."):
        PruneChannels().run(_model(), Context())


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (_data(1), "prune-channels: the data holds a single sample, which can fit or measure, not both."),
        (open_data(np.zeros((40, 3, 7, 6), np.float32)), "prune-channels: all 40 calibration samples are equal,"),
    ],
)
def test_samples_that_tell_nothing_are_an_error(samples: DataSource, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _prune(_model(), data=samples)
    assert str(caught.value).startswith(message)


def test_few_samples_are_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"^prune-channels: 5 calibration samples are few"):
        _prune(_model(), data=_data(5))


def test_what_weights_alone_decide_needs_no_data() -> None:
    model, context = _model(), Context()
    PruneChannels(macs=0.6, score="l1", allocation="uniform", repair=False).run(model, context)
    assert cost(model).macs <= 0.6 * cost(_model()).macs
    with_data = _model()
    _prune(with_data, macs=0.6, score="l1", allocation="uniform", repair=False)
    assert to_proto_bytes(model) == to_proto_bytes(with_data)
    for options in ({"repair": True}, {"score": "obs"}, {"allocation": "modelled"}):
        given: dict[str, Any] = {"score": "l1", "allocation": "uniform", "repair": False, **options}
        with pytest.raises(UsageError, match="needs calibration data"):
            PruneChannels(**given).run(_model(), context)


# What goes.


def test_uniform_takes_the_same_share_of_every_group() -> None:
    model = _model()
    record = _prune(model, macs=0.6, allocation="uniform", score="l2", sweeps=1)
    assert [site.name for site in record.sites] == ["stem", "conv1"]
    stem, inner = 1 - _width(model, "stem") / _STREAM, 1 - _width(model, "conv1") / _INNER
    assert 0 <= inner - stem < 1 / _STREAM
    assert cost(model).macs <= 0.6 * cost(_model()).macs


def test_the_divergence_without_repair_is_that_of_the_model_that_comes_out() -> None:
    model, data = _model(), _data()
    record = _prune(model, data=data, macs=0.8, include=["conv1"], repair=False, max_sites=1)
    measured = Divergence(_model(), data, samples=16, skip=32).of(model)
    assert record.sites[0].error["divergence"] == pytest.approx(measured, rel=0.05)


def test_channels_that_say_nothing_go_first_and_leave_no_trace() -> None:
    weights = _weights()
    for channel in (2, 5, 11, 13):  # no reader listens to these
        weights["w2"][:, channel] = 0
    model, feeds = _model(weights), random_feeds(_model(weights))
    expected = run(model, feeds)[0]
    record = _prune(model, macs=0.8, include=["conv1"], repair=False)
    assert [site.name for site in record.sites] == ["conv1"]
    assert record.sites[0].error["divergence"] < 1e-9
    assert record.sites[0].detail == "4 of 16 removed, read by conv2"
    np.testing.assert_allclose(run(model, feeds)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("score", "allocation"), [*((score, "modelled") for score in _SCORES), ("obs", "measured"), ("l1", "uniform")]
)
def test_every_score_and_allocation_meets_the_budget(score: Score, allocation: str) -> None:
    model = _model()
    before = cost(model).macs
    _prune(model, macs=0.6, score=score, allocation=allocation, sweeps=1)
    assert cost(model).macs <= 0.6 * before
    verify(model)


def test_repair_and_order_both_pay() -> None:
    ways: dict[str, dict[str, Any]] = {
        "obs": {},
        "magnitude": {"score": "l2", "allocation": "uniform"},
        "no repair": {"score": "l2", "allocation": "uniform", "repair": False},
    }
    found = {}
    for name, options in ways.items():
        model = _model()
        _prune(model, macs=0.5, **options)
        found[name] = Divergence(_model(), _data(), samples=48).of(model)
    assert found["obs"] < found["magnitude"] < found["no repair"]


def test_the_same_run_gives_the_same_bytes() -> None:
    first, second = _model(), _model()
    _prune(first, macs=0.5)
    _prune(second, macs=0.5)
    assert to_proto_bytes(first) == to_proto_bytes(second)


# What stays, and why.


def _reasons(record: Rewrites) -> dict[str, str]:
    return {declined.name: declined.reason for declined in record.declined}


def test_groups_left_alone_say_why() -> None:
    record = _prune(_model(), macs=0.8, exclude=["conv1"])
    reasons = _reasons(record)
    assert reasons["conv1"] == "node 'conv1': excluded by 'conv1'"
    assert reasons["x"] == "graph input 'x'"
    assert reasons["head"] == "graph output 'y'"


def test_a_selector_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^prune-channels: exclude='conv9' matches no node\. Did you mean"):
        _prune(_model(), exclude=["conv9"])


def test_batchnorm_scales_need_a_batchnorm() -> None:
    record = _prune(_model(), score="bn-scale")
    assert not record.sites
    assert _reasons(record)["conv1"] == (
        "score=bn-scale finds no BatchNormalization on them; run it before fold-batchnorm"
    )


def test_a_width_that_is_not_faster_is_not_cut() -> None:
    class Steps:
        """Time goes in steps of sixteen channels: no width of these groups is faster than the whole."""

        def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
            return 1e-6

        def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
            return 0.0

    model = _model()
    with pytest.raises(BudgetError):
        _prune(model, constraints=Constraints(target="stairs", channel_multiple=4, costs=Steps()), macs=0.5)
    with pytest.raises(BudgetError):
        _prune(model, constraints=Constraints(target="stairs", channel_multiple=4, costs=Steps()), ratio=0.5)
    assert to_proto_bytes(model) == to_proto_bytes(_model())


def test_multiple_is_kept() -> None:
    model = _model()
    _prune(model, ratio=0.5, multiple=4)
    assert _width(model, "stem") % 4 == 0 and _width(model, "conv1") % 4 == 0


def test_max_sites_bounds_the_groups() -> None:
    record = _prune(_model(), macs=0.7, max_sites=1)
    assert len(record.sites) == 1


@pytest.mark.parametrize("share", [{"ratio": 0.0}, {"macs": 1.0}])
def test_nothing_asked_is_nothing_done(share: dict[str, Any]) -> None:
    model = _model()
    assert not _prune(model, **share).modified
    assert to_proto_bytes(model) == to_proto_bytes(_model())


def test_a_model_of_one_layer_has_nothing_to_remove() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3] x) => (float[N, 3] y)
        <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> { [only] y = MatMul(x, w) }
    """)
    rng = np.random.default_rng(0)
    data = open_data([{"x": rng.standard_normal((1, 3)).astype(np.float32)} for _ in range(8)])
    record = _prune(model, data=data, ratio=0.5)
    assert not record.sites
    assert set(_reasons(record).values()) == {"graph input 'x'"}


# Any graph.


@settings(max_examples=6, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3),
    head=st.sampled_from(["conv", "flatten", "pool"]),
    seed=st.integers(0, 2**16),
    ratio=st.sampled_from([0.2, 0.5]),
)
def test_any_graph_stays_whole(blocks: list[str], head: str, seed: int, ratio: float) -> None:
    model = random_model(blocks, seed, head=head)
    before = interface(model)
    feeds = [random_feeds(model, index, batch=1) for index in range(6)]
    expected = [array.shape for array in run(model, feeds[0])]
    try:
        record = _prune(model, data=open_data(feeds), ratio=ratio, sweeps=2)
    except BudgetError:
        return  # too few channels are free in this graph
    verify(model)
    assert interface(model) == before
    outputs = run(model, feeds[0])
    assert [array.shape for array in outputs] == expected
    assert all(np.isfinite(array).all() for array in outputs)
    assert record.sites or record.declined


# What a run promises.


@pytest.mark.parametrize("options", [{"macs": 0.4}, {"macs": 0.4, "allocation": "uniform"}, {"params": 0.72}])
def test_max_sites_bounds_the_groups_of_all_stages(options: dict[str, Any]) -> None:
    model = _model()
    record = _prune(model, max_sites=1, sweeps=1, **options)
    assert len(record.sites) == 1
    (reason,) = (reason for reason in _reasons(record).values() if reason.startswith("kept"))
    assert reason == "kept: max_sites=1, and others save more"


@pytest.mark.parametrize("budget", ["ratio", "macs", "params"])
def test_what_is_told_to_be_in_reach_can_be_asked_for(budget: str) -> None:
    options: dict[str, Any] = {budget: 0.999 if budget == "ratio" else 0.001}
    with pytest.raises(BudgetError) as caught:
        _prune(_model(), **options)
    words = str(caught.value).split(",")[1]
    number = float(next(word for word in words.split() if word[0].isdigit()))
    options = {budget: number, "sweeps": 1}
    assert _prune(_model(), **options).sites


def test_the_samples_that_measure_fit_nothing_until_the_last_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    original = ChannelCuts.repair

    def repair(self: Any, *args: Any, samples: int, **others: Any) -> None:
        fitted.append(samples)
        original(self, *args, samples=samples, **others)

    monkeypatch.setattr(ChannelCuts, "repair", repair)
    _prune(_model(), macs=0.3, error_samples=12)
    assert len(fitted) > 1 and set(fitted[:-1]) == {36} and fitted[-1] == 512


def test_macs_that_nobody_can_count_are_an_error() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N, L, 3] x) => (float[N, L, 3] y)
        <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}, float[4, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3}>
        { [one] h = MatMul(x, w) [two] y = MatMul(h, v) }
    """)
    infer_shapes(model)
    rng = np.random.default_rng(0)
    data = open_data([{"x": rng.standard_normal((1, 5, 3)).astype(np.float32)} for _ in range(8)])
    with pytest.raises(UsageError) as caught:
        _prune(model, data=data, macs=0.5)
    assert str(caught.value).startswith("prune-channels: macs=0.5: no layer of the model has macs to count")


def test_a_model_without_comparable_outputs_names_the_way_out() -> None:
    model = _model()
    (scores,) = model.graph.outputs
    node = onnx_ir.node("ArgMax", [scores], {"axis": 1}, name="class")
    model.graph.append(node)
    node.outputs[0].name, node.outputs[0].dtype = "class", onnx_ir.DataType.INT64
    model.graph.outputs[0] = node.outputs[0]
    infer_shapes(model)
    with pytest.raises(
        UsageError, match=r"^prune-channels: .*measure a divergence of\. allocation=modelled does without"
    ):
        _prune(model, ratio=0.25)
    assert _prune(model, ratio=0.25, allocation="modelled", sweeps=1).sites


@pytest.mark.parametrize("score", ["l1", "l2", "activation", "apoz", "thinet", "obs"])
def test_a_channel_that_says_nothing_goes_first(score: Score) -> None:
    """Channel 11 of the inner ones has no weights and a bias below zero: the Relu behind it gives zeros."""
    weights = _weights()
    weights["b1"] = np.abs(weights["b1"])  # no other channel is silent
    weights["w1"][11], weights["b1"][11], weights["w2"][:, 11] = 0, -1e-3, 1e-6
    model = _model(weights)
    (record,) = _prune(model, ratio=0.05, include=["conv1"], score=score, allocation="modelled", repair=False).sites
    assert record.detail.startswith("1 of 16 removed")
    kept = next(node for node in model.graph if node.name == "conv1").inputs[2]
    tensor = constant_tensor(kept)
    assert tensor is not None and -1e-3 not in tensor.numpy()
