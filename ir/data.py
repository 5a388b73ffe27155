"""Samples for calibration and evaluation, from files, folders, functions and Python objects.

    x.npz                       arrays named by the model's inputs (for one input: the only array, of any
                                name); labels under labels, label or y; the leading axis is the samples
    x.npy                       the samples of a model with one input
    folder of .npz or .npy      sorted by name, each file one batch, or one sample where its arrays have one
                                axis less than the model's inputs. With labels.npy, or a .npy for every input
                                of the model, the files are the columns of one table, like a .npz
    folder of images            with a preprocessing.toml: see `ir/images.py`
    module:function             what the function returns, called anew for every pass, and finite; also
                                file.py:function
    CalibrationDataReader       onnxruntime's: get_next(), and rewind() where it has one
    iterable                    of dicts of arrays by input name, of arrays (for one input), or of pairs of
                                either with labels
    dict of arrays, array       in memory; the leading axis is the samples

Arrays that the model does not ask for are ignored. Types of inputs are never converted. What a source yields is
checked against the model batch by batch, values included, so that a mistake is an error and never a number.
Labels are the numbers of classes, from 0 on: [samples] or [samples, 1], of any type whose numbers are whole,
or rows of a single 1 among zeros.

Samples are read to the end, more than once, so they must be finite. What comes out of a function, generator
or reader is refused beyond 100,000 samples or 64 GiB in one pass, as it may have no end; what has a length, or
lies in files, may be larger. An iterator that cannot start over is kept in memory, up to 1 GiB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import onnx_ir

from onnxpress.ir import images, readers
from onnxpress.ir.errors import InputError, UsageError, near_names
from onnxpress.ir.images import Preprocessing
from onnxpress.ir.onnx_file import shortened
from onnxpress.ir.readers import PAIRED_LABELS, Array, Chunk, Column, Reader
from onnxpress.ir.shapes import describe_shape, has_shared_batch, required_inputs

__all__ = ["Batch", "DataSource", "Preprocessing", "bind", "check_data", "open_data"]

_Table: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Preprocessing  # how images are preprocessed

_LABEL_NAMES = (PAIRED_LABELS, "labels", "label", "y")
_PIECE_BYTES = 4 << 20  # how much of the samples a pass that only reads holds at once
_ENDLESS_SAMPLES = 100_000  # twice the validation set of ImageNet
_ENDLESS_BYTES = 64 << 30
_CLASSES = 1 << 31  # more than any model has


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples. They are the leading axis of every array, also for a model whose inputs have no such axis.

    feeds: by input name. labels: [samples] int64 once the data is bound to a model, or None.
    """

    feeds: dict[str, Array]
    labels: Array | None = None

    @property
    def size(self) -> int:
        """How many samples."""
        return len(next(iter(self.feeds.values())))

    def part(self, start: int, stop: int) -> Batch:
        """Return some of the samples, as views."""
        labels = None if self.labels is None else self.labels[start:stop]
        return Batch({name: array[start:stop] for name, array in self.feeds.items()}, labels)


class DataSource:
    """Samples that can be read from the start as often as needed.

    name: what messages and reports call it.
    """

    def __init__(self, reader: Reader, columns: dict[str, Column], binding: _Binding) -> None:
        """Made by `open_data` and `bind`. columns: of `reader`, which may have to read something to tell."""
        self._reader = reader
        self._columns = columns
        self._binding = binding
        self._count: int | None = None
        self.name = reader.name

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the feeds in every batch: the model's, or the data's own where no model was given."""
        return tuple(entry.name for entry in self._binding.inputs)

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""
        return self._binding.labels is not None

    @property
    def count(self) -> int | None:
        """Number of samples; None where nothing short of a whole pass tells, and no pass was made yet."""
        if self._count is None:
            self._count = self._binding.count(self._reader)
        return self._count

    def batches(self, batch_size: int, *, limit: int | None = None) -> Iterator[Batch]:
        """Yield the samples from the start, `batch_size` at a time, at most `limit` in all.

        The last batch may be smaller, and so may one before a sample of another shape: they do not stack.

        Raises:
            InputError: what is read does not fit the model (names, types, shapes, lengths), holds NaN, infinity,
                labels that are no classes, or no samples at all; or, without a limit, it does not end.
        """
        if batch_size < 1 or (limit is not None and limit < 1):
            raise UsageError(
                f"data {self.name!r}: batch size and limit must be at least 1, got {batch_size} and {limit}"
            )
        return self._batches(batch_size, limit)

    def head(self, samples: int) -> Batch:
        """Return the first `samples`, fewer where there are fewer or where shapes change."""
        return next(self.batches(samples, limit=samples))

    def digest(self) -> str:
        """Return the SHA-256 of names, types, shapes and numbers, in hexadecimal.

        Equal samples have equal digests, whatever holds them (a .npz, a folder, an iterator) and however they
        are batched. A folder of images is the exception: its files, table and labels are hashed, not decoded.
        Reads everything once.
        """
        if isinstance(self._reader, images.ImageReader):
            return _image_digest(self._reader)
        columns: dict[str, _ColumnHash] = {name: _ColumnHash() for name in sorted(self.input_names)}
        labels = _ColumnHash()
        for batch in self.batches(self._read_size()):
            for name, column in columns.items():
                column.update(batch.feeds[name])
            if batch.labels is not None:
                labels.update(batch.labels)
        total = hashlib.sha256()
        for name, column in [*columns.items(), *([("", labels)] if self.has_labels else [])]:
            total.update(f"{name}\0{column.hexdigest()}\n".encode())
        return total.hexdigest()

    def _read_size(self) -> int:
        fed = [self._columns[entry.column] for entry in self._binding.inputs]
        row_bytes = sum(math.prod(column.shape[1:]) * column.dtype.itemsize for column in fed)
        return max(1, _PIECE_BYTES // max(1, row_bytes))

    def _batches(self, batch_size: int, limit: int | None) -> Iterator[Batch]:
        total = 0
        size = batch_size if limit is None else min(batch_size, limit)
        for batch in _restack(self._parts(size, may_go_on=limit is not None or self._reader.ends), size):
            kept = batch if limit is None else batch.part(0, limit - total)
            total += kept.size
            yield kept
            if total == limit:
                return
        if total == 0:
            raise _no_samples(self.name)
        self._count = total

    def _parts(self, size: int, *, may_go_on: bool) -> Iterator[Batch]:
        """Yield the samples as they come. may_go_on: however many they are."""
        total = total_bytes = 0
        for index, chunk in enumerate(self._reader.chunks(size, self._binding.columns)):
            where = _where(self._reader, chunk)
            part = self._binding.fit(chunk, self._reader)
            _check_finite(where, part, total)
            if self._binding.has_classes and part.labels is not None:
                part = Batch(part.feeds, _class_numbers(where, part.labels, total))
            total += part.size
            total_bytes += sum(array.nbytes for array in part.feeds.values())
            if not may_go_on and (max(index, total) > _ENDLESS_SAMPLES or total_bytes > _ENDLESS_BYTES):
                raise InputError(
                    f"data {self.name!r}: has yielded {total} samples and does not end. Samples are read to the end: "
                    "limit it, as with itertools.islice(samples, 1000), or save them to files"
                )
            if part.size:
                yield part


def open_data(
    spec: Any,
    *,
    model: onnx_ir.Model | None = None,
    preprocessing: _Table | None = None,
) -> DataSource:
    """Open a data source; see the module for what `spec` may be.

    model: the samples are fitted to its inputs, and what headers or the first item tell is checked at once.
    preprocessing: for a folder of images, the table or its path, in place of the folder's own.

    Raises:
        InputError: the data is missing, unreadable, empty, or does not fit the model.
        UsageError: `spec` names no function, is nothing known, or needs Pillow where it is not installed.
    """
    if isinstance(spec, DataSource):
        return spec if model is None else bind(spec, model)
    if preprocessing is not None and not isinstance(spec, str | os.PathLike):
        raise UsageError("preprocessing goes with a folder of images only")
    if isinstance(spec, str | os.PathLike):
        reader = _open_path_or_function(os.fspath(spec), model, preprocessing)
    else:
        reader = _open_object(spec)
    return _bind_reader(reader, reader.columns(), model)


def bind(source: DataSource, model: onnx_ir.Model) -> DataSource:
    """Return the same samples fitted to the inputs of `model`; `source` itself where they are.

    Raises:
        InputError: names, types or shapes do not fit.
    """
    bound = _bind_reader(source._reader, source._columns, model)
    return source if bound._binding == source._binding else bound


def check_data(source: DataSource, model: onnx_ir.Model, *, full: bool = True) -> None:
    """Check the samples against the inputs of `model`: names, types, shapes and lengths.

    full: also read everything, and check every value.

    Raises:
        InputError: the first thing that does not fit, with what was expected and what came.
    """
    bound = bind(source, model)
    if not full:
        bound.head(1)
        return
    for _ in bound.batches(bound._read_size()):
        pass


# Opening: which reader for which spec.


def _open_path_or_function(spec: str, model: onnx_ir.Model | None, preprocessing: _Table | None) -> Reader:
    path = Path(spec)
    kind = _kind_of(path, spec)
    if kind == "folder":
        return _open_folder(path, spec, model, preprocessing)
    if preprocessing is not None:
        raise UsageError(f"preprocessing goes with a folder of images only, and {spec!r} is none")
    if kind == "file":
        return readers.FileReader(spec, [_open_file(path, spec)], rows=True)
    if re.fullmatch(r"[\w.]+:\w+|.+\.py:\w+", spec):
        return _open_function(spec)
    siblings = [entry.name for entry in _entries(path.parent, spec)] if path.parent.is_dir() else []
    raise InputError(f"data {spec!r}: no such file or folder{_hint(path.name, siblings)}")


def _kind_of(path: Path, name: str) -> Literal["folder", "file", "nothing"]:
    """Tell what a path leads to. A pipe is refused unopened, since opening it may wait for ever."""
    try:
        if path.is_dir():
            return "folder"
        if not path.exists():
            return "nothing"
        if path.is_file():
            return "file"
    except OSError as error:  # such as a name that is too long
        raise InputError(f"data {shortened(name)!r}: cannot be read ({error.strerror})") from error
    raise InputError(f"data {name!r}: is a device or pipe, and samples are read more than once. Save them to a file")


def _entries(folder: Path, name: str) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"data {name!r}: cannot be read ({error.strerror})") from error


def _hint(name: str, known: Iterable[str]) -> str:
    near = near_names(name, known)
    return f".{near}" if near else ""


def _open_file(path: Path, name: str) -> readers.Store:
    """Tell .npz from .npy by content, since users rename files."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise InputError(f"data {name!r}: cannot be read ({error.strerror})") from error
    if start.startswith(b"PK"):
        return readers.open_npz(path, name)
    if start.startswith(b"\x93NUMPY"):
        return readers.open_npy(path, name)
    if not start:
        raise InputError(f"data {name!r}: is an empty file")
    raise InputError(
        f"data {name!r}: is neither .npz nor .npy. Save the samples with numpy.savez(path, input=x), "
        "or give a folder, or module:function"
    )


def _open_folder(folder: Path, name: str, model: onnx_ir.Model | None, preprocessing: _Table | None) -> Reader:
    arrays = [path for path in _entries(folder, name) if path.suffix.lower() in {".npy", ".npz"}]
    if not arrays:
        return _open_images(folder, name, preprocessing)
    if preprocessing is not None:
        raise UsageError(f"preprocessing goes with a folder of images only, and {name!r} holds arrays")
    for path in arrays:
        _kind_of(path, str(path))
    columns = {path.stem: path for path in arrays}
    if all(path.suffix.lower() == ".npy" for path in arrays) and _is_table(columns, model):
        return readers.FileReader(name, [readers.open_npy_columns(columns, name)], rows=True)
    stores = [_open_file(path, str(path)) for path in arrays]
    return readers.FileReader(name, stores, rows=False)


def _is_table(columns: Mapping[str, Path], model: onnx_ir.Model | None) -> bool:
    """Whether .npy files are columns, and not batches: one is the labels, or each input has one."""
    if any(label in columns for label in _LABEL_NAMES):
        return True
    names = [] if model is None else [value.name for value in required_inputs(model)]
    return bool(names) and all(name in columns for name in names)


def _open_images(folder: Path, name: str, preprocessing: _Table | None) -> Reader:
    found = images.find_images(folder)
    if not found:
        raise InputError(f"data {name!r}: the folder holds no .npz, no .npy and no images")
    table = folder / images.TABLE_NAME if preprocessing is None else preprocessing
    if isinstance(table, Path) and not table.exists():
        raise InputError(
            f"data {name!r}: the folder holds {len(found)} images and no {images.TABLE_NAME} that says how "
            "the model takes them. Write one, with size, crop, channel_order, layout, scale, mean and std"
        )
    images.require_pillow()
    source = Path(table) if isinstance(table, str | os.PathLike) else table
    return images.ImageReader(folder, name, found, images.read_preprocessing(source))


def _open_function(spec: str) -> Reader:
    where, _, function_name = spec.rpartition(":")
    module = _import(spec, where)
    function = getattr(module, function_name, None)
    if function is None:
        raise UsageError(
            f"data {spec!r}: {where!r} has no function {function_name!r}"
            + _hint(function_name, (key for key, value in vars(module).items() if callable(value)))
        )
    if not callable(function):
        raise UsageError(f"data {spec!r}: {function_name!r} is no function but {type(function).__name__}")
    return _open_callable(function, spec)


def _import(spec: str, where: str) -> Any:
    """Import a module by name, also from the current folder, or a .py file by path."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        file = importlib.util.spec_from_file_location(Path(where).stem, where)
        if file is None or file.loader is None or not Path(where).is_file():
            raise FileNotFoundError(f"no such file {where!r}")
        module = importlib.util.module_from_spec(file)
        file.loader.exec_module(module)
        return module
    except Exception as error:  # whatever a user's module may raise when it is imported
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"data {spec!r}: no such file or folder, and {where!r} cannot be imported ({cause})"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _open_callable(function: Callable[[], Any], name: str) -> Reader:
    """Call once to see what comes. An iterator is made anew for every pass; anything else can start over."""
    made = _call(function, name)
    if isinstance(made, str | bytes | os.PathLike) or made is None:
        raise InputError(f"data {name!r}: returned {type(made).__name__}, expected an iterable of feeds")
    if isinstance(made, DataSource):
        return made._reader
    if not _is_one_shot(made) or _can_rewind(made):
        return _open_object(made, name)
    waiting = [made]
    anew = _Anew(name, lambda: waiting.pop() if waiting else _call(function, name))
    return readers.ItemReader(name, anew.open)


def _call(function: Callable[[], Any], name: str) -> Any:
    try:
        return function()
    except Exception as error:  # whatever a user's function may raise
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"data {name!r}: {cause}") from error


def _open_object(spec: Any, name: str | None = None) -> Reader:
    name = name or f"<{type(spec).__name__}>"
    if isinstance(spec, type):
        return _open_callable(spec, f"<{spec.__name__}>")
    if isinstance(spec, Mapping):
        return readers.ArrayReader(name, spec)
    if hasattr(spec, "__array__"):
        return readers.ArrayReader(name, {"array": spec})
    if _can_rewind(spec):
        return readers.ItemReader(name, _Rewinding(spec).open)
    if _is_one_shot(spec):
        return readers.ItemReader(name, readers.Replay(name, _items_of(spec)).open)
    if isinstance(spec, Iterable):
        return readers.ItemReader(name, _Anew(name, lambda: iter(spec)).open, ends=hasattr(spec, "__len__"))
    if callable(spec):
        return _open_callable(spec, f"<function {spec.__name__}>" if inspect.isfunction(spec) else name)
    raise UsageError(
        f"data: {type(spec).__name__} is nothing to read samples from. "
        "Give a path, 'module:function', arrays, an iterable of feeds, or a CalibrationDataReader"
    )


def _is_data_reader(spec: Any) -> bool:
    return callable(getattr(spec, "get_next", None))


def _can_rewind(spec: Any) -> bool:
    return _is_data_reader(spec) and callable(getattr(spec, "rewind", None))


def _is_one_shot(spec: Any) -> bool:
    return _is_data_reader(spec) or isinstance(spec, Iterator)


def _items_of(spec: Any) -> Iterator[Any]:
    """Return what is left to read of a one-shot iterator or reader. A reader ends with None."""
    return iter(spec.get_next, None) if _is_data_reader(spec) else iter(spec)


class _Anew:
    """What gives a new iterator each time, and is held to that: half a pass must not look like one."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        self._make = make
        self._last: Any = None

    def open(self) -> Iterator[Any]:
        made = self._make()
        if made is self._last:
            raise UsageError(
                f"data {self._name!r}: gives the same iterator again, of which part is read already. "
                "Make a new one each time"
            )
        self._last = made
        return _items_of(made)


class _Rewinding:
    """A CalibrationDataReader that can start over; untouched readers are not rewound."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._used = False

    def open(self) -> Iterator[Any]:
        if self._used:
            self._reader.rewind()
        self._used = True
        return _items_of(self._reader)


# Binding: which column is which input, and what it must look like.


class _Input(NamedTuple):
    """One feed. dtype and dims are what the model declares; None where it does not, or there is no model."""

    name: str
    column: str
    dtype: onnx_ir.DataType | None = None
    dims: tuple[int | str | None, ...] | None = None

    @property
    def rank(self) -> int | None:
        return None if self.dims is None else len(self.dims)


@dataclasses.dataclass(frozen=True)
class _Binding:
    """Fits chunks of columns to inputs: renames, puts the samples first, and checks.

    shared_batch: whether the leading axes of the model's inputs are one batch. has_classes: whether labels must
    be classes; without a model, one of the label's names may still turn out to be an input.
    """

    inputs: tuple[_Input, ...]
    labels: str | None
    shared_batch: bool = True
    has_classes: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [*(entry.column for entry in self.inputs), *([] if self.labels is None else [self.labels])]

    def count(self, reader: Reader) -> int | None:
        """Return the number of samples as far as shapes tell."""
        first = self.inputs[0]
        shapes = reader.shapes(first.column)
        if shapes is None or (not reader.rows and (len(self.inputs) > 1 or first.rank is None)):
            return None
        return sum(1 if not reader.rows and len(shape) + 1 == first.rank else shape[0] for shape in shapes)

    def fit(self, chunk: Chunk, reader: Reader) -> Batch:
        """Return the chunk as a batch, checked in all but its values.

        Raises:
            InputError: a name, type, shape or length does not fit.
        """
        where = _where(reader, chunk)
        for entry in self.inputs:
            if entry.column not in chunk.columns:
                raise InputError(f"{where}: no array for the input {entry.name!r}")
            _check_dtype(where, entry, chunk.columns[entry.column].dtype)
        if self.labels is not None and self.labels not in chunk.columns:
            raise InputError(f"{where}: no labels, while there are some before it")
        feeds = {entry.name: chunk.columns[entry.column] for entry in self.inputs}
        labels = None if self.labels is None else chunk.columns[self.labels]
        if not reader.rows and self._is_one_sample(feeds):
            feeds = {name: array[None] for name, array in feeds.items()}
            labels = labels if labels is None or labels.shape == (1,) else labels[None]
        for entry in self.inputs:
            _check_shape(where, entry, feeds[entry.name].shape, alone=not self.shared_batch)
        _check_lengths(where, feeds, labels)
        if self.has_classes and labels is not None:
            _check_label_outline(where, labels)
        return Batch(feeds, labels)

    def _is_one_sample(self, feeds: Mapping[str, Array]) -> bool:
        """Whether arrays as one would feed them are one sample: an axis short, or without a common batch."""
        short = {entry.rank - feeds[entry.name].ndim for entry in self.inputs if entry.rank is not None}
        if short == {1}:
            return True
        together = self.shared_batch and len({array.shape[:1] for array in feeds.values()} - {()}) == 1
        return short <= {0} and not (together and all(array.ndim for array in feeds.values()))


def _bind_reader(reader: Reader, columns: dict[str, Column], model: onnx_ir.Model | None) -> DataSource:
    if not columns:
        raise _no_samples(reader.name)
    inputs = [] if model is None else list(model.graph.inputs)
    labels = _find_labels(columns, {value.name for value in inputs})
    if model is None:
        unbound = tuple(_Input(name, name) for name in columns if name != labels)
        binding = _Binding(unbound, labels)
        if not unbound:
            raise InputError(f"data {reader.name!r}: holds labels and nothing to feed")
    else:
        arrays = [name for name in columns if name != labels]
        matched = _match_inputs(reader.name, model, arrays)
        binding = _Binding(matched, labels, has_shared_batch(model), has_classes=True)
    outlines = {name: np.broadcast_to(np.zeros((), column.dtype), column.shape) for name, column in columns.items()}
    if binding.fit(Chunk(outlines), reader).size == 0 and reader.rows:
        raise _no_samples(reader.name)
    return DataSource(reader, columns, binding)


def _find_labels(columns: Mapping[str, Column], inputs: set[str | None]) -> str | None:
    return next((name for name in _LABEL_NAMES if name in columns and name not in inputs), None)


def _match_inputs(data_name: str, model: onnx_ir.Model, arrays: Sequence[str]) -> tuple[_Input, ...]:
    required = required_inputs(model)
    missing = [str(value.name) for value in required if value.name not in arrays]
    if missing and len(required) == 1 and len(arrays) == 1:
        return (_declare(required[0], arrays[0]),)
    if missing:
        names = _listing(str(value.name) for value in required)
        got = _listing(arrays) if arrays else "only labels"
        raise InputError(
            f"data {data_name!r}: expected arrays named by the model's inputs, {names}; got {got}"
            + _hint(missing[0], arrays)
        )
    return tuple(_declare(value, str(value.name)) for value in model.graph.inputs if value.name in arrays)


def _listing(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _declare(value: onnx_ir.Value, column: str) -> _Input:
    dims: tuple[int | str | None, ...] | None = None
    if value.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    return _Input(str(value.name), column, value.dtype, dims)


def _where(reader: Reader, chunk: Chunk) -> str:
    return f"data {reader.name!r}" + (f", {chunk.place}" if chunk.place else "")


def _no_samples(name: str) -> InputError:
    return InputError(f"data {name!r}: holds no samples")


def _check_dtype(where: str, entry: _Input, dtype: np.dtype[Any]) -> None:
    if entry.dtype is None:
        return
    if entry.dtype == onnx_ir.DataType.STRING:
        expected, fits = "text", dtype.kind in "OSU"
    else:
        expected, fits = entry.dtype.numpy().name, dtype == entry.dtype.numpy()
    if fits:
        return
    raw = dtype.kind in "ui" and expected.startswith(("float", "bfloat"))
    advice = "Preprocess as for training, then" if raw else "Convert it with"
    raise InputError(
        f"{where}: input {entry.name!r}: expected {expected}, got {dtype.name}. {advice} .astype('{expected}')"
    )


def _check_shape(where: str, entry: _Input, shape: tuple[int, ...], *, alone: bool) -> None:
    """Check one array, samples first. alone: the inputs share no batch, so each sample is a whole feed."""
    if entry.dims is None:
        if shape:
            return
        raise InputError(f"{where}: input {entry.name!r}: expected a leading axis of samples, got one number")
    leading = entry.dims[0] if entry.dims else None
    whole = not entry.dims or (alone and isinstance(leading, int) and leading != 1)
    tails = [entry.dims] if whole else [entry.dims[1:], entry.dims]
    if shape and any(_dims_fit(tail, shape[1:]) for tail in tails):
        return
    batch = leading if isinstance(leading, str) and not whole else "samples"
    raise InputError(
        f"{where}: input {entry.name!r}: expected {describe_shape((batch, *tails[0]))}, "
        f"got {describe_shape(shape)}{_shape_advice(tails[0], shape)}"
    )


def _dims_fit(dims: Sequence[int | str | None], shape: Sequence[int]) -> bool:
    return len(dims) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, shape, strict=True)
    )


def _shape_advice(tail: Sequence[int | str | None], shape: tuple[int, ...]) -> str:
    if _dims_fit(tail, shape):
        return ". The axis of samples is missing: x[None]"
    if len(shape) == 4 and _dims_fit(tail, (shape[3], shape[1], shape[2])):
        return ". The channels come last (NHWC): x.transpose(0, 3, 1, 2)"
    if len(shape) == 4 and _dims_fit(tail, (shape[2], shape[3], shape[1])):
        return ". The channels come first (NCHW): x.transpose(0, 2, 3, 1)"
    return ""


def _check_lengths(where: str, feeds: Mapping[str, Array], labels: Array | None) -> None:
    lengths = {name: len(array) for name, array in feeds.items()}
    if not lengths:
        raise InputError(f"{where}: the model has no inputs, and nothing can be fed to it. Leave the data out")
    first, count = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"{where}: input {name!r} has {length} samples, expected {count} as in {first!r}")
    if labels is None:
        return
    if labels.ndim == 0:
        raise InputError(f"{where}: labels are one number, expected one for each of the {count} samples")
    if len(labels) != count:
        raise InputError(f"{where}: {len(labels)} labels for {count} samples")


def _check_label_outline(where: str, labels: Array) -> None:
    """Check what the header of an array tells of labels."""
    if labels.dtype.kind in "iuf" and (labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] > 0)):
        return
    kind = "text" if labels.dtype.kind in "OSU" else labels.dtype.name
    raise _no_classes(where, f"{kind} {describe_shape(labels.shape)}")


def _class_numbers(where: str, labels: Array, before: int) -> Array:
    """Return labels as [samples] int64. before: how many samples came before these."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        hot = labels == 1
        if not (np.all(hot | (labels == 0)) and np.all(hot.sum(axis=1) == 1)):
            raise _no_classes(where, f"{labels.dtype.name} {describe_shape(labels.shape)}")
        classes: Array = hot.argmax(axis=1)
        return classes
    numbers = labels.reshape(-1)
    exact = numbers.astype(np.float64)  # which holds every class that there may be
    lawful = (exact >= 0) & (exact < _CLASSES) & (exact == np.floor(exact))
    if not lawful.all():
        first = int(np.argmin(lawful))
        raise _no_classes(where, f"{numbers[first]} for sample {before + first}")
    return numbers.astype(np.int64)


def _no_classes(where: str, got: str) -> InputError:
    return InputError(
        f"{where}: labels: expected the number of a class, from 0 on, for each sample; got {got}. "
        "Number the classes as the model does, or leave the labels out"
    )


def _check_finite(where: str, batch: Batch, before: int) -> None:
    """Check the numbers. before: how many samples came before this batch."""
    for name, array in batch.feeds.items():
        if not np.issubdtype(array.dtype, np.inexact):
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(array.sum()):  # a NaN or an infinity always reaches the sum, and costs no mask
                continue
        finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
        if not finite.all():
            sample = before + int(np.argmin(finite))
            raise InputError(f"{where}: input {name!r}: sample {sample} holds NaN or infinity")


# Batches of one size, and digests.


def _restack(parts: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield batches of `size` from parts of any size; smaller ones at the end and where shapes change."""
    held: list[Batch] = []
    room = size
    for part in parts:
        if held and _outline(held[0]) != _outline(part):
            yield _stack(held)
            held, room = [], size
        start = 0
        while start < part.size:
            piece = part.part(start, start + room)
            held.append(piece)
            start += piece.size
            room -= piece.size
            if room == 0:
                yield _stack(held)
                held, room = [], size
    if held:
        yield _stack(held)


def _outline(batch: Batch) -> dict[str, tuple[int, ...]]:
    outline = {name: array.shape[1:] for name, array in batch.feeds.items()}
    return outline if batch.labels is None else {**outline, "": batch.labels.shape[1:]}


def _stack(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    feeds = {name: np.concatenate([part.feeds[name] for part in parts]) for name in parts[0].feeds}
    labels = [part.labels for part in parts if part.labels is not None]
    return Batch(feeds, np.concatenate(labels) if labels else None)


class _ColumnHash:
    """SHA-256 of the rows of one column, whatever pieces they come in."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._outline = ""
        self._rows = 0

    def update(self, array: Array) -> None:
        text = array.dtype.kind in "OSU"
        outline = f"{'text' if text else array.dtype.name}{array.shape[1:]}"
        if outline != self._outline:
            self._hash.update(f"\0{self._rows}:{outline}\0".encode())
            self._outline = outline
        self._rows += len(array)
        if text:
            for element in array.reshape(-1):
                word = element if isinstance(element, bytes) else str(element).encode()
                self._hash.update(b"%d:%s" % (len(word), word))
        else:
            self._hash.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _image_digest(reader: images.ImageReader) -> str:
    total = hashlib.sha256(reader.table.model_dump_json().encode())
    for path in reader.files:
        content = path.read_bytes()
        total.update(f"\n{path.parent.name}/{path.name} {hashlib.sha256(content).hexdigest()}".encode())
    if reader.labels is not None:
        total.update(reader.labels.tobytes())
    return total.hexdigest()
