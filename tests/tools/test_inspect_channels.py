"""`inspect --channels`: which channels belong together, for people and as JSON."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console

from onnxpress.ir import model_io
from onnxpress.tools.inspection import inspect
from onnxpress.tools.report.channels import show_channels
from tests.ir.analysis.channel_graphs import random_model


def test_channels_as_json(tmp_path: Path, repository: Path, cli: Callable[..., Any]) -> None:
    model = tmp_path / "digits.onnx"
    shutil.copy(repository / "tools" / "demo" / "digits.onnx", model)
    ran = cli("inspect", str(model), "--channels", "--json", "-")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)["channels"]
    assert any(group["frozen"] is None and group["size"] > 1 and group["producers"] for group in found)
    assert "channels that can be removed" in ran.err and "channels that cannot" in ran.err
    assert "channels" not in json.loads(cli("inspect", str(model), "--json", "-").out)


def test_channels_are_described() -> None:
    found = inspect(random_model(["attention"], 1), channels=True).channels
    assert found is not None
    heads = next(group for group in found if len(group.producers) == 3 and not group.frozen)
    assert (heads.size, heads.frozen, len(heads.consumers)) == (3, None, 1)
    assert heads.params == 4 * (3 * (12 + 1) + 12)  # columns of three weights with their biases, rows of one
    assert any(member[1:] == (1, 4) for member in heads.members)
    frozen = {group.name: group.frozen for group in found if group.frozen}
    assert frozen["conv3"] == "normalised over by LayerNormalization 'layernormalization41'"


def test_table_says_what_stays_and_why(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    model_io.save(random_model(["residual"], 1), path)
    text = io.StringIO()
    channels = inspect(path, channels=True).channels
    assert channels is not None
    show_channels(rich.console.Console(file=text, width=100), channels)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip(" ─")]
    assert lines == [
        "channels that can be removed made by read by number params each",
        "conv3 conv3, conv10 conv6, conv15 12 211",
        "conv6 conv6 conv10 10 217",
        "channels that cannot because number",
        "x0 graph input 'x0' 3",
        "conv15 graph output 'conv15' 2",
    ]
