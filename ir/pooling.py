"""Pools that round up (ceil_mode): no window begins in the padding at the end.

Before opset 22 onnx's shape inference counts such a window; onnxruntime never computed it. So inference is given the
pool in a form on which both agree: without ceil_mode, and padded at the end as far as the last window reaches.
Source: ONNX MaxPool-22, AveragePool-22: "sliding windows that would start in the right padded region are ignored".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx

from onnxpress.ir import onnx_file

__all__ = ["count_windows", "settle_pools"]

_POOLS = ("AveragePool", "LpPool", "MaxPool")
_Shapes = Mapping[str, Sequence[int]]  # of values, 0 for a size that is not known


def count_windows(size: int, extent: int, stride: int, begin: int, end: int, *, rounds_up: bool) -> int:
    """Return the number of windows along an axis.

    size: of the image. extent: positions from the first to the last that a window reads. begin, end: padding.
    """
    free = size + begin + end - extent
    if not rounds_up:
        return free // stride + 1
    count = -(-free // stride) + 1
    return count - 1 if (count - 1) * stride >= size + begin else count


def settle_pools(model: onnx.ModelProto, infer: Callable[[onnx.ModelProto], onnx.ModelProto | None]) -> None:
    """Rewrite, in place, every pool of `model` whose size inference would get wrong; bodies included.

    infer: onnx's own inference of a copy, None where it refuses the model.
    """
    if not any(map(_rounds_up, (node for graph in onnx_file.graphs_of(model.graph) for node in graph.node))):
        return
    # One at a time, in graph order: the size of a pool follows from those before it.
    while (inferred := infer(model)) is not None:
        wrong = next(_miscounted(model.graph, inferred.graph, {}), None)
        if wrong is None:
            return
        _settle(*wrong)


def _miscounted(
    graph: onnx.GraphProto, inferred: onnx.GraphProto, outer: _Shapes
) -> Iterator[tuple[onnx.NodeProto, Sequence[int]]]:
    """Yield pools that round up to another size than inferred, each with the sizes of its image."""
    shapes = {**outer, **_shapes(inferred)}
    for node, twin in zip(graph.node, inferred.node, strict=True):
        if _rounds_up(node):
            image, output = (shapes.get(names[0], ())[2:] if names else () for names in (node.input, node.output))
            if len(image) == len(output) > 0 and all((*image, *output)) and list(output) != _counts(node, image):
                yield node, image
        for body, same in zip(_bodies(node), _bodies(twin), strict=True):
            yield from _miscounted(body, same, shapes)


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return [graph for each in node.attribute if each.type in kinds for graph in (each.graphs or [each.g])]


def _shapes(graph: onnx.GraphProto) -> dict[str, Sequence[int]]:
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.input, *graph.value_info, *graph.output)
    }


def _rounds_up(node: onnx.NodeProto) -> bool:
    attributes = _attributes(node)
    automatic = attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
    return (
        node.op_type in _POOLS
        and node.domain in ("", "ai.onnx")
        and bool(attributes.get("ceil_mode"))
        and not automatic
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _settle(node: onnx.NodeProto, image: Sequence[int]) -> None:
    """Write `node` without ceil_mode, its padding at the end such that as many windows fit."""
    counts = _counts(node, image)
    ends = [
        max(0, (count - 1) * stride + extent - size - begin)
        for count, size, (extent, stride, begin, _) in zip(counts, image, _axes(node, len(image)), strict=True)
    ]
    begins = [begin for _, _, begin, _ in _axes(node, len(image))]
    kept = [each for each in node.attribute if each.name not in ("auto_pad", "ceil_mode", "pads")]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", [*begins, *ends])])


def _counts(node: onnx.NodeProto, image: Sequence[int]) -> list[int]:
    axes = zip(image, _axes(node, len(image)), strict=True)
    return [count_windows(size, *numbers, rounds_up=True) for size, numbers in axes]


def _axes(node: onnx.NodeProto, count: int) -> list[tuple[int, int, int, int]]:
    """Return extent, stride, begin and end of padding for each spatial axis."""
    attributes = _attributes(node)
    ones, zeros = [1] * count, [0] * 2 * count
    pads = zeros if attributes.get("auto_pad") == b"VALID" else attributes.get("pads", zeros)
    dilations = attributes.get("dilations", ones)
    extents = [(k - 1) * d + 1 for k, d in zip(attributes["kernel_shape"], dilations, strict=True)]
    return list(zip(extents, attributes.get("strides", ones), pads[:count], pads[count:], strict=True))
