"""The passes to low-bit weights: what each makes of a network, what it declines and why."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir import encodings
from onnxpress.ir.data import DataSource
from onnxpress.ir.encodings import Affine, Binary, Codebook, Encoded, Levels, Sparse, Ternary, encoding_of
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.registry import get_pass
from onnxpress.targets.base import load_target
from tests.passes.prune.sparse_support import (
    BODY,
    data_of,
    layer_of,
    model_of,
    net,
    prune,
    reasons,
    relative_error,
    weights,
)
from tests.support import Array, random_feeds, run

# name, options, the encoding's type and its label for the layers between the first and the last
PASSES: list[tuple[str, dict[str, Any], type[Encoded], str]] = [
    ("ternarize", {}, Ternary, "ternary"),
    ("ternarize", {"scales": 2}, Ternary, "ternary"),
    ("binarize", {}, Binary, "binary"),
    ("binarize", {"bases": 3}, Binary, "binary3"),
    ("palettize", {"bits": 3}, Codebook, "codebook3"),
    ("palettize", {"bits": 2, "group_size": 4, "weighting": "none"}, Codebook, "codebook2"),
    ("power-of-two", {}, encodings.PowerOfTwo, "power-of-two4"),
    ("quantize-weights", {}, Affine, "affine4"),
    ("quantize-weights", {"bits": 2, "block": 0}, Affine, "affine2"),
]
_NAMES = [f"{name}-{options}" for name, options, _, _ in PASSES]
_ANY = pytest.mark.parametrize(("name", "options", "kind", "label"), PASSES, ids=_NAMES)
_BETWEEN = ["grouped", "branch", "hidden"]


def _encode(name: str, model: onnx_ir.Model, data: DataSource | None = None, **options: Any) -> Rewrites:
    """Run the pass, with data unless its method needs none, and check what holds after every run."""
    before = interface(model)
    if data is None and options.get("method", "gptq") == "gptq":
        data = data_of(model)
    rewrites = get_pass(name)(**options).run(model, Context(data=data))
    verify(model)
    assert interface(model) == before
    for site in rewrites.sites:
        assert site.detail.startswith(_encoding(model, site.name).label)
        assert site.before.macs == site.after.macs and site.after.size_bytes < site.before.size_bytes
        assert site.error
    return rewrites


def _encoding(model: onnx_ir.Model, name: str) -> Encoded:
    found = encoding_of(layer_of(model, name).weight_value)
    assert found is not None
    return found


def _feeds() -> dict[str, Array]:
    (batch,) = data_of(net(), count=16, seed=7).batches(16)
    return dict(batch.feeds)


# What weights become.


@_ANY
def test_layers_between_the_ends_get_the_encoding_and_the_ends_eight_bits(
    name: str, options: dict[str, Any], kind: type[Encoded], label: str
) -> None:
    model = net()
    rewrites = _encode(name, model, **options)
    assert [site.name for site in rewrites.sites] == ["stem", *_BETWEEN, "head"] and rewrites.declined == []
    for layer in _BETWEEN:
        encoded = _encoding(model, layer)
        assert type(encoded) is kind and encoded.label == label
    ends = {site.name: site.detail for site in rewrites.sites if site.name in ("stem", "head")}
    assert all(_encoding(model, layer).label == "affine8" for layer in ends)
    assert ends["stem"].endswith("(a first layer)") and ends["head"].endswith("(a last layer)")


@_ANY
def test_a_second_run_finds_every_weight_encoded(
    name: str, options: dict[str, Any], kind: type[Encoded], label: str
) -> None:
    model = net()
    _encode(name, model, **options)
    again = _encode(name, model, **options)
    assert not again.modified
    assert re.fullmatch(r"weight 'w3' is already encoded as \S+", reasons(again)["branch"])


@_ANY
def test_fitted_to_data_the_outputs_are_nearer_than_rounded_without(
    name: str, options: dict[str, Any], kind: type[Encoded], label: str
) -> None:
    expected = run(net(), _feeds())[0]
    errors = []
    for method in ("gptq", "rtn"):
        model = net()
        _encode(name, model, method=method, **options)
        errors.append(relative_error(expected, run(model, _feeds())[0]))
    assert errors[0] < errors[1]


@_ANY
@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "mobile-cpu"])
def test_what_is_lowered_computes_what_was_encoded(
    name: str, options: dict[str, Any], kind: type[Encoded], label: str, target: str
) -> None:
    model = net()
    _encode(name, model, **options)
    expected = run(model, _feeds())[0]
    load_target(target).lower(model)
    verify(model)
    assert not any(isinstance(value.const_value, Encoded) for value in model.graph.initializers.values())
    got = run(model, _feeds())[0]
    # The weights are equal in bits; float32 sums of at most 72 products may be ordered in another way.
    np.testing.assert_allclose(got, expected, rtol=0, atol=72 * 2.0**-23 * 8 * np.abs(expected).max())


def test_equal_runs_give_equal_models() -> None:
    first, second = net(), net()
    for model in (first, second):
        _encode("palettize", model, bytes=0.2)
    assert to_proto_bytes(first) == to_proto_bytes(second)


def test_more_bits_are_nearer() -> None:
    expected = run(net(), _feeds())[0]
    errors = {}
    for bits in (1, 2, 3, 4, 6):
        model = net()
        _encode("palettize", model, bits=bits)
        errors[bits] = relative_error(expected, run(model, _feeds())[0])
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[6] < 1e-3


@pytest.mark.parametrize(("sensitive", "label"), [("same", "ternary"), ("float", None)])
def test_sensitive_layers_can_be_as_the_others_or_stay(sensitive: str, label: str | None) -> None:
    model = net()
    rewrites = _encode("ternarize", model, sensitive=sensitive)
    found = encoding_of(layer_of(model, "stem").weight_value)
    assert (found.label if found else None) == label
    if label is None:
        assert reasons(rewrites) == {
            "stem": "a first layer, and sensitive=float leaves it as it is",
            "head": "a last layer, and sensitive=float leaves it as it is",
        }


def test_depthwise_layers_are_sensitive() -> None:
    body = BODY.replace("group = 2, pads", "group = 8, pads")
    constants = weights() | {"w2": np.random.default_rng(3).standard_normal((32, 1, 3, 3))}
    constants["w3"] = np.random.default_rng(4).standard_normal((8, 32, 3, 3))
    model = model_of(body, constants)
    rewrites = _encode("ternarize", model)
    details = {site.name: site.detail for site in rewrites.sites}
    assert details["grouped"].startswith("affine8") and details["grouped"].endswith("(a depthwise convolution)")


def test_pruned_weights_keep_their_zeros() -> None:
    model = net()
    prune("prune-weights", model, ratio=0.6)
    masks = {name: _encoding(model, name).dense() != 0 for name in _BETWEEN}
    _encode("palettize", model, bits=2)
    for name, mask in masks.items():
        encoded = _encoding(model, name)
        assert isinstance(encoded, Sparse) and encoded.label == "sparse+codebook2"
        np.testing.assert_array_equal(encoded.mask, mask)
        assert isinstance(encoded.inner, Codebook) and encoded.inner.codebook.shape == (3,)  # and zero: two bits
    expected = run(model, _feeds())[0]
    load_target("x86-vnni").lower(model)
    got = run(model, _feeds())[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=72 * 2.0**-23 * 8 * np.abs(expected).max())


def test_blocks_of_inputs_have_scales_of_their_own() -> None:
    constants = {"w": np.random.default_rng(0).standard_normal((16, 40)), "v": np.random.default_rng(1).random((16, 9))}
    body = "h = Gemm <transB = 1> (x, w)\n [out] out = MatMul (h, v)"
    model = model_of(body, constants, inputs="float[N, 40] x")
    _encode("quantize-weights", model, block=16, sensitive="same", include=["type:Gemm"])
    first = next(node for node in model.graph if node.op_type == "Gemm")
    encoded = encoding_of(first.inputs[1])
    assert isinstance(encoded, Affine) and encoded.block_size == 16 and encoded.scale.shape == (16, 3)
    model = model_of(body, constants, inputs="float[N, 40] x")
    _encode("quantize-weights", model, block=8, sensitive="same", include=["type:MatMul"])
    encoded = _encoding(model, "out")
    assert isinstance(encoded, Affine) and encoded.axis == 0 and encoded.scale.shape == (2, 9)


def test_half_quadratic_scales_bend_less_to_large_weights() -> None:
    """The sum of |error|^0.7 is smaller than at the scales of least squares."""
    found = {}
    original = layer_of(net(), "branch").weight()
    for method in ("hqq", "rtn"):
        model = net()
        _encode("quantize-weights", model, method=method)
        found[method] = float((np.abs(layer_of(model, "branch").weight() - original) ** 0.7).sum())
    assert found["hqq"] < found["rtn"]


# A width for each layer.


@pytest.mark.parametrize("name", ["palettize", "quantize-weights"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_widths_are_chosen_within_the_bytes(name: str, method: str) -> None:
    model = net()
    whole = sum(tensor.nbytes for value in model.graph.initializers.values() if (tensor := value.const_value))
    options = {"block": 0} if name == "quantize-weights" else {}
    _encode(name, model, data_of(model), bytes=0.24, method=method, **options)
    left = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        left += tensor.packed_bytes if isinstance(tensor, Encoded) else int(tensor.nbytes)
    assert left <= 0.24 * whole
    assert len({_encoding(model, layer).label for layer in _BETWEEN}) > 1


def test_bytes_out_of_reach_are_refused_with_what_is() -> None:
    with pytest.raises(BudgetError) as raised:
        _encode("palettize", net(), bytes=0.02)
    found = re.fullmatch(
        r"palettize: bytes=0\.02 cannot be reached: with all of 3 layers at their narrowest, (0\.\d+) remain",
        str(raised.value),
    )
    assert found is not None
    _encode("palettize", net(), bytes=float(found[1]))


# What is declined, and why.


def _one(body: str, constants: dict[str, Array], **options: Any) -> tuple[onnx_ir.Model, dict[str, str]]:
    model = model_of(body, constants, out="N, M, H, V")
    before = to_proto_bytes(model)
    rewrites = _encode("ternarize", model, sensitive="same", **options)
    assert not rewrites.modified and to_proto_bytes(model) == before
    return model, reasons(rewrites)


_W = np.random.default_rng(5).standard_normal((8, 4, 3, 3))


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        ("[one] out = Conv (x, w)", {"w": _W[:1, :, :2, :2]}, "too small: 16 weights, fewer than 128"),
        ("[one] a = Conv (x, w)\n [two] b = Conv (x, w)\n out = Add (a, b)", {"w": _W},
         "weight 'w' is shared by 2 readers, each with an input of its own"),
        ("[one] out = ConvTranspose <group = 2> (x, w)", {"w": np.random.default_rng(6).standard_normal((4, 8, 3, 3))},
         "a transposed convolution in groups stores one scale for the same channel of all its groups"),
        ("[one] out = Conv (x, w)", {"w": np.where(_W > 3, np.nan, _W) * np.where(np.arange(3) == 1, np.inf, 1.0)},
         "weight 'w' holds NaN or infinite values"),
    ],
)  # fmt: skip
def test_what_is_not_legal_is_declined(body: str, constants: dict[str, Array], reason: str) -> None:
    _, found = _one(body, constants)
    assert found["one"] == reason


def test_other_clauses_decline_too() -> None:
    model = net()
    model.graph.outputs.append(model.graph.initializers["w3"])
    rewrites = get_pass("ternarize")().run(model, Context(data=data_of(net())))
    assert reasons(rewrites)["branch"] == "weight 'w3' is an output of the graph"
    rewrites = _encode("ternarize", net(), exclude=["branch"])
    assert reasons(rewrites) == {"branch": "excluded by 'branch'"}
    rewrites = _encode("palettize", net(), group_size=3)
    assert reasons(rewrites)["branch"] == "8 output channels do not divide into groups of 3"
    rewrites = _encode("binarize", net(), spatial_only=True)
    assert reasons(rewrites) == {"hidden": "its kernel has one position, and spatial_only=true takes larger ones"}


def test_a_target_that_cannot_store_them_gets_none() -> None:
    model = net()
    context = Context(Constraints(target="toy", encodings=("affine8", "dense")), data_of(model))
    rewrites = get_pass("ternarize")().run(model, context)
    assert not rewrites.modified and reasons(rewrites) == {"model": "toy stores no ternary weights"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("palettize", {"bits": 4, "bytes": 0.1}, "palettize: bits=4 and bytes=0.1 are given: give one of them"),
        ("palettize", {"bits": 9}, "palettize: option bits=9: input should be less than or equal to 8"),
        ("quantize-weights", {"bits": 3},
         "quantize-weights: option bits=3: input should be 2, 4 or 8"),
        ("ternarize", {"scale": 2},
         "ternarize: unknown option 'scale'. Did you mean 'scales' or 'samples' or 'include'? It takes: include, "
         "exclude, method, sensitive, samples, sweeps, scales"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        get_pass(name)(**options)


def test_without_data_it_says_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"^ternarize: needs calibration data and none was given\."):
        get_pass("ternarize")().run(net(), Context())


# With integers for activations.


@_ANY
def test_integer_activations_keep_the_few_bits(
    name: str, options: dict[str, Any], kind: type[Encoded], label: str
) -> None:
    model = net()
    _encode(name, model, **options)
    context = Context(load_target("x86-vnni").constraints, data_of(model))
    rewrites = get_pass("quantize-int8")(placement="all", tail="int8").run(model, context)
    quantized = {site.name for site in rewrites.sites}
    assert {"grouped", "branch"} <= quantized
    for layer in ("grouped", "branch"):
        encoded = _encoding(model, layer)
        assert isinstance(encoded, Levels) or (isinstance(encoded, Affine) and encoded.bits == int(label[-1]))
        if isinstance(encoded, Levels):
            assert encoded.table.shape[1] <= 16
    expected = run(net(), _feeds())[0]
    before = run(model, _feeds())[0]
    load_target("x86-vnni").lower(model)
    verify(model)
    got = run(model, _feeds())[0]
    # Integers add to the error of the few bits what 8 bits of activations cost: about 35 dB here.
    assert relative_error(before, got) < 3e-3
    assert relative_error(expected, got) < relative_error(expected, before) + 0.02


def test_blocks_of_inputs_become_eight_bits_beside_integers_and_it_says_so() -> None:
    constants = {"w": np.random.default_rng(0).standard_normal((16, 64)), "v": np.random.default_rng(1).random((16, 9))}
    body = "[first] h = Gemm <transB = 1> (x, w)\n [out] out = MatMul (h, v)"
    model = model_of(body, constants, inputs="float[N, 64] x")
    _encode("quantize-weights", model, block=16, sensitive="same", include=["first"])
    context = Context(load_target("x86-vnni").constraints, data_of(model))
    rewrites = get_pass("quantize-int8")(placement="all", tail="int8").run(model, context)
    assert _encoding(model, "first").label == "affine8"
    detail = next(site.detail for site in rewrites.sites if site.name == "first")
    assert detail.endswith(
        "; its affine4 weight became affine8, as integer kernels take one scale for an output channel and no blocks or "
        "groups of inputs"
    )


# Generated graphs.


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_generated_layers_are_encoded_or_declined_and_lowered_exactly(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2]))
    op = data.draw(st.sampled_from(["Conv", "ConvTranspose"]))
    kernel = data.draw(st.sampled_from([(1, 1), (3, 1), (2, 3)]))
    out = data.draw(st.sampled_from([8, 12]))
    bias = data.draw(st.booleans())
    name, options, _, _ = data.draw(st.sampled_from(PASSES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = (8, out // groups, *kernel) if op == "ConvTranspose" else (out, 8 // groups, *kernel)
    constants = {"w": rng.standard_normal(shape), **({"b": rng.standard_normal(out)} if bias else {})}
    body = f"[one] out = {op} <group = {groups}> (x, w{', b' if bias else ''})"
    model = model_of(body, constants, inputs="float[N, 8, 6, 5] x", out="N, M, H, V")
    before = load(model)
    rewrites = _encode(name, model, sensitive="same", **options)
    feeds = random_feeds(model)
    expected = run(before, feeds)[0]
    if not rewrites.modified:
        assert set(reasons(rewrites)) == {"one"}
        np.testing.assert_array_equal(run(model, feeds)[0], expected)
        return
    encoded = run(model, feeds)[0]
    load_target("x86-vnni").lower(model)
    verify(model)
    np.testing.assert_allclose(run(model, feeds)[0], encoded, rtol=0, atol=48 * 2.0**-23 * 8 * np.abs(encoded).max())
    assert relative_error(expected, encoded) < 0.75
