"""Time models side by side, whatever runs them.

The models take turns inside each round, in an order shuffled with a fixed seed, so that drift of the machine hits all
alike. With one thread a runtime computes on the calling thread, whose CPU time a busy machine does not stretch: it
repeats within about 5 % where wall time reads 2x. Prefer it.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Latency", "quiet_runs", "speedup", "take_turns", "without_overhead"]

_LEAST_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of one model, one entry per round, in milliseconds.

    wall_ms: elapsed time, or what the run itself told. cpu_ms: CPU time of what computes; empty where no clock tells
    it, as that of the caller does not when more than one thread computed.
    """

    wall_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...] = ()

    @property
    def median_ms(self) -> float:
        """Median of CPU time where it is known, else of wall time."""
        return statistics.median(self.cpu_ms or self.wall_ms)


def speedup(before: Latency, after: Latency) -> float:
    """Return how many times faster `after` is than `before`; both come from one `take_turns`.

    CPU time: ratio of medians. Wall time: median of the per-round quotients, because neighbours in time share
    the machine's state.
    """
    if before.cpu_ms and after.cpu_ms:
        return statistics.median(before.cpu_ms) / statistics.median(after.cpu_ms)
    return statistics.median(a / b for a, b in zip(before.wall_ms, after.wall_ms, strict=True))


def quiet_runs(walls: Sequence[float], warmup: int) -> list[int]:
    """Return, in order, which half of the runs behind the warm-up took least time: the others met something else.

    Times by node are elapsed times, which a busy machine stretches. walls: seconds of each run; more than `warmup`.
    """
    runs = sorted(range(warmup, len(walls)), key=lambda run: walls[run])
    return sorted(runs[: max(1, len(runs) // 2)])


def without_overhead(times: Sequence[float], total: float) -> list[float]:
    """Return `times` less what reading a clock added to each, the same for all, so that their sum is `total` at most.

    A profiler takes microseconds a node, more than small nodes do. No time falls below 0, and what those cannot give
    the others do. times, total: in one unit; times whose sum is not above the total are kept.
    """
    left = list(times)
    while (excess := sum(left) - total) > 1e-9 * total and any(left):
        share = excess / sum(each > 0 for each in left)
        left = [max(0.0, each - share) for each in left]
    return left


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    seed: int = 0,
    max_seconds: float | None = None,
    cpu_clock: Callable[[], float] | None = time.thread_time,
) -> dict[str, Latency]:
    """Time each of `runs`, which computes once, in every round.

    A run that returns a float has timed itself, in milliseconds: no clock of this process sees a GPU's work alone.

    warmup: rounds that are not timed. max_seconds: stop early after this time, warm-up not counted, but never before 5
    rounds. cpu_clock: seconds of whatever computes; None where none tells.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup):
        for run in runs.values():
            run()
    order, shuffler = list(runs), random.Random(seed)
    clock = cpu_clock or time.perf_counter
    deadline = None if max_seconds is None else time.perf_counter() + max_seconds
    for done in range(rounds):
        if deadline is not None and done >= _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        shuffler.shuffle(order)
        for name in order:
            run = runs[name]
            cpu_start, wall_start = clock(), time.perf_counter()
            told = run()
            wall_end, cpu_end = time.perf_counter(), clock()
            wall[name].append(told if isinstance(told, float) else (wall_end - wall_start) * 1e3)
            cpu[name].append((cpu_end - cpu_start) * 1e3)
    return {name: Latency(tuple(wall[name]), tuple(cpu[name]) if cpu_clock is not None else ()) for name in runs}
