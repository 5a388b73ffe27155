"""Read a folder of images as model input, by a table that states the preprocessing in full.

The table is `preprocessing.toml` in the folder (or given beside it):

    size = 256                        # short side in pixels, or [height, width]; leave out to keep the size
    crop = 224                        # centre crop, or [height, width]; leave out for none
    filter = "bilinear"               # nearest | bilinear | bicubic | lanczos
    channel_order = "RGB"             # RGB | BGR | L (grey)
    layout = "NCHW"                   # NCHW | NHWC
    scale = 0.00392156862745098       # x = (pixel * scale - mean) / std, pixels from 0 to 255
    mean = [0.485, 0.456, 0.406]      # a number, or one per channel in channel_order
    std = [0.229, 0.224, 0.225]
    labels = "labels.csv"             # lines of file,label; or "folders": the index of the image's folder

`scale`, `mean` and `std` have no defaults, because a wrong guess costs accuracy without a sound. A model that
takes raw pixels says `dtype = "uint8"` in their place. Sizes and crops follow torchvision's Resize and
CenterCrop; classes by folder number the folders' sorted names.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pydantic

from onnxpress.ir.errors import InputError, UsageError, near_names
from onnxpress.ir.onnx_file import shortened
from onnxpress.ir.readers import Array, Chunk, Column, Reader

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "TABLE_NAME",
    "ImageReader",
    "Preprocessing",
    "find_images",
    "read_preprocessing",
    "require_pillow",
]

TABLE_NAME = "preprocessing.toml"
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_Pixels = Annotated[int, pydantic.Field(gt=0)]
_PerChannel = float | tuple[float, ...]


class Preprocessing(pydantic.BaseModel):
    """How an image becomes numbers; see the module for each key."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    size: _Pixels | tuple[_Pixels, _Pixels] | None = None
    crop: _Pixels | tuple[_Pixels, _Pixels] | None = None
    filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    channel_order: Literal["RGB", "BGR", "L"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    scale: float | None = None
    mean: _PerChannel | None = None
    std: _PerChannel | None = None
    labels: str | None = None

    @pydantic.model_validator(mode="after")
    def _check_normalization(self) -> Self:
        given = {"scale": self.scale, "mean": self.mean, "std": self.std}
        missing = [key for key, value in given.items() if value is None]
        if self.dtype == "uint8":
            if len(missing) < len(given):
                raise ValueError(
                    "scale, mean and std do not go with dtype = 'uint8', which keeps the pixels as they are"
                )
            return self
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be stated: x = (pixel * scale - mean) / std")
        channels = 1 if self.channel_order == "L" else 3
        for key in ("mean", "std"):
            value = given[key]
            if isinstance(value, tuple) and len(value) != channels:
                raise ValueError(f"{key} has {len(value)} numbers, expected {channels} for {self.channel_order}")
        if np.any(np.asarray(self.std) == 0):
            raise ValueError("std must not be 0")
        return self

    def apply(self, image: Image.Image) -> Array:
        """Return one image as an array [C, H, W] or [H, W, C] of `dtype`.

        Raises:
            ValueError: the crop does not fit.
        """
        image = self._cropped(self._resized(image.convert("L" if self.channel_order == "L" else "RGB")))
        pixels = np.atleast_3d(np.asarray(image, np.uint8))
        if self.channel_order == "BGR":
            pixels = pixels[..., ::-1]
        numbers = pixels if self.dtype == "uint8" else self._normalized(pixels)
        return np.ascontiguousarray(numbers.transpose(2, 0, 1) if self.layout == "NCHW" else numbers)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image
        from PIL import Image as Pillow

        if isinstance(self.size, tuple):
            height, width = self.size
        else:
            short = min(image.size)
            width, height = (int(self.size * side / short) for side in image.size)
        return image.resize((width, height), Pillow.Resampling[self.filter.upper()])

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        if image.width < width or image.height < height:
            raise ValueError(
                f"crop of {height}x{width} does not fit into {image.height}x{image.width} (height x width)"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _normalized(self, pixels: Array) -> Array:
        scale, mean, std = (np.asarray(number, np.float32) for number in (self.scale, self.mean, self.std))
        return (pixels.astype(np.float32) * scale - mean) / std


class ImageReader(Reader):
    """Images as samples of the column "images", each read when its turn comes; labels under "labels"."""

    rows = True

    def __init__(self, folder: Path, name: str, images: Sequence[Path], table: Preprocessing) -> None:
        self.name = name
        self.table = table
        self._images = tuple(images)
        self._labels = None if table.labels is None else _read_labels(folder, name, self._images, table.labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """The images in reading order."""
        return self._images

    @property
    def labels(self) -> Array | None:
        """[images] int64, or None."""
        return self._labels

    def columns(self) -> dict[str, Column]:
        first = self._read(self._images[0])
        columns = {"images": Column(first.dtype, (len(self._images), *first.shape))}
        if self._labels is not None:
            columns["labels"] = Column(self._labels.dtype, self._labels.shape)
        return columns

    def chunks(self, size: int, names: Collection[str]) -> Iterator[Chunk]:
        for index, path in enumerate(self._images):
            columns = {"images": self._read(path)[None]}
            if self._labels is not None:
                columns["labels"] = self._labels[index : index + 1]
            yield Chunk({name: columns[name] for name in names if name in columns}, f"file {path.name!r}")

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [(len(self._images),)]

    def _read(self, path: Path) -> Array:
        from PIL import Image as Pillow

        try:
            with Pillow.open(path) as image:
                return self.table.apply(image)
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            cause = " ".join(str(error).split()).replace(str(path), path.name)
            raise InputError(f"data {self.name!r}, file {path.name!r}: cannot be used as an image ({cause})") from error


def find_images(folder: Path) -> list[Path]:
    """Return the images in `folder`, or, where there are none, those one folder below; sorted by path."""
    here = sorted(path for path in folder.iterdir() if _is_image(path))
    return here or sorted(path for path in folder.glob("*/*") if _is_image(path))


def read_preprocessing(source: str | Path | Mapping[str, Any] | Preprocessing) -> Preprocessing:
    """Read a table from a TOML file or a mapping.

    Raises:
        InputError: the file cannot be read, is no TOML, or a key is unknown, missing or of the wrong kind.
    """
    if isinstance(source, Preprocessing):
        return source
    where = "preprocessing" if isinstance(source, Mapping) else f"preprocessing table {str(source)!r}"
    table = dict(source) if isinstance(source, Mapping) else _read_toml(Path(source), where)
    try:
        return Preprocessing(**table)
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {_explain(error)}") from None


def require_pillow() -> None:
    """Raise a UsageError where Pillow is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise UsageError(
            "reading images needs Pillow, which is not installed: pip install 'onnxpress[images]'"
        ) from None


def _read_toml(path: Path, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: is not valid TOML ({error})") from error


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        known = ", ".join(Preprocessing.model_fields)
        return f"unknown key {key!r}.{near_names(key, Preprocessing.model_fields)} It takes: {known}"
    problem = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} = {first['input']!r}: {problem}"


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _read_labels(folder: Path, name: str, images: Sequence[Path], labels: str) -> Array:
    if labels == "folders":
        if any(path.parent == folder for path in images):
            raise InputError(f"data {name!r}: labels = 'folders' needs the images in one folder per class")
        classes = sorted({path.parent.name for path in images})
        return np.array([classes.index(path.parent.name) for path in images], np.int64)
    table = _read_label_table(folder / labels, name)
    missing = next((path for path in images if path.relative_to(folder).as_posix() not in table), None)
    if missing is not None:
        raise InputError(
            f"data {name!r}: {labels} has no label for the image {missing.relative_to(folder).as_posix()!r}"
        )
    return np.array([table[path.relative_to(folder).as_posix()] for path in images], np.int64)


def _read_label_table(path: Path, name: str) -> dict[str, int]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # opening a pipe may wait for ever
            raise InputError(f"data {name!r}: labels file {path.name!r} is a device or pipe. Save it as a file")
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, csv.Error) as error:  # such as a name that is too long, or bytes of no text
        cause = error.strerror if isinstance(error, OSError) else error
        label_file = shortened(path.name)
        raise InputError(f"data {name!r}: labels file {label_file!r} cannot be read ({cause})") from error
    table: dict[str, int] = {}
    for index, row in enumerate(rows):
        if len(row) != 2 or not _is_integer(row[1]):
            if index == 0 and len(row) == 2:
                continue  # a header
            raise InputError(
                f"data {name!r}: labels file {path.name!r}, line {index + 1}: expected file,label with a "
                f"whole number, got {','.join(row)!r}"
            )
        table[row[0].strip()] = int(row[1])
    return table


def _is_integer(text: str) -> bool:
    return text.strip().lstrip("-").isdecimal()
