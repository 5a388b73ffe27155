"""Operators that compute each number by itself: sums and products of two values, activations, functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.activations import activation_limits
from onnxpress.ir.linear import constant_numbers
from onnxpress.ir.quantization import integer_parameters, quantization_of
from onnxpress.targets.litert.flatbuffer import Grid, Tensor
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

__all__ = [
    "Binary",
    "Clipping",
    "Elu",
    "Function",
    "Gelu",
    "HardSigmoid",
    "LeakyRelu",
    "PRelu",
    "Same",
    "covers",
    "fused_name",
    "operand",
]

_Array = npt.NDArray[Any]

_NAMES = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


def fused_name(activation: onnx_ir.Node) -> str | None:
    """Return the name of a Relu or Clip in LiteRT, None where it has none of its own."""
    return _NAMES.get(activation_limits(activation))


def covers(activation: onnx_ir.Node) -> bool:
    """Whether the integers of a noted activation reach no further than its limits, by less than half a step."""
    noted = quantization_of(activation.outputs[0])
    if noted is None:
        return False
    scale, zero_point = integer_parameters(noted, signed=True, symmetric=False)
    low, high = activation_limits(activation)
    return low <= (-128 - zero_point + 0.5) * float(scale) and high >= (127 - zero_point - 0.5) * float(scale)


class Binary(Rule):
    """Two operands, broadcast as numpy does."""

    def __init__(self, kind: str, options: str | None = None, *, integer: bool = False) -> None:
        self.kind = kind
        self.options = options or f"{kind.capitalize()}Options"
        self.has_integer_kernel = integer

    def fuses(self, node: onnx_ir.Node) -> bool:
        return self.kind in ("ADD", "DIV", "MUL", "SUB")

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        count = len(node.inputs)
        return None if count == 2 else f"it has {count} operands, and only 2 are written"

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return len(self.data(node)) == len(node.inputs) and super().is_integer(node, results)

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        data = self.data(unit.node)
        out = rank(unit.result)
        constants = [found for value in unit.node.inputs if (found := constant_numbers(value)) is not None]
        is_plain = any(rank(value) != out for value in data) or (out != 4 and any(each.size > 1 for each in constants))
        is_plain = is_plain or any(each.ndim > out for each in constants) or (out != 4 and len(data) > 1)
        return touch(unit, layered, Demand.PLAIN if is_plain else Demand.AGREE)

    def write(self, site: Site) -> None:
        operands: list[Tensor | None] = []
        for value in site.node.inputs:
            assert value is not None
            numbers = constant_numbers(value)
            operands.append(site.read(value) if numbers is None else operand(site, str(value.name), numbers))
        result = site.new()
        fields = site.fused if self.fuses(site.node) else {}
        site.operator(self.kind, operands, result, self.options, **fields)
        site.put(result)


def operand(site: Site, name: str, numbers: _Array) -> Tensor:
    """Return a constant in the order that images have here."""
    numbers = numbers.astype(np.float32)
    if site.last and rank(site.unit.result) == 4:
        numbers = numbers.reshape((1,) * (4 - numbers.ndim) + numbers.shape).transpose(0, 2, 3, 1)
    return site.graph.constant(name, np.ascontiguousarray(numbers) if numbers.ndim else numbers)


class Function(Rule):
    """A function of one value. grid: the integers that its int8 kernel demands of the output."""

    def __init__(
        self, kind: str, options: str | None = None, *, integer: bool = False, grid: Grid | None = None
    ) -> None:
        self.kind, self.options, self.grid = kind, options, grid
        self.has_integer_kernel = integer

    def fields(self, node: onnx_ir.Node) -> dict[str, Any]:
        """Return the fields of the operator's options."""
        return {}

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        result = site.new(grid=self.grid)
        site.operator(self.kind, [data], result, self.options, **self.fields(site.node))
        site.put(result)


class LeakyRelu(Function):
    """LEAKY_RELU."""

    def __init__(self) -> None:
        super().__init__("LEAKY_RELU", "LeakyReluOptions", integer=True)

    def fields(self, node: onnx_ir.Node) -> dict[str, Any]:
        return {"alpha": node.attributes.get_float("alpha", 0.01)}


class Elu(Function):
    """ELU, whose alpha is 1 in LiteRT."""

    def __init__(self) -> None:
        super().__init__("ELU")

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        alpha = node.attributes.get_float("alpha", 1.0)
        return None if alpha == 1.0 else f"alpha={alpha:g}: that of LiteRT's ELU is 1"


class Gelu(Function):
    """GELU."""

    def __init__(self) -> None:
        super().__init__("GELU", "GeluOptions")

    def fields(self, node: onnx_ir.Node) -> dict[str, Any]:
        return {"approximate": node.attributes.get_string("approximate", "none") == "tanh"}


class Same(Rule):
    """Identity, and Dropout as it runs: the value under another name, no operator."""

    has_integer_kernel = True

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        training = input_of(node, 2)
        if training is not None:
            held = constant_numbers(training)
            if held is None:
                return f"whether it is training, {training.name!r}, is computed"
            if held.any():
                return "it is training (training_mode is true), and drops numbers at random"
        return "its mask is read" if any(map(is_read, node.outputs[1:])) else None

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return super().is_integer(node, list(results)[:1])

    def write(self, site: Site) -> None:
        site.put(site.read(site.source))


class Clipping(Rule):
    """Relu or Clip that stands by itself."""

    has_integer_kernel = True  # of some limits

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        return "its limits are computed" if activation_limits(node) == (math.inf, -math.inf) else None

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        return super().is_integer(node, results) and (fused_name(node) in ("RELU", "RELU6") or covers(node))

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        if site.integer and covers(site.node):
            site.put(data)  # what it cuts off, the range of its output does
            return
        name = fused_name(site.node)
        result = site.new()
        if name is not None:
            site.operator(name, [data], result)
            site.put(result)
            return
        bounds = dict(zip(("MAXIMUM", "MINIMUM"), activation_limits(site.node), strict=True))
        kinds = [kind for kind, bound in bounds.items() if math.isfinite(bound)]
        for kind in kinds:
            made = result if kind == kinds[-1] else site.inner("clipped", result, result.shape)
            bound = site.graph.constant("bound", np.asarray(bounds[kind], np.float32))
            data = site.operator(kind, [data, bound], made, "MaximumMinimumOptions")
        site.put(data)


class HardSigmoid(Rule):
    """max(0, min(1, alpha * x + beta)), in float."""

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        numbers = {
            name: site.graph.constant(name, np.asarray(site.node.attributes.get_float(name, default), np.float32))
            for name, default in (("alpha", 0.2), ("beta", 0.5))
        }
        result = site.new()
        scaled = site.operator("MUL", [data, numbers["alpha"]], site.inner("scaled", data, data.shape), "MulOptions")
        moved = site.operator(
            "ADD", [scaled, numbers["beta"]], site.inner("moved", data, data.shape), "AddOptions",
            fusedActivationFunction=1,
        )  # fmt: skip
        one = site.graph.constant("one", np.asarray(1, np.float32))
        site.put(site.operator("MINIMUM", [moved, one], result, "MaximumMinimumOptions"))


class PRelu(Rule):
    """PRELU, its slopes constant and one for each channel, or one in all."""

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        slope = constant_numbers(input_of(node, 1))
        if slope is None:
            return "its slopes are computed"
        count = rank(node.inputs[0])
        if slope.ndim > count:
            return "it has slopes for axes that its data lack"
        # The kernel's slopes have no axis for the batch.
        return "its slopes vary along the first axis" if slope.ndim == count and slope.shape[0] != 1 else None

    def write(self, site: Site) -> None:
        source = site.source
        count = rank(source)
        slope = np.asarray(constant_numbers(site.node.inputs[1]), np.float32)
        slope = slope.reshape((1,) * (count - slope.ndim) + slope.shape)
        if site.last and count == 4:
            slope = slope.transpose(0, 2, 3, 1)
        data, result = site.read(source), site.new()
        slopes = site.graph.constant("slope", np.ascontiguousarray(slope[0]))
        site.put(site.operator("PRELU", [data, slopes], result))

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        slope = constant_numbers(unit.node.inputs[1])
        is_plain = slope is not None and slope.size > 1 and rank(unit.result) != 4
        return touch(unit, layered, Demand.PLAIN if is_plain else Demand.AGREE)
