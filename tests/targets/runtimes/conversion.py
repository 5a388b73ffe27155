"""What the tests of runtimes that convert a model share: models from one line, and outputs beside the model's own."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Prepared, Runtime
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.support import Array, fill_weights, random_feeds, run_named, text_model

__all__ = ["CONSTANTS", "QDQ", "assert_quiet", "assert_same", "graph", "prepare", "refusal"]

_RNG = np.random.default_rng(5)
CONSTANTS: dict[str, Array] = {
    "w": _RNG.standard_normal((6, 3, 3, 3)),
    "v": _RNG.standard_normal((6, 4)),
    "even": _RNG.standard_normal((4, 3, 2, 4)),
    "s": np.array(0.1),
    "table": _RNG.standard_normal((64, 3)),
}
QDQ = "[q] a = QuantizeLinear (x, s) [d] b = DequantizeLinear (a, s)"


def graph(body: str, inputs: str = "float[N, 3, 5, 7] x", outputs: str = "float[N, A, B, C] y") -> onnx_ir.Model:
    """Return the model of these nodes, which may read CONSTANTS."""
    model = text_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {body} }}')
    fill_weights(model, CONSTANTS)
    return model


def prepare(runtime: Runtime, model: onnx_ir.Model, feeds: dict[str, Array], threads: int = 1) -> Prepared:
    """Prepare the model; skips where the runtime is not installed."""
    try:
        runtime.version()
    except UsageError as error:
        pytest.skip(str(error))
    return runtime.prepare(model, feeds, threads=threads)


def assert_same(runtime: Runtime, model: onnx_ir.Model, *, batch: int = 1, error: float = 1e-5) -> None:
    """Assert that each output is the model's own but for rounding. error: relative to the largest number."""
    feeds = random_feeds(model, batch=batch)
    prepared = prepare(runtime, model, feeds)
    prepared.compute()
    found, expected = prepared.fetch(), run_named(model, feeds)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert np.abs(found[name] - array).max() <= error * np.abs(array).max()


def refusal(runtime: Runtime, model: onnx_ir.Model) -> str:
    """Return what the runtime says against the model."""
    with pytest.raises(RuntimeRefusalError) as caught:
        prepare(runtime, model, random_feeds(model, batch=1))
    return str(caught.value)


def assert_quiet(runtime: Runtime, good: onnx_ir.Model, bad: onnx_ir.Model, capfd: pytest.CaptureFixture[str]) -> None:
    """Assert that nothing reaches the terminal, from all that is asked of the good model, nor from a refusal."""
    feeds = {"good": random_feeds(good, batch=1), "bad": random_feeds(bad, batch=1)}
    capfd.readouterr()
    prepared = prepare(runtime, good, feeds["good"])
    prepared.compute()
    prepared.fetch()
    prepared.layers()
    prepared.node_times(1)
    with pytest.raises(RuntimeRefusalError):
        runtime.prepare(bad, feeds["bad"])
    assert capfd.readouterr() == ("", "")
