"""The LiteRT runtime: runs, times, and says what does not fit."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import Batch
from onnxpress.targets.runtimes.base import Prepared, sample_runner
from tests.support import Array, fill_weights, text_model

pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT: pip install 'onnxpress[litert]'")
pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'onnxpress[litert]'")


def _model(factor: float = 2.0, batch: int = 1) -> onnx_ir.Model:
    interface = f"(float[{batch},7] x) => (float[{batch},7] y)"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g {interface} {{ y = Mul(x, f) }}'
    model = text_model(text)
    fill_weights(model, {"f": np.array(factor, np.float32)})
    return model


def _content(factor: float = 2.0, batch: int = 1) -> bytes:
    from onnxpress.targets.litert import emit_tflite

    return emit_tflite(_model(factor, batch))


def _run(session: Prepared, samples: Array, batch: int = 1) -> Array:
    return sample_runner(_model(batch=batch), session).run(Batch({"x": samples}))["y"]


def test_samples_run_one_at_a_time() -> None:
    from onnxpress.targets.runtimes.litert import LiteRtSession

    samples = np.arange(21, dtype=np.float64).reshape(3, 7)
    session = LiteRtSession(_content())
    assert {name: port.shape for name, port in session.ports.items()} == {"x": (1, 7)}
    np.testing.assert_array_equal(_run(session, samples), 2 * samples.astype(np.float32))


def test_a_fixed_batch_is_filled_up() -> None:
    from onnxpress.targets.runtimes.litert import LiteRtSession

    samples = np.arange(35, dtype=np.float32).reshape(5, 7)
    found = _run(LiteRtSession(_content(batch=2)), samples, 2)
    np.testing.assert_array_equal(found, 2 * samples)


def test_a_batch_that_the_model_leaves_free_is_that_of_the_file() -> None:
    from onnxpress.targets.runtimes.litert import LiteRtSession

    samples = np.arange(35, dtype=np.float32).reshape(5, 7)
    model = text_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N,7] x) => (float[N,7] y) { y = Add(x, x) }')
    runner = sample_runner(model, LiteRtSession(_content(batch=2)))
    np.testing.assert_array_equal(runner.run(Batch({"x": samples}))["y"], 2 * samples)


def test_samples_of_whole_feeds_run_one_by_one() -> None:
    from onnxpress.targets.runtimes.litert import LiteRtSession

    samples = np.arange(42, dtype=np.float32).reshape(3, 2, 7)
    found = _run(LiteRtSession(_content(batch=2), xnnpack=False), samples, 2)
    np.testing.assert_array_equal(found, 2 * samples)


def test_a_model_without_a_form_there_is_refused() -> None:
    from onnxpress.targets.runtimes.litert import LITERT
    from onnxpress.targets.runtimes.refusal import RuntimeRefusalError

    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,7] x) => (float[N,7] y) { [hard] y = Hardmax (x) }'
    )
    with pytest.raises(
        RuntimeRefusalError, match=r"^LiteRT: does not take the model: LiteRT cannot run 1 place .*hard"
    ):
        LITERT.prepare(model, {"x": np.zeros((1, 7), np.float32)})


def test_a_file_that_is_none_is_refused() -> None:
    from onnxpress.targets.runtimes.litert import LiteRtSession
    from onnxpress.targets.runtimes.refusal import RuntimeRefusalError

    with pytest.raises(RuntimeRefusalError, match="LiteRT: does not load the model: "):
        LiteRtSession(b"not a model")
