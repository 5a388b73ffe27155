"""Facts for people, one a line, printed as they are: no width, no colour, nothing to import."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpress.ir.data import DataSource
    from onnxpress.tools.plan import Plan

__all__ = ["say", "show_facts", "show_plan"]


def say(line: str) -> None:
    """Print one line for people, as it is."""
    print(line, file=sys.stderr, flush=True)


def show_facts(facts: Mapping[str, str | None]) -> None:
    """Print names and values in two columns; None leaves a line out."""
    known = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, known), default=0) + 2
    for name, value in known.items():
        say(f"{name:<{width}}{value}")


def show_plan(plan: Plan) -> None:
    """Print the resolved configuration of a run, before it begins."""
    show_facts(
        {
            "model": plan.name,
            "target": plan.target.name,
            "passes": plan.pipeline or "none",
            "data": _describe_data(plan.data),
            "eval data": _describe_data(plan.eval_data),
            "max drop": None if plan.max_drop is None else f"{plan.max_drop:g} points",
            "seed": str(plan.seed),
        }
    )


def _describe_data(source: DataSource | None) -> str | None:
    if source is None:
        return None
    count = "?" if source.count is None else source.count
    return f"{source.name} ({count} samples{', with labels' if source.has_labels else ''})"
