"""A profile as one self-contained page: the time of each step, and the roofline with the steps on it. Needs plotly."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from onnxpress.ir.errors import UsageError
from onnxpress.tools.report.numbers import milliseconds, three_digits

if TYPE_CHECKING:
    from onnxpress.targets.schema import Roofline
    from onnxpress.tools.profiling import Profile, Step

__all__ = ["profile_page", "require_plotly"]

_TOP = 40
_MARGIN = 4.0  # of the intensity axis, around what the steps have


def require_plotly() -> Any:
    """Return plotly's module of figures.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise UsageError(
            "--report draws with plotly, which is not installed: pip install 'onnxpress[report]'"
        ) from error
    return plotly.graph_objects


def profile_page(profiles: Sequence[Profile], roofline: Roofline | None) -> str:
    """Return the page. roofline: of the target, to draw its peaks and bandwidth.

    Raises:
        UsageError: plotly is not installed.
    """
    figures = require_plotly()
    parts, drawn = [], 0
    for found in profiles:
        parts.append(f"<h2>{html.escape(found.model)}</h2>")
        parts += [f"<p>{html.escape(line)}</p>" for line in (_headline(found), *_remarks(found))]
        for figure in _figures(figures, found, roofline):
            # The library goes with the first figure, whichever model has one.
            parts.append(figure.to_html(full_html=False, include_plotlyjs=drawn == 0, div_id=f"f{drawn}"))
            drawn += 1
    title = html.escape(", ".join(found.model for found in profiles))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Profile of {title}</title>'
        "<style>body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}</style></head>"
        f"<body><h1>Where the time goes</h1>{''.join(parts)}</body></html>\n"
    )


def _headline(found: Profile) -> str:
    predicted = "" if found.predicted_ms is None else f"; predicted {milliseconds(found.predicted_ms)}"
    return (
        f"{found.where}, version {found.version}, {found.threads} thread(s): {milliseconds(found.times.undisturbed)}, "
        f"quartiles {100 * found.times.spread:.0f} % apart{predicted}; {found.macs:,} MACs, {found.size_bytes:,} bytes"
    )


def _remarks(found: Profile) -> list[str]:
    """Return what is to be known of the numbers, and why there are no figures."""
    return [*found.notes, *([] if found.steps else [f"{found.runtime} tells no times by node"])]


def _figures(figures: Any, found: Profile, roofline: Roofline | None) -> Iterator[Any]:
    if found.steps:
        yield _bars(figures, found)
    if _products(found):
        yield _roofline(figures, found, roofline)


def _products(found: Profile) -> list[Step]:
    """Return the steps that a roofline has a place for: of known MACs, bytes and time."""
    return [step for step in found.steps if step.macs and step.moved_bytes and step.milliseconds]


def _bars(figures: Any, found: Profile) -> Any:
    steps = sorted(found.steps, key=lambda step: -step.milliseconds)[:_TOP][::-1]
    names = [step.name for step in steps]
    told = [f"{step.kind}; with {', '.join(step.fused)}" if step.fused else step.kind for step in steps]
    traces = [
        figures.Bar(y=names, x=[step.milliseconds for step in steps], orientation="h", name="measured", hovertext=told)
    ]
    if any(step.predicted_ms is not None for step in steps):
        predicted = [step.predicted_ms for step in steps]
        marker = {"symbol": "line-ns-open", "size": 12}
        traces.append(figures.Scatter(y=names, x=predicted, mode="markers", name="predicted", marker=marker))
    layout = {
        "title": f"The {len(steps)} longest steps",
        "xaxis_title": "milliseconds",
        "height": 160 + 18 * len(steps),
    }
    return figures.Figure(traces, layout)


def _roofline(figures: Any, found: Profile, roofline: Roofline | None) -> Any:
    steps = _products(found)
    intensity = [2 * (step.macs or 0) / (step.moved_bytes or 1) for step in steps]
    told = [f"{step.name}: {three_digits(step.milliseconds)} ms" for step in steps]
    traces = [figures.Scatter(x=intensity, y=[step.gflops for step in steps], mode="markers", name="steps", text=told)]
    if roofline is not None:
        low, high = min(intensity) / _MARGIN, max(intensity) * _MARGIN
        for name, peak in (("float32", roofline.conv.float32), ("int8", roofline.conv.int8)):
            if peak is not None:
                ridge = peak / roofline.bandwidth_gb_per_s
                x = sorted({low, min(max(ridge, low), high), high})
                y = [min(peak, each * roofline.bandwidth_gb_per_s) for each in x]
                traces.append(figures.Scatter(x=x, y=y, mode="lines", name=f"roof, {name} Conv"))
    layout = {"title": "Roofline", "xaxis_title": "operations per byte moved", "yaxis_title": "GFLOP/s",
              "xaxis_type": "log", "yaxis_type": "log", "height": 520}  # fmt: skip
    return figures.Figure(traces, layout)
