"""What every test shares: the asset folder, the demo's files, and hypothesis' settings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

_ASSETS_VARIABLE = "ONNXPRESS_ASSETS"

# A shared machine makes any deadline flaky. In CI, the same examples each time: a red run must be repeatable.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def _missing_assets(files: tuple[str, ...]) -> str | None:
    """Say why `files` (relative to the asset folder) cannot be used, or None when all are there."""
    folder = os.environ.get(_ASSETS_VARIABLE)
    if not folder:
        return f"needs the benchmark assets: set {_ASSETS_VARIABLE} to their folder"
    if not Path(folder).is_dir():
        return f"{_ASSETS_VARIABLE}={folder} is not a folder"
    lacking = [name for name in files or ("models", "datasets") if not (Path(folder) / name).exists()]
    if lacking:
        return f"{_ASSETS_VARIABLE}={folder} lacks {', '.join(lacking)}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `assets("models/a.onnx", ...)` when a named file is not there.

    Without arguments the mark asks for the folders `models` and `datasets`.
    """
    for mark in item.iter_markers("assets"):
        reason = _missing_assets(mark.args)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of the benchmark assets. Skips where there is none; mark the test `assets` too."""
    reason = _missing_assets(())
    if reason:
        pytest.skip(reason)
    return Path(os.environ[_ASSETS_VARIABLE]).resolve()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree that these tests belong to."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def demo_files(tmp_path: Path, repository: Path) -> Path:
    """A fresh folder that holds copies of `digits.onnx`, `calibration.npz` and `evaluation.npz`."""
    for name in ("digits.onnx", "calibration.npz", "evaluation.npz"):
        shutil.copy(repository / "tools" / "demo" / name, tmp_path / name)
    return tmp_path
