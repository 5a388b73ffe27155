"""`import onnxpress`: what it offers, that it costs nothing, and that it works as the README shows it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxpress

_FIXED = {
    "load",
    "save",
    "compress",
    "inspect",
    "profile",
    "compare",
    "check",
    "Recipe",
    "Pass",
    "register_pass",
    "Target",
    "pack",
    "unpack",
    "open_session",
}


def test_face_offers_the_fixed_names() -> None:
    assert set(onnxpress.__all__) == _FIXED | {"__version__"}
    for name in onnxpress.__all__:
        assert getattr(onnxpress, name) is not None
    assert set(onnxpress._HOMES) == _FIXED
    assert dir(onnxpress) == sorted(onnxpress.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'onnxpress' has no attribute 'comprss'$"):
        getattr(onnxpress, "comprss")  # noqa: B009  # a plain attribute would be a type error


def test_import_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import onnxpress; assert 'compress' in dir(onnxpress); "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(ran.stdout)) <= {"_typing", "collections", "importlib", "onnxpress", "typing"}


def test_compress_from_python(demo_files: Path) -> None:
    with np.load(demo_files / "calibration.npz") as archive:
        samples = [{"input": archive["input"][i : i + 16]} for i in range(0, 64, 16)]
    model = onnxpress.load(demo_files / "digits.onnx")
    result = onnxpress.compress(model, target="host-cpu", data=samples)
    onnxpress.save(result.model, demo_files / "small.onnx")
    assert result.report.after.size_bytes == (demo_files / "small.onnx").stat().st_size
    assert onnxpress.inspect(demo_files / "small.onnx").metrics.params > 100_000
    assert onnxpress.check(result.model, target="mobile-cpu").legal
    compared = onnxpress.compare(model, result.model, samples)
    assert compared.b.agreement is not None and compared.b.agreement > 90
    assert result.recipe == onnxpress.Recipe.from_toml(result.recipe.to_toml())


def test_own_pass_runs_in_a_pipeline(demo_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir

    from onnxpress.passes import registry
    from onnxpress.passes.base import Context, Rewrites, Site

    monkeypatch.setattr(registry, "_registry", registry._Registry())

    @onnxpress.register_pass
    class Rename(onnxpress.Pass):
        """Sign the graph."""

        name = "sign"
        fidelity = "bits"

        def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
            model.graph.doc_string = "signed"
            return Rewrites([Site("graph", "graph")])

    result = onnxpress.compress(demo_files / "digits.onnx", passes="cleanup, sign")
    assert result.model.graph.doc_string == "signed"
    assert [one.name for one in result.report.passes] == ["cleanup", "sign"]
