"""Keep what libraries print past Python off the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Take what is written to the process's standard output and error, by C code too and by any thread.

    Gives a list that holds the lines once the block is left, by an exception too.
    """
    lines: list[str] = []
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryFile() as sink:
        _flush()  # what was written before belongs on the terminal
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            yield lines
        finally:
            _flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            sink.seek(0)
            written = sink.read().decode(errors="replace").splitlines()
            lines += [line.strip() for line in written if line.strip()]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":  # elsewhere there is no one C library to ask
        ctypes.CDLL(None).fflush(None)
