"""What a target asks of passes, as plain data, so that no pass knows a target by name."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import onnx_ir

__all__ = ["Constraints", "CostEstimator", "IntegerScheme", "Precision", "QuantizationScheme"]

Precision = Literal["float32", "int8"]


@runtime_checkable
class CostEstimator(Protocol):
    """Predicted time of nodes on a target. Later models may calibrate it; passes see only this face."""

    def node_seconds(self, node: onnx_ir.Node, precision: Precision = "float32") -> float:
        """Seconds of `node` at batch 1; `math.inf` where the target has no kernel of that precision."""
        ...

    def convert_seconds(self, value: onnx_ir.Value, to: Precision) -> float:
        """Seconds to change `value` at batch 1 from the other precision to `to`, layout change included."""
        ...


@dataclasses.dataclass(frozen=True)
class IntegerScheme:
    """How integers stand for real numbers: `real = (integer - zero_point) * scale`."""

    bits: int = 8
    signed: bool = False
    symmetric: bool = False


@dataclasses.dataclass(frozen=True)
class QuantizationScheme:
    """Integer types that a target's fast kernels take, and where they apply.

    weight_pair_limit: largest magnitude that the sum of two neighbouring integer weights may have, where kernels add
        two products in 16 bits and saturate; None where they do not.
    compute: operators with a fast integer kernel that is worth entering for its own sake.
    carry: operators that stay integer between integer neighbours (one scale in, possibly another out).
    same_scale: the subset of `carry` whose output must share the range of its input(s).
    fused_activations: operators folded into the producer's output range.
    float_outputs: the subset of `compute` whose integer kernels can write float; results of others have a range.
    input_channel_multiple: integer Conv kernels are fast where the input channels are a multiple of this;
        lowering pads the rest with zero channels.
    bias: how a bias is stored beside integer weights; kernels add it as int32 at scale x*w either way.
    """

    activation: IntegerScheme = IntegerScheme()
    weight: IntegerScheme = IntegerScheme(signed=True, symmetric=True)
    weight_per_channel: bool = True
    weight_pair_limit: int | None = None
    compute: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul"})
    carry: frozenset[str] = frozenset()
    same_scale: frozenset[str] = frozenset()
    fused_activations: frozenset[str] = frozenset({"Relu", "Clip"})
    float_outputs: frozenset[str] = frozenset({"Gemm", "MatMul"})
    input_channel_multiple: int = 1
    bias: Literal["float32", "int32"] = "float32"


@dataclasses.dataclass(frozen=True)
class Constraints:
    """A target's demands: its name for messages, and data for decisions.

    channel_multiple: widths that the target runs without waste; 1 where any width is as good.
    max_opset: highest default-domain opset that the runtime loads.
    encodings: names of weight encodings that the target can store.
    costs: None where nothing is known, and then passes decide without it.
    float16_activations: whether float16 weights mean float16 activations, whose magnitudes must then be known.
    """

    target: str = "any"
    channel_multiple: int = 1
    max_opset: int | None = None
    encodings: tuple[str, ...] = (
        *("affine8", "affine4", "affine2", "affine16", "ternary", "binary", "power-of-two", "codebook"),
        *("float16", "bfloat16", "float8", "dense"),
    )
    quantization: QuantizationScheme = QuantizationScheme()
    costs: CostEstimator | None = None
    float16_activations: bool = False
