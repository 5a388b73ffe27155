"""Where windows of convolutions and pooling lie: ONNX pads beside what LiteRT can say.

LiteRT knows two paddings, by name. VALID is none. SAME puts so many zeros around that the output has
ceil(size / stride) positions, the odd one at the end. Everything else is a PAD of its own, then VALID.
Source: tensorflow/lite/kernels/padding.h, ComputePaddingWithOffset; ONNX Conv-22, AveragePool-22.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir

from onnxpress.ir.pooling import count_windows

__all__ = ["Windows", "find_windows"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows along the spatial axes; every tuple has a number for each.

    begin, end: positions beyond the image that windows reach into; end may be negative, where the last positions
    are read by none. declared_end: what of `end` the operator declares; rounding up (ceil_mode) reaches further.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    declared_end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def is_same(self) -> bool:
        """Whether LiteRT's SAME puts them there."""
        return all(
            (begin, max(end, 0), count) == (*_same_pads(size, extent, stride), -(-size // stride))
            for size, extent, stride, begin, end, count in zip(
                self.size, self.extent, self.strides, self.begin, self.end, self.output, strict=True
            )
        )

    @property
    def is_valid(self) -> bool:
        """Whether LiteRT's VALID puts them there."""
        return not any(self.begin) and all(end <= 0 for end in self.end)

    @property
    def extent(self) -> tuple[int, ...]:
        """Positions from the first to the last that a window reads, inclusive."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def pads(self) -> list[tuple[int, int]]:
        """What a PAD of its own adds to each spatial axis."""
        return [(begin, max(end, 0)) for begin, end in zip(self.begin, self.end, strict=True)]


def find_windows(node: onnx_ir.Node, size: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Return the windows of a Conv or pooling node over an image of `size`."""
    count = len(size)
    strides = tuple(node.attributes.get_ints("strides", [1] * count))
    dilations = tuple(node.attributes.get_ints("dilations", [1] * count))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * count))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        both = [_same_pads(*numbers) for numbers in zip(size, extent, strides, strict=True)]
        if automatic == "SAME_LOWER":
            both = [(end, begin) for begin, end in both]
        pads = [begin for begin, _ in both] + [end for _, end in both]
    elif automatic == "VALID":
        pads = [0] * 2 * count
    begin, end = pads[:count], pads[count:]
    rounds_up = bool(node.attributes.get_int("ceil_mode", 0))
    axes = zip(size, extent, strides, begin, end, strict=True)
    output = [count_windows(*numbers, rounds_up=rounds_up) for numbers in axes]
    reached = [
        (positions - 1) * stride + reach - length - before
        for positions, stride, reach, length, before in zip(output, strides, extent, size, begin, strict=True)
    ]
    return Windows(
        tuple(size), tuple(kernel), strides, dilations, tuple(begin), tuple(reached), tuple(end), tuple(output)
    )


def _same_pads(size: int, extent: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2
