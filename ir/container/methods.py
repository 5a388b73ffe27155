"""The methods, and the choice among them: every one that may fit a tensor is tried, the shortest stays.

What a method decodes is a run of bytes as ONNX stores them in `raw_data`: little endian, sub-byte types packed.
"""

from __future__ import annotations

import enum
import lzma
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.container.codebooks import codebook_of, read_codebook, values_of, write_codebook
from onnxpress.ir.container.coder import Decoder, Encoder, StreamError
from onnxpress.ir.container.floats import (
    FORMATS,
    read_floats,
    read_sparse_floats,
    write_floats,
    write_sparse_floats,
)
from onnxpress.ir.container.grids import grid_of, may_have_grid, read_grid, write_grid
from onnxpress.ir.container.integers import read_fields, read_planes, write_fields, write_planes

__all__ = ["Method", "decode", "encode", "encode_bytes", "is_plain"]

Bytes = npt.NDArray[np.uint8]

_SPARSE_FROM = 0.1  # share of zeros from which floats are told apart from them first
_LZMA_BYTES = 4096  # up to here general compression is tried on all tensors
_FEW_VALUES = 16  # so few may repeat in patterns that general compression finds
_SHORT_ENOUGH = 4  # wide integers that general compression makes so much shorter are not tried as planes
_STEP_BYTES = 1 << 20  # that are decompressed at a time
_NICE_BYTES = 28  # a match so long is taken: a quarter of the time of more, for some hundred bytes of a large skeleton
_DICTIONARY_BYTES = 16 << 20  # of the decoder; an encoder takes no more than its data fills, which is much quicker


class Method(enum.IntEnum):
    """How a run of bytes is coded. The numbers are in files: they never change."""

    STORED = 0
    LZMA = 1
    CODEBOOK = 2
    GRID = 3
    FLOATS = 4
    SPARSE_FLOATS = 5
    FIELDS = 6
    PLANES = 7

    @property
    def label(self) -> str:
        """The name that reports use, such as "sparse floats"."""
        return self.name.lower().replace("_", " ")


def encode(
    data: bytes | memoryview, dtype: onnx_ir.DataType, shape: Sequence[int], members: Sequence[Sequence[int]] = ()
) -> tuple[Method, bytes]:
    """Return the shortest coding of a tensor's bytes, and its method. members: shapes of the tensors joined in it."""
    best: tuple[Method, bytes] = (Method.STORED, bytes(data))
    for method, write in _candidates(np.frombuffer(data, np.uint8), dtype, shape, members):
        if method is Method.LZMA and _is_hopeless(data, len(best[1])):
            continue
        if method is Method.PLANES and _SHORT_ENOUGH * len(best[1]) < len(data):
            continue
        stream = write()
        if len(stream) < len(best[1]):
            best = method, stream
    return best


def encode_bytes(data: bytes) -> tuple[Method, bytes]:
    """Return the shortest coding of bytes that are no tensor's."""
    return min(((Method.LZMA, _lzma(data)), (Method.STORED, data)), key=lambda each: len(each[1]))


def decode(
    method: Method,
    stream: memoryview,
    size: int,
    dtype: onnx_ir.DataType,
    shape: Sequence[int],
    members: Sequence[Sequence[int]] = (),
) -> bytes | memoryview:
    """Return the `size` bytes that a method coded.

    Raises:
        StreamError: the stream is none that the method writes.
    """
    if method is Method.STORED:
        found: bytes | memoryview = stream
    elif method is Method.LZMA:
        found = _unlzma(stream, size)
    else:
        decoder = Decoder(stream)
        if method is Method.FLOATS:
            found = _as_bytes(read_floats(decoder, members or [shape], _format(dtype)))
        else:
            found = _as_bytes(_READERS[method](decoder, size, dtype, shape))
        decoder.finish()
    if len(found) != size:
        raise StreamError(f"{len(found)} bytes were decoded where {size} are declared")
    return found


def _candidates(
    data: Bytes, dtype: onnx_ir.DataType, shape: Sequence[int], members: Sequence[Sequence[int]]
) -> Iterator[tuple[Method, Callable[[], bytes]]]:
    """Yield the methods that may be the shortest."""
    tries_lzma = data.size <= _LZMA_BYTES
    if dtype.name in FORMATS:
        kind = FORMATS[dtype.name]
        bits = data.view(f"<u{kind.width // 8}").reshape(shape)
        codebook = codebook_of(bits, is_float=True)
        tries_lzma |= codebook is not None and codebook.size <= _FEW_VALUES
        grid = None
        if dtype == onnx_ir.DataType.FLOAT:
            values = None if codebook is None else values_of(codebook, bits.dtype, is_float=True).view(np.float32)
            grid = grid_of(bits.view(np.float32), values)
        if grid is not None:
            yield Method.GRID, _writer(write_grid, bits.view(np.float32), grid)
        if codebook is not None:
            yield Method.CODEBOOK, _writer(write_codebook, bits, True, codebook)
        if grid is None and (codebook is None or not _is_short(codebook.size, int(np.count_nonzero(bits)), kind.width)):
            if _is_sparse(bits) and not members:
                yield Method.SPARSE_FLOATS, _writer(write_sparse_floats, bits, kind)
            else:
                yield Method.FLOATS, _writer(write_floats, bits, members or [shape], kind)
    elif dtype.bitwidth <= 8:
        tries_lzma |= data.size <= 16 * _LZMA_BYTES or _has_few_values(data)
        for width in (8, 4, 2):
            if dtype == onnx_ir.DataType.UINT8 or width == min(8, dtype.bitwidth):
                yield Method.FIELDS, _writer(write_fields, data, shape, width)
    else:
        yield Method.LZMA, lambda: _lzma(data.tobytes(), quick=data.size > 16 * _LZMA_BYTES)
        tries_lzma = False
        width = dtype.bitwidth // 8
        if width in (2, 4, 8):
            bits = data.view(f"<u{width}").reshape(shape)
            codebook = codebook_of(bits, is_float=False)
            if codebook is not None:
                yield Method.CODEBOOK, _writer(write_codebook, bits, False, codebook)
        yield Method.PLANES, _writer(write_planes, data, width)
    if tries_lzma:
        yield Method.LZMA, lambda: _lzma(data.tobytes(), quick=data.size > 16 * _LZMA_BYTES)


def is_plain(data: bytes | memoryview, dtype: onnx_ir.DataType, shape: Sequence[int]) -> bool:
    """Tell whether a tensor's bytes are floats like any, which may be coded with others."""
    if dtype.name not in FORMATS:
        return False
    bits = np.frombuffer(data, f"<u{dtype.bitwidth // 8}").reshape(shape)
    if _is_sparse(bits) or codebook_of(bits, is_float=True) is not None:
        return False
    return dtype != onnx_ir.DataType.FLOAT or not may_have_grid(bits.view(np.float32))


def _is_short(values: int, kept: int, width: int) -> bool:
    """Tell whether a codebook of so many values is surely shorter than floats, which lose 6 bits each at most."""
    return values * width + kept * values.bit_length() < kept * (width - 6)


def _is_sparse(bits: npt.NDArray[Any]) -> bool:
    return 1 - int(np.count_nonzero(bits)) / max(1, bits.size) > _SPARSE_FROM


def _is_hopeless(data: bytes | memoryview, best: int) -> bool:
    """Tell whether general compression of the beginning says that all of it would be longer than the best so far."""
    beginning = bytes(data[: 4 * _LZMA_BYTES])
    return len(data) > 8 * len(beginning) and 2 * len(_lzma(beginning)) * len(data) > 3 * best * len(beginning)


def _has_few_values(data: Bytes) -> bool:
    return np.unique(data[:: max(1, data.size // _LZMA_BYTES)]).size <= _FEW_VALUES


def _writer(write: Callable[..., None], *arguments: Any) -> Callable[[], bytes]:
    def run() -> bytes:
        encoder = Encoder()
        write(encoder, *arguments)
        return encoder.finish()

    return run


_Reader = Callable[[Decoder, int, onnx_ir.DataType, Sequence[int]], npt.NDArray[Any]]


def _read_codebook(decoder: Decoder, size: int, dtype: onnx_ir.DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    width = dtype.bitwidth // 8
    if width not in (2, 4, 8) or dtype.bitwidth % 8:
        raise StreamError(f"no codebook holds {dtype.name.lower()}")
    return read_codebook(decoder, shape, np.dtype(f"<u{width}"), dtype.name in FORMATS)


def _read_grid(decoder: Decoder, size: int, dtype: onnx_ir.DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    if dtype != onnx_ir.DataType.FLOAT:
        raise StreamError(f"no grid holds {dtype.name.lower()}")
    return read_grid(decoder, shape)


def _read_sparse(decoder: Decoder, size: int, dtype: onnx_ir.DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    return read_sparse_floats(decoder, shape, _format(dtype))


def _read_fields(decoder: Decoder, size: int, dtype: onnx_ir.DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    return read_fields(decoder, size, shape)


def _read_planes(decoder: Decoder, size: int, dtype: onnx_ir.DataType, shape: Sequence[int]) -> npt.NDArray[Any]:
    return read_planes(decoder, size, max(1, dtype.bitwidth // 8))


_READERS: dict[Method, _Reader] = {
    Method.CODEBOOK: _read_codebook,
    Method.GRID: _read_grid,
    Method.SPARSE_FLOATS: _read_sparse,
    Method.FIELDS: _read_fields,
    Method.PLANES: _read_planes,
}


def _format(dtype: onnx_ir.DataType) -> Any:
    if dtype.name not in FORMATS:
        raise StreamError(f"{dtype.name.lower()} is no floating-point type of this method")
    return FORMATS[dtype.name]


def _as_bytes(array: npt.NDArray[Any]) -> memoryview:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def _lzma(data: bytes, *, quick: bool = False) -> bytes:
    dictionary = min(_DICTIONARY_BYTES, max(4096, 1 << (len(data) - 1).bit_length()))
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(dictionary, quick))


def _filters(dictionary: int, quick: bool) -> list[dict[str, int]]:
    found = {"id": lzma.FILTER_LZMA2, "dict_size": dictionary, "lc": 0, "lp": 0, "pb": 0}
    return [{**found, "preset": 1} if quick else {**found, "preset": 6, "nice_len": _NICE_BYTES}]


def _unlzma(stream: memoryview, size: int) -> bytes:
    # All else that a decoder needs is in the stream.
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(_DICTIONARY_BYTES, quick=True))
    found = bytearray()
    try:
        # In steps, so that a stream takes no more memory than what it really holds, whatever size is declared.
        while not decompressor.eof and len(found) <= size:
            step = decompressor.decompress(b"" if found else stream, max_length=min(_STEP_BYTES, size + 1 - len(found)))
            if not step and not decompressor.eof:
                break  # it is cut off
            found += step
    except lzma.LZMAError as error:
        raise StreamError(f"lzma says: {error}") from None
    if not decompressor.eof or decompressor.unused_data:
        raise StreamError("the lzma stream does not end where it should")
    return bytes(found)
