"""What a rule is asked, and what it writes with."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.linear import constant_numbers
from onnxpress.targets.litert.flatbuffer import FlatGraph, Grid, Tensor
from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.static_shapes import shape_of
from onnxpress.targets.litert.values import Values, is_noted

__all__ = [
    "FUSED", "Layered", "Rule", "Site", "Unit", "computed", "first_computed", "flag", "input_of", "ints", "is_read",
    "rank", "shape", "touch",
]  # fmt: skip

_Array = npt.NDArray[Any]

FUSED = {None: 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # schema.fbs, ActivationFunctionType

# The values that have two orders: images, and what is flattened from them for a product.
Layered = Mapping[onnx_ir.Value, object]


@dataclasses.dataclass(frozen=True)
class Unit:
    """A node to write, with the activation behind it that its kernel computes as well.

    opset: what the node's attributes mean by. result: what both together make. fused: the activation's name in LiteRT;
    None where the output's range does it. integer: computes in int8.
    """

    node: onnx_ir.Node
    rule: Rule
    opset: int
    integer: bool = False
    activation: onnx_ir.Node | None = None
    fused: str | None = None

    @property
    def result(self) -> onnx_ir.Value:
        return (self.activation or self.node).outputs[0]

    @property
    def results(self) -> tuple[onnx_ir.Value, ...]:
        """All that it makes."""
        return tuple(self.node.outputs) if self.activation is None else (self.result,)


class Rule(abc.ABC):
    """One ONNX operator. The defaults are those of an operator that takes any order, and computes in float."""

    has_integer_kernel: bool = False
    takes: frozenset[str] = frozenset({"FLOAT"})  # types that its data may have, as ONNX names them
    makes: frozenset[str] = frozenset({"FLOAT"})

    def fuses(self, node: onnx_ir.Node) -> bool:
        """Whether the kernel that `node` becomes computes a fused activation too: its options have the field."""
        return False

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        """Return the operands that are computed while the model runs; others are constants and shapes."""
        return computed(node)

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        """Return why LiteRT cannot run `node`, or None. The shapes of its data and its first result are known."""
        return None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        """Return what the unit asks of the order of its images."""
        return touch(unit, layered, Demand.AGREE)

    def is_integer(self, node: onnx_ir.Node, results: Iterable[onnx_ir.Value]) -> bool:
        """Whether the node computes in int8: it has such a kernel, and everything around it is noted."""
        return self.has_integer_kernel and all(map(is_noted, [*self.data(node), *results]))

    @abc.abstractmethod
    def write(self, site: Site) -> None:
        """Add the operators that compute the unit."""


def touch(unit: Unit, layered: Layered, demand: Demand, made: Demand | None = None) -> Touch:
    """Return what a unit asks that treats all its images alike."""
    reads = {value: demand for value in unit.rule.data(unit.node) if value in layered}
    return Touch(unit.node, reads, {value: made or demand for value in unit.results if value in layered})


class Site:
    """Where a rule writes one unit. last: whether the images that agree lie channels last."""

    def __init__(self, unit: Unit, values: Values, last: bool, made_last: frozenset[onnx_ir.Value]) -> None:
        self.unit = unit
        self.node = unit.node
        self.values = values
        self.last = last
        self._made_last = made_last

    @property
    def graph(self) -> FlatGraph:
        return self.values.graph

    @property
    def integer(self) -> bool:
        return self.unit.integer

    @property
    def opset(self) -> int:
        return self.unit.opset

    @property
    def source(self) -> onnx_ir.Value:
        """The first operand: what an operator of one operand computes from."""
        value = self.node.inputs[0]
        assert value is not None, "it was checked to have a shape"
        return value

    @property
    def fused(self) -> dict[str, int]:
        """The field of options that names the fused activation."""
        return {"fusedActivationFunction": FUSED[self.unit.fused]}

    def read(self, value: onnx_ir.Value, last: bool | None = None) -> Tensor:
        """Return the tensor of an operand, in the unit's order and type."""
        return self.values.get(value, self._order(value, last), integer=self.integer)

    def new(self, last: bool | None = None, grid: Grid | None = None) -> Tensor:
        """Return a tensor for the result. grid: its integers, where the kernel, and not the note, says which."""
        value = self.unit.result
        return self.values.new(value, self._order(value, last), integer=self.integer, grid=grid)

    def put(self, tensor: Tensor, last: bool | None = None, value: onnx_ir.Value | None = None) -> None:
        """Say that `tensor` is the result."""
        value = value or self.unit.result
        self.values.put(value, tensor, self._order(value, last))

    def makes_last(self, value: onnx_ir.Value) -> bool:
        """Whether the plan has `value` made channels last."""
        return value in self._made_last

    def inner(self, name: str, like: Tensor, shape: Iterable[int]) -> Tensor:
        """Return a tensor between two operators, of the type and integers of `like`."""
        return self.graph.tensor(f"{self.unit.result.name}/{name}", tuple(shape), like.dtype, like.grid)

    def operator(
        self, kind: str, inputs: list[Tensor | None], output: Tensor, options: str | None = None, **fields: Any
    ) -> Tensor:
        """Add an operator of one output, and return that."""
        self.graph.operator(kind, inputs, [output], options, fields)
        return output

    def numbers(self, name: str, array: npt.ArrayLike, kind: Any = np.int32) -> Tensor:
        """Return a constant that is a parameter of an operator."""
        return self.graph.constant(name, np.asarray(array, kind))

    def axis(self, axis: int, rank: int, last: bool | None = None) -> int:
        """Return where an ONNX axis lies."""
        axis %= rank
        if rank != 4 or not (self.last if last is None else last):
            return axis
        return (0, 3, 1, 2)[axis]

    def by_axis(self, numbers: Iterable[Any]) -> list[Any]:
        """Return one thing for each ONNX axis in the order that the axes lie in."""
        given = list(numbers)
        return [given[axis] for axis in (0, 2, 3, 1)] if self.last and len(given) == 4 else given

    def _order(self, value: onnx_ir.Value, last: bool | None) -> bool:
        has_two = len(shape(value)) == 4 or value in self.values.flattened
        return has_two and (self.last if last is None else last)


# Small questions about nodes.


def computed(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """Return the inputs of a node that are no constants."""
    return tuple(value for value in node.inputs if value is not None and constant_numbers(value) is None)


def first_computed(node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
    """Return the first input of a node where it is no constant: what the others only tell about."""
    first = input_of(node, 0)
    return () if first is None or constant_numbers(first) is not None else (first,)


def is_read(value: onnx_ir.Value) -> bool:
    """Whether a node or the caller reads a value."""
    return bool(value.uses()) or value.is_graph_output()


def input_of(node: onnx_ir.Node, index: int) -> onnx_ir.Value | None:
    """Return an input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def ints(node: onnx_ir.Node, index: int, name: str) -> list[int] | None:
    """Return integers that older opsets have as the attribute `name`, and newer ones as an input; None for neither."""
    held = node.attributes.get(name)
    if held is not None:
        return [held.as_int()] if held.type == onnx_ir.AttributeType.INT else list(held.as_ints())
    found = constant_numbers(input_of(node, index))
    return None if found is None else [int(number) for number in found.reshape(-1)]


def flag(node: onnx_ir.Node, name: str, default: int = 0) -> bool:
    """Return an attribute that is 0 or 1."""
    return bool(node.attributes.get_int(name, default))


def shape(value: onnx_ir.Value | None) -> tuple[int, ...]:
    """Return the sizes of a value; they were checked to be known."""
    sizes = None if value is None else shape_of(value)
    assert sizes is not None, f"{value and value.name!r} was checked to have a fixed shape"
    return sizes


def rank(value: onnx_ir.Value | None) -> int:
    """Return the number of axes of a value."""
    return len(shape(value))
