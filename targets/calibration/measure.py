"""Time the small models on a runtime: what each of their steps took, beside what it pays for in the cost estimate."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.data import open_data
from onnxpress.passes.base import Context
from onnxpress.passes.instrument import Progress
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import Target
from onnxpress.targets.calibration.micro_models import (
    CONV_CHAINS,
    ELEMENTWISE,
    ONCE,
    PRODUCT_CHAINS,
    Chain,
    batches,
    chain_model,
    elementwise_model,
)
from onnxpress.targets.calibration.yardstick import Yardstick, call_milliseconds
from onnxpress.targets.prediction import Charge, charges
from onnxpress.targets.runtimes.base import NodeTime, Runtime
from onnxpress.targets.schema import Quantization

__all__ = ["Measurement", "Sample", "measure"]

_ROUNDS = 12  # of a visit
_TURNS, _MOST_TURNS = 4, 10  # of visits: to all, and to those that were always disturbed
_DISTURBED = 1.06  # times the usual of the yardstick
_CHAINS_AT_ONCE = 2  # few, so that their weights stay in the cache as those of a small network do
_SIZES = ((16, 16), (16, 48), (64, 28), (64, 56), (192, 14))  # channels and side of elementwise operators
_INT8 = "quantize-int8{placement=all,tail=int8,method=minmax,bias_correction=false,error_samples=2}"
_BORDERS = ("QuantizeLinear", "DequantizeLinear")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A step that was timed. charges: what it is made of. name, kind: for people. working_set_bytes: of its model."""

    name: str
    kind: str
    seconds: float
    charges: tuple[Charge, ...]
    working_set_bytes: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What was timed, all at the speed of the machine that nothing disturbs. call_ms: of a run of nothing."""

    samples: tuple[Sample, ...]
    call_ms: float


def measure(target: Target, runtime: Runtime, progress: Progress) -> Measurement:
    """Return samples of every kind of work in float32 and, where the target computes in integers, in int8.

    Every model is visited several times, seconds apart, and those for which no visit found the machine undisturbed, as
    the yardstick tells, a few times more.

    Raises:
        UsageError, RuntimeRefusalError: see `Runtime.prepare`.
    """
    yardstick = Yardstick(runtime)
    jobs = list(_jobs(target.profile.quantization))
    with progress.task("preparing small models", total=len(jobs)) as task:
        series = []
        for job in jobs:
            series.append(_Series(job, target, runtime))
            task.advance()
    for turn in range(_MOST_TURNS):
        usual = yardstick.milliseconds if turn else 0.0
        left = [each for each in series if turn < _TURNS or each.yardstick_ms > _DISTURBED * usual]
        with progress.task(f"timing small models, turn {turn + 1}", total=len(left)) as task:
            for each in left:
                each.visit(yardstick)
                task.advance()
    usual = yardstick.milliseconds
    samples = (sample for each in series for sample in each.samples(usual))
    return Measurement(tuple(samples), call_milliseconds(runtime))


@dataclasses.dataclass(frozen=True)
class _Job:
    name: str
    model: Callable[[], onnx_ir.Model]
    integer: bool


def _jobs(quantization: Quantization) -> Iterator[_Job]:
    # The lowering pads integers in a way of its own.
    carried = quantization.carry - {"Pad"}
    for integer in (False, True) if quantization.compute else (False,):
        precision = "int8" if integer else "float32"
        for part in batches(CONV_CHAINS, _CHAINS_AT_ONCE):
            yield _Job(f"convolutions in {precision}", _chains(part), integer)
        for part in batches(PRODUCT_CHAINS, 1):  # one at a time: whether weights stay in the cache is up to their size
            yield _Job(f"products in {precision}", _chains(part), integer)
        for name, work in ELEMENTWISE.items():
            if not integer or work.operator in carried:
                yield _Job(f"{name} in {precision}", _elements(name, integer or work.after_conv), integer)


def _chains(part: Sequence[Chain]) -> Callable[[], onnx_ir.Model]:
    return lambda: chain_model(part)


def _elements(name: str, between_convs: bool) -> Callable[[], onnx_ir.Model]:
    return lambda: elementwise_model(name, _SIZES, between_convs=between_convs)


def _inputs(model: onnx_ir.Model, count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {str(value.name): [int(size) for size in value.shape or ()] for value in model.graph.inputs}  # type: ignore[arg-type]
    return {name: rng.standard_normal((count, *shape)).astype(np.float32) for name, shape in shapes.items()}


def _quantized(model: onnx_ir.Model, target: Target) -> onnx_ir.Model:
    """Return the model in integers, as the target's own lowering writes it. Its numbers and samples mean nothing."""
    data = open_data(_inputs(model, 2, seed=1), model=model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        quantized, _ = PassManager(build(_INT8)).run(model, Context(constraints=target.constraints, data=data))
    target.lower(quantized)
    return quantized


@dataclasses.dataclass(frozen=True)
class _Visit:
    """Times by step. yardstick_ms: what the yardstick took about then, the slower of before and behind."""

    yardstick_ms: float
    steps: list[NodeTime]


class _Series:
    """A small model, loaded, and what visits to it found."""

    def __init__(self, job: _Job, target: Target, runtime: Runtime) -> None:
        model = job.model()
        self._model = _quantized(model, target) if job.integer else model
        self._paid = charges(self._model, target.profile)
        feeds = {name: array[0] for name, array in _inputs(self._model, 1, seed=2).items()}
        self._prepared = runtime.prepare(self._model, feeds)
        self._visits: list[_Visit] = []

    def visit(self, yardstick: Yardstick) -> None:
        before = yardstick.sample()
        steps = self._prepared.node_times(_ROUNDS)
        self._visits.append(_Visit(max(before, yardstick.sample()), steps))

    @property
    def yardstick_ms(self) -> float:
        """Of the quietest visit."""
        return min(each.yardstick_ms for each in self._visits)

    def samples(self, usual_ms: float) -> Iterator[Sample]:
        """Yield the least of each step's times in quiet visits, at the speed where the yardstick takes `usual_ms`."""
        slowed = max(1.0, self.yardstick_ms / usual_ms)
        quiet = [each.steps for each in self._visits if each.yardstick_ms <= _DISTURBED * self.yardstick_ms]
        least = [min(met, key=lambda step: step.milliseconds) for met in zip(*quiet, strict=True)]
        work = {node.name for node in self._model.graph if node.op_type not in _BORDERS}
        paid, borders = self._paid, 0.0
        for step in least:
            seconds = step.milliseconds / 1e3 / slowed
            mine = [name for name in step.origins if name in work]
            if not mine:
                borders += seconds
            elif seconds and _is_steady(mine[0]):
                found = tuple(paid.nodes[name] for name in mine)
                yield Sample(mine[0], step.kind, seconds, found, paid.working_set_bytes)
        moved = tuple(charge for name, charge in paid.nodes.items() if name not in work)
        if borders:
            kinds = (*moved, *paid.conversions.values())
            yield Sample("conversions", "conversions", borders, kinds, paid.working_set_bytes)


def _is_steady(name: str) -> bool:
    """Whether a node has its own kind around it: the first ones meet the model's input, the last ones its output."""
    return not name.endswith(("_abs", "_neg")) and ("_0_" not in name or name.startswith(ONCE))
