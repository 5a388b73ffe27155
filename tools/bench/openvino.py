"""Measure what the target openvino gains: int8 beside the float model, both on OpenVINO.

    python -m onnxpress.tools.bench.openvino [MODEL ...] [--limit N] [--passes PIPELINE]

A row for each trained model of the assets (`ONNXPRESS_ASSETS`): top-1 accuracy of both in points, on the evaluation
images; time of one image in milliseconds and the speed-up (one thread, CPU time of the process, interleaved, ratio of
medians); and how many of its products run in integers. Needs the extra `openvino`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
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
from onnxpress.targets.runtimes.timing import speedup
from onnxpress.tools.bench.assets import Asset, prepare, select, working_folder

__all__ = ["Row", "main", "measure"]

_BATCH = 25  # images at a time, for accuracy
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")


@dataclasses.dataclass(frozen=True)
class Row:
    """One model. accuracy: points, of float and int8. integer, products: of the int8 model's layers."""

    model: str
    images: int
    accuracy: tuple[float, float]
    latency_ms: tuple[float, float]
    speedup: float
    integer: int
    products: int

    def __str__(self) -> str:
        accuracy, latency = (" | ".join(f"{each:.2f}" for each in pair) for pair in (self.accuracy, self.latency_ms))
        return (
            f"| {self.model} | {self.images} | {accuracy} | {latency} | {self.speedup:.2f}x | "
            f"{self.integer} of {self.products} |"
        )


def measure(asset: Asset, folder: Path, *, limit: int | None = None, pipeline: str | None = None) -> Row:
    """Compile one model for the target and measure it. limit: evaluate on so many images only."""
    path, calibration, evaluation = prepare(asset, folder, limit=limit)
    target = load_target("openvino")
    original = load(path)
    context = Context(constraints=target.constraints, data=open_data(calibration, model=original))
    model, _ = PassManager(build(pipeline or target.default_pipeline)).run(original, context)
    target.lower(model)
    with np.load(evaluation) as arrays:
        images, labels = arrays[asset.input_name], arrays["labels"]
    models = {"float": original, "int8": model}
    one = {asset.input_name: images[:1]}
    times = openvino.interleaved_latency(models, one, rounds=300, max_seconds=30)
    counts = openvino.count_precisions(model, one)
    products = [(kind, count) for each in _PRODUCTS for kind, count in counts.get(each, {}).items()]
    return Row(
        asset.model,
        len(labels),
        (_accuracy(original, asset.input_name, images, labels), _accuracy(model, asset.input_name, images, labels)),
        (times["float"].median_ms, times["int8"].median_ms),
        speedup(times["float"], times["int8"]),
        sum(count for kind, count in products if kind in ("i8", "u8")),
        sum(count for _, count in products),
    )


def _accuracy(model: onnx_ir.Model, name: str, images: np.ndarray, labels: np.ndarray) -> float:
    size = _BATCH if len(labels) % _BATCH == 0 else 1
    request = openvino.Runner(model, {name: images[:size]})
    right = 0
    for start in range(0, len(labels), size):
        (logits,) = request.run({name: images[start : start + size]})
        right += int((logits.argmax(axis=1) == labels[start : start + size]).sum())
    return 100 * right / len(labels)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; the header says what is in it."""
    parser = argparse.ArgumentParser(
        prog="python -m onnxpress.tools.bench.openvino", description=__doc__.split("\n")[0]
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names, or how they start; all by default")
    parser.add_argument("--limit", type=int, help="evaluate on so many images only")
    parser.add_argument("--passes", help="another pipeline than the target's own")
    chosen = parser.parse_args(arguments)
    assets = select(chosen.models, "ptq")
    print("| model | images | float top-1 | int8 top-1 | float ms | int8 ms | speed | integer products |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with working_folder(None) as folder:
        for asset in assets:
            print(measure(asset, folder, limit=chosen.limit, pipeline=chosen.passes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
