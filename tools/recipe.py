"""Recipes: all that is needed to repeat a run, as TOML for people and as the manifest inside the model.

The manifest (JSON under `MANIFEST_KEY` in the model's metadata) holds what decides the bytes of the result
and nothing else: no times, no paths. The recipe adds where the data was and what the result was held to.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import pydantic

from onnxpress.ir.errors import InputError, UsageError, near_names
from onnxpress.tools.outputs import write_text

__all__ = ["MANIFEST_KEY", "Recipe", "installed_versions", "portable"]

MANIFEST_KEY = "onnxpress.manifest"

_ALWAYS = ("onnxpress", "onnx", "onnx-ir", "onnxscript")
_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_OF_RUNTIME = {"litert": ("ai-edge-litert",)}  # what else shapes the results for a runtime
_MANIFEST_FIELDS = ("model_digest", "target", "target_digest", "pipeline", "seed", "data_digest", "versions")
_HEADER = "# Repeat with: onnxpress compress MODEL OUT --recipe THIS.toml\n"


class Recipe(pydantic.BaseModel):
    """What a run was made of. Fields left out of a file are free: the command line, or the default, decides.

    model: name of the input model's file, for people. model_digest, target_digest, data_digest: sha256 in hex; of a
    target that comes with this package there is none, as its version says what it holds.
    data, eval_data: relative path, or module:function; None where the data was handed over in Python.
    versions: of everything that shapes the result, by distribution name.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str | None = None
    model_digest: str | None = None
    target: str | None = None
    target_digest: str | None = None
    pipeline: str | None = None
    seed: int | None = pydantic.Field(default=None, ge=0)
    data: str | None = None
    data_digest: str | None = None
    eval_data: str | None = None
    max_drop: float | None = pydantic.Field(default=None, ge=0, strict=False)
    versions: dict[str, str] = pydantic.Field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a TOML file. Relative paths in it are found from the working folder or from beside the file.

        Raises:
            UsageError: no such file, not TOML, an unknown key (with near names), a value of the wrong kind.
        """
        shown = os.fspath(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"recipe {shown!r} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"recipe {shown!r} is not a text file (UTF-8).") from error
        recipe = cls.from_toml(text, name=shown)
        folder = Path(path).parent
        return recipe.model_copy(
            update={field: _find(getattr(recipe, field), folder) for field in ("target", "data", "eval_data")}
        )

    @classmethod
    def from_toml(cls, text: str, *, name: str = "recipe") -> Recipe:
        """Read TOML text. name: what messages call it.

        Raises:
            UsageError: as `read`.
        """
        try:
            return cls(**tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"recipe {name!r} is not TOML: {error}.") from error
        except pydantic.ValidationError as error:
            raise UsageError(f"recipe {name!r}: {_explain(error)}") from None

    def to_toml(self) -> str:
        """Write TOML that `from_toml` reads back as an equal recipe."""
        given = self.model_dump(exclude_none=True)
        versions = given.pop("versions")
        lines = [f"{key} = {_toml_value(value)}" for key, value in given.items()]
        if versions:
            lines += ["", "[versions]"]
            lines += [f"{_toml_key(name)} = {_toml_value(versions[name])}" for name in sorted(versions)]
        return _HEADER + "\n".join(lines) + "\n"

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the TOML file, whole or not at all.

        Raises:
            UsageError: the path exists and `overwrite` is not set, or cannot be written.
        """
        write_text(path, self.to_toml(), overwrite=overwrite)

    def manifest(self) -> str:
        """Return the JSON text for the model's metadata: equal runs give equal text."""
        given = self.model_dump(include=set(_MANIFEST_FIELDS), exclude_none=True)
        return json.dumps(given, sort_keys=True, separators=(",", ":"))

    def check_model(self, digest: str, name: str) -> None:
        """Check that the model at hand is the one that the recipe was made for.

        Raises:
            InputError: it is another one.
        """
        if self.model_digest is not None and self.model_digest != digest:
            raise InputError(
                f"{name}: not the model that the recipe was made for: expected sha256 {self.model_digest}, "
                f"got {digest}. To use the recipe on another model, remove its line model_digest."
            )

    def check_target(self, digest: str | None, name: str) -> None:
        """Check that the target's profile is the one that the recipe was made with.

        Raises:
            InputError: it says something else.
        """
        if self.target_digest is not None and self.target_digest != digest:
            raise InputError(
                f"{name}: not the profile that the recipe was made with: expected sha256 {self.target_digest}, "
                f"got {digest or 'none'}. To use the profile as it is now, remove the recipe's line target_digest."
            )

    def check_data(self, digest: str, name: str) -> None:
        """Check that the calibration data at hand is what the recipe was made with.

        Raises:
            InputError: it is something else.
        """
        if self.data_digest is not None and self.data_digest != digest:
            raise InputError(
                f"{name}: not the data that the recipe was made with: expected sha256 {self.data_digest}, "
                f"got {digest}. To calibrate on other data, remove its line data_digest."
            )

    def other_versions(self) -> list[str]:
        """Say which installed versions differ from the recipe's, such as 'onnx 1.18.0 (here 1.19.1)'."""
        here = _versions(self.versions)
        return [
            f"{name} {version} (here {here.get(name, 'none')})"
            for name, version in sorted(self.versions.items())
            if here.get(name) != version
        ]


def installed_versions(runtime: str = "") -> dict[str, str]:
    """Return the versions of everything that shapes a result for `runtime`, by distribution name."""
    return _versions((*_ALWAYS, *_ONNXRUNTIMES, *_OF_RUNTIME.get(runtime, ())))


def _versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: an empty name
            versions[name] = importlib.metadata.version(name)
    return versions


def portable(spec: str) -> str:
    """Return a path for a recipe that leaves this machine: relative as it was given, else the name alone."""
    path = PurePath(spec)
    return path.name if path.is_absolute() else path.as_posix()


def _find(spec: str | None, folder: Path) -> str | None:
    """Return `spec`, or where it lies beside the recipe when there is nothing of that name from here."""
    if spec is None or Path(spec).exists() or not (folder / spec).exists():
        return spec
    return str(folder / spec)


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = Recipe.model_fields
        return f"unknown key {key!r}.{near_names(key, fields)} Keys: {', '.join(fields)}"
    return f"key {key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
