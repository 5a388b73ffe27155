"""What every runtime promises, asked of each that is installed here."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import Batch
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.runtimes.base import Runtime, race, sample_runner
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from tests.passes.residual_net import residual_net
from tests.support import Array, random_feeds, run

# Sums of float32 in another order, and Winograd's transforms, over the three layers of the net.
_RELATIVE_ERROR = 1e-3


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    found = load_runtime(request.param)
    try:
        found.version()
    except UsageError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def net() -> onnx_ir.Model:
    return residual_net()


def _feeds(net: onnx_ir.Model, seed: int = 0) -> dict[str, Array]:
    return random_feeds(net, batch=1, seed=seed)


def test_it_is_called_what_it_calls_itself() -> None:
    assert {name: load_runtime(name).name for name in RUNTIMES} == {name: name for name in RUNTIMES}
    assert len({load_runtime(name).title for name in RUNTIMES}) == len(RUNTIMES)


def test_it_computes_what_the_model_says_again_and_again(runtime: Runtime, net: onnx_ir.Model) -> None:
    first, second = _feeds(net), _feeds(net, seed=1)
    prepared = runtime.prepare(net, first)
    results = []
    for feeds in (first, second):
        prepared.feed(feeds)
        prepared.compute()
        results.append(prepared.fetch())
    for feeds, found in zip((first, second), results, strict=True):
        assert list(found) == [value.name for value in net.graph.outputs]
        for expected, got in zip(run(net, feeds), found.values(), strict=True):
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() <= _RELATIVE_ERROR * np.abs(expected).max()
    assert prepared.size_bytes > 0


def test_what_was_fed_is_kept_and_results_are_copies(runtime: Runtime, net: onnx_ir.Model) -> None:
    feeds = _feeds(net)
    prepared = runtime.prepare(net, feeds)
    prepared.compute()
    first = prepared.fetch()
    kept = {name: array.copy() for name, array in first.items()}
    prepared.compute()
    prepared.feed(_feeds(net, seed=1))
    prepared.compute()
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_second_run_gives_the_same(runtime: Runtime, net: onnx_ir.Model) -> None:
    prepared = runtime.prepare(net, _feeds(net))
    results = []
    for _ in range(2):
        prepared.compute()
        results.append(prepared.fetch())
    for first, second in zip(*(each.values() for each in results), strict=True):
        np.testing.assert_array_equal(first, second)


def test_wrong_feeds_are_named(runtime: Runtime, net: onnx_ir.Model) -> None:
    feeds = _feeds(net)
    (name,) = feeds
    with pytest.raises(InputError, match=f"input {name!r} has no data. Given: other"):
        runtime.prepare(net, {"other": feeds[name]})
    prepared = runtime.prepare(net, feeds)
    with pytest.raises(InputError, match=f"input {name!r} has no data. Given: nothing"):
        prepared.feed({})


def test_inputs_are_told_and_any_number_of_samples_runs(runtime: Runtime, net: onnx_ir.Model) -> None:
    feeds = random_feeds(net, batch=5)
    prepared = runtime.prepare(net, _feeds(net))
    assert {name: port.shape for name, port in prepared.ports.items()} == {
        name: (1, *array.shape[1:]) for name, array in feeds.items()
    }
    (found,), (expected,) = sample_runner(net, prepared).run(Batch(feeds)).values(), run(net, feeds)
    assert np.abs(found - expected).max() <= _RELATIVE_ERROR * np.abs(expected).max()


def test_models_take_turns(runtime: Runtime, net: onnx_ir.Model) -> None:
    models = {name: runtime.prepare(net, _feeds(net)) for name in ("a", "b")}
    found = race(runtime, models, rounds=5, warmup=1)
    told = 0 if runtime.single_thread_clock is None else 5
    assert [(len(each.wall_ms), len(each.cpu_ms)) for each in found.values()] == [(5, told), (5, told)]
    assert all(each.median_ms >= 0 for each in found.values())
    assert race(runtime, models, rounds=5, threads=2)["a"].cpu_ms == ()


def test_steps_are_told_or_none_are(runtime: Runtime, net: onnx_ir.Model) -> None:
    prepared = runtime.prepare(net, _feeds(net))
    steps = prepared.node_times(5)
    assert all(step.name and step.kind and step.milliseconds >= 0 for step in steps)
    assert sum(prepared.layers().values()) >= 3 or not prepared.layers()


def test_a_runtime_that_names_a_clock_of_steps_tells_steps(runtime: Runtime, net: onnx_ir.Model) -> None:
    steps = runtime.prepare(net, _feeds(net)).node_times(5)
    assert runtime.node_clock is None if not steps else runtime.node_clock in ("CPU", "elapsed", "GPU")


def test_an_unknown_name_is_told_with_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_runtime("open-vino")
    assert str(caught.value) == (
        f"unknown runtime 'open-vino'. Did you mean 'openvino'? There are: {', '.join(RUNTIMES)}"
    )
