"""Operators that compute each element from those at its position, with broadcasting; and casts, Q and DQ."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir

from onnxpress.ir.analysis.coupling.change import has_input
from onnxpress.ir.analysis.coupling.registry import rule
from onnxpress.ir.analysis.coupling.relation import NoRule, Place, Relation
from onnxpress.ir.linear import constant_tensor

__all__ = ["broadcast"]

_OPERATORS = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil "
    "Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow "
    "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
    "ThresholdedRelu Where Xor"
)
_LEGACY_BROADCAST = "axis"  # before opset 7, the second operand could start at a later axis


def broadcast(relation: Relation, operands: Iterable[Place], result: Place) -> None:
    """Tie operands to the result axis by axis from the right; axes of size 1 are repeated."""
    for operand in operands:
        for back in range(1, operand.rank + 1):
            if operand.sizes[-back] != 1:
                relation.same(operand[-back], result[-back])
            else:
                relation.free(operand[-back])
    relation.free(*result.axes())


@rule(*_OPERATORS.split())
def _elementwise(relation: Relation, node: onnx_ir.Node) -> None:
    """Y[i] = f(A[i], B[i], ...): what is at an index depends on that index alone."""
    if _LEGACY_BROADCAST in node.attributes and len(node.inputs) == 2:
        raise NoRule("broadcasting with an axis was dropped in opset 7: upgrade the model")
    operands = [relation.optional(node, index) for index in range(len(node.inputs))]
    there = [place for place in operands if place is not None]
    for result in relation.outputs(node):
        broadcast(relation, there, result)


@rule("Dropout")
def _dropout(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = X outside of training; there, chance would fall on other channels."""
    training = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    if has_input(node, 2) and (training is None or training.numpy().any()):
        raise NoRule("it may be in training")
    data = relation.input(node, 0)
    for index in (1, 2):
        parameter = relation.optional(node, index)
        relation.free(*(parameter.axes() if parameter is not None else ()))
    for result in relation.outputs(node):
        relation.same_axes(data.axes(), result.axes())


@rule("CastLike")
def _cast_like(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = A in the type of B: nothing is taken of B's numbers."""
    broadcast(relation, [relation.input(node, 0)], relation.output(node))
    relation.free(*relation.input(node, 1).axes())


@rule("QuantizeLinear", "DequantizeLinear")
def _quantize(relation: Relation, node: onnx_ir.Node) -> None:
    """Y = f(X, scale, zero point), the last two for all of X or along one axis."""
    data, result = relation.input(node, 0), relation.output(node)
    if node.attributes.get_int("block_size", 0):
        raise NoRule("its scales are blocked")
    relation.same_axes(data.axes(), result.axes())
    for index in (1, 2):
        parameter = relation.optional(node, index)
        if parameter is None or parameter.rank == 0 or parameter.sizes == (1,):
            continue
        relation.same(parameter[0], data[node.attributes.get_int("axis", 1)])
