"""onnxruntime's providers: one that does not start is not here, and steps are those of the main graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes import onnxruntime as runtimes
from onnxpress.targets.runtimes.onnxruntime import CPU, CUDA
from onnxpress.targets.runtimes.onnxruntime_session import open_session
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_net
from tests.support import random_feeds, text_model

_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


class _OnGpu:
    """A session that says that it is on the GPU."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return _PROVIDERS


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """A wheel with CUDA on a machine without a GPU: sessions are made on the CPU. Gives the providers asked for."""
    make, asked = onnxruntime.InferenceSession, []

    def session(source: str | bytes, options: Any, providers: list[str]) -> Any:
        asked.append(providers)
        return make(source, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: _PROVIDERS)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    runtimes._starts.cache_clear()
    yield asked
    runtimes._starts.cache_clear()


@pytest.mark.usefixtures("wheel")
def test_a_provider_that_does_not_start_is_not_here() -> None:
    net = residual_net()
    for ask in (CUDA.version, lambda: CUDA.prepare(net, random_feeds(net, batch=1))):
        with pytest.raises(UsageError) as caught:
            ask()
        assert str(caught.value) == (
            f"onnxruntime on CUDA: CUDAExecutionProvider of onnxruntime {onnxruntime.__version__} does not start here. "
            "It needs a GPU, its driver, and the versions of CUDA and cuDNN that onnxruntime's documentation names"
        )
    assert CPU.version() == onnxruntime.__version__


@pytest.mark.usefixtures("wheel")
def test_a_session_is_on_the_provider_that_was_asked_for() -> None:
    with pytest.raises(RuntimeRefusalError) as caught:
        open_session(residual_net(), providers=tuple(_PROVIDERS))
    assert str(caught.value) == (
        f"onnxruntime {onnxruntime.__version__}: does not load the model: CUDAExecutionProvider does not start here, "
        "and CPUExecutionProvider would compute in its place"
    )


def test_nothing_of_cuda_is_asked_of_the_cpu(wheel: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *args, **named: _OnGpu(on_cpu(*args, **named)))
    net = residual_net()
    prepared = CUDA.prepare(net, random_feeds(net, batch=1))
    assert prepared.layers().total() >= 3
    assert (prepared.node_times(5), CUDA.node_clock) == ([], None)
    assert _asked_first(wheel) == {"CUDAExecutionProvider"}


def _asked_first(asked: list[list[str]]) -> set[str]:
    return {providers[0] for providers in asked}


def _loop(trips: int) -> onnx_ir.Model:
    """A Loop whose body has a large node of the name and kind of a small one behind it."""
    return text_model(f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[65536] x) => (float[2] y) {{
        [first] a = Relu (x)
        n = Constant <value_int = {trips}> ()
        [loop] l = Loop (n, , a) <body = b (int64 i, bool c, float[65536] s) => (bool d, float[65536] t) {{
            d = Identity (c)
            [same] t = Erf (s)
        }}>
        starts = Constant <value_ints = [0]> ()
        ends = Constant <value_ints = [2]> ()
        [cut] z = Slice (l, starts, ends)
        [same] y = Erf (z)
    }}""")


def test_a_loop_is_one_step_that_holds_its_iterations() -> None:
    model = _loop(3)
    steps = CPU.prepare(model, random_feeds(model)).node_times(10)
    assert [(step.name, step.kind) for step in steps] == [
        ("first", "Relu"), ("loop", "Loop"), ("cut", "Slice"), ("same", "Erf"),
    ]  # fmt: skip
    times = {step.name: step.milliseconds for step in steps}
    assert times["same"] < 0.1 * times["loop"]


def test_outputs_are_handed_out_as_copies() -> None:
    model = text_model('<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Neg (x) }')
    prepared = CPU.prepare(model, {"x": np.ones(3, np.float32)})
    prepared.compute()
    prepared.fetch()["y"][:] = 7
    assert prepared.fetch()["y"].tolist() == [-1, -1, -1]


def test_texts_go_in() -> None:
    model = text_model('<ir_version: 8, opset_import: ["" : 17]> g (string[N] x) => (string[N] y) { y = Identity (x) }')
    prepared = CPU.prepare(model, {"x": np.array(["a", "bc"])})
    prepared.compute()
    assert prepared.fetch()["y"].tolist() == ["a", "bc"]
