"""The table of a model's channels, on the console that is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from onnxpress.tools.inspection import Channels

__all__ = ["show_channels"]

_SHOWN = 2  # names in a cell


def show_channels(console: Console, groups: Sequence[Channels]) -> None:
    """Print which channels belong together: those that can be removed first, then the frozen with their reasons."""
    free = [group for group in groups if group.frozen is None]
    frozen = [group for group in groups if group.frozen is not None]
    if free:
        table = _table("channels that can be removed", "made by", "read by", "number", "params each", text=3)
        for group in free:
            table.add_row(
                group.name,
                _names(group.producers),
                _names(group.consumers),
                f"{group.size:,}",
                f"{group.params:,}",
            )
        console.print(table)
    if frozen:
        table = _table("channels that cannot", "because", "number", text=2)
        for group in frozen:
            table.add_row(group.name, group.frozen, f"{group.size:,}")
        console.print(table)
    if not groups:
        console.print("channels: no operator of this model has any")


def _table(*columns: str, text: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < text else "right", overflow="fold")
    return table


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
