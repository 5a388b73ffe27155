"""LayerNormalization and InstanceNormalization, in float: LiteRT has no operator of either name.

    y = (x - m) / sqrt(v + epsilon) * scale + bias       m, v: mean and variance over some axes, which are kept
Source: ONNX LayerNormalization-17, InstanceNormalization-6.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.litert.flatbuffer import Tensor
from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import (
    Layered,
    Rule,
    Site,
    Unit,
    first_computed,
    input_of,
    is_read,
    rank,
    touch,
)
from onnxpress.targets.litert.rules.elementwise import operand

__all__ = ["InstanceNormalization", "LayerNormalization"]

_Array = npt.NDArray[Any]
_EPSILON = 1e-5  # ONNX LayerNormalization-17, InstanceNormalization-6


class _Normalization(Rule):
    @abc.abstractmethod
    def axes(self, node: onnx_ir.Node) -> list[int]:
        """Return the ONNX axes that one mean is taken over, 0 or more."""

    @abc.abstractmethod
    def parameter(self, node: onnx_ir.Node, numbers: _Array) -> _Array:
        """Return scale or bias in a shape that numpy broadcasts to that of the data."""

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def fuses(self, node: onnx_ir.Node) -> bool:
        return True

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        if any(map(is_read, node.outputs[1:])):
            return "its mean or its deviation is read"
        given = [value for value in node.inputs[1:] if value is not None]
        is_constant = all(constant_numbers(value) is not None for value in given)
        return None if is_constant else "its parameters are not constant"

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        return touch(unit, layered, Demand.AGREE if rank(unit.result) == 4 else Demand.PLAIN)

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        centred = _of_two(site, "SUB", data, self._mean(site, data, "mean"), "centred")
        variance = self._mean(site, _of_two(site, "MUL", centred, centred, "squares"), "variance")
        epsilon = site.numbers("epsilon", site.node.attributes.get_float("epsilon", _EPSILON), np.float32)
        moved = _of_two(site, "ADD", variance, epsilon, "moved")
        root = site.operator("RSQRT", [moved], site.inner("root", moved, moved.shape))
        normal = _of_two(site, "MUL", centred, root, "normal")
        scale, bias = (self._parameter(site, index) for index in (1, 2))
        result = site.new()
        if bias is None:
            site.put(site.operator("MUL", [normal, scale], result, "MulOptions", **site.fused))
            return
        scaled = _of_two(site, "MUL", normal, scale, "scaled")
        site.put(site.operator("ADD", [scaled, bias], result, "AddOptions", **site.fused))

    def _mean(self, site: Site, data: Tensor, name: str) -> Tensor:
        axes = sorted(site.axis(axis, len(data.shape)) for axis in self.axes(site.node))
        sizes = [1 if axis in axes else size for axis, size in enumerate(data.shape)]
        made = site.inner(name, data, sizes)
        return site.operator("MEAN", [data, site.numbers("axes", axes)], made, "ReducerOptions", keepDims=True)

    def _parameter(self, site: Site, index: int) -> Tensor | None:
        value = input_of(site.node, index)
        numbers = constant_numbers(value)
        if value is None or numbers is None:
            return None
        return operand(site, str(value.name), self.parameter(site.node, numbers))


def _of_two(site: Site, kind: str, left: Tensor, right: Tensor | None, name: str) -> Tensor:
    return site.operator(kind, [left, right], site.inner(name, left, left.shape), f"{kind.capitalize()}Options")


class LayerNormalization(_Normalization):
    """Over all axes from `axis` on; parameters have their sizes."""

    def axes(self, node: onnx_ir.Node) -> list[int]:
        count = rank(node.inputs[0])
        return list(range(node.attributes.get_int("axis", -1) % count, count))

    def parameter(self, node: onnx_ir.Node, numbers: _Array) -> _Array:
        return numbers


class InstanceNormalization(_Normalization):
    """Over rows and columns; parameters have one number for each channel."""

    def axes(self, node: onnx_ir.Node) -> list[int]:
        return list(range(2, rank(node.inputs[0])))

    def parameter(self, node: onnx_ir.Node, numbers: _Array) -> _Array:
        return numbers.reshape(-1, *[1] * (rank(node.inputs[0]) - 2))
