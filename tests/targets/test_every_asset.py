"""Real networks, compressed once for all targets: legal there, loaded by the runtime, and the compressed function.

Passes run as quickly as they can be had, without data where they take none: what a graph looks like does not depend on
how well its weights were fitted. The figures of the same table at full effort are those of the benchmark `targets`.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import UsageError
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.runtimes.base import Runtime
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from tests.support import Array, run

# The two that were tuned further are the same graphs as resnet20 and resnet56.
_MODELS = (
    "lenet300_mnist", "lenet5_mnist", "resnet20_cifar10", "resnet56_cifar10", "vgg_small_cifar10",
    "mobilenetv2_imagenet", "squeezenet10_imagenet", "ultraface_rfb320",
)  # fmt: skip
_PASSES = {
    "cleanup": "",
    "prune-channels": "prune-channels{ratio=0.1,score=l2,allocation=uniform,repair=false}",
    "low-rank": "low-rank{energy=0.95,allocation=modelled,scheme=[spatial]}",
    "separable": "separable{energy=0.9,allocation=modelled}",
    "quantize-int8": "quantize-int8",
    "ternarize": "ternarize{method=rtn}",
    "palettize": "palettize{method=rtn}",
    "float16": "float16",
}
_TARGETS = ("x86-vnni", "mobile-cpu", "mobile-cpu-litert", "openvino", "gpu", "tensorrt")

# Least signal-to-noise ratio against the compressed graph: of 8-bit activations in up to 57 layers, ranges from four
# images; of float16 (2^-11 a value) in as many; of float sums in another order, Winograd's among them.
_INT8_DB, _HALF_DB, _FLOAT_DB = 14.0, 45.0, 80.0


@functools.cache
def _model(assets: Path, name: str) -> tuple[onnx_ir.Model, Array]:
    """Return the model and six inputs [6, C, H, W] about as large as real ones and as smooth; four calibrate."""
    model = model_io.load(assets / "models" / f"{name}.onnx")
    channels, *sides = (int(size) for size in (model.graph.inputs[0].shape or ())[1:])  # type: ignore[arg-type]
    coarse = np.random.default_rng(0).standard_normal((6, channels, *(-(-side // 4) for side in sides)))
    images = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, : sides[0], : sides[1]]
    return model, (images * (60.0 if name.startswith("squeezenet") else 1.0)).astype(np.float32)


def _compress(model: onnx_ir.Model, images: Array, text: str, target: Target) -> onnx_ir.Model:
    passes = build(", ".join(filter(None, ("cleanup, fold-batchnorm", text))))
    data = open_data({str(model.graph.inputs[0].name): images[:4]}, model=model) if text == "quantize-int8" else None
    return PassManager(passes).run(model, Context(constraints=target.constraints, data=data))[0]


def _runtime(target: Target) -> Runtime:
    """Return the target's own runtime where it is here, else the one that shows what its graph computes."""
    name = target.profile.runtime
    try:
        runtime = load_runtime(name if name in RUNTIMES else "onnxruntime-cpu")
        runtime.version()
    except UsageError:
        return load_runtime("onnxruntime-cpu")
    return runtime


def _least_db(name: str, target: Target) -> float:
    if name == "quantize-int8":
        return _INT8_DB
    return _HALF_DB if name == "float16" and target.profile.storage.float16_graph else _FLOAT_DB


@pytest.mark.assets
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # so few samples are not enough to calibrate well
@pytest.mark.parametrize("name", _PASSES)
@pytest.mark.parametrize("model_name", _MODELS)
def test_a_pass_on_every_target(model_name: str, name: str, assets: Path) -> None:
    original, images = _model(assets, model_name)
    feeds = {str(original.graph.inputs[0].name): images[5:]}
    shared: onnx_ir.Model | None = None
    for target in map(load_target, _TARGETS):
        # What to compute in integers or in float16 is asked of the target, all else is one graph.
        if shared is None or name in ("quantize-int8", "float16"):
            shared = _compress(original, images, _PASSES[name], target)
        lowered = shared.clone()
        target.lower(lowered)
        assert [str(found) for found in target.check(lowered) if found.severity == "illegal"] == []
        prepared = _runtime(target).prepare(lowered, feeds)
        prepared.compute()
        for expected, (output, got) in zip(run(shared, feeds), prepared.fetch().items(), strict=True):
            wanted = expected.astype(np.float64)
            found_db = sqnr_db(float(np.square(wanted).sum()), float(np.square(wanted - got).sum()))
            assert found_db >= _least_db(name, target), f"{output} on {target.name}: {found_db:.1f} dB"
