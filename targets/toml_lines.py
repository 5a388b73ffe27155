"""Find the line of a TOML file that sets a key, for messages about it. Used when a file is wrong, so it may be slow."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any

__all__ = ["line_of"]


def line_of(text: str, location: Sequence[int | str]) -> int | None:
    """Return the line, from 1, at which the deepest part of `location` that the file holds is set; None for none.

    location: keys, and for an entry of a list its place or, in a list of tables, its `id`. What a file takes over
    from another has no line in it.

    The file is read again with one line more each time, and the first reading that holds the key ends on its line.
    A value of several lines cannot be read before its last: it begins where the reading before ended.
    """
    lines = text.splitlines()
    for depth in range(len(location), 0, -1):
        before = 0  # lines of the last reading that succeeded
        for count in range(1, len(lines) + 1):
            try:
                found = tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                continue
            if _holds(found, location[:depth]):
                return before + 1
            before = count
    return None


def _holds(table: Any, location: Sequence[int | str]) -> bool:
    for part in location:
        table = _entry(table, part)
        if table is None:
            return False
    return True


def _entry(table: Any, part: int | str) -> Any:
    if isinstance(table, dict):
        return table.get(part)
    if not isinstance(table, list):
        return None
    if isinstance(part, str):
        return next((each for each in table if isinstance(each, dict) and each.get("id") == part), None)
    return table[part] if part < len(table) else None
