"""The errors a user can meet. Each knows the exit code that the command line gives it.

A message says what is wrong, where (pass, node, value, shape), and what to do, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "InputError",
    "InternalError",
    "OnnxpressError",
    "UsageError",
    "near_names",
]


class OnnxpressError(Exception):
    """Base of all errors raised on purpose. `exit_code` is the process's exit status."""

    exit_code: int = 70


class BudgetError(OnnxpressError):
    """The answer is no: a budget is not met, a model is illegal on a target, two models differ."""

    exit_code = 1


class UsageError(OnnxpressError):
    """Wrong use: an unknown pass, option, target or selector, or an output path that is taken."""

    exit_code = 2


class InputError(OnnxpressError):
    """A model or data file that cannot be used: truncated, invalid, mismatched, empty."""

    exit_code = 3


class InternalError(OnnxpressError):
    """A broken invariant of ours. Carries enough to repeat it."""

    exit_code = 70


def near_names(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return `" Did you mean 'a' or 'b'?"` for the known names close to `name`, or `""`."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if not close:
        close = [other for other in names if name.lower() in other.lower()][:limit] if name else []
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(other) for other in close)}?"
