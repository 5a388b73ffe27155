"""Equal computation is done once and equal weights are stored once, where that is safe."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.model_io import load
from onnxpress.ir.quantization import Quantization, note
from onnxpress.passes.base import Context
from onnxpress.passes.cleanup.cleanup import Cleanup
from tests.passes.cleanup.check import apply
from tests.support import text_model


def _model(nodes: str, *, constants: str = "", domain: str = "") -> str:
    return f"""
        <ir_version: 8, opset_import: ["" : 17{domain}]>
        g (float[N,3,4] x) => (float[N,3,4] y) <{constants}> {{ {nodes} }}
    """


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("a = Relu(x) b = Relu(x) y = Add(a, b)", ""),
        ("a = Add(x, s) b = Add(x, t) y = Add(a, b)", "float[4] s = {1, 2, 3, 4}, float[4] t = {1, 2, 3, 4}"),
        ("a = LeakyRelu<alpha=0.5>(x) b = LeakyRelu<alpha=0.5>(x) y = Add(a, b)", ""),
        ("a = Softmax<axis=1>(x) b = Softmax<axis=1>(x) y = Add(a, b)", ""),
        ("c = Relu(x) d = Neg(c) e = Relu(x) f = Neg(e) y = Add(d, f)", ""),
    ],
)
def test_what_is_computed_twice_is_computed_once(nodes: str, constants: str) -> None:
    outcome = apply(_model(nodes, constants=constants))
    assert len(outcome.ops) == (len(outcome.before.graph) + 1) // 2
    assert outcome.rewrites.sites[0].detail == "removed, an earlier node computes the same"


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("a = LeakyRelu<alpha=0.5>(x) b = LeakyRelu<alpha=0.25>(x) y = Add(a, b)", ""),
        ("a = Softmax<axis=1>(x) b = Softmax(x) y = Add(a, b)", ""),
        ("a = Relu(x) b = Neg(x) y = Add(a, b)", ""),
        ("a = Sub(x, s) b = Sub(s, x) y = Add(a, b)", "float[4] s = {1, 2, 3, 4}"),
        ("a = Add(x, s) b = Add(x, t) y = Add(a, b)", "float[4] s = {1, 2, 3, 4}, float[4] t = {1, 2, 3, 5}"),
        (
            "a = Add(x, s) b = Add(x, t) y = Add(a, b)",
            "float[4] s = {1, 2, 3, 4}, float[1,4] t = {1, 2, 3, 4}",
        ),
        (
            "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) b = DequantizeLinear(q, s, z) y = Add(a, b)",
            "float s = {0.1}, uint8 z = {128}",
        ),
    ],
)
def test_what_differs_or_belongs_to_a_consumer_stays(nodes: str, constants: str) -> None:
    assert apply(_model(nodes, constants=constants)).unchanged


@pytest.mark.parametrize(
    ("nodes", "domain"),
    [
        ("a = Bernoulli(x) b = Bernoulli(x) y = Add(a, b)", ""),
        ("a = RandomNormalLike(x) b = RandomNormalLike(x) y = Add(a, b)", ""),
        ("t = Constant<value = bool {1}>() a = Dropout(x, , t) b = Dropout(x, , t) y = Add(a, b)", ""),
        ("a = my.ops.Noise(x) b = my.ops.Noise(x) y = Add(a, b)", ', "my.ops" : 1'),
    ],
)
def test_what_may_draw_random_numbers_stays(nodes: str, domain: str) -> None:
    outcome = apply(_model(nodes, domain=domain), runs=False)
    assert outcome.ops == [node.op_type for node in outcome.before.graph if node.op_type != "Constant"]


def test_an_output_of_its_own_stays() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu(x) z = Relu(x) }
    """)
    assert outcome.unchanged


def test_the_later_node_goes_where_the_earlier_is_an_output() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu(x) a = Relu(x) z = Neg(a) }
    """)
    assert outcome.ops == ["Relu", "Neg"]


def test_branches_are_scopes_of_their_own() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3] x, bool c) => (float[N,3] y) {
            a = Relu(x)
            b = If(c) <
                then_branch = yes () => (float[N,3] t) { p = Neg(x) q = Neg(x) t = Add(p, q) },
                else_branch = no () => (float[N,3] e) { e = Relu(x) }
            >
            y = Add(a, b)
        }
    """)
    assert sorted(outcome.ops) == ["Add", "Add", "If", "Neg", "Relu", "Relu"]


def test_nodes_with_other_notes_stay() -> None:
    model = load(text_model(_model("a = Relu(x) b = Relu(x) y = Add(a, b)")))
    note(model.graph[0].outputs[0], Quantization(0.0, 1.0))
    assert not Cleanup().run(model, Context()).modified


def test_large_equal_weights_are_stored_once() -> None:
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024
    outcome = apply(_matmuls(weight, weight.copy()))
    assert list(outcome.after.graph.initializers) == ["v"]
    assert ("w", "initializer", "shared with an equal one") in outcome.told
    assert outcome.rewrites.sites[0].before.size_bytes == 4096


def _matmuls(first: np.ndarray, second: np.ndarray) -> onnx_ir.Model:
    """x times two weights of the same shape."""
    rows, columns = first.shape
    x = onnx_ir.Value(name="x", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=onnx_ir.Shape(["N", rows]))
    weights = [
        onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name), shape=onnx_ir.Shape(array.shape))
        for name, array in (("v", first), ("w", second))
    ]
    nodes = [onnx_ir.node("MatMul", [x, weight], name=f"by_{weight.name}") for weight in weights]
    nodes.append(onnx_ir.node("Sub", [nodes[0].outputs[0], nodes[1].outputs[0]], name="difference"))
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    y = nodes[-1].outputs[0]
    y.type, y.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape(["N", columns])
    graph = onnx_ir.Graph([x], [y], nodes=nodes, initializers=weights, opset_imports={"": 17}, name="g")
    return onnx_ir.Model(graph, ir_version=8)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda w: w[:16], id="small"),
        pytest.param(lambda w: np.where(np.arange(1024).reshape(32, 32) == 1023, 9, w), id="last number differs"),
        pytest.param(lambda w: -w, id="all differ"),
    ],
)
def test_small_or_unequal_weights_stay_apart(change: object) -> None:
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024
    assert callable(change)
    second = change(weight).astype(np.float32)
    first = weight if second.shape == weight.shape else second.copy()
    assert apply(_matmuls(first, second)).unchanged


def test_encoded_weights_stay_apart() -> None:
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024
    model = load(_matmuls(weight, weight.copy()))
    encode(model.graph.initializers["w"], Affine.quantize(weight, axis=1))
    assert not Cleanup().run(model, Context()).modified
