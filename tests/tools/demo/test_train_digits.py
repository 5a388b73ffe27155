"""The demo's training code: its gradients, its export, and that its files are what it says they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxpress.tools.demo import assets, train_digits
from onnxpress.tools.demo.train_digits import Layer


def _layers(rng: np.random.Generator) -> dict[str, Layer]:
    """One of each kind; widths differ, so that a wrong axis cannot pass."""
    return {
        "conv": train_digits.Conv("conv", 3, 5, 1, rng),
        "strided conv": train_digits.Conv("conv", 3, 5, 2, rng),
        "batch norm": train_digits.BatchNorm("norm", 3),
        "relu": train_digits.Relu("relu"),
        "max pool": train_digits.MaxPool("pool"),
        "residual": train_digits.Residual("add", [train_digits.Conv("conv", 3, 3, 1, rng)]),
        "classifier": train_digits.Classifier("classifier", 3, 7, rng),
    }


@pytest.mark.parametrize("kind", list(_layers(np.random.default_rng(0))))
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    rng = np.random.default_rng(1)
    layer: Any = _layers(rng)[kind]  # in float64 here, which its annotations do not promise
    for parameter in layer.parameters():
        parameter.data = parameter.data.astype(np.float64)
    x = rng.standard_normal((2, 6, 8, 3))
    weights = rng.standard_normal(layer.forward(x, training=True).shape)

    def loss() -> float:
        return float((layer.forward(x, training=True) * weights).sum())

    loss()
    toward_input = layer.backward(weights).copy()
    gradients = [parameter.gradient.copy() for parameter in layer.parameters()]
    arrays = [x, *(parameter.data for parameter in layer.parameters())]
    for array, gradient in zip(arrays, [toward_input, *gradients], strict=True):
        for index in _some_indices(array, rng):
            slope = _slope(array, index, loss)
            assert gradient[index] == pytest.approx(slope, rel=1e-4, abs=1e-6), (kind, index)


def _some_indices(array: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    for flat in rng.choice(array.size, size=min(12, array.size), replace=False):
        yield tuple(int(i) for i in np.unravel_index(flat, array.shape))


def _slope(array: np.ndarray, index: tuple[int, ...], loss: Callable[[], float]) -> float:
    step, kept = 1e-5, array[index]
    array[index] = kept + step
    above = loss()
    array[index] = kept - step
    below = loss()
    array[index] = kept
    return (above - below) / (2 * step)


def test_the_exported_model_computes_what_was_trained() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(2)
    layers = train_digits.network(rng)
    digits = train_digits.Digits(rng.random((50, 16, 16, 1), dtype=np.float32), rng.integers(0, 10, 50))
    train_digits.train(layers, digits, epochs=1, rng=rng)  # moves the running statistics off their start
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(train_digits.export(layers).SerializeToString(), options)
    feeds = {"input": np.moveaxis(digits.images, -1, 1)}
    np.testing.assert_allclose(
        session.run(None, feeds)[0], train_digits.predict(layers, digits.images), rtol=1e-4, atol=1e-4
    )


def test_the_model_that_ships_has_the_architecture_of_the_script() -> None:
    shipped = onnx.load(assets.model_path())
    exported = train_digits.export(train_digits.network(np.random.default_rng(0)))
    assert shipped.graph.node == exported.graph.node
    assert shipped.graph.input == exported.graph.input
    assert shipped.graph.output == exported.graph.output
    assert _shapes(shipped) == _shapes(exported)


def _shapes(model: onnx.ModelProto) -> dict[str, Sequence[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def test_the_model_that_ships_recognises_held_out_digits() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    data = assets.evaluation()
    session = onnxruntime.InferenceSession(assets.model_path())
    right = session.run(None, {"input": data["input"]})[0].argmax(axis=1) == data["labels"]
    assert 100 * right.mean() == pytest.approx(98.87, abs=0.2)


def test_calibration_and_evaluation_data_are_disjoint_and_fit_the_model() -> None:
    calibration, evaluation = assets.calibration(), assets.evaluation()
    for data, count in ((calibration, 256), (evaluation, 797)):
        assert data["input"].shape == (count, 1, 16, 16)
        assert data["input"].dtype == np.float32
        assert data["labels"].shape == (count,)
        assert data["labels"].dtype == np.int64
        assert 0 <= data["input"].min() <= data["input"].max() <= 1
        assert set(data["labels"]) == set(range(10))
    seen = {image.tobytes() for image in calibration["input"]}
    assert sum(image.tobytes() in seen for image in evaluation["input"]) == 0


def test_model_and_data_stay_under_a_megabyte() -> None:
    folder = assets.model_path().parent
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix in (".onnx", ".npz")}
    assert sizes.keys() == {"digits.onnx", "calibration.npz", "evaluation.npz"}
    assert sum(sizes.values()) < 1_000_000


def test_weights_are_stored_once_and_finite() -> None:
    model = onnx.load(assets.model_path())
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in model.graph.initializer)


def test_the_files_are_written_as_they_are_read(tmp_path: Path) -> None:
    digits = train_digits.Digits(np.random.default_rng(0).random((3, 16, 16, 1), dtype=np.float32), np.arange(3))
    digits.save(tmp_path / "some.npz")
    with np.load(tmp_path / "some.npz") as archive:
        np.testing.assert_array_equal(archive["input"][:, 0], digits.images[..., 0])
        np.testing.assert_array_equal(archive["labels"], digits.labels)
