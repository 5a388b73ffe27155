"""Forms: the chain in the graph computes what the dense operator with the product as its weight does."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.linear import Linear, as_linear, linear_ops
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.factorize.emit import build, replace
from onnxpress.passes.factorize.forms import FORMS, Form, Kernel, kernel_of
from onnxpress.passes.repair import write_parameters
from tests.support import Array, fill_weights, random_feeds, run, text_model

_HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def _conv(rng: np.random.Generator, kernel: tuple[int, int], attributes: str, *, bias: bool = True) -> onnx_ir.Model:
    """A Conv from 6 channels to 5 that is the output, behind a Relu."""
    model = text_model(f"""{_HEADER} g (float[N, 6, 9, 8] x) => (float[N, 5, H, W] y) {{
        [relu] r = Relu(x) [conv] y = Conv<{attributes}> (r, w{", b" if bias else ""})
    }}""")
    fill_weights(model, {"w": rng.standard_normal((5, 6, *kernel)), "b": rng.standard_normal(5)})
    return model


def _layer(model: onnx_ir.Model, name: str) -> Linear:
    found = as_linear(next(node for node in model.graph if node.name == name))
    assert isinstance(found, Linear)
    return found


def _factors(form: Form, kernel: Kernel, ranks: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    return tuple(rng.standard_normal(shape) for shape in form.shapes(kernel, ranks))


def _size(form: Form, kernel: Kernel, ranks: tuple[int, ...]) -> int:
    return sum(math.prod(shape) for shape in form.shapes(kernel, ranks))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMS)),
    kernel=st.sampled_from([(3, 3), (5, 3), (1, 3), (1, 1), (2, 2)]),
    strides=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    pads=st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 1)]),
    dilations=st.sampled_from([(1, 1), (1, 2)]),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
def test_a_chain_computes_its_product(
    name: str,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, ...],
    dilations: tuple[int, int],
    bias: bool,
    seed: int,
) -> None:
    form, rng = FORMS[name], np.random.default_rng(seed)
    attributes = f"strides = {list(strides)}, pads = {list(pads)}, dilations = {list(dilations)}"
    model = _conv(rng, kernel, attributes, bias=bias)
    layer = _layer(model, "conv")
    extents = kernel_of(layer)
    if not form.fits(extents):
        return
    ranks = (2, 3)[: 2 if name == "tucker" else 1]
    factors = _factors(form, extents, ranks, rng)
    dense = model.clone()
    write_parameters(_layer(dense, "conv"), form.weight(factors).astype(np.float32), None)
    feeds, face = random_feeds(model, seed), interface(model)
    replace(model, layer, form.chains(factors), layer.bias())
    verify(model)
    assert interface(model) == face
    assert next(iter(reversed(list(model.graph)))).name == "conv"
    # Sums of some hundred products in another order; the intermediate values are of the factors' size.
    np.testing.assert_allclose(run(model, feeds)[0], run(dense, feeds)[0], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("product", ["Gemm<transB = 1> (x, w, b)", "Gemm (x, w, b)", "MatMul (x, w)"])
def test_products_are_split_too(product: str) -> None:
    rng = np.random.default_rng(0)
    model = text_model(f"{_HEADER} g (float[N, 6] x) => (float[N, 5] y) {{ [dense] y = {product} }}")
    fill_weights(
        model, {"w": rng.standard_normal((5, 6) if "transB" in product else (6, 5)), "b": rng.standard_normal(5)}
    )
    layer = _layer(model, "dense")
    form = FORMS["channel"]
    factors = _factors(form, kernel_of(layer), (2,), rng)
    dense = model.clone()
    write_parameters(_layer(dense, "dense"), form.weight(factors)[:, :, 0, 0].astype(np.float32), None)
    replace(model, layer, form.chains(factors), layer.bias())
    infer_shapes(model)
    verify(model)
    assert [node.op_type for node in model.graph] == [product.split(" ")[0].split("<")[0]] * 2
    feeds = random_feeds(model, 1)
    np.testing.assert_allclose(run(model, feeds)[0], run(dense, feeds)[0], rtol=1e-4, atol=1e-4)


def test_a_weight_on_the_left_and_a_convolution_over_time() -> None:
    rng = np.random.default_rng(0)
    left = text_model(f"{_HEADER} g (float[N, 6, 4] x) => (float[N, 5, 4] y) {{ [m] y = MatMul (w, x) }}")
    fill_weights(left, {"w": rng.standard_normal((5, 6))})
    time = text_model(f"{_HEADER} g (float[N, 6, 9] x) => (float[N, 5, L] y) {{ [m] y = Conv<pads = [1, 1]> (x, w) }}")
    fill_weights(time, {"w": rng.standard_normal((5, 6, 3))})
    for model, name in ((left, "channel"), (time, "channel"), (time.clone(), "separable"), (time.clone(), "cp")):
        layer, form = _layer(model, "m"), FORMS[name]
        factors = _factors(form, kernel_of(layer), (2,), rng)
        dense = model.clone()
        weight = form.weight(factors).reshape(layer.weight().shape).astype(np.float32)
        write_parameters(_layer(dense, "m"), weight, None)
        replace(model, layer, form.chains(factors), None)
        verify(model)
        feeds = random_feeds(model, 1)
        np.testing.assert_allclose(run(model, feeds)[0], run(dense, feeds)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_shapes_and_parameters_are_told_beforehand(name: str) -> None:
    """What a chain is priced by is what stands in the graph later."""
    rng = np.random.default_rng(0)
    model = _conv(rng, (3, 3), "strides = [2, 1], pads = [1, 1, 1, 1]")
    model.graph.outputs[0].shape = onnx_ir.Shape(["N", 5, 5, 8])
    layer, form = _layer(model, "conv"), FORMS[name]
    ranks = (2, 3)[: 2 if name == "tucker" else 1]
    factors = _factors(form, kernel_of(layer), ranks, rng)
    data = onnx_ir.Value(name="d", shape=layer.data.shape, type=layer.data.type)
    chain = build(layer, data, form.chains(factors), layer.bias())
    told = [node.outputs[0].shape for node in chain.nodes]
    assert sum(value.const_value.size for value in chain.constants if value.const_value is not None) == (
        _size(form, kernel_of(layer), ranks) + layer.out_channels
    )
    replace(model, layer, form.chains(factors), layer.bias())
    infer_shapes(model)
    found = [node.outputs[0].shape for node in list(model.graph)[1:]]
    assert [shape.dims[1:] for shape in told if shape] == [shape.dims[1:] for shape in found if shape]


@pytest.mark.parametrize("name", sorted(FORMS))
def test_ranks_rise_and_stay_below_the_dense_weight(name: str) -> None:
    form = FORMS[name]
    for kernel in (Kernel(64, 32, 3, 3), Kernel(16, 6, 5, 5), Kernel(10, 300, 1, 1)):
        if form.fits(kernel):
            sizes = [_size(form, kernel, ranks) for ranks in form.ranks(kernel, 8)]
            assert sizes or kernel.taps == 1
            if not name.startswith(("separable", "tucker")):
                assert all(size < kernel.size for size in sizes)
                assert sizes == sorted(sizes)


def test_kernels_of_one_position_have_no_spatial_forms() -> None:
    assert [name for name, form in FORMS.items() if form.fits(Kernel(8, 8, 1, 1))] == ["channel"]
    assert [name for name, form in FORMS.items() if form.fits(Kernel(8, 8, 3, 1))] == [
        "channel", "tucker", "cp", "separable",
    ]  # fmt: skip


def test_linear_operators_stay_in_order() -> None:
    rng = np.random.default_rng(0)
    model = _conv(rng, (3, 3), "pads = [1, 1, 1, 1]")
    layer, form = _layer(model, "conv"), FORMS["separable"]
    replace(model, layer, form.chains(_factors(form, kernel_of(layer), (2,), rng)), layer.bias())
    names = [op.node.name for op in linear_ops(model)]
    assert names == ["conv_1", "conv_2", "conv_3", "conv_4"]
    assert not any(value.name == "w" for value in model.graph.initializers.values())
