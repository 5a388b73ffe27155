"""The TensorRT runtime, against a program that answers as trtexec does: no GPU is at hand.

The formats are those that samples/common/sampleReporting.cpp of github.com/NVIDIA/TensorRT writes: names, spaces around
colons, numbers with six digits. The program computes y = 2 x, so that what goes in and what comes out is seen too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import Batch
from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes import tensorrt
from onnxpress.targets.runtimes.base import NodeTime, race, sample_runner
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.tensorrt import TENSORRT
from tests.support import Array, text_model

_TIMES = """[
  { "startEnqMs" : 0.0103, "endEnqMs" : 0.0278, "startH2dMs" : 0, "endH2dMs" : 0, "startComputeMs" : 0.0352\
, "endComputeMs" : 0.1453, "startD2hMs" : 0, "endD2hMs" : 0, "h2dMs" : 0, "computeMs" : 0.1101, "d2hMs" : 0\
, "latencyMs" : 0.1101 }
, { "startEnqMs" : 0.1605, "endEnqMs" : 0.1722, "startH2dMs" : 0, "endH2dMs" : 0, "startComputeMs" : 0.1804\
, "endComputeMs" : 0.2930, "startD2hMs" : 0, "endD2hMs" : 0, "h2dMs" : 0, "computeMs" : 0.1126, "d2hMs" : 0\
, "latencyMs" : 0.1126 }
]
"""
_PROFILE = """[
  { "count" : 20 }
, { "name" : "Reformatting CopyNode for Input Tensor 0 to twice", "timeMs" : 0.4, "averageMs" : 0.02\
, "medianMs" : 0.019, "percentage" : 20 }
, { "name" : "twice", "timeMs" : 1.6, "averageMs" : 0.08, "medianMs" : 0.081, "percentage" : 80 }
, { "name" : "unlisted", "timeMs" : 0, "averageMs" : 0, "medianMs" : 0, "percentage" : 0 }
]
"""
_LAYERS = """{"Layers": [{"Name": "Reformatting CopyNode for Input Tensor 0 to twice", "LayerType": "Reformat"},
{"Name": "twice", "LayerType": "PointWiseV2"}],
"Bindings": ["port0", "port1"]}
"""
_FAKE = """
import array, json, pathlib, sys
here = pathlib.Path(__file__).parent
settings = json.loads((here / "settings.json").read_text())
options = dict(each.lstrip("-").partition("=")[::2] for each in sys.argv[1:])
with (here / "log").open("a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
print("&&&& RUNNING TensorRT.trtexec [TensorRT v101302] [b6] # trtexec", *sys.argv[1:])
if settings["failure"] in options:
    print("[01/02/2026-03:04:05] [W] [TRT] a warning")
    print("[01/02/2026-03:04:05] [E] Error[4]: no kernel for node twice")
    print("[01/02/2026-03:04:05] [E] Engine set up failed")
    sys.exit("&&&& FAILED TensorRT.trtexec [TensorRT v101302] # trtexec")
for option, answer in settings["answers"].items():
    if option in options:
        pathlib.Path(options[option]).write_text(answer)
if "saveEngine" in options:
    pathlib.Path(options["saveEngine"]).write_bytes(b"engine")
if "exportOutput" in options and "exportOutput" not in settings["answers"]:
    name, path = options["loadInputs"].split(":")
    numbers = array.array("f", pathlib.Path(path).read_bytes())
    head = '[\\n  { "name" : "port1"\\n  , "dimensions" : "1x%d"\\n' % len(numbers)
    values = '  , "values" : [ %s ]\\n  }\\n]\\n' % ", ".join("%g" % (2 * number) for number in numbers)
    pathlib.Path(options["exportOutput"]).write_text(head + values)
"""


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the program, which is on PATH; its file `log` holds the command lines."""
    program = tmp_path / "trtexec"
    program.write_text(f"#!{sys.executable}\n{_FAKE}", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _answer(tmp_path)
    return tmp_path


def _answer(folder: Path, failure: str = "", **answers: str) -> None:
    """Say what the program answers to which option. failure: the option that it fails at."""
    answers = {"exportTimes": _TIMES, "exportProfile": _PROFILE, "exportLayerInfo": _LAYERS, **answers}
    (folder / "settings.json").write_text(json.dumps({"failure": failure, "answers": answers}), encoding="utf-8")


def _commands(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "log").read_text(encoding="utf-8").splitlines()]


def _model() -> onnx_ir.Model:
    model = text_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Add (x, x) }'
    )
    model.graph.inputs[0].name, model.graph.outputs[0].name = "x:0,'a'", "y:0"
    return model


def _feeds(*numbers: float) -> dict[str, Array]:
    return {"x:0,'a'": np.array([numbers], np.float32)}


def test_an_engine_is_built_run_and_read(trtexec: Path) -> None:
    model = _model()
    before = onnx_ir.to_onnx_text(model)
    engine = TENSORRT.prepare(model, _feeds(0.5, -1.25, 3))
    assert engine.size_bytes == len(b"engine")
    for numbers in ((0.5, -1.25, 3.0), (1.0, 2.0, 1e-8)):
        engine.feed(_feeds(*numbers))
        assert engine.compute() == pytest.approx((0.1101 + 0.1126) / 2)
        (found,) = engine.fetch().items()
        assert (found[0], found[1].dtype.name) == ("y:0", "float32")
        np.testing.assert_allclose(found[1], 2 * np.array([numbers], np.float32), rtol=1e-5)
    assert onnx_ir.to_onnx_text(model) == before
    assert _commands(trtexec)[:2] == [
        [
            "--onnx=model.onnx", "--saveEngine=model.engine", "--exportLayerInfo=layers.json", "--stronglyTyped",
            "--noTF32", "--profilingVerbosity=detailed", "--skipInference",
        ],
        [
            "--loadEngine=model.engine", "--loadInputs=port0:port0.bin", "--iterations=20", "--duration=0",
            "--exportTimes=times.json", "--exportOutput=outputs.json",
        ],
    ]  # fmt: skip


def test_where_nobody_asks_for_the_time_it_runs_once(trtexec: Path) -> None:
    engine = TENSORRT.prepare(_model(), _feeds(1, 2, 3))
    found = sample_runner(_model(), engine).run(Batch({"x:0,'a'": np.eye(3, dtype=np.float32)}))
    assert found["y:0"].tolist() == (2 * np.eye(3)).tolist()
    assert _commands(trtexec)[1:] == 3 * [
        [
            "--loadEngine=model.engine", "--loadInputs=port0:port0.bin", "--iterations=1", "--duration=0",
            "--warmUp=0", "--exportOutput=outputs.json",
        ]
    ]  # fmt: skip


def test_a_program_that_hangs_is_a_refusal(trtexec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TENSORRT.prepare(_model(), _feeds(1, 2, 3))
    (trtexec / "trtexec").write_text(f"#!{sys.executable}\nimport time; time.sleep(600)", encoding="utf-8")
    monkeypatch.setattr(tensorrt, "_RUN_SECONDS", 0.5)
    with pytest.raises(RuntimeRefusalError) as caught:
        engine.compute()
    assert str(caught.value) == "TensorRT: does not run the model: it wrote nothing (ended after 0.5 s)"


def test_times_by_layer_are_the_profiles(trtexec: Path) -> None:
    engine = TENSORRT.prepare(_model(), _feeds(1, 2, 3))
    assert engine.layers() == {"Reformat": 1, "PointWiseV2": 1}
    assert engine.node_times(7) == [
        NodeTime("Reformatting CopyNode for Input Tensor 0 to twice", "Reformat", 0.019),
        NodeTime("twice", "PointWiseV2", 0.081),
        NodeTime("unlisted", "layer", 0),
    ]
    assert "--iterations=7" in _commands(trtexec)[-1]


@pytest.mark.usefixtures("trtexec")
def test_models_are_compared_by_the_gpus_time() -> None:
    found = race(TENSORRT, {"a": TENSORRT.prepare(_model(), _feeds(1, 2, 3))}, rounds=5, warmup=1)["a"]
    assert (len(found.wall_ms), found.cpu_ms) == (5, ())
    assert found.median_ms == pytest.approx((0.1101 + 0.1126) / 2)


@pytest.mark.usefixtures("trtexec")
def test_the_version_is_that_of_the_program() -> None:
    assert TENSORRT.version() == "10.13.2"


@pytest.mark.parametrize(("option", "what"), [("onnx", "build"), ("loadEngine", "run")])
def test_a_failure_keeps_its_first_cause(trtexec: Path, option: str, what: str) -> None:
    _answer(trtexec, failure=option)
    with pytest.raises(RuntimeRefusalError) as caught:
        TENSORRT.prepare(_model(), _feeds(1, 2, 3)).compute()
    assert str(caught.value) == f"TensorRT: does not {what} the model: Error[4]: no kernel for node twice (exit code 1)"


def test_numbers_that_json_has_not_are_a_refusal(trtexec: Path) -> None:
    _answer(trtexec, exportOutput='[ { "name" : "port1", "dimensions" : "1x3", "values" : [ 1, nan, 2 ] } ]')
    engine = TENSORRT.prepare(_model(), _feeds(1, 2, 3))
    engine.compute()
    with pytest.raises(RuntimeRefusalError) as caught:
        engine.fetch()
    assert str(caught.value) == (
        "TensorRT: trtexec left no outputs.json that reads: Expecting value: line 1 column 61 (char 60)"
    )


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ('[ { "name" : "port7", "dimensions" : "1x3", "values" : [ 1, 2, 3 ] } ]', "gives no output 'y:0'"),
        (
            '[ { "name" : "port1", "dimensions" : "1x2", "values" : [ 1, 2 ] } ]',
            "gives output 'y:0' the shape [1, 2], the model [1, 3]",
        ),
        (
            '[ { "name" : "port1", "dimensions" : "1x3", "values" : [ 1, 2 ] } ]',
            "trtexec left no outputs.json that reads: cannot reshape array of size 2 into shape (1,3)",
        ),
        ('[ { "name" : "port1" } ]', "trtexec left no outputs.json that reads: 'dimensions'"),
    ],
)
def test_outputs_that_are_not_the_models_are_a_refusal(trtexec: Path, answer: str, told: str) -> None:
    _answer(trtexec, exportOutput=answer)
    engine = TENSORRT.prepare(_model(), _feeds(1, 2, 3))
    engine.compute()
    with pytest.raises(RuntimeRefusalError) as caught:
        engine.fetch()
    assert str(caught.value) == f"TensorRT: {told}"


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        TENSORRT.version()
    assert str(caught.value) == (
        "TensorRT needs its command trtexec, which is not on PATH: it lies in the folder bin of TensorRT, "
        "https://developer.nvidia.com/tensorrt"
    )
