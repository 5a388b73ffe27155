"""What C code prints is taken and told, and what went before and comes after is left alone."""

from __future__ import annotations

import os

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
