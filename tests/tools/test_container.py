"""`onnxpress pack` and `unpack`: tables, JSON, errors, and packed models wherever a model may be given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxpress
from onnxpress.ir.container import packing
from onnxpress.ir.errors import InputError
from tests.tools.conftest import CommandLine


def test_a_model_comes_back_to_the_last_byte(folder: Path, cli: CommandLine) -> None:
    packed = cli("pack", "digits.onnx", "-o", "digits.onnxp", "--json", "-")
    assert packed.status == 0
    report = json.loads(packed.out)
    size = Path("digits.onnxp").stat().st_size
    assert report["before_bytes"] == Path("digits.onnx").stat().st_size and report["after_bytes"] == size
    assert sum(row["after"] for row in report["methods"]) == size
    assert sum(row["before"] for row in report["methods"]) == pytest.approx(report["before_bytes"], rel=0.001)
    assert report["ratio"] < 0.83 and report["warning"] is None and report["params"] == 112_682
    rows = [re.split(r" {2,}", line.strip()) for line in packed.err.splitlines()]
    assert ["floats", "32", "450,728"] in [row[:3] for row in rows]
    assert [row[2:4] for row in rows if row[0] == "file"] == [["454,247", f"{size:,}"]]
    assert packed.err.splitlines()[-1] == "written: digits.onnxp"
    assert cli("unpack", "digits.onnxp", "-o", "again.onnx").status == 0
    assert Path("again.onnx").read_bytes() == Path("digits.onnx").read_bytes()


def test_commands_take_packed_models(folder: Path, cli: CommandLine) -> None:
    onnxpress.pack("digits.onnx", "digits.onnxp")
    plain, packed = (json.loads(cli("inspect", name, "--json", "-").out) for name in ("digits.onnx", "digits.onnxp"))
    assert packed["bytes"] == Path("digits.onnxp").stat().st_size
    assert packed["macs"] == plain["macs"] and packed["nodes"] == plain["nodes"]
    assert cli("compare", "digits.onnx", "digits.onnxp", "--data", "evaluation.npz").status == 0
    assert cli("check", "digits.onnxp", "--target", "mobile-cpu").status == 0


def test_a_session_runs_a_packed_model(folder: Path) -> None:
    onnxpress.pack("digits.onnx", "digits.onnxp")
    with np.load("evaluation.npz") as arrays:
        feeds = {"input": arrays["input"][:4]}
    first, second = (onnxpress.open_session(f"digits.{suffix}") for suffix in ("onnx", "onnxp"))
    for one, other in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"^gone\.onnxp: there is no such model file"):
        onnxpress.open_session("gone.onnxp")


def test_a_model_that_grows_is_said_to(folder: Path, cli: CommandLine) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [result])), "tiny.onnx")
    ran = cli("pack", "tiny.onnx", "-o", "tiny.onnxp")
    assert ran.status == 0
    assert re.search(
        r"warning: the packed model is \d+ bytes LARGER than the model: \d+ bytes are frame: sizes and digests, which "
        r"a model this small cannot make up for\. Keep the \.onnx file\.",
        ran.err,
    )


_WRONG_USE = {
    "pack without output": (
        ["pack", "digits.onnx"],
        "-o OUT is missing. Say where the result goes: onnxpress pack digits.onnx -o digits.onnxp",
    ),
    "unpack without output": (
        ["unpack", "digits.onnxp"],
        "-o OUT is missing. Say where the result goes: onnxpress unpack digits.onnxp -o digits.onnx",
    ),
    "unknown suffix": (
        ["pack", "digits.onnx", "-o", "digits.zip"],
        "output 'digits.zip': packed models end in .onnxp. Name it 'digits.onnxp'.",
    ),
    "unpacked to a packed name": (
        ["unpack", "digits.onnxp", "-o", "other.onnxp"],
        "output 'other.onnxp': what is unpacked is no .onnxp file. Name it .onnx.",
    ),
    "packed again": (
        ["pack", "digits.onnxp", "-o", "twice.onnxp"],
        "'digits.onnxp' is packed already, and packing it again gains nothing. "
        "Unpack it: onnxpress unpack digits.onnxp -o digits.onnx",
    ),
    "taken": (
        ["unpack", "digits.onnxp", "-o", "digits.onnx"],
        "-o 'digits.onnx' exists. Give another path, or --force to replace it.",
    ),
    "onto itself": (
        ["pack", "digits.onnx", "-o", "digits.onnx", "--force"],
        "-o 'digits.onnx': the same file as MODEL. Give another path.",
    ),
}


@pytest.mark.parametrize("case", _WRONG_USE)
def test_wrong_use(case: str, folder: Path, cli: CommandLine) -> None:
    arguments, message = _WRONG_USE[case]
    onnxpress.pack("digits.onnx", "digits.onnxp")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    ran = cli(*arguments)
    assert (ran.status, ran.error) == (2, f"error: {message}")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_force_replaces(folder: Path, cli: CommandLine) -> None:
    Path("digits.onnxp").write_text("old")
    assert cli("pack", "digits.onnx", "-o", "digits.onnxp").status == 2
    assert Path("digits.onnxp").read_text() == "old"
    assert cli("pack", "digits.onnx", "-o", "digits.onnxp", "--force").status == 0
    assert cli("unpack", "digits.onnxp", "-o", "digits.onnx", "--force").status == 0
    assert packing.is_packed(Path("digits.onnxp")) and not packing.is_packed(Path("digits.onnx"))


@pytest.mark.parametrize("command", ["unpack", "inspect"])
def test_a_damaged_file_is_an_input_error(command: str, folder: Path, cli: CommandLine) -> None:
    onnxpress.pack("digits.onnx", "digits.onnxp")
    content = bytearray(Path("digits.onnxp").read_bytes())
    content[1000] ^= 1
    Path("digits.onnxp").write_bytes(content)
    ran = cli(command, "digits.onnxp", *(["-o", "out.onnx"] if command == "unpack" else []))
    assert ran.status == 3 and not Path("out.onnx").exists()
    assert ran.error == (
        "error: digits.onnxp: the packed model is cut off or damaged: its digest does not fit its content. "
        "Copy it again, or pack the model again."
    )


def test_a_plain_model_is_no_packed_one(folder: Path, cli: CommandLine) -> None:
    ran = cli("unpack", "digits.onnx", "-o", "out.onnx")
    assert ran.status == 3
    assert ran.error == (
        "error: digits.onnx: is not an .onnxp file, or is damaged (454247 bytes). Pack the model again."
    )


def test_save_and_compress_pack_what_is_named_so(folder: Path, cli: CommandLine) -> None:
    model = onnxpress.load("digits.onnx")
    written = onnxpress.save(model, "saved.onnxp")
    assert written == Path("saved.onnxp").stat().st_size and packing.is_packed(Path("saved.onnxp"))
    ran = cli(
        "compress", "digits.onnx", "small.onnxp", "--data", "calibration.npz", "--json", "small.json",
        "--passes", "cleanup, fold-batchnorm, prune-weights{ratio=0.6}, palettize{bits=3}, pack",
    )  # fmt: skip
    assert ran.status == 0, ran.error
    record = json.loads(Path("small.json").read_text())
    assert record["written"] == "small.onnxp"
    size = Path("small.onnxp").stat().st_size
    assert record["packing"]["after_bytes"] == record["after"]["bytes"] == size < record["packing"]["before_bytes"]
    assert record["packing"]["bits_per_weight"] < record["after"]["bits_per_weight"]
    assert ran.error.count("written: ") == 0
    assert onnxpress.open_session(onnxpress.load("small.onnxp")).get_inputs()[0].name == "input"
    assert cli("compare", "digits.onnx", "small.onnxp", "--data", "evaluation.npz").status == 0
