"""Real networks on real images: every runtime of the processor that is installed gives onnxruntime's classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.targets.runtimes.registry import load_runtime
from tests.support import Array
from tests.targets.runtimes.conversion import prepare

_IMAGES = 8
# Sums of float32 in other orders, through 20 and 53 layers, against the largest logit.
_RELATIVE_ERROR = 1e-4


@pytest.fixture(scope="module")
def images(assets: Path) -> Array:
    """Return images of CIFAR-10 as its networks take them."""
    with np.load(assets / "datasets" / "cifar10_test.npz") as file:
        pixels = file["images"][:_IMAGES].astype(np.float32) / 255
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(0, 3, 1, 2))


def _logits(runtime: str, model: onnx_ir.Model, images: Array) -> Array:
    (name,) = (str(value.name) for value in model.graph.inputs)
    prepared = prepare(load_runtime(runtime), model, {name: images[:1]})
    found: list[Array] = []
    for image in images:
        prepared.feed({name: image[None]})
        prepared.compute()
        found.extend(prepared.fetch().values())
    return np.concatenate(found)


@pytest.mark.assets("models", "datasets/cifar10_test.npz")
@pytest.mark.parametrize("runtime", ["litert", "openvino", "ncnn", "mnn"])
@pytest.mark.parametrize(("network", "size"), [("resnet20_cifar10", 32), ("mobilenetv2_imagenet", 224)])
def test_a_network_gives_the_same_classes(runtime: str, network: str, size: int, images: Array, assets: Path) -> None:
    model = model_io.load(assets / "models" / f"{network}.onnx")
    large = np.repeat(np.repeat(images, size // 32, axis=2), size // 32, axis=3)
    expected, found = (_logits(name, model, large) for name in ("onnxruntime-cpu", runtime))
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert np.abs(found - expected).max() <= _RELATIVE_ERROR * np.abs(expected).max()
