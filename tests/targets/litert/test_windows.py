"""Convolutions and pooling of any kernel, stride, padding, dilation and grouping."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np

from tests.targets.litert.files import body, both

_SIZE = (5, 7)


@st.composite
def _convolutions(draw: st.DrawFn) -> tuple[str, tuple[int, ...], int, int]:
    group = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = draw(st.integers(1, 3))
    outputs = group * draw(st.integers(1, 2))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    dilations = [draw(st.integers(1, 2 if k * 2 - 1 <= size else 1)) for k, size in zip(kernel, _SIZE, strict=True)]
    strides = [draw(st.integers(1, 3)) for _ in kernel]
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    text = f"group = {group}, strides = {strides}, dilations = {dilations}, pads = {pads}"
    return text, (outputs, per_group, *kernel), group * per_group, draw(st.integers(0, 99))


@hypothesis.given(_convolutions())
@hypothesis.settings(max_examples=60)
def test_any_convolution_agrees(drawn: tuple[str, tuple[int, ...], int, int]) -> None:
    attributes, shape, channels, seed = drawn
    rng = np.random.default_rng(seed)
    arrays = {"w": rng.standard_normal(shape).astype(np.float32), "b": rng.standard_normal(shape[0]).astype(np.float32)}
    (expected,), (found,) = both(body(f"y = Conv<{attributes}>(x, w, b)", arrays, (1, channels, *_SIZE)), seed=seed)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@hypothesis.given(
    kind=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    ceil_mode=st.integers(0, 1),
    include=st.integers(0, 1),
)
@hypothesis.settings(max_examples=60)
def test_any_pooling_agrees(
    kind: str, kernel: tuple[int, int], strides: tuple[int, int], pads: list[int], ceil_mode: int, include: int
) -> None:
    pads = [min(pad, kernel[index % 2] - 1) for index, pad in enumerate(pads)]  # onnxruntime asks for it
    extra = f", count_include_pad = {include}" if kind == "AveragePool" else ""
    attributes = f"kernel_shape = {list(kernel)}, strides = {list(strides)}, pads = {pads}, ceil_mode = {ceil_mode}"
    (expected,), (found,) = both(body(f"y = {kind}<{attributes}{extra}>(x)", opset=22))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
