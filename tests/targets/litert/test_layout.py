"""The orders of images: golden counts of transposes, and the minimum cut against trying every order."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx_ir
import pytest

from onnxpress.targets.litert.layout import Demand, Touch, plan_layouts
from tests.support import Array
from tests.targets.litert.files import body

_RNG = np.random.default_rng(2)


def _w(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


_CONV, _POINT = _w(3, 3, 3, 3), _w(3, 3, 1, 1)
_C = "Conv<pads = [1, 1, 1, 1]>"

# Nodes, and how many TRANSPOSE operators are left: one for the input, more only where there is no way round.
_GOLDEN: dict[str, tuple[str, int]] = {
    "a chain, then a mean": (f"a = {_C}(x, w) b = Relu(a) c = {_C}(b, w) p = GlobalAveragePool(c) y = Flatten(p)", 1),
    "an image out": (f"a = {_C}(x, w) y = Relu(a)", 2),
    "only elementwise": ("a = Sigmoid(x) b = Mul(a, x) y = Relu(b)", 0),
    "a residual block": (f"a = {_C}(x, w) b = {_C}(a, w) c = Add(b, a) p = GlobalAveragePool(c) y = Flatten(p)", 1),
    "a sum before the first Conv": (f"a = Sigmoid(x) b = Mul(a, x) c = {_C}(b, w) y = GlobalAveragePool(c)", 1),
    "an input that two read": (f"a = {_C}(x, w) b = {_C}(x, w) c = Add(a, b) y = GlobalAveragePool(c)", 1),
    "branches and Concat": (
        f"a = {_C}(x, w) b = Conv(x, u) c = Concat<axis = 1>(a, b) d = MaxPool<kernel_shape = [2, 2]>(c) "
        "y = GlobalMaxPool(d)", 1),
    "Flatten into a product": (f"a = {_C}(x, w) f = Flatten(a) y = MatMul(f, m)", 1),
    "Flatten into two products": (f"a = {_C}(x, w) f = Flatten(a) b = MatMul(f, m) c = MatMul(f, m) y = Add(b, c)", 1),
    "Flatten, Relu, product": (f"a = {_C}(x, w) f = Flatten(a) r = Sigmoid(f) y = MatMul(r, m)", 1),
    "Flatten that is an output's": (f"a = {_C}(x, w) y = Flatten(a)", 2),
    "a detection head": (f"a = {_C}(x, w) t = Transpose<perm = [0, 2, 3, 1]>(a) y = Flatten(t)", 1),
    "channels last within": (
        "t = Transpose<perm = [0, 3, 1, 2]>(x) a = Conv(t, q) p = GlobalAveragePool(a) y = Flatten(p)", 0),
    "two values of one order": (
        f"a = Conv<pads = [1, 1, 1, 1]>(x, o) b = {_C}(x, w) p = GlobalAveragePool(b) e = Mul(a, p) "
        "y = Softmax<axis = -1>(e)", 1),
    "plain between two Convs": (f"a = {_C}(x, w) b = Softmax<axis = -1>(a) c = {_C}(b, w) y = GlobalAveragePool(c)", 3),
}  # fmt: skip


@pytest.mark.parametrize("name", _GOLDEN)
def test_transposes_left(name: str) -> None:
    from onnxpress.targets.litert import emit

    nodes, count = _GOLDEN[name]
    arrays = {"w": _CONV, "u": _POINT, "m": _w(105, 4), "q": _w(2, 7, 1, 1), "o": _w(1, 3, 3, 3)}
    file = emit(body(nodes, arrays))
    assert file.operators.get("TRANSPOSE", 0) == count
    assert file.transposes == count


def test_one_channel_needs_no_transpose() -> None:
    from onnxpress.targets.litert import emit

    file = emit(body("a = Conv(x, w) p = GlobalAveragePool(a) y = Flatten(p)", {"w": _w(4, 1, 3, 3)}, (1, 1, 5, 7)))
    assert file.operators.get("TRANSPOSE", 0) == file.transposes == 0


@st.composite
def _graphs(draw: st.DrawFn) -> list[tuple[list[int], Demand, Demand]]:
    """Draw nodes: the values that each reads (0 is the input), what it asks of them, and of what it makes."""
    nodes = []
    for index in range(draw(st.integers(1, 6))):
        reads = draw(st.lists(st.integers(0, index), min_size=1, max_size=2, unique=True))
        demand = draw(st.sampled_from([Demand.LAST, Demand.PLAIN, Demand.AGREE, Demand.AGREE]))
        nodes.append((reads, demand, draw(st.sampled_from([demand, demand, Demand.ANY]))))
    return nodes


@hypothesis.given(_graphs())
@hypothesis.settings(max_examples=100)
def test_the_cut_is_the_minimum(nodes: list[tuple[list[int], Demand, Demand]]) -> None:
    values = [onnx_ir.Value(name=f"v{index}", shape=onnx_ir.Shape([1, 3, 5, 7])) for index in range(len(nodes) + 1)]
    touches = []
    for (reads, demand, made), value in zip(nodes, values[1:], strict=True):
        node = onnx_ir.Node("", "Op", [values[index] for index in reads], outputs=[value])
        touches.append(Touch(node, {values[index]: demand for index in reads}, {value: made}))
    found = plan_layouts(touches, [values[0]], [values[-1]])
    assert found.transposes == _fewest(nodes)


def _fewest(nodes: list[tuple[list[int], Demand, Demand]]) -> int:
    """Return the fewest transposes over every choice of orders."""
    best = len(nodes) + 1
    for choice in itertools.product((False, True), repeat=2 * len(nodes)):
        agree, any_ = choice[: len(nodes)], choice[len(nodes) :]
        made, read = [False], [{False} if len(nodes) == index else set() for index in range(len(nodes) + 1)]
        for index, (reads, demand, makes) in enumerate(nodes):
            sides = {Demand.LAST: True, Demand.PLAIN: False, Demand.AGREE: agree[index], Demand.ANY: any_[index]}
            made.append(sides[makes])
            for value in reads:
                read[value].add(sides[demand])
        best = min(best, sum(bool(sides - {order}) for order, sides in zip(made, read, strict=True)))
    return best
