"""Quantized values: a clipping range noted on an activation, and how a range becomes scale and zero point.

    real = (integer - zero_point) * scale           integer in [qmin, qmax]
    signed b bits:    qmin = -2**(b-1), qmax = 2**(b-1) - 1
    unsigned b bits:  qmin = 0,         qmax = 2**b - 1

Passes note ranges in real units; the numbers above are chosen when a target lowers the note, because
targets disagree on sign and symmetry. The note lies in the value's `meta`, so it survives `Model.clone()`
and never reaches a file.

Real zero is always an integer, exactly: padding, Relu and zero weights must not shift the sum.
Source: Jacob et al. 2018, sections 2.1 and 3, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import onnx_ir

__all__ = [
    "BITS",
    "Quantization",
    "affine_parameters",
    "clear",
    "integer_parameters",
    "integer_range",
    "is_weight_only",
    "note",
    "note_weight_only",
    "quantization_of",
]

BITS = (2, 4, 8, 16)  # the integer widths of ONNX QuantizeLinear, opset 25

_KEY = "onnxpress.quantization"
_WEIGHT_ONLY = "onnxpress.weight_only"
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)  # smallest normal number: 1 / scale stays finite


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The clipping range of an activation, in real units, and who shares it.

    low, high: finite, low <= high. Zero is added to the range when it is lowered, not here, so that
        measured ranges stay readable.
    bits: integer width, one of 2, 4, 8, 16.
    group: values of one group get the same integers' meaning (Concat inputs, pooling in and out).
    """

    low: float
    high: float
    bits: int = 8
    group: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"a clipping range must be finite, not [{self.low}, {self.high}]")
        if self.low > self.high:
            raise ValueError(f"a clipping range needs low <= high, not [{self.low}, {self.high}]")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")


def note(value: onnx_ir.Value, quantization: Quantization) -> None:
    """Note on `value` that it is quantized; a note that is there already is replaced."""
    value.meta[_KEY] = quantization


def quantization_of(value: onnx_ir.Value | None) -> Quantization | None:
    """Return the note on `value`, or None where it stays float (or is an omitted input)."""
    found = None if value is None else value.meta.get(_KEY)
    return found if isinstance(found, Quantization) else None


def note_weight_only(value: onnx_ir.Value, is_so: bool = True) -> None:
    """Note on an encoded weight that its layers compute in float, whatever their inputs are; or take the note away."""
    if is_so:
        value.meta[_WEIGHT_ONLY] = True
    else:
        value.meta.pop(_WEIGHT_ONLY, None)


def is_weight_only(value: onnx_ir.Value) -> bool:
    """Whether `note_weight_only` noted so."""
    return _WEIGHT_ONLY in value.meta


def clear(value: onnx_ir.Value) -> None:
    """Remove the note from `value`, if it has one."""
    value.meta.pop(_KEY, None)


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return (qmin, qmax) of an integer type.

    >>> integer_range(8, signed=True), integer_range(4, signed=False)
    ((-128, 127), (0, 15))
    """
    if bits not in BITS:
        raise ValueError(f"bits must be one of {BITS}, not {bits}")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def integer_parameters(quantization: Quantization, *, signed: bool, symmetric: bool) -> tuple[np.float32, int]:
    """Return (scale, zero_point) that stand for the range, widened to hold zero.

    Asymmetric: the range is spread over all integers and the zero point is rounded, so rounding inside
    the range is off by at most scale / 2, ends included.

    >>> scale, zero_point = integer_parameters(Quantization(-1.0, 4.1), signed=False, symmetric=False)
    >>> f"{scale:.4f}", zero_point                       # 5.1 / 255; 0 - (-1.0 / 0.02)
    ('0.0200', 50)

    A range that starts at zero or above (after Relu) puts the zero point at the type's minimum, which is
    what lets onnxruntime drop the Relu:

    >>> integer_parameters(Quantization(0.5, 25.5), signed=True, symmetric=False)[1]
    -128

    Symmetric: the larger magnitude gets qmax, the integer -2**(b-1) stays unused, and zero is the middle
    of the type: 0 when signed, 2**(b-1) when not.

    >>> scale, zero_point = integer_parameters(Quantization(-1.0, 2.54), signed=True, symmetric=True)
    >>> f"{scale:.4f}", zero_point                       # 2.54 / 127
    ('0.0200', 0)

    A value that is always zero gets scale 1.
    """
    scale, zero_point = affine_parameters(
        np.float64(quantization.low),
        np.float64(quantization.high),
        bits=quantization.bits,
        signed=signed,
        symmetric=symmetric,
    )
    return np.float32(scale[()]), int(zero_point[()])


def affine_parameters(
    low: npt.ArrayLike, high: npt.ArrayLike, *, bits: int, signed: bool, symmetric: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return (scale, zero_point) for many ranges at once; `integer_parameters` says how.

    low, high: arrays of one shape, real units, low <= high. scale: float32, > 0; zero_point: int32, inside
    the integer type. Both have that shape.
    """
    qmin, qmax = integer_range(bits, signed)
    bottom = np.minimum(np.asarray(low, np.float64), 0.0)
    top = np.maximum(np.asarray(high, np.float64), 0.0)
    if symmetric:
        # 127 steps a side for 8 bits, signed or not; one step less than the type would hold.
        middle, steps = (qmin + qmax + 1) // 2, (qmax - qmin) // 2
        scale = _positive_scale(np.maximum(-bottom, top) / steps)
        return scale, np.full(scale.shape, middle, np.int32)
    scale = _positive_scale((top - bottom) / (qmax - qmin))
    zero_point = np.clip(np.rint(qmin - bottom / scale), qmin, qmax)
    return scale, zero_point.astype(np.int32)


def _positive_scale(scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return float32 scales that can be divided by: 1 for an empty range, never denormal."""
    return np.asarray(np.where(scale > 0, np.maximum(scale, _SMALLEST_SCALE), 1.0), np.float32)
