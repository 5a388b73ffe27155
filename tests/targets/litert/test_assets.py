"""Real networks: converted whole, the same classes, few transposes, and int8 that stays near."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from onnxpress.ir import model_io
from tests.support import Array
from tests.targets.litert import files as _files  # skips where LiteRT is missing

# Each with the transposes that are left: that of the input, none where it has one channel.
_MODELS = {
    "lenet300_mnist": 0,
    "lenet5_mnist": 0,
    "resnet20_cifar10": 1,
    "resnet56_cifar10": 1,
    "vgg_small_cifar10": 1,
    "squeezenet10_imagenet": 1,
    "mobilenetv2_imagenet": 1,
    "ultraface_rfb320": 1,
}
_SAMPLES = 8
_SECONDS = 5.0  # mobilenetv2 takes 0.3
assert _files.SCHEME.activation.signed


@pytest.mark.assets
@pytest.mark.parametrize("name", _MODELS)
def test_a_network_becomes_a_file_that_computes_the_same(name: str, assets: Path) -> None:
    from onnxpress.ir.analysis.execute import Session
    from onnxpress.targets.litert import emit
    from onnxpress.targets.runtimes.litert import LiteRtSession

    model = model_io.load(assets / "models" / f"{name}.onnx")
    start = time.process_time()
    file = emit(model)
    assert time.process_time() - start < _SECONDS
    assert file.transposes == file.operators.get("TRANSPOSE", 0) == _MODELS[name]
    session, reference = LiteRtSession(file.content), Session(model)
    ((key, port),) = session.ports.items()
    images = np.random.default_rng(1).standard_normal((_SAMPLES, *port.shape[1:])).astype(np.float32)
    for image in images:
        found, expected = session.run({key: image[None]}), reference.run({key: image[None]})
        assert list(found) == list(expected)
        for output, wanted in expected.items():
            np.testing.assert_allclose(found[output], wanted, rtol=1e-4, atol=1e-5 * float(np.abs(wanted).max()))
            assert _top(found[output]) == _top(wanted)


def _top(array: Array) -> int:
    return int(array.reshape(-1).argmax())


@pytest.mark.assets
def test_int8_of_a_residual_network_stays_near(assets: Path) -> None:
    from onnxpress.ir.data import Batch, open_data
    from onnxpress.passes.base import Context
    from onnxpress.passes.manager import PassManager
    from onnxpress.passes.pipeline import build
    from onnxpress.targets.base import load_target
    from onnxpress.targets.litert import emit
    from onnxpress.targets.runtimes.base import sample_runner
    from onnxpress.targets.runtimes.litert import LiteRtSession

    model = model_io.load(assets / "models" / "resnet20_cifar10.onnx")
    target = load_target("mobile-cpu-litert")
    images = np.random.default_rng(3).standard_normal((64, 3, 32, 32)).astype(np.float32)
    context = Context(constraints=target.constraints, data=open_data({"input": images}, model=model))
    quantized, _ = PassManager(build(target.default_pipeline)).run(model, context)
    file = emit(quantized)
    assert len(file.integer) == 20 and not file.real
    assert file.operators["QUANTIZE"] == 1  # the input: nothing in between goes through float
    floats, integers = LiteRtSession(emit(model).content), LiteRtSession(file.content)
    batch = Batch({"input": images})
    expected, found = (sample_runner(model, each).run(batch)["logits"] for each in (floats, integers))
    noise = ((found - expected) ** 2).sum() / (expected**2).sum()
    assert noise < 10**-2.0  # 20 dB
