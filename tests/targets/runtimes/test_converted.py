"""What ncnn and MNN have in common: batches, names, integers, and silence."""

from __future__ import annotations

import numpy as np
import pytest

from onnxpress.ir.errors import InputError
from onnxpress.targets.runtimes.base import Runtime
from onnxpress.targets.runtimes.mnn import MNN
from onnxpress.targets.runtimes.ncnn import NCNN
from tests.passes.residual_net import residual_net
from tests.support import random_feeds
from tests.targets.runtimes.conversion import QDQ, assert_quiet, assert_same, graph, prepare

_BOTH = pytest.mark.parametrize("runtime", [NCNN, MNN], ids=["ncnn", "mnn"])


@_BOTH
@pytest.mark.parametrize("batch", [1, 3])
def test_batches(runtime: Runtime, batch: int) -> None:
    assert_same(runtime, residual_net(), batch=batch)


@_BOTH
@pytest.mark.parametrize(
    "names",
    [
        {"x": "in put:0/a,[1]", "z": "out0", "unread": "m", "u": "é second", "t": "in1"},
        {"x": "z in:0/a,[1]", "z": "a", "unread": "in0", "u": "é second", "t": "b'"},
    ],
)
def test_inputs_and_outputs_of_any_name_keep_their_order(runtime: Runtime, names: dict[str, str]) -> None:
    inputs, outputs = "float[1, 3, 5] x, float[1, 3, 5] z, float[2] unread", "float[A, B, C] u, float[A, B, C] t"
    model = graph("t = Relu (x) u = Sub (z, x)", inputs, outputs)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names[str(value.name)]
    assert_same(runtime, model)


@_BOTH
def test_numbers_beyond_32_bits_are_refused(runtime: Runtime) -> None:
    model = graph("y = Gather (table, x)", "int64[N, 5] x", "float[N, 5, 3] y")
    prepared = prepare(runtime, model, random_feeds(model))
    told = f"input 'x' holds numbers beyond 32 bits, and {'ncnn' if runtime.name == 'ncnn' else 'MNN'} takes int32"
    with pytest.raises(InputError) as caught:
        prepared.feed({"x": np.full((2, 5), 2**40)})
    assert str(caught.value) == told
    with pytest.raises(InputError) as caught:
        runtime.prepare(model, {"x": np.full((2, 5), 2**40)})
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("runtime", "refused"),
    [(NCNN, f"{QDQ} y = Relu (b)"), (MNN, "y = Hardmax (x)"), (MNN, f"{QDQ} y = Conv (b, w)")],
    ids=["ncnn", "mnn, not converted", "mnn, not run"],
)
def test_nothing_reaches_the_terminal(runtime: Runtime, refused: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_quiet(runtime, residual_net(), graph(refused), capfd)
