"""README.md: every command in it runs, its Python runs, and its tables say what the code says."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from onnxpress.passes.registry import get_pass, pass_names
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime

_ROOT = Path(__file__).resolve().parents[1]
_TEXT = (_ROOT / "README.md").read_text(encoding="utf-8")

# What a reader does once and the tests do not repeat: installing, and running these tests.
_NOT_RUN = re.compile(r'pip install -e "\.\[[a-z,]+\]"|pytest( -n auto)?|python -m onnxpress\.tools\.bench \w+')


def _blocks(language: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
    return [text for name, text in fences if name == language]


def _commands() -> list[str]:
    """Return the commands of all bash blocks in order, continued lines joined and `&&` split."""
    lines = "\n".join(_blocks("bash")).replace("\\\n", " ").splitlines()
    return [" ".join(part.split()) for line in lines for part in line.split("&&") if part.strip()]


def _is_run(command: str) -> bool:
    return command.startswith("onnxpress ")


def _table(first_column: str) -> list[list[str]]:
    """Return the rows of the table whose header starts with `first_column`, cells stripped."""
    found = re.search(rf"^\| {first_column} \|.*\n\|[-|: ]+\|\n((?:\|.*\n)+)", _TEXT, re.MULTILINE)
    assert found is not None, first_column
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found.group(1).splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository's root to the README's commands."""
    folder = tmp_path_factory.mktemp("readme")
    demo = folder / "tools" / "demo"
    demo.mkdir(parents=True)
    for name in ("digits.onnx", "calibration.npz", "evaluation.npz"):
        shutil.copy(_ROOT / "tools" / "demo" / name, demo / name)
    (folder / "phone.toml").write_text(_blocks("toml")[0], encoding="utf-8")
    return folder


def _run(arguments: list[str], folder: Path) -> str:
    """Run a command to its end and return what it wrote to stderr, where everything for people goes."""
    scripts = Path(sysconfig.get_path("scripts"))
    command = [str(scripts / "onnxpress"), *arguments[1:]] if arguments[0] == "onnxpress" else arguments
    environment = {**os.environ, "COLUMNS": "110"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def test_every_command_is_either_run_here_or_known_not_to_be() -> None:
    assert [one for one in _commands() if not _is_run(one) and not _NOT_RUN.fullmatch(one)] == []
    assert sum(map(_is_run, _commands())) >= 8


def test_the_first_screen_holds_the_two_commands_of_a_fresh_machine() -> None:
    first = "\n".join(_TEXT.splitlines()[:24])
    assert 'pip install -e ".[cpu]" && onnxpress demo' in first
    assert 'pip install -e ".[cpu,test]" && pytest -n auto' in first


def test_every_command_runs(folder: Path) -> None:
    """One test, because later commands read what earlier ones write."""
    before = {path.name for path in folder.iterdir()}
    for command in filter(_is_run, _commands()):
        _run(shlex.split(command), folder)
    for block in _blocks("python"):
        _run([sys.executable, "-c", block], folder)
    assert (folder / "small-again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()
    # In the repository none of it may end up in a commit.
    ignored = [line.removeprefix("/") for line in (_ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()]
    written = {path.name for path in folder.iterdir()} - before
    assert "small-python.onnx" in written
    assert [name for name in written if not any(fnmatch.fnmatch(name, line) for line in ignored)] == []


def test_the_preprocessing_table_and_the_pipeline_file_are_read() -> None:
    from onnxpress.ir.images import read_preprocessing
    from onnxpress.passes.pipeline import build, format_pipeline, to_spec

    _, table = _blocks("toml")
    assert len(table.splitlines()) == 7
    assert read_preprocessing(tomllib.loads(table)).crop == 224
    (pipeline,) = (block for block in _blocks("text") if block.startswith("cleanup,"))
    assert format_pipeline(map(to_spec, build(pipeline))) == (
        "cleanup, fold-batchnorm, quantize-int8{exclude=[stem_conv,type:Gemm]}"
    )


def test_the_printed_output_is_what_the_demo_prints(folder: Path) -> None:
    """Line by line, but for the numbers: those are of one machine on one day."""
    found = re.search(r"^<!-- output:demo -->\n```text\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    assert _row_names(found.group(1)) == _row_names(_run(["onnxpress", "demo"], folder))


def _row_names(output: str) -> list[str]:
    """Return the first cell of each table row, up to the list of the worst layers, whose order may vary."""
    rows = [re.split(r" {2,}", line.strip()) for line in output.partition("what hurts most")[0].splitlines()]
    return [cells[0] for cells in rows if len(cells) > 1]


def test_the_pass_table_is_the_registry() -> None:
    rows = [(row[0].strip("`"), row[1]) for row in _table("pass")]
    assert rows == [(name, get_pass(name).fidelity) for name in pass_names()]


def test_the_exit_statuses_are_those_of_the_errors() -> None:
    from onnxpress.ir import errors

    codes = {0, *(getattr(errors, name).exit_code for name in errors.__all__ if name.endswith("Error"))}
    assert {int(row[0]) for row in _table("exit status")} == codes


def test_the_table_of_runtimes_says_which_tell_node_times() -> None:
    told = {row[0].split("`")[1]: row[2].split(",")[0] for row in _table("runtime")}
    assert told == {name: load_runtime(name).node_clock or "no" for name in RUNTIMES}


def test_links_and_folders_exist() -> None:
    (tree,) = (block for block in _blocks("text") if block.startswith("onnxpress/"))
    folders = [line.split()[0] for line in tree.splitlines()]
    files = re.findall(r"\]\((?!https?:)([^)#]+)\)", _TEXT)
    assert [name for name in [*folders, *files] if not (_ROOT / name).exists()] == []
    assert len(folders) == 6
