"""2:4 sparsity: what prune-nm leaves is the pattern that TensorRT's tools look for, by their own judgement."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx_ir
import pytest

from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from tests.passes.prune import sparse_support

_POLYGRAPHY = "from polygraphy.tools import main; main()"


@pytest.mark.parametrize(
    ("pipeline", "is_sparse"), [("prune-nm", True), ("prune-nm, float16", True), ("prune-weights{ratio=0.5}", False)]
)
def test_polygraphy_agrees(pipeline: str, is_sparse: bool, tmp_path: Path) -> None:
    """It looks at float weights alone, and skips integers."""
    pytest.importorskip("polygraphy")
    target, net = load_target("tensorrt"), sparse_support.net()
    context = Context(constraints=target.constraints, data=sparse_support.data_of(net))
    model, _ = PassManager(build(pipeline)).run(net, context)
    report = target.lower(model)
    assert any("the runtime leaves them out if it is built to look for them" in note for note in report.notes) or (
        "float16" in pipeline
    )
    rules = [found.rule for found in target.check(model)]
    assert ("two-of-four" not in rules) is is_sparse
    path = tmp_path / "model.onnx"
    onnx_ir.save(model, path)
    command = [sys.executable, "-c", _POLYGRAPHY, "inspect", "sparsity", str(path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {kind: len(re.findall(rf"Found {kind} tensor: ", told)) for kind in ("sparse", "non-sparse")}
    assert found == ({"sparse": 5, "non-sparse": 0} if is_sparse else {"sparse": 0, "non-sparse": 5})


def test_integers_keep_the_pattern() -> None:
    """What polygraphy does not look at, the rule does."""
    target, net = load_target("tensorrt"), sparse_support.net()
    context = Context(constraints=target.constraints, data=sparse_support.data_of(net))
    model, _ = PassManager(build("prune-nm, quantize-int8")).run(net, context)
    target.lower(model)
    assert "two-of-four" not in [found.rule for found in target.check(model)]
