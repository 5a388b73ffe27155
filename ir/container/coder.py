"""The entropy coder: symbols under integer frequency tables, by constriction's range coder.

A stream has two parts, a plain one (counts, parameters, bits that no model can shorten) and a coded one. The decoder
must find the very probabilities that the encoder used, on every machine. So tables are integers, whose sums float32
holds exactly, and nothing on the way to them depends on how a processor or a library rounds exp, log or a sum.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["FLAG_ONE", "Decoder", "Encoder", "Integers", "StreamError", "flag_share"]

Array: TypeAlias = npt.NDArray[Any]
Chances: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.integer[Any]]

FLAG_ONE = 1 << 16  # the probability of a flag is counted in parts of this
_TABLE_LIMIT = 1 << 24  # float32 holds every integer up to here
_RATIO_BITS = 5  # of the geometric tables for small numbers
_WIDEST = 1 << 16  # symbols of a table


class StreamError(Exception):
    """A coded stream is not one that the encoder wrote."""


class Encoder:
    """Writes a stream. Whatever is written is read back by `Decoder` in the same order."""

    def __init__(self) -> None:
        import constriction

        self._model = constriction.stream.model
        self._coder = constriction.stream.queue.RangeEncoder()
        self._plain = bytearray()

    def number(self, value: int) -> None:
        """Write a whole number, 0 or more."""
        while value > 0x7F:
            self._plain.append(value & 0x7F | 0x80)
            value >>= 7
        self._plain.append(value)

    def signed(self, value: int) -> None:
        """Write a whole number of either sign."""
        self.number(2 * value if value >= 0 else -2 * value - 1)

    def plain(self, data: bytes) -> None:
        """Write bytes as they are; the reader must know how many."""
        self._plain += data

    def symbols(self, values: Integers, table: Integers) -> None:
        """Code symbols 0..len(table)-1, each with the frequency that `table` gives it."""
        if values.size and len(table) > 1:
            self._coder.encode(_coder_symbols(values), self._model.Categorical(_probabilities(table), perfect=False))

    def flags(self, values: Array, ones: Chances) -> None:
        """Code flags of 0 or 1. ones: for each the probability of a 1, a whole number of parts of FLAG_ONE."""
        if values.size:
            self._coder.encode(_coder_symbols(values), self._model.Bernoulli(perfect=False), ones)

    def small(self, values: Integers) -> None:
        """Code small numbers that gather about one value, under a two-sided geometric table."""
        if not values.size:
            return
        ordered = np.sort(values)
        lowest, centre = int(ordered[0]), int(ordered[values.size // 2])
        width = int(ordered[-1]) - lowest + 1
        ratio = _ratio(float(np.abs(values - centre).mean()))
        self.signed(lowest)
        self.number(width)
        self.number(centre - lowest)
        self.number(ratio)
        self.symbols(values - lowest, _geometric(width, centre - lowest, ratio))

    def finish(self) -> bytes:
        """Return the stream."""
        head = Encoder.__new__(Encoder)
        head._plain = bytearray()
        head.number(len(self._plain))
        coded: bytes = self._coder.get_compressed().astype("<u4").tobytes()
        return bytes(head._plain + self._plain) + coded.rstrip(b"\0")  # whoever reads on finds zeros


class Decoder:
    """Reads a stream that `Encoder` wrote.

    Raises:
        StreamError: (all methods) the stream is none that an encoder writes.
    """

    def __init__(self, stream: bytes | memoryview) -> None:
        import constriction

        self._model = constriction.stream.model
        self._plain = memoryview(stream)
        self._at = 0
        end = self.number() + self._at
        if end > len(stream):
            raise StreamError("the parts of the stream do not fit its length")
        words = np.zeros(-(-(len(stream) - end) // 4), np.uint32)
        words.view(np.uint8)[: len(stream) - end] = np.frombuffer(stream, np.uint8, offset=end)
        self._coder = constriction.stream.queue.RangeDecoder(words if sys.byteorder == "little" else words.byteswap())
        self._plain = self._plain[:end]

    def number(self, limit: int = 1 << 48) -> int:
        """Read a whole number of at most `limit`."""
        value, shift = 0, 0
        while True:
            if self._at >= len(self._plain) or shift > 56:
                raise StreamError("a number is cut off")
            byte = self._plain[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise StreamError(f"a number is {value}, above its limit of {limit}")
        return value

    def signed(self) -> int:
        """Read a whole number of either sign."""
        value = self.number()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def plain(self, count: int) -> memoryview:
        """Read bytes as they are."""
        if count > len(self._plain) - self._at:
            raise StreamError(f"{count} bytes are wanted where {len(self._plain) - self._at} are left")
        self._at += count
        return self._plain[self._at - count : self._at]

    def rest(self) -> memoryview:
        """Return the plain bytes that are left, without taking them."""
        return self._plain[self._at :]

    def symbols(self, count: int, table: Integers) -> npt.NDArray[np.int32]:
        """Read `count` symbols that were coded under `table`."""
        if not count or len(table) < 2:
            return np.zeros(count, np.int32)
        return self._decode(self._model.Categorical(_probabilities(table), perfect=False), count)

    def flags(self, ones: Chances) -> npt.NDArray[np.int32]:
        """Read a flag for each of the probabilities."""
        if not ones.size:
            return np.zeros(0, np.int32)
        return self._decode(self._model.Bernoulli(perfect=False), ones)

    def small(self, count: int) -> npt.NDArray[np.int32]:
        """Read `count` small numbers."""
        if not count:
            return np.zeros(0, np.int32)
        lowest, width = self.signed(), self.number(_WIDEST)
        centre, ratio = self.number(_WIDEST), self.number((1 << _RATIO_BITS) - 1)
        if not 0 <= centre < width or abs(lowest) > _WIDEST:
            raise StreamError("the range of small numbers is none")
        return self.symbols(count, _geometric(width, centre, ratio)) + np.int32(lowest)

    def finish(self) -> None:
        """Check that all of the plain part was read."""
        if self._at != len(self._plain):
            raise StreamError(f"{len(self._plain) - self._at} bytes are left over")

    def _decode(self, *arguments: Any) -> npt.NDArray[np.int32]:
        try:
            found: npt.NDArray[np.int32] = self._coder.decode(*arguments)
        except (AssertionError, ValueError) as error:  # how constriction says that no encoder wrote this
            raise StreamError(str(error).strip()) from None
        return found


def flag_share(share: int, count: int) -> Chances:
    """Return the same probability for each of `count` flags. share: in parts of FLAG_ONE."""
    return np.full(count, share / FLAG_ONE, np.float32)


def _coder_symbols(values: Array) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(values, np.int32).reshape(-1)


def _probabilities(table: Integers) -> npt.NDArray[np.float32]:
    assert int(table.sum()) <= _TABLE_LIMIT, "float32 must hold the sum exactly"
    return table.astype(np.float32)


def _geometric(width: int, centre: int, ratio: int) -> npt.NDArray[np.int64]:
    """Return frequencies that fall by ratio / 32 with each step from the centre."""
    falling = _falling(ratio)
    return falling[np.minimum(np.abs(np.arange(-centre, width - centre)), falling.size - 1)]


@functools.cache
def _falling(ratio: int) -> npt.NDArray[np.int64]:
    found = [1 << 16]
    while found[-1] > 1:
        found.append(max(1, found[-1] * ratio >> _RATIO_BITS))
    return np.array(found, np.int64)


def _ratio(deviation: float) -> int:
    """Return the ratio, in parts of 32, whose two-sided geometric distribution has this mean deviation."""
    # The mean deviation of a distribution that falls by r is 2 r / (1 - r^2); solved for r.
    ratio = (np.sqrt(1 + deviation**2) - 1) / deviation if deviation > 0 else 0.0
    return min((1 << _RATIO_BITS) - 1, round(ratio * (1 << _RATIO_BITS)))
