"""A small fixed network that tells how fast the machine is right now.

A processor's speed moves: its clock follows its temperature, and a core shares its units with what runs beside it on
the same one, which CPU time does not show. Timed next to what is measured, then as now, the yardstick takes both out.
"""

from __future__ import annotations

import statistics

import numpy as np

from onnxpress.targets.calibration.micro_models import Chain, chain_model
from onnxpress.targets.runtimes.base import Prepared, Runtime, race

__all__ = ["Yardstick", "call_milliseconds"]

# Convolutions of three sizes, about a third of a millisecond on one core of a server, held by its cache.
_CHAINS = (Chain(16, 16, 24, (3, 3)), Chain(32, 96, 14), Chain(64, 64, 7, (3, 3)))
_ROUNDS = 12


class Yardstick:
    """The network in a runtime."""

    def __init__(self, runtime: Runtime) -> None:
        """Errors: see `Runtime.prepare`."""
        model = chain_model(_CHAINS)
        feeds = {str(value.name): np.full([int(size) for size in value.shape or ()], 0.5, np.float32)  # type: ignore[arg-type]
                 for value in model.graph.inputs}  # fmt: skip
        self._runtime = runtime
        self.prepared: Prepared = runtime.prepare(model, feeds)

    def milliseconds(self) -> float:
        """Return what it takes now: the median of a few runs."""
        found = race(self._runtime, {"": self.prepared}, rounds=_ROUNDS, warmup=2)[""]
        return statistics.median(found.cpu_ms or found.wall_ms)


def call_milliseconds(runtime: Runtime) -> float:
    """Return what a run costs that computes next to nothing."""
    model = chain_model([Chain(1, 1, once=True)])
    feeds = {str(value.name): np.full((1, 1), 0.5, np.float32) for value in model.graph.inputs}
    found = race(runtime, {"": runtime.prepare(model, feeds)}, rounds=10 * _ROUNDS, warmup=_ROUNDS)[""]
    return statistics.median(found.cpu_ms or found.wall_ms)
