"""An engine that is wrong, or that ends its process, is found out before a model is prepared."""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxpress.targets.runtimes import rehearsal
from onnxpress.targets.runtimes.base import Array, Feeds, NodeTime
from onnxpress.targets.runtimes.fixed_shapes import FixedModel
from onnxpress.targets.runtimes.programs import Finished, run_program
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.runtimes.rehearsal import prepare_converted
from tests.support import random_feeds
from tests.targets.runtimes.conversion import assert_same, graph


class _Engine:
    """Computes y = factor * x, unless told to refuse, and calls it `output`."""

    name, title = "engine", "An engine"
    size_bytes = 1

    def __init__(self, factor: float, refusal: str = "", output: str = "y") -> None:
        self._factor, self._refusal, self._output = factor, refusal, output

    def convert(self, fixed: FixedModel, folder: Path) -> None:
        self.ports = fixed.inputs
        self._type = next(iter(fixed.inputs.values())).dtype

    def open(self, fixed: FixedModel, folder: Path, threads: int) -> _Engine:
        return self

    def feed(self, feeds: Feeds) -> None:
        self._array = feeds["x"]

    def compute(self, *, timed: bool = True) -> None:
        print("MNN use nothing")
        if self._refusal:
            print("because")
            raise RuntimeRefusalError(self._refusal)

    def fetch(self) -> dict[str, Array]:
        return {self._output: self._factor * self._array}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return []


def _prepare(engine: _Engine, body: str = "y = Add (x, x)", kind: str = "float") -> dict[str, Array]:
    model = graph(body, "float[N, 3] x", f"{kind}[A, B] y")
    return prepare_converted(engine, model, random_feeds(model), threads=1).fetch()


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal that goes well: the engine above is none that another process can find."""

    def run(command: list[str | Path], folder: Path, *, limit_seconds: float) -> Finished:
        (Path(command[5]) / "rehearsed").touch()
        return Finished("", [])

    monkeypatch.setattr(rehearsal, "run_program", run)


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize("factor", [2, 2.19])
def test_rounding_passes(factor: float) -> None:
    assert set(_prepare(_Engine(factor))) == {"y"}


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize(("factor", "decibels"), [(2.21, "19.6"), (-2, "-6.0"), (np.nan, "-inf"), (np.inf, "-inf")])
def test_another_function_is_a_refusal(factor: float, decibels: str) -> None:
    with pytest.raises(RuntimeRefusalError) as caught:
        _prepare(_Engine(factor))
    assert str(caught.value) == (
        f"An engine: computes something else: its output 'y' is {decibels} dB from the model's, and at least 20 dB are "
        "rounding"
    )


@pytest.mark.usefixtures("rehearsed")
@pytest.mark.parametrize(
    ("output", "body", "kind", "told"),
    [
        ("z", "y = Add (x, x)", "float", "gives no output 'y'"),
        ("y", "a = Add (x, x) y = Transpose (a)", "float", "gives output 'y' the shape [2, 3], the model [3, 2]"),
        ("y", "y = Cast <to = 8> (x)", "string", "output 'y' holds no numbers, but object"),
    ],
)
def test_outputs_that_are_not_the_models_are_a_refusal(output: str, body: str, kind: str, told: str) -> None:
    with pytest.raises(RuntimeRefusalError) as caught:
        _prepare(_Engine(2, output=output), body, kind)
    assert str(caught.value) == f"An engine: {told}"


@pytest.mark.usefixtures("rehearsed")
def test_what_onnxruntime_cannot_run_is_a_refusal() -> None:
    with pytest.raises(RuntimeRefusalError, match=r"^An engine: its numbers cannot be held to the model's: .*Reshape"):
        _prepare(_Engine(2), "i = Constant <value_ints = [7]> () y = Reshape (x, i)")


@pytest.mark.parametrize(
    ("child", "told"),
    [
        ("print('first'); raise SystemExit('no module')", "no module (exit code 1)"),
        ("raise SystemExit(0)", "it wrote nothing (exit code 0)"),
        ("import time; time.sleep(600)", "it wrote nothing (ended after 1 s)"),
    ],
)
def test_a_rehearsal_that_did_not_take_place_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, child: str, told: str
) -> None:
    def run(command: list[str | Path], folder: Path, *, limit_seconds: float) -> Finished:
        return run_program([sys.executable, "-c", child], folder, limit_seconds=1 if "sleep" in child else 60)

    monkeypatch.setattr(rehearsal, "run_program", run)
    with pytest.raises(RuntimeRefusalError) as caught:
        _prepare(_Engine(2))
    assert str(caught.value) == f"An engine: a first run of the model, in a process of its own, fails: {told}"


def test_an_engine_that_the_other_process_does_not_find_is_a_refusal() -> None:
    told = (
        r"^An engine: a first run of the model, in a process of its own, fails: .*unknown runtime 'engine'.* "
        r"\(exit code 1\)$"
    )
    with pytest.raises(RuntimeRefusalError, match=told):
        _prepare(_Engine(2))


@pytest.mark.parametrize("name", ["mnn", "ncnn"])
def test_inputs_with_a_default_are_not_fed(name: str) -> None:
    model = graph("a = MatMul (x, v) y = Relu (a)", "float[N, 6] x", "float[N, 4] y")
    model.graph.inputs.insert(0, model.graph.initializers["v"])
    assert_same(load_runtime(name), model)


@pytest.mark.usefixtures("rehearsed")
def test_a_refusal_carries_what_was_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with capfd.disabled(), pytest.raises(RuntimeRefusalError) as caught:
        _prepare(_Engine(2, refusal="It fails"))
    assert str(caught.value) == "It fails: because"


# What the engines of 2026 get wrong or end their process at; a version that computes it right is welcome.
_REVERSED = "".join(
    f"{name} = Constant <value_ints = [{number}]> () " for name, number in (("i", -1), ("j", -99), ("k", 2))
)
_KNOWN = [
    ("mnn", "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)"),
    ("mnn", 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, even)'),
    ("ncnn", "a, b, c = Split <axis = 1> (x) y = Concat <axis = 1> (c, a, b)"),
    ("ncnn", f"{_REVERSED} r = Relu (x) y = Slice (r, i, j, k, i)"),
]


@pytest.mark.parametrize(("runtime", "body"), _KNOWN)
def test_engines_are_right_or_refuse(runtime: str, body: str) -> None:
    try:
        assert_same(load_runtime(runtime), graph(body))
    except RuntimeRefusalError as refusal:
        ended, differs = (
            r"a run of the model ends the process \(SIG[A-Z]+\)",
            "computes something else: its output 'y' .+",
        )
        assert re.fullmatch(f".+ on the CPU: ({ended}|{differs})", str(refusal))
