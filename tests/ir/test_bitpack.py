"""Codes as bytes: exact both ways, and laid out as ONNX lays out its own small integers."""

from __future__ import annotations

import doctest
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxpress.ir import bitpack
from onnxpress.ir.bitpack import code_type, pack_bits, unpack_bits

Array = npt.NDArray[Any]

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(bitpack)
    assert result.attempted and not result.failed


@settings(max_examples=100)
@given(st.data(), _SHAPES, st.integers(1, 16), st.booleans())
def test_codes_survive_packing_bit_for_bit(
    data: st.DataObject, shape: tuple[int, ...], bits: int, signed: bool
) -> None:
    qmin, qmax = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    codes = data.draw(hnp.arrays(code_type(bits, signed), shape, elements=st.integers(qmin, qmax)))
    packed = pack_bits(codes, bits)
    assert len(packed) == -(-codes.size * bits // 8)
    back = unpack_bits(packed, shape, bits, signed)
    assert back.dtype == codes.dtype
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize(
    ("codes", "bits", "packed"),
    [
        (np.array([1, 2, 3, 0, 3], np.uint8), 2, "3903"),  # 0b00_11_10_01, 0b11
        (np.array([-1, -2, 1], np.int8), 2, "1b"),
        (np.array([1, 15, 7], np.uint8), 4, "f107"),
        (np.array([[-8], [7]], np.int8), 4, "78"),
        (np.array([-1, 1], np.int8), 8, "ff01"),
        (np.array([-2, 258], np.int16), 16, "feff0201"),
        (np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], np.uint8), 1, "0d01"),
        (np.array([1, 2, -1], np.int8), 3, "d101"),  # 0b111_010_001
        (np.array([257, 1], np.uint16), 9, "010300"),
    ],
)
def test_packed_form(codes: Array, bits: int, packed: str) -> None:
    assert pack_bits(codes, bits).hex() == packed


@pytest.mark.parametrize("signed", [False, True])
def test_four_bits_are_packed_as_onnx_packs_them(signed: bool) -> None:
    codes = np.arange(-8, 7, dtype=np.int8) if signed else np.arange(15, dtype=np.uint8)
    kind = onnx.TensorProto.INT4 if signed else onnx.TensorProto.UINT4
    packed = onnx.helper.make_tensor("t", kind, [15], pack_bits(codes, 4), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(packed).astype(codes.dtype), codes)


@pytest.mark.parametrize(("bits", "length", "needs"), [(2, 1, 2), (4, 4, 3), (16, 9, 10)])
def test_wrong_number_of_packed_bytes_is_refused(bits: int, length: int, needs: int) -> None:
    message = f"shape [5] needs {needs} packed bytes, got {length}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unpack_bits(bytes(length), (5,), bits, signed=False)
