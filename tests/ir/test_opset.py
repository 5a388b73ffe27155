"""Opset upgrades: same numbers, same names, nothing lost that the converter does not know."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io, quantization
from onnxpress.ir.encodings import Affine
from onnxpress.ir.errors import InputError
from onnxpress.ir.opset import default_opset, require_opset
from onnxpress.ir.text import to_text
from onnxpress.ir.verify import interface, verify
from tests.support import random_feeds, run, tensor_of, text_model

_OLD = """<ir_version: 4, opset_import: ["": 9, "com.microsoft": 1]>
g (float[N,3,5,4] x) => (float[N,3] y)
{
   [cut] c = Slice <axes = [2], starts = [1], ends = [4]> (x)
   [pad] p = Pad <pads = [0,0,1,2,0,0,1,2], value = 0.5> (c)
   [clip] k = Clip <min = -1.0, max = 6.0> (p)
   [custom] u = com.microsoft.Gelu (k)
   [mean] y = ReduceMean <axes = [2, 3], keepdims = 0> (u)
}"""


def _model(text: str = _OLD) -> onnx_ir.Model:
    return model_io.load(text_model(text))


def test_an_opset_that_is_high_enough_changes_nothing() -> None:
    model = _model()
    before, graph = to_text(model), model.graph
    for version in (7, 9):
        assert not require_opset(model, version, reason="test")
    assert to_text(model) == before and model.graph is graph


@pytest.mark.parametrize(("version", "ir_version"), [(10, 5), (11, 6), (13, 7), (17, 8), (21, 10)])
def test_upgrades_keep_numbers_names_and_interface(version: int, ir_version: int) -> None:
    model = _model()
    feeds, before = random_feeds(model), interface(model)
    expected = run(model, feeds)[0]
    names = {node.name for node in model.graph}
    assert require_opset(model, version, reason="test")
    verify(model)
    assert default_opset(model) == version and model.ir_version == ir_version
    assert model.opset_imports["com.microsoft"] == 1
    assert interface(model) == before
    assert names <= {node.name for node in model.graph}
    np.testing.assert_array_equal(run(model, feeds)[0], expected)


def test_initializers_that_callers_may_override_stay_inputs() -> None:
    numbers = ", ".join(map(str, range(300)))  # 1200 bytes, which travel apart from the skeleton
    model = _model(
        f"""<ir_version: 4, opset_import: ["": 9]>
        g (float[N,300] x, float[300] w, float[1] v) => (float[N,300] y)
        <float[300] w = {{{numbers}}}, float[1] v = {{3}}, float k = {{2}}>
        {{ a = Mul (x, k)  b = Add (a, v)  y = Add (b, w) }}"""
    )
    before = interface(model)
    require_opset(model, 17, reason="test")
    verify(model)
    assert interface(model) == before
    assert list(model.graph.initializers) == ["w", "v", "k"]


def test_a_higher_ir_version_is_kept() -> None:
    model = _model(_OLD.replace("ir_version: 4", "ir_version: 8"))
    require_opset(model, 13, reason="test")
    assert model.ir_version == 8


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", ["2, 2", "3, 2", "1.5, 2.5"])
@pytest.mark.parametrize("operator", ["9 Upsample", "10 Resize"])
def test_resizing_keeps_its_sampling(operator: str, scales: str, mode: str) -> None:
    """The converter alone leaves opset 11's defaults, which place samples elsewhere."""
    opset, op = operator.split()
    model = _model(
        f"""<ir_version: 4, opset_import: ["": {opset}]>
        g (float[N,3,5,4] x) => (float[N,3,H,W] y) <float[4] s = {{1, 1, {scales}}}>
        {{ [up] y = {op} <mode = "{mode}"> (x, s) }}"""
    )
    feeds = random_feeds(model)
    expected = run(model, feeds)[0]
    require_opset(model, 13, reason="test")
    assert next(node for node in model.graph if node.name == "up").op_type == "Resize"
    np.testing.assert_array_equal(run(model, feeds)[0], expected)


@pytest.mark.parametrize("condition", [True, False])
def test_subgraphs_are_upgraded(condition: bool) -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 11]>
        g (float[N,3,2] x, bool c) => (float[N,3,2] y)
        {
           [if] y = If (c) <then_branch = t () => (float[N,3,2] p) { [soft] p = Softmax <axis = 1> (x) },
                            else_branch = e () => (float[N,3,2] q) { [relu] q = Relu (x) }>
        }"""
    )
    feeds = {**random_feeds(model), "c": np.array(condition)}
    expected = run(model, feeds)[0]
    require_opset(model, 13, reason="test")
    verify(model)
    assert {"if", "soft", "relu"} <= {node.name for node in model.graph.all_nodes()}
    np.testing.assert_array_equal(run(model, feeds)[0], expected)


def test_what_the_converter_does_not_know_is_carried_over() -> None:
    model = _convolution()
    graph = model.graph
    graph.doc_string, graph.metadata_props["graph"] = "about the graph", "g"
    node = next(node for node in graph if node.name == "up")
    node.doc_string, node.metadata_props["node"] = "about the node", "n"
    value = node.outputs[0]
    value.metadata_props["value"] = "v"
    note = quantization.Quantization(-1.0, 2.0)
    quantization.note(value, note)
    weights = {name: tensor_of(model, name) for name in ("w", "b", "s")}

    require_opset(model, 13, reason="test")

    assert (model.graph.doc_string, dict(model.graph.metadata_props)) == ("about the graph", {"graph": "g"})
    node = next(node for node in model.graph if node.name == "up")
    assert (node.op_type, node.doc_string, dict(node.metadata_props)) == (
        "Resize",
        "about the node",
        {"node": "n"},
    )
    value = node.outputs[0]
    assert value.name == "u" and dict(value.metadata_props) == {"value": "v"}
    assert quantization.quantization_of(value) == note
    assert list(model.graph.initializers) == ["w", "b", "s"]
    assert all(tensor_of(model, name) is tensor for name, tensor in weights.items())
    verify(model)


def _convolution() -> onnx_ir.Model:
    """Upsample, then a Conv with an encoded weight and a dense bias."""
    model = text_model(
        """<ir_version: 4, opset_import: ["": 9]>
        g (float[N,3,5,4] x) => (float[N,16,H,W] y)
        { [up] u = Upsample (x, s)  [conv] y = Conv (u, w, b) }"""
    )
    rng = np.random.default_rng(0)
    tensors: dict[str, onnx_ir.TensorProtocol] = {
        "w": Affine.quantize(rng.standard_normal((16, 3, 3, 3)).astype(np.float32), axis=0),
        "b": onnx_ir.tensor(rng.standard_normal(16).astype(np.float32)),
        "s": onnx_ir.tensor(np.array([1, 1, 2, 2], np.float32)),
    }
    values = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, tensor in tensors.items():
        values[name].const_value = tensor
        model.graph.register_initializer(values[name])
    return model_io.load(model)


def test_a_model_of_custom_operators_only_just_imports_the_opset() -> None:
    model = _model(
        """<ir_version: 4, opset_import: ["com.microsoft": 1]>
        g (float[N] x) => (float[N] y) { y = com.microsoft.Gelu (x) }"""
    )
    assert default_opset(model) == 0
    assert require_opset(model, 13, reason="test")
    assert (default_opset(model), model.ir_version) == (13, 7)
    verify(model)


def test_an_opset_beyond_the_installed_onnx_is_refused() -> None:
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(InputError) as caught:
        require_opset(_model(), newest + 1, reason="quantize-int8")
    assert str(caught.value) == (
        f"quantize-int8 needs opset {newest + 1}, and the installed onnx {onnx.__version__} knows opsets up "
        f"to {newest}. Install a newer onnx."
    )


def test_an_impossible_upgrade_is_refused_and_leaves_the_model() -> None:
    model = _model(
        """<ir_version: 4, opset_import: ["": 5]>
        g (int64[N] x) => (float[N] y) { [cast] y = Cast <to = "FLOAT"> (x) }"""
    )
    before = to_text(model)
    with pytest.raises(InputError) as caught:
        require_opset(model, 13, reason="quantize-int8 per channel")
    assert str(caught.value) == (
        "quantize-int8 per channel needs opset 13, and the model's opset 5 cannot be upgraded: "
        "No Adapter From Version $5 for Cast. Export the model with opset 13 or higher."
    )
    assert to_text(model) == before
