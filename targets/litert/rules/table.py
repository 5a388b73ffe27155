"""Which rule writes which ONNX operator."""

from __future__ import annotations

import onnx_ir

from onnxpress.targets.litert.flatbuffer import Grid
from onnxpress.targets.litert.rules.base import Rule
from onnxpress.targets.litert.rules.convolution import BatchNormalization, Conv, ConvTranspose
from onnxpress.targets.litert.rules.elementwise import (
    Binary,
    Clipping,
    Elu,
    Function,
    Gelu,
    HardSigmoid,
    LeakyRelu,
    PRelu,
    Same,
)
from onnxpress.targets.litert.rules.images import DepthToSpace, LocalResponse, Resize, Softmax, SpaceToDepth
from onnxpress.targets.litert.rules.moves import Concat, Gather, Pad, Reshape, Slice, Split, Transpose
from onnxpress.targets.litert.rules.normalization import InstanceNormalization, LayerNormalization
from onnxpress.targets.litert.rules.pooling import AveragePool, MaxPool, Mean, Reduction
from onnxpress.targets.litert.rules.products import Product
from onnxpress.targets.litert.rules.types import ArgExtreme, Cast

__all__ = ["operators", "rule_of"]

# Integers that kernels demand of their output: https://ai.google.dev/edge/litert/models/quantization_spec
_LOGISTIC = Grid((1 / 256,), -128)
_TANH = Grid((1 / 128,), 0)

_RULES: dict[str, Rule] = {
    "Abs": Function("ABS", "AbsOptions"),
    "Add": Binary("ADD", integer=True),
    "ArgMax": ArgExtreme("ARG_MAX"),
    "ArgMin": ArgExtreme("ARG_MIN"),
    "AveragePool": AveragePool(),
    "BatchNormalization": BatchNormalization(),
    "Cast": Cast(),
    "Ceil": Function("CEIL"),
    "Clip": Clipping(),
    "Concat": Concat(),
    "Conv": Conv(),
    "ConvTranspose": ConvTranspose(),
    "Cos": Function("COS", "CosOptions"),
    "DepthToSpace": DepthToSpace(),
    "Div": Binary("DIV"),
    "Dropout": Same(),
    "Elu": Elu(),
    "Exp": Function("EXP", "ExpOptions"),
    "Flatten": Reshape(),
    "Floor": Function("FLOOR"),
    "Gather": Gather(),
    "Gelu": Gelu(),
    "Gemm": Product(),
    "GlobalAveragePool": Mean(),
    "GlobalMaxPool": Reduction("REDUCE_MAX"),
    "HardSigmoid": HardSigmoid(),
    "HardSwish": Function("HARD_SWISH", "HardSwishOptions", integer=True),
    "Identity": Same(),
    "InstanceNormalization": InstanceNormalization(),
    "LRN": LocalResponse(),
    "LayerNormalization": LayerNormalization(),
    "LeakyRelu": LeakyRelu(),
    "Log": Function("LOG"),
    "LogSoftmax": Softmax("LOG_SOFTMAX"),
    "MatMul": Product(),
    "Max": Binary("MAXIMUM", "MaximumMinimumOptions"),
    "MaxPool": MaxPool(),
    "Min": Binary("MINIMUM", "MaximumMinimumOptions"),
    "Mul": Binary("MUL", integer=True),
    "Neg": Function("NEG", "NegOptions"),
    "PRelu": PRelu(),
    "Pad": Pad(),
    "Pow": Binary("POW", "PowOptions"),
    "ReduceMax": Reduction("REDUCE_MAX"),
    "ReduceMean": Mean(),
    "ReduceMin": Reduction("REDUCE_MIN"),
    "ReduceSum": Reduction("SUM"),
    "Relu": Clipping(),
    "Reshape": Reshape(),
    "Resize": Resize(),
    "Sigmoid": Function("LOGISTIC", integer=True, grid=_LOGISTIC),
    "Sin": Function("SIN"),
    "Slice": Slice(),
    "Softmax": Softmax(),
    "SpaceToDepth": SpaceToDepth(),
    "Split": Split(),
    "Sqrt": Function("SQRT"),
    "Squeeze": Reshape(),
    "Sub": Binary("SUB", integer=True),
    "Tanh": Function("TANH", integer=True, grid=_TANH),
    "Transpose": Transpose(),
    "Unsqueeze": Reshape(),
    "Upsample": Resize(),
}


def rule_of(node: onnx_ir.Node) -> Rule | None:
    """Return how a node is written, None where nothing is known for its operator."""
    return _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def operators() -> list[str]:
    """Return the ONNX operators that can be written."""
    return sorted(_RULES)
