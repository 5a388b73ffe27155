"""compress for LiteRT: a .tflite file, measured in its own runtime, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.data import Batch
from onnxpress.ir.errors import InputError
from onnxpress.tools.compress import compress
from tests.support import text_model
from tests.tools.conftest import CommandLine

pytest.importorskip("ai_edge_litert.interpreter", reason="needs LiteRT: pip install 'onnxpress[litert]'")
pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'onnxpress[litert]'")

_TARGET = "mobile-cpu-litert"


def test_a_file_is_written_and_measured(cli: CommandLine, demo_files: Path) -> None:
    from onnxpress.targets.runtimes.base import sample_runner
    from onnxpress.targets.runtimes.litert import LiteRtSession

    out = demo_files / "digits.tflite"
    ran = cli(
        "compress", demo_files / "digits.onnx", out, "--target", _TARGET, "--data", demo_files / "calibration.npz",
        "--eval-data", demo_files / "evaluation.npz", "--max-drop", "1", "--json", "-",
    )  # fmt: skip
    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    assert report["written"] == str(out)
    assert report["after"]["bytes"] == out.stat().st_size < 0.4 * report["before"]["bytes"]
    assert report["after"]["latency_ms"] > 0 and report["after"]["accuracy"] > report["before"]["accuracy"] - 1
    assert report["kernels"]["integer"] and report["kernels"]["operators"]["CONV_2D"] >= 1
    assert any(note.endswith("fixed at 1") for note in report["notes"])
    assert any(note.startswith("accuracy, agreement and SQNR: the original in onnxruntime") for note in report["notes"])
    data = np.load(demo_files / "evaluation.npz")
    session = LiteRtSession(out)
    ((name, port),) = session.ports.items()
    images = next(data[key] for key in data if data[key].ndim == len(port.shape))
    runner = sample_runner(model_io.load(demo_files / "digits.onnx"), session)
    (scores,) = runner.run(Batch({name: images[:32]})).values()
    labels = next(data[key] for key in data if data[key].ndim == 1)
    assert (scores.argmax(axis=1) == labels[:32]).mean() > 0.9


def test_float_files_need_no_data(cli: CommandLine, demo_files: Path) -> None:
    out = demo_files / "digits.tflite"
    assert cli("compress", demo_files / "digits.onnx", out, "--target", _TARGET, "--passes", "float16").status == 0
    assert out.read_bytes()[4:8] == b"TFL3"


def test_a_name_of_another_format_is_refused_before_any_work(cli: CommandLine, demo_files: Path) -> None:
    model, data = demo_files / "digits.onnx", demo_files / "calibration.npz"
    ran = cli("compress", model, demo_files / "small.onnx", "--target", _TARGET, "--data", data)
    assert ran.status == 2
    assert "mobile-cpu-litert runs .tflite files. Name it" in ran.err.replace("\n", " ")
    ran = cli("compress", model, demo_files / "small.tflite", "--data", data)
    assert ran.status == 2 and "Give --target mobile-cpu-litert" in " ".join(ran.err.split())
    assert not list(demo_files.glob("small.*"))


def test_nothing_is_written_where_too_much_is_lost(cli: CommandLine, demo_files: Path) -> None:
    out = demo_files / "digits.tflite"
    ran = cli(
        "compress", demo_files / "digits.onnx", out, "--target", _TARGET, "--data", demo_files / "calibration.npz",
        "--passes", "binarize{correction=false}", "--max-drop", "0",
    )  # fmt: skip
    assert ran.status in (1, 2) and not out.exists()


def test_what_litert_cannot_run_is_told_before_the_passes() -> None:
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Elu<alpha = 0.5>(x) }'
    )
    with pytest.raises(InputError, match="LiteRT cannot run 1 place of this model"):
        compress(model, target=_TARGET, passes="cleanup")


def test_python_gets_the_content(demo_files: Path) -> None:
    result = compress(demo_files / "digits.onnx", target=_TARGET, passes="cleanup, fold-batchnorm")
    assert isinstance(result.model, onnx_ir.Model)
    assert result.content is not None and len(result.content) == result.report.after.size_bytes


def test_a_model_of_a_fixed_batch_is_measured() -> None:
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[3,4] x) => (float[3,4] y) { r = Relu(x) y = Sigmoid(r) }'
    )
    samples = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    report = compress(model, target=_TARGET, passes="cleanup", data={"x": samples}).report
    assert report.samples == 7 and report.after.agreement == 100
    assert report.after.sqnr_db is not None and report.after.sqnr_db > 80


def test_constants_that_a_conversion_adds_are_written() -> None:
    """quantize-int8 per channel needs opset 13; the Clip's limits become Constant nodes on the way there."""
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 9]> g (float[N,2,6,6] x) => (float[N,3,4,4] y) '
        "<float[3,2,3,3] w = {"
        + ", ".join(f"{(7 * index) % 11 - 5}.0" for index in range(54))
        + "}> { c = Conv(x, w) d = Clip<min = -0.5, max = 2.0>(c) y = Relu(d) }"
    )
    samples = np.random.default_rng(0).standard_normal((16, 2, 6, 6)).astype(np.float32)
    result = compress(model, target=_TARGET, data={"x": samples})
    assert {node.op_type for node in result.model.graph} >= {"Constant", "Conv"}
    assert result.report.kernels is not None and result.report.kernels.integer
    assert result.report.after.sqnr_db is not None and result.report.after.sqnr_db > 30


def test_a_target_tells_which_operators_are_written(cli: CommandLine) -> None:
    ran = cli("targets", _TARGET)
    assert ran.status == 0 and "operators Abs, Add, ArgMax, " in " ".join(ran.err.split())


def test_a_quantized_model_is_told_so(demo_files: Path) -> None:
    quantized = compress(demo_files / "digits.onnx", target="mobile-cpu", data=demo_files / "calibration.npz").model
    with pytest.raises(InputError, match=r"LiteRT cannot run this model: it is quantized already \(\d+ nodes, the "):
        compress(quantized, target=_TARGET, passes="cleanup")


@pytest.mark.assets
def test_a_network_of_an_old_opset_is_written_in_integers(assets: Path) -> None:
    images = np.random.default_rng(0).standard_normal((16, 3, 240, 320)).astype(np.float32)
    result = compress(assets / "models" / "ultraface_rfb320.onnx", target=_TARGET, data={"input": images})
    assert result.content is not None and result.report.kernels is not None
    assert len(result.report.kernels.integer) > 40 and result.report.kernels.operators["CONV_2D"] > 20
