"""Talk to a program that runs the runner, here or far away, until it ends or time is up."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import threading
from collections.abc import Iterable, Sequence
from typing import IO

from onnxpress.targets.devices.runner import STEP_PREFIX
from onnxpress.targets.runtimes.refusal import one_line

__all__ = ["TOO_MUCH", "Heard", "converse"]

# How long we wait for what takes no time: for the runner to clean up, for a killed program's last words.
_GRACE_SECONDS = 3.0
_MOST_BYTES = 1 << 28  # of standard output: the outputs of thousands of samples are below it
_LINE_BYTES = 64  # that a line takes in memory beside its characters
_LONGEST_NOISE_BYTES, _NOISE_LINES = 1 << 12, 100  # of standard error, whose last lines are kept
TOO_MUCH = f"it printed more than {_MOST_BYTES >> 20} MiB, which no answer needs"


@dataclasses.dataclass
class Heard:
    """What a program said.

    status: its exit status; None where it had to be ended because time was up. lines: its standard output. noise: the
    last of its standard error without the runner's steps. step: the last of these, "" where the runner never started.
    too_much: its standard output was not listened to until its end, and lines hold none of it.
    """

    status: int | None = None
    lines: list[str] = dataclasses.field(default_factory=list)
    noise: list[str] = dataclasses.field(default_factory=list)
    step: str = ""
    too_much: bool = False

    @property
    def last_words(self) -> str:
        """The last thing on its standard error, without a full stop."""
        return self.noise[-1].rstrip(".") if self.noise else "no message"


def converse(command: Sequence[str], chunks: Iterable[bytes], timeout_seconds: float) -> Heard:
    """Start `command`, send `chunks` to its standard input, which stays open, and listen until it ends.

    Raises:
        OSError: it does not start.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    heard = Heard()
    sender = threading.Thread(target=_send, args=(process.stdin, chunks), daemon=True)
    listeners = [
        threading.Thread(target=_listen, args=(process.stdout, heard), daemon=True),
        threading.Thread(target=_listen_aside, args=(process.stderr, heard), daemon=True),
    ]
    for thread in (sender, *listeners):
        thread.start()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            heard.status = process.wait(timeout_seconds)
    finally:
        _end(process, sender)
        for thread in (sender, *listeners):
            thread.join(_GRACE_SECONDS)
        if not sender.is_alive():
            with contextlib.suppress(OSError):
                process.stdin.close()
    return heard


def _send(stdin: IO[bytes], chunks: Iterable[bytes]) -> None:
    with contextlib.suppress(OSError):  # it ended early, and its status says why
        for chunk in chunks:
            stdin.write(chunk)
        stdin.flush()


def _listen(stdout: IO[bytes], heard: Heard) -> None:
    left = _MOST_BYTES
    with stdout:
        while line := stdout.readline(left + 1):
            left -= len(line) + _LINE_BYTES
            if left < 0:
                heard.too_much = True
                heard.lines.clear()
                return
            heard.lines.append(line.decode("utf-8", "replace").strip())


def _listen_aside(stderr: IO[bytes], heard: Heard) -> None:
    with stderr:
        while raw := stderr.readline(_LONGEST_NOISE_BYTES):
            line = one_line(raw.decode("utf-8", "replace"))
            if line.startswith(STEP_PREFIX):
                heard.step = line.removeprefix(STEP_PREFIX)
            elif line:
                heard.noise.append(line)
                del heard.noise[:-_NOISE_LINES]


def _end(process: subprocess.Popen[bytes], sender: threading.Thread) -> None:
    """End the program if it has not: by ending its standard input, at which the runner cleans up; else by force."""
    if process.poll() is None and not sender.is_alive():
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()
