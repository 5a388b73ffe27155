"""Results are measured where they run: in the target's runtime, or not timed at all."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.data import open_data
from onnxpress.ir.errors import UsageError
from onnxpress.targets.base import load_target
from onnxpress.targets.runtimes import openvino, timing
from onnxpress.targets.runtimes.base import Feeds, NodeTime, Port
from onnxpress.targets.runtimes.registry import load_runtime
from onnxpress.tools import measure_runtime
from onnxpress.tools.compress import compress
from onnxpress.tools.measure import Effort, Subject
from onnxpress.tools.metrics import Metrics
from tests.support import Array, text_model


class _Fake:
    """A model in a runtime that adds `noise` to its outputs, x and 2x."""

    size_bytes = 7

    def __init__(self, noise: Mapping[str, float], milliseconds: float = 0.0) -> None:
        self.ports = {"x": Port((1, 4), np.dtype(np.float32))}
        self.noise, self.milliseconds, self.fed = noise, milliseconds, 0

    def feed(self, feeds: Feeds) -> None:
        self.x, self.fed = np.asarray(feeds["x"]), self.fed + 1

    def compute(self, *, timed: bool = True) -> None:
        pass

    def fetch(self) -> dict[str, Array]:
        return {"y": self.x + self.noise["y"], "z": 2 * self.x + self.noise["z"]}

    def layers(self) -> collections.Counter[str]:
        return collections.Counter()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return []


def _subject() -> Subject:
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y, float[N,4] z)'
        "{ y = Identity(x) z = Add(x, x) }"
    )
    return Subject(model, model, 100)


def test_times_and_the_worst_output_are_told_of_the_right_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def race(runtime: Any, models: Mapping[str, _Fake], **options: Any) -> dict[str, timing.Latency]:
        return {name: timing.Latency((each.milliseconds,)) for name, each in models.items()}

    monkeypatch.setattr(measure_runtime, "race", race)
    data = open_data({"x": np.arange(20, dtype=np.float32).reshape(5, 4) + 1})
    quiet = _Fake({"y": 0.0, "z": 0.0}, 4.0)
    pair = measure_runtime.measure_on(
        load_runtime("onnxruntime-cpu"), _subject(), quiet, _Fake({"y": 0.1, "z": 1.0}, 1.0),
        Metrics(params=1, macs=2, size_bytes=3, bits_per_weight=4.0), data, Effort(),
    )  # fmt: skip
    assert (pair.before.latency_ms, pair.after.latency_ms) == (4.0, 1.0)
    assert pair.after.size_bytes == 3 and pair.before.size_bytes == 100 and pair.samples == 5
    assert pair.after.sqnr_db == pair.outputs["z"].sqnr_db < pair.outputs["y"].sqnr_db
    assert pair.notes == (
        "accuracy, agreement and SQNR: the original in onnxruntime, the result in onnxruntime on the CPU; "
        "latency: both in onnxruntime on the CPU",
    )


def test_without_data_only_time_is_told() -> None:
    first, second = _Fake({"y": 0.0, "z": 0.0}), _Fake({"y": 0.0, "z": 0.0})
    counted = Metrics(params=1, macs=2, size_bytes=3, bits_per_weight=4.0)
    runtime = load_runtime("onnxruntime-cpu")
    pair = measure_runtime.measure_on(runtime, _subject(), first, second, counted, None, Effort(rounds=5))
    assert pair.after.sqnr_db is None and pair.samples == 0 and pair.after.latency_ms is not None
    assert pair.notes == ("latency: both in onnxruntime on the CPU",)
    assert all(fake.fed == 1 and (fake.x == 0.5).all() for fake in (first, second))


def _numbers(*shape: int) -> Array:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


# What leads with no batch, or not all of it: every one runs in onnxruntime.
_UNBATCHED = {
    "to one number": ("(float[N,4] x) => (float y) { y = ReduceMean<keepdims = 0>(x) }", {"x": _numbers(20, 4)}),
    "batch behind": ("(float[N,4] x) => (float[4,N] y) { y = Transpose<perm = [1, 0]>(x) }", {"x": _numbers(20, 4)}),
    "other rows": (
        "(float[N,4] x) => (float[M,2] y) { s = Constant<value_ints = [-1, 2]>() y = Reshape(x, s) }",
        {"x": _numbers(20, 4)},
    ),
    "beside a row": (
        "(float[N,4] x, float[4] z) => (float[N,4] y) { y = Mul(x, z) }",
        {"x": _numbers(20, 4), "z": _numbers(20, 4)},
    ),
    "beside one": (
        "(float[N,4] x, float[1] z) => (float[N,4] y) { y = Mul(x, z) }",
        {"x": _numbers(20, 4), "z": _numbers(20, 1)},
    ),
    "beside a number": (
        "(float[N,4] x, float z) => (float[N,4] y) { y = Mul(x, z) }",
        {"x": _numbers(20, 4), "z": _numbers(20)},
    ),
    "a batch of two": ("(float[2,4] x) => (float[2,4] y) { y = Neg(x) }", {"x": _numbers(21, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("case", _UNBATCHED)
@pytest.mark.parametrize(
    ("target", "needed"),
    [("openvino", "openvino"), ("mobile-cpu-litert", "ai_edge_litert.interpreter"), ("host-cpu", "onnxruntime")],
)
def test_models_without_a_common_batch_are_measured(case: str, target: str, needed: str) -> None:
    pytest.importorskip(needed)
    text, data = _UNBATCHED[case]
    model = text_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    report = compress(model, target=target, passes="cleanup", data=open_data(data), latency_rounds=1).report
    assert report.after.sqnr_db is not None and report.after.sqnr_db > 100, "float32 throughout"


def test_scores_of_another_shape_are_of_no_class() -> None:
    class _Narrow(_Fake):
        def fetch(self) -> dict[str, Array]:
            return {name: array[:, :2] for name, array in super().fetch().items()}

    data = open_data({"x": np.arange(20, dtype=np.float32).reshape(5, 4) + 1})
    counted = Metrics(params=1, macs=2, size_bytes=3, bits_per_weight=4.0)
    first, second = _Narrow({"y": 0.0, "z": 0.0}), _Narrow({"y": 0.0, "z": 0.0})
    runtime = load_runtime("onnxruntime-cpu")
    pair = measure_runtime.measure_on(runtime, _subject(), first, second, counted, data, Effort(rounds=5))
    assert pair.after.agreement == 0.0 and pair.after.sqnr_db == -np.inf


@pytest.fixture
def calibration(repository: Path) -> tuple[Path, Path]:
    folder = repository / "tools" / "demo"
    return folder / "digits.onnx", folder / "calibration.npz"


def test_openvino_is_measured_in_openvino(calibration: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino")
    model, data = calibration
    report = compress(model, target="openvino", data=data, latency_rounds=5).report
    assert report.runtime == "openvino" and report.after.latency_ms is not None
    assert len(report.kernels.integer) == 7 and report.kernels.unfused == report.kernels.left_float == ()
    assert "classifier" in report.kernels.integer and "stem_conv" in report.kernels.integer
    assert any("latency: both in OpenVINO on the CPU" in note for note in report.notes)
    loaded = model_io.load(model)
    name = str(loaded.graph.inputs[0].name)
    feeds = {name: np.zeros((1, 1, 16, 16), np.float32)}
    assert len(openvino.inspect_kernels(loaded, feeds).left_float) == 7


@pytest.mark.parametrize("target", ["tensorrt", "gpu", "openvino"])
def test_what_is_not_here_is_not_timed(
    target: str, calibration: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxpress.tools.compress.runtime_of", lambda target: (None, "it is not here"))
    model, data = calibration
    report = compress(model, target=target, passes="cleanup, fold-batchnorm, quantize-int8", data=data).report
    assert report.runtime is None and report.speedup is None and report.after.latency_ms is None
    assert report.after.agreement is not None and report.kernels.unfused == ()
    assert not any(line.startswith(("NOT FASTER", "QUANTIZED BUT")) for line in report.headlines)
    assert "run by onnxruntime on the CPU, and not timed: it is not here" in report.notes
    assert "latency" not in str(report)


def test_missing_runtimes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object) -> str:
        raise UsageError("no OpenVINO")

    monkeypatch.setattr(openvino.OpenVino, "version", missing)
    assert measure_runtime.runtime_of(load_target("openvino")) == (None, "no OpenVINO")
    found, reason = measure_runtime.runtime_of(load_target("host-cpu"))
    assert found is not None and found.name == "onnxruntime-cpu" and reason == ""


def test_a_result_writes_what_its_runtime_reads(calibration: tuple[Path, Path], tmp_path: Path) -> None:
    result = compress(calibration[0], target="host-cpu", passes="cleanup")
    result.save(tmp_path / "small.onnx")
    assert model_io.load(tmp_path / "small.onnx")
    with pytest.raises(UsageError, match=r"host-cpu runs ONNX\. Give --target mobile-cpu-litert"):
        result.save(tmp_path / "small.tflite")
    with pytest.raises(UsageError, match=r"small.tflite': a model is saved as .onnx or .onnxp"):
        model_io.save(result.model, tmp_path / "small.tflite")
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_weights_that_are_rounded_and_no_smaller_are_told_first(calibration: tuple[Path, Path]) -> None:
    model, data = calibration
    report = compress(model, target="tensorrt", passes="palettize", data=data).report
    told = [line for line in report.headlines if line.startswith("ROUNDED IN VAIN: ")]
    assert len(told) == 1 and told[0].endswith(
        "of codebook4 are stored as plain floats, as tensorrt has no smaller form for them"
    )
    both = compress(model, target="tensorrt", passes="palettize, quantize-int8", data=data).report
    assert not any(line.startswith("ROUNDED IN VAIN") for line in both.headlines)
