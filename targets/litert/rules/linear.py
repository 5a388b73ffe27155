"""What convolutions and products share: weights, biases, and when they compute in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import Linear, as_linear
from onnxpress.ir.quantization import is_weight_only
from onnxpress.targets.litert.flatbuffer import Grid, Tensor
from onnxpress.targets.litert.rules.base import Rule, Site
from onnxpress.targets.litert.weights import float16_weight, integer_bias, integer_weight, with_room_for_bias

__all__ = ["LinearRule", "view_of"]

_Array = npt.NDArray[Any]
Arrange = Callable[[_Array], _Array]  # from [out, in/groups, *kernel] to LiteRT's own order


class LinearRule(Rule):
    """An operator with a constant weight."""

    has_integer_kernel = True

    def fuses(self, node: onnx_ir.Node) -> bool:
        return True

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        linear = as_linear(node)
        if not isinstance(linear, Linear) or is_weight_only(linear.weight_value):
            return False
        return super().is_integer(node, results) and integer_weight(linear) is not None

    @staticmethod
    def weight_and_bias(site: Site, linear: Linear, data: Tensor, arrange: Arrange, axis: int = 0) -> list[Tensor]:
        """Return the weight as the kernel wants it, and the bias. axis: of output channels, once arranged."""
        bias = linear.bias()
        weight_name, bias_name = str(linear.weight_value.name), f"{site.unit.result.name}/bias"
        if not site.integer:
            weight = _real_weight(site, linear, arrange, axis)
            real = np.zeros(linear.out_channels, np.float32) if bias is None else bias.astype(np.float32)
            return [weight, site.graph.constant(bias_name, real)]
        found = integer_weight(linear)
        assert found is not None and data.grid is not None, "checked when the unit was planned"
        (data_scale,) = data.grid.scale
        found = with_room_for_bias(found, bias, data_scale)
        codes, scale = integer_bias(found, bias, data_scale)
        grid = Grid(tuple(map(float, found.scale)), axis=axis)
        weight = site.graph.constant(weight_name, np.ascontiguousarray(arrange(found.codes)), grid)
        return [weight, site.graph.constant(bias_name, codes, Grid(tuple(map(float, scale))))]


def _real_weight(site: Site, linear: Linear, arrange: Arrange, axis: int) -> Tensor:
    name = str(linear.weight_value.name)
    half = float16_weight(linear)
    if half is not None:
        return site.values.real(site.graph.constant(name, np.ascontiguousarray(arrange(half))))
    found = integer_weight(linear)
    if found is not None:
        grid = Grid(tuple(map(float, found.scale)), axis=axis)
        return site.values.real(site.graph.constant(name, np.ascontiguousarray(arrange(found.codes)), grid))
    dense = linear.weight().astype(np.float32, copy=False)
    return site.graph.constant(name, np.ascontiguousarray(arrange(dense)))


def view_of(node: onnx_ir.Node) -> Linear:
    """Return the view of a node that was checked to have one."""
    linear = as_linear(node)
    assert isinstance(linear, Linear), f"{node.name!r} was checked to be linear"
    return linear
