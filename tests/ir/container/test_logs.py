"""Logarithms in whole numbers are near the true ones, and nothing an encoder chooses hangs on the machine."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir

from onnxpress.ir.container.logs import LOG_BITS, entropy_bits, log2_parts, quarter_octaves
from onnxpress.ir.container.methods import encode


def test_logarithms_are_near() -> None:
    values = np.concatenate([np.arange(1, 5000), np.array([10**6, 2**40 + 1, 2**52])])
    np.testing.assert_allclose(log2_parts(values) / (1 << LOG_BITS), np.log2(values), rtol=0, atol=2e-4)
    assert log2_parts(1 << np.arange(52)).tolist() == [index << LOG_BITS for index in range(52)]
    assert log2_parts(np.array([0])).tolist() == [0]


def test_quarter_octaves_are_rounded() -> None:
    parts = np.array([1, 100, 119, 168, 200, 3200])
    assert quarter_octaves(parts, 100).tolist() == [-27, 0, 1, 3, 4, 20]


def test_entropy_of_classes_is_the_sum_of_theirs() -> None:
    assert entropy_bits(np.array([256, 256, 512])) == 1536
    assert entropy_bits(np.array([[256, 256], [0, 512]])) == 512


def test_equal_tensors_have_equal_streams_on_every_machine() -> None:
    """The digests were made on one machine; another BLAS, libm or vector unit must not change them."""
    rng = np.random.default_rng(0)
    whole = rng.integers(-1000, 1000, (2, 64, 32, 3, 3)).astype(np.float32)
    floats = whole[0] * whole[1] * np.float32(2**-20)
    near = whole[0] + np.roll(whole[0], 1, axis=3) + np.roll(whole[0], 1, axis=2)
    sparse = np.where(np.abs(near) < 900, np.float32(0), np.rint(near / 64)) * np.float32(0.011)
    found = [
        hashlib.sha256(encode(array.tobytes(), onnx_ir.DataType.FLOAT, array.shape)[1]).hexdigest()[:16]
        for array in (floats, sparse)
    ]
    assert found == ["408a3dc510430392", "cbdc12c153e0089b"]
