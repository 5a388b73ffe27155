"""The ncnn runtime: axes, slices that step, and refusals that say which node."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.ncnn import NCNN
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds
from tests.targets.runtimes.conversion import QDQ, assert_same, graph, prepare, refusal

_REFUSED = "ncnn: pnnx does not convert the model: "


def _refusal(body: str, inputs: str = "float[N, 3, 5, 7] x", outputs: str = "float[N, A, B, C] y") -> str:
    return refusal(NCNN, graph(body, inputs, outputs))


def _sliced(*bounds: list[int]) -> str:
    """Return a Slice behind a Relu. bounds: starts, ends, axes, steps."""
    parts = zip("ijkl", bounds, strict=True)
    constants = "".join(f"{name} = Constant <value_ints = {part}> () " for name, part in parts)
    return f"r = Relu (x) {constants} [cut] y = Slice (r, i, j, k, l)"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "body", "outputs"),
    [
        ("float[N, 6] x", "y = MatMul (x, v)", "float[N, 4] y"),
        ("float[N, 3, 6] x", "y = MatMul (x, v)", "float[N, 3, 4] y"),
        ("float[N, 3, 5, 7] x", "c = Conv (x, w) y = GlobalAveragePool (c)", "float[N, 6, 1, 1] y"),
        ("float[N, 3, 5, 7] x", "c = Conv (x, w) y = Flatten (c)", "float[N, 90] y"),
        ("float[6] x", "y = Relu (x)", "float[6] y"),
    ],
)
def test_ranks_keep_their_axes(inputs: str, body: str, outputs: str, batch: int) -> None:
    assert_same(NCNN, graph(body, inputs, outputs), batch=batch)


def test_an_input_that_nothing_reads() -> None:
    assert_same(NCNN, graph("y = Relu (z)", "float[N, 3] x, float[N, 3] z", "float[N, 3] y"))


def test_integers_go_in() -> None:
    assert_same(NCNN, graph("y = Gather (table, x)", "int64[N, 5] x", "float[N, 5, 3] y"))


class _Extractor:
    """Computes nothing."""

    def set_blob_allocator(self, pool: object) -> None: ...

    def extract(self, name: str, form: int = 0) -> tuple[int, None]:
        return -100, None


def test_a_layer_that_fails_is_not_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("[one] y = Sigmoid (x)", "float[N, 3] x", "float[N, 3] y")
    prepared = prepare(NCNN, model, random_feeds(model, batch=1))
    assert [step.kind for step in prepared.node_times(1)] == ["Sigmoid"]
    monkeypatch.setattr(prepared, "_extractor", _Extractor)
    with pytest.raises(RuntimeRefusalError, match=r"^ncnn: does not compute layer '\S+' \(codes \[-100\]\)$"):
        prepared.node_times(1)


def test_steps_are_those_of_its_layers() -> None:
    model = residual_net()
    prepared = prepare(NCNN, model, random_feeds(model, batch=1))
    steps = prepared.node_times(2)
    assert [step.kind for step in steps if step.kind == "Convolution"] == ["Convolution"] * 3
    assert len({step.name for step in steps}) == len(steps) == prepared.layers().total()
    assert len(NCNN.prepare(model, random_feeds(model, batch=1), threads=2).node_times(1)) == len(steps)


@pytest.mark.parametrize(
    "bounds",
    [
        ([0], [99], [2], [2]),
        ([0, 0], [99, 99], [3, 2], [2, 3]),
        ([1, 1], [4, 6], [-2, -1], [2, 3]),
        ([1, -6], [2, -1], [1, 3], [1, 4]),
    ],
)
def test_slices_that_step_become_poolings(bounds: tuple[list[int], ...]) -> None:
    assert_same(NCNN, graph(_sliced(*bounds)), error=0)


@pytest.mark.parametrize(
    ("inputs", "axis", "step", "remark"),
    [
        ("float[N, 3, 5, 7] x", 1, 2, "slice with step 2 is not supported"),
        ("float[N, 3, 5, 7] x", 2, -2, "slice with step -2 is not supported"),
        ("float[N, 3, 5] x", 2, 2, "slice with step 2 is not supported"),
    ],
)
def test_other_slices_are_refused(inputs: str, axis: int, step: int, remark: str) -> None:
    start, end = (0, 99) if step > 0 else (-1, -99)
    outputs = inputs.replace(" x", " y").replace("3", "A").replace("5", "B").replace("7", "C")
    assert _refusal(_sliced([start], [end], [axis], [step]), inputs=inputs, outputs=outputs) == _REFUSED + remark


def test_quantized_models_name_the_nodes() -> None:
    assert _refusal(f"{QDQ} y = Relu (b)") == (
        f"{_REFUSED}todo QuantizeLinear (node 'q'); todo DequantizeLinear (node 'd')"
    )


def test_an_unknown_operator_is_named() -> None:
    assert _refusal("r = Relu (x) [hard] y = Hardmax (r)") == f"{_REFUSED}todo Hardmax (node 'hard')"


def test_five_axes() -> None:
    five = {"inputs": "float[1, 2, 3, 4, 5] x", "outputs": "float[A, B, C, D, E] y"}
    assert _refusal("y = Sigmoid (x)", **five) == (
        "ncnn: does not take input 'x': convert numpy.ndarray to ncnn.Mat only dims <=4 support now, but given 5"
    )


def test_types_that_it_has_not() -> None:
    assert _refusal("y = Not (x)", inputs="bool[N, 3] x", outputs="bool[N, 3] y") == (
        "ncnn: gives float32 only, and output 'y' is bool"
    )
    assert _refusal("y = Cast <to = 1> (x)", inputs="bool[N, 3] x", outputs="float[N, 3] y") == (
        "ncnn: takes float32 and int32, and input 'x' is bool"
    )


def _fake_pnnx(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a package `pnnx` with this program, and no other, where the runtime looks."""
    program = folder / "pnnx"
    program.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{code}\n", encoding="utf-8")
    program.chmod(0o755)
    spec = importlib.machinery.ModuleSpec("pnnx", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.write(1, b'one\\nlast words'); os.kill(os.getpid(), signal.SIGSEGV)", "last words (SIGSEGV)"),
        ("sys.exit('no such thing')", "no such thing (exit code 1)"),
        ("pass", "it wrote nothing (no file written)"),
    ],
)
def test_a_converter_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: str) -> None:
    _fake_pnnx(tmp_path, monkeypatch, code)
    assert _refusal("y = Relu (x)") == _REFUSED + expected


def test_a_converter_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_pnnx(
        tmp_path, monkeypatch,
        "for name in ('model.ncnn.param', 'model.ncnn.bin', 'model_ncnn.py'): open(name, 'w').close()",
    )  # fmt: skip
    model = graph("y = Relu (x)")
    with pytest.raises(UsageError) as caught:
        prepare(NCNN, model, random_feeds(model, batch=1))
    assert str(caught.value) == (
        f"{tmp_path / 'pnnx'} does not tell batches apart: pip install --no-deps 'pnnx>=20261020'"
    )


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ncnn", types.ModuleType("ncnn"))
    with pytest.raises(UsageError) as converter:
        NCNN.version()
    assert str(converter.value) == "ncnn needs the converter pnnx, which is not installed: pip install --no-deps pnnx"
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(UsageError) as runtime:
        NCNN.version()
    assert str(runtime.value) == 'ncnn is not installed: pip install "onnxpress[ncnn]" && pip install --no-deps pnnx'
