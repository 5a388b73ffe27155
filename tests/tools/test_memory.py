"""Memory of a compression is bounded by the model, not by the calibration data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

_RUN = """
import resource, sys
from onnxpress.tools.compress import compress
compress(sys.argv[1], data=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


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
