"""The manager: copies, checks after each pass, records, order, failures and what repeats them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.analysis.cost import cost
from onnxpress.ir.data import open_data
from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.errors import BudgetError, InputError, InternalError, OnnxpressError, UsageError
from onnxpress.ir.quantization import Quantization, note
from onnxpress.passes import registry
from onnxpress.passes.base import Amount, Context, Declined, Fidelity, Options, Pass, Rewrites, Site
from onnxpress.passes.constraints import Constraints
from onnxpress.passes.instrument import Progress, Task
from onnxpress.passes.manager import PassManager, PassRecord
from onnxpress.passes.pipeline import build, read_pipeline
from tests.support import run, text_model

Rewrite = Callable[[onnx_ir.Model], Any]


class _Gain(Options):
    gain: float = 1.0
    bits: int = 8


def _pass(
    rewrite: Rewrite,
    *,
    name: str = "my-pass",
    fidelity: Fidelity = "bits",
    after: tuple[str, ...] = (),
    tolerance: tuple[float, float] = (1e-4, 1e-6),
    **options: Any,
) -> Pass:
    """Return a pass that calls `rewrite(model)` and records one site, unless it returns a record itself."""

    def run(self: Pass, model: onnx_ir.Model, context: Context) -> Any:
        recorded = rewrite(model)
        return Rewrites([Site("relu", "Relu")]) if recorded is None else recorded

    body = {
        "__module__": __name__,
        "name": name,
        "fidelity": fidelity,
        "after": after,
        "tolerance": tolerance,
        "options_type": _Gain,
        "run": run,
    }
    made: type[Pass] = type("Made", (Pass,), body)
    return made(**options)


def _load(text: str) -> onnx_ir.Model:
    return model_io.load(text_model(text))


def _model() -> onnx_ir.Model:
    return _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x) => (float[N, 3] y) <float[3] w = {1, 2, 3}> {
            [add] h = Add (x, w)
            [relu] y = Relu (h)
        }
    """)


def _node(model: onnx_ir.Model, name: str) -> onnx_ir.Node:
    return next(node for node in model.graph.all_nodes() if node.name == name)


def _set_type(name: str, op_type: str) -> Rewrite:
    def rewrite(model: onnx_ir.Model) -> None:
        _node(model, name).op_type = op_type

    return rewrite


def _scale_weight(gain: float) -> Rewrite:
    def rewrite(model: onnx_ir.Model) -> None:
        value = model.graph.initializers["w"]
        assert value.const_value is not None
        value.const_value = onnx_ir.tensor(value.const_value.numpy() * np.float32(gain), name="w")

    return rewrite


def _nothing(model: onnx_ir.Model) -> Rewrites:
    return Rewrites(declined=[Declined("relu", "Relu", "not today")])


def _run(*passes: Pass, model: onnx_ir.Model | None = None, data: Any = None, **flags: Any) -> list[PassRecord]:
    model = model or _model()
    source = None if data is None else open_data(data, model=model)
    return PassManager(passes, **flags).run(model, Context(data=source))[1]


def _refusal(*passes: Pass, model: onnx_ir.Model | None = None, **flags: Any) -> OnnxpressError:
    with pytest.raises(OnnxpressError) as caught:
        _run(*passes, model=model, **flags)
    return caught.value


_RERUN = "Run again with --crash-dir DIR to get what repeats it"


# What a run gives


def test_run_applies_passes_in_order_to_a_copy() -> None:
    model = _model()
    before = model_io.to_proto_bytes(model)
    seen: list[str] = []

    def look(model: onnx_ir.Model) -> Rewrites:
        seen.append(_node(model, "relu").op_type)
        return Rewrites()

    passes = [_pass(look), _pass(_set_type("relu", "Abs")), _pass(look)]
    result, records = PassManager(passes).run(model, Context())
    assert seen == ["Relu", "Abs"]
    assert _node(result, "relu").op_type == "Abs"
    assert [record.rewrites.modified for record in records] == [False, True, False]
    assert model_io.to_proto_bytes(model) == before


def test_whatever_a_pass_edits_the_input_stays() -> None:
    model = _model()
    model.meta["onnxpress.test"] = 1
    before = model_io.to_proto_bytes(model)

    seen: list[Any] = []

    def edit(model: onnx_ir.Model) -> None:
        seen.append(model.meta["onnxpress.test"])
        hidden = _node(model, "add").outputs[0]
        hidden.dtype = onnx_ir.DataType.INT8
        hidden.shape = onnx_ir.Shape([7])
        hidden.name = "renamed"
        hidden.metadata_props["k"] = "v"
        model.graph.initializers["w"].name = "weight"
        model.opset_imports["custom"] = 1
        model.metadata_props["k"] = "v"
        model.graph.append(onnx_ir.Node("", "Neg", [hidden], name="neg"))
        raise RuntimeError

    _refusal(_pass(edit), model=model)
    assert seen == [1]
    assert model_io.to_proto_bytes(model) == before


def test_run_without_passes_gives_a_copy() -> None:
    model = _model()
    result, records = PassManager([]).run(model, Context())
    assert records == []
    assert result is not model and result.graph is not model.graph
    assert model_io.to_proto_bytes(result) == model_io.to_proto_bytes(model)


def test_records_tell_options_amounts_and_time() -> None:
    def halve(model: onnx_ir.Model) -> None:
        value = model.graph.initializers["w"]
        value.const_value = onnx_ir.tensor(np.ones(1, np.float32), name="w")
        value.shape = onnx_ir.Shape([1])

    first, second = _run(_pass(halve, gain=2), _pass(_nothing, name="second"))
    assert (first.name, first.options) == ("my-pass", {"gain": 2.0, "bits": 8})
    assert (first.before.params, first.after.params) == (3, 1)
    assert (first.before.size_bytes, first.after.size_bytes) == (12, 4)
    assert (second.before, second.after) == (first.after, first.after)
    assert second.rewrites.declined == [Declined("relu", "Relu", "not today")]
    assert first.seconds >= 0 <= first.cpu_seconds and first.check is None
    assert json.loads(json.dumps(first.options)) == first.options


def test_record_amounts_are_those_of_the_cost_model() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 2] x) => (float[N, 3] y) <float[2, 3] w = {1, 2, 3, 4, 5, 6}> {
            [mm] y = MatMul (x, w)
        }
    """)
    total = cost(model)
    record = _run(_pass(_nothing), model=model)[0]
    assert record.before == record.after == Amount(total.params, total.macs, total.weight_bytes)
    assert (total.params, total.macs) == (6, 6)


def test_passes_share_one_context_and_report_progress() -> None:
    told: list[Any] = []

    class Watched(Progress):
        @contextmanager
        def task(self, label: str, total: int | None = None) -> Iterator[Task]:
            told.append((label, total))
            yield WatchedTask()

    class WatchedTask(Task):
        def advance(self, n: int = 1) -> None:
            told.append(n)

    class Counting(Pass):
        name = "counting"
        fidelity: ClassVar[Fidelity] = "bits"

        def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
            context.cache["runs"] = context.cache.get("runs", 0) + 1
            return Rewrites()

    context = Context(progress=Watched())
    PassManager([Counting(), Counting()]).run(_model(), context)
    assert context.cache == {"runs": 2}
    assert told == [("passes", 2), 1, 1]


def test_printing_after_passes_goes_through_the_printer(capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []
    passes = [_pass(_set_type("relu", "Abs"), gain=2.0), _pass(_nothing)]
    _run(*passes, print_after_all=True, printer=printed.append)
    assert [text.splitlines()[0] for text in printed] == ["// after my-pass{gain=2.0}", "// after my-pass"]
    printed.clear()
    _run(*passes, print_after_change=True, printer=printed.append)
    assert [text.splitlines()[0] for text in printed] == [
        "// changed by my-pass{gain=2.0}",
        "// my-pass: no change",
    ]
    assert capsys.readouterr() == ("", "")
    _run(*passes, print_after_change=True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("// changed by my-pass{gain=2.0}\n")


# Order


def test_order_is_checked_before_anything_runs() -> None:
    fold = _pass(_nothing, name="fold", after=("cleanup",), gain=3)
    cleanup = _pass(_nothing, name="cleanup")
    last = _pass(_nothing, name="last", after=("fold", "absent"))
    for right in ([cleanup, fold, last], [fold, last], [cleanup, fold, cleanup], [last], []):
        PassManager(right)
    with pytest.raises(UsageError) as caught:
        PassManager([last, fold, cleanup])
    assert str(caught.value) == (
        "pipeline: 'last' must come after 'fold'. Write --passes \"cleanup, fold{gain=3.0}, last\""
    )
    with pytest.raises(UsageError) as caught:
        PassManager([fold, cleanup, last])
    assert str(caught.value) == (
        "pipeline: 'fold' must come after 'cleanup'. Write --passes \"cleanup, fold{gain=3.0}, last\""
    )


def test_passes_that_wait_for_each_other() -> None:
    with pytest.raises(UsageError) as caught:
        PassManager([_pass(_nothing, name="a", after=("b",)), _pass(_nothing, name="b", after=("a",))])
    assert str(caught.value) == (
        "pipeline: 'a' must come after 'b', but 'a' and 'b' wait for each other. Run them in two pipelines"
    )


# A pass that leaves a broken model


def _dangle(model: onnx_ir.Model) -> None:
    _node(model, "relu").replace_input_with(0, onnx_ir.val("nowhere", onnx_ir.DataType.FLOAT, [1, 3]))


def test_broken_model_names_the_pass() -> None:
    error = _refusal(_pass(_nothing, name="innocent"), _pass(_dangle, name="guilty"))
    assert isinstance(error, InternalError)
    assert str(error).startswith("guilty: left a broken model: ") and "'nowhere'" in str(error)
    assert str(error).endswith(f". {_RERUN}") and "\n" not in str(error)


def test_model_that_was_broken_before_is_no_fault_of_a_pass() -> None:
    model = _model()
    _dangle(model)
    error = _refusal(_pass(_nothing), model=model)
    assert isinstance(error, InputError)
    assert str(error) == (
        "pipeline: before the first pass, the model is not whole: node 'relu' (Relu): input 0 'nowhere' is "
        "made by no node, and is neither graph input nor initializer. "
        "Load it with onnxpress.load, which names, types and checks"
    )


def _rename_output(model: onnx_ir.Model) -> None:
    model.graph.outputs[0].name = "z"


def _retype_input(model: onnx_ir.Model) -> None:
    for value in (model.graph.inputs[0], *_node(model, "add").outputs, *_node(model, "relu").outputs):
        value.dtype = onnx_ir.DataType.DOUBLE
    weight = model.graph.initializers["w"]
    weight.const_value = onnx_ir.tensor(np.ones(3), name="w")
    weight.dtype = onnx_ir.DataType.DOUBLE


def _fix_batch(model: onnx_ir.Model) -> None:
    model.graph.inputs[0].shape = onnx_ir.Shape([1, 3])


def _lose_shape(model: onnx_ir.Model) -> None:
    model.graph.outputs[0].shape = None


def _add_output(model: onnx_ir.Model) -> None:
    model.graph.outputs.append(_node(model, "add").outputs[0])


@pytest.mark.parametrize(
    ("rewrite", "interface"),
    [
        (_rename_output, "(x: float[N,3]) -> (z: float[N,3])"),
        (_add_output, "(x: float[N,3]) -> (y: float[N,3], h: float[N,3])"),
        (_retype_input, "(x: double[N,3]) -> (y: double[N,3])"),
        (_fix_batch, "(x: float[1,3]) -> (y: float[N,3])"),
        (_lose_shape, "(x: float[N,3]) -> (y: float)"),
    ],
)
def test_changed_interface_is_refused(rewrite: Rewrite, interface: str) -> None:
    error = _refusal(_pass(rewrite))
    assert isinstance(error, InternalError)
    assert str(error) == (
        f"my-pass: changed the model's interface from (x: float[N,3]) -> (y: float[N,3]) to {interface}. {_RERUN}"
    )


@pytest.mark.parametrize("unknown", [None, onnx_ir.Shape([None, 3])])
def test_unknown_output_dimension_may_become_known(unknown: onnx_ir.Shape | None) -> None:
    model = _model()
    model.graph.outputs[0].shape = unknown

    def infer(model: onnx_ir.Model) -> None:
        model.graph.outputs[0].shape = onnx_ir.Shape(["N", 3])

    assert len(_run(_pass(infer), model=model)) == 1


def test_pass_without_a_record_is_refused() -> None:
    assert str(_refusal(_pass(lambda model: 3))) == f"my-pass: run returned int, not Rewrites. {_RERUN}"


# A pass that fails


@pytest.mark.parametrize("kind", [UsageError, InputError, BudgetError])
def test_error_raised_on_purpose_gets_the_name_of_the_pass(kind: type[OnnxpressError]) -> None:
    def fail(message: str) -> Rewrite:
        def rewrite(model: onnx_ir.Model) -> None:
            raise kind(message)

        return rewrite

    for message in ("weights are not constant", "my-pass: weights are not constant"):
        error = _refusal(_pass(fail(message)), crash_dir="/nowhere/to/be/made")
        assert type(error) is kind
        assert str(error) == "my-pass: weights are not constant"


def _crash(model: onnx_ir.Model) -> None:
    for node in model.graph:
        try:
            _ = {"add": 1}[node.name or ""]
        except KeyError as error:
            raise RuntimeError("wrapped\ntwice") from error


def test_unexpected_failure_names_pass_node_and_first_cause() -> None:
    error = _refusal(_pass(_crash))
    assert type(error) is InternalError and error.exit_code == 70
    assert str(error) == f"my-pass: failed at node 'relu' (Relu): KeyError: 'relu'. {_RERUN}"
    assert isinstance(error.__cause__, RuntimeError)


def test_a_pass_that_leaves_the_process_has_failed() -> None:
    def leave(model: onnx_ir.Model) -> None:
        raise SystemExit(0)

    error = _refusal(_pass(leave))
    assert type(error) is InternalError and "SystemExit" in str(error)


def test_failure_names_the_node_that_the_innermost_code_had_in_hand() -> None:
    def rewrite_one(found: onnx_ir.Node) -> None:
        raise ValueError("no weight")

    def rewrite(model: onnx_ir.Model) -> None:
        first = model.graph[0]
        rewrite_one(model.graph[1])
        assert first

    assert str(_refusal(_pass(rewrite))) == f"my-pass: failed at node 'relu' (Relu): ValueError: no weight. {_RERUN}"


def test_internal_error_of_a_pass_is_named_once() -> None:
    def fail(model: onnx_ir.Model) -> None:
        raise InternalError("my-pass: lost count")

    assert str(_refusal(_pass(fail))) == f"my-pass: lost count. {_RERUN}"


def test_failure_without_a_node_or_a_message() -> None:
    def fail(model: onnx_ir.Model) -> None:
        raise NotImplementedError

    assert str(_refusal(_pass(fail))) == f"my-pass: failed: NotImplementedError. {_RERUN}"


# Reproducers


@pytest.fixture
def crash_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to crash into, with the passes of `_crashing` registered so that text can name them."""
    fresh = registry._Registry()
    fresh.plugins_loaded = True
    monkeypatch.setattr(registry, "_registry", fresh)
    for one in _crashing():
        registry.register_pass(type(one))
    return tmp_path / "crash"


def _crash_where_gained(model: onnx_ir.Model) -> None:
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    raise ArithmeticError(f"sum {weight.numpy().sum()}")


def _crashing() -> list[Pass]:
    return [
        _pass(_scale_weight(2.0), name="double"),
        _pass(_crash_where_gained, name="crash", gain=0.5),
    ]


def _repeat(folder: Path) -> tuple[str, list[str]]:
    """Do what repeat.txt says by hand; return the first line of the error and the command."""
    command = shlex.split((folder / "repeat.txt").read_text())
    assert command[:7] == [
        "onnxpress",
        "compress",
        "model.onnx",
        "-o",
        "out.onnx",
        "--passes",
        "pipeline.txt",
    ]
    passes = build(read_pipeline(folder / "pipeline.txt"))
    with pytest.raises(InternalError) as caught:
        PassManager(passes).run(model_io.load(folder / "model.onnx"), Context())
    return str(caught.value), command[7:]


def test_reproducer_holds_the_model_before_the_failing_pass(crash_folder: Path) -> None:
    error = _refusal(*_crashing(), crash_dir=crash_folder)
    what = "crash: failed: ArithmeticError: sum 12.0"
    assert str(error) == f"{what}. What repeats it is in {crash_folder}, see repeat.txt"
    assert sorted(path.name for path in crash_folder.iterdir()) == [
        "error.txt",
        "model.onnx",
        "pipeline.txt",
        "repeat.txt",
    ]
    assert (crash_folder / "pipeline.txt").read_text() == "crash{gain=0.5}\n"
    log = (crash_folder / "error.txt").read_text()
    assert "in _crash_where_gained" in log and "ArithmeticError: sum 12.0" in log and "\nonnx-ir " in log
    repeated, flags = _repeat(crash_folder)
    assert repeated == f"{what}. {_RERUN}"
    assert flags == ["--seed", "0"]


@pytest.mark.parametrize("kind", ["note", "encoding"])
def test_reproducer_of_a_model_that_no_file_holds_starts_over(crash_folder: Path, kind: str) -> None:
    def annotate(model: onnx_ir.Model) -> None:
        if kind == "note":
            note(_node(model, "add").outputs[0], Quantization(0.0, 1.0))
        else:
            encode(model.graph.initializers["w"], Affine.quantize(np.ones(3, np.float32), axis=None))

    annotating = _pass(annotate, name="annotate")
    registry.register_pass(type(annotating))
    double, crash = _crashing()
    _refusal(double, annotating, crash, crash_dir=crash_folder)
    assert (crash_folder / "pipeline.txt").read_text() == "double, annotate, crash{gain=0.5}\n"
    weight = model_io.load(crash_folder / "model.onnx").graph.initializers["w"].const_value
    assert weight is not None and weight.numpy().tolist() == [1.0, 2.0, 3.0]
    assert _repeat(crash_folder)[0].startswith("crash: failed: ArithmeticError: sum ")


def test_reproducer_repeats_seed_target_flags_and_data(crash_folder: Path) -> None:
    samples = np.arange(15, dtype=np.float32).reshape(5, 3)
    data = open_data({"x": samples}, model=_model())
    context = Context(Constraints(target="board"), data=data, seed=7)
    for flags in ([], ["--target", "my board.toml"]):
        with pytest.raises(InternalError):
            PassManager(_crashing(), crash_dir=crash_folder, repeat_flags=flags).run(_model(), context)
    assert _repeat(crash_folder)[1] == ["--target", "board", "--data", "data", "--seed", "7"]
    kept = open_data(crash_folder / "data", model=_model()).head(9).feeds["x"]
    assert np.array_equal(kept, samples)
    second = crash_folder / "2"  # a folder that holds a reproducer is never written over
    assert _repeat(second)[1] == ["--data", "data", "--seed", "7", "--target", "my board.toml"]


def test_reproducer_points_to_data_that_has_a_path(crash_folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", x=np.ones((4, 3), np.float32))
    _refusal(*_crashing(), data=tmp_path / "calibration.npz", crash_dir=crash_folder)
    assert _repeat(crash_folder)[1] == ["--data", str(tmp_path / "calibration.npz"), "--seed", "0"]
    assert not (crash_folder / "data").exists()


def test_reproducer_that_cannot_be_written_leaves_the_first_cause(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert str(_refusal(*_crashing(), crash_dir=taken)) == (
        "crash: failed: ArithmeticError: sum 12.0. The reproducer could not be written to "
        f"{taken}: FileExistsError: [Errno 17] File exists: '{taken}'"
    )


# --verify-each


def test_verify_each_passes_what_keeps_its_word() -> None:
    identity = _pass(_set_type("relu", "Relu"))
    rounding = _pass(_scale_weight(1.000001), fidelity="rounding")
    lossy = _pass(_scale_weight(1.1), fidelity="lossy")
    records = _run(identity, rounding, lossy, verify_each=True)
    checks = [record.check for record in records]
    assert all(check is not None and check.samples == 2 and not check.skipped for check in checks)
    exact, close, far = (check.sqnr_db for check in checks if check is not None)
    assert exact == np.inf and close is not None and far is not None
    assert 100 < close < np.inf and 10 < far < 40


def test_verify_each_refuses_other_bits() -> None:
    error = _refusal(_pass(_nothing, name="ok"), _pass(_scale_weight(1.5), name="off"), verify_each=True)
    assert isinstance(error, InternalError)
    before = run(_model(), feeds := random_feeds_of_manager())[0]
    bigger = _model()
    _scale_weight(1.5)(bigger)
    error_of = np.abs(run(bigger, feeds)[0].astype(float) - before)
    assert str(error) == (
        f"off: --verify-each: output 'y' must stay equal and differs in {np.count_nonzero(error_of)} of 6 "
        f"numbers, by up to {error_of.max():.3g}, over 2 samples. {_RERUN}"
    )


def random_feeds_of_manager() -> dict[str, Any]:
    """What `--verify-each` draws for the model here without data: seed 0, two samples."""
    return {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}


def test_verify_each_refuses_more_than_the_tolerance_of_the_pass() -> None:
    model, data = _model(), {"x": np.full((12, 3), 1.0, np.float32)}
    near = _pass(_scale_weight(1.001), fidelity="rounding", tolerance=(1e-2, 0.0))
    assert _run(near, model=model, data=data, verify_each=True)[0].check is not None
    strict = _pass(_scale_weight(1.001), fidelity="rounding", tolerance=(5e-4, 1e-5))
    error = _refusal(strict, model=model, data=data, verify_each=True)
    # w = 1.001 * [1, 2, 3]: off by 0.003 where the output is 4
    assert str(error) == (
        "my-pass: --verify-each: output 'y' differs by 0.003, which is more than 0.00201 "
        f"(0.0005 * max |output| 4 + 1e-05), over 8 samples. {_RERUN}"
    )


def test_verify_each_compares_on_the_data_given() -> None:
    """The passes differ only below zero, which these samples never reach."""
    model, positive = _model(), {"x": np.ones((3, 3), np.float32)}
    drop = _pass(_set_type("relu", "Abs"))
    check = _run(drop, model=model, data=positive, verify_each=True)[0].check
    assert check is not None and (check.samples, check.sqnr_db) == (3, np.inf)
    negative = {"x": np.full((3, 3), -9, np.float32)}
    assert "must stay equal" in str(_refusal(drop, model=model, data=negative, verify_each=True))


def test_verify_each_takes_equal_nan_and_infinity_for_equal() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 2] x) => (float[N, 2] y, float[N, 2] z) <float[2] w = {1, 2}> {
            [log] y = Log (x)
            [relu] h = Neg (x)
            [add] z = Add (h, w)
        }
    """)
    data = {"x": np.array([[-1, 0], [1, 2]], np.float32)}  # Log gives NaN and -inf
    exact = _run(_pass(_set_type("relu", "Neg")), model=model, data=data, verify_each=True)[0].check
    assert exact is not None and exact.sqnr_db == np.inf
    lossy = _pass(_scale_weight(1.5), fidelity="lossy")
    check = _run(lossy, model=model, data=data, verify_each=True)[0].check  # the worse of y and z
    assert check is not None and check.sqnr_db == pytest.approx(10 * np.log10((4 + 4) / (2 * 0.25 + 2 * 1)))
    for fidelity, message in {
        "bits": "'y' must stay equal and differs in 4 of 4 numbers, by up to inf",
        "rounding": "'y' differs by inf, which is more than 7.03e-05 (0.0001 * max |output| 0.693 + 1e-06)",
    }.items():
        absolute = _pass(_set_type("log", "Abs"), fidelity=fidelity)  # type: ignore[arg-type]
        error = _refusal(absolute, model=model, data=data, verify_each=True)
        assert str(error) == f"my-pass: --verify-each: output {message}, over 2 samples. {_RERUN}"


def test_verify_each_refuses_another_shape() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 2] x) => (float[M, 2] y) {
            [concat] y = Concat <axis = 0> (x, x)
        }
    """)

    def once(model: onnx_ir.Model) -> None:
        node = _node(model, "concat")
        node.resize_inputs(1)

    for fidelity in ("bits", "rounding", "lossy"):
        error = _refusal(_pass(once, fidelity=fidelity), model=model, verify_each=True)
        assert str(error) == (
            f"my-pass: --verify-each: output 'y' had the shape [4, 2] and has [2, 2], over 4 samples. {_RERUN}"
        )


_COUNTING = """
    <ir_version: 10, opset_import: ["": 18]>
    main (float[N, 3] x) => ({output} y) <float[3] w = {{9, 9, 9}}, float zero = {{0}}> {{
        [add] a = Add (x, w)
        [gap] g = Greater (a, zero)
        [count] n = NonZero (g)
        [cast] y = Cast <to = 1> (n)
    }}
"""


@pytest.mark.parametrize(
    ("output", "fidelity", "refused"),
    [
        ("float[2, M]", "lossy", False),
        ("float[2, M]", "rounding", False),
        ("float[2, M]", "bits", True),
        ("float[2, 6]", "lossy", True),
        ("float[2, N]", "lossy", True),
    ],
)
def test_verify_each_lets_decisions_that_are_counted_tip(output: str, fidelity: Fidelity, refused: bool) -> None:
    model = _load(_COUNTING.format(output=output))

    def tip(model: onnx_ir.Model) -> None:
        model.graph.initializers["w"].const_value = onnx_ir.tensor(np.array([9, 9, -9], np.float32), name="w")

    one = _pass(tip, fidelity=fidelity)
    if refused:
        message = "my-pass: --verify-each: output 'y' had the shape [2, 6] and has [2, 4], over 2 samples"
        assert str(_refusal(one, model=model, verify_each=True)) == f"{message}. {_RERUN}"
        return
    check = _run(one, model=model, verify_each=True)[0].check
    assert check is not None and check.sqnr_db is None


def test_verify_each_refuses_another_rank_where_decisions_are_counted() -> None:
    def flatten(model: onnx_ir.Model) -> None:
        node = _node(model, "cast")
        node.op_type = "ReduceSum"
        node.attributes.clear()
        node.attributes["keepdims"] = onnx_ir.AttrInt64("keepdims", 0)

    text = _COUNTING.format(output="int64[A, B]").replace("y = Cast <to = 1>", "y = Neg")
    error = _refusal(_pass(flatten, fidelity="lossy"), model=_load(text), verify_each=True)
    assert "had the shape [2, 6] and has [], over 2 samples" in str(error)


def _typed(kind: str, number: int) -> onnx_ir.Model:
    """A model that adds its weight in double or float32, and gives that; in between it goes through a type."""
    wide = "double" if kind == "double" else "float"
    return _load(f"""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x) => ({wide}[N, 3] y) <{wide}[3] w = {{1, 2, 3}}> {{
            [wide] v = Cast <to = {11 if kind == "double" else 1}> (x)
            [add] h = Add (v, w)
            [narrow] r = Cast <to = {number}> (h)
            [relu] y = Cast <to = {11 if kind == "double" else 1}> (r)
        }}
    """)


@pytest.mark.parametrize(
    ("kind", "number", "roundoff", "saved"),
    [("double", 11, 2**-53, 1), ("float", 1, 2**-24, 1), ("float16", 10, 2**-11, 32), ("bfloat16", 16, 2**-8, 32)],
)
def test_verify_each_allows_what_the_types_of_the_model_cost(
    kind: str, number: int, roundoff: float, saved: int
) -> None:
    relative, absolute = (stated * roundoff / 2**-24 / saved for stated in (1e-4, 1e-6))
    allowed = relative * 4 + absolute  # the largest output is 4

    def add(amount: float) -> Pass:
        def rewrite(model: onnx_ir.Model) -> None:
            old = model.graph.initializers["w"].const_value
            assert old is not None
            moved = old.numpy() + np.array([0, 0, amount])
            model.graph.initializers["w"].const_value = onnx_ir.tensor(moved.astype(old.numpy().dtype), name="w")

        return _pass(rewrite, fidelity="rounding")

    model, data = _typed(kind, number), {"x": np.ones((2, 3), np.float32)}
    check = _run(add(0.9 * allowed), model=model, data=data, verify_each=True)[0].check
    assert check is not None and check.sqnr_db is not None and 0 < check.sqnr_db < np.inf
    error = str(_refusal(add(1.2 * allowed), model=model, data=data, verify_each=True))
    assert f"more than {allowed:.3g} ({relative:g} * max |output| 4 + {absolute:g}), over 2 samples" in error


def test_verify_each_takes_a_fold_in_float16_for_rounding() -> None:
    rng = np.random.default_rng(0)
    model = text_model("""
        <ir_version: 10, opset_import: ["": 17]>
        main (float16[N, 64, 8, 8] x) => (float16[N, 32, 6, 6] y) <float16[1] w = {0}, float16[1] gamma = {0},
            float16[1] beta = {0}, float16[1] mean = {0}, float16[1] var = {0}> {
            [conv] h = Conv (x, w)
            [norm] y = BatchNormalization (h, gamma, beta, mean, var)
        }
    """)
    for name, value in model.graph.initializers.items():
        drawn = 0.2 * rng.standard_normal((32, 64, 3, 3) if name == "w" else 32) + (name in ("gamma", "var"))
        value.const_value = onnx_ir.tensor(np.abs(drawn).astype(np.float16), name=name)
        value.shape = onnx_ir.Shape(drawn.shape)
    record = _run(*build("fold-batchnorm"), model=model_io.load(model), verify_each=True)[0]
    assert record.rewrites.modified and record.check is not None
    assert record.check.sqnr_db is not None and 60 < record.check.sqnr_db < np.inf


def test_verify_each_refuses_an_unrecorded_change() -> None:
    def change(model: onnx_ir.Model) -> Rewrites:
        _node(model, "relu").name = "renamed"
        return Rewrites()

    assert _run(_pass(change))[0].rewrites.modified is False
    message = f"my-pass: changed the model but recorded no site. {_RERUN}"
    assert str(_refusal(_pass(change), verify_each=True)) == message


def test_verify_each_refuses_a_model_that_does_not_run() -> None:
    def reshape(model: onnx_ir.Model) -> None:
        weight = model.graph.initializers["w"]
        weight.const_value = onnx_ir.tensor(np.ones(5, np.float32), name="w")
        weight.shape = onnx_ir.Shape([5])

    error = _refusal(_pass(reshape, fidelity="lossy"), verify_each=True)
    assert str(error).startswith("my-pass: left a model that does not run: ")
    assert "\n" not in str(error) and str(error).endswith(f". {_RERUN}")


def test_verify_each_skips_what_never_ran_here() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18, "nobody": 1]>
        main (float[N, 3] x) => (float[N, 3] y) {
            [relu] y = nobody.Unheard (x)
        }
    """)
    check = _run(_pass(_nothing), model=model, verify_each=True)[0].check
    assert check is not None and (check.samples, check.sqnr_db) == (0, None)
    assert check.skipped.startswith("the model before it does not run here: ")


def test_verify_each_compares_tensors_only() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x) => (float[N, 3] y, seq(float[N, 3]) s) {
            [relu] y = Relu (x)
            [sequence] s = SequenceConstruct (x, y)
        }
    """)
    check = _run(_pass(_set_type("relu", "Relu")), model=model, verify_each=True)[0].check
    assert check is not None and (check.samples, check.sqnr_db, check.skipped) == (2, np.inf, "")


def test_verify_each_leaves_decisions_of_rounded_scores_out() -> None:
    model = _load("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x) => (int64[N, 1] y) <float[3] w = {1, 1, 1}> {
            [add] h = Add (x, w)
            [relu] y = ArgMax <axis = 1> (h)
        }
    """)
    tie = {"x": np.zeros((4, 3), np.float32)}

    def tip(model: onnx_ir.Model) -> None:
        tensor = onnx_ir.tensor(np.array([1, 1, 1.000001], np.float32), name="w")
        model.graph.initializers["w"].const_value = tensor

    check = _run(_pass(tip, fidelity="rounding"), model=model, data=tie, verify_each=True)[0].check
    assert check is not None and check.sqnr_db is None
    error = _refusal(_pass(tip, fidelity="bits"), model=model, data=tie, verify_each=True)
    assert "must stay equal and differs in 4 of 4 numbers, over 4 samples" in str(error)
