"""Time the small models on a runtime: what each of their steps took, beside what it pays for in the cost estimate."""

from __future__ import annotations

import dataclasses
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
    PRODUCT_CHAINS,
    Chain,
    batches,
    chain_model,
    elementwise_model,
)
from onnxpress.targets.prediction import Charge, charges
from onnxpress.targets.runtimes.base import NodeTime, Runtime

__all__ = ["Sample", "measure"]

_ROUNDS = 24
_CHAINS_AT_ONCE = 12
_SIZES = ((16, 16), (16, 48), (64, 28), (64, 56), (192, 14))  # channels and side of elementwise operators
_INT8 = "quantize-int8{placement=all,tail=int8,method=minmax,bias_correction=false,error_samples=2}"
_LAYOUT_STEPS = ("ReorderInput", "ReorderOutput")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A step that was timed. charges: what it is made of. name, kind: for people."""

    name: str
    kind: str
    seconds: float
    charges: tuple[Charge, ...]


def measure(
    target: Target, runtime: Runtime, tell: Callable[[str, int, int], None] = lambda what, done, total: None
) -> list[Sample]:
    """Return samples of every kind of work in float32 and, where the target computes in integers, in int8.

    tell: is told what comes, how many models are done, and of how many.

    Raises:
        UsageError, RuntimeRefusalError: see `Runtime.prepare`.
    """
    jobs = list(_jobs(bool(target.profile.quantization.compute)))
    found: list[Sample] = []
    for index, job in enumerate(jobs):
        tell(job.name, index, len(jobs))
        model = job.model()
        if job.integer:
            model = _quantized(model, target)
        found += _samples(model, target, runtime)
    tell("", len(jobs), len(jobs))
    return found


@dataclasses.dataclass(frozen=True)
class _Job:
    name: str
    model: Callable[[], onnx_ir.Model]
    integer: bool


def _jobs(with_integers: bool) -> Iterator[_Job]:
    for integer in (False, True) if with_integers else (False,):
        precision = "int8" if integer else "float32"
        for kind, chains in (("convolutions", CONV_CHAINS), ("products", PRODUCT_CHAINS)):
            for part in batches(chains, _CHAINS_AT_ONCE):
                yield _Job(f"{kind} in {precision}", _chains(part), integer)
        for name, work in ELEMENTWISE.items():
            if name == "Pad" and integer:
                continue  # the lowering pads integers in a way of its own
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
    for step in steps:
        mine = tuple(paid.nodes[name] for name in step.origins if name in paid.nodes)
        if mine and step.milliseconds:
            yield Sample(step.origins[0], step.kind, step.milliseconds / 1e3, mine)
    layout = sum(step.milliseconds for step in steps if _is_layout(step))
    if layout and paid.conversions:
        yield Sample("layout", "layout", layout / 1e3, tuple(paid.conversions.values()))


def _is_layout(step: NodeTime) -> bool:
    return not step.origins and step.kind in _LAYOUT_STEPS
