"""The demo's model and data: a small conv net on scikit-learn's digits, trained by `train_digits.py`."""

from __future__ import annotations

import atexit
import contextlib
import functools
from importlib import resources
from pathlib import Path

import numpy as np

__all__ = ["calibration", "evaluation", "model_path"]

# Open until the process ends, so that a path stays good even where the package is not a plain folder.
_FILES = contextlib.ExitStack()
atexit.register(_FILES.close)


def model_path() -> Path:
    """Return the path of `digits.onnx`: input `input` [N, 1, 16, 16] float32, output `logits` [N, 10]."""
    return _path("digits.onnx")


def calibration() -> dict[str, np.ndarray]:
    """Return the calibration set, drawn from the training images: `input` and `labels`, 256 of each."""
    return _arrays("calibration.npz")


def evaluation() -> dict[str, np.ndarray]:
    """Return the images that training never saw: `input` [797, 1, 16, 16] float32, `labels` [797] int64."""
    return _arrays("evaluation.npz")


@functools.cache
def _path(name: str) -> Path:
    return _FILES.enter_context(resources.as_file(resources.files("onnxpress.tools.demo") / name))


def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(_path(name), allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
