"""Measuring two models: bounded work, honest numbers, no number where there is nothing to measure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.data import open_data
from onnxpress.tools import measure
from onnxpress.tools.measure import Effort, Subject, measure_pair, source_bytes
from onnxpress.tools.memory import peak_rss_bytes
from onnxpress.tools.metrics import Metrics


def _model(text: str) -> onnx_ir.Model:
    return model_io.load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))


def _subject(model: onnx_ir.Model) -> Subject:
    return Subject(model, model_io.to_proto_bytes(model), model_io.size_bytes(model))


@pytest.mark.parametrize(
    ("macs", "written", "run"), [(0, 32, 128), (40_000_000, 16, 65), (300_000_000, 8, 16), (10**12, 8, 16)]
)
def test_effort_falls_with_the_work_of_a_sample(macs: int, written: int, run: int) -> None:
    assert Effort.check(macs) == Effort(written, run)


def test_metrics_in_json_have_a_finite_sqnr() -> None:
    assert Metrics(1, 2, 3, sqnr_db=math.inf).to_json()["sqnr_db"] == 200.0
    assert Metrics(1, 2, 3).to_json() == {
        "params": 1, "macs": 2, "bytes": 3, "bits_per_weight": None, "accuracy": None, "agreement": None,
        "sqnr_db": None, "latency_ms": None,
    }  # fmt: skip


def test_a_known_error_is_measured() -> None:
    before = _model("g (float[N, 4] x) => (float[N, 4] y) <float f = {1}> {y = Mul(x, f)}")
    after = _model("g (float[N, 4] x) => (float[N, 4] y) <float f = {0.9}> {y = Mul(x, f)}")
    labels = np.array([0, 1, 2, 3, 0])
    source = open_data({"x": np.eye(4, dtype=np.float32)[labels], "labels": np.array([0, 1, 2, 3, 1])}, model=before)
    pair = measure_pair(_subject(before), _subject(after), source, Effort(written=3))
    assert (pair.samples, pair.sqnr_samples) == (5, 3)
    assert pair.before.accuracy == pair.after.accuracy == 80.0
    assert pair.after.agreement == 100.0
    assert pair.after.sqnr_db == pytest.approx(20.0, abs=1e-3)  # 20 log10(1 / 0.1)
    assert pair.before.agreement is None and pair.before.sqnr_db is None
    assert pair.before.latency_ms is not None and pair.after.latency_ms is not None


def test_loss_that_the_runtime_adds_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.ir.analysis.compare import Comparison, Difference

    def compare(*_: object, optimize: bool = False, **__: object) -> Comparison:
        return Comparison(4, {"y": Difference(20.0 if optimize else 41.25, 0.1, 0.9)}, {})

    monkeypatch.setattr(measure, "compare", compare)
    model = _model("g (float[N, 4] x) => (float[N, 4] y) {y = Relu(x)}")
    source = open_data(np.ones((4, 4), np.float32), model=model)
    pair = measure_pair(_subject(model), _subject(model), source, Effort(rounds=1))
    assert pair.notes == ("onnxruntime's own optimizations cost fidelity: SQNR 41.2 dB as written, 20.0 dB as run",)


def test_latency_of_a_fixed_batch_needs_no_such_many_samples() -> None:
    model = _model("g (float[8, 4] x) => (float[8, 4] y) {y = Relu(x)}")
    source = open_data(np.ones((3, 4), np.float32), model=model)
    pair = measure_pair(_subject(model), _subject(model), source, Effort(rounds=2))
    assert pair.after.latency_ms is not None
    assert pair.after.sqnr_db == math.inf


def test_a_model_without_an_axis_of_samples_is_fed_one() -> None:
    model = _model("g (float[3, 4] x) => (float[3, 4] y) {y = Relu(x)}")
    source = open_data([{"x": np.ones((3, 4), np.float32)}, {"x": np.zeros((3, 4), np.float32)}], model=model)
    pair = measure_pair(_subject(model), _subject(model), source, Effort(rounds=2))
    assert pair.after.latency_ms is not None


def test_latency_is_left_out_where_no_input_can_be_made_up() -> None:
    model = _model("g (float[N, S] x) => (float[N, 5] y) <int64[2] s = {-1, 5}> {y = Reshape(x, s)}")
    pair = measure_pair(_subject(model), _subject(model), None, Effort(rounds=1))
    assert pair.before.latency_ms is None and pair.after.latency_ms is None
    assert len(pair.notes) == 1 and pair.notes[0].startswith("latency not measured: ")


def test_bytes_of_a_source_count_its_data_files(tmp_path: Path) -> None:
    weight = np.ones((64, 64), np.float32)
    model = _model("g (float[N, 64] x) => (float[N, 64] y) {y = Relu(x)}")
    model.graph.register_initializer(onnx_ir.val("w", const_value=onnx_ir.tensor(weight, name="w")))
    model_io.save(model, tmp_path / "m.onnx", external_from_bytes=0)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2
    assert source_bytes(tmp_path / "m.onnx", model_io.load(tmp_path / "m.onnx")) == total
    assert source_bytes(model, model) == model_io.size_bytes(model)


def test_peak_memory_is_that_of_this_process() -> None:
    assert 20_000_000 < peak_rss_bytes() < 20_000_000_000
