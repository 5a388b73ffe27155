"""profile: what is told, by node, beside another model, over runtimes, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir.analysis.execute import require_runtime
from onnxpress.ir.errors import UsageError
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.calibration.machine import Machine, this_machine
from onnxpress.targets.runtimes.base import Feeds, NodeClock, NodeTime
from onnxpress.targets.runtimes.onnxruntime import OnnxRuntime, PreparedSession
from onnxpress.targets.runtimes.registry import RUNTIMES, load_runtime
from onnxpress.targets.runtimes.timing import Latency
from onnxpress.targets.schema import MachineTable
from onnxpress.tools import profiling, runtimes
from onnxpress.tools.compress import compress
from onnxpress.tools.profiling import Profile, Step, Times, pinned, profile
from onnxpress.tools.report.console import console
from onnxpress.tools.report.profile_page import profile_page
from onnxpress.tools.report.profile_tables import show_comparison_by_node
from onnxpress.tools.report.trace import trace_events
from onnxpress.tools.runtimes import compare_runtimes
from tests.tools.conftest import CommandLine


def test_times_are_summed_up() -> None:
    times = Times.of(Latency(tuple(map(float, range(1, 102))), tuple(2.0 * value for value in range(1, 102))))
    assert (times.median, times.cpu_median, times.wall_median, times.rounds) == (102, 102, 51, 101)
    assert (times.p10, times.p90, times.p99) == pytest.approx((22, 182, 200))
    assert times.spread == pytest.approx(100 / 102)
    assert Times.of(Latency((3.0, 1.0, 2.0))).cpu_median is None


def test_steps_are_told_by_the_models_names(demo_files: Path) -> None:
    (found,) = profile(demo_files / "digits.onnx", target="x86-vnni", rounds=10).profiles
    steps = {step.name: step for step in found.steps}
    assert steps["block_2_conv"].fused == ("block_2_norm", "block_add", "block_relu")
    assert steps["block_2_conv"].macs == found.macs - sum(
        step.macs or 0 for step in found.steps if step.name != "block_2_conv"
    )
    assert sum(step.share for step in found.steps) == pytest.approx(1)
    assert steps["widen_conv"].moved_bytes == 4 * (32 * 256 + 64 * 256) + _weight_bytes(steps["widen_conv"], demo_files)
    assert all(step.predicted_ms is not None for step in found.steps if step.macs)
    assert found.predicted_ms is not None and found.params == 112682 and found.batch == 1
    assert found.times.median > 0 and found.create_ms is not None and found.create_ms > 0


_OPEN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3,H,W] x) => (float[N,8,H,W] y) <float[8,3,3,3] w> { [layer] y = Conv<pads = [1,1,1,1]>(x, w) }
"""


def _open_model() -> onnx.ModelProto:
    """A Conv over images of any size."""
    model = onnx.parser.parse_model(_OPEN)
    model.graph.ClearField("initializer")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w"))
    return model


def test_open_sizes_are_those_that_were_run() -> None:
    image = np.ones((1, 3, 20, 30), np.float32)
    (found,) = profile(_open_model(), target="x86-vnni", data={"x": image}, rounds=5).profiles
    (larger,) = profile(_open_model(), target="x86-vnni", data={"x": np.tile(image, (1, 1, 4, 4))}, rounds=5).profiles
    assert found.inputs == {"x": (1, 3, 20, 30)} and found.to_json()["inputs"] == {"x": (1, 3, 20, 30)}
    assert found.macs == 8 * 27 * 20 * 30 and found.peak_activation_bytes == 4 * (3 + 8) * 20 * 30
    layer = next(step for step in found.steps if step.name == "layer")
    assert layer.macs == found.macs and layer.moved_bytes == 4 * ((3 + 8) * 20 * 30 + 8 * 27)
    assert larger.macs == 16 * found.macs and found.predicted_ms is not None and larger.predicted_ms is not None
    assert larger.predicted_ms > 8 * found.predicted_ms


def test_open_sizes_need_data() -> None:
    with pytest.raises(UsageError) as caught:
        profile(_open_model(), rounds=5)
    assert str(caught.value) == (
        "profile: input 'x' is [N, 3, H, W]: it leaves sizes open that the time depends on. "
        "Give a sample of the size that counts: --data (data=)"
    )


def test_what_cannot_be_counted_is_said() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[M,K] y) '
        "{ [mask] i = NonZero(x) [cast] c = Cast<to = 1>(i) [flip] t = Transpose(c) [product] y = MatMul(t, c) }"
    )
    (found,) = profile(model, target="x86-vnni", rounds=5).profiles
    assert found.notes[1] == "MACs are not all known: node 'product' (MatMul): a shape is unknown"
    assert found.notes[2].startswith("bytes of values are a lower bound: ")
    product = next(step for step in found.steps if step.name == "product")
    assert (product.macs, product.moved_bytes, product.gflops, product.gb_per_s) == (None, None, None, None)


class _Session(PreparedSession):
    """A session that tells steps of 1 and 2 ms."""

    origins: tuple[str, ...] = ()

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        return [NodeTime("first", "Conv", 1.0, self.origins), NodeTime("second", "Conv", 2.0)]


class _Slow(OnnxRuntime):
    """onnxruntime by another name, whose conversion takes 50 ms of no CPU time here."""

    def __init__(self, clock: NodeClock | None) -> None:
        super().__init__("slow", "A slow one", "CPUExecutionProvider", time.thread_time)
        self.node_clock = clock

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> PreparedSession:
        time.sleep(0.05)
        return _Session(model, feeds, threads=threads, providers=("CPUExecutionProvider",))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> _Slow:
    runtime = _Slow("CPU")
    monkeypatch.setattr(profiling, "load_runtime", lambda name: runtime)
    return runtime


def test_steps_of_nodes_that_are_not_told_are_not_counted(slow: _Slow, cli: CommandLine, folder: Path) -> None:
    ran = cli("profile", "digits.onnx", "--target", "x86-vnni", "--runs", 5, "--json", "-", "--trace", "trace.json")
    found = json.loads(ran.out)
    unknown = ("macs", "moved_bytes", "gflops", "gb_per_s", "predicted_ms", "roofline")
    assert [[step[key] for key in unknown] for step in found["steps"]] == [[None] * 6] * 2
    assert found["macs"] > 0 and found["notes"] == [
        "the prediction is of onnxruntime-cpu, the measurement of slow",
        "slow does not say which nodes its steps compute: what each computes and moves is not known",
    ]
    assert re.search(r"^ first +Conv +█+ +1\.00 +33\.3 % +- *$", ran.err, re.MULTILINE)
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert [event["args"] for event in events if event["ph"] == "X"] == [{"fused": []}] * 2


def test_conversion_counts_as_loading(slow: _Slow, demo_files: Path) -> None:
    (found,) = profile(demo_files / "digits.onnx", rounds=5).profiles
    assert found.create_ms is not None and found.create_ms >= 50


@pytest.mark.parametrize(("clock", "threads", "read"), [("CPU", 1, "CPU"), ("CPU", 2, "elapsed"), ("GPU", 1, "GPU")])
def test_the_clock_of_the_steps_is_told(
    slow: _Slow, demo_files: Path, clock: NodeClock, threads: int, read: NodeClock
) -> None:
    slow.node_clock = clock
    (found,) = profile(demo_files / "digits.onnx", rounds=5, threads=threads).profiles
    assert found.node_clock == read


def _profile(times: Times, clock: NodeClock, *steps: float) -> Profile:
    made = tuple(Step(str(index), "Conv", taken, 0.0) for index, taken in enumerate(steps))
    return Profile("m", "t", "r", "1", 1, 1, times, 1.0, 0, 0, 0, 0, 0, made, node_clock=clock)


def test_what_is_outside_the_steps_is_of_undisturbed_time() -> None:
    times = Times.of(Latency(wall_ms=(20.0,) * 5, cpu_ms=(10.0,) * 5))
    assert _profile(times, "CPU", 4.0, 5.0).outside_ms == 1
    assert _profile(times, "elapsed", 4.0, 5.0).outside_ms == 1
    assert _profile(times, "CPU", 8.0, 5.0).outside_ms == 0 == _profile(times, "CPU", 8.0, 5.0).to_json()["outside_ms"]
    assert _profile(times, "CPU").outside_ms is None


@pytest.mark.parametrize("second", [1.0, 1.5])
def test_halves_that_differ_say_how_sure_the_figure_is(second: float) -> None:
    times = Times.of(Latency((1.0,) * 50 + (second,) * 50))
    assert times.undisturbed == 1.0
    assert times.repeats == pytest.approx(second - 1)
    assert Times.of(Latency((1.0,))).repeats == 0.0


def test_numbers_in_json_carry_their_units() -> None:
    told = Times.of(Latency((1.0, 2.0))).to_json()
    assert list(told) == [
        "undisturbed_ms", "median_ms", "p10_ms", "p90_ms", "p99_ms", "wall_undisturbed_ms", "wall_median_ms",
        "cpu_median_ms", "spread", "rounds", "repeats",
    ]  # fmt: skip


def test_a_runtime_of_another_version_than_the_profile_is_noted(
    demo_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = this_machine()
    table = MachineTable(
        architecture=here.architecture, processor="A Processor", runtime_version="onnxruntime-cpu 0.1.0"
    )
    monkeypatch.setattr("onnxpress.targets.base.this_machine", lambda: Machine(here.architecture, "A Processor"))
    target = Target(load_target("x86-vnni").profile.model_copy(update={"machine": table}))
    (found,) = profile(demo_files / "digits.onnx", target=target, rounds=5).profiles
    assert found.notes == (
        f"the prediction is of onnxruntime-cpu 0.1.0, the measurement of onnxruntime-cpu {found.version}",
    )


def test_an_iterator_feeds_every_model(demo_files: Path) -> None:
    with np.load(demo_files / "evaluation.npz") as arrays:
        samples = iter([{"input": arrays["input"][:1]}])
    found = profile(demo_files / "digits.onnx", demo_files / "digits.onnx", data=samples, rounds=5)
    assert len(found.profiles) == 2 and set(found.to_json()) == {"models", "speedup"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "profile: rounds = 0: must be 1 at least"),
        ({"threads": 0}, "profile: threads = 0: must be 1 at least"),
        ({"runtime": ""}, f"unknown runtime ''. There are: {', '.join(RUNTIMES)}"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(demo_files: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        profile(demo_files / "digits.onnx", **options)
    assert str(caught.value) == message


def test_a_call_without_a_model_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        profile()
    assert str(caught.value) == "profile: there is no model to measure. Give one at least"


def _weight_bytes(step: Step, folder: Path) -> int:
    from onnxpress.ir.analysis.cost import cost
    from onnxpress.ir.model_io import load

    mine = {step.name, *step.fused}
    return sum(node.weight_bytes for node in cost(load(folder / "digits.onnx")).nodes if node.name in mine)


def test_the_command_writes_json_and_a_trace(cli: CommandLine, folder: Path) -> None:
    ran = cli("profile", "digits.onnx", "--runs", 10, "--json", "-", "--trace", "trace.json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert found["runtime"] == "onnxruntime-cpu" and found["threads"] == 1
    assert {"milliseconds", "share", "macs", "moved_bytes", "gflops", "gb_per_s", "fused"} <= set(found["steps"][0])
    assert "widen_conv" in ran.err and "█" in ran.err and "GFLOP/s" in ran.err
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    timed = [event for event in events if event["ph"] == "X"]
    assert [event["name"] for event in timed] == [step["name"] for step in found["steps"]]
    assert all(b["ts"] == pytest.approx(a["ts"] + a["dur"]) for a, b in itertools.pairwise(timed))


def test_two_models_stand_side_by_side(cli: CommandLine, folder: Path) -> None:
    compress("digits.onnx", data="calibration.npz").save("small.onnx")
    ran = cli("profile", "digits.onnx", "--compare", "small.onnx", "--runs", 10, "--json", "-")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)
    assert [one["model"] for one in found["models"]] == ["digits.onnx", "small.onnx"] and found["speedup"] > 0
    assert re.search(r"^ widen_conv\s+Conv\s+QLinearConv\s", ran.err, re.MULTILINE)


def test_all_steps_of_two_models_stand_in_the_order_in_which_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    times = Times.of(Latency((100.0,)))
    one = _profile(times, "elapsed", *(float(each) for each in range(1, 21)))
    for every, shown in ((True, [*range(20)]), (False, [*range(19, 4, -1)])):
        show_comparison_by_node(console(), one, one, 1.0, every=every)
        told = capsys.readouterr().err
        assert [int(name) for name in re.findall(r"^ (\d+) +Conv", told, re.MULTILINE)] == shown
        assert ("... and 5 more: --all, or --json" in told) is not every


def test_a_page_holds_all_that_it_shows(cli: CommandLine, folder: Path) -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install 'onnxpress[report]'")
    assert cli("profile", "digits.onnx", "--runs", 5, "--report", "page.html").status == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "widen_conv" in page and "Roofline" in page
    assert not re.search(r'<(script|link)[^>]+(src|href)="http', page)


def test_a_page_holds_its_library_once_and_all_remarks() -> None:
    pytest.importorskip("plotly", reason="needs plotly: pip install 'onnxpress[report]'")
    times = Times.of(Latency((1.0,)))
    bare = dataclasses.replace(_profile(times, "elapsed"), notes=("a <remark>",))
    timed = _profile(times, "elapsed", 0.5)
    library = "plotly.js v"
    for profiles_shown in ((bare, timed), (timed, timed), (timed, bare)):
        page = profile_page(profiles_shown, None)
        assert page.count(library) == 1
        first = page.index("Plotly.newPlot(")
        assert page.index(library) < first
        assert page.count("<p>r tells no times by node</p>") == profiles_shown.count(bare)
        assert page.count("<p>a &lt;remark&gt;</p>") == profiles_shown.count(bare)
    assert "plotly" not in profile_page((bare,), None)


def test_without_plotly_nothing_is_measured(cli: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    ran = cli("profile", "digits.onnx", "--report", "page.html")
    assert ran.status == 2 and ran.error == (
        "error: --report draws with plotly, which is not installed: pip install 'onnxpress[report]'"
    )
    assert not (folder / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "clock", "tells_nodes"),
    [("litert", None, False), ("ncnn", "CPU", False), ("mnn", "CPU", False), ("openvino", "elapsed", True)],
)
def test_what_each_runtime_tells(demo_files: Path, name: str, clock: NodeClock | None, tells_nodes: bool) -> None:
    try:
        load_runtime(name).version()
    except UsageError as error:
        pytest.skip(str(error))
    (found,) = profile(demo_files / "digits.onnx", runtime=name, target="x86-vnni", rounds=5).profiles
    assert (found.runtime, found.node_clock, bool(found.steps)) == (name, clock, clock is not None)
    assert any(step.macs is not None for step in found.steps) is tells_nodes
    silent = f"{name} does not say which nodes its steps compute: what each computes and moves is not known"
    assert (silent in found.notes) is (clock is not None and not tells_nodes)


def test_every_runtime_has_a_row(folder: Path) -> None:
    rows = compare_runtimes("digits.onnx", data="evaluation.npz", rounds=5)
    assert [row.runtime for row in rows] == list(RUNTIMES)
    for row in rows:
        assert (row.times is None) == bool(row.status), row
        assert row.times is None or (row.samples, row.agreement) == (200, 100.0)
    own = next(row for row in rows if row.runtime == "onnxruntime-cpu")
    assert own.ratio == 1 and own.error == 0


def test_the_target_in_use_is_not_replaced(cli: CommandLine, folder: Path) -> None:
    text = 'extends = "x86-vnni"\nname = "desk"\n'
    (folder / "desk.toml").write_text(text, encoding="utf-8")
    ran = cli("profile", "digits.onnx", "--target", "desk.toml", "--json", "desk.toml", "--force")
    assert ran.status == 2 and ran.error == "error: --json 'desk.toml': the same file as --target. Give another path."
    assert (folder / "desk.toml").read_text(encoding="utf-8") == text


def test_the_table_over_runtimes_is_printed(cli: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(model: Path, **options: Any) -> list[runtimes.RuntimeRow]:
        return compare_runtimes(model, runtimes=["onnxruntime-cpu", "tensorrt"], **options)

    monkeypatch.setattr(runtimes, "compare_runtimes", few)
    monkeypatch.setenv("PATH", str(folder))  # where there is no trtexec
    ran = cli("profile", "digits.onnx", "--runtime", "all", "--data", "evaluation.npz", "--runs", 5, "--json", "-")
    assert ran.status == 0, ran.err
    own, other = json.loads(ran.out)["runtimes"]
    assert own["runtime"] == "onnxruntime-cpu" and own["times"]["undisturbed_ms"] > 0 and own["status"] == ""
    assert other["times"] is None and other["status"].startswith("TensorRT needs its command trtexec")
    assert re.search(r"^ onnxruntime-cpu +\S+ +\S+ +1\.00 +\d+ % +100\.0 % of 200 +0\.0e\+00 ", ran.err, re.MULTILINE)
    assert f"tensorrt: {other['status']}\n" in ran.err


_ALONE = "--runtime all makes a table, and has no use for it. Name one runtime."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--runtime all --compare digits.onnx", f"--compare: {_ALONE}"),
        ("--runtime all --target x86-vnni", f"--target: {_ALONE}"),
        ("--runtime all --trace t.json", f"--trace: {_ALONE}"),
        ("--runtime all --report r.html", f"--report: {_ALONE}"),
        ("--runtime all --all", f"--all: {_ALONE}"),
        (
            "--runtime litert --device ssh://nobody@localhost",
            "--device: it runs models in its onnxruntime. Leave --runtime out.",
        ),
        ("--trace digits.onnx", "--trace 'digits.onnx': the same file as MODEL. Give another path."),
    ],
)
def test_options_that_make_no_sense_are_refused(cli: CommandLine, folder: Path, options: str, message: str) -> None:
    before = sorted(folder.iterdir())
    ran = cli("profile", "digits.onnx", *options.split())
    assert (ran.status, ran.error) == (2, f"error: {message}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ("--runtime lite-rt", "unknown runtime 'lite-rt'. Did you mean 'litert' or 'tensorrt'? There are: "),
        ("--device shh://nobody@localhost", "unknown device 'shh://nobody@localhost'. Did you mean 'ssh'? "),
    ],
)
def test_what_is_not_known_is_told_with_near_names(
    cli: CommandLine, folder: Path, options: str, beginning: str
) -> None:
    ran = cli("profile", "digits.onnx", *options.split())
    assert ran.status == 2 and ran.error.startswith(f"error: {beginning}")


def test_a_runtime_that_is_not_here_is_told(cli: CommandLine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))  # where there is no trtexec
    ran = cli("profile", "digits.onnx", "--target", "tensorrt")
    assert ran.status == 2 and ran.error.startswith("error: TensorRT needs its command trtexec, which is not on PATH: ")


def test_a_refusal_keeps_the_runtimes_words(cli: CommandLine, folder: Path) -> None:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[4,4] y) { [bad] y = MatMul(x, x) }'
    )
    (folder / "bad.onnx").write_bytes(model.SerializeToString())
    ran = cli("profile", "bad.onnx", "--runs", 5)
    version = require_runtime().__version__
    assert (ran.status, ran.error) == (
        1,
        f"error: onnxruntime {version}: does not load the model: FAIL : Node (bad) Op (MatMul) [ShapeInferenceError] "
        "Incompatible dimensions for matrix multiplication",
    )


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no process")
def test_fast_cores_are_pinned_to_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    monkeypatch.setattr(profiling, "fastest_cores", lambda cores, count: sorted(cores)[:count])
    with pinned(1):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_traces_hold_a_process_for_each_model() -> None:
    times = Times.of(Latency((1.0,)))
    one = Profile("m", "t", "r", "1", 1, 1, times, 1.0, 0, 0, 0, 0, 0, (Step("a", "Conv", 0.5, 1.0),))
    events = trace_events([one, one])["traceEvents"]
    assert [event["pid"] for event in events] == [1, 1, 2, 2]
    assert [event.get("dur") for event in events if event["ph"] == "X"] == [500.0, 500.0]


def test_targets_without_an_estimate_predict_nothing(demo_files: Path) -> None:
    base = load_target("x86-vnni").profile
    target = Target(base.model_copy(update={"roofline": None, "name": "bare"}))
    (found,) = profile(demo_files / "digits.onnx", target=target, rounds=5).profiles
    assert found.predicted_ms is None and all(step.predicted_ms is None for step in found.steps)
    assert found.notes == ("bare has no cost estimate: nothing is predicted",)
    assert np.isfinite(found.times.median)


def test_a_prediction_of_one_thread_beside_two_is_noted(demo_files: Path) -> None:
    (found,) = profile(demo_files / "digits.onnx", rounds=5, threads=2).profiles
    assert "the prediction is of one thread, the measurement of 2" in found.notes and not found.is_predicted_here
