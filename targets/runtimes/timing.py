"""Time models side by side, whatever runs them.

The models take turns inside each round, in an order shuffled with a fixed seed, so that drift of the machine hits all
alike. With one thread a runtime computes on the calling thread, whose CPU time a busy machine stretches far less than
wall time. Prefer it.

CPU time is not free of others: what runs on the same core's second thread, or fills the cache that cores share, slows
a run by up to 1.5, for milliseconds or for seconds. A shared machine is met in either state, and a median with it. How
fast a model is where nothing disturbs it is told by the fastest runs (`undisturbed`), if they were looked for long
enough: rounds are best spread over seconds, in bursts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Latency", "bursts", "speedup", "take_turns", "undisturbed", "without_overhead"]

_LEAST_ROUNDS = 5
_BURSTS, _LEAST_ROUNDS_OF_BURST = 20, 5
_WARMUP_IN_BURST = 2  # rounds that are not timed: a pause leaves the caches to others
_QUIET_SHARE, _LEAST_QUIET = 0.05, 3


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

    @property
    def undisturbed_ms(self) -> float:
        """`undisturbed` of the same."""
        return undisturbed(self.cpu_ms or self.wall_ms)


def speedup(before: Latency, after: Latency) -> float:
    """Return how many times faster `after` is than `before`; both come from one `take_turns`.

    CPU time: ratio of medians. Wall time: median of the per-round quotients, because neighbours in time share
    the machine's state.
    """
    if before.cpu_ms and after.cpu_ms:
        return statistics.median(before.cpu_ms) / statistics.median(after.cpu_ms)
    return statistics.median(a / b for a, b in zip(before.wall_ms, after.wall_ms, strict=True))


def undisturbed(times: Sequence[float]) -> float:
    """Return what a run takes where nothing disturbs it: the median of the fastest twentieth, of 3 at least.

    times: of each run, in any unit, one at least.
    """
    return statistics.median(sorted(times)[: max(_LEAST_QUIET, round(_QUIET_SHARE * len(times)))])


def bursts(rounds: int, seconds: float) -> Iterator[int]:
    """Yield sizes of bursts of rounds, which are spread over so much time at least.

    Pauses lie between bursts. Where the rounds themselves take as long, there are none.
    """
    size = max(_LEAST_ROUNDS_OF_BURST, math.ceil(rounds / _BURSTS))
    started = time.perf_counter()
    for done in range(0, rounds, size):
        if (left := started + seconds * done / rounds - time.perf_counter()) > 0:
            time.sleep(left)
        yield min(size, rounds - done)


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
    min_seconds: float = 0.0,
    cpu_clock: Callable[[], float] | None = time.thread_time,
) -> dict[str, Latency]:
    """Time each of `runs`, which computes once, in every round.

    A run that returns a float has timed itself, in milliseconds: no clock of this process sees a GPU's work alone.

    warmup: rounds that are not timed. max_seconds: end early after about this time, warm-up not counted, but not before
    5 rounds. min_seconds: spread the rounds over this time, in bursts. In a burst one model's rounds follow each other,
    behind a few that are not timed: taking turns by the round, each would find its data driven out of the cache by the
    others. cpu_clock: seconds of whatever computes; None where none tells.
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    took = 0.0
    for _ in range(warmup):
        started = time.perf_counter()
        for run in runs.values():
            run()
        took = time.perf_counter() - started
    if max_seconds is not None and took:
        rounds = min(rounds, max(_LEAST_ROUNDS, math.ceil(max_seconds / took)))
    order, shuffler = list(runs), random.Random(seed)
    clock = cpu_clock or time.perf_counter
    deadline = None if max_seconds is None else time.perf_counter() + max_seconds
    done, warmup = 0, _WARMUP_IN_BURST if min_seconds else 0
    for size in bursts(rounds, min_seconds) if min_seconds else itertools.repeat(1, rounds):
        if deadline is not None and done >= _LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        shuffler.shuffle(order)
        for name in order:
            run = runs[name]
            for _ in range(warmup):
                run()
            for _ in range(size):
                cpu_start, wall_start = clock(), time.perf_counter()
                told = run()
                wall_end, cpu_end = time.perf_counter(), clock()
                wall[name].append(told if isinstance(told, float) else (wall_end - wall_start) * 1e3)
                cpu[name].append((cpu_end - cpu_start) * 1e3)
        done += size
    return {name: Latency(tuple(wall[name]), tuple(cpu[name]) if cpu_clock is not None else ()) for name in runs}
