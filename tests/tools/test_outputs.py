"""Output files are checked before the work and written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.tools.outputs import check_outputs, write_text


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_force_never_replaces_the_weights_of_the_model_or_a_file_of_the_data(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, 1, ["N", 64]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    model = tmp_path / "m.onnx"
    onnx.save(proto, model, save_as_external_data=True, location="m.data", size_threshold=0)
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "0.npz").write_bytes(b"")
    for out, other in ((tmp_path / "m.data", "the weights of MODEL"), (folder / "0.npz", "a file of --data")):
        with pytest.raises(UsageError) as error:
            check_outputs({"OUT": out}, {"MODEL": model, "--data": folder}, force=True)
        assert str(error.value) == f"OUT {str(out)!r}: the same file as {other}. Give another path."
    check_outputs({"OUT": model}, {"MODEL": model, "--data": folder}, force=True)


def test_free_paths_pass_and_nothing_is_created(tmp_path: Path) -> None:
    check_outputs({"OUT": "a.onnx", "--json": "-", "--save-recipe": None}, {"MODEL": "m.onnx", "--data": None})
    assert list(tmp_path.iterdir()) == []


def test_only_files_are_inputs() -> None:
    check_outputs({"OUT": "cleanup"}, {"--passes": "cleanup", "--target": "x" * 5000})
    Path("cleanup").write_text("cleanup")
    with pytest.raises(UsageError, match="the same file as --passes"):
        check_outputs({"OUT": "cleanup"}, {"--passes": "cleanup"}, force=True)


def test_same_file_under_two_names_is_found() -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    with pytest.raises(UsageError) as caught:
        check_outputs({"OUT": "real/a", "--json": "link/../link/a"}, {})
    assert str(caught.value) == "--json 'link/../link/a': the same file as OUT. Give another path."


def test_force_lets_out_replace_the_model_and_nothing_else() -> None:
    Path("m.onnx").write_text("model")
    check_outputs({"OUT": "m.onnx"}, {"MODEL": "m.onnx"}, force=True)
    for outputs, inputs in (
        ({"OUT": "m.onnx"}, {"--data": "m.onnx"}),
        ({"--json": "m.onnx"}, {"MODEL": "m.onnx"}),
    ):
        with pytest.raises(UsageError, match="the same file as"):
            check_outputs(outputs, inputs, force=True)


def test_text_is_replaced_only_on_demand_and_keeps_usual_permissions() -> None:
    write_text("a.json", "1")
    mask = os.umask(0)
    os.umask(mask)
    assert Path("a.json").stat().st_mode & 0o777 == 0o666 & ~mask
    with pytest.raises(UsageError) as caught:
        write_text("a.json", "2")
    assert str(caught.value) == "'a.json' exists. Give another path, or --force (overwrite=True) to replace it."
    write_text("a.json", "2", overwrite=True)
    assert Path("a.json").read_text() == "2"
    assert [path.name for path in Path().iterdir()] == ["a.json"]


def test_failed_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_text("a.json", "old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UsageError) as caught:
        write_text("a.json", "new", overwrite=True)
    assert str(caught.value) == "'a.json' cannot be written: No space left on device. Give another path."
    assert Path("a.json").read_text() == "old"
    assert [path.name for path in Path().iterdir()] == ["a.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_plain_file_is_never_replaced(tmp_path: Path, force: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is a device, a pipe or a socket, and would be replaced"):
        check_outputs({"--json": pipe}, {}, force=force)
    with pytest.raises(UsageError, match="device, a pipe" if force else "exists"):
        write_text(pipe, "x", overwrite=force)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    with pytest.raises(UsageError, match="exists"):  # though it leads nowhere yet
        check_outputs({"--json": link}, {})
    write_text(link, "new", overwrite=True)
    assert link.is_symlink() and real.read_text() == "new"
    write_text(link, "newer", overwrite=True)
    assert link.is_symlink() and real.read_text() == "newer"


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * 255)
    check_outputs({"--json": longest}, {})
    write_text(longest, "x")
    assert longest.read_text() == "x"
    with pytest.raises(UsageError, match="File name too long"):
        check_outputs({"--json": tmp_path / ("a" * 256)}, {})
