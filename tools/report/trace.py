"""A profile as a trace for chrome://tracing and Perfetto: its steps one after the other.

Format: "Trace Event Format" of the Chromium project, complete events (ph X), times in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.tools.profiling import Profile

__all__ = ["trace_events"]


def trace_events(profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return the document, a process for each model. Steps follow each other; what is not known of one is left out."""
    events: list[dict[str, Any]] = []
    for number, found in enumerate(profiles, start=1):
        label = {"name": f"{found.model} in {found.where}"}
        events.append({"ph": "M", "name": "process_name", "pid": number, "tid": 1, "args": label})
        start = 0.0
        for step in found.steps:
            taken = step.milliseconds * 1e3
            known: dict[str, float | None] = {"macs": step.macs, "bytes": step.moved_bytes}
            if step.predicted_ms is not None:
                known["predicted_us"] = step.predicted_ms * 1e3
            arguments = {"fused": list(step.fused), **{key: told for key, told in known.items() if told is not None}}
            events.append(
                {"ph": "X", "name": step.name, "cat": step.kind, "pid": number, "tid": 1, "ts": start, "dur": taken,
                 "args": arguments}
            )  # fmt: skip
            start += taken
    return {"traceEvents": events, "displayTimeUnit": "ms"}
