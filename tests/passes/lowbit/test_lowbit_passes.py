"""The passes to low-bit weights: what each makes of a network, what it declines and why."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir import encodings
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.data import DataSource
from onnxpress.ir.encodings import Affine, Binary, Codebook, Encoded, Levels, Sparse, Ternary, encoding_of
from onnxpress.ir.encodings.integer_grid import integer_table
from onnxpress.ir.errors import BudgetError, UsageError
from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes import layer_moments
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.cleanup.graph_edits import set_bias
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.lowbit.alphabet import Alphabet
from onnxpress.passes.lowbit.fit import fit_codes
from onnxpress.passes.lowbit.quantize_weights import half_quadratic
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
_W, _V = (np.random.default_rng(seed).standard_normal(shape) for seed, shape in ((5, (8, 4, 3, 3)), (6, (8, 8, 3, 3))))


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


def test_zeros_of_pruned_weights_have_no_say_in_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def recorded(target: Any, gram: Any, alphabet: Alphabet, mask: Any = None) -> Any:
        starts.append((alphabet.levels(), mask))
        return fit_codes(target, gram, alphabet, mask)

    monkeypatch.setattr("onnxpress.passes.lowbit.sites.fit_codes", recorded)
    model = net()
    prune("prune-weights", model, ratio=0.6, method="magnitude")
    _encode("palettize", model, bits=2, method="rtn")
    masked = [levels for levels, mask in starts if mask is not None and len(levels) == 1]
    assert len(masked) == 3 and all((np.abs(levels) > 1e-3).all() for levels in masked)


@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
@pytest.mark.parametrize("name", ["ternarize", "power-of-two", "palettize", "binarize", "quantize-weights"])
def test_the_unit_of_the_weights_makes_no_difference(name: str, unit: float) -> None:
    """Weights of about 1e-30 and 1e30 are as far off, relative to their size, as those of 1."""
    errors = []
    for factor in (1.0, unit):
        w = (_W * factor).astype(np.float32)
        model = model_of("[one] out = Conv (x, w)", {"w": w}, out="N, M, H, V")
        _encode(name, model, method="rtn", sensitive="same")
        errors.append(relative_error(w / np.float32(factor), _encoding(model, "one").dense() / np.float32(factor)))
    assert errors[1] == pytest.approx(errors[0], rel=0.2)


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


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_half_quadratic_scales_follow_the_unit_of_the_weights(unit: float) -> None:
    rows = np.random.default_rng(2).standard_normal((6, 40))
    start = Alphabet(np.arange(-7.0, 8.0)[:, None], np.abs(rows).max(axis=1, keepdims=True) / 7)
    plain = half_quadratic(rows, start)
    scaled = half_quadratic(unit * rows, dataclasses.replace(start, parameters=unit * start.parameters))
    np.testing.assert_allclose(scaled.parameters, unit * plain.parameters, rtol=1e-6)
    assert np.abs(plain.parameters / start.parameters - 1).max() > 0.02  # and they do move


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


def test_a_second_run_with_bytes_finds_nothing() -> None:
    model = net()
    _encode("palettize", model, bytes=0.25)
    again = _encode("palettize", model, bytes=0.25)
    assert not again.modified and "already encoded" in reasons(again)["branch"]


def test_weights_of_constant_nodes_count_as_others() -> None:
    model = net()
    value = model.graph.initializers["w3"]
    node = onnx_ir.node("Constant", [], {"value": value.const_value})
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "w3_node", value.type, value.shape
    model.graph.insert_before(next(iter(model.graph)), node)
    layer_of(model, "branch").node.replace_input_with(1, node.outputs[0])
    del model.graph.initializers["w3"]
    whole = cost(model).weight_bytes
    _encode("palettize", model, bytes=0.24)
    assert cost(model).weight_bytes <= 0.24 * whole


# What the record says.


@pytest.mark.parametrize("sweeps", [1, 2])
def test_recorded_errors_are_those_of_the_outputs(sweeps: int) -> None:
    """Against the original, with the layers before as they became; the data is that of the fit, whole."""
    model = model_of(
        "[one] h = Conv (x, w)\n r = Relu (h)\n [two] out = Conv (r, v)", {"w": _W, "v": _V}, out="N, M, H, V"
    )
    original = load(model)
    rewrites = _encode("ternarize", model, sensitive="same", sweeps=sweeps)
    recorded = next(site.error["sqnr_db"] for site in rewrites.sites if site.name == "two")
    (batch,) = data_of(model).batches(48)
    expected, got = (run(each, dict(batch.feeds))[0] for each in (original, model))
    assert recorded == pytest.approx(-10 * np.log10(relative_error(expected, got)), abs=0.05)


def test_later_sweeps_take_what_a_relu_clips_for_right(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = layer_moments.layer_moments

    def recorded(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("rectified", False))
        return real(*arguments, **options)

    monkeypatch.setattr("onnxpress.passes.lowbit.sites.layer_moments", recorded)
    _encode("ternarize", net(), sweeps=3)
    assert asked == [False, True, True, False]  # the last one measures


# What is declined, and why.


def _one(body: str, constants: dict[str, Array], **options: Any) -> tuple[onnx_ir.Model, dict[str, str]]:
    model = model_of(body, constants, out="N, M, H, V")
    before = to_proto_bytes(model)
    rewrites = _encode("ternarize", model, sensitive="same", **options)
    assert not rewrites.modified and to_proto_bytes(model) == before
    return model, reasons(rewrites)


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


_HALF = "[cast] y = Cast <to = 10> (x)\n [one] z = Conv (y, w)\n [back] out = Cast <to = 1> (z)"
_BRANCH = """[one] out = If (flag) <
    then_branch = t () => (float[N, M, H, V] a) { [inner] a = Conv (x, w) },
    else_branch = e () => (float[N, M, H, V] c) { [other] c = Conv (x, w) }>"""


def test_types_bodies_and_shapes_that_are_not_legal_are_declined() -> None:
    _, found = _one(_HALF, {"w": _W.astype(np.float16)})
    assert found["one"] == "weight 'w' is FLOAT16, and only FLOAT is encoded"
    inside = "inside a subgraph body: its input has no statistics, and its weight may belong to the outer graph"
    model = model_of(_BRANCH, {"w": _W}, inputs="float[N, 4, 5, 7] x, bool flag", out="N, M, H, V")
    rewrites = get_pass("ternarize")(method="rtn").run(model, Context())
    assert not rewrites.modified and reasons(rewrites) == {"inner": inside, "other": inside}
    shaped = "[one] out = ConvTranspose <output_shape = [7, 9]> (x, w)"
    _, found = _one(shaped, {"w": np.random.default_rng(8).standard_normal((4, 8, 3, 3))})
    assert found["one"] == "its output_shape attribute leaves the padding to the operator"


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
    model = net()
    rewrites = get_pass("ternarize")().run(model, Context(Constraints("toy", encodings=("ternary",)), data_of(model)))
    assert {site.name for site in rewrites.sites} == set(_BETWEEN)
    assert reasons(rewrites)["stem"] == "a first layer, and toy stores no affine8 weights"
    model = net()
    context = Context(Constraints("toy", encodings=("affine8", "affine2")), data_of(model))
    get_pass("quantize-weights")(bytes=0.5).run(model, context)
    assert {_encoding(model, layer).label for layer in _BETWEEN} <= {"affine8", "affine2"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("palettize", {"bits": 4, "bytes": 0.1}, "palettize: bits=4 and bytes=0.1 are given: give one of them"),
        ("palettize", {"bits": 9}, "palettize: option bits=9: input should be less than or equal to 8"),
        ("quantize-weights", {"bits": 3},
         "quantize-weights: option bits=3: input should be 2, 4 or 8"),
        ("palettize", {"method": "hqq"}, "palettize: option method='hqq': input should be 'gptq' or 'rtn'"),
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
        "; its affine4 weight became affine8: integer kernels take one scale for an output channel, and no blocks or "
        "groups of inputs"
    )


def test_a_layer_that_stays_float_does_so_whatever_its_weight_is() -> None:
    model = net()
    _encode("ternarize", model)
    context = Context(load_target("x86-vnni").constraints, data_of(model))
    get_pass("quantize-int8")(placement="all", tail="int8", exclude=["branch"]).run(model, context)
    load_target("x86-vnni").lower(model)
    assert "branch" not in _run_in_integers(model) and "grouped" in _run_in_integers(model)


def _run_in_integers(model: onnx_ir.Model) -> set[str]:
    """Return the layers whose weight is made of integers by a DequantizeLinear."""
    linear = [node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    producers = {node.name or "": node.inputs[1].producer() for node in linear if node.inputs[1] is not None}
    return {name for name, node in producers.items() if node is not None and node.op_type == "DequantizeLinear"}


def test_levels_keep_the_sums_of_pairs_where_kernels_add_in_16_bits() -> None:
    model = net()
    _encode("palettize", model, bits=3)
    constraints = load_target("x86-avx2").constraints
    limit = constraints.quantization.weight_pair_limit
    assert limit is not None
    get_pass("quantize-int8")(placement="all").run(model, Context(constraints, data_of(model)))
    for layer in ("grouped", "branch"):
        table = integer_table(_encoding(model, layer), 0)
        assert table is not None and 2 * np.abs(table.table.astype(np.int64)).max() <= limit


def test_a_bias_beyond_32_bits_at_a_tiny_scale_takes_eight_bits() -> None:
    model = net()
    w3 = weights()["w3"].astype(np.float32)
    w3[0] = 1e-9 * np.sign(w3[0])
    model.graph.initializers["w3"].const_value = onnx_ir.tensor(w3, name="w3")
    _encode("ternarize", model, method="rtn")
    set_bias(layer_of(model, "branch").node, np.full(8, 100.0, np.float32), model, {"w3"})
    rewrites = get_pass("quantize-int8")(placement="all").run(
        model, Context(load_target("x86-vnni").constraints, data_of(model))
    )
    assert _encoding(model, "branch").label == "affine8"
    detail = next(site.detail for site in rewrites.sites if site.name == "branch")
    assert detail.endswith("its bias would overflow 32 bits at the scale of a channel that is almost zero")


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
