"""Read columns of samples from arrays, .npy and .npz files, and Python iterables, a bounded piece at a time.

A reader knows nothing of models: it gives named arrays in chunks, in a fixed order, as often as it is asked.
`ir/data.py` fits the names and shapes to a model. Nothing is ever unpickled, and files are read in order
rather than mapped, so that the memory of a pass is that of one chunk however large the file.
"""

from __future__ import annotations

import abc
import contextlib
import itertools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnxpress.ir.errors import InputError, OnnxpressError, UsageError

__all__ = [
    "PAIRED_LABELS",
    "Array",
    "ArrayReader",
    "Chunk",
    "Column",
    "FileReader",
    "ItemReader",
    "Reader",
    "Replay",
    "Store",
    "open_npy",
    "open_npy_columns",
    "open_npz",
]

Array = npt.NDArray[Any]

PAIRED_LABELS = ""  # the column of labels that came as the second of a pair; no ONNX input has an empty name

_LARGEST_ARRAY_BYTES = 2**63 - 1  # of numpy
_IN_MEMORY_LIMIT_BYTES = 1 << 30  # what a one-shot iterator, or an array stored column by column, may take


class Chunk(NamedTuple):
    """Arrays by column name. place: where they came from, for messages, such as "file 'a.npy'", or ""."""

    columns: dict[str, Array]
    place: str = ""


class Column(NamedTuple):
    """What the first array of a column is like. shape: with its leading axis."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Reader(abc.ABC):
    """Named columns in chunks.

    name: what messages and reports call the data.
    rows: True when the leading axis of every array is the samples. False when arrays come as somebody would
    feed them to the model, so that only the model's ranks tell a batch from a single sample.
    ends: whether the samples are known to come to an end. A generator's may not.
    """

    name: str
    rows: bool
    ends = True

    @abc.abstractmethod
    def columns(self) -> dict[str, Column]:
        """Return the columns and what their first array is like. Empty when there is no data at all."""

    @abc.abstractmethod
    def chunks(self, size: int, names: Collection[str]) -> Iterator[Chunk]:
        """Yield the columns `names` from the start; where `rows` holds, at most `size` samples a chunk."""

    def shapes(self, name: str) -> list[tuple[int, ...]] | None:
        """Return the shapes of all arrays of one column, or None where only a whole pass would tell."""
        return None


class ArrayReader(Reader):
    """Arrays in memory. Chunks are views of them."""

    rows = True

    def __init__(self, name: str, arrays: Mapping[str, Any]) -> None:
        self.name = name
        self._arrays = {str(key): _native(value) for key, value in arrays.items()}

    def columns(self) -> dict[str, Column]:
        return {name: Column(array.dtype, array.shape) for name, array in self._arrays.items()}

    def chunks(self, size: int, names: Collection[str]) -> Iterator[Chunk]:
        arrays = {name: self._arrays[name] for name in names}
        if any(array.ndim == 0 for array in arrays.values()):
            yield Chunk(arrays)
            return
        for start in range(0, max(map(len, arrays.values()), default=0), size):
            yield Chunk({name: array[start : start + size] for name, array in arrays.items()})

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [self._arrays[name].shape]


class Store:
    """Named arrays in .npy form that lie in one place: a .npz archive, or .npy files.

    open_streams: context manager that gives the byte stream of each column asked for.
    """

    def __init__(
        self,
        name: str,
        known: Collection[str],
        open_streams: Callable[[Collection[str]], contextlib.AbstractContextManager[dict[str, IO[bytes]]]],
    ) -> None:
        self.name = name
        self.known = tuple(known)
        self._open_streams = open_streams

    def columns(self, names: Collection[str] | None = None) -> dict[str, Column]:
        """Return type and shape of every array, or of `names`, from their headers alone."""
        with self._streams(self.known if names is None else names) as streams:
            headers = {name: self._header(name, stream) for name, stream in streams.items()}
        return {name: Column(header.dtype.newbyteorder("="), header.shape) for name, header in headers.items()}

    def read(self, names: Collection[str], size: int | None) -> Iterator[dict[str, Array]]:
        """Yield at most `size` rows of each array at a time; whole arrays where `size` is None.

        An array that ends before the others is missing rows in the last pieces; the caller compares lengths.
        """
        with self._streams(names) as streams:
            arrays = [_NpyStream(self, name, self._header(name, stream), stream) for name, stream in streams.items()]
            if size is None or any(not array.header.shape for array in arrays):
                yield {array.name: array.read_all() for array in arrays}
                return
            for _ in range(0, max((array.header.shape[0] for array in arrays), default=0), size):
                yield {array.name: array.read_rows(size) for array in arrays}

    @contextlib.contextmanager
    def _streams(self, names: Collection[str]) -> Iterator[dict[str, IO[bytes]]]:
        try:
            with self._open_streams(names) as streams:
                yield streams
        except OnnxpressError:
            raise
        except _UNREADABLE as error:
            raise _unreadable(self.name, error) from error

    def _header(self, name: str, stream: IO[bytes]) -> _Header:
        version = np.lib.format.read_magic(stream)
        read = _HEADER_READERS.get(version)
        if read is None:
            raise ValueError(f"array {name!r} has .npy version {version[0]}.{version[1]}, which is not plain numbers")
        try:
            shape, fortran_order, dtype = read(stream)
        except tokenize.TokenError as error:
            raise ValueError(f"array {name!r} has a header that is no Python") from error
        if dtype.hasobject:
            raise InputError(
                f"data {self.name!r}: array {name!r} holds Python objects, and unpickling them could run any "
                "code. Save plain numbers: numpy.asarray(x, numpy.float32)"
            )
        if dtype.names is not None:
            raise ValueError(f"array {name!r} has named fields, not plain numbers")
        if any(dim < 0 for dim in shape) or math.prod(shape) * dtype.itemsize > _LARGEST_ARRAY_BYTES:
            raise ValueError(f"array {name!r} has the impossible shape {list(shape)}")
        return _Header(tuple(shape), fortran_order, dtype)


class FileReader(Reader):
    """Stores read one after the other.

    With `rows`, each is read a piece at a time; without, each is one batch or one sample, and is read whole.
    """

    def __init__(self, name: str, stores: Iterable[Store], *, rows: bool) -> None:
        self.name = name
        self.rows = rows
        self._stores = tuple(stores)

    def columns(self) -> dict[str, Column]:
        return self._stores[0].columns() if self._stores else {}

    def chunks(self, size: int, names: Collection[str]) -> Iterator[Chunk]:
        for store in self._stores:
            place = "" if self.rows else f"file {Path(store.name).name!r}"
            known = [name for name in names if name in store.known]
            for columns in store.read(known, size if self.rows else None):
                yield Chunk(columns, place)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [store.columns([name])[name].shape for store in self._stores if name in store.known]


class ItemReader(Reader):
    """Python items: a dict of arrays, one array, or a pair of either with labels.

    open_items: gives a fresh iterator of items from the start, each time it is called. ends: see `Reader`.
    """

    rows = False

    def __init__(self, name: str, open_items: Callable[[], Iterator[Any]], *, ends: bool = False) -> None:
        self.name = name
        self.ends = ends
        self._open_items = open_items

    def columns(self) -> dict[str, Column]:
        for first in self._items():
            return {name: Column(array.dtype, array.shape) for name, array in first.columns.items()}
        return {}

    def chunks(self, size: int, names: Collection[str]) -> Iterator[Chunk]:
        for chunk in self._items():
            yield Chunk({name: chunk.columns[name] for name in names if name in chunk.columns}, chunk.place)

    def _items(self) -> Iterator[Chunk]:
        items: Iterator[Any] | None = None
        for index in itertools.count():
            place = f"item {index}"
            try:
                items = self._open_items() if items is None else items
                columns = _item_columns(next(items))
            except StopIteration:
                return
            except OnnxpressError:
                raise
            except Exception as error:  # whatever a user's iterable may raise
                cause = " ".join(f"{type(error).__name__}: {error}".split())
                raise InputError(f"data {self.name!r}, {place}: {cause}") from error
            yield Chunk(columns, place)


class Replay:
    """An iterator that can be read again: what it gave is kept, up to a limit.

    Raises:
        UsageError: while reading, when what must be kept grows beyond the limit.
    """

    def __init__(self, name: str, items: Iterator[Any], *, limit_bytes: int = _IN_MEMORY_LIMIT_BYTES) -> None:
        self._name = name
        self._items = items
        self._kept: list[dict[str, Array]] = []
        self._kept_bytes = 0
        self._limit_bytes = limit_bytes

    def open(self) -> Iterator[dict[str, Array]]:
        """Return an iterator from the start, of columns, which are items too."""
        for index in itertools.count():
            if index == len(self._kept):
                try:
                    self._keep(next(self._items))
                except StopIteration:
                    return
            yield self._kept[index]

    def _keep(self, item: Any) -> None:
        columns = {name: array.copy() for name, array in _item_columns(item).items()}
        self._kept_bytes += sum(array.nbytes for array in columns.values())
        if self._kept_bytes > self._limit_bytes:
            raise UsageError(
                f"data {self._name!r}: can be read only once, and holds more than the "
                f"{self._limit_bytes >> 20} MiB that are kept to read it again. Give something that can "
                "start over: a function that returns a new iterator, or a reader with rewind()"
            )
        self._kept.append(columns)


def open_npz(path: Path, name: str) -> Store:
    """Open a .npz archive, plain or compressed.

    Raises:
        InputError: not a readable archive of arrays.
    """

    @contextlib.contextmanager
    def open_streams(names: Collection[str]) -> Iterator[dict[str, IO[bytes]]]:
        with zipfile.ZipFile(path) as archive, contextlib.ExitStack() as stack:
            yield {column: stack.enter_context(archive.open(f"{column}.npy")) for column in names}

    try:
        with zipfile.ZipFile(path) as archive:
            known = [member[: -len(".npy")] for member in archive.namelist() if member.endswith(".npy")]
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error
    if not known:
        raise InputError(f"data {name!r}: holds no arrays. Save some: numpy.savez(path, input=x)")
    return Store(name, known, open_streams)


def open_npy(path: Path, name: str) -> Store:
    """Open a .npy file as the one column "array"."""
    return open_npy_columns({"array": path}, name)


def open_npy_columns(paths: Mapping[str, Path], name: str) -> Store:
    """Open several .npy files as the columns of one table, like the members of a .npz archive."""

    @contextlib.contextmanager
    def open_streams(names: Collection[str]) -> Iterator[dict[str, IO[bytes]]]:
        with contextlib.ExitStack() as stack:
            yield {column: stack.enter_context(paths[column].open("rb")) for column in names}

    return Store(name, paths, open_streams)


# What zipfile, zlib and numpy raise for a file that is cut short, damaged, encrypted or not what it says.
_UNREADABLE = (EOFError, MemoryError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _unreadable(name: str, error: BaseException) -> InputError:
    if isinstance(error, OSError) and error.strerror:
        return InputError(f"data {name!r}: cannot be read ({error.strerror})")
    cause = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return InputError(f"data {name!r}: cannot be read ({cause}). Save it again with numpy.savez or numpy.save")


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class _NpyStream:
    """One array, read in order from the stream that stands behind its header."""

    def __init__(self, store: Store, name: str, header: _Header, stream: IO[bytes]) -> None:
        self.name = name
        self.header = header
        self._store = store
        self._stream = stream
        self._next_row = 0
        self._transposed: Array | None = None

    def read_all(self) -> Array:
        """Return the whole array."""
        shape = self.header.shape
        if not self.header.fortran_order:
            return self._read(shape)
        return self._read(shape[::-1]).transpose()

    def read_rows(self, size: int) -> Array:
        """Return the next `size` rows, fewer at the end, in native byte order."""
        count = min(size, self.header.shape[0] - self._next_row)
        start = self._next_row
        self._next_row += count
        if self.header.fortran_order:
            return np.ascontiguousarray(self._whole()[start : start + count])
        return self._read((count, *self.header.shape[1:]))

    def _whole(self) -> Array:
        if self._transposed is None:
            if self.header.shape[0] * self.header.row_bytes > _IN_MEMORY_LIMIT_BYTES:
                raise InputError(
                    f"data {self._store.name!r}: array {self.name!r} is stored column by column (Fortran "
                    "order) and is too large to turn around in memory. Save it with numpy.ascontiguousarray"
                )
            self._transposed = self.read_all()
        return self._transposed

    def _read(self, shape: tuple[int, ...]) -> Array:
        array = np.empty(shape, self.header.dtype)
        if array.nbytes == 0:
            return array
        view = array.reshape(-1).view(np.uint8).data
        filled = 0
        while filled < len(view):
            count = self._stream.readinto(view[filled : filled + _READ_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise EOFError(f"array {self.name!r} ends too early")
            filled += count
        return _native(array)


_READ_BYTES = 1 << 20  # a zip member's readinto makes a copy of what it reads; this bounds it


def _item_columns(item: Any) -> dict[str, Array]:
    feeds, labels = item, None
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise TypeError(f"a {type(item).__name__} of {len(item)}, expected the pair (inputs, labels)")
        feeds, labels = item
    if isinstance(feeds, Mapping):
        columns = {str(name): _native(value) for name, value in feeds.items()}
    elif hasattr(feeds, "__array__"):
        columns = {"array": _native(feeds)}
    else:
        raise TypeError(
            f"{type(feeds).__name__}, expected a dict of arrays by input name, one array, "
            "or a pair of either with labels"
        )
    if labels is not None:
        columns[PAIRED_LABELS] = _native(labels)
    for name, array in columns.items():
        if array.dtype == object and not _is_text(array):
            raise TypeError(f"{name!r} is no array of numbers")
    return columns


def _native(value: Any) -> Array:
    """Return an array in this machine's byte order; a view where it is so already."""
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _is_text(array: Array) -> bool:
    return all(isinstance(element, str | bytes) for element in array.reshape(-1)[:16])
