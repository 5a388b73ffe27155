"""Each method restores every bit, and is the one that is chosen for what it is made for."""

from __future__ import annotations

import hypothesis
import hypothesis.extra.numpy as arrays_of
import numpy as np
import numpy.typing as npt
import onnx_ir
import pytest
from hypothesis import strategies as some

from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.methods import Method, decode, encode
from tests.support import Array

_RNG = np.random.default_rng(0)
_TYPES = {
    onnx_ir.DataType.FLOAT: np.uint32,
    onnx_ir.DataType.DOUBLE: np.uint64,
    onnx_ir.DataType.FLOAT16: np.uint16,
    onnx_ir.DataType.BFLOAT16: np.uint16,
    onnx_ir.DataType.FLOAT8E4M3FN: np.uint8,
    onnx_ir.DataType.FLOAT8E5M2: np.uint8,
    onnx_ir.DataType.INT8: np.uint8,
    onnx_ir.DataType.UINT8: np.uint8,
    onnx_ir.DataType.INT16: np.uint16,
    onnx_ir.DataType.INT32: np.uint32,
    onnx_ir.DataType.INT64: np.uint64,
    onnx_ir.DataType.BOOL: np.uint8,
    onnx_ir.DataType.COMPLEX64: np.uint64,
}


def _restored(array: Array, dtype: onnx_ir.DataType) -> tuple[Method, int]:
    """Check that the bytes come back, and return the method and the coded size."""
    data = array.tobytes()
    method, stream = encode(data, dtype, array.shape)
    again = decode(method, memoryview(stream), len(data), dtype, array.shape)
    assert bytes(again) == data
    return method, len(stream)


def _normal(*shape: int, sigma: float = 0.05) -> npt.NDArray[np.float32]:
    return (_RNG.standard_normal(shape) * sigma).astype(np.float32)


@pytest.mark.parametrize("dtype", _TYPES, ids=lambda dtype: dtype.name)
@hypothesis.given(data=some.data())
@hypothesis.settings(max_examples=15)
def test_any_bits_come_back(dtype: onnx_ir.DataType, data: some.DataObject) -> None:
    """NaNs with their payloads, both zeros, infinities and denormals are bits like others."""
    shape = data.draw(arrays_of.array_shapes(min_dims=0, max_dims=5, max_side=9))
    kind = np.dtype(_TYPES[dtype])
    top = 1 << 8 * kind.itemsize
    few = some.sampled_from([0, 1, top // 2, top // 2 + 1, top - 1, 3 * top // 8])
    values = data.draw(some.sampled_from([few, some.integers(0, top - 1)]))
    _restored(data.draw(arrays_of.arrays(kind, shape, elements=values)), dtype)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (4, 8), (2, 3, 3, 3)])
def test_packed_types_come_back(bits: int, shape: tuple[int, ...]) -> None:
    dtype = onnx_ir.DataType.INT4 if bits == 4 else onnx_ir.DataType.UINT2
    size = -(-int(np.prod(shape)) * bits // 8)
    data = _RNG.integers(0, 256, size, np.uint8).tobytes()
    method, stream = encode(data, dtype, shape)
    assert bytes(decode(method, memoryview(stream), size, dtype, shape)) == data


def test_plain_floats() -> None:
    method, size = _restored(
        _normal(64, 32, 3, 3) * np.exp2(np.arange(64, dtype=np.float32) % 8)[:, None, None, None], _FLOAT
    )
    assert method is Method.FLOATS
    # 24 bits of sign and mantissa are noise; a normal distribution of known width has 1.9 bits of exponent.
    assert size * 8 < 64 * 32 * 9 * 26.75


def test_sparse_floats() -> None:
    weights = _normal(64, 32, 3, 3)
    weights[_RNG.random(weights.shape) < 0.8] = 0
    method, size = _restored(weights, _FLOAT)
    assert method is Method.SPARSE_FLOATS
    assert size < 0.2 * weights.nbytes


@pytest.mark.parametrize("axis", [0, 1, None])
def test_grids_of_channels(axis: int | None) -> None:
    codes = np.clip(np.rint(_RNG.normal(0, 35, (96, 160))), -127, 127).astype(np.float32)
    codes[:, 0] = codes[0, :] = 127  # as schemes by the largest magnitude have it
    scales = np.exp2(_RNG.uniform(-9, -3, 1 if axis is None else codes.shape[axis])).astype(np.float32)
    weights = codes * (scales if axis != 0 else scales[:, None])
    weights[5, 7] = 1e-4  # off the formula: kept beside the codes
    assert np.signbit(weights[weights == 0]).any()  # rounding makes -0.0
    method, size = _restored(weights, _FLOAT)
    assert method is Method.GRID
    assert size * 8 < weights.size * 7.8 + 32 * 160


def test_a_codebook_with_smooth_kernels_beats_its_entropy() -> None:
    values = np.sort(_normal(64))
    smooth = np.cumsum(_RNG.standard_normal((64, 32, 3, 3)), axis=-1)
    ranks = np.clip(np.rint(smooth * 12 + 32), 0, 63).astype(int)
    method, size = _restored(values[ranks], _FLOAT)
    counts = np.bincount(ranks.reshape(-1))
    share = counts[counts > 0] / ranks.size
    assert method is Method.CODEBOOK
    assert size * 8 < ranks.size * -(share * np.log2(share)).sum()


def test_a_constant_is_a_few_bytes() -> None:
    assert _restored(np.full((64, 64), 1.5, np.float32), _FLOAT)[1] < 40


def test_zeros_that_gather_cost_less_than_their_entropy() -> None:
    rows, columns = _RNG.uniform(0.05, 0.95, (128, 1)), _RNG.uniform(0.05, 0.95, (1, 64))
    density = (rows * columns / (rows * columns + (1 - rows) * (1 - columns)))[:, :, None, None]
    ranks = np.where(_RNG.random((128, 64, 3, 3)) < density, _RNG.integers(1, 9, (128, 64, 3, 3)), 0)
    method, size = _restored(_normal(1, 9)[0][ranks], _FLOAT)
    kept = float((ranks > 0).mean())
    mask = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept))
    assert method is Method.CODEBOOK
    assert size * 8 < ranks.size * (0.75 * mask + 3 * kept) + 800


@pytest.mark.parametrize(("width", "sigma"), [(4, 2.0), (2, 0.7)])
def test_codes_inside_bytes(width: int, sigma: float) -> None:
    half = 1 << (width - 1)
    codes = np.clip(np.rint(_RNG.normal(half, sigma, (64, 512))), 0, 2 * half - 1).astype(np.uint8)
    lanes = codes.reshape(64, -1, 8 // width)
    packed = np.bitwise_or.reduce(lanes << (np.arange(8 // width, dtype=np.uint8) * np.uint8(width)), axis=2)
    counts = np.bincount(codes.reshape(-1))
    share = counts[counts > 0] / codes.size
    method, size = _restored(packed, onnx_ir.DataType.UINT8)
    assert method is Method.FIELDS
    assert size * 8 < codes.size * -(share * np.log2(share)).sum() * 1.02 + 200


def test_half_precision_and_wide_integers() -> None:
    half = _normal(256, 64).astype(np.float16)
    assert _restored(half, onnx_ir.DataType.FLOAT16) < (Method.FLOATS, 0.9 * half.nbytes)
    counters = np.arange(5000, dtype=np.int64) * 1009 % 70_000
    assert _restored(counters, onnx_ir.DataType.INT64)[0] in (Method.PLANES, Method.LZMA)
    pattern = np.tile(np.arange(7, dtype=np.int64), 3000)
    method, size = _restored(pattern, onnx_ir.DataType.INT64)
    assert method is Method.LZMA and size < 200


def test_noise_is_stored() -> None:
    noise = _RNG.integers(0, 256, 10_000, np.uint8)
    assert _restored(noise, onnx_ir.DataType.FLOAT8E5M2) == (Method.STORED, 10_000)


_FLOAT = onnx_ir.DataType.FLOAT


@hypothesis.given(
    some.lists(some.integers(-300, 300), max_size=60), some.lists(some.integers(0, 2**40), max_size=5), some.binary()
)
def test_streams_come_back(small: list[int], numbers: list[int], plain: bytes) -> None:
    encoder = Encoder()
    for number in numbers:
        encoder.number(number)
        encoder.signed(-number)
    encoder.small(np.array(small, np.int32))
    encoder.plain(plain)
    decoder = Decoder(encoder.finish())
    assert [(decoder.number(), decoder.signed()) for _ in numbers] == [(number, -number) for number in numbers]
    assert decoder.small(len(small)).tolist() == small
    assert bytes(decoder.plain(len(plain))) == plain
    decoder.finish()


@hypothesis.given(some.data())
@hypothesis.settings(max_examples=100)
def test_streams_that_nobody_wrote_are_told(data: some.DataObject) -> None:
    """With a digest that fits, damage reaches the decoder: it must end in other bytes or a StreamError."""
    name = data.draw(some.sampled_from(sorted(_SAMPLES)))
    method, stream, dtype, shape = _SAMPLES[name]
    broken = bytearray(stream)
    for _ in range(data.draw(some.integers(1, 4))):
        broken[data.draw(some.integers(0, len(broken) - 1))] = data.draw(some.integers(0, 255))
    size = int(np.prod(shape)) * dtype.bitwidth // 8
    try:
        found = decode(method, memoryview(bytes(broken)), size, dtype, shape)
    except (StreamError, ValueError, IndexError, OverflowError, TypeError):
        return
    assert len(found) == size


def _sample(array: Array, dtype: onnx_ir.DataType) -> tuple[Method, bytes, onnx_ir.DataType, tuple[int, ...]]:
    return *encode(array.tobytes(), dtype, array.shape), dtype, array.shape


_SPARSE = np.where(_RNG.random((32, 24, 3, 3)) < 0.3, _normal(32, 24, 3, 3), np.float32(0))
_SAMPLES = {
    "floats": _sample(_normal(8, 8, 3, 3), _FLOAT),
    "sparse": _sample(_SPARSE, _FLOAT),
    "codebook": _sample(np.sort(_normal(20))[_RNG.integers(0, 20, (16, 8, 3, 3))], _FLOAT),
    "grid": _sample(np.clip(np.rint(_normal(64, 40, sigma=60)), -127, 127) * np.float32(0.01), _FLOAT),
    "fields": _sample(_RNG.binomial(40, 0.5, (64, 64)).astype(np.uint8), onnx_ir.DataType.INT8),
    "planes": _sample(_RNG.integers(0, 3000, (50, 60)).astype(np.int32), onnx_ir.DataType.INT32),
}


def test_the_samples_are_of_all_kinds() -> None:
    assert {sample[0] for sample in _SAMPLES.values()} == {
        Method.FLOATS,
        Method.SPARSE_FLOATS,
        Method.CODEBOOK,
        Method.GRID,
        Method.FIELDS,
        Method.PLANES,
    }
