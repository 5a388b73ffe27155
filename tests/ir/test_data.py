"""Samples from every kind of source: what comes out, and the whole message when something does not fit."""

from __future__ import annotations

import itertools
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir import readers
from onnxpress.ir.data import Batch, DataSource, bind, check_data, open_data
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError

Array = npt.NDArray[Any]

ONE_INPUT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,5,7] x) => (float[N,3,5,7] out) { out = Relu(x) }"""

TWO_INPUTS = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3] left, int64[N] right) => (float[N,3] out) { out = Relu(left) }"""

NO_BATCH = """<ir_version: 8, opset_import: ["" : 17]>
net (float[3,5] x) => (float[3,5] out) { out = Relu(x) }"""

STATE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,5] x, float[2,N,4] state, int64 rate) => (float[N,5] out) { out = Relu(x) }"""

TOKENS = """<ir_version: 8, opset_import: ["" : 17]>
net (int64[N,L] x) => (int64[N,L] out) { out = Identity(x) }"""


def model(text: str = ONE_INPUT) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(text)


def images(samples: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((samples, 3, 5, 7)).astype(np.float32)


def collect(source: DataSource, batch_size: int = 4, limit: int | None = None) -> tuple[list[int], Batch]:
    """Return the sizes of all batches, and all samples in one."""
    batches = list(source.batches(batch_size, limit=limit))
    feeds = {name: np.concatenate([b.feeds[name] for b in batches]) for name in batches[0].feeds}
    labels = [b.labels for b in batches if b.labels is not None]
    return [b.size for b in batches], Batch(feeds, np.concatenate(labels) if labels else None)


def refused(kind: type[OnnxpressError], message: str, action: Callable[[], object]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        action()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that messages hold short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# .npz and .npy


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_by_name_with_labels(folder: Path, save: Callable[..., None]) -> None:
    x, labels = images(10), np.arange(10)
    save("a.npz", labels=labels, x=x, spare=np.zeros(3))
    source = open_data("a.npz", model=model())
    assert (source.name, source.input_names, source.has_labels, source.count) == ("a.npz", ("x",), True, 10)
    sizes, samples = collect(source)
    assert sizes == [4, 4, 2]
    np.testing.assert_array_equal(samples.feeds["x"], x)
    np.testing.assert_array_equal(samples.labels, labels)
    sizes, samples = collect(source, limit=6)
    assert sizes == [4, 2]
    np.testing.assert_array_equal(samples.feeds["x"], x[:6])
    assert source.head(3).size == 3 and source.head(30).size == 10


@pytest.mark.parametrize("label", ["labels", "label", "y"])
def test_npz_only_array_that_is_not_labels(folder: Path, label: str) -> None:
    columns: dict[str, Any] = {"images": images(3), label: np.arange(3)}
    np.savez("a.npz", **columns)
    source = open_data(Path("a.npz"), model=model())
    assert source.input_names == ("x",) and source.has_labels and source.head(2).feeds["x"].shape == (2, 3, 5, 7)


def test_input_called_y_is_no_label(folder: Path) -> None:
    np.savez("a.npz", y=images(3))
    source = open_data("a.npz", model=model(ONE_INPUT.replace(" x)", " y)").replace("(x)", "(y)")))
    assert source.input_names == ("y",) and not source.has_labels


def test_npz_without_model_keeps_its_names(folder: Path) -> None:
    np.savez("a.npz", left=np.zeros((4, 3)), right=np.zeros(4), labels=np.arange(4))
    source = open_data("a.npz")
    assert source.input_names == ("left", "right") and source.has_labels and source.count == 4


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_array_stored_by_columns_or_big_endian(folder: Path, suffix: str) -> None:
    x = images(6)
    stored = [np.asfortranarray(x), x.astype(">f4")]
    for array in stored:
        np.savez("a.npz", x=array) if suffix == "npz" else np.save("a.npy", array)
        _, samples = collect(open_data(f"a.{suffix}", model=model()))
        np.testing.assert_array_equal(samples.feeds["x"], x)
        assert samples.feeds["x"].dtype == np.dtype("=f4")


def test_file_is_told_by_content_not_name(folder: Path) -> None:
    np.savez("a.npz", x=images(2))
    Path("a.npz").rename("a.npy")
    assert open_data("a.npy", model=model()).count == 2


def test_reading_a_file_holds_one_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read of the large array is of one batch: memory does not grow with the file."""
    np.savez("a.npz", x=images(100))
    largest = 0
    empty = np.empty

    def measured(shape: Any, *rest: Any, **named: Any) -> Array:
        nonlocal largest
        array = empty(shape, *rest, **named)
        largest = max(largest, array.nbytes)
        return array

    monkeypatch.setattr(np, "empty", measured)
    assert sum(batch.size for batch in open_data("a.npz", model=model()).batches(5)) == 100
    assert largest == 5 * 3 * 5 * 7 * 4


# Folders


@pytest.mark.parametrize("axes", [slice(0, 2), 0])
def test_folder_of_batches_or_samples(folder: Path, axes: Any) -> None:
    x = images(6)
    for index in range(3):
        np.save(f"{index}.npy", x[2 * index : 2 * index + 2][axes])
    source = open_data(folder, model=model())
    expected = x if isinstance(axes, slice) else x[::2]
    assert source.count == len(expected)
    _, samples = collect(source)
    np.testing.assert_array_equal(samples.feeds["x"], expected)


def test_folder_of_single_samples_with_labels(folder: Path) -> None:
    x = images(3)
    for index in range(3):
        np.savez(f"{index}.npz", x=x[index], y=index)
    _, samples = collect(open_data(folder, model=model()))
    np.testing.assert_array_equal(samples.feeds["x"], x)
    np.testing.assert_array_equal(samples.labels, [0, 1, 2])


def test_folder_of_columns(folder: Path) -> None:
    np.save("images.npy", images(5))
    np.save("labels.npy", np.arange(5))
    source = open_data(folder, model=model())
    assert source.count == 5 and source.has_labels
    (folder / "two").mkdir()
    np.save("two/left.npy", np.zeros((4, 3), np.float32))
    np.save("two/right.npy", np.zeros(4, np.int64))
    assert open_data("two", model=model(TWO_INPUTS)).head(9).size == 4


# Python objects


class Reader:
    """Like onnxruntime's CalibrationDataReader."""

    def __init__(self, x: Array) -> None:
        self.x = x
        self.at = 0
        self.rewinds = 0

    def get_next(self) -> dict[str, Array] | None:
        self.at += 1
        return {"x": self.x[self.at - 1 : self.at]} if self.at <= len(self.x) else None


class RewindingReader(Reader):
    def rewind(self) -> None:
        self.at = 0
        self.rewinds += 1


class Loader:
    """Like a torch DataLoader: iterable again and again."""

    def __init__(self, x: Array) -> None:
        self.x = x

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        for index in range(0, len(self.x), 4):
            yield self.x[index : index + 4], np.arange(len(self.x))[index : index + 4]


OBJECTS: dict[str, Callable[[Array], Any]] = {
    "array": lambda x: x,
    "dict of arrays": lambda x: {"x": x, "labels": np.arange(len(x))},
    "list of feeds": lambda x: [{"x": row[None]} for row in x],
    "list of single samples": lambda x: list(x),
    "list of pairs": lambda x: [(row, index) for index, row in enumerate(x)],
    "list of lists": lambda x: [[{"x": row}, [index]] for index, row in enumerate(x)],
    "generator": lambda x: ({"x": row[None]} for row in x),
    "function": lambda x: lambda: ({"x": row[None]} for row in x),
    "function that returns a list": lambda x: lambda: [x[:4], x[4:]],
    "reader": Reader,
    "reader with rewind": RewindingReader,
    "loader": Loader,
    "function that returns a reader": lambda x: lambda reader=RewindingReader(x): reader,  # noqa: B008
    "class": lambda x: type("Fixed", (Loader,), {"__init__": lambda self: Loader.__init__(self, x)}),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_python_objects_can_be_read_twice(kind: str) -> None:
    x = images(10)
    source = open_data(OBJECTS[kind](x), model=model())
    for _ in range(2):
        sizes, samples = collect(source)
        assert sizes == [4, 4, 2]
        np.testing.assert_array_equal(samples.feeds["x"], x)
        if source.has_labels:
            np.testing.assert_array_equal(samples.labels, np.arange(10))
    assert source.count == 10
    assert source.has_labels is (kind in {"dict of arrays", "list of pairs", "list of lists", "loader", "class"})


def test_reader_is_rewound_only_after_use() -> None:
    reader = RewindingReader(images(2))
    source = open_data(reader, model=model())
    assert reader.rewinds == 0
    source.head(1)
    assert reader.rewinds == 1


def test_function_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_samples.py").write_text(
        "import numpy as np\n"
        "calls = 0\n"
        "def give():\n"
        "    global calls\n"
        "    calls += 1\n"
        "    for _ in range(3):\n"
        "        yield {'x': np.ones((2, 3, 5, 7), np.float32)}\n"
    )
    monkeypatch.delitem(sys.modules, "my_samples", raising=False)
    path = list(sys.path)
    for spec in ("my_samples:give", "./my_samples.py:give"):
        source = open_data(spec, model=model())
        assert source.name == spec and sum(batch.size for batch in source.batches(4)) == 6
    assert sys.path == path
    assert sys.modules.pop("my_samples").calls == 2  # once to look, the same to read, once more to read again


def test_data_source_passes_through_and_binds() -> None:
    source = open_data(images(2))
    assert open_data(source) is source and source.input_names == ("array",)
    assert open_data(source, model=model()).input_names == ("x",)
    bound = bind(source, model())
    assert bound.head(1).feeds["x"].shape == (1, 3, 5, 7)
    assert bind(bound, model()) is bound


def test_samples_of_changing_shape_do_not_stack() -> None:
    rows = [np.zeros((1, length), np.int64) for length in (4, 4, 6, 6, 6, 4)]
    source = open_data([{"x": row} for row in rows], model=model(TOKENS))
    assert [b.feeds["x"].shape for b in source.batches(2)] == [(2, 4), (2, 6), (1, 6), (1, 4)]


def test_model_without_batch_takes_rows_as_feeds() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    assert open_data(x, model=model(NO_BATCH)).count == 4
    assert open_data(list(x), model=model(TOKENS.replace("int64", "float"))).head(20).size == 12
    assert collect(open_data({"x": x}, model=model(NO_BATCH)))[1].feeds["x"].shape == (4, 3, 5)


def test_inputs_without_shared_batch_are_whole_feeds() -> None:
    feed: dict[str, Array] = {
        "x": np.zeros((1, 5), np.float32),
        "state": np.zeros((2, 1, 4), np.float32),
        "rate": np.array(16),
    }
    source = open_data([feed, feed, feed], model=model(STATE))
    batch = source.head(3)
    assert batch.size == 3
    assert {name: array.shape for name, array in batch.feeds.items()} == {
        "x": (3, 1, 5),
        "state": (3, 2, 1, 4),
        "rate": (3,),
    }
    rows = {name: np.stack([array] * 3) for name, array in feed.items()}
    assert open_data(rows, model=model(STATE)).digest() == source.digest()


def test_optional_input_is_fed_when_it_is_there() -> None:
    text = ONE_INPUT.replace("(float[N,3,5,7] x)", "(float[N,3,5,7] x, float[N] gain)")
    net = model(text)
    net.graph.inputs[1].const_value = onnx_ir.tensor(np.ones(1, np.float32), name="gain")
    net.graph.register_initializer(net.graph.inputs[1])
    assert open_data({"x": images(2)}, model=net).input_names == ("x",)
    gain = np.ones(2, np.float32)
    assert open_data({"x": images(2), "gain": gain}, model=net).input_names == ("x", "gain")


# Digests


@given(pieces=st.lists(st.integers(1, 5), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_digest_depends_on_samples_only(pieces: list[int], seed: int) -> None:
    x = images(sum(pieces), seed)
    cuts = np.split(x, np.cumsum(pieces)[:-1])
    net = model()
    whole = open_data({"x": x}, model=net).digest()
    assert open_data([{"x": piece} for piece in cuts], model=net).digest() == whole
    assert open_data(list(x), model=net).digest() == whole
    changed = x.copy()
    changed.flat[-1] += 1
    assert open_data(changed, model=net).digest() != whole
    assert open_data({"x": x, "labels": np.zeros(len(x))}, model=net).digest() != whole


def test_digest_of_file_equals_that_of_its_arrays(folder: Path) -> None:
    x = images(7)
    np.savez_compressed("a.npz", x=x)
    np.save("b.npy", np.asfortranarray(x))
    digests = {open_data(spec, model=model()).digest() for spec in ("a.npz", "b.npy", x)}
    assert digests == {open_data({"x": x}, model=model()).digest()} and len(digests.pop()) == 64


def test_digest_tells_types_and_texts_apart() -> None:
    one, two = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.int32)
    assert open_data({"a": one}).digest() != open_data({"a": two}).digest()
    texts = [["ab", "c"], ["a", "bc"], [b"ab", b"d"], [b"ab", b"e"]]
    assert len({open_data({"a": np.array(text)}).digest() for text in texts}) == 4


# What is refused, and how


def test_missing_file(folder: Path) -> None:
    np.savez("calibration.npz", x=images(1))
    refused(
        InputError,
        "data 'calibation.npz': no such file or folder. Did you mean 'calibration.npz'?",
        lambda: open_data("calibation.npz"),
    )
    refused(InputError, "data 'no/x.npz': no such file or folder", lambda: open_data("no/x.npz"))


def _npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(420)


@pytest.mark.parametrize("files", ["file", "archive", "folder"])
@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ("(-1, 3, 5, 7)", "array 'array' has the impossible shape [-1, 3, 5, 7]"),
        ("(4611686018427387904, 3, 5, 7)", "array 'array' has the impossible shape [4611686018427387904, 3, 5, 7]"),
        ("((1, 3, 5, 7)", "array 'array' has a header that is no Python"),
    ],
)
def test_headers_that_cannot_be(folder: Path, files: str, shape: str, problem: str) -> None:
    content = _npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}")
    path = Path("a.npz" if files == "archive" else "a.npy")
    if files == "archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("array.npy", content)
    else:
        path.write_bytes(content)
    spec = str(folder) if files == "folder" else str(path)
    name = str(folder / path) if files == "folder" else str(path)
    refused(
        InputError,
        f"data {name!r}: cannot be read ({problem}). Save it again with numpy.savez or numpy.save",
        lambda: collect(open_data(spec, model=model())),
    )


def test_pipes_are_refused_unopened(folder: Path) -> None:
    os.mkfifo("pipe.npy")
    message = "is a device or pipe, and samples are read more than once. Save them to a file"
    refused(InputError, f"data 'pipe.npy': {message}", lambda: open_data("pipe.npy", model=model()))
    refused(InputError, f"data {str(folder / 'pipe.npy')!r}: {message}", lambda: open_data(folder, model=model()))
    np.save("labels.npy", np.arange(5))
    refused(InputError, f"data {str(folder / 'pipe.npy')!r}: {message}", lambda: open_data(folder, model=model()))


def test_names_that_are_too_long(folder: Path) -> None:
    for name in ("x" * 5000, "x/" * 2500):
        refused(
            InputError,
            f"data '{name[:300]}... (5000 characters)': cannot be read (File name too long)",
            lambda name=name: open_data(name, model=model()),  # type: ignore[misc]
        )


def test_unreadable_files(folder: Path) -> None:
    Path("empty.npz").write_bytes(b"")
    refused(InputError, "data 'empty.npz': is an empty file", lambda: open_data("empty.npz"))
    Path("text.npz").write_text("hello, world")
    refused(
        InputError,
        "data 'text.npz': is neither .npz nor .npy. Save the samples with numpy.savez(path, input=x), "
        "or give a folder, or module:function",
        lambda: open_data("text.npz"),
    )
    np.savez("whole.npz", x=images(50))
    content = Path("whole.npz").read_bytes()
    Path("cut.npz").write_bytes(content[: len(content) // 2])
    refused(
        InputError,
        "data 'cut.npz': cannot be read (File is not a zip file). Save it again with numpy.savez or numpy.save",
        lambda: open_data("cut.npz"),
    )
    at = len(content) // 2
    Path("bad.npz").write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    source = open_data("bad.npz", model=model())
    refused(
        InputError,
        "data 'bad.npz': cannot be read (Bad CRC-32 for file 'x.npy'). Save it again with numpy.savez or numpy.save",
        lambda: list(source.batches(8)),
    )
    np.save("whole.npy", images(50))
    Path("cut.npy").write_bytes(Path("whole.npy").read_bytes()[:3000])
    short = open_data("cut.npy", model=model())
    refused(
        InputError,
        "data 'cut.npy': cannot be read (array 'array' ends too early). Save it again with numpy.savez or numpy.save",
        lambda: list(short.batches(8)),
    )
    with zipfile.ZipFile("none.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    refused(
        InputError,
        "data 'none.npz': holds no arrays. Save some: numpy.savez(path, input=x)",
        lambda: open_data("none.npz"),
    )


def test_pickled_objects_are_never_loaded(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("exploded"),)

    np.savez("a.npz", x=np.array([Bomb()], object))
    refused(
        InputError,
        "data 'a.npz': array 'x' holds Python objects, and unpickling them could run any code. "
        "Save plain numbers: numpy.asarray(x, numpy.float32)",
        lambda: open_data("a.npz", model=model()),
    )
    assert not Path("exploded").exists()


def test_names_do_not_match(folder: Path) -> None:
    np.savez("a.npz", lefty=np.zeros((4, 3), np.float32), right=np.zeros(4, np.int64))
    refused(
        InputError,
        "data 'a.npz': expected arrays named by the model's inputs, 'left', 'right'; got 'lefty', 'right'. "
        "Did you mean 'lefty'?",
        lambda: open_data("a.npz", model=model(TWO_INPUTS)),
    )
    np.savez("b.npz", labels=np.arange(3))
    refused(
        InputError,
        "data 'b.npz': expected arrays named by the model's inputs, 'x'; got only labels",
        lambda: open_data("b.npz", model=model()),
    )
    refused(InputError, "data 'b.npz': holds labels and nothing to feed", lambda: open_data("b.npz"))
    items = [{"x": images(1)}, {"z": images(1)}]
    refused(
        InputError,
        "data '<list>', item 1: no array for the input 'x'",
        lambda: collect(open_data(items, model=model())),
    )


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros((4, 3, 5, 7), np.uint8), "got uint8. Preprocess as for training, then .astype('float32')"),
        (np.zeros((4, 3, 5, 7)), "got float64. Convert it with .astype('float32')"),
        (np.zeros((4, 3, 5, 7), np.float16), "got float16. Convert it with .astype('float32')"),
    ],
)
def test_types_are_never_converted(array: Array, problem: str) -> None:
    refused(
        InputError,
        f"data '<dict>': input 'x': expected float32, {problem}",
        lambda: open_data({"x": array}, model=model()),
    )


def test_integers_of_another_width() -> None:
    refused(
        InputError,
        "data '<ndarray>': input 'x': expected int64, got int32. Convert it with .astype('int64')",
        lambda: open_data(np.zeros((2, 3), np.int32), model=model(TOKENS)),
    )


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((4, 5, 7, 3), "got [4, 5, 7, 3]. The channels come last (NHWC): x.transpose(0, 3, 1, 2)"),
        ((3, 5, 7), "got [3, 5, 7]. The axis of samples is missing: x[None]"),
        ((4, 3, 5, 8), "got [4, 3, 5, 8]"),
        ((4, 105), "got [4, 105]"),
        ((), "got []"),
    ],
)
def test_shapes_do_not_match(shape: tuple[int, ...], problem: str) -> None:
    refused(
        InputError,
        f"data '<dict>': input 'x': expected [N, 3, 5, 7], {problem}",
        lambda: open_data({"x": np.zeros(shape, np.float32)}, model=model()),
    )


def test_channels_first_for_a_model_of_channels_last() -> None:
    refused(
        InputError,
        "data '<dict>': input 'x': expected [samples, 5, 7, 3], got [2, 3, 5, 7]. "
        "The channels come first (NCHW): x.transpose(0, 2, 3, 1)",
        lambda: open_data({"x": images(2)}, model=model(ONE_INPUT.replace("N,3,5,7", "1,5,7,3"))),
    )


def test_scalar_input_needs_one_number_a_sample() -> None:
    rows = {"x": np.zeros((3, 1, 5), np.float32), "state": np.zeros((3, 2, 1, 4), np.float32)}
    refused(
        InputError,
        "data '<dict>': input 'rate': expected [samples], got [3, 1]",
        lambda: open_data({**rows, "rate": np.zeros((3, 1), np.int64)}, model=model(STATE)),
    )
    refused(
        InputError,
        "data '<dict>': input 'state': expected [samples, 2, N, 4], got [2, 3, 4]. "
        "The axis of samples is missing: x[None]",
        lambda: open_data(
            {**rows, "state": np.zeros((2, 3, 4), np.float32), "rate": np.zeros(3, np.int64)},
            model=model(STATE),
        ),
    )


def test_lengths_do_not_match() -> None:
    left = np.zeros((4, 3), np.float32)
    refused(
        InputError,
        "data '<dict>': input 'right' has 5 samples, expected 4 as in 'left'",
        lambda: open_data({"left": left, "right": np.zeros(5, np.int64)}, model=model(TWO_INPUTS)),
    )
    refused(
        InputError,
        "data '<dict>': 3 labels for 4 samples",
        lambda: open_data({"x": images(4), "labels": np.arange(3)}, model=model()),
    )
    refused(
        InputError,
        "data '<dict>': labels are one number, expected one for each of the 4 samples",
        lambda: open_data({"x": images(4), "labels": np.int64(3)}, model=model()),
    )
    items = [(images(2), [0, 1]), images(2)]
    refused(
        InputError,
        "data '<list>', item 1: no labels, while there are some before it",
        lambda: collect(open_data(items, model=model())),
    )


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2, 0, 1, 2], np.uint8),
        np.array([2, 0, 1, 2], np.int8),
        np.array([2, 0, 1, 2], np.float16),
        np.array([[2], [0], [1], [2]]),
        np.eye(3, dtype=np.float32)[[2, 0, 1, 2]],
    ],
)
def test_labels_become_class_numbers(labels: Array) -> None:
    for spec in ({"x": images(4), "labels": labels}, [(images(4), labels)], [(images(4)[:3], labels[:3])]):
        found = open_data(spec, model=model()).head(4).labels
        assert found is not None and found.dtype == np.int64
        assert found.tolist() == [2, 0, 1, 2][: len(found)]


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (np.array(["cat", "dog", "cat", "cat"]), "text [4]"),
        (np.array([True, False, True, True]), "bool [4]"),
        (np.zeros(4, np.complex64), "complex64 [4]"),
        (np.array([[3, 5]] * 4), "int64 [4, 2]"),
        (np.zeros((4, 3)), "float64 [4, 3]"),
        (np.zeros((4, 2, 2), np.int64), "int64 [4, 2, 2]"),
        (np.zeros((4, 0), np.int64), "int64 [4, 0]"),
        (np.array([0, 1, np.nan, 2]), "nan for sample 2"),
        (np.array([0, 1, np.inf, 2], np.float16), "inf for sample 2"),
        (np.array([0, 1.5, 1, 2]), "1.5 for sample 1"),
        (np.array([0, 1, 1, -1]), "-1 for sample 3"),
        (np.array([0, 1, 1, 2**63], np.uint64), "9223372036854775808 for sample 3"),
    ],
)
def test_labels_that_are_no_classes(labels: Array, got: str) -> None:
    refused(
        InputError,
        f"data '<dict>': labels: expected the number of a class, from 0 on, for each sample; got {got}. "
        "Number the classes as the model does, or leave the labels out",
        lambda: check_data(open_data({"x": images(4), "labels": labels}), model()),
    )


def test_an_input_with_the_name_of_labels_is_none() -> None:
    source = open_data({"x": images(4), "y": images(4)})
    two = model(ONE_INPUT.replace(" x)", " x, float[N,3,5,7] y)"))
    check_data(source, two)
    assert bind(source, two).input_names == ("x", "y")


@pytest.mark.parametrize("spec", [np.zeros((0, 3, 5, 7), np.float32), [], iter(()), lambda: iter(())])
def test_no_samples(spec: Any) -> None:
    name = {"function": "<function <lambda>>"}.get(type(spec).__name__, f"<{type(spec).__name__}>")
    refused(InputError, f"data {name!r}: holds no samples", lambda: collect(open_data(spec, model=model())))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_are_checked_while_reading(bad: float) -> None:
    x = images(10)
    x[7, 1, 2, 3] = bad
    source = open_data({"x": x}, model=model())
    message = "data '<dict>': input 'x': sample 7 holds NaN or infinity"
    refused(InputError, message, lambda: list(source.batches(4)))
    refused(InputError, message, lambda: check_data(source, model()))
    check_data(source, model(), full=False)
    assert collect(source, limit=4)[0] == [4]


def test_large_finite_values_are_no_infinity() -> None:
    x = np.full((2, 3, 5, 7), 3e38, np.float32)  # their sum overflows
    check_data(open_data(x, model=model()), model())


def test_place_of_a_bad_sample(folder: Path) -> None:
    for index in range(3):
        x = images(2)
        x[1, 0, 0, 0] = np.nan if index == 2 else 0.0
        np.save(f"{index}.npy", x)
    source = open_data(str(folder), model=model())
    refused(
        InputError,
        f"data {str(folder)!r}, file '2.npy': input 'x': sample 5 holds NaN or infinity",
        lambda: collect(source),
    )


def test_check_data_of_another_model() -> None:
    source = open_data({"x": images(2)})
    check_data(source, model())
    refused(
        InputError,
        "data '<dict>': expected arrays named by the model's inputs, 'left', 'right'; got 'x'",
        lambda: check_data(source, model(TWO_INPUTS)),
    )


def test_one_shot_iterator_is_kept_up_to_a_limit() -> None:
    replay = readers.Replay("<generator>", iter([{"x": images(4)}] * 3), limit_bytes=4000)
    refused(
        UsageError,
        "data '<generator>': can be read only once, and holds more than the 0 MiB that are kept to read "
        "it again. "
        "Give something that can start over: a function that returns a new iterator, or a reader with "
        "rewind()",
        lambda: list(replay.open()),
    )


def test_iterator_may_reuse_its_buffer() -> None:
    buffer = np.zeros((1, 3, 5, 7), np.float32)

    def give() -> Iterator[Array]:
        for index in range(3):
            buffer[:] = index
            yield buffer

    _, samples = collect(open_data(give(), model=model()))
    assert samples.feeds["x"][:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("limit", "value", "samples"),
    [("_ENDLESS_SAMPLES", 8, 10), ("_ENDLESS_BYTES", 3000, 8), ("_ENDLESS_SAMPLES", 2, 4)],
)
def test_a_source_without_end_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, samples: int) -> None:
    monkeypatch.setattr(f"onnxpress.ir.data.{limit}", value)

    def give() -> Iterator[Array]:
        while True:
            yield images(2)

    message = (
        f"data '<function give>': has yielded {samples} samples and does not end. Samples are read to the end: "
        "limit it, as with itertools.islice(samples, 1000), or save them to files"
    )
    source = open_data(give, model=model())
    refused(InputError, message, source.digest)
    refused(InputError, message, lambda: check_data(source, model()))
    assert collect(source, limit=20)[1].size == 20
    shared = itertools.repeat(images(2))
    refused(InputError, message.replace("function give", "repeat"), open_data(shared, model=model()).digest)
    assert collect(open_data([images(2)] * 10, model=model()))[1].size == 20


def test_a_source_that_yields_nothing_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxpress.ir.data._ENDLESS_SAMPLES", 8)
    source = open_data(lambda: itertools.repeat(images(0)), model=model())
    with pytest.raises(InputError, match=r"has yielded 0 samples and does not end"):
        source.digest()


def test_same_iterator_again_is_refused() -> None:
    """Its first sample is gone already: the next pass would be one short, without a word."""
    shared = iter([{"x": images(1)}] * 3)

    class Shared:
        def __iter__(self) -> Iterator[Any]:
            return shared

    for name, spec in (("<function give>", lambda: shared), ("<Shared>", Shared())):
        if callable(spec):
            spec.__name__ = "give"
        source = open_data(spec, model=model())
        refused(
            UsageError,
            f"data {name!r}: gives the same iterator again, of which part is read already. Make a new one each time",
            lambda source=source: list(source.batches(2)),  # type: ignore[misc]
        )


def test_source_that_runs_dry() -> None:
    passes = iter([[images(1)], []])
    source = open_data(lambda: iter(next(passes)), model=model())
    refused(InputError, "data '<function <lambda>>': holds no samples", lambda: list(source.batches(2)))


def test_items_of_the_wrong_kind() -> None:
    refused(
        InputError,
        "data '<list>', item 0: TypeError: str, expected a dict of arrays by input name, one array, "
        "or a pair of either with labels",
        lambda: open_data(["x.npz"], model=model()),
    )
    refused(
        InputError,
        "data '<list>', item 0: TypeError: a tuple of 3, expected the pair (inputs, labels)",
        lambda: open_data([(1, 2, 3)], model=model()),
    )
    refused(
        InputError,
        "data '<list>', item 0: TypeError: 'x' is no array of numbers",
        lambda: open_data([{"x": np.array([object()])}], model=model()),
    )
    refused(
        UsageError,
        "data: int is nothing to read samples from. Give a path, 'module:function', arrays, "
        "an iterable of feeds, or a CalibrationDataReader",
        lambda: open_data(3, model=model()),
    )


def test_error_inside_a_users_iterable() -> None:
    def give() -> Iterator[Array]:
        yield images(1)
        raise ValueError("disk\nfull")

    source = open_data(give, model=model())
    refused(
        InputError,
        "data '<function give>', item 1: ValueError: disk full",
        lambda: list(source.batches(2)),
    )


def test_function_by_name_that_is_not_there(folder: Path) -> None:
    Path("other_samples.py").write_text("value = 3\ndef samples(): return 'a.npz'\ndef broken(): 1 / 0\n")
    refused(
        UsageError,
        "data 'nowhere:give': no such file or folder, and 'nowhere' cannot be imported "
        "(ModuleNotFoundError: No module named 'nowhere')",
        lambda: open_data("nowhere:give"),
    )
    refused(
        UsageError,
        "data 'other_samples:sample': 'other_samples' has no function 'sample'. Did you mean 'samples'?",
        lambda: open_data("other_samples:sample"),
    )
    refused(
        UsageError,
        "data 'other_samples:value': 'value' is no function but int",
        lambda: open_data("other_samples:value"),
    )
    refused(
        InputError,
        "data 'other_samples:samples': returned str, expected an iterable of feeds",
        lambda: open_data("other_samples:samples"),
    )
    refused(
        InputError,
        "data 'other_samples:broken': ZeroDivisionError: division by zero",
        lambda: open_data("other_samples:broken"),
    )
    sys.modules.pop("other_samples")


def test_sizes_below_one() -> None:
    source = open_data(images(2), model=model())
    refused(
        UsageError,
        "data '<ndarray>': batch size and limit must be at least 1, got 0 and None",
        lambda: source.batches(0),
    )


def test_folder_without_samples(folder: Path) -> None:
    refused(
        InputError,
        "data '.': the folder holds no .npz, no .npy and no images",
        lambda: open_data("."),
    )
    refused(
        UsageError,
        "preprocessing goes with a folder of images only",
        lambda: open_data(images(1), preprocessing="table.toml"),
    )
