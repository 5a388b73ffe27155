"""Differences between two models: the formulas, what counts as a class, and interfaces that do not match."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.compare import Comparison, Difference, compare
from onnxpress.ir.analysis.execute import Session
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from tests.support import Array, text_model

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def floats(values: npt.ArrayLike) -> Array:
    return np.asarray(values, np.float32)


def scaled(gain: float, shift: float = 0.0, *, batch: str = "N", shape: str = "3") -> onnx_ir.Model:
    return text_model(
        HEADER + f"net (float[{batch},{shape}] x) => (float[{batch},{shape}] y) <float k = {{{gain}}}, float d = "
        f"{{{shift}}}> "
        "{ a = Mul(x, k) y = Add(a, d) }"
    )


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def refused(kind: type[OnnxpressError], message: str, action: Callable[[], object]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        action()


def difference(before: Array, after: Array) -> Difference:
    """Compare models whose outputs are these arrays, [N, ...]."""
    text = HEADER + f"net (float{list(before.shape)} x, float{list(before.shape)} z) => (float{list(before.shape)} y)"
    first, second = (text_model(f"{text} {{ y = Identity({name}) }}") for name in "xz")
    source = open_data({"x": before, "z": after})
    return compare(first, second, source).outputs["y"]


def test_equal_models() -> None:
    found = compare(scaled(2.0), scaled(2.0), open_data(normal(5, 3)), values=["a"])
    same = Difference(math.inf, 0.0, 1.0)
    assert found == Comparison(samples=5, outputs={"y": same}, values={"a": same}, agreement=100.0)


def test_known_error() -> None:
    """A gain 10 % too high is noise at a tenth of the signal: 20 dB."""
    x = normal(5, 3)
    found = compare(scaled(1.0), scaled(1.1), open_data(x), values=["a"])
    assert found.outputs["y"].sqnr_db == pytest.approx(20.0, abs=1e-5)
    assert found.outputs["y"].cosine == pytest.approx(1.0, abs=1e-9)
    assert found.outputs["y"].max_abs == pytest.approx(0.1 * np.abs(x).max(), rel=1e-5)
    assert found.values["a"] == found.outputs["y"] and found.agreement == 100.0


@given(samples=st.integers(1, 20), limit=st.sampled_from([1, 100, 1 << 20]), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_sums_over_batches_are_those_of_all_samples(samples: int, limit: int, seed: int) -> None:
    x = normal(samples, 3, seed=seed)
    found = compare(scaled(1.5), scaled(1.0, 0.25), open_data(x), limit_bytes=limit).outputs["y"]
    a, b = (floats(1.5) * x).astype(np.float64), (x + floats(0.25)).astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-9)
    assert found.cosine == pytest.approx((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()), rel=1e-9)
    assert found.max_abs == np.abs(a - b).max()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0], Difference(math.inf, 0.0, 1.0)),
        ([0.0, 0.0], [3.0, 4.0], Difference(-math.inf, 4.0, 0.0)),
        ([3.0, 4.0], [0.0, 0.0], Difference(0.0, 4.0, 0.0)),
        ([3.0, 4.0], [-3.0, -4.0], Difference(10 * math.log10(0.25), 8.0, -1.0)),
        ([3e30, 4e30], [3e30, 4e30], Difference(math.inf, 0.0, 1.0)),
    ],
)
def test_extremes(before: list[float], after: list[float], expected: Difference) -> None:
    found = difference(floats([before]), floats([after]))
    assert found.sqnr_db == pytest.approx(expected.sqnr_db) and (found.max_abs, found.cosine) == (
        expected.max_abs,
        expected.cosine,
    )


def test_infinities_that_agree_are_no_error() -> None:
    """Masks of attention are -inf in both models; one that is missing differs without bound."""
    text = HEADER + "net (float[N,3] x) => (float[N,3] y) { y = Log(x) }"
    clipped = HEADER + "net (float[N,3] x) => (float[N,3] y) { a = Abs(x) y = Log(a) }"
    x = floats([[0.0, 1.0, 2.0], [3.0, -1.0, 4.0]])  # -inf and NaN
    assert compare(text_model(text), text_model(text), open_data(x)).outputs["y"] == Difference(math.inf, 0.0, 1.0)
    found = compare(text_model(text), text_model(clipped), open_data(x)).outputs["y"]
    assert (found.sqnr_db, found.max_abs) == (-math.inf, math.inf)


def test_outputs_of_different_shapes_differ_without_bound() -> None:
    some = text_model(HEADER + "net (float[1,3] x) => (int64[2,M] y) { y = NonZero(x) }")
    none = text_model(HEADER + "net (float[1,3] x) => (int64[2,M] y) { a = Sub(x, x) y = NonZero(a) }")
    x = open_data(floats([[1, 0, 2]]))
    assert compare(some, none, x).outputs["y"] == Difference(-math.inf, math.inf, 0.0)
    assert compare(some, some, x).outputs["y"].sqnr_db == math.inf


def test_models_with_different_batches() -> None:
    x = normal(7, 3)
    found = compare(scaled(1.0, batch="4"), scaled(1.1, batch="1"), open_data({"x": x, "labels": np.zeros(7, int)}))
    free = compare(scaled(1.0), scaled(1.1), open_data({"x": x, "labels": np.zeros(7, int)}))
    assert found.samples == free.samples == 7
    assert found.outputs["y"].sqnr_db == pytest.approx(free.outputs["y"].sqnr_db, abs=1e-9)
    assert (found.agreement, found.accuracy_before) == (free.agreement, free.accuracy_before)


def test_samples_and_progress() -> None:
    told: list[Any] = []

    class Progress:
        @contextlib.contextmanager
        def task(self, label: str, total: int | None = None) -> Iterator[Progress]:
            told.append((label, total))
            yield self

        def advance(self, n: int = 1) -> None:
            told.append(n)

    data = open_data({"x": normal(9, 3), "labels": np.zeros(9, np.int64)})
    assert compare(scaled(1.0), scaled(2.0), data, samples=4, progress=Progress()).samples == 4
    assert told == [("comparing", 4), 4]


@pytest.mark.parametrize("optimize", [False, True])
def test_runtime_rewrites_are_asked_for(optimize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def watched(*given: Any, **named: Any) -> Any:
        asked.append(named["optimize"])
        return Session(*given, **named)

    monkeypatch.setattr("onnxpress.ir.analysis.compare.Session", watched)
    compare(scaled(1.0), scaled(1.0), open_data(normal(2, 3)), optimize=optimize)
    assert asked == [optimize, optimize]


# Classes

# Scores as they are, and with the last class raised so that it wins where the others are below 1.
SCORES = floats([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.5], [0.5, 0.0, 0.0]])  # classes 0 1 2 0
RAISED = text_model(HEADER + "net (float[N,3] x) => (float[N,3] y) <float[3] d = {0.0, 0.0, 1.0}> { y = Add(x, d) }")


def test_agreement_and_accuracy() -> None:
    labels = np.array([0, 1, 2, 2])
    found = compare(scaled(1.0), RAISED, open_data({"x": SCORES, "labels": labels}))
    assert (found.agreement, found.accuracy_before, found.accuracy_after) == (75.0, 75.0, 100.0)
    unlabelled = compare(scaled(1.0), RAISED, open_data(SCORES))
    assert (unlabelled.agreement, unlabelled.accuracy_before, unlabelled.accuracy_after) == (75.0, None, None)
    assert compare(RAISED, RAISED, open_data({"x": SCORES, "y": labels})).accuracy_before == 100.0


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1, 2, 2], np.int32),
        np.array([[0], [1], [2], [2]]),
        np.array([0.0, 1.0, 2.0, 2.0]),
        np.eye(3)[[0, 1, 2, 2]],
    ],
)
def test_forms_of_labels(labels: Array) -> None:
    data = open_data({"x": SCORES, "labels": labels})
    assert compare(scaled(1.0), scaled(1.0), data).accuracy_before == 75.0


@pytest.mark.parametrize(
    ("shape", "counts"),
    [("3,1,1", True), ("3,1", True), ("1", False), ("3,2", False)],
)
def test_what_counts_as_scores(shape: str, counts: bool) -> None:
    x = normal(4, *map(int, shape.split(",")))
    found = compare(scaled(1.0, shape=shape), scaled(1.0, shape=shape), open_data(x))
    assert found.agreement == (100.0 if counts else None)


def test_scores_of_one_sample_without_batch() -> None:
    text = HEADER + "net (float[3] x) => (float[3] y) { y = Identity(x) }"
    data = open_data({"x": SCORES, "labels": np.array([0, 1, 2, 2])})
    for limit in (1, 1 << 20):
        found = compare(text_model(text), text_model(text), data, limit_bytes=limit)
        assert (found.agreement, found.accuracy_after) == (100.0, 75.0)


def test_first_output_of_scores_is_taken() -> None:
    text = (
        HEADER
        + """net (float[N,3] x) => (float[N,1] first, float[N,3] second, float[N,3] third) {
      first = ReduceSum <keepdims = 1> (x, axis)
      second = Identity(x)
      third = Neg(x)
    }"""
    )
    model = text_model(text.replace("third) {", "third) <int64[1] axis = {1}> {"))
    found = compare(model, model, open_data({"x": SCORES, "labels": np.array([0, 1, 2, 0])}))
    assert list(found.outputs) == ["first", "second", "third"] and found.accuracy_before == 100.0


def test_class_numbers_as_output() -> None:
    text = HEADER + "net (float[N,3] x) => (int64[N] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"
    data = open_data({"x": SCORES, "labels": np.array([0, 1, 2, 2])})
    assert compare(text_model(text), text_model(text), data).accuracy_before == 75.0
    assert compare(text_model(text), text_model(text), open_data(SCORES)).agreement is None


def test_labels_that_are_no_classes() -> None:
    data = open_data({"x": SCORES, "labels": np.array([1, 2, 3, 3])})
    message = "data '<dict>': labels go from 1 to 3, and the model has the classes 0 to 2"
    refused(InputError, message, lambda: compare(scaled(1.0), scaled(1.0), data))
    boxes = open_data({"x": SCORES, "labels": normal(4, 5)})
    refused(
        InputError,
        "data '<dict>': labels: expected the number of a class, from 0 on, for each sample; got float32 [4, 5]. "
        "Number the classes as the model does, or leave the labels out",
        lambda: compare(scaled(1.0), scaled(1.0), boxes),
    )


# Interfaces


def test_interfaces_that_do_not_match() -> None:
    data = open_data(normal(2, 3))
    renamed = text_model(HEADER + "net (float[N,3] x) => (float[N,3] z) { z = Relu(x) }")
    refused(
        InputError,
        "the models cannot be compared: expected the outputs 'y' as in the first model, got 'z'",
        lambda: compare(scaled(1.0), renamed, data),
    )
    refused(
        InputError,
        "the models cannot be compared: input 'x': expected float32 [N, 3] as in the first model, got float32 [N, 4]",
        lambda: compare(scaled(1.0), scaled(1.0, shape="4"), data),
    )
    refused(
        InputError,
        "the models cannot be compared: input 'x': expected float32 [N, 3] as in the first model, got "
        "float32 [N, 3, 1]",
        lambda: compare(scaled(1.0), scaled(1.0, shape="3,1"), data),
    )
    half = text_model(HEADER + "net (float[N,3] x) => (float16[N,3] y) { y = Cast <to = 10> (x) }")
    refused(
        InputError,
        "the models cannot be compared: output 'y': expected float32 [N, 3] as in the first model, got float16 [N, 3]",
        lambda: compare(scaled(1.0), half, data),
    )
    refused(
        UsageError,
        "the second model has no value 'a' that can be compared",
        lambda: compare(scaled(1.0), RAISED, data, values=["a"]),
    )


def test_model_without_numbers() -> None:
    text = HEADER + "net (string[N,3] x) => (string[N,3] y) { y = Identity(x) }"
    refused(
        InputError,
        "the model has no output that is a tensor of numbers",
        lambda: compare(text_model(text), text_model(text), open_data(np.array([["a", "b", "c"]]))),
    )


@pytest.mark.assets("models/resnet20_cifar10.onnx", "datasets/cifar10_test.npz")
def test_accuracy_of_a_real_model(assets: Path) -> None:
    """The assets' own page gives 81.03 % on all 10,000 images; these are the first 400."""
    model = onnx_ir.load(assets / "models/resnet20_cifar10.onnx")
    with np.load(assets / "datasets/cifar10_test.npz") as archive:
        pixels, labels = archive["images"][:400], archive["labels"][:400]
    mean, std = floats([0.485, 0.456, 0.406]), floats([0.229, 0.224, 0.225])
    x = np.ascontiguousarray(((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))
    data = open_data({"images": x, "labels": labels})
    found = compare(model, model, data, samples=50)
    assert found.outputs["logits"] == Difference(math.inf, 0.0, 1.0) and found.agreement == 100.0
    found = compare(model, model, data, optimize=True)
    assert found.accuracy_before is not None and 75.0 < found.accuracy_before < 87.0
