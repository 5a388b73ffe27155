"""--runtime all: a row for each runtime, whatever it does with the model, and numbers only of what was compared."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from onnxpress.targets.runtimes.base import Feeds, NodeClock, NodeTime, Port
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.tools import runtimes
from onnxpress.tools.calibration import calibrate
from onnxpress.tools.runtimes import RuntimeRow, compare_runtimes
from tests.support import Array, run_named, text_model


@dataclasses.dataclass
class _Fake:
    """A runtime that computes what the model says, and then `changed` in its place. refusal: raised where it is run."""

    changed: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    lost: str = ""
    refusal: OnnxpressError | None = None
    name, title, single_thread_clock = "fake", "A fake", None
    node_clock: NodeClock | None = None
    size_bytes = 1

    def version(self) -> str:
        return "1"

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> _Fake:
        self._model = model
        self.ports = {name: Port(array.shape, array.dtype) for name, array in feeds.items()}
        self.feed(feeds)
        return self

    def feed(self, feeds: Feeds) -> None:
        self._feeds = dict(feeds)

    def compute(self, *, timed: bool = True) -> float:
        if self.refusal is not None:
            raise self.refusal
        return 2.0

    def fetch(self) -> dict[str, Array]:
        found = {**run_named(self._model, self._feeds), **self.changed}
        return {name: array for name, array in found.items() if name != self.lost}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return []


def _row(
    monkeypatch: pytest.MonkeyPatch, fake: _Fake, text: str, data: Mapping[str, Array] | None = None
) -> RuntimeRow:
    monkeypatch.setattr(runtimes, "load_runtime", lambda name: fake if name == "fake" else load_runtime(name))
    model = text_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    (row,) = compare_runtimes(model, runtimes=["fake"], rounds=5, data=data)
    return row


_SCORES = "(float[2,3] x) => (float[2,3] y) { y = Identity (x) }"  # 0.5 everywhere, as it is made up
_CLASSES = "(float[4,3] x) => (int64[4] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"


def _changed(*numbers: float, at: int = 3) -> dict[str, Array]:
    array = np.full(6, 0.5, np.float32)
    array[at : at + len(numbers)] = numbers
    return {"y": array.reshape(2, 3)}


@pytest.mark.parametrize(
    ("text", "changed", "agreement", "error"),
    [
        (_SCORES, {}, 100.0, 0.0),
        (_SCORES, _changed(0.5, 0.75), 50.0, 0.5),
        (_SCORES, _changed(math.nan, at=5), 50.0, math.nan),
        (_CLASSES, {}, None, 0.0),
        (_CLASSES, {"y": np.array([0, 0, 1, 0])}, None, 0.25),
        ("(float[2,3] x) => (float[2,3] z, float[2,3] y) { y = Identity (x) z = Neg (x) }",
         {"z": _changed(1.0)["y"], "y": _changed(math.nan)["y"]}, 100.0, math.nan),
        ("(float[2,1] x) => (float[2,1] y) { y = Identity (x) }", {}, None, 0.0),
        ("(float[2,3] x) => (float[0,3] y) { i = Constant <value_ints = [0]> () j = Constant <value_ints = [0]> () "
         "y = Slice (x, i, j) }", {}, None, None),
        ("(float x) => (float y) { y = Neg (x) }", {}, None, 0.0),
    ],
)  # fmt: skip
def test_what_was_compared_is_told(
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    changed: dict[str, Array],
    agreement: float | None,
    error: float | None,
) -> None:
    row = _row(monkeypatch, _Fake(changed), text)
    assert row.status == "" and row.times is not None and row.times.median == 2.0
    assert row.agreement == agreement
    assert row.error == pytest.approx(error, nan_ok=True)
    assert row.samples == (1 if "(float x)" in text else 4 if text is _CLASSES else 2)


def test_no_numbers_on_both_sides_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"x": np.array([[-1, 0, 1], [2, -3, 4]], np.float32)}  # nan and -inf among their logarithms
    text = "(float[N,3] x) => (float[N,3] y) { y = Log (x) }"
    assert _row(monkeypatch, _Fake(), text, data).error == 0
    wrong = {"y": np.array([[math.nan, 0, 0]], np.float32)}
    assert math.isnan(_row(monkeypatch, _Fake(wrong), text, data).error or 0)


@pytest.mark.parametrize(
    ("fake", "status"),
    [
        (_Fake(lost="y"), "A fake: gives no output 'y'"),
        (_Fake({"y": np.ones((1, 3))}), "A fake: gives output 'y' the shape [1, 3], onnxruntime [2, 3]"),
        (_Fake(refusal=RuntimeRefusalError("A fake: does not\n run")), "A fake: does not run"),
        (_Fake(refusal=InputError("bad feeds")), "bad feeds"),
        (_Fake(refusal=OnnxpressError("something else")), "something else"),
    ],
)
def test_what_cannot_be_compared_says_why(monkeypatch: pytest.MonkeyPatch, fake: _Fake, status: str) -> None:
    row = _row(monkeypatch, fake, _SCORES)
    assert row == RuntimeRow("fake", "1", status=status)


def test_what_onnxruntime_refuses_may_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Knows(_Fake):
        def fetch(self) -> dict[str, Array]:
            return {"y": np.ones((2, 3))}

    monkeypatch.setattr(runtimes, "load_runtime", lambda name: _Knows() if name == "fake" else load_runtime(name))
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> g (float[N,3] x) => (float[N,3] y) { y = acme.Do (x) }'
    )
    rows = compare_runtimes(
        model, runtimes=["onnxruntime-cpu", "fake"], rounds=5, data={"x": np.ones((2, 3), np.float32)}
    )
    assert "does not load the model" in rows[0].status and rows[0].times is None
    assert rows[1].times is not None
    assert (rows[1].agreement, rows[1].error, rows[1].ratio, rows[1].status) == (None, None, None, "")


def test_calibrate_asks_for_node_times_before_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*arguments: object) -> None:
        raise AssertionError("it measures")

    monkeypatch.setattr("onnxpress.tools.calibration.measure", measured)
    monkeypatch.setattr(type(load_runtime("litert")), "version", lambda self: "1")
    with pytest.raises(UsageError) as caught:
        calibrate("x.toml", target="mobile-cpu-litert")
    assert str(caught.value) == (
        "calibrate: LiteRT with XNNPACK tells no times by node, which an estimate is fitted to"
    )
