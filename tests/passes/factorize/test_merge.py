"""merge: what is multiplied out computes the same, and what is not stays."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.factorize.merge import merge_chains
from onnxpress.passes.selectors import Selection
from tests.support import fill_weights, random_feeds, run, text_model

_HEADER = '<ir_version: 8, opset_import: ["": 17]>'


def _model(body: str, shapes: dict[str, tuple[int, ...]], face: str = "") -> onnx_ir.Model:
    face = face or "g (float[N, 6, 9, 8] x) => (float[N, C, H, W] out)"
    model = text_model(f"{_HEADER} {face} {{ {body} [end] out = Identity(y) }}")
    rng = np.random.default_rng(0)
    fill_weights(model, {name: rng.standard_normal(shape) for name, shape in shapes.items()})
    return model


_POINTS = {"w": (20, 6, 3, 3), "b": (20,), "v": (5, 20, 1, 1), "c": (5,), "p": (20, 6, 1, 1), "q": (5, 20, 3, 3)}
_DENSE = {"w": (6, 20), "b": (20,), "v": (20, 5), "c": (5,), "l": (20, 6), "m": (5, 20)}
_ROWS = "g (float[N, 6] x) => (float[N, 5] out)"


@pytest.mark.parametrize(
    ("body", "shapes", "face"),
    [
        ("[a] h = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(x, w, b) [z] y = Conv(h, v, c)", _POINTS, ""),
        ("[a] h = Conv(x, w) [z] y = Conv(h, v, c)", _POINTS, ""),
        ("[a] h = Conv(x, w, b) [z] y = Conv(h, v)", _POINTS, ""),
        ("[a] h = Conv(x, p) [z] y = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(h, q, c)", _POINTS, ""),
        ("[a] h = Conv(x, p, b) [z] y = Conv(h, q, c)", _POINTS, ""),
        ("[a] h = Gemm(x, w, b) [z] y = Gemm(h, v, c)", _DENSE, _ROWS),
        ("[a] h = Gemm<transB = 1>(x, l, b) [z] y = Gemm<transB = 1>(h, m, c)", _DENSE, _ROWS),
        ("[a] h = MatMul(x, w) [z] y = MatMul(h, v)", _DENSE, _ROWS),
        (
            "[a] h = MatMul(l, x) [z] y = MatMul(m, h)",
            _DENSE,
            "g (float[N, 6, 3] x) => (float[N, 5, 3] out)",
        ),
    ],
)
def test_a_dear_chain_is_multiplied_out(body: str, shapes: dict[str, tuple[int, ...]], face: str) -> None:
    model = _model(body, shapes, face)
    before, feeds, known = cost(model), random_feeds(model), interface(model)
    expected = run(model, feeds)[0]
    (site,) = merge_chains(model, Selection(None, {}))
    infer_shapes(model)
    verify(model)
    assert interface(model) == known
    assert (site.name, site.detail) == ("z", "multiplied out with 'a', as the product is cheaper")
    assert [node.name for node in model.graph] == ["z", "end"]
    after = cost(model)
    assert before.macs - after.macs == site.before.macs - site.after.macs > 0
    assert before.params - after.params == site.before.params - site.after.params
    # Some hundred products of numbers about 1, summed in another order.
    np.testing.assert_allclose(run(model, feeds)[0], expected, rtol=1e-4, atol=1e-3)
    assert not merge_chains(model, Selection(None, {}))


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("[a] h = Conv(x, w) [r] k = Relu(h) [z] y = Conv(k, v)", _POINTS),  # not linear in between
        ("[a] h = Conv(x, w) [z] y = Conv(h, v)", {"w": (2, 6, 3, 3), "v": (5, 2, 1, 1)}),  # a split that pays
        ("[a] h = Conv(x, w) [z] k = Conv(h, v) [s] y = Sum(k, h)", {"w": (5, 6, 1, 1), "v": (5, 5, 1, 1)}),  # twice
        ("[a] h = Conv(x, p, b) [z] y = Conv<pads = [1, 1, 1, 1]>(h, q)", _POINTS),  # a bias that padding cuts off
        ("[a] h = Conv(x, w) [z] y = Conv<strides = [2, 2]>(h, v)", _POINTS),
        ("[a] h = Conv(x, w) [z] y = Conv(h, q)", _POINTS),  # no 1x1 among them
        ("[a] h = Conv(x, p) [z] y = Conv<group = 5>(h, u)", {**_POINTS, "u": (5, 4, 1, 1)}),
        ("[a] h = Conv(x, s) [z] y = Conv(h, s)", {"s": (6, 6, 1, 1)}),  # one weight for both
        ('[a] h = Conv(x, p, b) [z] y = Conv<auto_pad = "SAME_UPPER">(h, q)', _POINTS),  # pads, but does not say so
        ("[a] h = Conv<strides = [8, 8]>(x, w) [z] y = Conv(h, v)", {"w": (6, 6, 8, 8), "v": (64, 6, 1, 1)}),  # grows
    ],
)  # fmt: skip
def test_near_misses_stay(body: str, shapes: dict[str, tuple[int, ...]]) -> None:
    model = _model(body, shapes)
    names = [node.name for node in model.graph]
    assert not merge_chains(model, Selection(None, {}))
    assert [node.name for node in model.graph] == names


def test_a_chain_of_three_becomes_one() -> None:
    body = "[a] h = MatMul(x, w) [b] k = MatMul(h, v) [z] y = MatMul(k, u)"
    model = _model(body, {"w": (6, 20), "v": (20, 20), "u": (20, 5)}, _ROWS)
    expected = run(model, random_feeds(model))[0]
    assert len(merge_chains(model, Selection(None, {}))) == 2
    assert [node.name for node in model.graph] == ["z", "end"]
    np.testing.assert_allclose(run(model, random_feeds(model))[0], expected, rtol=1e-3, atol=1e-2)


def test_what_the_selectors_leave_out_stays() -> None:
    body = "[a] h = MatMul(x, w) [z] y = MatMul(h, v)"
    for name in ("a", "z"):
        model = _model(body, _DENSE, _ROWS)
        assert not merge_chains(model, Selection(None, {name: name}))
        assert not merge_chains(model, Selection({name: name}, {}))
