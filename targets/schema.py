"""The schema of a target profile: everything that is known about a device and its runtime, as data.

A profile is a TOML file. Nothing in it is code, so that a number is corrected, or a device added, without
touching Python. Every class below is a table of that file, its fields are the table's keys, and the built-in
files in `profiles/` are the worked examples.
"""

from __future__ import annotations

from typing import Annotated, Literal

import onnx_ir
import pydantic

from onnxpress.ir.errors import near_names
from onnxpress.passes.constraints import IntegerScheme, Precision, QuantizationScheme

__all__ = [
    "COMMON_KEYS",
    "ONNXRUNTIME_STORAGE",
    "EncodingName",
    "Integer",
    "IrVersion",
    "MachineTable",
    "OpsetRange",
    "Peaks",
    "Profile",
    "Quantization",
    "Rates",
    "Roofline",
    "Rule",
    "RuntimeName",
    "Severity",
    "Steps",
    "Storage",
    "WeightInteger",
]

# illegal: the runtime refuses the model. slow: it runs, but misses the fast kernels. inexact: it runs, but
# the runtime's own rewrites change the numbers. setup: it runs once whoever builds it says more than the file does.
Severity = Literal["illegal", "slow", "inexact", "setup"]
# affineN: N-bit integers with a scale. codebook, ternary, binary, power-of-two: indices into a few numbers. float16,
# bfloat16, float8: narrower floats. sparse: only what is not zero, whatever encodes it. dense: numbers as they are,
# what every weight without an encoding is.
EncodingName = Literal[
    "affine2", "affine4", "affine8", "affine16", "binary", "ternary", "power-of-two", "codebook", "float8", "bfloat16",
    "float16", "sparse", "dense",
]  # fmt: skip
RuntimeName = Literal["litert", "onnxruntime-cpu", "onnxruntime-cuda", "openvino", "tensorrt"]
# TOML has types of its own, so that "8", 8.0 and true are no whole numbers, and 1 and "yes" no flags.
Flag = Annotated[bool, pydantic.Strict()]
Whole = Annotated[int, pydantic.Field(strict=True, le=1 << 40)]  # far above any count, and no float overflows
Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False, strict=True)]
# Sorted when dumped: the order of a set changes from run to run.
Names = Annotated[frozenset[str], pydantic.PlainSerializer(sorted, return_type=list[str])]
NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False, strict=True)]
Position = Annotated[Whole, pydantic.Field(ge=0)]
# As `site.element_type` spells them.
_ELEMENT_TYPES = frozenset(
    {"FLOAT": "float32", "DOUBLE": "float64"}.get(each.name, each.name.lower()) for each in onnx_ir.DataType
)


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class OpsetRange(_Table):
    """Versions of the default operator domain that the runtime loads."""

    source: str = pydantic.Field(min_length=1, description="where these limits are written down or measured")
    min: Whole = pydantic.Field(ge=1, description="lowest opset version")
    max: Whole = pydantic.Field(ge=1, description="highest opset version")

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> OpsetRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class IrVersion(_Table):
    """Versions of the ONNX file format that the runtime loads; without this table, any."""

    source: str = pydantic.Field(min_length=1, description="where this limit is written down or measured")
    max: Whole = pydantic.Field(ge=3, description="highest IR version")


class Integer(_Table):
    """One integer type: `real = (integer - zero_point) * scale`; symmetric means that zero_point is 0."""

    bits: Whole = pydantic.Field(default=8, description="8: the only width that passes and lowerings know so far")
    signed: Flag
    symmetric: Flag

    @pydantic.field_validator("bits")
    @classmethod
    def _is_known(cls, bits: int) -> int:
        if bits != 8:
            raise ValueError("must be 8, the only width that this version quantizes to")
        return bits

    def scheme(self) -> IntegerScheme:
        return IntegerScheme(bits=self.bits, signed=self.signed, symmetric=self.symmetric)


class WeightInteger(Integer):
    """The integer type of weights: signed and symmetric, the one form that passes encode."""

    @pydantic.field_validator("signed", "symmetric")
    @classmethod
    def _is_encoded(cls, given: bool) -> bool:
        if not given:
            raise ValueError("must be true: this version encodes weights as signed, symmetric integers")
        return given


class Quantization(_Table):
    """What the runtime's fast integer kernels take. Operator names are those of the default domain."""

    activation: Integer = pydantic.Field(description="the integers of activations; symmetric: zero_point is 0")
    weight: WeightInteger = pydantic.Field(description="the integers of weights: signed, symmetric")
    weight_per_channel: Flag = pydantic.Field(default=True, description="a weight has a scale for each output channel")
    weight_pair_limit: Whole | None = pydantic.Field(
        default=None,
        ge=127,
        description="where kernels add two products in 16 bits: largest |sum| of two neighbouring weights' integers",
    )
    bias: Literal["float32", "int32"] = pydantic.Field(
        default="float32",
        description="how a bias is stored: plain, or DequantizeLinear of int32 at scale x*w",
    )
    input_channel_multiple: Whole = pydantic.Field(
        default=1, ge=1, description="integer Conv kernels want a multiple of this many input channels"
    )
    compute: Names = pydantic.Field(description="operators with an integer kernel worth entering for")
    carry: Names = pydantic.Field(
        default=frozenset(), description="operators that stay integer between integer neighbours"
    )
    same_scale: Names = pydantic.Field(
        default=frozenset(), description="the part of `carry` whose output shares its input's range"
    )
    fused_activations: Names = pydantic.Field(
        default=frozenset(), description="operators that vanish into the range of their producer's output"
    )
    float_outputs: Names = pydantic.Field(
        default=frozenset({"Gemm", "MatMul"}),
        description="the part of `compute` whose integer kernels can write float; results of others have a range",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Quantization:
        stray = sorted(self.same_scale - self.carry)
        if stray:
            raise ValueError(f"same_scale names operators that are not in carry: {', '.join(stray)}")
        return self

    def scheme(self) -> QuantizationScheme:
        return QuantizationScheme(
            activation=self.activation.scheme(),
            weight=self.weight.scheme(),
            weight_per_channel=self.weight_per_channel,
            weight_pair_limit=self.weight_pair_limit,
            compute=self.compute,
            carry=self.carry,
            same_scale=self.same_scale,
            fused_activations=self.fused_activations,
            float_outputs=self.float_outputs,
            input_channel_multiple=self.input_channel_multiple,
            bias=self.bias,
        )


class Storage(_Table):
    """What decides which operators stand for an encoded weight.

    folds: the runtime computes once, as it loads, what follows from constants; so weights may be packed, and unpacked
    by ordinary operators. Other defaults are those of onnxruntime's CPU provider too.
    """

    folds: Flag = pydantic.Field(
        default=True, description="what follows from constants is computed once, at load, so that weights may be packed"
    )
    folds_integers: Flag = pydantic.Field(
        default=True, description="also before a DequantizeLinear, so that weights beside integers may be packed"
    )
    integer_moves: Flag = pydantic.Field(
        default=True,
        description="operators that move or compare values run on integers; otherwise between Dequantize and Quantize",
    )
    adds_in_accumulator: Flag = pydantic.Field(
        default=False,
        description="an Add goes into the Conv before it: that Conv's result stays float, the other operand does not",
    )
    exact_padding: Flag = pydantic.Field(
        default=True,
        description="integers are padded as ONNX says; else an AveragePool that counts its padding, and a Conv of "
        "kernel 1 that steps over it, get a Pad of their own",
    )
    rounds_float_weights: Flag = pydantic.Field(
        default=True, description="the runtime rounds a float weight between integers, unless a Clip stands before it"
    )
    integer_gemm_bias: Flag = pydantic.Field(
        default=True, description="a Gemm that writes float is fused only with an int32 bias"
    )
    matmul_nbits: tuple[Literal[2, 4, 8], ...] = pydantic.Field(
        default=(), description="bits of blocked weights that MatMulNBits multiplies fast with float data, for one row"
    )
    int4_dequantize: Flag = pydantic.Field(
        default=False, description="4-bit weights go as INT4 into a DequantizeLinear, which takes them as they are"
    )
    int4_blocks: tuple[Annotated[Whole, pydantic.Field(ge=1)], ...] = pydantic.Field(
        default=(), description="and only in blocks of these sizes along input channels, symmetric; empty for any form"
    )
    int4_readers: Names = pydantic.Field(default=frozenset(), description="and only for these operators; empty for all")
    two_of_four: Flag = pydantic.Field(
        default=False, description="zeros in two of every four input channels are not multiplied, if asked for"
    )
    float16_graph: Flag = pydantic.Field(
        default=False, description="float16 weights mean that activations between them are float16 too"
    )
    float32_ops: Names = pydantic.Field(
        default=frozenset(),
        description="operators that stay in float32 there: no float16 kernel, or sums that overflow",
    )
    source: str = pydantic.Field(min_length=1, description="where this is written or measured")


# Keys of a rule that every check leaves to what asks it.
COMMON_KEYS = frozenset({"id", "check", "severity", "ops", "where", "source", "advice"})
# Of a profile without a table [storage], and where weights are lowered without a profile.
ONNXRUNTIME_STORAGE = Storage(source="onnxruntime's CPU provider")


class Rule(_Table):
    """One demand of the runtime on a model.

    Every rule has an id, a check, a source and advice. Which of the other keys it must have is up to its check.
    """

    id: str = pydantic.Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$", description="its name, under which another profile replaces or drops it"
    )
    check: str = pydantic.Field(description="the check that decides: onnxpress targets --schema")
    severity: Severity = pydantic.Field(
        default="illegal",
        description="what it costs: illegal, slow, inexact, or setup (more has to be said to build it)",
    )
    ops: Names = pydantic.Field(default=frozenset(), description="operators that are looked at; empty for all")
    where: dict[str, int | str] = pydantic.Field(
        default_factory=dict, description="and of them only nodes whose attributes have these values"
    )
    domains: Names = pydantic.Field(default=frozenset(), description="operator domains")
    inputs: dict[Annotated[int, pydantic.Field(ge=0)], Names] = pydantic.Field(
        default_factory=dict, description="allowed element types by input position, such as float32"
    )
    tolerance: Positive | None = pydantic.Field(default=None, description="a relative error")
    types: Names = pydantic.Field(default=frozenset(), description="element types, such as float32")
    known: Names = pydantic.Field(default=frozenset(), description="operators")
    positions: tuple[Position, ...] = pydantic.Field(default=(), description="input positions, from 0")
    numbers: tuple[Whole, ...] = pydantic.Field(default=(), description="whole numbers that are allowed: ranks, sizes")
    limit: Whole | None = pydantic.Field(default=None, description="the most or the least that is allowed")
    attributes: dict[str, tuple[int | str, ...]] = pydantic.Field(
        default_factory=dict, description="allowed values by attribute; none where it must not be set"
    )
    source: str = pydantic.Field(min_length=1, description="where this is written down or measured")
    advice: str = pydantic.Field(min_length=1, description="what a user can do about it")

    @pydantic.model_validator(mode="after")
    def _has_types(self) -> Rule:
        for name in sorted(self.types.union(*self.inputs.values())):
            if name not in _ELEMENT_TYPES:
                raise ValueError(f"there is no element type {name!r}.{near_names(name, _ELEMENT_TYPES)}")
        return self


class Rates(_Table):
    """A number for each precision. Without `int8`: as for float32, or no kernel where kernels are listed."""

    float32: NotNegative
    int8: NotNegative | None = None

    def of(self, precision: Precision) -> float:
        """Return the number of a precision."""
        return self.float32 if precision == "float32" or self.int8 is None else self.int8

    def kernel(self, precision: Precision) -> float | None:
        """Return the number of a precision, or None where there is none."""
        return self.float32 if precision == "float32" else self.int8


class Peaks(Rates):
    """A speed for each precision, 1e9 operations per second. Without `int8` there is no integer kernel."""

    float32: Positive
    int8: Positive | None = None


class Steps(_Table):
    """A whole number of channels for each precision."""

    float32: Whole = pydantic.Field(ge=1)
    int8: Whole = pydantic.Field(ge=1)

    def of(self, precision: Precision) -> int:
        """Return the number of a precision."""
        return self.float32 if precision == "float32" else self.int8


class Roofline(_Table):
    """What bounds the speed of one core. `costmodel.py` has the formula that these numbers enter.

    One multiply-accumulate is two operations.
    """

    source: str = pydantic.Field(min_length=1, description="how these numbers were got; says so if estimated")
    conv: Peaks = pydantic.Field(description="dense Conv with a kernel above 1x1, and ConvTranspose")
    pointwise: Peaks = pydantic.Field(description="dense 1x1 Conv")
    depthwise: Peaks = pydantic.Field(description="depthwise Conv")
    grouped: Peaks = pydantic.Field(description="other grouped Conv")
    gemm: Peaks = pydantic.Field(description="Gemm and MatMul")
    bandwidth_gb_per_s: Positive = pydantic.Field(description="memory bandwidth of one core, 1e9 bytes/s")
    cache_gb_per_s: Positive | None = pydantic.Field(
        default=None, description="the same of weights that a core's own cache holds; None is as memory"
    )
    cache_kib: Whole = pydantic.Field(default=1024, ge=1, description="bytes of that cache, in KiB")
    call_us: NotNegative = pydantic.Field(default=0.0, description="cost of running a model at all, microseconds")
    overhead_us: Rates = pydantic.Field(description="cost of calling any kernel, microseconds")
    light_overhead_us: Rates | None = pydantic.Field(
        default=None, description="the same of kernels that are no Conv; None is as any"
    )
    input_step: Steps = pydantic.Field(description="input channels are computed in steps of this many")
    output_step: Steps = pydantic.Field(description="output channels are computed in steps of this many")
    half_peak_channels: Rates = pydantic.Field(description="output channels at which half the peak is reached")
    half_peak_rows: Rates = pydantic.Field(
        default=Rates(float32=0), description="rows of a Gemm or MatMul at which half of its peak is reached"
    )
    border: Rates = pydantic.Field(
        default=Rates(float32=0),
        description="what a Conv pays at the left and right edge of an image: output columns for each column by which "
        "its kernel reaches over",
    )
    tap_ns: Rates = pydantic.Field(
        default=Rates(float32=0),
        description="nanoseconds of a Conv for each output position and kernel position, in kernels above 1x1",
    )
    output_set: Whole = pydantic.Field(
        default=64, ge=1, description="output channels that a kernel computes at once, from one read of its input"
    )
    set_channels: Rates = pydantic.Field(
        default=Rates(float32=0), description="cost of that read for each such set of a Conv, in output channels"
    )
    aligned_channels: Whole = pydantic.Field(ge=1, description="input channels should be a multiple of this")
    least_outputs: Steps = pydantic.Field(
        default=Steps(float32=1, int8=1), description="output channels that a Conv should have at least"
    )
    aligned_outputs: Steps = pydantic.Field(default=Steps(float32=1, int8=1), description="and be a multiple of")
    unaligned_factor: Rates = pydantic.Field(description="cost factor of a Conv whose channels are not so")
    unaligned_tap_ns: Rates = pydantic.Field(
        description="and nanoseconds for each output position and kernel position, in kernels above 1x1"
    )
    unaligned_copy_ns: Rates = pydantic.Field(
        default=Rates(float32=0), description="and for each input channel of these"
    )
    group_step: Whole = pydantic.Field(
        default=1, ge=1, description="channels of a group, in and out, that a grouped Conv should be a multiple of"
    )
    unaligned_group_ns: Rates = pydantic.Field(
        default=Rates(float32=0),
        description="where they are not, nanoseconds for each input channel, kernel position and output position, "
        "in kernels above 1x1",
    )
    depthwise_step: Steps = pydantic.Field(
        default=Steps(float32=1, int8=1), description="channels that those of a depthwise Conv should be a multiple of"
    )
    unaligned_depthwise_ns: Rates = pydantic.Field(
        default=Rates(float32=0),
        description="where they are not, nanoseconds for each channel, kernel position and output position",
    )
    output_ns: Rates = pydantic.Field(description="nanoseconds for each output element of a linear operator")
    elements: dict[str, Rates] = pydantic.Field(
        description="other operators: nanoseconds per element of their larger side; `default` for the rest"
    )
    absorbed: Names = pydantic.Field(
        default=frozenset(), description="operators that cost nothing right behind a linear operator"
    )
    activation_ns: Rates = pydantic.Field(
        default=Rates(float32=0),
        description="but that, of activations, kernels know Relu alone: others cost nanoseconds per element",
    )
    fused_add_ns: NotNegative | None = pydantic.Field(
        default=None,
        description="an Add in float32 right behind a Conv that nothing else reads: nanoseconds per element, no call",
    )
    convert_ns: Rates = pydantic.Field(description="changing a value's precision, nanoseconds per element")
    layout_ns: Rates = pydantic.Field(description="and its layout, where it is an image, nanoseconds per element")
    blocked_layout: Flag = pydantic.Field(
        default=False, description="float convolutions compute on blocks of channels, as onnxruntime's do on x86-64"
    )

    converted_tap_ns: dict[str, NotNegative] = pydantic.Field(
        default_factory=dict,
        description="operators that are slow on integers fresh from a conversion: "
        "nanoseconds for each output element and kernel position, on top",
    )

    @pydantic.field_validator("elements")
    @classmethod
    def _has_default(cls, elements: dict[str, Rates]) -> dict[str, Rates]:
        if "default" not in elements:
            raise ValueError("has no entry `default`")
        return elements


class MachineTable(_Table):
    """Where a profile was measured."""

    architecture: str = pydantic.Field(min_length=1, description="such as x86_64 or aarch64")
    processor: str = pydantic.Field(min_length=1, description="as its system tells it")
    runtime_version: str = pydantic.Field(min_length=1, description="of the runtime that was timed")


class Profile(_Table):
    """A whole profile."""

    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="its own, which no other target has")
    summary: str = pydantic.Field(min_length=1, description="one line for `onnxpress targets`")
    runtime: RuntimeName = pydantic.Field(description="what executes models there")
    pipeline: str = pydantic.Field(min_length=1, description="passes that `compress` runs by default")
    lowering: tuple[str, ...] = pydantic.Field(default=(), description="lowering steps, in order")
    opset: OpsetRange
    ir_version: IrVersion | None = None
    channel_multiple: Whole = pydantic.Field(default=1, ge=1, description="channel counts that waste nothing")
    whole_models: Flag = pydantic.Field(
        default=False, description="the runtime takes a model whole or not at all: no other one runs what it refuses"
    )
    encodings: tuple[EncodingName, ...] = pydantic.Field(
        description="how the target can store weights; passes encode in no other way"
    )
    storage: Storage = ONNXRUNTIME_STORAGE
    quantization: Quantization
    rules: tuple[Rule, ...] = ()
    roofline: Roofline | None = None
    machine: MachineTable | None = None

    @pydantic.model_validator(mode="after")
    def _unique(self) -> Profile:
        named: dict[str, list[str]] = {"rules: id": [rule.id for rule in self.rules], "encodings:": [*self.encodings]}
        named["lowering:"] = [*self.lowering]
        for what, names in named.items():
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]!r} appears twice")
        return self

    @pydantic.field_validator("encodings")
    @classmethod
    def _has_dense(cls, encodings: tuple[EncodingName, ...]) -> tuple[EncodingName, ...]:
        if "dense" not in encodings:
            raise ValueError("must hold 'dense': that is what a weight is until a pass encodes it")
        return encodings
