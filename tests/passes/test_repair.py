"""Repair: least squares against closed forms, and layer after layer against the original."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis.execute import Session
from onnxpress.ir.analysis.moments import Moments, collect
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import UsageError
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.ir.model_io import load
from onnxpress.passes.least_squares import least_squares
from onnxpress.passes.repair import refit_layer, repair_sequentially, write_parameters
from tests.support import Array, text_model


def _moments(columns: Array, target: Array) -> Moments:
    """Of columns [groups, K, n] and targets [out, n], float64."""
    count = columns.shape[2]
    return Moments(
        count,
        columns.mean(axis=2),
        columns @ columns.transpose(0, 2, 1) / count,
        target.reshape(len(columns), -1, count) @ columns.transpose(0, 2, 1) / count,
        target.mean(axis=1),
        np.square(target).mean(axis=1),
    )


# Least squares.


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 4), st.booleans(), st.integers(0, 99))
def test_a_known_weight_is_found_from_enough_samples(
    groups: int, width: int, outs: int, fit_bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((groups, width, 4 * width + 20)) + 0.7
    weight = rng.standard_normal((groups * outs, width))
    bias = rng.standard_normal(groups * outs)
    target = (weight.reshape(groups, outs, width) @ columns).reshape(groups * outs, -1) + bias[:, None]
    start, held = rng.standard_normal(weight.shape), None if fit_bias else bias
    found, offset = least_squares(_moments(columns, target), start, held, ridge=0.0, fit_bias=fit_bias)
    assert offset is not None and found.dtype == np.float64
    np.testing.assert_allclose(found, weight, atol=1e-7)
    np.testing.assert_allclose(offset, bias, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.sampled_from([1e-3, 0.1, 2.0]), st.booleans(), st.integers(0, 99))
def test_the_minimum_of_the_ridge_problem_is_found(
    groups: int, width: int, ridge: float, fit_bias: bool, seed: int
) -> None:
    """Written out as one stacked least squares problem over the samples."""
    rng = np.random.default_rng(seed)
    count = 30
    columns = rng.standard_normal((groups, width, count)) + 0.5
    target = rng.standard_normal((groups * 2, count))
    prior = rng.standard_normal((groups * 2, width))
    found, offset = least_squares(_moments(columns, target), prior, ridge=ridge, fit_bias=fit_bias)
    for group in range(groups):
        x, y, near = columns[group].T, target[2 * group : 2 * group + 2].T, prior[2 * group : 2 * group + 2].T
        means = (x.mean(axis=0), y.mean(axis=0)) if fit_bias else (np.zeros(width), np.zeros(2))
        x, y = x - means[0], y - means[1]
        damping = np.sqrt(ridge * np.square(x).sum() / width)
        expected = np.linalg.lstsq(
            np.concatenate([x, damping * np.eye(width)]), np.concatenate([y, damping * near]), rcond=None
        )[0].T
        np.testing.assert_allclose(found[2 * group : 2 * group + 2], expected, atol=1e-8)
        if fit_bias:
            assert offset is not None
            np.testing.assert_allclose(offset[2 * group : 2 * group + 2], means[1] - expected @ means[0], atol=1e-8)
    assert fit_bias or offset is None


def test_a_large_ridge_keeps_the_prior_and_its_bias_still_centres() -> None:
    rng = np.random.default_rng(0)
    columns, target = rng.standard_normal((1, 5, 40)) + 1, rng.standard_normal((3, 40)) + 2
    prior = rng.standard_normal((3, 5))
    found, offset = least_squares(_moments(columns, target), np.zeros((3, 5)), prior=prior, ridge=1e9)
    np.testing.assert_allclose(found, prior, atol=1e-6)
    assert offset is not None
    np.testing.assert_allclose(offset, target.mean(axis=1) - prior @ columns[0].mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("fit_bias", [True, False])
def test_a_singular_gram_moves_the_prior_no_further_than_needed(groups: int, fit_bias: bool) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((groups, 3, 60))
    columns = np.concatenate([base, base[:, :1], np.zeros((groups, 1, 60))], axis=1)  # a copy, and a dead input
    weight = rng.standard_normal((groups * 2, 5))
    target = (weight.reshape(groups, 2, 5) @ columns).reshape(groups * 2, -1)
    prior = rng.standard_normal((groups * 2, 5))
    moments = _moments(columns, target)
    found, offset = least_squares(moments, prior, ridge=0.0, fit_bias=fit_bias)
    assert moments.error_of(found, offset) < 1e-12
    np.testing.assert_allclose(found[:, 4], prior[:, 4], atol=1e-9)
    np.testing.assert_allclose((found - prior)[:, 0], (found - prior)[:, 3], atol=1e-6)  # shared out evenly


def test_inputs_that_are_all_zero_leave_the_weight_and_fit_the_bias() -> None:
    target = np.array([[1.0, 3.0]])
    weight, bias = least_squares(_moments(np.zeros((1, 4, 2)), target), np.ones((1, 4), np.float32))
    assert np.array_equal(weight, np.ones((1, 4))) and weight.dtype == np.float32
    assert bias is not None and bias.tolist() == [2.0]


def test_types_are_those_of_what_is_replaced() -> None:
    rng = np.random.default_rng(0)
    moments = _moments(rng.standard_normal((1, 18, 99)), rng.standard_normal((4, 99)))
    weight, bias = least_squares(moments, np.zeros((4, 2, 3, 3), np.float16), np.zeros(4, np.float32))
    assert weight.shape == (4, 2, 3, 3) and weight.dtype == np.float16
    assert bias is not None and bias.dtype == np.float32


# Writing.


def _initializer(model: onnx_ir.Model, name: str, array: Array) -> onnx_ir.Value:
    value = onnx_ir.val(name, const_value=onnx_ir.tensor(array.astype(np.float32), name=name))
    model.graph.register_initializer(value)
    return value


def _residual(seed: int = 0) -> onnx_ir.Model:
    """Two residual blocks on four channels, and a classifier. The second convolutions have no bias."""
    model = text_model(
        """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4, 6, 5] x) => (float[N, 3] out)
        { [a1] h1 = Conv <pads = [1, 1, 1, 1]> (x, x, x)
          r1 = Relu (h1)
          [a2] h2 = Conv <pads = [1, 1, 1, 1]> (r1, x)
          [add1] s1 = Add (h2, x)
          t1 = Relu (s1)
          [b1] h3 = Conv <pads = [1, 1, 1, 1]> (t1, x, x)
          r2 = Relu (h3)
          [b2] h4 = Conv <pads = [1, 1, 1, 1]> (r2, x)
          [add2] s2 = Add (t1, h4)
          t2 = Relu (s2)
          pooled = GlobalAveragePool (t2)
          flat = Flatten (pooled)
          [fc] out = Gemm <transB = 1> (flat, x, x) }
        """
    )
    rng = np.random.default_rng(seed)
    for node in model.graph:
        if node.name in ("a1", "a2", "b1", "b2", "fc"):
            out, width, kernel = (3, 4, []) if node.name == "fc" else (6, 4, [3, 3])
            if node.name in ("a2", "b2"):
                out, width = 4, 6
            scale = 1 / np.sqrt(width * 9)
            node.replace_input_with(
                1, _initializer(model, f"w_{node.name}", scale * rng.standard_normal((out, width, *kernel)))
            )
            if len(node.inputs) > 2:
                node.replace_input_with(2, _initializer(model, f"b_{node.name}", 0.1 * rng.standard_normal(out)))
    return load(model)


def _views(model: onnx_ir.Model) -> dict[str, Linear]:
    return {view.node.name or "": view for view in linear_ops(model)}


def _run(model: onnx_ir.Model, x: Array, value: str = "out") -> Array:
    return Session(model, outputs=[value]).run({"x": x})[value]


_X = np.random.default_rng(7).standard_normal((40, 4, 6, 5)).astype(np.float32)


def test_a_refit_writes_weight_and_bias_and_makes_one_where_there_was_none() -> None:
    reference, model = _residual(), _residual()
    view = _views(model)["a2"]
    write_parameters(view, view.weight() * np.float32(0.5), None)
    data = open_data({"x": _X}, model=model)
    moments = collect(model, [view], data, reference=reference, positions=None)["a2"]
    found = refit_layer(view, moments.shift_target(np.ones(4)), ridge=0.0)
    np.testing.assert_allclose(found.weight(), _views(reference)["a2"].weight(), atol=1e-3)
    bias = found.bias()
    assert bias is not None
    np.testing.assert_allclose(bias, np.ones(4), atol=1e-3)
    np.testing.assert_allclose(_run(model, _X, "h2"), _run(reference, _X, "h2") + 1, atol=1e-2)


def test_a_shared_constant_stays_for_the_others() -> None:
    model = _residual()
    views = _views(model)
    shared = views["b2"].weight_value
    views["a2"].node.replace_input_with(1, shared)
    before = np.array(views["b2"].weight())
    view = as_linear(views["a2"].node)
    assert isinstance(view, Linear)
    found = write_parameters(view, np.zeros_like(before), None)
    assert not np.any(found.weight()) and found.weight_value.name == "w_b2.2"
    assert np.array_equal(views["b2"].weight(), before)
    _run(model, _X)


def test_a_stored_layout_and_shape_are_kept_up() -> None:
    model = load(
        text_model(
            """
            <ir_version: 8, opset_import: ["": 17]>
            net (float[N, 2] x) => (float[N, 3] out)
            <float[2, 3] w = {1, 2, 3, 4, 5, 6}>
            { [fc] out = Gemm <beta = 0.5> (x, w) }
            """
        )
    )
    (view,) = linear_ops(model)
    found = write_parameters(view, np.arange(6, dtype=np.float32).reshape(3, 2), np.ones(3, np.float32))
    x = np.eye(2, dtype=np.float32)
    assert _run(model, x).tolist() == [[1, 3, 5], [2, 4, 6]]
    assert found.weight_value.shape == (2, 3) and found.bias_value is not None


# Layer after layer.


def _damage(model: onnx_ir.Model, names: list[str]) -> None:
    for name in names:
        view = _views(model)[name]
        write_parameters(view, (view.weight() * np.float32(0.6)).astype(np.float32), None)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("limit_bytes", [1, 1 << 20])
def test_damage_that_weights_can_undo_is_undone(cache_bytes: int, limit_bytes: int) -> None:
    reference, model = _residual(), _residual()
    _damage(model, ["a1", "b2", "fc"])
    data = open_data({"x": _X}, model=model)
    done = repair_sequentially(
        model, reference, data, ridge=1e-9, positions=None, cache_bytes=cache_bytes, limit_bytes=limit_bytes
    )
    assert [each.name for each in done] == ["a1", "a2", "b1", "b2", "fc"]
    assert all(each.after <= each.before for each in done) and done[0].before > 0.1 and done[0].after < 1e-6
    np.testing.assert_allclose(_run(model, _X), _run(reference, _X), atol=1e-3)


def _pruned() -> tuple[onnx_ir.Model, dict[str, list[int]]]:
    """The residual model without two inner channels of each block, and which are left."""
    model, left = _residual(), [0, 2, 3, 5]
    views = _views(model)
    for first, second in (("a1", "a2"), ("b1", "b2")):
        bias = views[first].bias()
        assert bias is not None
        ((relu, _),) = views[first].output.uses()
        for value in (views[first].output, relu.outputs[0]):
            value.shape = None
        write_parameters(views[first], views[first].weight()[left], bias[left])
        write_parameters(views[second], views[second].weight()[:, left], None)
    return model, {"a1": left, "b1": left}


def _distance(model: onnx_ir.Model, reference: onnx_ir.Model) -> float:
    return float(np.square(_run(model, _X) - _run(reference, _X)).mean())


def test_removed_channels_are_made_up_for_and_the_shortcut_correction_helps() -> None:
    reference = _residual()
    distances = {}
    for name, residual in {"none": None, "plain": False, "corrected": True}.items():
        model, kept = _pruned()
        if residual is not None:
            done = repair_sequentially(
                model, reference, open_data({"x": _X}, model=model), kept=kept, positions=None, residual=residual
            )
            # The first block's shortcut is the input, the second's was damaged by the first block.
            assert [each.name for each in done if each.corrected] == (["a2", "b2"] if residual else [])
        distances[name] = _distance(model, reference)
    assert distances["corrected"] < distances["plain"] < distances["none"] / 3


def test_a_step_fits_what_moments_of_that_moment_say() -> None:
    """Step by step through `collect` on the partly repaired model: the same weights."""
    reference = _residual()
    model, kept = _pruned()
    data = open_data({"x": _X}, model=model)
    repair_sequentially(model, reference, data, kept=kept, residual=False, positions=7, seed=3)
    other, _ = _pruned()
    for name in ("a1", "a2", "b1", "b2", "fc"):
        view = _views(other)[name]
        moments = collect(other, [view], data, reference=reference, kept=kept, positions=7, seed=3)
        refit_layer(view, moments[name])
    for name, view in _views(model).items():
        np.testing.assert_allclose(view.weight(), _views(other)[name].weight(), atol=1e-4)


def test_two_branches_that_meet_are_corrected_once_and_last() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x) => (float[N, 4] out)
        { [left] l = MatMul (x, x)  [right] r = MatMul (x, x)  [add] out = Add (l, r) }
    """
    models = []
    for scale in (1.0, 0.5):
        model = text_model(text)
        for node in model.graph:
            if node.op_type == "MatMul":
                node.replace_input_with(1, _initializer(model, f"w_{node.name}", scale * np.eye(4)))
        models.append(load(model))
    reference, model = models
    x = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    data = open_data({"x": x}, model=model)
    only_right = [_views(model)["right"]]
    (done,) = repair_sequentially(model, reference, data, only_right, ridge=1e-9)
    assert done.corrected and np.allclose(_run(model, x), 2 * x, atol=1e-3)  # it carries what the left one lost, too
    done_twice = repair_sequentially(model, reference, data, ridge=1e-9)
    assert [each.corrected for each in done_twice] == [False, True]


def test_a_limit_behind_a_second_shortcut_is_not_the_layers_own() -> None:
    """Relu(l + s1 + s2): with s2 far above 0 nothing is clipped, whatever l + s1 is."""
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 4] x, float[N, 4] s1, float[N, 4] s2) => (float[N, 4] out)
        { [mm] l = MatMul (x, x)  [one] a = Add (l, s1)  [two] b = Add (a, s2)  [relu] out = Relu (b) }
    """
    models = []
    for scale in (1.0, 0.5):
        model = text_model(text)
        next(iter(model.graph)).replace_input_with(1, _initializer(model, "w", scale * np.eye(4)))
        models.append(load(model))
    reference, model = models
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((40, 4)).astype(np.float32) + (10 if name == "s2" else 0)
        for name in ("x", "s1", "s2")
    }
    for _ in range(2):
        (done,) = repair_sequentially(model, reference, open_data(feeds, model=model), rectified=True, ridge=1e-9)
    assert done.after < 1e-6
    np.testing.assert_allclose(_views(model)["mm"].weight(), np.eye(4), atol=1e-3)


def test_a_matmul_puts_its_bias_into_the_add_behind_it() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        net (float[N, 5, 4] x) => (float[N, 5, 2] out)
        <float[4, 2] w = {1, 0, 0, 1, 1, 0, 0, 1}, float[2] b = {1, 2}>
        { [mm] y = MatMul (x, w)  [add] out = Add (y, b) }
    """
    reference, model = load(text_model(text)), load(text_model(text))
    write_parameters(_views(model)["mm"], np.zeros((2, 4), np.float32), None)
    x = np.random.default_rng(0).standard_normal((9, 5, 4)).astype(np.float32) + 1
    repair_sequentially(model, reference, open_data({"x": x}, model=model), ridge=1e9, positions=None)
    out, expected = _run(model, x), _run(reference, x)
    np.testing.assert_allclose(out.mean(axis=(0, 1)), expected.mean(axis=(0, 1)), atol=1e-4)
    repair_sequentially(model, reference, open_data({"x": x}, model=model), ridge=1e-9, positions=None)
    np.testing.assert_allclose(_run(model, x), expected, atol=1e-3)


def test_a_model_without_damage_is_left_as_it_is_but_for_rounding() -> None:
    reference, model = _residual(), _residual()
    done = repair_sequentially(model, reference, open_data({"x": _X}, model=model))
    assert max(each.after for each in done) < 1e-6
    np.testing.assert_allclose(_run(model, _X), _run(reference, _X), atol=1e-4)


# Mistakes.


def test_channels_that_went_unannounced_are_an_error() -> None:
    model, _ = _pruned()
    with pytest.raises(UsageError) as caught:
        repair_sequentially(model, _residual(), open_data({"x": _X}, model=model))
    assert str(caught.value) == (
        "repair: node 'a1' has 4 output channels and its original 6. Say in `kept` which are left"
    )


def test_a_layer_that_the_reference_lacks_is_an_error() -> None:
    model, reference = _residual(), _residual()
    next(iter(reference.graph)).name = "renamed"
    layers = [_views(model)["a1"]]
    with pytest.raises(UsageError, match=r"^repair: the reference has no node 'a1' in its main graph$"):
        repair_sequentially(model, reference, open_data({"x": _X}, model=model), layers)
    assert [each.name for each in repair_sequentially(model, reference, open_data({"x": _X}, model=model))] == [
        "a2", "b1", "b2", "fc",
    ]  # fmt: skip


def test_no_layers_need_no_run() -> None:
    model = _residual()
    assert repair_sequentially(model, _residual(), open_data({"x": _X}, model=model), []) == []
