"""The MNN runtime: types, missing parts, and a converter that may end its process but not ours."""

from __future__ import annotations

import sys

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes import mnn
from onnxpress.targets.runtimes.mnn import MNN
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds
from tests.targets.runtimes.conversion import QDQ, assert_same, graph, prepare, refusal


@pytest.mark.parametrize(
    ("inputs", "body", "outputs"),
    [
        ("float[N, 3, 6] x", "y = MatMul (x, v)", "float[N, 3, 4] y"),
        ("float[1, 2, 3, 4, 5] x", "y = Relu (x)", "float[1, 2, 3, 4, 5] y"),
        ("float[6] x", "y = Relu (x)", "float[6] y"),
        ("int64[N, 5] x", "y = Gather (table, x)", "float[N, 5, 3] y"),
        ("float[N, 6] x", "y = ArgMax <axis = 1> (x)", "int64[N, 1] y"),
        ("float[N, 6] x", "y = Identity (x)", "float[N, 6] y"),
    ],
)
def test_ranks_and_types_are_the_models(inputs: str, body: str, outputs: str) -> None:
    assert_same(MNN, graph(body, inputs, outputs), batch=2)


def test_an_output_that_the_engine_lacks_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("y = Relu (x)", "float[N, 3] x", "float[N, 3] y")
    prepared = prepare(MNN, model, random_feeds(model))
    monkeypatch.setattr(prepared, "_outputs", {})
    with pytest.raises(RuntimeRefusalError) as caught:
        prepared.fetch()
    assert str(caught.value) == "MNN: gives no output 'y'"


def test_steps_are_those_of_its_layers() -> None:
    model = residual_net()
    prepared = prepare(MNN, model, random_feeds(model, batch=1))
    steps = prepared.node_times(2)
    assert (
        [step.kind for step in steps].count("Convolution") == prepared.layers()["Convolution"] == 4
    )  # one is the Gemm
    assert len(steps) == prepared.layers().total()
    assert len(prepare(MNN, model, random_feeds(model, batch=1), threads=2).node_times(1)) == len(steps)


def test_an_unknown_operator_is_named() -> None:
    assert refusal(MNN, graph("r = Relu (x) [hard] y = Hardmax (r)")) == (
        "MNN: does not convert the model: These Op Not Support: ONNX::Hardmax (node 'hard')"
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.write(1, b'[01:02:03] :45: last words'); os.abort()", "last words (SIGABRT)"),
        ("raise SystemExit('no _tools')", "no _tools (exit code 1)"),
        ("", "it wrote nothing"),
    ],
)
def test_a_converter_that_fails(monkeypatch: pytest.MonkeyPatch, code: str, expected: str) -> None:
    monkeypatch.setattr(mnn, "_CONVERT", code)
    assert refusal(MNN, graph("y = Relu (x)")) == f"MNN: does not convert the model: {expected}"


def test_a_lost_axis_is_a_refusal() -> None:
    assert refusal(MNN, graph(f"{QDQ} y = Relu (b)")) == (
        "MNN: gives output 'y' the shape [3, 1, 5, 7], the model [1, 3, 5, 7]"
    )


def test_a_model_that_does_not_run_is_a_refusal() -> None:
    told = refusal(MNN, graph(f"{QDQ} y = Conv (b, w)"))
    assert told.startswith("MNN: does not run the model (code 3): ") and "Compute Shape Error for y" in told


def test_a_type_that_it_has_not() -> None:
    model = graph("y = Cast <to = 1> (x)", "bool[N, 3] x", "float[N, 3] y")
    assert refusal(MNN, model) == "MNN: takes float32 and int32, and input 'x' is bool"


def test_the_commands_that_report_home_are_left_alone() -> None:
    model = residual_net()
    prepare(MNN, model, random_feeds(model, batch=1))
    assert [name for name in sys.modules if name.startswith("MNN.tools")] == []


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(UsageError) as caught:
        MNN.version()
    assert str(caught.value) == 'MNN is not installed: pip install "onnxpress[mnn]"'
