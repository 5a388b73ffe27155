"""What every runtime promises, asked of each that is installed here."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import Batch
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.runtimes.base import Port, Runtime, race, sample_runner
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from tests.passes.residual_net import residual_net
from tests.support import Array, random_feeds, run, text_model
from tests.targets.runtimes.conversion import graph

# Sums of float32 in another order, and Winograd's transforms, over the three layers of the net.
_RELATIVE_ERROR = 1e-3
_CONVS = ("stem", "conv1", "conv2")  # of the net
_TELL_ORIGINS = ("onnxruntime-cpu", "openvino")
_REFUSAL = r"^\S+( [\d.]+)?: (pnnx )?does not (load|take|convert|build) the model: "


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
    (name,) = feeds
    prepared = runtime.prepare(net, feeds)
    results = []
    for timed in (True, False):
        prepared.compute(timed=timed)
        (found,) = prepared.fetch().values()
        results.append(found.copy())
        found[:] = 0
        feeds[name][:] = 0  # the caller's own again
    np.testing.assert_array_equal(results[0], results[1])
    kept = prepared.fetch()
    prepared.feed(_feeds(net, seed=1))
    prepared.compute()
    np.testing.assert_array_equal(next(iter(kept.values())), results[0])
    assert (next(iter(prepared.fetch().values())) != results[0]).any()


def test_wrong_feeds_are_named(runtime: Runtime, net: onnx_ir.Model) -> None:
    feeds = _feeds(net)
    (name,) = feeds
    shape = list(feeds[name].shape)
    wrong = {
        f"input {name!r} has no data. Given: other": {"other": feeds[name]},
        f"input {name!r} has no data. Given: nothing": {},
        f"input {name!r}: the model takes float32 {shape}, and the data is float32 {[*shape[:-1], shape[-1] + 1]}": {
            name: np.zeros([*shape[:-1], shape[-1] + 1], np.float32)
        },
        f"input {name!r}: the model takes float32 {shape}, and the data is int64 {shape}": {
            name: feeds[name].astype(np.int64)
        },
    }
    prepared = runtime.prepare(net, feeds)
    for message, given in wrong.items():
        for take in (prepared.feed, lambda given: runtime.prepare(net, given)):
            with pytest.raises(InputError) as caught:
                take(given)
            assert str(caught.value) == message
    two = {name: np.repeat(feeds[name], 2, axis=0)}  # the model's batch is open, what was prepared is not
    with pytest.raises(InputError) as caught:
        prepared.feed(two)
    assert str(caught.value) == (
        f"input {name!r}: the model takes float32 {shape}, and the data is float32 {[2, *shape[1:]]}"
    )


def test_open_sizes_are_those_of_the_feeds(runtime: Runtime) -> None:
    model = graph("c = Conv (x, w) y = Relu (c)", "float[N, 3, H, W] x")
    feeds = {"x": np.random.default_rng(3).standard_normal((2, 3, 5, 7)).astype(np.float64)}
    prepared = runtime.prepare(model, feeds)
    assert prepared.ports == {"x": Port((2, 3, 5, 7), np.dtype(np.float32))}
    prepared.compute()
    (found,), (expected,) = prepared.fetch().values(), run(model, {"x": feeds["x"].astype(np.float32)})
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= _RELATIVE_ERROR * np.abs(expected).max()


def test_what_no_runtime_knows_is_a_refusal(runtime: Runtime) -> None:
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[1,3] x) => (float[1,3] y) { y = acme.Do (x) }'
    )
    with pytest.raises(RuntimeRefusalError, match=_REFUSAL):
        runtime.prepare(model, random_feeds(model))


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
    assert all(each.median_ms > 0 for each in found.values())
    assert race(runtime, models, rounds=5, threads=2)["a"].cpu_ms == ()


def test_steps_are_told_or_none_are(runtime: Runtime, net: onnx_ir.Model) -> None:
    prepared = runtime.prepare(net, _feeds(net))
    steps = prepared.node_times(5)
    assert bool(steps) == (runtime.node_clock is not None)
    assert prepared.layers().total() >= len(_CONVS)
    if steps:
        assert all(step.name and step.kind and step.milliseconds >= 0 for step in steps)
        assert len(steps) >= len(_CONVS) and sum(step.milliseconds for step in steps) > 0
    told = [name for step in steps for name in step.origins]
    assert set(_CONVS) <= set(told) or not told
    assert len(told) == len(set(told))
    assert bool(told) == (runtime.name in _TELL_ORIGINS)


def test_a_runtime_that_names_a_clock_of_steps_tells_steps(runtime: Runtime, net: onnx_ir.Model) -> None:
    steps = runtime.prepare(net, _feeds(net)).node_times(5)
    assert runtime.node_clock is None if not steps else runtime.node_clock in ("CPU", "elapsed", "GPU")


def test_an_unknown_name_is_told_with_near_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_runtime("open-vino")
    assert str(caught.value) == (
        f"unknown runtime 'open-vino'. Did you mean 'openvino'? There are: {', '.join(RUNTIMES)}"
    )
