"""Stepwise runs: the values of a plain run, whatever fits the memory, with weights that change behind the stop."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis import stepwise
from onnxpress.ir.analysis.execute import Session
from onnxpress.ir.analysis.stepwise import Stepwise, stepwise_batch_size
from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.model_io import load
from tests.support import Array, text_model


def _chain(batch: str = "N") -> onnx_ir.Model:
    """x -> a -> b -> c -> out, with a shortcut from a to the end and a constant node."""
    return load(
        text_model(
            f"""
            <ir_version: 8, opset_import: ["": 17]>
            net (float[{batch}, 3] x) => (float[{batch}, 3] out)
            <float[3, 3] w1 = {{1, 2, 0, 0, 1, 0, 1, 0, 1}}, float[3, 3] w2 = {{1, 0, 0, 0, 2, 0, 0, 0, 3}}>
            {{ [mul] a = MatMul (x, w1)
               two = Constant <value_float = 2.0> ()
               [relu] b = Relu (a)
               [second] c = MatMul (b, w2)
               [scale] d = Mul (c, two)
               [add] out = Add (d, a) }}
            """
        )
    )


def _source(model: onnx_ir.Model, samples: int = 7) -> tuple[DataSource, Array]:
    x = np.random.default_rng(0).standard_normal((samples, 3)).astype(np.float32)
    return open_data({"x": x}, model=model), x


def _nodes(model: onnx_ir.Model) -> dict[str, onnx_ir.Node]:
    return {node.name or "": node for node in model.graph}


def _read(
    run: Stepwise, values: list[str], stop: onnx_ir.Node, later: list[str], *, after: bool = False
) -> dict[str, Array]:
    batches = list(run.read(values, stop=stop, after=after, later=later))
    assert all(len(array) == samples for samples, arrays in batches for array in arrays.values())
    return {name: np.concatenate([arrays[name] for _, arrays in batches]) for name in values}


@pytest.mark.parametrize("cache_bytes", [0, 100, 1 << 20])
@pytest.mark.parametrize(("batch", "size"), [("N", 1), ("N", 3), ("N", 32), ("1", 1), ("4", 4)])
def test_steps_give_what_a_plain_run_gives(batch: str, size: int, cache_bytes: int) -> None:
    model = _chain(batch)
    nodes = _nodes(model)
    source, x = _source(model)
    run = Stepwise(model, source, batch_size=size, cache_bytes=cache_bytes)
    plain = Session(_chain(), outputs=["a", "b", "d", "out"]).run({"x": x})
    assert np.array_equal(_read(run, ["x"], nodes["mul"], ["b", "d", "out"])["x"], x)
    second = _read(run, ["b", "a"], nodes["second"], ["d", "out"])
    assert np.allclose(second["b"], plain["b"]) and np.allclose(second["a"], plain["a"])
    third = _read(run, ["d"], nodes["scale"], ["out"], after=True)
    assert np.allclose(third["d"], plain["d"])
    assert np.allclose(_read(run, ["out"], nodes["add"], [])["out"], plain["out"])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_weight_behind_the_stop_may_change(cache_bytes: int) -> None:
    model = _chain()
    source, x = _source(model)
    run = Stepwise(model, source, batch_size=3, cache_bytes=cache_bytes)
    before = _read(run, ["b"], _nodes(model)["second"], ["out"])["b"]
    model.graph.initializers["w2"].const_value = onnx_ir.tensor(np.zeros((3, 3), np.float32), name="w2")
    out = _read(run, ["out", "b"], _nodes(model)["add"], [])
    assert np.array_equal(out["b"], before)
    assert np.allclose(out["out"], Session(model, outputs=["a"]).run({"x": x})["a"])


def test_no_part_runs_twice_where_its_values_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _chain()
    nodes = _nodes(model)
    source, _ = _source(model)
    ran: list[list[str]] = []
    piece = stepwise._piece

    def note(*args: object) -> onnx_ir.Model:
        made = piece(*args)  # type: ignore[arg-type]
        ran.append([node.name or "" for node in made.graph if node.op_type != "Constant"])
        return made

    monkeypatch.setattr(stepwise, "_piece", note)
    run = Stepwise(model, source, batch_size=3)
    _read(run, ["b"], nodes["second"], ["d", "out"])
    _read(run, ["d"], nodes["add"], ["out"])
    _read(run, ["out"], nodes["add"], [])
    assert ran == [["second", "scale"], ["add"]]


def test_channels_of_a_held_value_can_be_dropped() -> None:
    model = _chain()
    nodes = _nodes(model)
    source, _x = _source(model)
    run = Stepwise(model, source, batch_size=4)
    b = _read(run, ["b"], nodes["second"], ["c"])["b"]
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    model.graph.initializers["w2"].const_value = onnx_ir.tensor(weight, name="w2")
    run.take("b", [2, 0], axis=1)
    assert np.allclose(_read(run, ["c"], nodes["scale"], [])["c"], b[:, [2, 0]] @ weight)


def test_values_that_bodies_use_are_held_too() -> None:
    model = load(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 3] x) => (float[N, 3] out)
            <bool yes = {1}>
            { [neg] a = Neg (x)
              [relu] b = Relu (x)
              [if] out = If (yes) <
                then_branch = then () => (float[N, 3] t) { t = Add (a, b) },
                else_branch = other () => (float[N, 3] e) { e = Identity (a) }
              > }
            """
        )
    )
    source, x = _source(model)
    run = Stepwise(model, source, batch_size=4)
    _read(run, ["b"], _nodes(model)["if"], ["out"])
    assert np.array_equal(_read(run, ["out"], _nodes(model)["if"], [])["out"], np.maximum(x, 0) - x)


def test_a_limit_on_samples_holds_at_every_step() -> None:
    model = _chain()
    source, _ = _source(model)
    run = Stepwise(model, source, batch_size=2, samples=5)
    for _ in range(2):
        assert len(_read(run, ["b"], _nodes(model)["second"], ["out"])["b"]) == 5


def test_the_batch_is_what_both_models_take() -> None:
    source, _ = _source(_chain())
    assert stepwise_batch_size([_chain(), _chain()], source, ["a"], 1 << 20) == 32
    assert stepwise_batch_size([_chain("4")], source, ["a"], 1 << 20) == 4
    flat = load(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 3] x) => (float[M] out) <int64[1] shape = {-1}> { out = Reshape (x, shape) }
            """
        )
    )
    assert stepwise_batch_size([flat], source, [], 1 << 20) == 1


def test_whole_feeds_are_read_one_by_one() -> None:
    """Samples of [4, 3], all that the model takes at once, stacked or as a list: none is skipped."""
    model = _chain("4")
    feeds = np.random.default_rng(1).standard_normal((6, 4, 3)).astype(np.float32)
    found = []
    for source in (open_data({"x": feeds}, model=model), open_data([{"x": each} for each in feeds], model=model)):
        run = Stepwise(model, source, batch_size=4)
        batches = list(run.read(["a"], stop=_nodes(model)["second"], later=["out"]))
        assert len(batches) == 6
        found.append(np.stack([arrays["a"] for _, arrays in batches]))
        assert len(list(run.read(["out"], stop=_nodes(model)["add"], later=[]))) == 6
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][3], Session(model, outputs=["a"]).run({"x": feeds[3]})["a"])


def test_inputs_of_no_axis_and_bodies_with_inputs_of_their_own() -> None:
    model = load(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 3] x, float s) => (float[N, 3] out)
            <int64 three = {3}, bool yes = {1}>
            { [mul] a = Mul (x, s)
              [loop] b = Loop (three, yes, a) <
                body = step (int64 i, bool cond, float[N, 3] v) => (bool keep, float[N, 3] w)
                { keep = Identity (cond) w = Add (v, a) }
              >
              [relu] out = Relu (b) }
            """
        )
    )
    samples = [{"x": np.full((1, 3), number, np.float32), "s": np.float32(2)} for number in (1.0, 5.0)]
    run = Stepwise(model, open_data(samples, model=model), batch_size=1)
    nodes = _nodes(model)
    assert [arrays["a"][0, 0] for _, arrays in run.read(["a"], stop=nodes["loop"], later=["out"])] == [2.0, 10.0]
    assert [arrays["out"][0, 0] for _, arrays in run.read(["out"], stop=nodes["relu"], later=[])] == [8.0, 40.0]
