"""Every bad input gives one line (what, where, what to do) and its exit status, and leaves no file behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from onnxpress.targets.base import target_names

CommandLine = Callable[..., Any]
Prepare = Callable[[Path], None]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _edited(name: str, edit: Callable[[onnx.ModelProto], None]) -> Prepare:
    def prepare(folder: Path) -> None:
        model = onnx.load(folder / "digits.onnx")
        edit(model)
        (folder / name).write_bytes(model.SerializeToString())

    return prepare


def _truncate(folder: Path) -> None:
    content = (folder / "digits.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])


def _write_text(path: Path | str, text: str) -> None:
    Path(path).write_text(text)


def _move_weights_out(name: str, location: str | None) -> Prepare:
    """Save the model with its weights in a data file, then lose that file or point elsewhere."""

    def prepare(folder: Path) -> None:
        model = onnx.load(folder / "digits.onnx")
        onnx.save(model, folder / name, save_as_external_data=True, location="w.data", size_threshold=0)
        (folder / "w.data").unlink()
        if location is None:
            return
        model = onnx.load(folder / name, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / name).write_bytes(model.SerializeToString())

    return prepare


def _break_order(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def _raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def _put_nan(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[3] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


_BAD_MODELS: dict[str, tuple[Prepare, str]] = {
    "cut.onnx": (
        _truncate,
        "cut.onnx: the model is cut off or damaged: it needs at least 454241 bytes and has 227123. "
        "Copy it again, or export it again.",
    ),
    "text.onnx": (
        lambda folder: _write_text(folder / "text.onnx", "no model\n" * 20),
        "text.onnx: is not an ONNX model, or is damaged (180 bytes). Export it again.",
    ),
    "gone.onnx": (lambda folder: None, "gone.onnx: there is no such model file. Check the path."),
    "lost.onnx": (
        _move_weights_out("lost.onnx", None),
        "lost.onnx: weight 'stem_conv_weight' keeps its data in 'w.data', which is not in .. "
        "Put the data file beside the model, under that name.",
    ),
    "outside.onnx": (
        _move_weights_out("outside.onnx", "../w.data"),
        "outside.onnx: weight 'stem_conv_weight' keeps its data in '../w.data', outside the model's folder "
        ".: refused, because a model could read any file that way. "
        "Move the data file into that folder and save the model with its plain name.",
    ),
    "order.onnx": (
        _edited("order.onnx", _break_order),
        "order.onnx: is not a valid model: onnx's checker says: Nodes in a graph must be topologically "
        "sorted, however input 'nowhere' of node: name: stem_conv OpType: Conv is not output of any previous "
        "nodes. Export it again.",
    ),
    "new.onnx": (
        _edited("new.onnx", _raise_opset),
        f"new.onnx: uses opset 999, and the installed onnx {onnx.__version__} knows opsets up to "
        f"{onnx.defs.onnx_opset_version()}. Install a newer onnx, or export with opset "
        f"{onnx.defs.onnx_opset_version()} or lower.",
    ),
    "nan.onnx": (
        _edited("nan.onnx", _put_nan),
        "nan.onnx: weight 'stem_conv_weight' [32, 1, 3, 3] float holds 1 NaN of 288 numbers. "
        "No pass can mend that: retrain the model.",
    ),
}


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a pass would run: what is wrong must be told before."""

    def refuse(*_: Any) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("onnxpress.tools.compress.run", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", _BAD_MODELS)
def test_bad_model_is_an_input_error(name: str, folder: Path, cli: CommandLine) -> None:
    prepare, message = _BAD_MODELS[name]
    prepare(folder)
    before = _files(folder)
    ran = cli("compress", name, "out.onnx", "--data", "calibration.npz", "--json", "out.json")
    assert ran.error == f"error: {message}"
    assert ran.status == 3
    assert _files(folder) == before


def _save_samples(name: str, **arrays: Any) -> None:
    np.savez(name, **arrays)


def _with_nan(samples: np.ndarray) -> np.ndarray:
    broken = samples.copy()
    broken[5, 0, 0, 0] = np.nan
    return broken


_BAD_DATA: dict[str, tuple[Callable[[np.ndarray], None], str]] = {
    "names.npz": (
        lambda x: _save_samples("names.npz", image=x, other=x),
        "data 'names.npz': expected arrays named by the model's inputs, 'input'; got 'image', 'other'",
    ),
    "dtype.npz": (
        lambda x: _save_samples("dtype.npz", input=x.astype(np.float64)),
        "data 'dtype.npz': input 'input': expected float32, got float64. Convert it with .astype('float32')",
    ),
    "shape.npz": (
        lambda x: _save_samples("shape.npz", input=x[:, :, :8]),
        "data 'shape.npz': input 'input': expected [N, 1, 16, 16], got [256, 1, 8, 16]",
    ),
    "empty.npz": (
        lambda x: _save_samples("empty.npz", input=x[:0]),
        "data 'empty.npz': holds no samples",
    ),
    "nan.npz": (
        lambda x: _save_samples("nan.npz", input=_with_nan(x)),
        "data 'nan.npz': input 'input': sample 5 holds NaN or infinity",
    ),
    "text.npz": (
        lambda x: _write_text("text.npz", "no samples"),
        "data 'text.npz': is neither .npz nor .npy. Save the samples with numpy.savez(path, input=x), "
        "or give a folder, or module:function",
    ),
    "calibratoin.npz": (
        lambda x: None,
        "data 'calibratoin.npz': no such file or folder. Did you mean 'calibration.npz' or 'evaluation.npz'?",
    ),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("flag", ["--data", "--eval-data"])
@pytest.mark.parametrize("name", _BAD_DATA)
def test_bad_data_is_an_input_error(name: str, flag: str, folder: Path, cli: CommandLine) -> None:
    prepare, message = _BAD_DATA[name]
    with np.load("calibration.npz") as archive:
        samples = archive["input"]
    prepare(samples)
    before = _files(folder)
    ran = cli("compress", "digits.onnx", "out.onnx", flag, name, "--passes", "cleanup")
    assert ran.error == f"error: {message}"
    assert ran.status == 3
    assert _files(folder) == before


_ALL_OPTIONS = "include, exclude, method, percentile, samples, bias_correction, tail, placement, error_samples"
_WRONG_USE = {
    "out missing": (
        ["digits.onnx"],
        "OUT is missing. Say where the result goes: onnxpress compress digits.onnx digits-small.onnx",
    ),
    "out twice": (
        ["digits.onnx", "a.onnx", "-o", "b.onnx"],
        "OUT is given twice: 'a.onnx' and -o 'b.onnx'. Give one.",
    ),
    "out exists": (
        ["digits.onnx", "evaluation.npz"],
        "OUT 'evaluation.npz' exists. Give another path, or --force to replace it.",
    ),
    "out is the model": (
        ["digits.onnx", "digits.onnx"],
        "OUT 'digits.onnx': the same file as MODEL. Give another path.",
    ),
    "out is the data": (
        ["digits.onnx", "./calibration.npz", "--data", "calibration.npz", "--force"],
        "OUT 'calibration.npz': the same file as --data. Give another path.",
    ),
    "out is a folder": (["digits.onnx", "."], "OUT '.' is a folder. Name the file in it."),
    "out has no folder": (
        ["digits.onnx", "no/such/out.onnx"],
        "OUT 'no/such/out.onnx': the folder 'no/such' does not exist. Create it first.",
    ),
    "out is stdout": (["digits.onnx", "-"], "OUT '-': only --json writes to stdout. Name a file."),
    "json is out": (
        ["digits.onnx", "out.onnx", "--json", "out.onnx"],
        "--json 'out.onnx': the same file as OUT. Give another path.",
    ),
    "json exists": (
        ["digits.onnx", "out.onnx", "--json", "evaluation.npz"],
        "--json 'evaluation.npz' exists. Give another path, or --force to replace it.",
    ),
    "recipe is the json": (
        ["digits.onnx", "out.onnx", "--json", "x", "--save-recipe", "x"],
        "--save-recipe 'x': the same file as --json. Give another path.",
    ),
    "no such pass": (
        ["digits.onnx", "out.onnx", "--passes", "cleanup, quantise-int8"],
        "unknown pass 'quantise-int8'. Did you mean 'quantize-int8' or 'quantize-weights'? "
        "There are: cleanup, fold-batchnorm, prune-channels, prune-blocks, low-rank, separable, prune-weights, "
        "prune-nm, equalize, quantize-weights, ternarize, binarize, palettize, power-of-two, quantize-int8, float16, "
        "pack",
    ),
    "no such option of a pass": (
        ["digits.onnx", "out.onnx", "--passes", "quantize-int8{smaples=3}"],
        f"quantize-int8: unknown option 'smaples'. Did you mean 'samples' or 'error_samples'? It takes: {_ALL_OPTIONS}",
    ),
    "no such node": (
        [
            "digits.onnx",
            "out.onnx",
            "--passes",
            "quantize-int8{exclude=[conv9]}",
            "--data",
            "gone.npz",  # not read: what needs no data is told before
        ],
        "quantize-int8: exclude='conv9' matches no node. Did you mean 'stem_conv' or 'widen_conv' or 'reduce_conv'?",
    ),
    "broken pipeline": (
        ["digits.onnx", "out.onnx", "--passes", "quantize-int8{"],
        "pipeline: column 15: expected the name of an option or '}', found the end, in: quantize-int8{",
    ),
    "wrong order": (
        ["gone.onnx", "out.onnx", "--passes", "quantize-int8, cleanup", "--data", "gone.npz"],
        "pipeline: 'quantize-int8' must come after 'cleanup'. Write --passes \"cleanup, quantize-int8\"",
    ),
    "no such target": (
        ["digits.onnx", "out.onnx", "--target", "hostcpu"],
        "unknown target 'hostcpu'. Did you mean 'host-cpu'? "
        f"There are: {', '.join(target_names())}; or give the path of a profile, such as phone.toml",
    ),
    "no such profile": (
        ["digits.onnx", "out.onnx", "--target", "phone.toml"],
        "target profile phone.toml: there is no such file",
    ),
    "no data": (
        ["digits.onnx", "out.onnx"],
        "quantize-int8: needs calibration data and none was given. "
        "Give a few hundred real samples: --data samples.npz (data=... in Python)",
    ),
    "nothing to measure a drop on": (
        ["digits.onnx", "out.onnx", "--max-drop", "1", "--passes", "cleanup"],
        "--max-drop: needs samples to measure the drop on. Give --eval-data, or at least --data "
        "(eval_data=..., data=...).",
    ),
    "drop is no number": (
        ["digits.onnx", "out.onnx", "--max-drop", "nan", "--data", "calibration.npz"],
        "--max-drop nan: must be a number of points, 0 or more, such as 0.5.",
    ),
    "no such option": (
        ["digits.onnx", "out.onnx", "--pases", "cleanup"],
        "no such option --pases. Did you mean '--passes'? See: onnxpress compress --help",
    ),
    "no model": ([], "Missing argument 'MODEL'. See: onnxpress compress --help"),
}


@pytest.mark.parametrize("case", _WRONG_USE)
def test_wrong_use_of_compress(case: str, folder: Path, cli: CommandLine) -> None:
    arguments, message = _WRONG_USE[case]
    before = _files(folder)
    ran = cli("compress", *arguments)
    assert ran.error == f"error: {message}"
    assert ran.status == 2
    assert _files(folder) == before


def test_model_above_the_opset_of_the_target_is_refused_before_the_work(
    folder: Path, cli: CommandLine, no_work: None
) -> None:
    Path("old.toml").write_text('extends = "host-cpu"\nname = "old"\n[opset]\nmax = 15\n')
    ran = cli("compress", "digits.onnx", "out.onnx", "--target", "old.toml", "--data", "gone.npz")
    assert ran.status == 3
    assert ran.error == (
        "error: digits.onnx: uses opset 17, and old takes opsets up to 15. "
        "Export it with opset 15 or lower, or choose another target."
    )


def test_unwritable_folder_is_told_before_the_work(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # Root may write anywhere, so permissions would prove nothing.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    ran = cli("compress", "gone.onnx", "out.onnx")
    assert ran.error == "error: OUT 'out.onnx' cannot be written: Permission denied. Give another path."
    assert ran.status == 2


def test_failure_while_writing_leaves_no_file(folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    before = _files(folder)
    monkeypatch.setattr(Path, "replace", fail)
    ran = cli("compress", "digits.onnx", "out.onnx", "--passes", "cleanup", "--json", "out.json")
    assert ran.error == (
        f"error: output {folder / 'out.onnx'}: cannot be written: No space left on device. Choose another place."
    )
    assert ran.status == 2
    assert _files(folder) == before


def test_unexpected_failure_is_an_internal_error_with_advice(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("of two\nlines")

    monkeypatch.setattr("onnxpress.tools.plan.prepare", fail)
    ran = cli("compress", "digits.onnx", "out.onnx")
    assert ran.err == (
        "error: internal error: ZeroDivisionError: of two lines. This is a bug in onnxpress. To report it, "
        "repeat the command with ONNXPRESS_TRACEBACK=1 set, and compress with --crash-dir DIR for a "
        "reproducer.\n"
    )
    assert ran.status == 70
    monkeypatch.setenv("ONNXPRESS_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in cli("compress", "digits.onnx", "out.onnx").err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signals")
@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_request_to_end_is_told_and_unwinds(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, number: str, status: int
) -> None:
    unwound = []

    def end(*_: Any, **__: Any) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, number))
            time.sleep(5)
        finally:
            unwound.append(number)

    before = signal.getsignal(getattr(signal, number))
    monkeypatch.setattr("onnxpress.tools.plan.prepare", end)
    ran = cli("compress", "digits.onnx", "out.onnx")
    assert ran.status == status
    assert ran.error == f"error: ended by {number}; no output file was left half written"
    assert unwound == [number] and not (folder / "out.onnx").exists()
    assert signal.getsignal(getattr(signal, number)) == before


def test_interrupt_is_told_and_leaves_no_file(folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = _files(folder)
    monkeypatch.setattr("onnxpress.tools.plan.prepare", interrupt)
    ran = cli("compress", "digits.onnx", "out.onnx")
    assert ran.error == "error: interrupted; no output file was left half written"
    assert ran.status == 130
    assert _files(folder) == before


def test_broken_plugin_is_a_warning_and_the_others_stay(
    folder: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxpress.passes import registry
    from onnxpress.targets import base

    installed = folder / "site" / "broken_plugin-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[onnxpress.passes]\nshrink = no_such_module:Shrink\n[onnxpress.targets]\nphone = no_such_module:make\n"
    )
    monkeypatch.syspath_prepend(str(folder / "site"))
    # Both look for plugins once a process.
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    monkeypatch.setattr(base, "_plugins", base._plugins.__wrapped__)

    ran = cli("passes", "--json", "-")
    assert ran.status == 0
    assert (
        "warning: plugin 'broken-plugin' (entry point 'shrink' = 'no_such_module:Shrink') cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_module'. "
        "Its passes are missing; update or uninstall it\n" in ran.err
    )
    assert "cleanup" in [one["name"] for one in json.loads(ran.out)]
    ran = cli("targets", "--json", "-")
    assert ran.status == 0
    assert (
        "warning: plugin 'broken-plugin' (entry point 'phone' = 'no_such_module:make') cannot be used: "
        "ModuleNotFoundError: No module named 'no_such_module'. "
        "Its target is missing; update or uninstall it\n" in ran.err
    )
    assert [one["name"] for one in json.loads(ran.out)] == target_names()
