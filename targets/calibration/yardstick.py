"""A small fixed network that tells how fast the machine is right now.

A processor's speed moves: its clock follows its temperature, and a core shares its units with what runs beside it on
the same one, which CPU time does not show. Timed among what is measured, then as now, the yardstick takes both out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxpress.targets.calibration.micro_models import Chain, chain_model
from onnxpress.targets.runtimes.base import Prepared, Runtime, race
from onnxpress.targets.runtimes.timing import undisturbed

__all__ = ["Yardstick", "call_milliseconds"]

# Convolutions of three sizes, about a third of a millisecond on one core of a server, held by its cache.
_CHAINS = (Chain(16, 16, 24, (3, 3)), Chain(32, 96, 14), Chain(64, 64, 7, (3, 3)))
_RUNS, _WARMUP = 6, 2  # each time: the first meet a cache that others have filled
_CALLS = 120


class Yardstick:
    """The network in a runtime. `sample` it again and again among what is measured."""

    def __init__(self, runtime: Runtime) -> None:
        """Errors: see `Runtime.prepare`."""
        self._runtime, self._prepared = runtime, _prepared(runtime, _CHAINS)
        self._samples: list[float] = []

    def sample(self) -> float:
        """Return the milliseconds that it takes now, and remember them."""
        found = race(self._runtime, {"": self._prepared}, rounds=_RUNS, warmup=_WARMUP)[""]
        self._samples.append(found.undisturbed_ms)
        return self._samples[-1]

    @property
    def milliseconds(self) -> float:
        """What it took where nothing disturbed it, of all samples so far."""
        return undisturbed(self._samples)


def call_milliseconds(runtime: Runtime) -> float:
    """Return what a run costs that computes next to nothing."""
    prepared = _prepared(runtime, [Chain(1, 1, once=True)])
    return race(runtime, {"": prepared}, rounds=_CALLS, warmup=_RUNS)[""].undisturbed_ms


def _prepared(runtime: Runtime, chains: Sequence[Chain]) -> Prepared:
    model = chain_model(chains)
    shapes = {str(value.name): [int(size) for size in value.shape or ()] for value in model.graph.inputs}  # type: ignore[arg-type]
    return runtime.prepare(model, {name: np.full(shape, 0.5, np.float32) for name, shape in shapes.items()})
