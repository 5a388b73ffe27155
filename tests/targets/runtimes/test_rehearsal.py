"""An engine that is wrong, or that ends its process, is found out before a model is prepared."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import numpy as np
import pytest

from onnxpress.targets.runtimes.base import Array, Feeds, NodeTime
from onnxpress.targets.runtimes.fixed_shapes import FixedModel
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.targets.runtimes.rehearsal import prepare_converted
from tests.support import random_feeds
from tests.targets.runtimes.conversion import assert_same, graph


class _Engine:
    """Computes y = factor * x, unless told to refuse."""

    name, title = "engine", "An engine"
    size_bytes = 1

    def __init__(self, factor: float, refusal: str = "") -> None:
        self._factor, self._refusal = factor, refusal

    def convert(self, fixed: FixedModel, folder: Path) -> None:
        self.ports = fixed.inputs
        self._type = next(iter(fixed.inputs.values())).dtype

    def open(self, fixed: FixedModel, folder: Path, threads: int) -> _Engine:
        return self

    def feed(self, feeds: Feeds) -> None:
        self._array = feeds["x"]

    def compute(self) -> None:
        print("MNN use nothing")
        if self._refusal:
            print("because")
            raise RuntimeRefusalError(self._refusal)

    def fetch(self) -> dict[str, Array]:
        return {"y": self._factor * self._array}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return []


def _prepare(engine: _Engine) -> dict[str, Array]:
    model = graph("y = Add (x, x)", "float[N, 3] x", "float[N, 3] y")
    return prepare_converted(engine, model, random_feeds(model), threads=1).fetch()


@pytest.mark.parametrize("factor", [2, 2.19])
def test_rounding_passes(factor: float) -> None:
    assert set(_prepare(_Engine(factor))) == {"y"}


@pytest.mark.parametrize(("factor", "decibels"), [(2.21, "19.6"), (-2, "-6.0"), (np.nan, "-inf"), (np.inf, "-inf")])
def test_another_function_is_a_refusal(factor: float, decibels: str) -> None:
    with pytest.raises(RuntimeRefusalError) as caught:
        _prepare(_Engine(factor))
    assert str(caught.value) == (
        f"An engine: computes something else: its output 'y' is {decibels} dB from the model's, and at least 20 dB are "
        "rounding"
    )


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
