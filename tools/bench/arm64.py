"""Is a model that was lowered for a phone the same on Arm64? Under emulation: correctness, and no times.

A model is compressed by the own pipeline of `mobile-cpu`, or of a target like it, and runs on the same images four
times: as it is written, in onnxruntime without optimizations; by onnxruntime here; by onnxruntime of Arm64 under
emulation; and the original here. The kernels of the two processors are different code (u8 x s8 products are summed in
other instructions), so equal outputs say that neither saturates, and that what was measured on a desk holds on a phone.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.decibels import sqnr_db
from onnxpress.ir.analysis.execute import Session
from onnxpress.targets.devices.base import Device
from onnxpress.targets.devices.device import open_device
from onnxpress.targets.runtimes.base import Array, Feeds
from onnxpress.targets.runtimes.onnxruntime_session import fit_session, open_session, run_session
from onnxpress.tools.bench.assets import Asset, prepare, working_folder
from onnxpress.tools.compress import compress
from onnxpress.tools.metrics import SQNR_CEILING_DB

__all__ = ["HEADINGS", "MODELS", "TARGETS", "Row", "run"]

MODELS = ("resnet20_cifar10", "mobilenetv2_imagenet")
TARGETS = ("mobile-cpu", "mobile-cpu-s8", "mobile-cpu-v8")
_IMAGES = 16  # that are run where no limit is given: an image of mobilenetv2 takes seconds
_TIMEOUT_SECONDS = 1800.0
HEADINGS = {
    "compiler": "target", "images": "images", "same_class": "same class %", "arm_x86_db": "Arm-x86 dB",
    "equal": "equal %", "arm_written_db": "Arm-written dB", "x86_written_db": "x86-written dB",
    "accuracy_arm": "top-1 Arm %", "accuracy_x86": "top-1 x86 %", "accuracy_float": "top-1 float %",
    "seconds": "seconds",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One model.

    same_class: percent of images that get the same class on both. arm_x86_db: the outputs of Arm64 against those here;
    arm_written_db, x86_written_db: of each against the model as it is written. equal: percent of output numbers whose
    bits are equal on both. seconds: what the emulation took.
    """

    model: str
    compiler: str
    images: int
    same_class: float
    arm_x86_db: float
    equal: float
    arm_written_db: float
    x86_written_db: float
    accuracy_arm: float
    accuracy_x86: float
    accuracy_float: float
    seconds: float


def run(
    assets: Sequence[Asset],
    targets: Sequence[str],
    device: str,
    *,
    limit: int | None,
    keep: Path | None,
    tell: Callable[[str], None],
) -> list[Row]:
    """Compare each model on the device of text `device` with this machine, on `limit` images.

    Raises:
        UsageError: the device cannot be used. DeviceError: it fails.
    """
    opened = open_device(device)
    with working_folder(keep) as folder:
        rows = []
        for asset in assets:
            for target in targets:
                tell(f"{asset.model}: compressing for {target}")
                rows.append(_row(asset, target, opened, folder, limit or _IMAGES, tell))
    return rows


def _row(asset: Asset, target: str, device: Device, folder: Path, limit: int, tell: Callable[[str], None]) -> Row:
    path, calibration, evaluation = prepare(asset, folder, limit=limit)
    original = model_io.load(path)
    model = compress(original, target=target, data=calibration).model
    with np.load(evaluation) as arrays:
        feeds, labels = {asset.input_name: arrays[asset.input_name]}, arrays["labels"]
    tell(f"{asset.model}: {len(labels)} images on {device.text}")
    start = time.monotonic()
    found = device.run({asset.model: model}, feeds, rounds=1, warmup=0, outputs=True, timeout_seconds=_TIMEOUT_SECONDS)
    seconds = time.monotonic() - start
    arm = next(iter(found.models[asset.model].outputs.values()))
    here, written = _run_here(model, feeds), next(iter(Session(model).run(feeds).values()))
    classes, classes_here = _classes(arm), _classes(here)
    return Row(
        asset.model, f"{target} on {found.machine.architecture}", len(labels), _percent(classes == classes_here),
        _db(here, arm), _percent(here == arm), _db(written, arm), _db(written, here), _percent(classes == labels),
        _percent(classes_here == labels), _percent(_classes(_run_here(original, feeds)) == labels), seconds,
    )  # fmt: skip


def _run_here(model: onnx_ir.Model, feeds: Feeds) -> Array:
    session = open_session(model)
    output: Array = run_session(session, fit_session(session, feeds))[0]
    return output


def _classes(outputs: Array) -> Array:
    found: Array = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return found


def _percent(hits: Array) -> float:
    return 100 * float(np.mean(hits))


def _db(expected: Array, got: Array) -> float:
    signal = expected.astype(np.float64)
    return min(sqnr_db(float(np.square(signal).sum()), float(np.square(signal - got).sum())), SQNR_CEILING_DB)
