"""OpenVINO's layers by the names of the model's nodes, and their times by run."""

from __future__ import annotations

import datetime
import types

import pytest

from onnxpress.ir.model_io import load
from onnxpress.targets.runtimes import openvino
from onnxpress.targets.runtimes.openvino import OPENVINO
from onnxpress.tools.demo import assets as demo
from tests.support import random_feeds
from tests.targets.runtimes.conversion import graph, prepare


def test_layers_are_told_by_names_that_look_like_the_plugins_own() -> None:
    model = graph("[one] c = Conv (x, w) [two] r = Relu (c) [three] e = Sigmoid (r) [four] y = Softmax <axis = 1> (e)")
    names = {"one": "a,b", "two": "b/DequantizeLinear_1", "three": "x/WithoutBiases,q"}
    for node in model.graph:
        node.name = names.get(node.name or "", node.name)
    steps = prepare(OPENVINO, model, random_feeds(model, batch=1)).node_times(5)
    assert [step.origins for step in steps if step.origins] == [tuple(names.values()), ("four",)]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("a,b,a", ["a,b", "a"]),
        ("b/DequantizeLinear,b/WithoutBiases", ["b", "b"]),
        ("a/WithoutBiases,b", ["a", "b"]),
        ("of the plugin,b", ["b"]),
        ("", []),
    ],
)
def test_names_are_found_in_a_list(told: str, found: list[str]) -> None:
    assert list(openvino._find_names(told, {"a", "b", "a,b"})) == found


def _told(name: str, status: str, microseconds: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        node_name=name, exec_type="ref", status=types.SimpleNamespace(name=status),
        real_time=datetime.timedelta(microseconds=microseconds),
    )  # fmt: skip


def test_layers_of_one_name_are_one_step_and_what_did_not_run_is_none() -> None:
    run = [_told("a", "EXECUTED", 2), _told("b", "NOT_RUN", 0), _told("a", "EXECUTED", 3)]
    assert openvino._executed(run) == {("a", "ref"): pytest.approx(0.005)}


def test_means_of_several_compilations_become_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters tell means of all runs, of which 3 are for warming up, and 10 count."""
    model = graph("[one] c = Conv (x, w) [two] y = Softmax <axis = 1> (c)")
    one, two, added = ("one", "k"), ("two", "k"), ("Multiply_17", "k")
    told = [
        ({one: 9.0}, {one: (9.0 * 3 + 2.0 * 10) / 13}),  # a slow start does not count
        ({one: 1.0, two: 2.0}, {one: 1.0, two: 2.0}),  # a layer that did not run before moves no other
        ({one: 3.0, two: 1.5, added: 0.5}, {one: 3.0, two: 1.5, added: 0.5}),
        ({one: 3.0, two: 4.0}, {one: 3.0, two: 4.0, ("Multiply_18", "k"): 0.25}),
        ({one: 2.0}, {one: 2.0}),
    ]
    each = iter([found for pair in told for found in pair])
    monkeypatch.setattr(openvino, "_executed", lambda told: next(each))
    steps = prepare(OPENVINO, model, random_feeds(model, batch=1)).node_times(6)
    assert [(step.name, round(step.milliseconds, 9)) for step in steps] == [
        ("one", 1.0), ("two", 1.5), ("Multiply_18", 0.25),
    ]  # fmt: skip


def test_a_convolution_is_in_the_layer_that_took_it_over() -> None:
    """The plugin names the normalization that went into it, and its activation, alone."""
    model = load(demo.model_path())
    found = {step.origins for step in prepare(OPENVINO, model, random_feeds(model, batch=1)).node_times(6)}
    assert ("widen_conv", "widen_norm", "widen_relu") in found
