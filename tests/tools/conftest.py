"""What the tests of the tools share: the command line in this process, in a folder of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxpress.tools.cli import main


@dataclasses.dataclass(frozen=True)
class Ran:
    """One run of the command line: its exit status, and what it wrote to stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The last line on stderr, where an error stands alone."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


CommandLine = Callable[..., Ran]


@pytest.fixture
def folder(demo_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds `digits.onnx`, `calibration.npz` and `evaluation.npz`, and nothing else."""
    monkeypatch.chdir(demo_files)
    return demo_files


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """`onnxpress ARGUMENTS...` in this process, on lines wide enough for every table."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
