"""Run the converters and tools that runtimes come with, each in a process of its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Finished", "run_program"]


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a program ended.

    failure: `exit code 1`, `SIGABRT`, `ended after 60 s`, or why it did not start; empty where it ended well.
    lines: what it wrote.
    """

    failure: str
    lines: list[str]


def run_program(command: Sequence[str | Path], folder: Path, *, limit_seconds: float) -> Finished:
    """Run a program in `folder` to its end, with nothing to read; output and error are taken together.

    limit_seconds: what takes longer is ended.
    """
    try:
        ended = subprocess.run(
            [os.fspath(each) for each in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_seconds,
        )
    except OSError as error:
        return Finished(str(error), [])
    except subprocess.TimeoutExpired as error:
        return Finished(f"ended after {limit_seconds:g} s", _lines(error.stdout or b""))
    return Finished(_failure(ended.returncode), _lines(ended.stdout))


def _lines(written: bytes) -> list[str]:
    return [line.strip() for line in written.decode(errors="replace").splitlines() if line.strip()]


def _failure(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code else ""
    known = {each.value: each.name for each in signal.Signals}
    return known.get(-code, f"signal {-code}")
