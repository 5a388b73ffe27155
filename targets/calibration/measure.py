"""Time the small models on a runtime: what each of their steps took, beside what it pays for in the cost estimate."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx_ir

from onnxpress.ir.data import open_data
from onnxpress.passes.base import Context
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
from onnxpress.targets.runtimes.base import Runtime
from onnxpress.targets.schema import Quantization

__all__ = ["Measurement", "Sample", "measure"]

_ROUNDS = 24
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
    """What was timed, all at the speed at which the yardstick takes `yardstick_ms`. call_ms: of a run of nothing."""

    samples: tuple[Sample, ...]
    yardstick_ms: float
    call_ms: float


def measure(
    target: Target, runtime: Runtime, tell: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Measurement:
    """Return samples of every kind of work in float32 and, where the target computes in integers, in int8.

    tell: is told what comes, how many models are done, and of how many.

    Raises:
        UsageError, RuntimeRefusalError: see `Runtime.prepare`.
    """
    jobs = list(_jobs(target.profile.quantization))
    yardstick = Yardstick(runtime)
    found: list[Sample] = []
    paces: list[float] = []
    for index, job in enumerate(jobs):
        tell(job.name, index, len(jobs))
        model = job.model()
        if job.integer:
            model = _quantized(model, target)
        before = yardstick.milliseconds()
        samples = list(_samples(model, target, runtime))
        pace = (before + yardstick.milliseconds()) / 2
        paces += [pace] * len(samples)
        found += samples
    tell("", len(jobs), len(jobs))
    usual = statistics.median(paces)
    return Measurement(
        tuple(
            dataclasses.replace(sample, seconds=sample.seconds * usual / pace)
            for sample, pace in zip(found, paces, strict=True)
        ),
        usual,
        call_milliseconds(runtime),
    )


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
        # Weights that stay in the core's cache from run to run, one chain in a model, and weights that do not.
        for part in [PRODUCT_CHAINS, *batches(PRODUCT_CHAINS, 1)]:
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


def _samples(model: onnx_ir.Model, target: Target, runtime: Runtime) -> Iterator[Sample]:
    feeds = {name: array[0] for name, array in _inputs(model, 1, seed=2).items()}
    paid = charges(model, target.profile)
    steps = runtime.prepare(model, feeds).node_times(_ROUNDS)
    work = {node.name for node in model.graph if node.op_type not in _BORDERS}
    borders = 0.0
    for step in steps:
        mine = [name for name in step.origins if name in work]
        if not mine:
            borders += step.milliseconds
        elif step.milliseconds and _is_steady(mine[0]):
            found = tuple(paid.nodes[name] for name in mine)
            yield Sample(mine[0], step.kind, step.milliseconds / 1e3, found, paid.working_set_bytes)
    moved = tuple(charge for name, charge in paid.nodes.items() if name not in work)
    if borders:
        kinds = (*moved, *paid.conversions.values())
        yield Sample("conversions", "conversions", borders / 1e3, kinds, paid.working_set_bytes)


def _is_steady(name: str) -> bool:
    """Whether a node of a chain has the chain's kind behind it; the first ones meet the model's input."""
    return "_0_" not in name or name.startswith(ONCE)
