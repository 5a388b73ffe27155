"""CONTRIBUTING.md's example: the pass, its tests and its registration, run as they stand there."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from onnxpress.passes import registry
from onnxpress.passes.pipeline import build

_ROOT = Path(__file__).resolve().parents[1]
_TEXT = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_NAME = "eliminate-repeated-relu"
_MODULE = "onnxpress.passes.cleanup.eliminate_repeated_relu"


def _block_after(line: str) -> str:
    """Return the first python block after the line that holds exactly `line`."""
    found = re.search(rf"^{re.escape(line)}\n+```python\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, line
    return found.group(1)


def _load(name: str, source: str, path: Path) -> types.ModuleType:
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The example's test module, with the pass importable and registered under the names it gives."""
    monkeypatch.setitem(sys.modules, _MODULE, types.ModuleType(_MODULE))  # so that it goes when the test ends
    _load(_MODULE, _block_after("`passes/cleanup/eliminate_repeated_relu.py`"), tmp_path / "relu.py")
    line = _block_after("Third its registration, one line of the table in `passes/registry.py`:")
    for name, place in ast.literal_eval(f"{{{line}}}").items():
        monkeypatch.setitem(registry._BUILT_IN, name, place)
    tests = "tests_of_the_example"
    monkeypatch.setitem(sys.modules, tests, types.ModuleType(tests))
    source = _block_after("`tests/passes/cleanup/test_eliminate_repeated_relu.py`")
    return _load(tests, source, tmp_path / "test_relu.py")


def test_the_example_passes_its_own_tests(example: types.ModuleType) -> None:
    tests = {name: value for name, value in vars(example).items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        test()


def test_the_example_is_known_by_its_name(example: types.ModuleType) -> None:
    assert registry.get_pass(_NAME).__name__ == "EliminateRepeatedRelu"
    assert _NAME in registry.pass_names()
    (built,) = build(f"{_NAME}{{exclude=[head/*]}}")
    assert built.options.model_dump() == {"include": (), "exclude": ("head/*",)}


def test_the_table_line_looks_like_the_others() -> None:
    source = (_ROOT / "passes" / "registry.py").read_text(encoding="utf-8")
    line = _block_after("Third its registration, one line of the table in `passes/registry.py`:")
    shape = re.compile(r'"[\w-]+": "onnxpress\.passes\.\w+\.\w+:\w+",')
    assert shape.fullmatch(line.strip())
    assert len(shape.findall(source)) == len(registry._BUILT_IN)
