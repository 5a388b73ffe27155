"""compress: what it gives, what it reports, that it repeats itself, and when it says no."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.errors import BudgetError, InternalError, UsageError
from onnxpress.passes.base import Context, Declined, Pass, Rewrites, Site, SiteOptions
from onnxpress.passes.selectors import Selection
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.schema import IrVersion, Rule
from onnxpress.tools.compress import compress
from onnxpress.tools.plan import prepare
from onnxpress.tools.recipe import MANIFEST_KEY
from onnxpress.tools.result import DropError, Report, Result
from tests.support import random_feeds, run

CommandLine = Callable[..., Any]

_METRICS = {"params", "macs", "bytes", "bits_per_weight", "accuracy", "agreement", "sqnr_db", "latency_ms"}
_KEYS = {"model", "target", "pipeline", "seed", "seconds", "peak_rss_bytes", "before", "after", "passes"}
_PASS_KEYS = {"name", "options", "seconds", "sites", "declined", "before", "after"}


@pytest.fixture(scope="module")
def demo(repository_demo: Path) -> Result:
    """The demo model, compressed once by the target's own pipeline."""
    return compress(
        repository_demo / "digits.onnx",
        data=repository_demo / "calibration.npz",
        eval_data=repository_demo / "evaluation.npz",
    )


@pytest.fixture(scope="module")
def repository_demo() -> Path:
    return Path(__file__).resolve().parents[2] / "tools" / "demo"


class Scale(Pass):
    """Multiply the first float weight: a lossy pass whose loss the test chooses."""

    name = "scale"
    fidelity = "lossy"

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        value = next(iter(model.graph.initializers.values()))
        assert value.const_value is not None
        value.const_value = onnx_ir.tensor(value.const_value.numpy() * np.float32(self._factor), name=value.name)
        site = Site("stem_conv", "Conv", error={"sqnr_db": 3.0})
        return Rewrites([site], [Declined("head", "Gemm", "not the first")])


class Break(Pass):
    """Fail as a bug would."""

    name = "break"
    fidelity = "bits"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        raise ZeroDivisionError("by nothing")


def test_demo_gets_smaller_and_keeps_its_accuracy(demo: Result) -> None:
    report = demo.report
    assert report.after.size_bytes < 0.3 * report.before.size_bytes
    assert report.before.accuracy is not None and report.after.accuracy is not None
    assert report.after.accuracy >= report.before.accuracy - 0.5
    assert report.samples == 797
    assert report.after.sqnr_db is not None and report.after.sqnr_db > 20
    assert report.kernels.unfused == ()
    assert report.kernels.integer != ()
    assert report.before.latency_ms is not None and report.after.latency_ms is not None


def test_report_has_the_fixed_json_keys(demo: Result) -> None:
    document = json.loads(json.dumps(demo.report.to_json()))
    assert document.keys() >= _KEYS
    assert document["before"].keys() == document["after"].keys() == _METRICS
    assert [one["name"] for one in document["passes"]] == ["cleanup", "fold-batchnorm", "quantize-int8"]
    for one in document["passes"]:
        assert one.keys() >= _PASS_KEYS
        assert one["before"].keys() == one["after"].keys() == _METRICS
    quantized = document["passes"][-1]
    assert quantized["options"]["method"] == "mse"
    assert quantized["sites"][0].keys() == {"name", "kind", "before", "after", "error", "detail"}
    assert document["target"] == "host-cpu"
    assert document["pipeline"] == "cleanup, fold-batchnorm, quantize-int8"
    assert document["before"]["agreement"] is None and document["before"]["sqnr_db"] is None
    assert document["peak_rss_bytes"] > 10_000_000
    assert document["seconds"] > 0


def test_reported_bytes_are_those_of_the_file(demo: Result, tmp_path: Path, repository_demo: Path) -> None:
    written = model_io.save(demo.model, tmp_path / "out.onnx")
    assert written == (tmp_path / "out.onnx").stat().st_size == demo.report.after.size_bytes
    assert demo.report.before.size_bytes == (repository_demo / "digits.onnx").stat().st_size


def test_manifest_says_what_made_the_model(demo: Result, repository_demo: Path) -> None:
    manifest = json.loads(demo.model.metadata_props[MANIFEST_KEY])
    assert manifest == {
        "data_digest": demo.recipe.data_digest,
        "model_digest": model_io.digest(repository_demo / "digits.onnx"),
        "pipeline": "cleanup, fold-batchnorm, quantize-int8",
        "seed": 0,
        "target": "host-cpu",
        "versions": demo.recipe.versions,
    }
    assert {"onnxpress", "onnx", "onnx-ir"} <= manifest["versions"].keys()


def test_source_is_never_changed(repository_demo: Path) -> None:
    proto = onnx.load(repository_demo / "digits.onnx")
    content = proto.SerializeToString(deterministic=True)
    model = model_io.load(proto)
    before = model_io.to_proto_bytes(model)
    result = compress(model, passes=[Scale(2.0)])
    assert compress(proto, passes=[Scale(2.0)]).recipe.model_digest == result.recipe.model_digest
    assert proto.SerializeToString(deterministic=True) == content
    assert model_io.to_proto_bytes(model) == before
    assert model_io.to_proto_bytes(result.model) != before


def test_same_input_and_seed_give_the_same_bytes(folder: Path, cli: CommandLine) -> None:
    arguments = ["--data", "calibration.npz", "--seed", "3"]
    assert cli("compress", "digits.onnx", "a.onnx", *arguments, "--save-recipe", "a.toml").status == 0
    (folder / "sub").mkdir()
    (folder / "sub" / "renamed.npz").write_bytes((folder / "calibration.npz").read_bytes())
    arguments = ["--data", str(folder / "sub" / "renamed.npz"), "--seed", "3"]
    assert cli("compress", folder / "digits.onnx", "-o", "b.onnx", *arguments).status == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert cli("compress", "digits.onnx", "c.onnx", "--recipe", "a.toml", "--save-recipe", "c.toml").status == 0
    assert (folder / "a.onnx").read_bytes() == (folder / "c.onnx").read_bytes()
    assert (folder / "a.toml").read_bytes() == (folder / "c.toml").read_bytes()
    assert str(folder).encode() not in (folder / "a.onnx").read_bytes() + (folder / "a.toml").read_bytes()


def test_json_on_stdout_is_clean_and_people_read_stderr(folder: Path, cli: CommandLine) -> None:
    ran = cli("compress", "digits.onnx", "out.onnx", "--data", "calibration.npz", "--json", "-")
    assert ran.status == 0
    document = json.loads(ran.out)
    assert (document["model"], document["written"]) == ("digits.onnx", "out.onnx")
    assert "\x1b" not in ran.err
    plan, _, result = ran.err.partition("seed    0")
    assert [line.split()[0] for line in plan.splitlines()] == ["model", "target", "passes", "data"]
    for word in (
        "latency",
        "same top-1 class",
        "SQNR",
        "what hurts most",
        "quantize-int8",
        "written: out.onnx",
    ):
        assert word in result
    assert re.fullmatch(r"\d+\.\d s in all, \d+\.\d s of them measuring", ran.err.splitlines()[-1])
    assert 0 < document["measuring_seconds"] < document["seconds"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.npz", "digits.onnx", "evaluation.npz", "out.onnx"
    ]  # fmt: skip


def test_written_model_computes_what_the_result_does(folder: Path, cli: CommandLine) -> None:
    assert cli("compress", "digits.onnx", "out.onnx", "--data", "calibration.npz", "--json", "r.json").status == 0
    model = model_io.load("out.onnx")
    result = compress("digits.onnx", data="calibration.npz")
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(model, feeds)[0], run(result.model, feeds)[0])
    assert json.loads((folder / "r.json").read_text())["after"]["bytes"] == (folder / "out.onnx").stat().st_size


def test_existing_output_is_replaced_only_with_force(folder: Path, cli: CommandLine) -> None:
    (folder / "out.onnx").write_text("mine")
    assert cli("compress", "digits.onnx", "out.onnx", "--passes", "cleanup").status == 2
    assert (folder / "out.onnx").read_text() == "mine"
    assert cli("compress", "digits.onnx", "out.onnx", "--passes", "cleanup", "--force").status == 0
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))
    assert cli("compress", "digits.onnx", "digits.onnx", "--passes", "cleanup", "--force").status == 0
    onnx.checker.check_model(onnx.load(folder / "digits.onnx"))


def test_pipeline_comes_from_a_file_too(folder: Path, cli: CommandLine) -> None:
    (folder / "mine.txt").write_text("# only this\ncleanup,\nfold-batchnorm\n")
    ran = cli("compress", "digits.onnx", "out.onnx", "--passes", "mine.txt", "--json", "-")
    assert json.loads(ran.out)["pipeline"] == "cleanup, fold-batchnorm"


def test_print_after_change_shows_passes_and_lowering(folder: Path, cli: CommandLine) -> None:
    ran = cli("compress", "digits.onnx", "out.onnx", "--data", "calibration.npz", "--print-after-change")
    assert ran.status == 0 and ran.out == ""
    assert "// changed by fold-batchnorm" in ran.err
    assert "// changed by lowering for host-cpu" in ran.err
    ran = cli("compress", "digits.onnx", "b.onnx", "--data", "calibration.npz", "--print-after-all", "--verify-each")
    assert ran.status == 0 and ran.out == ""
    assert "// after quantize-int8" in ran.err
    assert "// after lowering for host-cpu" in ran.err


def test_result_that_the_runtime_refuses_is_not_given(repository_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.targets.runtimes.refusal import RuntimeRefusalError

    def refuse(*_: Any) -> bool:
        raise RuntimeRefusalError("onnxruntime 0: does not load the model: no kernel")

    monkeypatch.setattr("onnxpress.tools.compress.smoke_run", refuse)
    with pytest.raises(BudgetError) as caught:
        compress(repository_demo / "digits.onnx", passes=[])
    assert str(caught.value) == (
        "the result is refused: onnxruntime 0: does not load the model: no kernel. Nothing is written."
    )


def test_result_that_could_only_be_loaded_is_told() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        "g (float[N, S] x) => (float[N, 11] y) <int64[2] s = {-1, 11}> {y = Reshape(x, s)}"
    )
    notes = compress(model, passes=[]).report.notes
    assert (
        "the result was loaded but not run: its input sizes are open. Give --data, or data=..., to try it on a sample"
        in notes
    )
    samples = np.ones((2, 11), np.float32)
    assert not any("not run" in note for note in compress(model, passes=[], data=samples).report.notes)


# What a user must not miss.


def test_slower_and_bigger_are_the_first_lines(repository_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.targets.runtimes.timing import Latency
    from onnxpress.tools import measure

    def slower(models: Any, *_: Any, **__: Any) -> dict[str, Latency]:
        return {name: Latency((1.0,), (2.0 if name == "after" else 1.0,)) for name in models}

    monkeypatch.setattr(measure, "interleaved_latency", slower)
    report = compress(repository_demo / "digits.onnx", passes=[]).report
    assert report.headlines[0] == "NOT FASTER: latency 1.00 ms before, 2.00 ms after (0.500x)"
    found = re.fullmatch(
        r"NOT SMALLER: ([\d,]+) bytes before, ([\d,]+) bytes after: weights ([\d,]+) and ([\d,]+), operators, names "
        r"and the rest ([\d,]+) and ([\d,]+)",
        report.headlines[1],
    )
    assert found is not None
    sizes = [int(number.replace(",", "")) for number in found.groups()]
    assert sizes[0] == sizes[2] + sizes[4] <= sizes[1] == sizes[3] + sizes[5]
    assert report.headlines[2] == (
        "NOTHING WAS REWRITTEN: every pass found nothing, or declined what it found (reasons below)"
    )
    assert report.speedup == 0.5


def test_nearly_equal_latency_is_the_same(repository_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxpress.targets.runtimes.timing import Latency
    from onnxpress.tools import measure

    times = {"before": 0.33, "after": 0.339}

    def equal(models: Any, *_: Any, **__: Any) -> dict[str, Latency]:
        return {name: Latency((times[name],), (times[name],)) for name in models}

    monkeypatch.setattr(measure, "interleaved_latency", equal)
    report = compress(repository_demo / "digits.onnx", passes=[]).report
    assert report.headlines[0] == "NOT FASTER: latency is the same, 0.330 ms before, 0.339 ms after"
    assert re.search(r"latency +0\.330 ms +0\.339 ms +same\n", str(report))
    times["after"] = 0.325  # better, if only by noise
    report = compress(repository_demo / "digits.onnx", passes=[]).report
    assert report.headlines[0].startswith("NOT SMALLER")


def test_latency_of_this_machine_does_not_read_as_that_of_another_target(repository_demo: Path) -> None:
    data = repository_demo / "calibration.npz"
    report = compress(repository_demo / "digits.onnx", target="mobile-cpu", data=data).report
    assert "latency was measured on this machine, which is not what mobile-cpu describes" in report.notes
    assert "\n latency here " in str(report) and "\n latency  " not in str(report)
    assert "; latency here: median" in " ".join(str(report).split())
    assert report.to_json()["latency_is_of_target"] is False
    report = compress(repository_demo / "digits.onnx", passes="cleanup").report
    assert "\n latency  " in str(report) and not any("this machine" in note for note in report.notes)
    assert report.to_json()["latency_is_of_target"] is True


def test_first_line_of_the_printed_result_is_the_warning(folder: Path, cli: CommandLine) -> None:
    ran = cli("compress", "digits.onnx", "out.onnx", "--passes", "")
    lines = ran.err.splitlines()
    result = lines[lines.index("") + 1 :]
    assert result[0].startswith(("NOT FASTER", "NOT SMALLER"))
    assert "No data, so no accuracy and no fidelity: give --data." in ran.err


def test_few_samples_measure_without_evaluation_data(repository_demo: Path) -> None:
    report = compress(
        repository_demo / "digits.onnx", data=repository_demo / "calibration.npz", passes="cleanup"
    ).report
    assert 0 < report.sqnr_samples <= 32
    assert 0 < report.samples <= 128
    assert report.calibration_samples == 256
    assert report.samples_of == str(repository_demo / "calibration.npz")
    assert report.to_json()["measured_on"] == "calibration data"
    count = f"100\\.00 % \\({report.samples} of {report.samples}\\)"
    assert re.search(rf"accuracy on calibration data +{count} +{count} +\+0\.00 points\n", str(report))
    assert re.search(rf"same top-1 class on calibration data +{count}\n", str(report))
    assert "calibration.npz, for lack of --eval-data;" in " ".join(str(report).split())


def test_many_evaluation_samples_need_no_counts(demo: Result) -> None:
    assert demo.report.to_json()["measured_on"] == "evaluation data"
    assert re.search(r"\n accuracy +\d\d\.\d\d % +\d\d\.\d\d % ", str(demo.report))


def test_result_in_python_reads_well(demo: Result) -> None:
    assert re.fullmatch(
        r"<Result with <Report of '.*digits\.onnx' for host-cpu: 454,247 to 12\d,\d{3} bytes, "
        r"accuracy 98\.\d\d to 9\d\.\d\d %, latency [^,]+>>",
        repr(demo),
    )
    text = str(demo.report)
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= 110
    for word in ("bits per weight", "what hurts most", "fold-batchnorm"):
        assert word in text


def test_equal_models_have_the_highest_sqnr(repository_demo: Path) -> None:
    report = compress(repository_demo / "digits.onnx", data=repository_demo / "calibration.npz", passes=[]).report
    assert report.to_json()["after"]["sqnr_db"] == 200.0
    assert report.after.agreement == 100.0


# The budget.


def test_drop_in_accuracy_names_the_worst_sites(repository_demo: Path) -> None:
    with pytest.raises(DropError) as caught:
        compress(
            repository_demo / "digits.onnx",
            passes=[Scale(0.0)],
            eval_data=repository_demo / "evaluation.npz",
            max_drop=0.5,
        )
    before, after = caught.value.report.before.accuracy, caught.value.report.after.accuracy
    assert before is not None and after is not None
    assert str(caught.value) == (
        f"accuracy falls by {before - after:.2f} points, from {before:.2f} to {after:.2f} %: "
        f"{round((before - after) * 7.97)} of 797 samples of {repository_demo / 'evaluation.npz'} (evaluation data; "
        "one sample is 0.125 points); at most 0.5 was asked for. No model is written. "
        "Worst sites: 'stem_conv' (3.0 dB)."
    )
    assert caught.value.exit_code == 1


def test_drop_may_be_just_what_was_asked_for(repository_demo: Path) -> None:
    def halve(max_drop: float) -> Report:
        return compress(
            repository_demo / "digits.onnx",
            passes=[Scale(0.5)],
            data=repository_demo / "calibration.npz",
            max_drop=max_drop,
        ).report

    report = halve(100)
    assert report.before.accuracy is not None and report.after.accuracy is not None
    drop = report.before.accuracy - report.after.accuracy
    assert report.samples == 256 and drop > 0
    assert halve(drop).after.accuracy == report.after.accuracy
    with pytest.raises(DropError):
        halve(drop - 0.01)


_AGREEMENT_LOST = (
    r"^the top-1 class changes for (\d+)\.00 % of the samples: \d+ of 50 samples of <dict> "
    r"\(calibration data; one sample is 2 points\); at most 0 was asked for\. No model is written\."
)


def test_drop_without_labels_is_in_agreement(repository_demo: Path) -> None:
    with np.load(repository_demo / "evaluation.npz") as archive:
        samples = archive["input"][:50]
    with pytest.raises(BudgetError, match=_AGREEMENT_LOST):
        compress(repository_demo / "digits.onnx", passes=[Scale(0.0)], data={"input": samples}, max_drop=0)
    assert compress(repository_demo / "digits.onnx", passes=[], data={"input": samples}, max_drop=0)


def test_drop_needs_class_scores(repository_demo: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 4] x) => (float[N, 3, 4] y) {y = Relu(x)}'
    )
    with pytest.raises(UsageError) as caught:
        compress(model, passes=[], data=np.ones((5, 3, 4), np.float32), max_drop=1)
    assert str(caught.value) == (
        "--max-drop: the model's outputs are no class scores, so neither accuracy nor agreement can be told. "
        "Leave it out, and hold the result to an SQNR: onnxpress compare A B --data D --min-sqnr DB"
    )


def test_missed_budget_prints_the_table_and_writes_nothing(folder: Path, cli: CommandLine) -> None:
    before = sorted(folder.iterdir())
    arguments = [
        "--data",
        "calibration.npz",
        "--eval-data",
        "evaluation.npz",
        "--max-drop",
        "0",
        "--json",
        "-",
    ]
    pipeline = "quantize-int8{method=percentile,percentile=51}"
    ran = cli("compress", "digits.onnx", "out.onnx", "--save-recipe", "r.toml", "--passes", pipeline, *arguments)
    assert ran.status == 1
    assert ran.error.startswith("error: accuracy falls by ")
    worst = re.findall(r"'(\w+)' \(-?[\d.]+ dB\)", ran.error)
    assert len(worst) == 3
    suggested = shlex.split(ran.error.partition("Try to leave them alone: ")[2])
    assert suggested == [
        "--passes", f"quantize-int8{{method=percentile,percentile=51.0,exclude=[{','.join(worst)}]}}"
    ]  # fmt: skip
    assert "same top-1 class" in ran.err
    report = json.loads(ran.out)
    assert report["written"] is False
    assert f"error: {report['reason']}" == ran.error
    assert report["after"]["accuracy"] < report["before"]["accuracy"]
    assert sorted(folder.iterdir()) == before
    assert cli("compress", "digits.onnx", "out.onnx", "--passes", pipeline, *arguments[:-1], "r.json").status == 1
    assert json.loads((folder / "r.json").read_text())["reason"] == report["reason"]
    assert sorted(folder.iterdir()) == sorted([*before, folder / "r.json"])


# Illegal results, failures, reproducers.


def test_illegal_result_is_refused(repository_demo: Path) -> None:
    host = load_target("host-cpu")
    old = Target(host.profile.model_copy(update={"ir_version": IrVersion(max=5, source="test")}))
    with pytest.raises(BudgetError) as caught:
        compress(repository_demo / "digits.onnx", target=old, passes=[])
    assert str(caught.value).startswith("the result is illegal on host-cpu: the model: IR version ")
    assert str(caught.value).endswith(" Nothing is written.")


def test_two_places_are_the_first_and_one_more(repository_demo: Path) -> None:
    host = load_target("host-cpu").profile
    rule = Rule(id="no-gemm", check="present", ops=frozenset({"Gemm"}), source="test", advice="None.")
    old = host.model_copy(update={"ir_version": IrVersion(max=5, source="test"), "rules": (rule,)})
    with pytest.raises(BudgetError) as caught:
        compress(repository_demo / "digits.onnx", target=Target(old), passes=[])
    assert str(caught.value).endswith(" And 1 more place. Nothing is written.")


def test_recipes_know_a_profile_from_that_of_the_package(repository_demo: Path) -> None:
    host = load_target("host-cpu")
    assert compress(repository_demo / "digits.onnx", target=host, passes=[]).recipe.target_digest is None
    other = Target(host.profile.model_copy(update={"channel_multiple": 3}))
    digest = compress(repository_demo / "digits.onnx", target=other, passes=[]).recipe.target_digest
    assert digest is not None and len(digest) == 64


def test_failing_pass_leaves_a_reproducer(repository_demo: Path, tmp_path: Path) -> None:
    with pytest.raises(InternalError) as caught:
        compress(repository_demo / "digits.onnx", passes=[Break()], crash_dir=tmp_path / "crash")
    assert str(caught.value) == (
        f"break: failed: ZeroDivisionError: by nothing. What repeats it is in {tmp_path / 'crash'}, see repeat.txt"
    )
    assert (tmp_path / "crash" / "repeat.txt").read_text() == (
        "onnxpress compress model.onnx -o out.onnx --passes pipeline.txt --seed 0 --target host-cpu\n"
    )


def test_failing_lowering_leaves_a_reproducer(
    repository_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = Target.lower

    def fail_late(target: Target, model: onnx_ir.Model) -> None:
        lower(target, model)
        raise KeyError("scale")

    monkeypatch.setattr(Target, "lower", fail_late)
    with pytest.raises(InternalError) as caught:
        compress(repository_demo / "digits.onnx", passes="cleanup")
    assert str(caught.value) == (
        "lowering for host-cpu failed: KeyError: 'scale'. Run again with --crash-dir DIR to get what repeats it"
    )
    with pytest.raises(InternalError, match="What repeats it is in"):
        compress(
            repository_demo / "digits.onnx",
            passes="cleanup, quantize-int8",
            data=repository_demo / "calibration.npz",
            crash_dir=tmp_path,
        )
    assert (tmp_path / "pipeline.txt").read_text() == "cleanup, quantize-int8\n"
    assert model_io.digest(tmp_path / "model.onnx") == model_io.digest(repository_demo / "digits.onnx")


def test_reproducer_runs_again(folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("scale")

    with monkeypatch.context() as broken:
        broken.setattr("onnxpress.passes.quantize.quantize_int8.QuantizeInt8.run", fail)
        ran = cli("compress", "digits.onnx", "o.onnx", "--data", "calibration.npz", "--crash-dir", "crash")
        assert ran.status == 70
        monkeypatch.chdir(folder / "crash")
        command = shlex.split(Path("repeat.txt").read_text())
        assert cli(*command[1:]).status == 70
    assert cli(*command[1:]).status == 0


# The recipe.


def test_flags_win_over_the_recipe(folder: Path, cli: CommandLine) -> None:
    arguments = ["--passes", "cleanup", "--seed", "4", "--save-recipe", "r.toml"]
    assert cli("compress", "digits.onnx", "a.onnx", *arguments).status == 0
    ran = cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml", "--seed", "5", "--json", "-")
    document = json.loads(ran.out)
    assert (document["seed"], document["pipeline"]) == (5, "cleanup")


def test_recipe_finds_its_data_beside_itself(folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("compress", "digits.onnx", "a.onnx", "--data", "calibration.npz", "--save-recipe", "r.toml").status == 0
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert cli("compress", "../digits.onnx", "b.onnx", "--recipe", "../r.toml").status == 0
    assert Path("b.onnx").read_bytes() == Path("../a.onnx").read_bytes()


def test_recipe_of_another_model_is_refused(folder: Path, cli: CommandLine) -> None:
    assert cli("compress", "digits.onnx", "a.onnx", "--passes", "cleanup", "--save-recipe", "r.toml").status == 0
    other = onnx.load("digits.onnx")
    other.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(other.graph.initializer[0]) * 2, other.graph.initializer[0].name
        )
    )
    onnx.save(other, "other.onnx")
    expected, got = model_io.digest("digits.onnx"), model_io.digest("other.onnx")
    ran = cli("compress", "other.onnx", "b.onnx", "--recipe", "r.toml")
    assert ran.status == 3
    assert ran.error == (
        "error: other.onnx: not the model that the recipe was made for: "
        f"expected sha256 {expected}, got {got}. "
        "To use the recipe on another model, remove its line model_digest."
    )
    assert not Path("b.onnx").exists()


def test_recipe_with_other_data_is_refused_unless_data_is_given(folder: Path, cli: CommandLine) -> None:
    assert cli("compress", "digits.onnx", "a.onnx", "--data", "calibration.npz", "--save-recipe", "r.toml").status == 0
    (folder / "calibration.npz").write_bytes((folder / "evaluation.npz").read_bytes())
    ran = cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml")
    assert ran.status == 3
    assert ran.error.startswith("error: calibration.npz: not the data that the recipe was made with: expected sha256 ")
    assert cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml", "--data", "evaluation.npz").status == 0


def test_recipe_of_data_from_python_asks_for_it(folder: Path, cli: CommandLine) -> None:
    with np.load("calibration.npz") as archive:
        result = compress("digits.onnx", data={"input": archive["input"], "labels": archive["labels"]})
    result.recipe.write("r.toml")
    ran = cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml")
    assert ran.status == 2
    assert ran.error == (
        "error: the recipe was made with calibration data handed over in Python. Give the same with --data."
    )


def test_recipe_of_other_versions_is_a_warning(folder: Path, cli: CommandLine) -> None:
    Path("r.toml").write_text('pipeline = "cleanup"\n[versions]\nonnx = "0.1"\n')
    ran = cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml")
    assert ran.status == 0
    assert f"warning: the recipe was made with onnx 0.1 (here {onnx.__version__}): the result may differ\n" in ran.err


class Insert(Pass):
    """Put a node named "late" behind the first node."""

    name = "insert"
    fidelity = "bits"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        first = model.graph[0]
        late = onnx_ir.node("Identity", [first.outputs[0]], name="late")
        late.outputs[0].name, late.outputs[0].type = "late_output", first.outputs[0].type
        first.outputs[0].replace_all_uses_with(late.outputs[0])
        late.replace_input_with(0, first.outputs[0])
        model.graph.insert_after(first, late)
        return Rewrites([Site("late", "Identity")])


class Touch(Pass):
    """Look its selectors up."""

    name = "touch"
    fidelity = "bits"
    options_type = SiteOptions
    options: SiteOptions

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        Selection.from_options(self.options, model, self.name)
        return Rewrites()


def test_selectors_are_checked_before_data_is_read_also_for_nodes_that_passes_make(repository_demo: Path) -> None:
    model = repository_demo / "digits.onnx"
    assert prepare(model, passes=[Insert(), Touch(include=["late"])]).pipeline == "insert, touch{include=[late]}"
    with pytest.raises(UsageError, match=r"^touch: include='later' matches no node\. Did you mean 'late'"):
        prepare(model, passes=[Insert(), Touch(include=["later"])], data="gone.npz")
    assert prepare(model, passes=[Break(), Touch(include=["later"])]).passes != ()  # its failure is the run's to tell


def test_plan_is_checked_before_work(repository_demo: Path) -> None:
    plan = prepare(repository_demo / "digits.onnx", passes="cleanup")
    assert plan.pipeline == "cleanup"
    assert plan.repeat_flags == ("--target", "host-cpu")


def test_own_profile_is_named_in_full_where_a_run_is_repeated(tmp_path: Path, repository_demo: Path) -> None:
    profile = tmp_path / "phone.toml"
    profile.write_text('extends = "mobile-cpu"\nname = "phone"\n')
    plan = prepare(repository_demo / "digits.onnx", target=profile, passes="cleanup")
    assert plan.repeat_flags == ("--target", str(profile))
    assert plan.recipe.target == "phone.toml"


def test_worst_sites_come_by_sqnr_then_by_that_of_weights_then_by_size_of_error(demo: Result) -> None:
    import dataclasses

    from onnxpress.passes.manager import PassRecord

    sites = [
        Site("good", "Conv", error={"sqnr_db": 50.0}),
        Site("near", "Conv", error={"weight_sqnr_db": 49.0}),
        Site("far", "Conv", error={"weight_sqnr_db": 5.0}),
        Site("large", "Conv", error={"mse": 2.0}),
        Site("small", "Conv", error={"mse": 0.1}),
        Site("bad", "Conv", error={"sqnr_db": 10.0}),
        Site("exact", "Conv"),
    ]
    amount = demo.report.passes[0].before
    record = PassRecord("p", {}, 0.0, Rewrites(sites), amount, amount)
    report: Report = dataclasses.replace(demo.report, passes=(record,))
    assert [site.name for _, site in report.worst_sites()] == ["bad", "good", "far", "near", "large", "small"]
    assert [site.name for _, site in report.worst_sites(1)] == ["bad"]
