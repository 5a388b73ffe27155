"""The statistics of timing: what disturbs runs, how rounds are spread, and what a profiler adds."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.targets.runtimes.timing import Latency, bursts, take_turns, undisturbed, without_overhead


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_disturbed_runs_do_not_move_the_figure(share: float) -> None:
    rng = random.Random(0)
    times = [rng.gauss(1.0, 0.01) * (1.45 if rng.random() < share else 1.0) for _ in range(300)]
    assert undisturbed(times) == pytest.approx(1.0, abs=0.03)


def test_a_single_fast_run_does_not_make_the_figure() -> None:
    assert undisturbed([1.0] * 20 + [0.1]) == 1.0
    assert undisturbed([2.0]) == 2.0
    assert undisturbed([3.0, 1.0]) == 2.0


def test_cpu_time_is_preferred() -> None:
    assert Latency((5.0,) * 9, (2.0,) * 9).undisturbed_ms == 2.0
    assert Latency((5.0,) * 9).undisturbed_ms == 5.0


def test_rounds_are_spread_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    found = list(bursts(100, 2.0))
    assert found == [5] * 20
    assert slept == pytest.approx([0.1] * 19)
    slept.clear()
    for size in bursts(100, 2.0):
        now += 0.03 * size  # as slow as that, they need no pauses
    assert not slept
    assert list(bursts(7, 0.0)) == [5, 2] and not slept


def test_rounds_behind_a_pause_are_not_timed() -> None:
    said: list[str] = []
    found = take_turns({"a": lambda: said.append("a")}, rounds=40, warmup=0, min_seconds=0.01)
    assert len(found["a"].wall_ms) == 40
    assert len(said) == 40 + 8 * 2


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20), st.floats(0.1, 50.0))
def test_overhead_is_taken_off_all_alike(times: list[float], total: float) -> None:
    found = without_overhead(times, total)
    assert all(0 <= less <= time for less, time in zip(found, times, strict=True))
    if sum(times) <= total:
        assert found == times
    else:
        assert sum(found) == pytest.approx(total, rel=1e-6)
        taken = [time - less for less, time in zip(found, times, strict=True) if less > 0]
        assert max(taken, default=0) - min(taken, default=0) < 1e-6
