"""A folder of assets that holds the demo's model, for the benchmarks' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onnxpress.tools.bench import assets

_LOADER = """
from pathlib import Path
import numpy as np

def load_dataset(name, *, model, count):
    with np.load(Path(__file__).parent / f"{name}.npz") as arrays:
        return arrays["input"][:count].astype(np.float32), arrays["labels"][:count]
"""


@pytest.fixture
def demo_asset(demo_files: Path, monkeypatch: pytest.MonkeyPatch) -> assets.Asset:
    """The demo's model as the only asset."""
    (demo_files / "models").mkdir()
    shutil.copy(demo_files / "digits.onnx", demo_files / "models" / "digits.onnx")
    (demo_files / "load.py").write_text(_LOADER, encoding="utf-8")
    monkeypatch.setenv("ONNXPRESS_ASSETS", str(demo_files))
    asset = assets.Asset("digits", "input", "calibration", "evaluation", 16)
    monkeypatch.setattr(assets, "ASSETS", (asset,))
    return asset
