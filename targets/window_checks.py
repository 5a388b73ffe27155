"""Checks of windows: whether the runtime pads and rounds up as ONNX says.

Each looks at one node and answers with the reason why it breaks the rule, or None. What cannot be known from the file,
such as an open shape, passes.
"""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.padding import averages_padding, steps_over_padding
from onnxpress.targets.litert.windows import Windows, find_windows
from onnxpress.targets.patterns import dequantize_of
from onnxpress.targets.site import Check, Site

__all__ = ["WINDOW_CHECKS"]


def _check_padded_average(site: Site) -> str | None:
    """An AveragePool of quantized data does not count padding."""
    if not averages_padding(site.node) or dequantize_of(site.node.inputs[0]) is None:
        return None
    return "it averages quantized data and their padding"


def _check_padded_steps(site: Site) -> str | None:
    """A Conv of quantized data, with kernel 1 and a stride, has no padding."""
    if not steps_over_padding(site.node) or dequantize_of(site.node.inputs[0]) is None:
        return None
    return "its kernel of 1 steps over padding of quantized data"


def _check_rounded_up(site: Site) -> str | None:
    """A pool of ceil_mode has no window that would begin behind the image, and averages none beyond its padding."""
    node = site.node
    windows = _windows_of(node) if node.attributes.get_int("ceil_mode", 0) else None
    if windows is None:
        return None
    reached = list(zip(windows.end, windows.declared_end, strict=True))
    if node.op_type == "MaxPool" and any(end < declared for end, declared in reached):
        return "a window that ceil_mode adds would begin in the padding at the end"
    if averages_padding(node) and any(end > declared for end, declared in reached):
        return "a window that ceil_mode adds reaches beyond the padding, which it averages"
    return None


def _windows_of(node: onnx_ir.Node) -> Windows | None:
    """Return the windows of a pool; None where the size of its image is not known."""
    value = node.inputs[0] if node.inputs else None
    size = [] if value is None or value.shape is None else [each for each in value.shape[2:] if isinstance(each, int)]
    kernel = node.attributes.get_ints("kernel_shape", ())
    return find_windows(node, size, kernel) if size and len(size) == len(kernel) else None


WINDOW_CHECKS: dict[str, Check] = {
    "padded-average": Check(_check_padded_average),
    "padded-steps": Check(_check_padded_steps),
    "rounded-up": Check(_check_rounded_up),
}
