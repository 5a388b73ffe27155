"""Finding targets: built in, from files, from plugins; and what each is made of."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.ir.quantization import Quantization, note
from onnxpress.passes.constraints import Constraints, CostEstimator
from onnxpress.passes.pipeline import build
from onnxpress.passes.registry import pass_names
from onnxpress.targets import base
from onnxpress.targets.base import Target, load_target, target_names
from onnxpress.targets.plugins import _GROUP
from onnxpress.targets.profile_files import BUILT_IN
from tests.support import text_model


@pytest.fixture(autouse=True)
def fresh_plugins() -> Iterator[None]:
    base._plugins.cache_clear()
    yield
    base._plugins.cache_clear()


def _file(folder: Path, text: str, name: str = "phone.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _error(name: str | Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_target(name)
    return str(caught.value)


def test_the_built_in_targets() -> None:
    assert target_names()[:2] == ["host-cpu", "mobile-cpu"]
    for name in ("host-cpu", "mobile-cpu", "x86-vnni", "x86-avx2"):
        target = load_target(name)
        assert target.name == target.profile.name == name
        assert repr(target) == f"Target('{name}')"
        assert target.summary and "\n" not in target.summary
        assert target.default_pipeline == "cleanup, fold-batchnorm, quantize-int8"


@pytest.mark.parametrize(
    ("machine", "saturates", "kind"),
    [("arm64", True, "mobile-cpu"), ("x86_64", True, "x86-avx2"), ("AMD64", False, "x86-vnni")],
)
def test_host_cpu_is_this_machine(monkeypatch: pytest.MonkeyPatch, machine: str, saturates: bool, kind: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("onnxpress.targets.runtimes.onnxruntime_host.saturates_products", lambda: saturates)
    host, model = load_target("host-cpu").profile, load_target(kind).profile
    assert host.summary == f"this machine, which is one of {kind}"
    assert host == model.model_copy(update={"name": "host-cpu", "summary": host.summary})


def test_constraints_are_the_profile_as_plain_data() -> None:
    target = load_target("x86-vnni")
    constraints = target.constraints
    assert isinstance(constraints, Constraints)
    assert constraints is target.constraints  # made once: passes may compare it
    assert (constraints.target, constraints.channel_multiple, constraints.max_opset) == ("x86-vnni", 16, 26)
    assert constraints.encodings == (
        *("affine8", "affine4", "affine2", "ternary", "binary", "power-of-two", "codebook"),
        *("affine16", "float16", "bfloat16", "float8", "dense"),
    )
    assert isinstance(constraints.costs, CostEstimator)
    scheme = constraints.quantization
    assert (scheme.activation.signed, scheme.activation.symmetric, scheme.activation.bits) == (
        False,
        False,
        8,
    )
    assert (scheme.weight.signed, scheme.weight.symmetric, scheme.weight_per_channel) == (True, True, True)
    assert (scheme.bias, scheme.input_channel_multiple) == ("float32", 4)
    assert scheme.compute == {"Conv", "Gemm", "MatMul"}
    assert scheme.same_scale < scheme.carry
    assert scheme.fused_activations == {"Relu", "Clip"}


def test_an_unknown_name_gets_near_ones() -> None:
    assert _error("host-gpu") == (
        "unknown target 'host-gpu'. Did you mean 'host-cpu' or 'gpu'? "
        f"There are: {', '.join(BUILT_IN)}; or give the path of a profile, such as phone.toml"
    )


def test_check_and_lower_use_the_profile() -> None:
    target = load_target("mobile-cpu")
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,4] y) { [relu] y = Relu(x) }
    """)
    assert target.check(model) == []
    note(model.graph.inputs[0], Quantization(-1.0, 1.0))
    note(model.graph.outputs[0], Quantization(0.0, 1.0))
    report = target.lower(model)
    assert sum(report.forms.values()) > 0
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph}
    assert target.lower(model).forms == {}  # nothing is left to do


# Files.


def test_a_file_extends_a_target(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        """
        extends = "host-cpu"
        without_rules = ["signed-residual"]
        name = "my-phone"
        channel_multiple = 8
        opset.max = 17
        quantization.activation = { signed = true, symmetric = true }
        roofline.conv.float32 = 12.5

        [[rules]]
        id = "dynamic-conv"
        check = "present"
        severity = "illegal"
        ops = ["ConvInteger"]
        source = "my own phone"
        advice = "Do not."

        [[rules]]
        id = "no-erf"
        check = "present"
        ops = ["Erf"]
        source = "my own phone"
        advice = "Use Tanh."
        """,
    )
    mine, host = load_target(path).profile, load_target("host-cpu").profile
    assert (mine.name, mine.channel_multiple, mine.opset.max, mine.opset.min) == (
        "my-phone",
        8,
        17,
        host.opset.min,
    )
    assert mine.quantization.activation.scheme().signed
    assert mine.quantization.activation.bits == 8
    assert mine.quantization.weight == host.quantization.weight
    assert mine.roofline is not None and host.roofline is not None
    assert (mine.roofline.conv.float32, mine.roofline.conv.int8) == (12.5, host.roofline.conv.int8)
    ids = [rule.id for rule in host.rules if rule.id != "signed-residual"]
    assert [rule.id for rule in mine.rules] == [*ids, "no-erf"]
    assert [rule.severity for rule in mine.rules if rule.id == "dynamic-conv"] == ["illegal"]
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] y) { [e] y = Erf(x) }
    """)
    found = load_target(str(path)).check(model)
    assert [str(each) for each in found] == ["node 'e' (Erf): Erf is used [no-erf, my own phone]. Use Tanh."]


def test_a_file_may_take_no_encoding(tmp_path: Path) -> None:
    path = _file(tmp_path, 'extends = "host-cpu"\nname = "plain"\nencodings = ["dense"]')
    assert load_target(path).constraints.encodings == ("dense",)


def test_a_file_extends_another_file_beside_it(tmp_path: Path) -> None:
    _file(tmp_path, 'extends = "mobile-cpu"\nname = "phone"\nchannel_multiple = 32', "phone.toml")
    path = _file(tmp_path, 'extends = "phone.toml"\nname = "small-phone"', "small.toml")
    assert load_target(path).constraints.channel_multiple == 32
    assert load_target(path).name == "small-phone"


_HEAD = 'extends = "host-cpu"\nname = "mine"\n'
_RULE = 'check = "present"\nops = ["Erf"]\nsource = "s"\nadvice = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "not TOML: Invalid value (at end of document)"),
        (
            'extends = "host-gpu"',
            "extends = 'host-gpu': no such target. Did you mean 'host-cpu' or 'gpu'? "
            f"There are: {', '.join(BUILT_IN)}; or give the path of a .toml file",
        ),
        ('extends = "phone.toml"', "extends = 'phone.toml': leads back to itself"),
        ("extends = 3", "extends = 3: must be a target's name or a path"),
        ("without_rules = []", "extends is missing: must be a target's name or a path"),
        (_HEAD + "without_rules = 3", "without_rules = 3: must be a list of ids"),
        (_HEAD + "without_rules = [3]", "without_rules = [3]: must be a list of ids"),
        (
            _HEAD + 'without_rules = ["signed"]',
            "without_rules: there is no rule 'signed'. Did you mean 'signed-residual'?",
        ),
        ('name = "mine"', "key summary is missing"),
        (
            _HEAD + "channels = 3",
            "unknown key channels. Did you mean 'channel_multiple' or 'machine'? Known here: channel_multiple, "
            "encodings, extends, ir_version, lowering, machine, name, opset, pipeline, quantization, roofline, "
            "rules, runtime, storage, summary, whole_models, without_rules",
        ),
        (
            _HEAD + "quantization.wieght = 3",
            "unknown key quantization.wieght. Did you mean 'weight'? Known here: activation, bias, carry, "
            "compute, float_outputs, fused_activations, input_channel_multiple, same_scale, weight, "
            "weight_pair_limit, weight_per_channel",
        ),
        (
            _HEAD + "quantization.weight.bits = 4",
            "quantization.weight.bits = 4: must be 8, the only width that this version quantizes to",
        ),
        (
            _HEAD + "quantization.activation.bits = 16",
            "quantization.activation.bits = 16: must be 8, the only width that this version quantizes to",
        ),
        (
            _HEAD + "quantization.weight.signed = false",
            "quantization.weight.signed = False: must be true: this version encodes weights as signed, symmetric "
            "integers",
        ),
        (
            _HEAD + "quantization.weight.symmetric = false",
            "quantization.weight.symmetric = False: must be true: this version encodes weights as signed, symmetric "
            "integers",
        ),
        (
            _HEAD + 'quantization.carry = ["Add"]\nquantization.same_scale = ["Add", "Max"]',
            "quantization: same_scale names operators that are not in carry: Max",
        ),
        (_HEAD + "opset.min = 30", "opset: min 30 is above max 26"),
        (
            _HEAD + 'runtime = "tflite"',
            "runtime = 'tflite': must be 'litert', 'onnxruntime-cpu', 'onnxruntime-cuda', 'openvino' or 'tensorrt'",
        ),
        (_HEAD + "roofline.conv.float32 = 0", "roofline.conv.float32 = 0: must be greater than 0"),
        (_HEAD + "roofline.conv.float32 = inf", "roofline.conv.float32 = inf: must be a finite number"),
        (_HEAD + "roofline.elements.Erf.float3 = 1", "key roofline.elements.Erf.float32 is missing"),
        (
            _HEAD + "roofline.elements.Add.float3 = 1",
            "unknown key roofline.elements.Add.float3. Did you mean 'float32'? Known here: float32, int8",
        ),
        (_HEAD + 'lowering = ["qqd"]', "lowering: there is no step 'qqd'. There are: qdq, float16-graph"),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "bais-scale"\nsource = "s"\nadvice = "a"',
            "rule 'a': there is no check 'bais-scale'. "
            "Did you mean 'bias-scale' or 'activation-scale' or 'positive-scale'?",
        ),
        (_HEAD + '[[rules]]\nid = "a"\ncheck = "present"\nadvice = "a"', "key rules.a.source is missing"),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "present"\nop = ["Erf"]\nsource = "s"\nadvice = "a"',
            "unknown key rules.a.op. Did you mean 'ops'? Known here: advice, attributes, check, domains, id, inputs, "
            "known, limit, numbers, ops, positions, severity, source, tolerance, types, where",
        ),
        (_HEAD + "rules = 3", "rules = 3: must be a list"),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "outputs"\nsource = "s"\nadvice = "a"',
            "rule 'a': check 'outputs' needs the key limit",
        ),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "types"\ninputs = {}\nsource = "s"\nadvice = "a"',
            "rule 'a': check 'types' needs the key inputs",
        ),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "weight-type"\ninputs = { 0 = ["int8"] }\nsource = "s"\nadvice = "a"',
            "rule 'a': check 'weight-type' needs the key inputs.1",
        ),
        (
            _HEAD
            + '[[rules]]\nid = "a"\ncheck = "present"\nops = ["Erf"]\ntypes = ["int8"]\nsource = "s"\nadvice = "a"',
            "rule 'a': check 'present' does not read types: it reads ops",
        ),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "beta"\nlimit = 3\nsource = "s"\nadvice = "a"',
            "rule 'a': check 'beta' does not read limit: it reads no key of its own",
        ),
        (
            _HEAD + 'pipeline = "cleanup, nosuch"',
            f"pipeline: unknown pass 'nosuch'. There are: {', '.join(pass_names())}",
        ),
        (
            _HEAD + 'pipeline = "cleanup{"',
            "pipeline: column 9: expected the name of an option or '}', found the end, in: cleanup{",
        ),
        (
            _HEAD + 'pipeline = "float16{nosuch=1}"',
            "pipeline: float16: unknown option 'nosuch'. It takes: include, exclude",
        ),
        ('extends = "tensorrt"', "key name is missing: it cannot keep that of 'tensorrt', which it extends"),
        (
            'extends = "tensorrt"\nname = "tensorrt"',
            "name = 'tensorrt': is that of a built-in target; give it another",
        ),
        (_HEAD + 'encodings = ["dense", "affine8", "dense"]', "encodings: 'dense' appears twice"),
        (
            _HEAD + 'encodings = ["affine7", "dense"]',
            "encodings.0 = 'affine7': must be 'affine2', 'affine4', 'affine8', 'affine16', 'binary', 'ternary', "
            "'power-of-two', 'codebook', 'float8', 'bfloat16', 'float16', 'sparse' or 'dense'",
        ),
        (
            _HEAD + 'encodings = ["affine8"]',
            "encodings = ['affine8']: must hold 'dense': that is what a weight is until a pass encodes it",
        ),
        (_HEAD + 'lowering = ["qdq", "qdq"]', "lowering: 'qdq' appears twice"),
        (_HEAD + "channel_multiple = true", "channel_multiple = True: must be a valid integer"),
        (_HEAD + 'channel_multiple = "8"', "channel_multiple = '8': must be a valid integer"),
        (_HEAD + "channel_multiple = 8.0", "channel_multiple = 8.0: must be a valid integer"),
        (_HEAD + 'storage.folds = "yes"', "storage.folds = 'yes': must be a valid boolean"),
        (_HEAD + "storage.folds = 1", "storage.folds = 1: must be a valid boolean"),
        (_HEAD + "storage.int4_blocks = [4, 0]", "storage.int4_blocks.1 = 0: must be greater than or equal to 1"),
        (_HEAD + 'roofline.conv.float32 = "3"', "roofline.conv.float32 = '3': must be a valid number"),
        (_HEAD + f"[[rules]]\n{_RULE}", "key rules.0.id is missing"),
        (_HEAD + f'[[rules]]\nid = ["a"]\n{_RULE}', "rules.0.id = ['a']: must be a valid string"),
        (_HEAD + f"[[rules]]\nid = {{ a = 1 }}\n{_RULE}", "rules.0.id = {'a': 1}: must be a valid string"),
        (
            _HEAD + f"[[rules]]\nid = 2020-01-01\n{_RULE}",
            "rules.0.id = datetime.date(2020, 1, 1): must be a valid string",
        ),
        (_HEAD + f'[[rules]]\nid = "a"\n{_RULE}' * 2, "rules: id 'a' appears twice"),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "below"\npositions = [-1]\nlimit = 3\nsource = "s"\nadvice = "a"',
            "rules.a.positions.0 = -1: must be greater than or equal to 0",
        ),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "types"\ninputs = { 0 = ["int88"] }\nsource = "s"\nadvice = "a"',
            "rules.a: there is no element type 'int88'. Did you mean 'int8' or 'uint8' or 'int4'?",
        ),
        (
            _HEAD + '[[rules]]\nid = "a"\ncheck = "element-types"\ntypes = ["float"]\nsource = "s"\nadvice = "a"',
            "rules.a: there is no element type 'float'. Did you mean 'float64' or 'float32' or 'float16'?",
        ),
        ('extends = "a\\u0000.toml"', "extends = 'a\\x00.toml': a path holds no null character"),
        (f"channel_multiple = {'9' * 5000}", "not TOML that can be read: a number has too many digits"),
        (f"a = {'[' * 5000}{']' * 5000}", "not TOML that can be read: it is nested too deeply"),
    ],
)
def test_a_broken_file_says_file_key_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    path = _file(tmp_path, text)
    assert re.sub(r", line \d+: ", ": ", _error(path)) == f"target profile {path}: {message}"


@pytest.mark.parametrize(
    ("text", "line", "start"),
    [
        ("channels = 3", 3, "unknown key channels. Did you mean 'channel_multiple'"),
        ("# a comment\n\nopset = { min = 30 }", 5, "opset: min 30 is above max 26"),
        ("[quantization]\nweight_per_channel = true\nbias = 'int8'", 5, "quantization.bias = 'int8': must be"),
        ("encodings = [\n  'dense',\n  'affine7',\n]", 3, "encodings.1 = 'affine7': must be"),
        ("lowering = ['qqd']", 3, "lowering: there is no step 'qqd'"),
        ("# passes\npipeline = 'cleanup, nosuch'", 4, "pipeline: unknown pass 'nosuch'."),
        (
            "[[rules]]\nid = 'a'\nsource = 's'\ncheck = 'types'\nadvice = 'a'",
            6,
            "rule 'a': check 'types' needs the key",
        ),
        (
            "[[rules]]\nid = 'a'\ncheck = 'beta'\nsource = 's'\nadvice = 'a'\nlimit = 3",
            8,
            "rule 'a': check 'beta' does not",
        ),
        (
            "[[rules]]\nid = 'a'\ncheck = 'present'\nsource = 's'\nadvice = 'a'\n"
            "[[rules]]\nid = 'b'\ncheck = 'present'\nop = ['Erf']\nsource = 's'\nadvice = 'a'",
            11,
            "unknown key rules.b.op. Did you mean 'ops'?",
        ),
        ("[[rules]]\nid = 'a'\nsource = 's'\ncheck = 'bais-scale'\nadvice = 'a'", 6, "rule 'a': there is no check"),
        ("[[rules]]\nsource = 's'\nid = 'a'\ncheck = 'present'", 5, "key rules.a.advice is missing"),
    ],
)
def test_a_broken_file_says_the_line(tmp_path: Path, text: str, line: int, start: str) -> None:
    path = _file(tmp_path, _HEAD + text)
    assert _error(path).startswith(f"target profile {path}, line {line}: {start}")


def test_what_a_file_says_about_storage_has_a_source(tmp_path: Path) -> None:
    """That of onnxruntime is no source for another runtime."""
    text = (importlib.resources.files("onnxpress.targets.profiles") / "gpu.toml").read_text(encoding="utf-8")
    text = text.replace('name = "gpu"', 'name = "mine"', 1)
    assert load_target(_file(tmp_path, text)).profile.storage.source == "OperatorKernels.md"
    path = _file(tmp_path, text.replace('source = "OperatorKernels.md"\n', "", 1))
    assert re.sub(r", line \d+", "", _error(path)) == f"target profile {path}: key storage.source is missing"


def test_the_default_pipelines_of_built_in_targets_are_checked_here_and_not_when_they_load() -> None:
    for name in BUILT_IN:
        build(load_target(name).default_pipeline)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert _error("no/such.toml") == "target profile no/such.toml: there is no such file"
    path = _file(tmp_path, 'extends = "none.toml"\nname = "mine"')
    assert _error(path) == f"target profile {tmp_path}/none.toml: there is no such file"
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    start = f"target profile {tmp_path}/binary.toml: cannot be read: "
    assert _error(tmp_path / "binary.toml").startswith(start)
    (tmp_path / "folder.toml").mkdir()
    assert re.match(r"target profile .*folder.toml: cannot be read: .*directory", _error(tmp_path / "folder.toml"))


def test_files_extend_one_another_so_often_and_no_more(tmp_path: Path) -> None:
    for number in range(20):
        _file(tmp_path, f'extends = "{number + 1}.toml"\nname = "mine"', f"{number}.toml")
    _file(tmp_path, 'extends = "host-cpu"\nname = "mine"', "20.toml")
    assert load_target(tmp_path / "4.toml").name == "mine"
    assert _error(tmp_path / "3.toml") == (
        f"target profile {tmp_path}/19.toml: extends = '20.toml': more than 16 files in a row"
    )


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    assert re.search(r"cannot be read: .*null", _error("a\0b.toml"))


# Plugins.


class _Distribution:
    name = "acme-targets"


def _install(monkeypatch: pytest.MonkeyPatch, name: str, loaded: object) -> None:
    """Install one entry point; loading gives `loaded`, or raises it."""

    class Entry:
        value = "acme:target"
        dist = _Distribution()

        def load(self) -> object:
            if isinstance(loaded, BaseException):
                raise loaded
            return loaded

    Entry.name = name  # type: ignore[attr-defined]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()] if group == _GROUP else [])


def _phone() -> Target:
    profile = load_target("mobile-cpu").profile
    return Target(profile.model_copy(update={"name": "acme-phone"}))


@pytest.mark.parametrize("as_function", [True, False])
def test_a_plugin_gives_a_target(monkeypatch: pytest.MonkeyPatch, as_function: bool) -> None:
    _install(monkeypatch, "acme-phone", _phone if as_function else _phone())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert target_names() == [*BUILT_IN, "acme-phone"]
        assert load_target("acme-phone").name == "acme-phone"


@pytest.mark.parametrize(
    ("loaded", "cause"),
    [
        (ImportError("no module named 'acme'"), "ImportError: no module named 'acme'"),
        (SystemExit(3), "SystemExit: 3"),
        (lambda: 3, "TypeError: it gives a int, not a Target"),
        (lambda: load_target("host-cpu"), "ValueError: its target is named 'host-cpu'"),
    ],
)
def test_a_broken_plugin_is_a_warning_that_names_the_distribution(
    monkeypatch: pytest.MonkeyPatch, loaded: object, cause: str
) -> None:
    _install(monkeypatch, "acme-phone", loaded)
    reason = f"plugin 'acme-targets' (entry point 'acme-phone' = 'acme:target') cannot be used: {cause}"
    with pytest.warns(RuntimeWarning) as caught:
        assert target_names() == [*BUILT_IN]
    assert [str(each.message) for each in caught] == [f"{reason}. Its target is missing; update or uninstall it"]
    assert load_target("host-cpu").name == "host-cpu"
    assert _error("acme-phone") == f"target 'acme-phone': {reason}"


def test_built_in_targets_load_no_plugin_and_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "host-cpu", ImportError("never asked"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_target("host-cpu").constraints.channel_multiple == 16
        assert target_names() == [*BUILT_IN]


def test_a_model_is_only_read_by_check() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,4] y) { [relu] y = Relu(x) }
    """)
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    load_target("host-cpu").check(model)
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_rules_that_are_no_tables_are_said_even_when_inherited(tmp_path: Path) -> None:
    _file(tmp_path, 'extends = "host-cpu"\nname = "a"\nrules = [3]', "a.toml")
    path = _file(tmp_path, 'extends = "a.toml"\nname = "b"\n[[rules]]\nid = "c"', "b.toml")
    assert _error(tmp_path / "a.toml").startswith(f"target profile {tmp_path}/a.toml, line 3: rules.0 = 3: must be ")
    assert _error(path) == f"target profile {path}, line 4: key rules.c.check is missing"
    path = _file(tmp_path, 'extends = "a.toml"\nname = "b"\nwithout_rules = ["c"]', "b.toml")
    assert _error(path) == f"target profile {path}: without_rules: there is no rule 'c'."
