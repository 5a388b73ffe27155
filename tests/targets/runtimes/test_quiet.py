"""What C code prints is taken and told, and what went before and comes after is left alone."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from onnxpress.targets.runtimes.quiet import quiet


def test_both_streams_are_taken_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with quiet() as lines:
        os.write(1, b"  out\n\n")
        os.write(2, b"err\n")
    print("after")
    assert lines == ["out", "err"]
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_an_exception_leaves_the_streams_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="told"), quiet() as lines:
        os.write(2, b"why\n")
        raise ValueError("told")
    os.write(2, b"after\n")
    assert lines == ["why"]
    assert capfd.readouterr() == ("", "after\n")


_CLOSED = """
import os
from onnxpress.targets.runtimes.quiet import quiet
with quiet() as lines:
    os.write(1, b"out\\n")
    os.write(2, b"err\\n")
with quiet():
    pass
for number in (1, 2):
    try:
        os.fstat(number)
    except OSError:
        lines.append(f"{number} is closed")
os.write(3, ", ".join(lines).encode())
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's redirections")
@pytest.mark.parametrize(
    ("closed", "expected"),
    [
        (">&-", "out, err, 1 is closed"),
        ("2>&-", "out, err, 2 is closed"),
        ("<&- >&- 2>&-", "out, err, 1 is closed, 2 is closed"),
    ],
)
def test_descriptors_that_are_closed_stay_closed(tmp_path: Path, closed: str, expected: str) -> None:
    command = f"exec 3>told {closed}; exec {shlex.join([sys.executable, '-c', _CLOSED])}"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert (tmp_path / "told").read_text() == expected


def test_nothing_stays_open_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room() -> object:
        raise OSError("no room")

    monkeypatch.setattr(tempfile, "TemporaryFile", no_room)
    lowest = os.dup(1)
    os.close(lowest)
    with pytest.raises(OSError, match="no room"), quiet():
        pass
    assert os.dup(1) == lowest
    os.close(lowest)
