"""What memory this process holds and has held, as the system counts it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

__all__ = ["peak_rss_bytes", "rss_bytes"]

_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Return the most resident memory that this process has held so far, in bytes; 0 where the system does not tell.

    On Linux from `_STATUS`, because getrusage's number survives exec there: a program would start at the peak of
    whatever started it.
    """
    return _from_status("VmHWM") or _from_getrusage()


def rss_bytes() -> int:
    """Return the resident memory that this process holds now, in bytes; 0 where the system does not tell."""
    return _from_status("VmRSS") or 0


def _from_status(field: str) -> int | None:
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux, or a sandbox without it
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1]) * 1024


def _from_getrusage() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
