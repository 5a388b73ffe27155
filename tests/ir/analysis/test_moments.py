"""Moments: equal to numpy's brute force, for every geometry that onnxruntime takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis import moments as moments_module
from onnxpress.ir.analysis.moments import Moments, MomentsSum, collect, gram_bytes
from onnxpress.ir.analysis.patches import Patches, why_no_patches
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.ir.linear import Linear, linear_ops
from onnxpress.ir.model_io import load, to_proto_bytes
from tests.support import Array, run, text_model


def _operator(op: str, x: str, attributes: str, weight: Array, bias: Array | None) -> onnx_ir.Model:
    """A model of one operator, with its weight and bias."""
    model = text_model(
        f'<ir_version: 8, opset_import: ["": 17]> net ({x} x) => (float y) '
        f"{{ [op] y = {op} {f'<{attributes}>' if attributes else ''} (x, x{', x' if bias is not None else ''}) }}"
    )
    node = next(iter(model.graph))
    for index, array in enumerate((weight, bias), start=1):
        if array is not None:
            name = "wb"[index - 1]
            value = onnx_ir.val(name, const_value=onnx_ir.tensor(array.astype(np.float32), name=name))
            model.graph.register_initializer(value)
            node.replace_input_with(index, value)
    model.graph.outputs[0].shape = None
    return model


def _columns(view: Linear, x: Array, y: Array, **options: Any) -> tuple[Array, Array]:
    """Every column [groups, K, n] in the weight's order, and the outputs [out, n] there."""
    patches = Patches(view, **options)
    pieces = list(patches.cut(x, [y], samples=len(x), first=0))
    columns = np.concatenate([columns for columns, _ in pieces], axis=2)
    return columns[:, patches.weight_order], np.concatenate([targets[0] for _, targets in pieces], axis=1)


def _apply(view: Linear, columns: Array) -> Array:
    rows = np.asarray(view.weight()).reshape(view.groups, -1, columns.shape[1])
    product: Array = (rows @ columns).reshape(view.out_channels, -1)
    bias = view.bias()
    return product if bias is None else product + bias[:, None]


# Geometry: the weight times the columns is what onnxruntime computes.


@st.composite
def _spatial_cases(draw: st.DrawFn) -> tuple[onnx_ir.Model, Array]:
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    rank = draw(st.integers(1, 2))
    groups, share_in, share_out = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel, strides, dilations, extents = each(1, 3), each(1, 3), each(1, 2), each(3, 6)
    attributes: dict[str, object] = {
        "group": groups,
        "strides": strides,
        "dilations": dilations,
        "kernel_shape": kernel,
    }
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto_pad != "NOTSET":
        attributes["auto_pad"] = f'"{auto_pad}"'
    else:
        attributes["pads"] = each(0, 3) + each(0, 3)
    if op == "ConvTranspose":
        output_padding = [draw(st.integers(0, stride - 1)) for stride in strides]
        attributes["output_padding"] = output_padding
        assume(auto_pad == "NOTSET" or not any(output_padding))
        if auto_pad.startswith("SAME"):
            assume(all(size >= stride for size, stride in zip(kernel, strides, strict=True)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = [groups * share_out, share_in, *kernel]
    if op == "ConvTranspose":
        shape = [groups * share_in, share_out, *kernel]
    bias = rng.standard_normal(groups * share_out) if draw(st.booleans()) else None
    dims = ", ".join(["N", str(groups * share_in), *map(str, extents)])
    text = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    model = _operator(op, f"float[{dims}]", text, rng.standard_normal(shape), bias)
    return model, rng.standard_normal([2, groups * share_in, *extents]).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(_spatial_cases())
def test_columns_times_weight_are_the_convolution(case: tuple[onnx_ir.Model, Array]) -> None:
    model, x = case
    (view,) = linear_ops(model)
    try:
        (y,) = run(model, {"x": x})
    except Exception:  # a kernel that reaches beyond the padded input
        assume(False)
        raise
    assume(y.size > 0)
    columns, targets = _columns(view, x, y)
    assert columns.dtype == np.float32 and columns.shape[2] == len(x) * math.prod(y.shape[2:])
    np.testing.assert_allclose(_apply(view, columns), targets, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "x", "attributes", "weight", "shape"),
    [
        ("Gemm", "float[N, 6]", "", (6, 4), (5, 6)),
        ("Gemm", "float[N, 6]", "transB = 1", (4, 6), (5, 6)),
        ("MatMul", "float[N, 3, 6]", "", (6, 4), (5, 3, 6)),
        ("MatMul", "float[N, 2, 3, 6]", "", (6, 4), (5, 2, 3, 6)),
        ("MatMul", "float[N]", "", (6, 4), (6,)),
    ],
)
def test_columns_of_gemm_and_matmul(
    op: str, x: str, attributes: str, weight: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(4) if op == "Gemm" else None
    model = _operator(op, x, attributes, rng.standard_normal(weight), bias)
    (view,) = linear_ops(model)
    data = rng.standard_normal(shape).astype(np.float32)
    (y,) = run(model, {"x": data})
    columns, targets = _columns(view, data, y)
    assert columns.shape == (1, 6, math.prod(shape) // 6)
    np.testing.assert_allclose(_apply(view, columns), targets, rtol=1e-5, atol=1e-5)


def test_columns_of_a_weight_on_the_left() -> None:
    model = text_model(
        '<ir_version: 8, opset_import: ["": 17]> net (float[N, 6, 3] x) => (float[N, 4, 3] y) '
        "{ [op] y = MatMul (x, x) }"
    )
    weight = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    value = onnx_ir.val("w", const_value=onnx_ir.tensor(weight, name="w"))
    model.graph.register_initializer(value)
    next(iter(model.graph)).replace_input_with(0, value)
    (view,) = linear_ops(model)
    x = np.random.default_rng(1).standard_normal((5, 6, 3)).astype(np.float32)
    columns, targets = _columns(view, x, run(model, {"x": x})[0])
    assert columns.shape == (1, 6, 15)
    np.testing.assert_allclose(_apply(view, columns), targets, rtol=1e-5, atol=1e-5)


def test_a_transposed_convolution_with_its_own_output_shape_is_declined() -> None:
    weight = np.ones((2, 2, 3), np.float32)
    model = _operator("ConvTranspose", "float[N, 2, 5]", "output_shape = [6]", weight, None)
    (view,) = linear_ops(model)
    reason = "its output_shape attribute leaves the padding to the operator"
    assert why_no_patches(view) == reason
    with pytest.raises(UsageError, match=rf"^moments: node 'op' \(ConvTranspose\): {reason}$"):
        MomentsSum(view)


def test_a_draw_takes_the_same_positions_whatever_the_batches() -> None:
    model, x = _conv_net()
    (view, _) = linear_ops(model)
    y = _value(model, "h", x)
    whole, wanted = _columns(view, x, y, positions=4, seed=3)
    assert whole.shape[2] == 4 * len(x)
    np.testing.assert_allclose(_apply(view, whole), wanted, rtol=1e-4, atol=1e-4)
    patches = Patches(view, positions=4, seed=3)
    parts = [next(patches.cut(x[start : start + 3], [], samples=3, first=start))[0] for start in range(0, len(x), 3)]
    assert np.array_equal(np.concatenate(parts, axis=2)[:, patches.weight_order], whole)
    other, _ = _columns(view, x, y, positions=4, seed=4)
    assert not np.array_equal(other, whole)


# Moments.


def _conv_net() -> tuple[onnx_ir.Model, Array]:
    """Two convolutions, the second grouped, and 12 samples."""
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 5, 7] x) => (float[N, 4, 3, 4] out)
        { [first] h = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, x, x)
          r = Relu (h)
          [second] out = Conv <pads = [1, 0, 1, 0], group = 2, kernel_shape = [3, 1]> (r, r) }
        """
    )
    rng = np.random.default_rng(0)
    nodes = {node.name: node for node in model.graph}
    for name, node, index, shape in (
        ("w1", "first", 1, (4, 3, 3, 3)),
        ("b1", "first", 2, (4,)),
        ("w2", "second", 1, (4, 2, 3, 1)),
    ):
        array = rng.standard_normal(shape).astype(np.float32)
        value = onnx_ir.val(name, const_value=onnx_ir.tensor(array, name=name))
        model.graph.register_initializer(value)
        nodes[node].replace_input_with(index, value)
    return load(model), rng.standard_normal((12, 3, 5, 7)).astype(np.float32)


def _value(model: onnx_ir.Model, name: str, x: Array) -> Array:
    from onnxpress.ir.analysis.execute import Session

    return Session(model, outputs=[name]).run({"x": x})[name]


def _brute(x: Array, pads: Sequence[int], strides: Sequence[int], kernel: Sequence[int], groups: int) -> Array:
    """Columns [groups, K, n] float64 of a 2-D convolution, written out position by position."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))).astype(np.float64)
    share = x.shape[1] // groups
    columns = []
    for sample in padded:
        for row in range(0, sample.shape[1] - kernel[0] + 1, strides[0]):
            for column in range(0, sample.shape[2] - kernel[1] + 1, strides[1]):
                patch = sample[:, row : row + kernel[0], column : column + kernel[1]]
                columns.append(patch.reshape(groups, share * kernel[0] * kernel[1]))
    return np.stack(columns, axis=2)


def _check(found: Moments, columns: Array, target: Array | None = None) -> None:
    count = columns.shape[2]
    assert found.count == count
    np.testing.assert_allclose(found.mean, columns.mean(axis=2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gram, columns @ columns.transpose(0, 2, 1) / count, rtol=1e-5, atol=1e-5)
    if target is not None:
        assert found.cross is not None and found.target_mean is not None and found.target_energy is not None
        grouped = target.reshape(len(columns), -1, count)
        np.testing.assert_allclose(found.cross, grouped @ columns.transpose(0, 2, 1) / count, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.target_mean, target.mean(axis=1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.target_energy, (target**2).mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_moments_of_a_net_are_those_of_brute_force(batch_bytes: int) -> None:
    model, x = _conv_net()
    before = to_proto_bytes(model)
    layers = list(linear_ops(model))
    found = collect(model, layers, open_data({"x": x}, model=model), positions=None, limit_bytes=batch_bytes)
    assert list(found) == ["first", "second"] and to_proto_bytes(model) == before
    _check(found["first"], _brute(x, (1, 1, 1, 1), (2, 2), (3, 3), 1))
    _check(found["second"], _brute(np.maximum(_value(model, "h", x), 0), (1, 0, 1, 0), (1, 1), (3, 1), 2))


def test_cross_moments_take_targets_of_the_reference() -> None:
    reference, x = _conv_net()
    model, _ = _conv_net()
    (first, second) = linear_ops(model)
    first.weight_value.const_value = onnx_ir.tensor(np.round(first.weight()), name="w1")
    data = open_data({"x": x}, model=model)
    found = collect(model, [first, second], data, reference=reference, positions=None)
    target = np.moveaxis(_value(reference, "out", x), 1, 0).reshape(4, -1).astype(np.float64)
    columns = _brute(np.maximum(_value(model, "h", x), 0), (1, 0, 1, 0), (1, 1), (3, 1), 2)
    _check(found["second"], columns, target)
    error = np.square(_apply(second, columns) - target)
    assert found["second"].squared_errors(second.weight()) == pytest.approx(error.mean(axis=1), rel=1e-4)
    assert found["second"].error_of(second.weight()) == pytest.approx(error.sum() / np.square(target).sum(), rel=1e-4)
    some = collect(model, [second], data, reference=reference, positions=None, kept={"second": [3, 1]})
    assert some["second"].target_mean == pytest.approx(target.mean(axis=1)[[3, 1]], rel=1e-4)


def test_a_target_can_be_corrected() -> None:
    model, x = _conv_net()
    (first, _) = linear_ops(model)
    y = _value(model, "h", x)
    total = MomentsSum(first)
    total.add(x, y, samples=len(x), correction=(2 * y, y))
    found = total.result()
    assert found.target_mean == pytest.approx(2 * y.mean(axis=(0, 2, 3)), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_the_error_of_any_weight_follows_from_the_moments(
    groups: int, width: int, outs: int, biased: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((groups, width, 50)) + 0.5
    weight, other = rng.standard_normal((2, groups * outs, width))
    bias, other_bias = rng.standard_normal((2, groups * outs)) if biased else (None, None)

    def outputs(rows: Array, offset: Array | None) -> Array:
        product = (rows.reshape(groups, outs, width) @ columns).reshape(groups * outs, -1)
        return np.asarray(product if offset is None else product + offset[:, None])

    target = outputs(weight, bias)
    plain = Moments(50, columns.mean(axis=2), columns @ columns.transpose(0, 2, 1) / 50)
    found = plain.with_target(weight, bias)
    _check(found, columns, target)
    error = np.square(outputs(other, other_bias) - target)
    assert found.squared_errors(other, other_bias) == pytest.approx(error.mean(axis=1), rel=1e-6, abs=1e-9)
    assert found.error_of(other, other_bias) == pytest.approx(error.sum() / np.square(target).sum(), rel=1e-6, abs=1e-9)
    assert found.error_of(weight, bias) == pytest.approx(0, abs=1e-12)
    centred = columns - columns.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(found.covariance(), centred @ centred.transpose(0, 2, 1) / 50, atol=1e-9)
    wanted = (target - target.mean(axis=1, keepdims=True)).reshape(groups, outs, -1)
    np.testing.assert_allclose(found.cross_covariance(), wanted @ centred.transpose(0, 2, 1) / 50, atol=1e-9)
    _check(found.shift_target(other[:, 0]), columns, target + other[:, :1])
    kept = rng.permutation(width)[: max(1, width - 1)]
    _check(found.keep_inputs(kept), columns[:, kept], target)


def test_input_channels_keep_their_kernel_positions() -> None:
    columns = np.random.default_rng(0).standard_normal((2, 3 * 4, 30))
    found = Moments(30, columns.mean(axis=2), columns @ columns.transpose(0, 2, 1) / 30)
    alike = found.keep_input_channels([2, 0], 4)
    _check(alike, columns[:, [8, 9, 10, 11, 0, 1, 2, 3]])
    apart = found.keep_input_channels([[2], [1]], 4)
    _check(apart, np.stack([columns[0, 8:], columns[1, 4:8]]))


def test_layers_with_equal_columns_share_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 6] x) => (float[N, 6] q, float[N, 6] k)
        { [q] q = MatMul (x, x)  [k] k = MatMul (x, x) }
        """
    )
    for node in model.graph:
        value = onnx_ir.val(f"w_{node.name}", const_value=onnx_ir.tensor(np.eye(6, dtype=np.float32)))
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)
    model = load(model)
    added: list[object] = []
    add = MomentsSum.add

    def note(self: MomentsSum, data: Array, target: Array | None = None, *, samples: int) -> None:
        added.append(self)
        add(self, data, target, samples=samples)

    monkeypatch.setattr(MomentsSum, "add", note)
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    found = collect(model, list(linear_ops(model)), open_data({"x": x}, model=model))
    assert len(added) == 1 and found["q"] is found["k"]


def test_large_grams_take_several_passes_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _conv_net()
    layers, data = list(linear_ops(model)), open_data({"x": x}, model=model)
    assert [gram_bytes(layer) for layer in layers] == [27 * 27 * 8, 2 * 6 * 6 * 8]
    passes: list[int] = []
    stream = moments_module._Collection.stream

    def note(self: moments_module._Collection, *args: Any) -> None:
        passes.append(len(self._layers))
        stream(self, *args)

    monkeypatch.setattr(moments_module._Collection, "stream", note)
    whole = collect(model, layers, data)
    apart = collect(model, layers, data, gram_limit_bytes=6000)
    assert passes == [2, 1, 1]
    first, second = layers
    assert [len(part) for part in moments_module.parts_within([first, second, second], gram_bytes, 6000)] == [1, 2]
    assert all(np.array_equal(whole[name].gram, apart[name].gram) for name in whole)


def test_memory_follows_the_gram_and_not_the_data() -> None:
    import tracemalloc

    weight = np.zeros((1, 64), np.float32)
    model = _operator("Gemm", "float[N, 64]", "transB = 1", weight, None)
    (view,) = linear_ops(model)
    total = MomentsSum(view)
    data = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    total.add(data, samples=2000)
    tracemalloc.start()
    for _ in range(50):
        total.add(data, samples=2000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total.result().count == 51 * 2000
    assert held < 64 << 10 and peak < 3 * data.nbytes


def test_equal_runs_give_equal_bits() -> None:
    model, x = _conv_net()
    layers, data = list(linear_ops(model)), open_data({"x": x}, model=model)
    one, two = (collect(model, layers, data, positions=3, seed=5) for _ in range(2))
    assert all(np.array_equal(one[name].gram, two[name].gram) for name in one)


# Mistakes.


def test_samples_that_turn_infinite_are_an_error() -> None:
    model, x = _conv_net()
    x[3] = 3e38
    (_, second) = linear_ops(model)
    with pytest.raises(InputError) as caught:
        collect(model, [second], open_data({"x": x}, model=model))
    assert str(caught.value) == (
        "moments: the input of node 'second' (Conv) turns NaN or infinite on the calibration data. "
        "Check the samples' preprocessing"
    )


def test_a_node_that_the_reference_lacks_is_an_error() -> None:
    model, x = _conv_net()
    reference, _ = _conv_net()
    next(iter(reference.graph)).name = "renamed"
    with pytest.raises(UsageError, match=r"^moments: the reference has no linear operator 'first' in its main graph$"):
        collect(model, list(linear_ops(model)), open_data({"x": x}, model=model), reference=reference)


def test_names_must_tell_layers_apart() -> None:
    model, x = _conv_net()
    for node in model.graph:
        node.name = "same"
    with pytest.raises(
        UsageError, match=r"^moments: node name 'same' is not unique\. Give every node a name of its own$"
    ):
        collect(model, list(linear_ops(model)), open_data({"x": x}, model=model))


def test_arrays_that_do_not_fit_are_an_error() -> None:
    model, x = _conv_net()
    (first, _) = linear_ops(model)
    total = MomentsSum(first)
    with pytest.raises(InputError) as caught:
        total.add(x[:, :2], samples=len(x))
    assert str(caught.value) == ("moments: node 'first' (Conv): the activation [12, 2, 5, 7] does not have 3 channels")
    with pytest.raises(InputError, match=r"^moments: node 'first' \(Conv\) got no data$"):
        MomentsSum(first).result()
