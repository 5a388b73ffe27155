"""Small models, their samples, and a fit that finds the numbers that made them."""

from __future__ import annotations

import collections
import dataclasses

import onnx_ir
import pytest

from onnxpress.passes.instrument import Progress
from onnxpress.targets.base import load_target
from onnxpress.targets.calibration.fit import fit
from onnxpress.targets.calibration.machine import this_machine
from onnxpress.targets.calibration.measure import Measurement, Sample, measure
from onnxpress.targets.calibration.micro_models import (
    CONV_CHAINS,
    ELEMENTWISE,
    PRODUCT_CHAINS,
    Chain,
    batches,
    chain_model,
    elementwise_model,
)
from onnxpress.targets.calibration.yardstick import Yardstick
from onnxpress.targets.costmodel import RooflineCost
from onnxpress.targets.prediction import charges
from onnxpress.targets.runtimes.base import Feeds, NodeClock, NodeTime, Port
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.schema import Profile
from tests.support import Array, random_feeds, run


def test_a_chain_goes_there_and_back_twice() -> None:
    model = chain_model([Chain(8, 16, 10, (3, 3)), Chain(12, 4, rows=2), Chain(3, 8, 9, (5, 5), stride=2, once=True)])
    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert [node.name for node in layers] == [
        *(f"c{chain}_{repeat}_{way}" for chain in (0, 1) for repeat in (0, 1) for way in ("there", "back")),
        "once2_0_there",
    ]
    assert [tuple(value.shape or ()) for value in model.graph.outputs] == [(1, 8, 10, 10), (2, 12), (1, 8, 5, 5)]


def test_a_residual_chain_adds_what_it_was_given() -> None:
    model = chain_model([Chain(8, 8, 6, (3, 3), residual=True)])
    assert [node.name for node in model.graph if node.op_type == "Add"] == ["c0_0_back_add", "c0_1_back_add"]


@pytest.mark.parametrize("between_convs", [False, True])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_operator_has_a_model_that_runs(name: str, between_convs: bool) -> None:
    model = elementwise_model(name, [(8, 6), (16, 9)], between_convs=between_convs)
    assert [node.op_type for node in model.graph].count(ELEMENTWISE[name].operator) >= 2
    assert len(run(model, random_feeds(model))) == 2


def test_sizes_cover_steps_of_channels_and_every_class() -> None:
    widths = {chain.outputs % 16 for chain in CONV_CHAINS}
    assert 0 in widths and len(widths) > 4
    assert any(chain.is_depthwise for chain in CONV_CHAINS) and any(chain.residual for chain in CONV_CHAINS)
    assert {chain.rows == 1 for chain in PRODUCT_CHAINS} == {True, False}
    assert sum(map(len, batches(CONV_CHAINS, 7))) == len(CONV_CHAINS)


def _true(profile: Profile) -> Profile:
    """A machine whose numbers are others than where the fit starts."""
    assert profile.roofline is not None
    roofline = profile.roofline.model_copy(
        update={
            "conv": profile.roofline.conv.model_copy(update={"float32": 60.0}),
            "gemm": profile.roofline.gemm.model_copy(update={"float32": 30.0}),
            "bandwidth_gb_per_s": 9.0,
            "overhead_us": profile.roofline.overhead_us.model_copy(update={"float32": 6.0}),
        }
    )
    return profile.model_copy(update={"roofline": roofline})


def _measured(profile: Profile) -> Measurement:
    """Times that follow the formula at the numbers of `profile`, one in ten of them twice as long."""
    assert profile.roofline is not None
    samples: list[Sample] = []
    for part in [*batches(CONV_CHAINS, 6), *batches(PRODUCT_CHAINS, 5)]:
        paid = charges(chain_model(part), profile)
        costs = RooflineCost(profile.roofline, profile.quantization, paid.working_set_bytes)
        for name, charge in paid.nodes.items():
            seconds = charge(costs).seconds * (2.0 if len(samples) % 10 == 0 else 1.0)
            if seconds:
                samples.append(Sample(name, "x", seconds, (charge,), paid.working_set_bytes))
    return Measurement(tuple(samples), 0.004)


def test_a_fit_finds_the_numbers_that_made_the_times_in_spite_of_strays() -> None:
    start = load_target("x86-vnni").profile
    truth = _true(start)
    found = fit(start, _measured(truth))
    assert truth.roofline is not None
    assert found.median_error < 0.02
    assert found.roofline.conv.float32 == pytest.approx(60, rel=0.1)
    assert found.roofline.gemm.float32 == pytest.approx(30, rel=0.1)
    assert found.roofline.overhead_us.float32 == pytest.approx(6, rel=0.1)
    assert found.roofline.call_us == 4.0
    assert start.roofline is not None
    assert found.roofline.elements["Softmax"] == start.roofline.elements["Softmax"]  # no sample needs it
    assert found.errors_by_kind()["x"][0] == len(found.samples)


class _Clockwork:
    """A runtime whose steps take all the same time, on a machine that others slow down for most of the time."""

    name, title, single_thread_clock = "clockwork", "A clockwork", None
    node_clock: NodeClock | None = "elapsed"

    def __init__(self) -> None:
        self._clock = 0

    @property
    def milliseconds(self) -> float:
        """Of every step, slower by half in two of three stretches that are longer than a visit."""
        self._clock += 1
        return 1.5 if self._clock // 800 % 3 else 1.0

    def version(self) -> str:
        return "1"

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> _Wound:
        return _Wound(self, model)


@dataclasses.dataclass
class _Wound:
    runtime: _Clockwork
    model: onnx_ir.Model
    size_bytes: int = 1
    ports: dict[str, Port] = dataclasses.field(default_factory=dict)

    def feed(self, feeds: Feeds) -> None: ...

    def compute(self, *, timed: bool = True) -> float:
        return self.runtime.milliseconds

    def fetch(self) -> dict[str, Array]:
        return {}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return [
            NodeTime(node.name or "", node.op_type, self.runtime.milliseconds, (node.name or "",))
            for node in self.model.graph
            if node.op_type != "DequantizeLinear" or node.inputs[0] not in self.model.graph.initializers.values()
        ]


def test_a_machine_that_is_disturbed_is_measured_as_if_it_were_not() -> None:
    found = measure(load_target("x86-vnni"), _Clockwork(), Progress())
    steps = [each.seconds for each in found.samples if each.name != "conversions"]
    assert len(steps) > 500 and max(steps) / min(steps) < 1.02
    assert not any("_0_" in each.name for each in found.samples if not each.name.startswith("once"))
    assert {each.kind for each in found.samples} >= {"Conv", "Gemm", "MaxPool", "conversions"}


def test_the_yardstick_computes() -> None:
    yardstick = Yardstick(load_runtime("onnxruntime-cpu"))
    sampled = [yardstick.sample() for _ in range(4)]
    assert min(sampled) > 0
    assert yardstick.milliseconds == sorted(sampled)[1]


def test_the_machine_is_named() -> None:
    machine = this_machine()
    assert machine.architecture and machine.processor
    assert machine.cache_kib is None or machine.cache_kib > 0
