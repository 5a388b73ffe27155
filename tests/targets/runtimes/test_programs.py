"""How a program ended is told in words, a crash too."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from onnxpress.targets.runtimes.programs import Finished, run_program


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('all is well')", Finished("", ["all is well"])),
        ("import sys; sys.exit('no')", Finished("exit code 1", ["no"])),
        ("import os; os.write(1, b'last words'); os.abort()", Finished("SIGABRT", ["last words"])),
        ("print(input())", Finished("exit code 1", ["EOFError: EOF when reading a line"])),
    ],
)
def test_how_a_program_ended(tmp_path: Path, code: str, expected: Finished) -> None:
    found = run_program([sys.executable, "-c", code], tmp_path, limit_seconds=60)
    assert Finished(found.failure, found.lines[-1:]) == expected


def test_a_program_that_is_none(tmp_path: Path) -> None:
    found = run_program([tmp_path / "none"], tmp_path, limit_seconds=60)
    assert found == Finished(f"[Errno 2] No such file or directory: '{tmp_path / 'none'}'", [])


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    code = "import os, time; os.write(1, b'working\\n'); time.sleep(600)"
    started = time.monotonic()
    found = run_program([sys.executable, "-c", code], tmp_path, limit_seconds=1.5)
    assert found == Finished("ended after 1.5 s", ["working"])
    assert time.monotonic() - started < 60
