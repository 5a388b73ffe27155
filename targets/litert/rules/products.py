"""Gemm and MatMul.

    X [*, K] times a constant [K, N]   =>   FULLY_CONNECTED, weight [N, K]
    two values, or a constant left     =>   BATCH_MATMUL

Behind a flattened image that lies channels last, the weight's rows are put in that order, which saves the transpose:
    W' = W[:, h, w, c] of W [N, c, h, w]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import Linear, as_linear, constant_numbers
from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import Layered, Site, Unit, rank, shape, touch
from onnxpress.targets.litert.rules.linear import LinearRule, view_of

__all__ = ["Product", "takes_columns"]

_MOST_AXES = 5  # tensorflow/lite/kernels/batch_matmul.cc, Prepare


def takes_columns(node: onnx_ir.Node, value: onnx_ir.Value) -> bool:
    """Whether `node` is a product of `value` and a constant weight, whose rows can have any order."""
    if node.op_type not in ("Gemm", "MatMul"):
        return False
    linear = as_linear(node)
    return isinstance(linear, Linear) and linear.weight_index == 1 and linear.data is value


class Product(LinearRule):
    """Gemm or MatMul."""

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        linear = as_linear(node)
        if _is_fully_connected(linear):
            return None
        if node.op_type == "Gemm":
            return (
                f"{linear or 'it has no constant weight'}, and only a plain product with a constant weight is written"
            )
        ranks = [rank(value) for value in node.inputs[:2]]
        if min(ranks) < 2:
            return f"an operand has {'1 axis' if min(ranks) else '0 axes'}, and BATCH_MATMUL needs 2"
        return None if max(ranks) <= _MOST_AXES else f"an operand has {max(ranks)} axes, and BATCH_MATMUL takes 5"

    def fuses(self, node: onnx_ir.Node) -> bool:
        return _is_fully_connected(as_linear(node))

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        linear = as_linear(node)
        return _is_fully_connected(linear) and super().is_integer(node, results)

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        (first, *_) = unit.rule.data(unit.node)
        if takes_columns(unit.node, first) and rank(first) == 2:
            return touch(unit, layered, Demand.ANY, Demand.PLAIN)
        return touch(unit, layered, Demand.PLAIN)

    def write(self, site: Site) -> None:
        linear = as_linear(site.node)
        if isinstance(linear, Linear) and _is_fully_connected(linear):
            self._write_fully_connected(site, view_of(site.node))
        else:
            self._write_batch_product(site)

    def _write_fully_connected(self, site: Site, linear: Linear) -> None:
        sizes = site.values.flattened.get(linear.data)
        last = sizes is not None and site.makes_last(linear.data)
        data = site.read(linear.data, last=last)

        def arrange(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
            if sizes is None or not last:
                return weight
            return weight.reshape(-1, *sizes).transpose(0, 2, 3, 1).reshape(weight.shape)

        weights = self.weight_and_bias(site, linear, data, arrange)
        result = site.new(last=False)
        fields = {"keepNumDims": len(data.shape) > 2, **site.fused}
        site.operator("FULLY_CONNECTED", [data, *weights], result, "FullyConnectedOptions", **fields)
        site.put(result, last=False)

    def _write_batch_product(self, site: Site) -> None:
        operands = []
        for value in site.node.inputs[:2]:
            assert value is not None
            numbers = constant_numbers(value)
            if numbers is None:
                operands.append(site.read(value, last=False))
            else:
                operands.append(site.graph.constant(str(value.name), numbers.astype(np.float32)))
        result = site.new(last=False)
        site.operator("BATCH_MATMUL", [*operands], result, "BatchMatMulOptions")
        site.put(result, last=False)


def _is_fully_connected(linear: Linear | str | None) -> bool:
    return isinstance(linear, Linear) and linear.weight_index == 1 and len(shape(linear.data)) >= 2
