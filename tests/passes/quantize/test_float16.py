"""float16: half the bytes, the weights' function to 11 bits, and nothing that does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir import encodings
from onnxpress.ir.errors import UsageError
from onnxpress.ir.model_io import load
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.constraints import Constraints, QuantizationScheme
from onnxpress.passes.quantize.float16 import Float16
from onnxpress.passes.registry import get_pass
from onnxpress.targets.lowering.qdq import lower_qdq
from onnxpress.tools.compress import compress
from tests.passes.residual_net import residual_net
from tests.support import random_feeds, run


def _run(model: onnx_ir.Model, **options: object) -> Rewrites:
    return Float16(**options).run(model, Context(constraints=Constraints()))


def _reasons(record: Rewrites) -> dict[str, str]:
    return {each.name: each.reason for each in record.declined}


def test_weights_are_rounded_to_half_precision_and_small_ones_are_left() -> None:
    model, original = residual_net(), residual_net()
    record = _run(model)
    assert [site.name for site in record.sites] == ["w1", "w2"]
    assert _reasons(record) == {
        "w0": "it has 216 numbers, too few to be worth a node",
        "w3": "it has 40 numbers, too few to be worth a node",
    }
    for site in record.sites:
        assert site.after.size_bytes * 2 == site.before.size_bytes and site.after.params == site.before.params
        assert site.error["weight_sqnr_db"] == pytest.approx(73, abs=3)
        encoded, before = (each.graph.initializers[site.name].const_value for each in (model, original))
        assert isinstance(encoded, encodings.Float16) and before is not None
        np.testing.assert_array_equal(encoded.dense(), before.numpy().astype(np.float16).astype(np.float32))
    assert not _run(model).modified


def test_lowered_it_computes_the_same_from_half_the_bytes() -> None:
    model = residual_net()
    _run(model)
    expected, feeds, face = run(model, random_feeds(model)), random_feeds(model), interface(model)
    report = lower_qdq(model, QuantizationScheme())
    verify(model)
    assert interface(model) == face
    assert report.forms == {"float16 -> Cast": 2}
    stored = [value.const_value for value in model.graph.initializers.values()]
    assert sum(tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT16 for tensor in stored) == 2
    np.testing.assert_array_equal(run(model, feeds)[0], expected[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (7e4, "a magnitude of 70000 lies beyond float16's 65504"),
        (np.inf, "a magnitude of inf lies beyond float16's 65504"),
        (np.nan, "a magnitude of nan lies beyond float16's 65504"),
    ],
)
def test_what_does_not_fit_stays(change: float, reason: str) -> None:
    model = residual_net()
    value = model.graph.initializers["w1"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0, 0, 0, 0] = change
    value.const_value = onnx_ir.tensor(array, name="w1")
    assert _reasons(_run(model))["w1"] == reason


def test_selectors_and_targets_are_respected() -> None:
    record = _run(residual_net(), exclude=["conv1"])
    assert [site.name for site in record.sites] == ["w2"]
    assert _reasons(record)["w1"] == "excluded by 'conv1'"
    with pytest.raises(UsageError, match=r"^float16: exclude='conv7' matches no node"):
        _run(residual_net(), exclude=["conv7"])
    context = Context(constraints=Constraints(target="bare", encodings=("dense",)))
    record = Float16().run(residual_net(), context)
    assert _reasons(record) == {"model": "bare stores no float16 weights"}


def test_the_demo_in_half_the_bytes(demo_files: Path) -> None:
    path = demo_files / "digits.onnx"
    result = compress(path, passes="cleanup, fold-batchnorm, float16", data=demo_files / "calibration.npz")
    before, after = result.report.before, result.report.after
    assert after.size_bytes < 0.53 * before.size_bytes
    assert after.bits_per_weight is not None and after.bits_per_weight < 17
    assert after.agreement == 100 and after.sqnr_db is not None and after.sqnr_db > 55
    assert load(path).graph.name == result.model.graph.name


def test_weights_below_its_precision_are_left_alone() -> None:
    model = residual_net()
    tiny = model.graph.initializers["w1"]
    assert tiny.const_value is not None
    tiny.const_value = onnx_ir.tensor(tiny.const_value.numpy() * np.float32(1e-6), name="w1")
    record = _run(model)
    assert [site.name for site in record.sites] == ["w2"]
    assert re.fullmatch(
        r"float16 would keep \d+\.\d dB of it: most of its magnitudes lie below 6e-5, where precision ends",
        _reasons(record)["w1"],
    )


def test_pruned_weights_keep_their_zeros() -> None:
    model = residual_net()
    get_pass("prune-weights")(method="magnitude", ratio=0.5).run(model, Context())
    _run(model)
    encoded = model.graph.initializers["w1"].const_value
    assert isinstance(encoded, encodings.Sparse) and encoded.label == "sparse+float16"
    assert encoded.stored == encoded.size // 2
    expected, feeds = encoded.dense(), random_feeds(model)
    outputs = run(model, feeds)
    lower_qdq(model, QuantizationScheme())
    np.testing.assert_array_equal(run(model, feeds)[0], outputs[0])
    assert np.count_nonzero(expected) <= encoded.stored
