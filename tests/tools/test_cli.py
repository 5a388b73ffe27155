"""The command line: what every command gives people and programs, and how it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxpress.targets.base import target_names

CommandLine = Callable[..., Any]

_COMMANDS = [
    "compress", "inspect", "profile", "compare", "check", "calibrate", "pack", "unpack", "passes", "targets", "demo",
]  # fmt: skip


def test_help_comes_fast_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from onnxpress.tools.cli import main; status = main(['--help']); "
        "heavy = {'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'pydantic'} & set(sys.modules); "
        "print(sorted(heavy), status)"
    )
    start = time.perf_counter()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2  # 0.1 s alone; 2 s is for a machine that does other things too
    assert ran.stdout.splitlines()[-1] == "[] 0"
    assert re.findall(r"^  (\w+) ", ran.stdout.partition("Commands:")[2], re.MULTILINE) == _COMMANDS


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help(command: str, cli: CommandLine) -> None:
    ran = cli(command, "--help")
    assert ran.status == 0 and ran.err == ""
    assert ran.out.startswith(f"Usage: onnxpress {command} ")
    assert "..." not in ran.out


def test_shared_options_are_spelled_and_explained_alike(cli: CommandLine) -> None:
    texts: dict[str, set[str]] = {}
    for command in _COMMANDS:
        options = " ".join(cli(command, "--help").out.partition("Options:")[2].split())
        for found in re.finditer(r"(-o|--[a-z-]+)( [A-Z][\w|.]*)? (.*?)(?= --[a-z]| -o |$)", options):
            texts.setdefault(found[1], set()).add(f"{found[2]} {found[3]}")
    shared = ("--target", "--data", "--json", "--seed", "--force", "-o")
    assert {option: len(texts[option]) for option in shared} == dict.fromkeys(shared, 1)


def test_no_command_shows_the_help(cli: CommandLine) -> None:
    ran = cli()
    assert ran.status == 2 and ran.out == ""
    assert "Commands:" in ran.err


def test_unknown_command_gets_near_names(cli: CommandLine) -> None:
    ran = cli("comprss")
    assert ran.status == 2
    assert ran.err == (
        f"error: no such command 'comprss'. Did you mean 'compress' or 'compare'? Commands: {', '.join(_COMMANDS)}\n"
    )


def test_version(cli: CommandLine) -> None:
    import onnxpress

    assert cli("--version").out == f"onnxpress {onnxpress.__version__}\n"


def test_module_runs_as_the_command_does() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "onnxpress", "passes", "nothing"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: unknown pass 'nothing'")


def test_closed_pipe_is_no_error_message(folder: Path) -> None:
    command = f"{sys.executable} -m onnxpress inspect digits.onnx --json - 2>err.txt | true"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    subprocess.run(["bash", "-c", command], check=True, env=environment)
    assert "error" not in (folder / "err.txt").read_text().lower()


def test_forced_colours_reach_the_terminal_only(folder: Path) -> None:
    command = [sys.executable, "-m", "onnxpress", "inspect", "digits.onnx", "--json", "-"]
    plain = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in plain.stdout + plain.stderr
    json.loads(plain.stdout)


# inspect


def test_inspect_tells_what_the_model_is_made_of(folder: Path, cli: CommandLine) -> None:
    ran = cli("inspect", "digits.onnx", "--json", "-")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["bytes"] == (folder / "digits.onnx").stat().st_size
    assert found["macs"] == sum(node["macs"] for node in found["nodes"])
    assert found["params"] == 112_682
    assert found["inputs"] == [{"name": "input", "dtype": "float", "shape": "[N, 1, 16, 16]"}]
    assert found["operators"]["Conv"] == 6
    assert found["manifest"] is None
    for word in ("112,682", "heaviest nodes", "of activations at batch 1", "stem_conv"):
        assert word in ran.err


def test_inspect_says_what_it_cannot_know(folder: Path, cli: CommandLine) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "mine": 1]> '
        "g (float[N, 4] x) => (float[N, 4] y) {h = mine.Secret(x) y = Relu(h)}"
    )
    onnx.save(model, "secret.onnx")
    ran = cli("inspect", "secret.onnx", "--json", "-")
    found = json.loads(ran.out)
    assert found["operators"] == {"mine::Secret": 1, "Relu": 1}
    assert found["unknown"] == ["node 'Secret_0' (Secret): what operators of domain 'mine' compute is unknown"]
    assert "0 or more (1 nodes unknown)" in ran.err


def test_inspect_knows_its_own_work(folder: Path, cli: CommandLine) -> None:
    assert cli("compress", "digits.onnx", "out.onnx", "--passes", "cleanup").status == 0
    ran = cli("inspect", "out.onnx", "--json", "-")
    assert json.loads(json.loads(ran.out)["manifest"])["pipeline"] == "cleanup"
    assert "made by" in ran.err


# compare


@pytest.fixture
def small(folder: Path, cli: CommandLine) -> Path:
    """`small.onnx`: the demo model in 8 bits, beside it."""
    assert cli("compress", "digits.onnx", "small.onnx", "--data", "calibration.npz").status == 0
    return folder / "small.onnx"


def test_compare_on_real_samples(small: Path, cli: CommandLine) -> None:
    ran = cli("compare", "digits.onnx", "small.onnx", "--data", "evaluation.npz", "--json", "-")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["samples"] == 797
    assert found["b"]["bytes"] == small.stat().st_size
    assert found["b"]["agreement"] > 99 and found["b"]["accuracy"] > 98
    assert found["outputs"]["logits"]["sqnr_db"] == found["b"]["sqnr_db"] > 20
    assert found["a"]["latency_ms"] > 0 and found["b"]["latency_ms"] > 0
    assert "Accuracy and fidelity on 797 samples of evaluation.npz" in ran.err


def test_compare_without_data_claims_no_fidelity(small: Path, cli: CommandLine) -> None:
    ran = cli("compare", "digits.onnx", "small.onnx", "--json", "-")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["samples"] == 0 and found["outputs"] == {}
    assert found["b"]["accuracy"] is None and found["b"]["agreement"] is None and found["b"]["sqnr_db"] is None
    assert found["b"]["latency_ms"] > 0
    assert "No data, so no accuracy and no fidelity: give --data." in ran.err


def test_compare_holds_to_thresholds(small: Path, cli: CommandLine) -> None:
    arguments = ["compare", "digits.onnx", "small.onnx", "--data", "calibration.npz"]
    assert cli(*arguments, "--min-sqnr", "20", "--min-agreement", "98").status == 0
    ran = cli(*arguments, "--min-sqnr", "90", "--min-agreement", "100.0", "--json", "-")
    assert ran.status == 1
    found = json.loads(ran.out)
    assert ran.error == f"error: small.onnx differs from digits.onnx: {'; '.join(found['failures'])}"
    assert found["failures"][0] == (f"output 'logits' has {found['b']['sqnr_db']:.1f} dB SQNR, wanted 90")


def test_equal_models_pass_any_threshold(folder: Path, cli: CommandLine) -> None:
    arguments = ["--data", "calibration.npz", "--min-sqnr", "150", "--min-agreement", "100"]
    assert cli("compare", "digits.onnx", "digits.onnx", *arguments).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-sqnr", "30"], "a threshold needs samples to measure on. Give --data, or data=..."),
        (["--min-agreement", "101"], "--min-agreement 101: must be a percentage, 0 to 100."),
        (["--min-sqnr", "nan"], "--min-sqnr nan: must be a number of decibels, such as 30."),
        (["--json", "digits.onnx"], "--json 'digits.onnx': the same file as B. Give another path."),
    ],
)
def test_wrong_use_of_compare(arguments: list[str], message: str, folder: Path, cli: CommandLine) -> None:
    ran = cli("compare", "digits.onnx", "digits.onnx", *arguments)
    assert (ran.status, ran.error) == (2, f"error: {message}")


def test_models_with_other_outputs_are_not_comparable(folder: Path, cli: CommandLine) -> None:
    model = onnx.load("digits.onnx")
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    onnx.save(model, "other.onnx")
    for data in ([], ["--data", "calibration.npz", "--min-agreement", "50"]):
        ran = cli("compare", "digits.onnx", "other.onnx", *data, "--json", "-")
        assert ran.status == 1
        assert ran.error == ("error: other.onnx differs from digits.onnx: it has the outputs 'scores', not 'logits'")
        found = json.loads(ran.out)
        assert found["failures"] == ["it has the outputs 'scores', not 'logits'"]
        assert found["samples"] == 0 and found["b"]["latency_ms"] is None and found["b"]["params"] == 112_682


@pytest.mark.parametrize(
    ("x", "difference"),
    [
        ("float16[N, 4]", "input 'x' is float16 [N, 4], not float [N, 4]"),
        ("float[N, 5]", "input 'x' is float [N, 5], not float [N, 4]"),
        ("float[N, 4, 1]", "input 'x' is float [N, 4, 1], not float [N, 4]"),
        ("float[2, 4]", None),
        ("float[N, M]", None),
    ],
)
def test_models_with_other_types_or_shapes_are_not_comparable(
    x: str, difference: str | None, folder: Path, cli: CommandLine
) -> None:
    for name, kind in (("a.onnx", "float[N, 4]"), ("b.onnx", x)):
        text = f'<ir_version: 8, opset_import: ["": 17]> g ({kind} x) => (float y) {{y = ReduceSum <keepdims = 0> (z)}}'
        text = text.replace("{y", "{z = Cast <to = 1> (x) y")
        onnx.save(onnx.parser.parse_model(text), name)
    ran = cli("compare", "a.onnx", "b.onnx")
    assert ran.status == (difference is not None)
    if difference is not None:
        assert ran.error == f"error: b.onnx differs from a.onnx: {difference}"


def test_all_differences_are_told_of_models_with_many_outputs(folder: Path, cli: CommandLine) -> None:
    for name, factor in (("a.onnx", 1.0), ("b.onnx", 1.1)):
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) '
            f"<float f = {{{factor}}}> {{y = Relu(x) z = Mul(x, f)}}"
        )
        onnx.save(model, name)
    np.save("x.npy", np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    ran = cli("compare", "a.onnx", "b.onnx", "--data", "x.npy", "--json", "-")
    found = json.loads(ran.out)
    assert found["outputs"]["y"]["sqnr_db"] == 200.0
    assert found["b"]["sqnr_db"] == pytest.approx(20.0, abs=0.01)
    assert re.search(r"y +identical +0 +1\.000000", ran.err)


# check


def test_check_passes_a_legal_model(folder: Path, cli: CommandLine) -> None:
    ran = cli("check", "digits.onnx", "--target", "mobile-cpu", "--json", "-")
    assert ran.status == 0
    found = json.loads(ran.out)
    partition = found.pop("partition")
    assert found == {"model": "digits.onnx", "target": "mobile-cpu", "legal": True, "findings": []}
    assert (partition["islands"], partition["changes"]) == (1, [])
    assert partition["on_target"] == partition["nodes"] > 0
    assert "digits.onnx: nothing against it on mobile-cpu" in ran.err
    assert partition["verdict"] in " ".join(ran.err.split())


def test_check_refuses_an_illegal_model_by_rule_and_source(folder: Path, cli: CommandLine) -> None:
    model = onnx.load("digits.onnx")
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    model.graph.node[1].domain = model.graph.node[3].domain = "mine"
    onnx.save(model, "odd.onnx")
    ran = cli("check", "odd.onnx", "--json", "-")
    assert ran.status == 1
    findings = json.loads(ran.out)["findings"]
    illegal = [found for found in findings if found["severity"] == "illegal"]
    assert len(illegal) == 2
    assert findings[0].keys() == {"node", "op_type", "rule", "severity", "reason", "source", "advice"}
    assert ran.error == (
        "error: odd.onnx is illegal on host-cpu: 2 places, rule unknown-domain. What each asks for stands above."
    )


def test_check_says_a_rule_once_however_many_nodes_break_it(folder: Path, cli: CommandLine) -> None:
    """Reason, advice and source stand there once: neither the verdict nor the error repeats them."""
    model = onnx.load("digits.onnx")
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    broken = [node for node in model.graph.node if node.op_type == "Conv"][:5]
    for node in broken:
        node.domain = "mine"
    onnx.save(model, "odd.onnx")
    names = [node.name for node in broken]
    ran = cli("check", "odd.onnx", "--json", "-")
    found = json.loads(ran.out)["findings"][0]
    lines = ran.err.splitlines()
    assert f"unknown-domain: {found['advice']}" in lines  # on one line, so that it can be copied
    assert [ran.err.count(each) for each in (found["source"], found["advice"], "unknown domain 'mine'")] == [1, 1, 1]
    assert re.search(rf"illegal +unknown-domain +5 +{names[0]}", ran.err)
    assert f"{', '.join(names[:3])} and 2 more" in _column(ran.err, "where")
    assert names[4] not in ran.err
    ran = cli("check", "odd.onnx", "--all")
    assert all(name in ran.err for name in names)


def _column(text: str, name: str) -> str:
    """Return what stands in one column of the first table, its lines joined."""
    lines = text.splitlines()
    top = next(index for index, line in enumerate(lines) if name in line)
    start = lines[top].index(name)
    after = re.compile(r"  \S").search(lines[top], start)
    end = after.start() if after else None
    body = itertools.takewhile(str.strip, lines[top + 2 :])
    return " ".join(line[start:end].strip() for line in body)


# passes, targets


def test_passes_lists_and_explains(cli: CommandLine) -> None:
    ran = cli("passes", "--json", "-")
    names = [one["name"] for one in json.loads(ran.out)]
    assert names[:3] == ["cleanup", "fold-batchnorm", "prune-channels"]
    assert all(name in ran.err for name in names)
    ran = cli("passes", "quantize-int8", "--json", "-")
    assert ran.status == 0
    one = json.loads(ran.out)
    assert one["fidelity"] == "lossy"
    method = next(option for option in one["options"] if option["name"] == "method")
    assert method["default"] == "mse" and method["description"]
    assert 'Written as: --passes "quantize-int8{method=mse}"' in ran.err
    assert cli("passes", "quantise").error.startswith("error: unknown pass 'quantise'. Did you mean 'quantize-int8'")


def test_targets_lists_and_explains(folder: Path, cli: CommandLine) -> None:
    ran = cli("targets", "--json", "-")
    assert [one["name"] for one in json.loads(ran.out)] == target_names()
    ran = cli("targets", "mobile-cpu", "--json", "-")
    assert ran.status == 0
    assert json.loads(ran.out)["runtime"] == "onnxruntime-cpu"
    assert "uint8, with a zero point" in ran.err
    Path("phone.toml").write_text('extends = "mobile-cpu"\nname = "phone"\nchannel_multiple = 8\n')
    ran = cli("targets", "phone.toml", "--json", "-")
    assert json.loads(ran.out)["channel_multiple"] == 8
    ran = cli("targets", "--schema", "--json", "-")
    schema = json.loads(ran.out)
    assert {"extends", "rules.check", "opset.max"} <= {key["name"] for key in schema["keys"]}
    assert {"name": "beta", "needs": [], "summary": "A quantized Gemm adds its bias as it is"} in schema["checks"]
    assert "without_rules" in ran.err and "accuracy-level" in ran.err
    assert cli("targets", "mobile").error.startswith("error: unknown target 'mobile'. Did you mean 'mobile-cpu' or ")


def test_own_profile_is_a_target_and_travels_by_name(folder: Path, cli: CommandLine) -> None:
    Path("phone.toml").write_text('extends = "mobile-cpu"\nname = "phone"\npipeline = "cleanup"\n')
    ran = cli("compress", "digits.onnx", "out.onnx", "--target", folder / "phone.toml", "--save-recipe", "r.toml")
    assert ran.status == 0
    recipe = Path("r.toml").read_text()
    assert 'target = "phone.toml"\ntarget_digest = "' in recipe and '"\npipeline = "cleanup"\n' in recipe
    assert cli("compress", "digits.onnx", "b.onnx", "--recipe", "r.toml").status == 0
    assert Path("b.onnx").read_bytes() == Path("out.onnx").read_bytes()
    Path("phone.toml").write_text(
        'extends = "mobile-cpu"\nname = "phone"\npipeline = "cleanup"\nchannel_multiple = 2\n'
    )
    ran = cli("compress", "digits.onnx", "c.onnx", "--recipe", "r.toml")
    assert ran.status == 3 and not Path("c.onnx").exists()
    assert ran.error.startswith("error: phone.toml: not the profile that the recipe was made with: expected sha256 ")
    assert cli("compress", "digits.onnx", "c.onnx", "--recipe", "r.toml", "--target", "phone.toml").status == 0


# demo


def test_demo_prints_before_and_after_and_keeps_the_result_on_demand(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("demo")
    assert ran.status == 0 and ran.out == ""
    assert "accuracy" in ran.err and "faster" in ran.err
    assert list(tmp_path.iterdir()) == []
    ran = cli("demo", "-o", "small.onnx", "--json", "-")
    assert json.loads(ran.out)["after"]["bytes"] == Path("small.onnx").stat().st_size
    assert cli("demo", "-o", "small.onnx").status == 2


def test_data_that_leaves_the_process_is_an_error(folder: Path, cli: CommandLine) -> None:
    (folder / "quits.py").write_text("import sys\ndef samples():\n    sys.exit(0)\n", encoding="utf-8")
    ran = cli("compress", "digits.onnx", "out.onnx", "--data", "quits.py:samples")
    assert ran.status == 2
    assert ran.err.strip().splitlines()[-1] == (
        "error: code that was called for data or as a plugin left the process with sys.exit(0). "
        "Nothing was written. Let it return, or raise an error that says what is wrong"
    )
    assert not (folder / "out.onnx").exists()
