"""OpenVINO's layers by the names of the model's nodes, and their times by run."""

from __future__ import annotations

import datetime
import types

import pytest

from onnxpress.targets.runtimes import openvino
from onnxpress.targets.runtimes.openvino import OPENVINO
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


def test_a_layer_that_is_skipped_in_a_run_moves_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("[one] c = Conv (x, w) [two] y = Softmax <axis = 1> (c)")
    runs = iter([{("one", "k"): 0.1}] * 3 + [{("one", "k"): 1.0}, {("two", "k"): 2.0}, {("one", "k"): 1.0}] * 2)
    monkeypatch.setattr(openvino, "_executed", lambda told: next(runs))
    steps = prepare(OPENVINO, model, random_feeds(model, batch=1)).node_times(6)
    assert [(step.name, step.milliseconds) for step in steps] == [("one", 1.0), ("two", 2.0)]
