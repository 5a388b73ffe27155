"""Memory: how it is counted, and that a compression is bounded by the model, not by the calibration data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxpress.tools import memory
from onnxpress.tools.memory import peak_rss_bytes

_RUN = """
import sys
from onnxpress.tools.compress import compress
from onnxpress.tools.memory import peak_rss_bytes
compress(sys.argv[1], data=sys.argv[2])
print(peak_rss_bytes() // 1024)
"""


def test_a_program_does_not_start_at_the_peak_of_its_parent() -> None:
    ballast = np.ones(25_000_000, np.float64)  # 200 MB
    code = "from onnxpress.tools.memory import peak_rss_bytes; print(peak_rss_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_rss_bytes() > ballast.nbytes
    assert 5_000_000 < int(done.stdout) < 100_000_000


def test_without_a_status_file_the_peak_is_getrusage_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert peak_rss_bytes() == pytest.approx(known, rel=0.05)
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t 7 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "status")
    assert peak_rss_bytes() == pytest.approx(known, rel=0.05)
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2144 kB\n", encoding="ascii")
    assert peak_rss_bytes() == 2144 * 1024


def _peak_kilobytes(model: Path, data: Path) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(model), str(data)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def test_eight_times_the_samples_take_no_more_memory(demo_files: Path) -> None:
    with np.load(demo_files / "calibration.npz") as arrays:
        images = arrays["input"].astype(np.float32)
    repeated = np.tile(images, (8, 1, 1, 1))  # observed inner values of all together: 250 MiB
    np.savez(demo_files / "few.npz", input=images)
    np.savez(demo_files / "many.npz", input=repeated)
    few = _peak_kilobytes(demo_files / "digits.onnx", demo_files / "few.npz")
    many = _peak_kilobytes(demo_files / "digits.onnx", demo_files / "many.npz")
    assert many < few + 16 * 1024, f"{few} kB for 256 samples, {many} kB for 2,048"
