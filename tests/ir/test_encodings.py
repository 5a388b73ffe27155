"""Encoded weights: rounding against its bound, exact packing, and life inside an onnx-ir model."""

from __future__ import annotations

import doctest
import io
import re
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnx_ir.passes.common
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxpress.ir.encodings import (
    Affine,
    BFloat16,
    Binary,
    Codebook,
    Dense,
    Encoded,
    Float8,
    Float16,
    Levels,
    PowerOfTwo,
    Sparse,
    Ternary,
    affine,
    encode,
    encoding_of,
    is_encoded,
    kind_named,
    levels,
    sparse,
)
from onnxpress.ir.quantization import BITS
from tests.support import run, text_model

Array = npt.NDArray[Any]

_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
_WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


@st.composite
def _quantized(draw: st.DrawFn) -> tuple[Array, Affine]:
    """Random weights and an affine encoding of them with random options."""
    w = draw(_WEIGHTS)
    axis = draw(st.none() | st.integers(-w.ndim, w.ndim - 1))
    block = None if axis is None else draw(st.none() | st.integers(1, 4))
    bits, signed, symmetric = draw(st.sampled_from(BITS)), draw(st.booleans()), draw(st.booleans())
    return w, Affine.quantize(w, bits=bits, signed=signed, symmetric=symmetric, axis=axis, block_size=block)


@pytest.mark.parametrize("module", [affine, levels, sparse], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module: types.ModuleType) -> None:
    result = doctest.testmod(module, extraglobs={"Affine": Affine})
    assert result.attempted and not result.failed


# Packing.


@given(_quantized())
def test_affine_survives_packing_bit_for_bit(drawn: tuple[Array, Affine]) -> None:
    _, encoded = drawn
    packed = encoded.packed()
    back = Affine.unpack(packed, encoded.shape.numpy(), encoded.parameters)
    assert isinstance(back, Affine) and back.packed() == packed
    assert back.codes.dtype == encoded.codes.dtype
    np.testing.assert_array_equal(back.codes, encoded.codes)
    np.testing.assert_array_equal(back.dense().view(np.int32), encoded.dense().view(np.int32))
    assert encoded.packed_bytes == len(packed) + -(-encoded.parameter_bits // 8)


@given(hnp.arrays(np.float32, _SHAPES, elements=st.floats(width=32)))
def test_dense_survives_packing_bit_for_bit(w: Array) -> None:
    encoded = Dense(w)
    back = Dense.unpack(encoded.packed(), encoded.shape.numpy(), encoded.parameters)
    np.testing.assert_array_equal(back.dense().view(np.int32), w.view(np.int32))
    assert encoded.packed_bytes == encoded.nbytes == w.nbytes == len(encoded.packed())


@given(hnp.arrays(np.float16, _SHAPES, elements=st.floats(width=16)))
def test_float16_survives_packing_bit_for_bit(codes: Array) -> None:
    encoded = Float16(codes)
    back = Float16.unpack(encoded.packed(), encoded.shape.numpy(), encoded.parameters)
    np.testing.assert_array_equal(back.codes.view(np.int16), codes.view(np.int16))
    assert encoded.packed_bytes == 2 * codes.size == len(encoded.packed())


_SCALES = st.floats(0.015625, 64, width=32)


@st.composite
def _levels(draw: st.DrawFn) -> Levels:
    """Codes of any shape, empty ones included, with parameters for the tensor or any axis of it."""
    shape = draw(_SHAPES)
    axis = draw(st.none() | st.integers(-len(shape), len(shape) - 1)) if shape else None
    per = () if axis is None else (shape[axis],)
    scales = hnp.arrays(np.float32, per, elements=_SCALES)
    kind = draw(st.sampled_from([Codebook, Ternary, Binary, PowerOfTwo]))
    if kind is Ternary:
        codes = draw(hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))
        return Ternary(codes, draw(scales), draw(st.none() | scales), axis=axis)
    if kind is Binary:
        bases = draw(st.integers(1, 8))
        codes = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, (1 << bases) - 1)))
        return Binary(codes, draw(hnp.arrays(np.float32, (bases, *per), elements=_SCALES)), axis=axis)
    if kind is PowerOfTwo:
        bits = draw(st.integers(2, 6))
        codes = draw(hnp.arrays(np.int8, shape, elements=st.integers(1 - (1 << bits - 1), (1 << bits - 1) - 1)))
        return PowerOfTwo(codes, draw(hnp.arrays(np.int32, per, elements=st.integers(-40, 40))), bits=bits, axis=axis)
    count = draw(st.integers(1, 17) | st.just(300))
    number = np.uint8 if count <= 256 else np.uint16
    codes = draw(hnp.arrays(number, shape, elements=st.integers(0, count - 1)))
    if axis is None:
        return Codebook(codes, draw(hnp.arrays(np.float32, count, elements=st.floats(-8, 8, width=32))))
    groups = draw(st.sampled_from([each for each in range(1, shape[axis] + 1) if shape[axis] % each == 0] or [1]))
    numbers = hnp.arrays(np.float32, (groups, count), elements=st.floats(-8, 8, width=32))
    return Codebook(codes, draw(numbers), axis=axis)


@given(_levels())
def test_levels_survive_packing_bit_for_bit(encoded: Levels) -> None:
    packed = encoded.packed()
    back = kind_named(encoded.kind).unpack(packed, encoded.shape.numpy(), encoded.parameters)
    assert type(back) is type(encoded) and back.label == encoded.label and back.packed() == packed
    assert back.codes.dtype == encoded.codes.dtype and back.codes.tobytes() == encoded.codes.tobytes()
    assert back.dense().tobytes() == encoded.dense().tobytes()
    assert encoded.packed_bytes == len(packed) + -(-encoded.parameter_bits // 8)
    assert 0 <= encoded.entropy_bits <= encoded.bits


@given(_levels())
def test_each_weight_is_the_level_that_its_group_and_index_say(encoded: Levels) -> None:
    dense, table, indices = encoded.dense(), encoded.table, encoded.indices
    assert dense.dtype == table.dtype == np.float32 and dense.shape == indices.shape
    for at in np.ndindex(dense.shape):
        channels, channel = (1, 0) if encoded.axis is None else (dense.shape[encoded.axis], at[encoded.axis])
        assert dense[at] == table[channel * len(table) // channels, indices[at]]


@given(_levels())
def test_levels_mean_what_their_definitions_say(encoded: Levels) -> None:
    """The formulas of the docstrings, one weight after the other."""
    dense = encoded.dense()
    for at in np.ndindex(dense.shape):
        channel = () if encoded.axis is None else (at[encoded.axis],)
        code = int(encoded.codes[at])
        if isinstance(encoded, Ternary):
            negative = encoded.positive if encoded.negative is None else encoded.negative
            assert dense[at] == (0.0, encoded.positive[channel], -negative[channel])[code]
        elif isinstance(encoded, Binary):
            signs = [1 if code >> base & 1 else -1 for base in range(encoded.bits)]
            exact = sum(sign * float(scale[channel]) for sign, scale in zip(signs, encoded.scale, strict=True))
            assert dense[at] == pytest.approx(exact, rel=1e-6, abs=1e-5)
        elif isinstance(encoded, PowerOfTwo):
            size = 2.0 ** (int(encoded.exponent[channel]) - encoded.largest + abs(code))
            assert dense[at] == np.sign(code) * size


@given(hnp.arrays(np.float32, _SHAPES, elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from(["e4m3fn", "e5m2"]))
def test_float8_survives_packing_and_rounds_to_its_precision(w: Array, form: str) -> None:
    encoded = Float8.quantize(w, format=form, axis=0 if w.ndim else None)
    back = Float8.unpack(encoded.packed(), encoded.shape.numpy(), encoded.parameters)
    assert back.packed() == encoded.packed() and back.dense().tobytes() == encoded.dense().tobytes()
    assert encoded.label == f"float8{form}" and encoded.packed_bytes == w.size + 4 * encoded.scale.size
    step = {"e4m3fn": 2.0**-4, "e5m2": 2.0**-3}[form]  # half a unit in the last place
    smallest = {"e4m3fn": 2.0**-10, "e5m2": 2.0**-17}[form]  # half of the smallest subnormal
    scale = encoded.scale.reshape(-1, *[1] * (w.ndim - 1)) if w.ndim else encoded.scale
    assert np.all(np.abs(encoded.dense() - w) <= np.maximum(np.abs(w) * step, scale * smallest) * (1 + 1e-5))


@given(hnp.arrays(np.float32, _SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_survives_packing_and_rounds_to_its_precision(w: Array) -> None:
    encoded = BFloat16.quantize(w)
    back = BFloat16.unpack(encoded.packed(), encoded.shape.numpy(), encoded.parameters)
    assert back.packed() == encoded.packed() and back.dense().tobytes() == encoded.dense().tobytes()
    assert encoded.packed_bytes == 2 * w.size and encoded.label == "bfloat16"
    assert np.all(np.abs(encoded.dense() - w) <= np.abs(w) * 2.0**-8 + 1e-38)


@st.composite
def _sparse(draw: st.DrawFn) -> Sparse:
    """A random mask over a random encoding: plain, half, affine or a table."""
    w, affine = draw(_quantized())
    inner = draw(st.sampled_from([Dense(w), Float16.quantize(w), BFloat16.quantize(w), affine]) | _levels())
    return Sparse(draw(hnp.arrays(np.bool_, tuple(inner.shape.numpy()))), inner)


@given(_sparse())
def test_sparse_survives_packing_bit_for_bit(encoded: Sparse) -> None:
    packed = encoded.packed()
    back = Sparse.unpack(packed, encoded.shape.numpy(), encoded.parameters)
    assert back.packed() == packed and type(back.inner) is type(encoded.inner) and back.label == encoded.label
    assert back.codes.dtype == encoded.codes.dtype and back.codes.tobytes() == encoded.codes.tobytes()
    np.testing.assert_array_equal(back.mask, encoded.mask)
    np.testing.assert_array_equal(back.dense().view(np.int32), encoded.dense().view(np.int32))
    assert encoded.packed_bytes == len(packed) + -(-encoded.parameter_bits // 8)


@given(_sparse())
def test_sparse_is_zero_outside_its_mask_and_what_it_holds_inside(encoded: Sparse) -> None:
    dense = encoded.dense()
    assert not dense[~encoded.mask].view(np.int32).any() and not encoded.codes[~encoded.mask].any()
    np.testing.assert_array_equal(dense[encoded.mask], encoded.inner.dense()[encoded.mask])
    assert 0 <= encoded.entropy_bits <= 1 + encoded.bits
    bits = encoded.size + encoded.stored * encoded.bits + encoded.parameter_bits
    assert encoded.bits_per_weight == (bits / encoded.size if encoded.size else 0.0)


@given(hnp.arrays(np.float32, _SHAPES, elements=st.floats(width=32) | st.just(0.0)))
def test_sparse_of_plain_weights_loses_nothing_but_the_sign_of_zero(w: Array) -> None:
    encoded = Sparse.of(w)
    assert encoded.stored == np.count_nonzero(w) and encoded.label == "sparse"
    np.testing.assert_array_equal(encoded.dense().view(np.int32), np.where(w == 0, np.float32(0), w).view(np.int32))
    back = Sparse.unpack(encoded.packed(), encoded.shape.numpy(), encoded.parameters)
    np.testing.assert_array_equal(back.dense().view(np.int32), encoded.dense().view(np.int32))


def test_sparse_counts_the_mask_and_what_is_stored() -> None:
    encoded = Sparse.of([[0.0, 1.5, 0.0, 1.5], [2.0, 0.0, 0.0, 2.0]])
    assert encoded.packed_bytes == 1 + 4 * 4 and encoded.bits_per_weight == 1 + 16
    assert encoded.entropy_bits == pytest.approx(1.0 + 0.5 * 1.0)
    empty = Sparse.of(np.zeros((0, 3)))
    assert (empty.entropy_bits, empty.bits_per_weight, empty.packed()) == (0.0, 0.0, b"")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ternary(np.array([2], np.int8), 1.0), "ternary codes must be int8 -1, 0 or 1"),
        (lambda: Ternary(np.array([1], np.int8), [1.0]), "scale has shape [1], needs []"),
        (lambda: Binary(np.array([2], np.uint8), [1.0]), "codes of 1 bases must be uint8 below 2"),
        (lambda: Binary(np.array([0], np.uint8), 1.0),
         "scale has shape []: its first dimension must be 1 to 8 bases"),
        (lambda: PowerOfTwo(np.array([4], np.int8), 0, bits=3), "codes of 3 bits must be int8 in [-3, 3]"),
        (lambda: PowerOfTwo(np.array([0], np.int8), 128, bits=3), "exponents of 3 bits must lie in [-124, 127]"),
        (lambda: PowerOfTwo(np.array([0], np.int8), [0], bits=3), "exponent has shape [1], needs []"),
        (lambda: PowerOfTwo(np.array([0], np.int8), 0, bits=7), "bits must be 2 to 6, not 7"),
        (lambda: Codebook(np.array([2], np.uint8), [0.0, 1.0]), "code 2 lies beyond a codebook of 2 levels"),
        (lambda: Codebook(np.array([0], np.int8), [0.0]), "codes of 1 levels must be uint8, not int8"),
        (lambda: Codebook(np.array([0], np.uint8), [np.nan]), "the codebook holds NaN or infinite values"),
        (lambda: Codebook(np.array([0], np.uint8), [[0.0]]),
         "codebook has shape [1, 1], needs [levels] of 1 to 65536 levels"),
        (lambda: Codebook(np.zeros((3, 2), np.uint8), [[0.0], [1.0]], axis=0),
         "3 channels cannot share 2 codebooks equally"),
        (lambda: Float8(np.zeros(1, np.uint8), 1.0), "codes must be of float8_e4m3fn or float8_e5m2, not uint8"),
        (lambda: Float8.quantize([1.0], format="e3m4"), "format must be one of e4m3fn, e5m2, not 'e3m4'"),
        (lambda: BFloat16.quantize([3.4e38]), "a magnitude of 3.4e+38 lies beyond bfloat16's 3.38953e+38"),
        (lambda: kind_named("quaternary"), "there is no encoding 'quaternary'. There are: affine, bfloat16, binary, "
         "codebook, dense, float16, float8, power-of-two, sparse, ternary"),
    ],
)  # fmt: skip
def test_wrong_codes_and_parameters_are_refused(make: Callable[[], Encoded], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_wrong_sparse_encodings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^mask has shape \[3\], the inner encoding \[2, 3\]$"):
        Sparse(np.ones(3, np.bool_), Dense(np.ones((2, 3))))
    with pytest.raises(ValueError, match=r"^a sparse encoding cannot hold another one$"):
        Sparse(np.ones(3, np.bool_), Sparse.of(np.ones(3)))
    encoded = Sparse.of([0.0, 1.0, 2.0])
    for packed in (encoded.packed()[:-1], b""):
        with pytest.raises(ValueError, match=r"needs \d+ packed bytes, got \d+$"):
            Sparse.unpack(packed, [3], encoded.parameters)


# Rounding.


@given(_quantized())
def test_rounding_stays_within_half_a_step(drawn: tuple[Array, Affine]) -> None:
    w, encoded = drawn
    dense = encoded.dense()
    assert dense.dtype == np.float32 and dense.shape == w.shape
    assert np.all(encoded.scale > 0)
    rounding = 2.0**encoded.bits * 2.0**-23  # of the scale, and of the products, in float32
    assert np.all(np.abs(dense - w) <= encoded._spread(encoded.scale) * (0.5 + rounding))
    np.testing.assert_array_equal(dense[w == 0], 0.0)


@settings(max_examples=40)
@given(_quantized())
def test_dense_is_what_onnx_dequantizes(drawn: tuple[Array, Affine]) -> None:
    """onnxruntime's DequantizeLinear gives the same bits, for tensors, channels and blocks."""
    _, encoded = drawn
    # onnxruntime has no 2-bit kernel, no blocks of 16 bits, and takes one scale in all for "per tensor".
    assume(encoded.bits > 2)
    assume(encoded.block_size is None or (encoded.bits < 16 and encoded.scale.size > 1))
    kind = onnx_ir.DataType[f"{'' if encoded.signed else 'U'}INT{encoded.bits}"]
    tensors = {"codes": encoded.codes, "scale": encoded.scale, "zero": encoded.zero_point}
    values = {
        name: onnx_ir.val(name, const_value=onnx_ir.Tensor(array, dtype=None if name == "scale" else kind))
        for name, array in tensors.items()
        if array is not None
    }
    attributes: dict[str, Any] = {} if encoded.axis is None else {"axis": encoded.axis}
    if encoded.block_size is not None:
        attributes["block_size"] = encoded.block_size
    node = onnx_ir.node("DequantizeLinear", list(values.values()), attributes)
    node.outputs[0].name, node.outputs[0].dtype = "y", onnx_ir.DataType.FLOAT
    graph = onnx_ir.Graph([], node.outputs, nodes=[node], initializers=list(values.values()), opset_imports={"": 21})
    np.testing.assert_array_equal(run(onnx_ir.Model(graph, ir_version=10), {})[0], encoded.dense())


def test_symmetric_codes_leave_the_lowest_integer_unused() -> None:
    w = np.array([[-2.54, 1.27, 0.0], [0.0, 0.0, 0.0]], np.float32)
    encoded = Affine.quantize(w)
    np.testing.assert_array_equal(encoded.codes, [[-127, 64, 0], [0, 0, 0]])  # 63.5 goes to even
    np.testing.assert_array_equal(encoded.scale, np.array([2.54 / 127, 1.0], np.float32))
    assert encoded.zero_point is None and encoded.label == "affine8"
    clipped = Affine.quantize(w, scale=np.array([0.01, 1.0]))
    assert clipped.codes.min() == -127
    assert Affine.quantize(w, scale=np.array([0.01, 1.0]), narrow=False).codes.min() == -128


def test_unsigned_symmetric_codes_have_zero_in_the_middle() -> None:
    w = np.array([-1.0, 0.0, 1.0], np.float32)
    for scale in (None, np.float32(1 / 127)):
        encoded = Affine.quantize(w, signed=False, axis=None, scale=scale)
        np.testing.assert_array_equal(encoded.codes, [1, 128, 255])
        np.testing.assert_array_equal(encoded.zero_point, 128)


def test_asymmetric_codes_use_the_whole_type() -> None:
    w = np.array([[-1.0, 4.1], [2.0, 6.0]], np.float32)
    encoded = Affine.quantize(w, signed=False, symmetric=False)
    np.testing.assert_array_equal(encoded.codes, [[0, 255], [85, 255]])
    np.testing.assert_array_equal(encoded.zero_point, [50, 0])


def test_blocks_have_their_own_scales_and_the_last_may_be_short() -> None:
    w = np.array([[1.2, 2, 30, 40, 500], [7, 0, 0, 7, 7]], np.float32)
    encoded = Affine.quantize(w, bits=4, axis=1, block_size=2)
    np.testing.assert_array_equal(encoded.scale, np.array([[2, 40, 500], [7, 7, 7]], np.float32) / 7)
    np.testing.assert_array_equal(encoded.codes, [[4, 7, 5, 7, 7], [7, 0, 0, 7, 7]])


def _mean_square(w: Array, **options: Any) -> float:
    return float(np.mean((Affine.quantize(w, **options).dense() - w) ** 2))


def test_finer_encodings_are_nearer() -> None:
    w = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    w *= np.geomspace(0.1, 10, 8, dtype=np.float32)[:, None]
    errors = [_mean_square(w, bits=bits) for bits in BITS]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] * 1e-6
    assert _mean_square(w, bits=4, axis=0) < _mean_square(w, bits=4, axis=None)
    assert _mean_square(w, bits=4, axis=1, block_size=16) < _mean_square(w, bits=4, axis=0)
    skewed = np.abs(w)
    assert _mean_square(skewed, symmetric=False) < _mean_square(skewed, symmetric=True)


def test_float16_rounds_and_refuses_overflow() -> None:
    w = np.array([1 / 3, -65504, 1e-9], np.float32)
    np.testing.assert_array_equal(Float16.quantize(w).dense(), w.astype(np.float16).astype(np.float32))
    with pytest.raises(ValueError, match=r"^a magnitude of 70000 lies beyond float16's 65504$"):
        Float16.quantize(np.array([70000.0, 1.0], np.float32))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), ()])
@pytest.mark.parametrize("symmetric", [False, True])
def test_empty_and_scalar_weights(shape: tuple[int, ...], symmetric: bool) -> None:
    encoded = Affine.quantize(np.ones(shape), symmetric=symmetric, axis=0 if shape else None)
    assert encoded.dense().shape == shape
    assert encoded.entropy_bits == 0.0
    assert encoded.bits_per_weight == (0 if 0 in shape else 40 if symmetric else 48)


def test_one_zero_dimension_leaves_scales_usable() -> None:
    np.testing.assert_array_equal(Affine.quantize(np.ones((3, 0))).scale, [1, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits must be one of (2, 4, 8, 16), not 3"),
        ({"axis": 2}, "axis 2 is outside a weight of rank 2"),
        ({"axis": None, "block_size": 2}, "block_size needs an axis"),
        ({"block_size": 0}, "block_size must be positive, not 0"),
        ({"scale": [1.0, 1.0], "symmetric": False},
         "a given scale needs symmetric=True: there is no zero point beside it"),
        ({"scale": [1.0]}, "scale has shape [1], needs [2]"),
        ({"axis": None, "scale": [1.0, 1.0]}, "scale has shape [2], needs []"),
        ({"scale": [1.0, 0.0]}, "scale must be positive and finite"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Affine.quantize(np.ones((2, 3)), **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^weights hold NaN or infinite values$"):
        Affine.quantize(np.array([1.0, bad]))
    with pytest.raises(ValueError, match=r"^weights hold NaN or infinite values$"):
        Affine.quantize(np.array([1.0, bad]), scale=[1.0, 1.0])


def test_wrong_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^codes of 4 bits must lie in \[-8, 7\]$"):
        Affine(np.array([8], np.int8), 1.0, bits=4)
    with pytest.raises(ValueError, match=r"^codes of 16 bits must be int16, not int8$"):
        Affine(np.array([8], np.int8), 1.0, bits=16)
    with pytest.raises(ValueError, match=r"^zero point has shape \[1\], needs \[\]$"):
        Affine(np.array([8], np.int8), 1.0, [0])


# Size and information.


def test_bits_and_entropy() -> None:
    codes = np.array([[0, 0, 0, 0], [1, 1, -2, -1]], np.int8)
    encoded = Affine(codes, np.ones(2), np.zeros(2), bits=2, axis=0)
    assert encoded.entropy_bits == pytest.approx(0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3)
    assert encoded.parameter_bits == 2 * 32 + 2 * 2
    assert encoded.packed_bytes == 2 + 9
    assert encoded.bits_per_weight == (8 * 2 + 68) / 8
    assert Dense(codes).entropy_bits == pytest.approx(encoded.entropy_bits)
    assert Dense(np.zeros(4)).entropy_bits == 0.0
    assert Dense(codes).bits_per_weight == 32.0 and Float16(np.zeros(3, np.float16)).bits_per_weight == 16.0


@given(_quantized())
def test_entropy_is_that_of_the_histogram(drawn: tuple[Array, Affine]) -> None:
    _, encoded = drawn
    assert encoded.entropy_bits == pytest.approx(Encoded.entropy_bits.fget(encoded))  # type: ignore[attr-defined]
    assert 0 <= encoded.entropy_bits <= encoded.bits


# Inside a model.


def _model_with(encoded: Encoded) -> onnx_ir.Model:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,3] x) => (float[N,2] y)
        <float[3,2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }"""
    )
    encode(model.graph.initializers["w"], encoded)
    return model


def _encodings() -> list[Encoded]:
    w = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    w[1] = 0.0
    affine = Affine.quantize(w, bits=4, axis=1)
    codes = np.array([[0, 1], [1, 0], [2, 2]], np.uint8)
    return [
        Dense(w),
        Float16.quantize(w),
        affine,
        Sparse.of(w),
        Sparse(w > 0, affine),
        BFloat16.quantize(w),
        Float8.quantize(w),
        Codebook(codes, [[-1.0, 0.0, 0.5], [-2.0, 0.0, 3.0]], axis=1),
        Ternary((codes - 1).astype(np.int8), 0.5, 0.75),
        Binary(codes, [[1.0, 2.0], [0.5, 0.25]], axis=1),
        PowerOfTwo((codes - 1).astype(np.int8), -1, bits=3),
        Sparse(w > 0, Codebook(codes, [-1.0, 0.0, 0.5])),
    ]


@pytest.mark.parametrize("encoded", _encodings(), ids=lambda encoded: encoded.label)
def test_encoded_weight_lives_in_a_model_as_any_tensor(encoded: Encoded) -> None:
    assert isinstance(encoded, onnx_ir.TensorProtocol)
    model = _model_with(encoded)
    assert encoded.name == "w"
    value = model.graph.initializers["w"]
    assert is_encoded(value) and encoding_of(value) is encoded
    clone = model.clone()
    onnx_ir.passes.Sequential(
        onnx_ir.passes.common.RemoveUnusedNodesPass(),
        onnx_ir.passes.common.DeduplicateInitializersPass(),
        onnx_ir.passes.common.DeduplicateHashedInitializersPass(),
        onnx_ir.passes.common.CommonSubexpressionEliminationPass(),
        onnx_ir.passes.common.TopologicalSortPass(),
        onnx_ir.passes.common.ShapeInferencePass(),
        onnx_ir.passes.common.CheckerPass(),
    )(clone)
    assert encoding_of(clone.graph.initializers["w"]) is encoded
    saved = onnx_ir.to_proto(clone).graph.initializer[0]
    assert saved.data_type == onnx.TensorProto.FLOAT
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(saved), encoded.dense())
    x = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)
    np.testing.assert_allclose(run(clone, {"x": x})[0], x @ encoded.dense(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoded", _encodings(), ids=lambda encoded: encoded.label)
def test_arrays_and_bytes_are_dense(encoded: Encoded) -> None:
    dense = encoded.dense()
    assert (encoded.size, encoded.nbytes, encoded.dtype) == (6, 24, onnx_ir.DataType.FLOAT)
    np.testing.assert_array_equal(np.asarray(encoded), dense)
    assert np.asarray(encoded, np.float64).dtype == np.float64
    assert encoded.tobytes() == dense.tobytes()
    file = io.BytesIO()
    encoded.tofile(file)
    assert file.getvalue() == dense.tobytes()
    assert encoded.__dlpack_device__() == (1, 0)
    if encoded.kind != "dense":  # numpy hands out no read-only memory by dlpack
        np.testing.assert_array_equal(np.from_dlpack(encoded), dense)
    assert repr(encoded) == f"{type(encoded).__name__}<{encoded.label},[3, 2]>(name={encoded.name!r})"
    with pytest.raises(ValueError, match="read-only"):
        encoded.codes[0, 0] = 0


def test_saves_beside_the_model(tmp_path: Any) -> None:
    encoded = _encodings()[2]
    path = tmp_path / "m.onnx"
    onnx_ir.save(_model_with(encoded), path, external_data="m.data")
    loaded = onnx_ir.load(path).graph.initializers["w"].const_value
    assert loaded is not None
    np.testing.assert_array_equal(loaded.numpy(), encoded.dense())


def test_encode_refuses_what_it_would_break() -> None:
    model = _model_with(_encodings()[0])
    with pytest.raises(ValueError, match=r"^'x' is not an initializer$"):
        encode(model.graph.inputs[0], _encodings()[0])
    with pytest.raises(ValueError, match=r"^'w' has shape \[3, 2\], the encoded weight \[2\]$"):
        encode(model.graph.initializers["w"], Dense(np.zeros(2)))


def test_plain_values_are_not_encoded() -> None:
    assert not is_encoded(None) and not is_encoded(onnx_ir.Value(name="x"))
    assert not is_encoded(onnx_ir.Value(name="x", const_value=onnx_ir.tensor([1.0])))
