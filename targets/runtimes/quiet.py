"""Keep what libraries print past Python off the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Take what is written to the process's standard output and error, by C code too and by any thread.

    Gives a list that holds the lines once the block is left, by an exception too. One block at a time: what other
    threads do in one of their own meanwhile would come back in the wrong order.
    """
    lines: list[str] = []
    with contextlib.ExitStack() as stack:
        for number in (1, 2):
            _keep_open(number, stack)
        sink = stack.enter_context(tempfile.TemporaryFile())
        stack.callback(_take, sink, lines)
        _flush()  # what was written before belongs on the terminal
        for number in (1, 2):
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(sink.fileno(), number)
        stack.callback(_flush)
        yield lines


def _keep_open(number: int, stack: contextlib.ExitStack) -> None:
    """Where there is no such descriptor, let one lead nowhere meanwhile, so that no file gets its number."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        stack.callback(os.close, number)


def _take(sink: IO[bytes], lines: list[str]) -> None:
    sink.seek(0)
    written = sink.read().decode(errors="replace").splitlines()
    lines += [line.strip() for line in written if line.strip()]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if os.name == "posix":  # elsewhere there is no one C library to ask
        ctypes.CDLL(None).fflush(None)
