"""The console for people: stderr, so that stdout stays clean for programs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["console"]

# Without a terminal there is nothing to wrap for, so a log keeps names whole, up to what is readable.
_LOG_WIDTH = 160


def console() -> Console:
    """Return a console on the present stderr: colours and width of a terminal, or plain text without one."""
    from rich.console import Console

    plain = Console(stderr=True, highlight=False, emoji=False, markup=False)
    if plain.is_terminal or "COLUMNS" in os.environ:
        return plain
    return Console(stderr=True, highlight=False, emoji=False, markup=False, width=_LOG_WIDTH)
