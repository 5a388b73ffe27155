"""Compiling in a child process: what it is charged with, and what it is handed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from onnxpress.ir.errors import InternalError
from onnxpress.tools.bench.child import _Samples, compile_in_child


def test_the_rival_s_samples_are_read_one_by_one(tmp_path: Path) -> None:
    images = np.arange(4000 * 1024, dtype=np.float32).reshape(4000, 1, 32, 32)  # 16 MB
    path = tmp_path / "samples.npz"
    np.savez(path, x=images, labels=np.zeros(4000, np.int64))
    tracemalloc.start()
    samples = _Samples(path, "x")
    count = 0
    while (feeds := samples.get_next()) is not None:
        assert list(feeds) == ["x"]
        np.testing.assert_array_equal(feeds["x"], images[count : count + 1])
        count += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000 and samples.get_next() is None
    assert peak < 4_000_000  # a quarter of the samples


@pytest.mark.parametrize("compiler", ["onnxpress", "onnxruntime-minmax"])
def test_a_child_is_charged_for_its_own_memory(demo_files: Path, compiler: str) -> None:
    ballast = np.ones(50_000_000, np.float64)  # 400 MB in the parent, which exec hands on in getrusage's number
    assert ballast.sum() > 0
    out = demo_files / "out.onnx"
    with np.load(demo_files / "calibration.npz") as arrays:
        np.savez(demo_files / "few.npz", input=arrays["input"][:16])
    cost = compile_in_child(compiler, demo_files / "digits.onnx", demo_files / "few.npz", out, "input")
    assert out.exists()
    assert 0 < cost["cpu_seconds"] < 60
    assert 50e6 < cost["peak_rss_bytes"] < 300e6


def test_a_failing_compiler_is_named_with_its_last_line(demo_files: Path) -> None:
    with pytest.raises(InternalError) as caught:
        compile_in_child("acme", demo_files / "digits.onnx", demo_files / "calibration.npz", demo_files / "o", "input")
    assert str(caught.value) == "bench: acme on digits.onnx failed: KeyError: 'acme'"
