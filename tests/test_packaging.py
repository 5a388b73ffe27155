"""What gets installed: every package and data file, and dependencies that match the imports."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("onnxpress", "ir", "passes", "targets", "tools")
_PROJECT: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Where the name to import is not the distribution's with underscores.
_DISTRIBUTIONS = {"MNN": "mnn", "PIL": "pillow", "google": "protobuf", "sklearn": "scikit-learn"}


def _sources() -> Iterator[Path]:
    """Yield every file of the rooms but for caches."""
    for room in _ROOMS:
        for path in sorted((_ROOT / room).rglob("*")):
            inside = path.relative_to(_ROOT)
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
                yield inside


def _installed_name(path: Path) -> str:
    """Return where a file of the tree lies in a wheel, such as `onnxpress/ir/errors.py`."""
    return path.as_posix() if path.parts[0] == "onnxpress" else f"onnxpress/{path.as_posix()}"


def test_every_package_folder_is_listed() -> None:
    folders = {path.parent for path in _sources() if path.suffix == ".py"}
    found = {_installed_name(folder).replace("/", ".") for folder in folders}
    listed = _PROJECT["tool"]["setuptools"]["packages"]
    assert found - set(listed) == set()
    assert set(listed) - found == set()
    assert listed == sorted(listed)


def test_every_package_folder_is_a_package() -> None:
    folders = {path.parent for path in _sources() if path.suffix == ".py"}
    assert [folder for folder in sorted(folders) if not (_ROOT / folder / "__init__.py").exists()] == []


def test_every_data_file_is_listed() -> None:
    patterns = _PROJECT["tool"]["setuptools"]["package-data"]
    missed = [
        path.as_posix()
        for path in _sources()
        if path.suffix != ".py"
        and not any(path.match(pattern) for pattern in patterns.get(_installed_name(path.parent).replace("/", "."), []))
    ]
    assert missed == []


def test_a_wheel_holds_the_whole_tree_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for path in _sources():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_ROOT / path, source / path)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {_installed_name(path) for path in _sources()}


def _required(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


def test_every_import_is_declared() -> None:
    """In the dependencies or, for what is imported inside functions only, in an extra."""
    project = _PROJECT["project"]
    extras = project["optional-dependencies"]
    names = ("cpu", "images", "litert", "mnn", "ncnn", "openvino", "report", "dev")
    of_extras = [requirement for name in names for requirement in extras[name]]
    declared = _required(project["dependencies"]) | _required(of_extras)
    missing = {
        f"{path.as_posix()}: {name}"
        for path in _sources()
        if path.suffix == ".py"
        for name in _imported_distributions(path)
        if name not in declared
    }
    assert missing == set()


def test_every_dependency_is_imported() -> None:
    """What only the tests need is in the extra `test`: an installation takes no more than it uses."""
    used = {name for path in _sources() if path.suffix == ".py" for name in _imported_distributions(path)}
    assert _required(_PROJECT["project"]["dependencies"]) - used == set()


def _imported_distributions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((_ROOT / path).read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            first = name.partition(".")[0]
            if first not in sys.stdlib_module_names and first != "onnxpress":
                yield _DISTRIBUTIONS.get(first, first.replace("_", "-"))


def test_the_product_requires_no_flavour_of_a_runtime_and_no_training_framework() -> None:
    required = _required(_PROJECT["project"]["dependencies"])
    assert {name for name in required if name.startswith(("onnxruntime", "torch", "tensorflow"))} == set()
    assert {"cpu", "gpu", "test", "dev"} <= _PROJECT["project"]["optional-dependencies"].keys()


def test_dependencies_have_a_floor_and_no_ceiling() -> None:
    """Exact pins and ceilings make an installation fight with its neighbours."""
    project = _PROJECT["project"]
    every = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    assert [one for one in every if not re.fullmatch(r"[\w-]+>=[\d.]+", one)] == []


def test_the_types_are_published() -> None:
    assert (_ROOT / "onnxpress" / "py.typed").read_text(encoding="utf-8") == ""


def test_the_command_is_the_one_of_the_readme() -> None:
    assert _PROJECT["project"]["scripts"] == {"onnxpress": "onnxpress.tools.cli:main"}
