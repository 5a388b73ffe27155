"""The rooms: what may import what, what loads when, and what every module must have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("ir", "passes", "targets", "tools", "onnxpress")  # each may import itself and those before it
_MODULES = sorted(path for room in _ROOMS for path in (_ROOT / room).rglob("*.py"))
_TESTS = sorted((_ROOT / "tests").rglob("*.py"))

_FORBIDDEN = {"torch", "pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
_HEAVY = {
    "PIL",
    "networkx",
    "onnx_graphsurgeon",
    "onnxruntime",
    "onnxscript",
    "rich",
    "scipy",
    "sklearn",
    "typer",
}
_HOMES = {"tools/cli": {"typer"}, "tools/report": {"rich"}}  # about one of them, and imported late
_MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|opt|Users|tmp|mnt)/\w|[A-Z]:\\\\?Users")
_ALIAS = re.compile(r"[A-Z]\w*[a-z]\w*")  # in an assignment: CapWords, as type aliases are
_OWN_MODULE_TEXT = re.compile(r"onnxpress\.(ir|passes|targets|tools)\.[\w.]+(:\w+)?")


def _name(path: Path) -> str:
    return path.relative_to(_ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _module(path: Path) -> str:
    """Return the name that `path` installs under, such as `onnxpress.ir.errors`."""
    parts = path.relative_to(_ROOT).with_suffix("").parts
    parts = parts if parts[0] == "onnxpress" else ("onnxpress", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(node: ast.AST, module: str, *, package: bool) -> Iterator[str]:
    """Yield the absolute name of everything that one import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        up = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _all_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, name) of every import in the file: in functions and under TYPE_CHECKING too."""
    module, package = _module(path), path.name == "__init__.py"
    for node in ast.walk(_tree(path)):
        for name in _imports(node, module, package=package):
            yield getattr(node, "lineno", 0), name


def _room(name: str) -> str | None:
    """Return the room that a module name belongs to, None outside of the project."""
    first, _, rest = name.partition(".")
    if first != "onnxpress":
        return None
    room = rest.partition(".")[0]
    return room if room in _ROOMS else "onnxpress"


def _executed_on_import(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when the module is imported: not function bodies, not TYPE_CHECKING."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from _executed_on_import(statement.orelse)
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _executed_on_import(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from _executed_on_import(handler.body)


def _text_constants(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_the_rooms_hold_modules() -> None:
    assert {_name(path).partition("/")[0] for path in _MODULES} == set(_ROOMS)


def _is_upward(path: Path, name: str) -> bool:
    """Whether the module `name` lies in a room that the file must not know."""
    own, target = _name(path).partition("/")[0], _room(name)
    return target is not None and _ROOMS.index(target) > _ROOMS.index(own)


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_imports_run_one_way(path: Path) -> None:
    assert [f"line {line}: {name}" for line, name in _all_imports(path) if _is_upward(path, name)] == []


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_names_of_modules_in_strings_run_one_way(path: Path) -> None:
    """Registries keep them, to import late."""
    names = [(line, text) for line, text in _text_constants(path) if _OWN_MODULE_TEXT.fullmatch(text)]
    assert [f"line {line}: {name}" for line, name in names if _is_upward(path, name)] == []


@pytest.mark.parametrize("path", [*_MODULES, *_TESTS], ids=_name)
def test_no_room_is_imported_by_its_bare_name(path: Path) -> None:
    """`import ir` works by accident in the source tree and nowhere else."""
    bare = [
        f"line {line}: {name}"
        for line, name in _all_imports(path)
        if name.partition(".")[0] in set(_ROOMS) - {"onnxpress"}
    ]
    assert bare == []


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_nothing_imports_torch_or_unpickles(path: Path) -> None:
    found = [f"line {line}: {name}" for line, name in _all_imports(path) if name.partition(".")[0] in _FORBIDDEN]
    found += [
        f"line {node.lineno}: allow_pickle"
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
    ]
    assert found == []


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_heavy_modules_are_imported_where_they_are_used(path: Path) -> None:
    folder = path.parent.relative_to(_ROOT).as_posix()
    heavy = _HEAVY - _HOMES.get(folder, set())
    found = [
        f"line {statement.lineno}: {name}"
        for statement in _executed_on_import(_tree(path).body)
        for name in _imports(statement, _module(path), package=path.name == "__init__.py")
        if name.partition(".")[0] in heavy
    ]
    assert found == []


def _public_names(tree: ast.Module) -> set[str]:
    """Return the names without underscore that the module itself defines at top level.

    Type aliases (`Array = npt.NDArray[Any]`) do not count: they shorten annotations and offer nothing.
    """
    names: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names.update(name for target in targets for name in _assigned(target))
            case ast.AnnAssign(target=target):
                names.update(_assigned(target))
    return {name for name in names if not name.startswith("_")}


def _assigned(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not _ALIAS.fullmatch(node.id):
            yield node.id


def _exported(tree: ast.Module) -> list[str] | None:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    return None


def _is_only_docstring(tree: ast.Module) -> bool:
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in tree.body)


@pytest.mark.parametrize("path", _MODULES, ids=_name)
def test_every_module_says_what_it_is_and_offers(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree), "no docstring"
    if _is_only_docstring(tree) or path.name == "__main__.py":
        return
    exported = _exported(tree)
    assert exported is not None, "no __all__"
    assert _public_names(tree) - set(exported) == set(), "public, but not in __all__: list it or add a _"


def test_what_a_module_offers_exists() -> None:
    offers = {_module(path): _exported(_tree(path)) or [] for path in _MODULES}
    code = (
        "import importlib\n"
        f"for module, names in {offers!r}.items():\n"
        "    loaded = importlib.import_module(module)\n"
        "    for name in names:\n"
        "        if not hasattr(loaded, name): print(module, name)"
    )
    assert _python(code) == ""


@pytest.mark.parametrize("path", [*_MODULES, *sorted(_ROOT.glob("*.md")), _ROOT / "pyproject.toml"], ids=_name)
def test_no_path_of_a_machine_is_written_down(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if _MACHINE_PATH.search(line)] == []


def _python(code: str) -> str:
    """Return what `code` prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _loaded_by(code: str, wanted: tuple[str, ...]) -> str:
    """Return which of the modules `wanted` are loaded in a fresh process after `code` ran."""
    report = f"import sys; print([name for name in {wanted!r} if name in sys.modules])"
    return _python(f"{code}\n{report}").splitlines()[-1]


def test_importing_the_package_is_light() -> None:
    wanted = ("onnxruntime", "onnxscript", "scipy", "rich", "typer", "networkx", "onnx_graphsurgeon")
    assert _loaded_by("import onnxpress", wanted) == "[]"


def test_help_loads_no_graph_library() -> None:
    code = (
        "import sys; sys.argv = ['onnxpress', '--help']\n"
        "from onnxpress.tools.cli import main\n"
        "status = main()\n"
        "assert status == 0, status"
    )
    wanted = ("onnx", "onnx_ir", "onnxruntime", "onnxscript", "numpy", "scipy")
    assert _loaded_by(code, wanted) == "[]"
