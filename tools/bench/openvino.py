"""What the target openvino gains: int8 beside the float model, both on OpenVINO. Needs the extra `openvino`.

Accuracy runs on all evaluation images. Latencies of the two are interleaved: one image, one thread, CPU time of the
process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir.data import open_data
from onnxpress.ir.model_io import load
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from onnxpress.targets.runtimes import openvino
from onnxpress.targets.runtimes.base import race
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, working_folder

__all__ = ["HEADINGS", "Row", "run"]

HEADINGS = {
    "accuracy_float": "float top-1 %", "accuracy": "int8 top-1 %", "latency_float_ms": "float ms t1",
    "latency_ms": "int8 ms t1", "speedup": "speed t1", "integer": "integer products", "products": "of",
}  # fmt: skip

_BATCH = 25  # images at a time, for accuracy


@dataclasses.dataclass(frozen=True)
class Row:
    """One model. accuracy: percent. speedup: float over int8. integer: how many layers of `products` run so."""

    model: str
    images: int
    accuracy_float: float
    accuracy: float
    latency_float_ms: float
    latency_ms: float
    speedup: float
    integer: int
    products: int


def run(
    assets: list[Asset],
    *,
    rounds: int = 200,
    limit: int | None = None,
    keep: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Return a row for each asset, compiled by the target's own pipeline. keep: where prepared data stays."""
    rows = []
    with working_folder(keep) as folder:
        for asset in assets:
            tell(f"{asset.model} ...")
            rows.append(_measure(asset, folder, rounds, limit))
    return rows


def _measure(asset: Asset, folder: Path, rounds: int, limit: int | None) -> Row:
    path, calibration, evaluation = prepare(asset, folder, limit=limit)
    target = load_target("openvino")
    original = load(path)
    context = Context(constraints=target.constraints, data=open_data(calibration, model=original))
    model, _ = PassManager(build(target.default_pipeline)).run(original, context)
    target.lower(model)
    with np.load(evaluation) as arrays:
        images, labels = arrays[asset.input_name], arrays["labels"]
    models = {"float": original, "int8": model}
    one = {asset.input_name: images[:1]}
    compiled = {name: openvino.CompiledModel(each, one) for name, each in models.items()}
    times = race(openvino.OPENVINO, compiled, rounds=rounds, max_seconds=30)
    counts = openvino.count_precisions(model, one)
    products = [(kind, count) for each in openvino.PRODUCTS for kind, count in counts.get(each, {}).items()]
    return Row(
        asset.model,
        len(labels),
        _accuracy(original, asset.input_name, images, labels),
        _accuracy(model, asset.input_name, images, labels),
        times["float"].median_ms,
        times["int8"].median_ms,
        speedup(times["float"], times["int8"]),
        sum(count for kind, count in products if kind in ("i8", "u8")),
        sum(count for _, count in products),
    )


def _accuracy(model: onnx_ir.Model, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    size = _BATCH if len(labels) % _BATCH == 0 else 1
    request = openvino.CompiledModel(model, {name: images[:size]})
    right = 0
    for start in range(0, len(labels), size):
        (logits,) = request.run({name: images[start : start + size]})
        right += int((logits.argmax(axis=1) == labels[start : start + size]).sum())
    return 100 * right / len(labels)
