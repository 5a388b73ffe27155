"""The light models of the onnx package: pruned, or declined with reasons, and never broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxpress.ir.data import open_data
from onnxpress.ir.model_io import load
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from onnxpress.targets.runtimes.onnxruntime_cpu import smoke_run

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize(
    "name", ["densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"]
)
def test_a_valid_model_or_a_reason(name: str) -> None:
    model = load(_LIGHT / f"light_{name}.onnx")
    (image,) = (value for value in model.graph.inputs)
    assert image.shape is not None
    rng = np.random.default_rng(0)
    shape = [extent if isinstance(extent, int) else 1 for extent in image.shape]
    data = open_data([{str(image.name): rng.standard_normal(shape).astype(np.float32)} for _ in range(3)])
    passes = build("cleanup, prune-channels{ratio=0.3,allocation=modelled,sweeps=1}")
    context = Context(constraints=load_target("x86-vnni").constraints, data=data)
    pruned, records = PassManager(passes).run(model, context)
    assert smoke_run(pruned)
    assert records[-1].rewrites.sites or all(each.reason for each in records[-1].rewrites.declined)
    assert records[-1].rewrites.sites or records[-1].rewrites.declined
