"""The benchmark models and their data, prepared as files that any tool can read.

The folder of assets is named by the environment variable ONNXPRESS_ASSETS; its own `load.py` knows the
preprocessing of each model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from onnxpress.ir.errors import UsageError, near_names

__all__ = ["ASSETS", "Asset", "assets_folder", "model_path", "prepare", "select", "working_folder"]

_VARIABLE = "ONNXPRESS_ASSETS"


@dataclasses.dataclass(frozen=True)
class Asset:
    """A trained model with the data that calibrates and evaluates it.

    samples: calibration images taken from the front of `calibration`; None for all of it.
    benchmarks: those that measure it.
    """

    model: str
    input_name: str
    calibration: str
    evaluation: str
    samples: int | None = 256
    benchmarks: tuple[str, ...] = ("ptq", "prune", "factorize", "lowbit")


ASSETS = (
    Asset("lenet300_mnist", "input", "mnist_train", "mnist_test"),
    Asset("lenet5_mnist", "input", "mnist_train", "mnist_test"),
    Asset("resnet20_cifar10", "input", "cifar10_calib", "cifar10_test"),
    Asset("resnet56_cifar10", "input", "cifar10_calib", "cifar10_test"),
    Asset("resnet20_cifar10_jpeg", "input", "cifar10_calib", "cifar10_test", benchmarks=("prune", "factorize")),
    Asset("resnet56_cifar10_jpeg", "input", "cifar10_calib", "cifar10_test", benchmarks=("prune", "factorize")),
    Asset("vgg_small_cifar10", "input", "cifar10_calib", "cifar10_test"),
    Asset("mobilenetv2_imagenet", "input", "imagenet_sample_calib", "imagenet_sample_eval", None),
    Asset("squeezenet10_imagenet", "data", "imagenet_sample_calib", "imagenet_sample_eval", None),
)


def assets_folder() -> Path:
    """Return the folder of the assets.

    Raises:
        UsageError: the environment variable is not set, or names no folder of assets.
    """
    named = os.environ.get(_VARIABLE)
    if not named:
        raise UsageError(f"the benchmark needs trained models: set {_VARIABLE} to the folder of the assets")
    folder = Path(named).resolve()
    if not (folder / "load.py").is_file():
        raise UsageError(f"{_VARIABLE}={named}: no load.py there, so this is not the folder of the assets")
    return folder


def select(names: list[str], benchmark: str) -> list[Asset]:
    """Return the assets of `benchmark` whose model names start with one of `names`; all where there are none.

    A name that is the whole of one model's stands for that model alone.

    Raises:
        UsageError: a name fits no model.
    """
    assets = [asset for asset in ASSETS if benchmark in asset.benchmarks]
    known = [asset.model for asset in assets]
    for name in names:
        if not any(model.startswith(name) for model in known):
            raise UsageError(
                f"no asset model starts with {name!r}.{near_names(name, known)} There are: {', '.join(known)}"
            )
    starts = tuple(name for name in names if name not in known)
    return [asset for asset in assets if not names or asset.model in names or asset.model.startswith(starts)]


@contextlib.contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    """Give a folder for prepared data and compiled models: `keep`, which stays, or one that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="onnxpress-bench-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def model_path(asset: Asset) -> Path:
    """Return where the asset's model lies."""
    return assets_folder() / "models" / f"{asset.model}.onnx"


def prepare(asset: Asset, folder: Path, *, limit: int | None = None) -> tuple[Path, Path, Path]:
    """Return paths of model, calibration .npz and evaluation .npz (arrays: the input's name, labels).

    The .npz files are written to `folder` where they are not there yet. limit: evaluate on so many images only.
    """
    assets = assets_folder()
    loader = _loader(assets)
    paths = []
    for dataset, count in ((asset.calibration, asset.samples), (asset.evaluation, limit)):
        path = folder / f"{asset.model}.{dataset}.{count or 'all'}.npz"
        if not path.exists():
            images, labels = loader.load_dataset(dataset, model=asset.model, count=count)
            np.savez(path, **{asset.input_name: images, "labels": labels})
        paths.append(path)
    return model_path(asset), paths[0], paths[1]


def _loader(assets: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("onnxpress_assets_load", assets / "load.py")
    assert spec is not None and spec.loader is not None, "assets_folder() has seen the file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
