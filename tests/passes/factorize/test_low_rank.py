"""low-rank and separable: budgets, what is declined and why, records, and that nothing is ever broken."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.analysis.divergence import Divergence
from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.encodings import Sparse
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.model_io import to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints, Precision
from onnxpress.passes.factorize import substitution
from onnxpress.passes.factorize.low_rank import LowRank
from onnxpress.passes.factorize.separable import Separable
from onnxpress.targets.base import load_target
from tests.ir.analysis.channel_graphs import BLOCKS, random_model
from tests.passes.residual_net import residual_data, residual_net
from tests.support import Array, fill_weights, random_feeds, run, text_model


def _run(
    kind: type[LowRank | Separable],
    model: onnx_ir.Model,
    *,
    data: DataSource | None = None,
    constraints: Constraints | None = None,
    **options: Any,
) -> Rewrites:
    context = Context(constraints=constraints or Constraints(), data=residual_data() if data is None else data)
    record = kind(**options).run(model, context)
    infer_shapes(model)
    return record


def _reasons(record: Rewrites) -> dict[str, str]:
    return {declined.name: declined.reason for declined in record.declined}


# Budgets.


@pytest.mark.parametrize("kind", [LowRank, Separable])
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_the_budget_is_met_in_the_model_itself(kind: type[LowRank | Separable], budget: str) -> None:
    model, before = residual_net(), cost(residual_net())
    options: dict[str, Any] = {budget: 0.6}
    record = _run(kind, model, **options)
    assert getattr(cost(model), budget) <= 0.6 * getattr(before, budget)
    assert record.sites and all(site.after.macs < site.before.macs for site in record.sites)
    verify(model)
    assert interface(model) == interface(residual_net())
    saved = sum(site.before.macs - site.after.macs for site in record.sites)
    assert before.macs - cost(model).macs == saved
    biases = 8 if all(site.name != "conv2" for site in record.sites) else 0  # what a refit gave it
    saved = sum(site.before.params - site.after.params for site in record.sites)
    assert before.params - cost(model).params == saved - biases


def test_ratio_is_the_share_of_what_can_be_split() -> None:
    model, before = residual_net(), cost(residual_net())
    record = _run(LowRank, model, ratio=0.5, include=["conv1", "conv2"])
    able = {node.name: node.macs for node in before.nodes if node.name in ("conv1", "conv2")}
    assert before.macs - cost(model).macs >= 0.5 * sum(able.values())
    assert {site.name for site in record.sites} <= set(able)


def test_energy_takes_the_cheapest_form_of_each_operator_within_the_error() -> None:
    found = {}
    for energy in (0.999, 0.9, 0.6):
        model = residual_net()
        record = _run(LowRank, model, energy=energy, repair=False, sweeps=1)
        assert all(site.error["predicted_error"] <= 1 - energy for site in record.sites)
        found[energy] = cost(model).macs
    assert found[0.6] < found[0.9] <= found[0.999]


def test_latency_is_the_estimate_of_the_target_and_falls_at_every_site() -> None:
    model, constraints = _wide(), load_target("x86-vnni").constraints
    costs = constraints.costs
    assert costs is not None
    before = sum(costs.node_seconds(node) for node in model.graph)
    record = _run(LowRank, model, data=_wide_data(), constraints=constraints, latency=0.7)
    assert sum(costs.node_seconds(node) for node in model.graph) <= 0.7 * before
    assert all("of the predicted time" in site.detail for site in record.sites)


def test_latency_without_an_estimate_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^low-rank: latency=0\.9 needs a target that estimates time"):
        _run(LowRank, residual_net(), latency=0.9)


def test_out_of_reach_says_what_is_and_that_can_be_asked_for() -> None:
    with pytest.raises(BudgetError) as caught:
        _run(LowRank, residual_net(), macs=0.01)
    assert str(caught.value).startswith(
        "low-rank: macs=0.01 cannot be reached: with 2 of 2 operators in their cheapest"
    )
    reach = float(str(caught.value).split("form, ")[1].split()[0])
    model = residual_net()
    _run(LowRank, model, macs=reach)
    assert cost(model).macs <= reach * cost(residual_net()).macs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy": 0.0}, "low-rank: option energy=0.0: input should be greater than 0"),
        ({"ratio": 1.0}, "low-rank: option ratio=1.0: input should be less than 1"),
        ({"scheme": ["spacial"]}, "low-rank: option scheme"),
        ({"macs": 0.5, "energy": 0.9}, "low-rank: energy and macs are given: give one of energy, ratio"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LowRank(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("options", [{"macs": 1.0}, {"ratio": 0.0}])
def test_nothing_asked_is_nothing_done(options: dict[str, Any]) -> None:
    model = residual_net()
    assert not _run(LowRank, model, **options).modified
    assert to_proto_bytes(model) == to_proto_bytes(residual_net())


def test_max_sites_bounds_the_operators() -> None:
    model = residual_net()
    record = _run(LowRank, model, macs=0.75, max_sites=1)
    assert len(record.sites) == 1
    assert cost(model).macs <= 0.75 * cost(residual_net()).macs


# Data.


def test_without_data_the_weights_alone_are_fitted() -> None:
    blind, informed = residual_net(), residual_net()
    context = Context(constraints=Constraints())
    with pytest.warns(RuntimeWarning, match=r"^low-rank: no data was given, so that forms are fitted to the weights"):
        record = LowRank(macs=0.5).run(blind, context)
    assert all(site.detail.endswith("fitted to the weights alone") for site in record.sites)
    _run(LowRank, informed, macs=0.5)
    divergence = Divergence(residual_net(), residual_data(), samples=48)
    assert divergence.of(informed) < 0.5 * divergence.of(blind)


def test_one_sample_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^low-rank: the data holds a single sample"):
        _run(LowRank, residual_net(), data=residual_data(1))


def test_the_output_error_is_the_measured_one() -> None:
    """Relative to the variance of the original's output, channel by channel, as the predicted one is."""
    model, original = residual_net(), residual_net()
    record = _run(LowRank, model, macs=0.5)
    for each in (model, original):
        for site in record.sites:
            each.graph.outputs.append(next(node for node in each.graph if node.name == site.name).outputs[0])
    feeds = residual_data().head(48).feeds
    outputs = zip(run(model, feeds)[1:], run(original, feeds)[1:], strict=True)
    for site, (found, wanted) in zip(record.sites, outputs, strict=True):
        a = wanted.astype(np.float64)
        variance = np.square(a - a.mean(axis=(0, 2, 3), keepdims=True)).sum()
        assert site.error["output_error"] == pytest.approx(np.square(found - a).sum() / variance, rel=0.02)


def test_the_output_error_does_not_depend_on_the_size_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changed model has other values between, so that other batches fit: both models must get the same ones."""
    errors = [dict(site.error) for site in _run(LowRank, residual_net(), macs=0.5).sites]
    monkeypatch.setattr(substitution, "_LIMIT_BYTES", 100_000)
    again = [dict(site.error) for site in _run(LowRank, residual_net(), macs=0.5).sites]
    for one, other in zip(errors, again, strict=True):
        assert one["output_error"] == pytest.approx(other["output_error"], rel=1e-5)


def test_repair_pays() -> None:
    found = {}
    for repair in (True, False):
        model = residual_net()
        _run(LowRank, model, macs=0.4, repair=repair)
        found[repair] = Divergence(residual_net(), residual_data(), samples=48).of(model)
    assert found[True] < found[False]


def test_the_same_run_gives_the_same_bytes() -> None:
    first, second = residual_net(), residual_net()
    _run(LowRank, first, macs=0.5)
    _run(LowRank, second, macs=0.5)
    assert to_proto_bytes(first) == to_proto_bytes(second)


def test_excluded_operators_keep_their_numbers() -> None:
    model, original = residual_net(), residual_net()
    _run(LowRank, model, macs=0.6, exclude=["conv2", "head"])
    for name in ("w2", "w3", "b3"):
        np.testing.assert_array_equal(_numbers(model, name), _numbers(original, name))


def _numbers(model: onnx_ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_a_shared_bias_becomes_the_operators_own() -> None:
    model = _filled(
        "[a] h = Conv<pads = [1, 1, 1, 1]>(x, w, b) [r] k = Relu(h) [z] y = Conv<pads = [1, 1, 1, 1]>(k, v, b)",
        {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3), "b": (8,)},
    )
    data = open_data(np.random.default_rng(5).standard_normal((40, 8, 9, 9)).astype(np.float32))
    bias, before = _numbers(model, "b").copy(), cost(model)
    record = _run(LowRank, model, data=data, params=0.7, include=["a"], sweeps=1)
    assert [site.name for site in record.sites] == ["a"]
    np.testing.assert_array_equal(_numbers(model, "b"), bias)
    assert cost(model).params <= 0.7 * before.params
    verify(model)


@pytest.mark.parametrize("offset", [1 / 3, 7.7, -123.4])
def test_constant_and_far_off_centre_inputs_are_no_trouble(offset: float) -> None:
    model = _filled(
        "[a] h = Conv(x, w) [z] y = Add(h, c)",
        {"w": (16, 8, 3, 3), "c": (1,)},
        face="g (float[N, 8, 9, 9] x) => (float[N, 16, 7, 7] y)",
    )
    rng = np.random.default_rng(1)
    for spread in (0.0, 1e-3):
        samples = offset * 100 + spread * rng.standard_normal((40, 8, 9, 9))
        samples[:, 0, 0, 0] += np.arange(40)  # the samples differ, most channels do not
        trial = model.clone()
        _run(LowRank, trial, data=open_data(samples.astype(np.float32)), macs=0.5)
        assert all(np.isfinite(array).all() for array in run(trial, {"x": samples[:2].astype(np.float32)}))


def test_dead_channels_and_zero_weights_are_no_trouble() -> None:
    model = residual_net()
    for name in ("w1", "b1"):
        model.graph.initializers[name].const_value = onnx_ir.tensor(np.zeros_like(_numbers(model, name)), name=name)
    for scheme in ("channel", "spatial", "tucker", "cp", "cp-rows"):
        trial = model.clone()
        _run(LowRank, trial, scheme=[scheme], energy=0.5)
        blind = model.clone()
        LowRank(scheme=[scheme], energy=0.5).run(blind, Context(constraints=Constraints()))
        for each in (trial, blind):
            assert all(np.isfinite(array).all() for array in run(each, random_feeds(each)))


def test_unknown_shapes_are_split_by_parameters_and_not_by_macs() -> None:
    """Sequences of any length: a product of rank 4 is found out, whatever its MACs are."""
    rng = np.random.default_rng(0)
    model = text_model(
        f"{_HEADER} g (float[N, S, 24] x) => (float[N, S, 24] y) {{ [p] h = MatMul(x, w) [r] y = Relu(h) }}"
    )
    fill_weights(model, {"w": rng.standard_normal((24, 4)) @ rng.standard_normal((4, 24)) / 10})
    data = open_data([{"x": rng.standard_normal((1, 5, 24)).astype(np.float32)} for _ in range(40)])
    split = model.clone()
    (site,) = _run(LowRank, split, data=data, params=0.4).sites
    assert site.detail.startswith("channel, rank 4") and site.error["output_error"] < 1e-4
    with pytest.raises(UsageError, match=r"^low-rank: no layer of the model has macs to count"):
        _run(LowRank, model.clone(), data=data, macs=0.5)


def test_gemm_before_opset_11_has_its_third_input() -> None:
    model = text_model("""<ir_version: 8, opset_import: ["": 9]> g (float[N, 32] x) => (float[N, 24] y) {
        [d] y = Gemm(x, w, b)
    }""")
    rng = np.random.default_rng(0)
    fill_weights(model, {"w": rng.standard_normal((32, 24)), "b": rng.standard_normal(24)})
    data = open_data(rng.standard_normal((40, 32)).astype(np.float32))
    _run(LowRank, model, data=data, params=0.5)
    assert [len(node.inputs) for node in model.graph] == [3, 3]
    run(model, random_feeds(model))


@pytest.mark.parametrize("kind", [LowRank, Separable])
@pytest.mark.parametrize("target", ["x86-vnni", "mobile-cpu"])
def test_a_latency_budget_holds_among_the_neighbours(kind: type[LowRank | Separable], target: str) -> None:
    """A sum of branches keeps the Relu and the Add behind it from vanishing into their convolution."""
    constraints = load_target(target).constraints
    model = _filled(
        "[a] h = Conv<pads = [1, 1, 1, 1]>(x, w, b) [r] k = Relu(h) [s] m = Conv<pads = [1, 1, 1, 1]>(k, v, b)"
        " [t] n = Add(m, k) [u] y = Relu(n)",
        {"w": (64, 64, 3, 3), "v": (64, 64, 3, 3), "b": (64,)},
        face="g (float[N, 64, 14, 14] x) => (float[N, 64, 14, 14] y)",
    )
    costs = constraints.costs
    assert costs is not None
    before = sum(costs.node_seconds(node) for node in model.graph)
    data = open_data(np.random.default_rng(5).standard_normal((40, 64, 14, 14)).astype(np.float32))
    _run(kind, model, data=data, constraints=constraints, latency=0.6, sweeps=1, allocation="modelled")
    assert sum(costs.node_seconds(node) for node in model.graph) <= 0.6 * before


def test_chains_that_do_not_pay_count_towards_the_budget() -> None:
    model = _filled("[a] h = Conv(x, w) [z] y = Conv(h, v)", {"w": (40, 8, 1, 1), "v": (8, 40, 1, 1)},
                    face="g (float[N, 8, 9, 9] x) => (float[N, 8, 9, 9] y)")  # fmt: skip
    data = open_data(np.random.default_rng(5).standard_normal((40, 8, 9, 9)).astype(np.float32))
    record = _run(LowRank, model, data=data, macs=0.5)
    assert [site.detail for site in record.sites] == ["multiplied out with 'a', as the product is cheaper"]
    untouched = _filled("[a] h = Conv(x, w) [z] y = Conv(h, v)", {"w": (40, 8, 1, 1), "v": (8, 40, 1, 1)},
                        face="g (float[N, 8, 9, 9] x) => (float[N, 8, 9, 9] y)")  # fmt: skip
    with pytest.raises(BudgetError):
        _run(LowRank, untouched, data=data, macs=0.5, exclude=["a"])


# What is declined.


class _Flat:
    """Every operator takes the same time: no chain is faster."""

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        return 1e-6

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        return 0.0


def test_multiple_is_kept_or_nothing_is_done() -> None:
    record = _run(LowRank, residual_net(), macs=0.6, multiple=6)
    ranks = [int(site.detail.split("rank ")[1].split(" ")[0].rstrip(";")) for site in record.sites]
    assert ranks and not any(rank % 6 for rank in ranks)
    with pytest.raises(BudgetError, match=r"no operator has a form that is cheaper$"):
        _run(LowRank, residual_net(), macs=0.6, multiple=1000)


def test_a_form_that_is_not_faster_is_not_taken() -> None:
    constraints = Constraints(target="flat", costs=_Flat())
    model = residual_net()
    record = _run(LowRank, model, constraints=constraints, energy=0.5)
    assert not record.sites
    assert _reasons(record)["conv1"] == "no form of it has fewer MACs and is faster on flat"
    with pytest.raises(BudgetError, match=r"no operator has a form that is cheaper$"):
        _run(LowRank, model, constraints=constraints, macs=0.5)
    assert to_proto_bytes(model) == to_proto_bytes(residual_net())


_HEADER = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.mark.parametrize(
    ("body", "shapes", "reason"),
    [
        ("[t] y = ConvTranspose(x, w)", {"w": (8, 8, 3, 3)}, "ConvTranspose has no form here yet"),
        ("[t] y = Conv(x, w)", {"w": (8, 8, 3, 3, 3)}, "its kernel has 3 axes, and forms have two at most"),
        ("[t] y = Conv<group = 2>(x, w)", {"w": (16, 4, 3, 3)}, "its channels lie in 2 groups already"),
        ("[t] y = Conv(x, w)", {"w": (3, 8, 3, 3)}, "its weight has 216 numbers, too few to split"),
        ('[t] y = Conv<auto_pad = "SAME_UPPER">(x, w)', {"w": (8, 8, 3, 3)}, "its auto_pad leaves the padding"),
        ("[t] a = Conv(x, w) [u] b = Conv(x, w) [s] y = Add(a, b)", {"w": (8, 8, 3, 3)}, "it shares its weight 'w'"),
        ("[t] a = Conv(x, w) [u] y = Conv(a, v)", {"w": (8, 8, 3, 3), "v": (8, 8, 3, 3)}, "node 'u' is right next"),
        ("[t] y = Conv(x, x)", {}, "weight 'x' is a graph input"),
        ("[t] y = Conv(x, w) [i] out = Identity(w)", {"w": (8, 8, 3, 3)}, "it shares its weight 'w'"),
    ],
)  # fmt: skip
def test_operators_left_alone_say_why(body: str, shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    model = _filled(body, shapes)
    before = to_proto_bytes(model)
    record = LowRank(energy=0.1, exclude=["u"] if "[u]" in body else []).run(model, Context(constraints=Constraints()))
    assert not record.sites
    assert _reasons(record)["t"].startswith(reason)
    assert to_proto_bytes(model) == before


def test_an_encoded_weight_and_a_body_of_control_flow_are_left_alone() -> None:
    model = _filled("[t] y = Conv(x, w)", {"w": (8, 8, 3, 3)})
    value = model.graph.initializers["w"]
    assert value.const_value is not None
    value.const_value = Sparse.of(value.const_value.numpy())
    value.const_value.name = "w"
    record = LowRank(energy=0.1).run(model, Context(constraints=Constraints()))
    assert _reasons(record)["t"] == "its weight 'w' is encoded already"
    body = """
        [choice] y = If (c) <
            then_branch = t () => (float[N, 32] p) { [t] p = MatMul(x, w) },
            else_branch = e () => (float[N, 32] q) { [e] q = Relu(x) }
        >
    """
    model = _filled(body, {"w": (32, 32)}, face="g (float[N, 32] x, bool c) => (float[N, 32] y)")
    record = LowRank(energy=0.1).run(model, Context(constraints=Constraints()))
    assert _reasons(record)["t"] == "it lies in the body of a control flow node"


def _filled(
    body: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    face: str = "g (float[N, 8, 9, 9] x) => (float[N, C, H, W] y)",
) -> onnx_ir.Model:
    """Return a model of `body` with seeded weights of these shapes; those of one name are one."""
    model = text_model(f"{_HEADER} {face} {{ {body} }}")
    rng = np.random.default_rng(0)
    fill_weights(
        model,
        {name: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()},
    )
    return model


def test_a_selector_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^low-rank: exclude='conv9' matches no node\. Did you mean"):
        _run(LowRank, residual_net(), exclude=["conv9"])


def test_a_model_without_linear_operators_cannot_meet_a_budget() -> None:
    model = text_model(f"{_HEADER} g (float[N, 4] x) => (float[N, 4] y) {{ [r] y = Relu(x) }}")
    infer_shapes(model)
    with pytest.raises(BudgetError) as caught:
        LowRank(macs=0.5).run(model, Context(constraints=Constraints()))
    assert str(caught.value) == "low-rank: macs=0.5 cannot be reached: the model has no linear operator"


# Any graph.


def _wide() -> onnx_ir.Model:
    """Two 3x3 convolutions, wide enough that x86 gains from splitting them."""
    return _filled(
        "[one] a = Conv<pads = [1, 1, 1, 1]>(x, w) [relu] b = Relu(a) [two] y = Conv<pads = [1, 1, 1, 1]>(b, v)",
        {"w": (64, 32, 3, 3), "v": (32, 64, 3, 3)},
        face="g (float[N, 32, 14, 14] x) => (float[N, 32, 14, 14] y)",
    )


def _wide_data() -> DataSource:
    rng = np.random.default_rng(1)
    return open_data(rng.standard_normal((40, 32, 14, 14)).astype(np.float32))


@settings(max_examples=8, deadline=None)
@given(
    blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=3),
    head=st.sampled_from(["conv", "flatten", "pool"]),
    seed=st.integers(0, 2**16),
    kind=st.sampled_from([LowRank, Separable]),
)
def test_any_graph_stays_whole(blocks: list[str], head: str, seed: int, kind: type[LowRank | Separable]) -> None:
    model = random_model(blocks, seed, head=head)
    before = interface(model)
    feeds = [random_feeds(model, index, batch=1) for index in range(6)]
    expected = [array.shape for array in run(model, feeds[0])]
    record = _run(kind, model, data=open_data(feeds), energy=0.5)
    verify(model)
    assert interface(model) == before
    outputs = run(model, feeds[0])
    assert [array.shape for array in outputs] == expected
    assert all(np.isfinite(array).all() for array in outputs)
    assert record.sites or record.declined
