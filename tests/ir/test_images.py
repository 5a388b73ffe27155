"""A folder of images as samples: the table says everything, and nothing is guessed."""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
import pytest
from PIL import Image

from onnxpress.ir.data import open_data
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from onnxpress.ir.images import Preprocessing

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,4,6] x) => (float[N,3,4,6] out) { out = Relu(x) }"""

PLAIN = "scale = 0.5\nmean = 1.0\nstd = 2.0\n"


def model(text: str = NET) -> onnx_ir.Model:
    return onnx_ir.from_onnx_text(text)


def refused(kind: type[OnnxpressError], message: str, action: Callable[[], object]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        action()


def pixels(height: int = 4, width: int = 6, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `photos` with two images below the current one."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        Image.fromarray(pixels(seed=index)).save(photos / f"{index}.png")
    return photos


def test_formula_and_layout(folder: Path) -> None:
    (folder / "preprocessing.toml").write_text("scale = 0.5\nmean = [1.0, 2.0, 3.0]\nstd = [4.0, 5.0, 6.0]\n")
    source = open_data("photos", model=model())
    assert source.count == 2 and not source.has_labels
    batch = source.head(2)
    expected = (pixels(seed=1) * np.float32(0.5) - np.array([1, 2, 3], np.float32)) / np.array([4, 5, 6], np.float32)
    assert batch.feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(batch.feeds["x"][1], expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"channel_order": "BGR"}, lambda x: x[..., ::-1].transpose(2, 0, 1)),
        ({"layout": "NHWC"}, lambda x: x),
        ({"crop": 2}, lambda x: x[1:3, 2:4].transpose(2, 0, 1)),
        ({"crop": [2, 4]}, lambda x: x[1:3, 1:5].transpose(2, 0, 1)),
    ],
)
def test_keys(folder: Path, table: dict[str, Any], expected: Callable[[Any], Any]) -> None:
    source = open_data("photos", preprocessing={**table, "scale": 1.0, "mean": 0.0, "std": 1.0})
    np.testing.assert_array_equal(source.head(1).feeds["images"][0], expected(pixels()))


def test_sizes_grey_and_raw_pixels() -> None:
    image = Image.fromarray(pixels(8, 12))
    raw = Preprocessing(dtype="uint8")
    assert raw.apply(image).dtype == np.uint8
    np.testing.assert_array_equal(raw.apply(image), pixels(8, 12).transpose(2, 0, 1))
    assert raw.model_copy(update={"size": 4}).apply(image).shape == (3, 4, 6)  # the short side
    assert raw.model_copy(update={"size": (5, 7)}).apply(image).shape == (3, 5, 7)
    assert raw.model_copy(update={"channel_order": "L"}).apply(image).shape == (1, 8, 12)


def test_labels_from_a_file(folder: Path) -> None:
    (folder / "preprocessing.toml").write_text(PLAIN + 'labels = "classes.csv"\n')
    (folder / "classes.csv").write_text("file,label\n1.png,7\n0.png,5\n")
    batch = open_data("photos", model=model()).head(2)
    assert batch.labels is not None and batch.labels.tolist() == [5, 7]


def test_labels_from_folders(tmp_path: Path) -> None:
    for index, name in enumerate(["cat", "ant", "bee"]):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels(seed=index)).save(tmp_path / name / "a.png")
    table = {"dtype": "uint8", "labels": "folders"}
    source = open_data(tmp_path, preprocessing=table)
    batch = source.head(3)
    assert batch.labels is not None and batch.labels.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(batch.feeds["images"][2], pixels(seed=0).transpose(2, 0, 1))


def test_digest_follows_files_and_table(folder: Path) -> None:
    table = {"scale": 1.0, "mean": 0.0, "std": 1.0}
    first = open_data("photos", preprocessing=table).digest()
    assert open_data(folder, preprocessing=table).digest() == first
    assert open_data("photos", preprocessing={**table, "mean": 1.0}).digest() != first
    Image.fromarray(pixels(seed=9)).save(folder / "1.png")
    assert open_data("photos", preprocessing=table).digest() != first


def test_table_is_never_guessed(folder: Path) -> None:
    refused(
        InputError,
        "data 'photos': the folder holds 2 images and no preprocessing.toml that says how the model takes "
        "them. "
        "Write one, with size, crop, channel_order, layout, scale, mean and std",
        lambda: open_data("photos"),
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("scale = 1.0\n", "mean and std must be stated: x = (pixel * scale - mean) / std"),
        (PLAIN + "means = 1.0\n", "unknown key 'means'. Did you mean 'mean'? It takes: "),
        (PLAIN + 'layout = "CHW"\n', "layout = 'CHW': input should be 'NCHW' or 'NHWC'"),
        ("scale = 1.0\nmean = [0.0, 0.0]\nstd = 1.0\n", "mean has 2 numbers, expected 3 for RGB"),
        ("scale = 1.0\nmean = 0.0\nstd = 0.0\n", "std must not be 0"),
        (
            PLAIN + 'dtype = "uint8"\n',
            "scale, mean and std do not go with dtype = 'uint8', which keeps the pixels as they are",
        ),
        ("scale = ", "is not valid TOML (Invalid value (at end of document))"),
    ],
)
def test_table_with_a_mistake(folder: Path, text: str, problem: str) -> None:
    (folder / "preprocessing.toml").write_text(text)
    if problem.endswith("takes: "):
        problem += ", ".join(Preprocessing.model_fields)
    path = str(Path("photos") / "preprocessing.toml")
    refused(InputError, f"preprocessing table {path!r}: {problem}", lambda: open_data("photos"))


def test_table_that_is_not_there(folder: Path) -> None:
    refused(
        InputError,
        "preprocessing table 'other.toml': cannot be read (No such file or directory)",
        lambda: open_data("photos", preprocessing="other.toml"),
    )


def test_images_that_do_not_fit(folder: Path) -> None:
    table = {"scale": 1.0, "mean": 0.0, "std": 1.0}
    refused(
        InputError,
        "data 'photos', file '0.png': cannot be used as an image (crop of 5x5 does not fit into 4x6 (height x width))",
        lambda: open_data("photos", preprocessing={**table, "crop": 5}),
    )
    refused(
        InputError,
        "data 'photos': input 'x': expected [N, 3, 4, 6], got [2, 4, 6, 3]. "
        "The channels come last (NHWC): x.transpose(0, 3, 1, 2)",
        lambda: open_data("photos", preprocessing={**table, "layout": "NHWC"}, model=model()),
    )
    Image.fromarray(pixels(5, 6)).save(folder / "1.png")
    source = open_data("photos", preprocessing=table, model=model())
    refused(
        InputError,
        "data 'photos', file '1.png': input 'x': expected [N, 3, 4, 6], got [1, 3, 5, 6]",
        lambda: list(source.batches(2)),
    )
    (folder / "0.png").write_bytes(b"no image")
    refused(
        InputError,
        "data 'photos', file '0.png': cannot be used as an image (cannot identify image file '0.png')",
        lambda: open_data("photos", preprocessing=table),
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("0.png,5\n", "classes.csv has no label for the image '1.png'"),
        (
            "0.png,5\n1.png,dog\n",
            "labels file 'classes.csv', line 2: expected file,label with a whole number, got '1.png,dog'",
        ),
        (None, "labels file 'classes.csv' cannot be read (No such file or directory)"),
    ],
)
def test_labels_with_a_mistake(folder: Path, content: str | None, problem: str) -> None:
    (folder / "preprocessing.toml").write_text(PLAIN + 'labels = "classes.csv"\n')
    if content is not None:
        (folder / "classes.csv").write_text(content)
    refused(InputError, f"data 'photos': {problem}", lambda: open_data("photos"))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("pipe", "'pipe' is a device or pipe. Save it as a file"),
        ("w" * 5000, f"'{'w' * 300}... (5000 characters)' cannot be read (File name too long)"),
        ("a\\u0000b", "'a\\x00b' cannot be read (embedded null byte)"),
    ],
)
def test_label_files_that_cannot_be_opened(folder: Path, labels: str, problem: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "preprocessing.toml").write_text(PLAIN + f'labels = "{labels}"\n')
    refused(InputError, f"data 'photos': labels file {problem}", lambda: open_data("photos"))


def test_labels_by_folder_need_folders(folder: Path) -> None:
    refused(
        InputError,
        "data 'photos': labels = 'folders' needs the images in one folder per class",
        lambda: open_data("photos", preprocessing={"dtype": "uint8", "labels": "folders"}),
    )


def test_pillow_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pillow(name: str, *rest: Any, **named: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    refused(
        UsageError,
        "reading images needs Pillow, which is not installed: pip install 'onnxpress[images]'",
        lambda: open_data("photos", preprocessing={"dtype": "uint8"}),
    )
