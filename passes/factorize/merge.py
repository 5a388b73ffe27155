"""Multiply out two linear operators in a row whose product is cheaper than the two: exact up to rounding.

    y = W2 (W1 x + b1) + b2   =>   y = (W2 W1) x + (W2 b1 + b2)

| first | second | product |
|---|---|---|
| k x k Conv | 1x1 Conv, stride 1, no padding | k x k Conv with the first's attributes |
| 1x1 Conv, stride 1, no padding | k x k Conv | k x k Conv with the second's; no b1 where it pads |
| Gemm | Gemm | Gemm |
| MatMul | MatMul, weights on the same side | MatMul |

Legal when: one group each, dense weights of one type that nothing else reads, no other reader of the value between
them, which is no graph output, explicit padding, and, by known shapes, fewer MACs and no more parameters afterwards. It
undoes a split that is no gain, so that splitting again converges.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.encodings import is_encoded
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.passes.base import Amount, Site
from onnxpress.passes.cleanup.graph_edits import amount, drop_unused_constant, inherit
from onnxpress.passes.repair import write_parameters
from onnxpress.passes.selectors import Selection

__all__ = ["merge_chains"]

_Array: TypeAlias = npt.NDArray[Any]


def merge_chains(model: onnx_ir.Model, selection: Selection) -> list[Site]:
    """Multiply out every pair of `model` that gets cheaper, in place, until none is left. selection: of both."""
    sites: list[Site] = []
    while (pair := _next_pair(model, selection)) is not None:
        sites.append(_merge(*pair))
    return sites


def _next_pair(model: onnx_ir.Model, selection: Selection) -> tuple[Linear, Linear] | None:
    for first in linear_ops(model, subgraphs=False):
        if not selection.has(first.node):
            continue
        readers = first.output.consumers()
        second = as_linear(readers[0]) if len(first.output.uses()) == 1 else None
        if isinstance(second, Linear) and selection.has(second.node) and _may_merge(first, second):
            return first, second
    return None


def _may_merge(first: Linear, second: Linear) -> bool:
    if first.output.is_graph_output() or second.data is not first.output or first.node.graph is not second.node.graph:
        return False
    kinds = first.node.op_type, second.node.op_type
    if kinds[0] != kinds[1] or kinds[0] == "ConvTranspose" or first.weight_index != second.weight_index:
        return False
    for op in (first, second):
        held = [value for value in (op.weight_value, op.bias_value) if value is not None]
        if op.groups > 1 or is_encoded(op.weight_value) or any(len(value.uses()) > 1 for value in held):
            return False
    if first.weight().dtype != second.weight().dtype:
        return False
    if first.kernel:
        if any(op.node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" for op in (first, second)):
            return False
        bias = first.bias()
        pads = any(second.node.attributes.get_ints("pads", [0]))
        is_forward = _is_point(second)
        if not is_forward and not (_is_point(first) and not (pads and bias is not None and bias.any())):
            return False
    if _size_of_product(first, second) > first.weight().size + second.weight().size:
        return False
    macs = [node_macs(op.node) for op in (first, second)]
    return None not in macs and _macs_of_product(first, second) < sum(each or 0 for each in macs)


def _is_point(op: Linear) -> bool:
    """Whether a Conv looks at one position and gives as many as it reads."""
    attributes = op.node.attributes
    return (
        all(extent == 1 for extent in op.kernel)
        and all(step == 1 for step in attributes.get_ints("strides", [1]))
        and not any(attributes.get_ints("pads", [0]))
    )


def _macs_of_product(first: Linear, second: Linear) -> float:
    """MACs of a linear operator grow with its weight; positions are those of the second's output."""
    return (node_macs(second.node) or 0) / second.weight().size * _size_of_product(first, second)


def _size_of_product(first: Linear, second: Linear) -> int:
    return second.out_channels * first.in_channels * math.prod(first.kernel) * math.prod(second.kernel)


def _merge(first: Linear, second: Linear) -> Site:
    """Let the operator with the larger kernel compute the product, under the second's name and output."""
    before = Amount(
        sum(amount(_constants(op)).params for op in (first, second)),
        sum(node_macs(op.node) or 0 for op in (first, second)),
        sum(amount(_constants(op)).size_bytes for op in (first, second)),
    )
    one, two = (op.weight().astype(np.float64) for op in (first, second))
    if _is_point(second) or not first.kernel:
        weight = np.tensordot(two.reshape(two.shape[:2]), one, axes=(1, 0))
        moved = two.reshape(two.shape[:2])
    else:
        weight = np.moveaxis(np.tensordot(two, one.reshape(one.shape[:2]), axes=(1, 0)), -1, 1)
        moved = two.reshape(*two.shape[:2], -1).sum(axis=2)
    biases = [op.bias() for op in (first, second)]
    bias: _Array | None = None
    if any(each is not None for each in biases):
        bias = np.zeros(second.out_channels) if biases[1] is None else biases[1].astype(np.float64)
        if biases[0] is not None:
            bias = bias + moved @ biases[0].astype(np.float64)
    dtype = first.weight().dtype
    keeps_first = first.kernel and _is_point(second)
    name, dropped = second.node.name or "", first.node.name or ""
    constants = _constants(first if not keeps_first else second)
    graph = second.node.graph
    assert isinstance(graph, onnx_ir.Graph)
    if keeps_first:
        kept, output, old = first, first.node.outputs[0], second.node.outputs[0]
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        graph.remove(second.node, safe=True)
        inherit(output, old)
        first.node.name = name
    else:
        kept = second
        second.node.replace_input_with(1 - second.weight_index, first.data)
        graph.remove(first.node, safe=True)
    for value in constants:
        drop_unused_constant(value)
    view = as_linear(kept.node)
    assert isinstance(view, Linear)
    merged = write_parameters(view, weight.astype(dtype), None if bias is None else bias.astype(dtype))
    after = amount(_constants(merged))
    return Site(
        name, merged.node.op_type, before, Amount(after.params, node_macs(merged.node) or 0, after.size_bytes),
        detail=f"multiplied out with {dropped!r}, as the product is cheaper",
    )  # fmt: skip


def _constants(op: Linear) -> list[onnx_ir.Value]:
    return [value for value in (op.weight_value, op.bias_value) if value is not None]
