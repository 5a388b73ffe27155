"""Pack weights that take few values, without changing one: a file of fewer bytes that computes the same.

    W with at most 256 different numbers            =>  Codebook: indices of 1 to 8 bits and the numbers
    W = float32(code) * scale, channel by channel   =>  Affine: integers of 2, 4 or 8 bits and the scales

Models whose weights were shared, pruned or fake-quantized elsewhere are often stored as float32 all the same. Here each
weight is stored as what it is, in the smaller of the two forms, where that is smaller than float32. A target unpacks it
as it loads (lowering), so that speed and results stay as they were. What `onnxpress pack` writes is smaller still, but
must be unpacked before a runtime can read it.

Legal when: a FLOAT initializer of the main graph of rank 2 and 256 numbers or more that something reads, not encoded,
no input or output of the graph, and the target can store the form. Fidelity: the numbers are equal bit for bit, but for
the sign of zeros that only linear operators read, which no sum shows. So are outputs once the runtime has unpacked the
weights as it loads; without its optimizations it may sum products with such weights in another order. Scopes: the main
graph. Behind all other passes. A second run finds every weight encoded. Needs no data.
Source: Han et al. 2016, https://arxiv.org/abs/1510.00149 (stored as that paper means them to be).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.bitpack import code_type
from onnxpress.ir.encodings import Affine, Codebook, Encoded, grid_scale
from onnxpress.ir.encodings.sharing import spread
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.passes.base import Context, Fidelity, Options, Pass, Rewrites, SiteOptions
from onnxpress.passes.constant_sites import encode_constants
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.order import BEFORE_ENCODING, LOW_BIT
from onnxpress.passes.selectors import Selection

__all__ = ["Pack"]

_Floats: TypeAlias = npt.NDArray[np.float32]

_MOST_LEVELS = 256
_WIDTHS = ((2, 1), (4, 7), (8, 127))  # bits, largest integer


class Pack(Pass):
    """Store weights of few different values as codes of few bits, none of them changed."""

    name: ClassVar[str] = "pack"
    fidelity: ClassVar[Fidelity] = "rounding"
    options_type: ClassVar[type[Options]] = SiteOptions
    after: ClassVar[tuple[str, ...]] = (*BEFORE_ENCODING, *LOW_BIT, "quantize-int8", "float16")
    options: SiteOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Encode weights of `model` in place.

        Raises:
            UsageError: a selector matches nothing.
        """
        selection = Selection.from_options(self.options, model, self.name)

        def encode(value: onnx_ir.Value, weights: _Floats, readers: Sequence[onnx_ir.Node]) -> Encoded | str:
            if not all(_sums_products(node, value) for node in readers) and np.signbit(weights[weights == 0]).any():
                return "it holds negative zeros, whose sign a reader may tell"
            return _packed(weights, context.constraints)

        return encode_constants(model, selection, encode)


def _sums_products(node: onnx_ir.Node, weight: onnx_ir.Value) -> bool:
    """Whether `node` is a linear operator with that weight."""
    view = as_linear(node)
    return isinstance(view, Linear) and view.weight_value is weight


def _packed(weights: _Floats, constraints: Constraints) -> Encoded | str:
    """Return the smallest exact form that the target stores, or why there is none."""
    if not np.isfinite(weights).all():
        return "it holds NaN or infinite values"
    exact = [*_integers(weights), *_codebook(weights)]
    if not exact:
        return f"it takes more than {_MOST_LEVELS} different values, on no grid of integers"
    known = constraints.encodings
    forms = [form for form in exact if (form.label if isinstance(form, Affine) else form.kind) in known]
    if not forms:
        return f"{constraints.target} stores no {' or '.join(dict.fromkeys(form.label for form in exact))} weights"
    smallest = min(forms, key=lambda form: form.packed_bytes)
    if smallest.packed_bytes >= weights.nbytes:
        return f"codes and parameters would take {smallest.packed_bytes} bytes, no fewer than its {weights.nbytes}"
    return smallest


def _codebook(weights: _Floats) -> list[Encoded]:
    probe = weights.reshape(-1)[: _MOST_LEVELS * 4]
    if len(np.unique(probe)) > _MOST_LEVELS:
        return []
    levels, codes = np.unique(weights, return_inverse=True)  # which takes 0.0 and -0.0 for one
    return [Codebook(codes.reshape(weights.shape).astype(np.uint8), levels)] if len(levels) <= _MOST_LEVELS else []


def _integers(weights: _Floats) -> list[Encoded]:
    """Return integers with one scale, or a scale for each index of the first or last axis, that are `weights`."""
    axes = (None, 0, weights.ndim - 1) if weights.ndim > 1 else (None,)
    return [encoded for axis in axes for encoded in _on_a_grid(weights, axis)]


def _on_a_grid(weights: _Floats, axis: int | None) -> list[Encoded]:
    """Return the integers along `axis` in all widths that hold them."""
    scale = grid_scale(weights, axis)
    if scale is None:
        return []
    codes = np.rint(weights / spread(scale, weights.shape, axis, None))
    if not np.array_equal(codes * spread(scale, weights.shape, axis, None), weights):
        return []
    largest = int(np.abs(codes).max(initial=0))
    return [
        Affine(codes.astype(code_type(bits, signed=True)), scale, bits=bits, axis=axis)
        for bits, most in _WIDTHS
        if largest <= most
    ]
