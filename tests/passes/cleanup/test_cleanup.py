"""The pass as a whole: what it keeps, what it records, that it converges, and what it costs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import onnx.helper
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.passes.base import Context
from onnxpress.passes.cleanup.cleanup import Cleanup
from tests.passes.cleanup.check import apply
from tests.support import random_feeds, run

_MODELS = [
    "lenet300_mnist",
    "lenet5_mnist",
    "mobilenetv2_imagenet",
    "resnet20_cifar10",
    "resnet56_cifar10",
    "squeezenet10_imagenet",
    "ultraface_rfb320",
    "vgg_small_cifar10",
]


def test_before_and_after() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1], producer_name: "exporter">
        g (float[N,4] x) => (float[N,4] y) <float[4] never = {1, 2, 3, 4}> {
            [scale] s = Constant<value = float[4] {4, 9, 16, 25}>()
            [root] r = Sqrt(s)
            [drop] d = Dropout(x)
            [mul] m = Mul(d, r)
            [again] n = Mul(x, r)
            [dead] e = Exp(n)
            [add] y = Add(m, n)
        }
    """)
    assert onnx_ir.to_onnx_text(outcome.after) == (
        "<\n"
        "   ir_version: 8,\n"
        '   opset_import: ["" : 17],\n'
        '   producer_name: "exporter"\n'
        ">\n"
        "g (float[N,4] x) => (float[N,4] y) \n"
        "   <float[4] r =  {2,3,4,5}, float[4] r, float[N,4] m>\n"
        "{\n"
        "   [mul] m = Mul (x, r)\n"
        "   [add] y = Add (m, m)\n"
        "}"
    )
    assert outcome.told == [
        ("root", "Sqrt", "folded into constant 'r' [4]"),
        ("scale", "Constant", "turned into an initializer"),
        ("dead", "Exp", "removed, nothing reads it"),
        ("never", "initializer", "removed, nothing reads it"),
        ("drop", "Dropout", "removed, it passes its input through"),
        ("again", "Mul", "removed, an earlier node computes the same"),
        ("com.microsoft", "opset import", "removed, no node is of this domain"),
    ]


def test_a_clean_model_stays_byte_for_byte() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x) => (float[N,4] y) <float[4] b = {1, 2, 3, 4}> { a = Add(x, b) y = Relu(a) }
    """)
    assert outcome.unchanged
    assert outcome.rewrites.declined == []


def test_what_users_see_is_kept() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17], producer_name: "p", producer_version: "2", doc_string: "doc",
         domain: "d", model_version: 7>
        g (float[N,C] x, float[N,C] z) => (float[N,C] y, float[M,K] w) {
            a = Identity(x) b = Add(a, z) y = Identity(b) c = Neg(b) w = Cast<to=1>(c)
        }
    """)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "classes", "a,b"
    proto.graph.input[0].doc_string = "pixels"
    proto.graph.output[1].doc_string = "scores"
    after = onnx.load_from_string(to_proto_bytes(apply(proto).after))
    assert [node.op_type for node in after.graph.node] == ["Add", "Neg"]
    assert after.graph.input == proto.graph.input
    assert after.graph.output == proto.graph.output
    assert after.metadata_props == proto.metadata_props
    for field in ("producer_name", "producer_version", "doc_string", "domain", "model_version", "ir_version"):
        assert getattr(after, field) == getattr(proto, field)


def test_dead_nodes_of_bodies_free_what_they_read() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x, bool c) => (float[N,4] y) <float[4] v = {1, 2, 3, 4}> {
            [deep] a = Exp(x)
            z = If(c) <
                then_branch = yes () => (float[N,4] t) { [in1] p = Mul(a, v) t = Neg(x) },
                else_branch = no () => (float[N,4] e) { e = Relu(x) }
            >
            [all] u = If(c) <
                then_branch = yes2 () => (float[N,4] f) { f = Neg(a) },
                else_branch = no2 () => (float[N,4] g) { g = Relu(a) }
            >
            y = Abs(z)
        }
    """)
    assert outcome.ops == ["If", "Neg", "Relu", "Abs"]
    assert not outcome.after.graph.initializers


def test_loop_bodies_are_cleaned() -> None:
    outcome = apply("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] x, int64 n) => (float[4] y) <bool go = {1}, float[4] v = {4, 9, 16, 25}> {
            y = Loop(n, go, x) <body = step (int64 i, bool c, float[4] s) => (bool d, float[4] t) {
                d = Identity(c) r = Sqrt(v) k = Identity(s) q = Dropout(k) t = Add(q, r)
            }>
        }
    """)
    assert outcome.ops == ["Loop", "Identity", "Add"]


def test_a_node_without_outputs_acts_unseen_and_stays() -> None:
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Log", ["x"], [], "log", domain="my.ops"),
            onnx.helper.make_node("Sqrt", ["v"], ["s"], "root"),
            onnx.helper.make_node("Mul", ["x", "s"], ["y"], "mul"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [onnx.numpy_helper.from_array(np.ones(4, np.float32), "v")],
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my.ops", 1)]
    outcome = apply(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), runs=False)
    assert outcome.names == ["log", "mul"]


def test_unsorted_nodes_are_sorted() -> None:
    model = load(
        onnx.parser.parse_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            main (float[N,4] x) => (float[N,4] y) { [one] a = Relu(x) [two] y = Neg(a) }
        """)
    )
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    rewrites = Cleanup().run(model, Context())
    assert [node.name for node in model.graph] == ["one", "two"]
    assert [(site.name, site.kind) for site in rewrites.sites] == [("main", "Graph")]


def test_an_old_ir_version_is_raised_only_when_constants_need_it() -> None:
    text = """
        <ir_version: 3, opset_import: ["" : 9]>
        g (float[N,2] x) => (float[N,2] y) { [c] v = Constant<value = float[2] {1, 4}>() y = Mul(x, v) }
    """
    model = onnx_ir.from_onnx_text(text)
    Cleanup().run(model, Context())
    assert (model.ir_version, list(model.graph.initializers)) == (4, ["v"])
    plain = onnx_ir.from_onnx_text(text.replace("[c] v = Constant<value = float[2] {1, 4}>()", "v = Relu(x)"))
    Cleanup().run(plain, Context())
    assert plain.ir_version == 3


# Any graph.

_BATCHES: tuple[str | int, ...] = ("N", 2)
_UNARY = ["Relu", "Neg", "Identity", "Dropout", "Abs", "Sigmoid"]
_SCALARS = {"zero": 0.0, "one": 1.0, "two": 2.0}
_VECTORS = {"v": [1.0, 2.0, 3.0, 4.0], "w": [1.0, 2.0, 3.0, 4.0]}


@st.composite
def _graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """A DAG of shape [N, 4] or [2, 4] values with constants, dead ends, doubles, shapes and branches."""
    opset = draw(st.sampled_from([9, 11, 13, 17, 21]))
    batch = draw(st.sampled_from(_BATCHES))
    kind = TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    values, constants = ["x"], [*_SCALARS, *_VECTORS]
    node = onnx.helper.make_node
    for index in range(draw(st.integers(1, 12))):
        out = f"n{index}"
        choice = draw(st.sampled_from(["unary", "binary", "constant", "constant chain", "cast", "shape", "branch"]))
        a = draw(st.sampled_from(values))
        if choice == "unary":
            nodes.append(node(draw(st.sampled_from(_UNARY)), [a], [out], f"op{index}"))
        elif choice == "binary":
            b = draw(st.sampled_from(values))
            nodes.append(node(draw(st.sampled_from(["Add", "Mul", "Sub"])), [a, b], [out], f"op{index}"))
        elif choice == "constant":
            c = draw(st.sampled_from(constants))
            nodes.append(node(draw(st.sampled_from(["Add", "Mul", "Sub", "Div"])), [a, c], [out], f"op{index}"))
        elif choice == "constant chain":
            c = draw(st.sampled_from(constants))
            nodes.append(node(draw(st.sampled_from(["Neg", "Abs", "Identity"])), [c], [out], f"op{index}"))
            constants.append(out)
            continue
        elif choice == "cast":
            nodes.append(node("Cast", [a], [out], f"op{index}", to=kind))
        elif choice == "shape":
            nodes.append(node("Shape", [a], [f"{out}s"], f"shape{index}"))
            nodes.append(node("Reshape", [a, f"{out}s"], [out], f"op{index}"))
        else:
            branches = {}
            for name, operator in (
                ("then_branch", "Identity"),
                ("else_branch", draw(st.sampled_from(_UNARY[:3]))),
            ):
                result = onnx.helper.make_tensor_value_info(f"{out}{name}", kind, [batch, 4])
                body = [node(operator, [a], [f"{out}{name}"], f"{name}{index}")]
                branches[name] = onnx.helper.make_graph(body, name, [], [result])
            condition = draw(st.sampled_from(["yes", "flag"]))
            nodes.append(node("If", [condition], [out], f"op{index}", **branches))
        values.append(out)
    outputs = draw(st.lists(st.sampled_from(values[1:] or ["x"]), min_size=1, max_size=3, unique=True))
    if outputs == ["x"]:
        nodes.append(node("Neg", ["x"], ["y"], "last"))
        outputs = ["y"]
    arrays = {**_SCALARS, **_VECTORS}
    initializers = [onnx.numpy_helper.from_array(np.array(v, np.float32), n) for n, v in arrays.items()]
    initializers.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [
            onnx.helper.make_tensor_value_info("x", kind, [batch, 4]),
            onnx.helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info(name, kind, [batch, 4]) for name in outputs],
        initializers,
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def _runs(proto: onnx.ModelProto) -> bool:
    """Whether onnxruntime takes the model: it frees values too early around some If whose output is unused."""
    try:
        run(proto, random_feeds(load(proto)))
    except Exception:
        return False
    return True


@given(_graphs())
@settings(max_examples=60)
def test_any_graph_keeps_its_function_and_converges(proto: onnx.ModelProto) -> None:
    hypothesis.assume(_runs(proto))
    outcome = apply(proto, tolerance=1e-6)
    assert len(outcome.names) <= len(list(outcome.before.graph.all_nodes()))
    kept = {node.name for node in outcome.before.graph.all_nodes()}
    assert set(outcome.names) <= kept, "a node that stays keeps its name"


# The assets, and what cleaning costs.


@pytest.mark.assets(*(f"models/{name}.onnx" for name in _MODELS))
@pytest.mark.parametrize("name", _MODELS)
def test_assets_stay_equal_in_bits(name: str, assets: Path) -> None:
    before = load(assets / "models" / f"{name}.onnx")
    after = before.clone()
    Cleanup().run(after, Context())
    assert not Cleanup().run(after.clone(), Context()).modified
    feeds = random_feeds(before, batch=1)
    for expected, actual in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.assets("models/resnet20_cifar10.onnx")
def test_strided_shortcuts_of_resnet_become_one_slice_each(assets: Path) -> None:
    model = load(assets / "models" / "resnet20_cifar10.onnx")
    rewrites = Cleanup().run(model, Context())
    assert [node.op_type for node in model.graph].count("Slice") == 2
    assert [site.kind for site in rewrites.sites] == ["Slice", "Slice", "initializer"]


@pytest.mark.assets(*(f"models/{name}.onnx" for name in _MODELS))
def test_assets_are_cleaned_without_onnxscript(assets: Path) -> None:
    code = (
        "import sys\n"
        "from onnxpress.ir.model_io import load\n"
        "from onnxpress.passes.base import Context\n"
        "from onnxpress.passes.cleanup.cleanup import Cleanup\n"
        "for path in sys.argv[1:]: Cleanup().run(load(path), Context())\n"
        "sys.exit('onnxscript' in sys.modules)"
    )
    paths = [str(assets / "models" / f"{name}.onnx") for name in _MODELS]
    assert subprocess.run([sys.executable, "-c", code, *paths], check=False).returncode == 0


def _long_model(nodes: int, constants: bool) -> onnx_ir.Model:
    """A chain of Add and Relu; or a chain of Add of constants, with which one Add ends."""
    chain: list[onnx.NodeProto] = []
    last = "c" if constants else "x"
    for index in range(nodes // 2):
        chain.append(onnx.helper.make_node("Add", [last, f"c{index % 50}"], [f"a{index}"]))
        chain.append(onnx.helper.make_node("Relu", [f"a{index}"], [f"r{index}"]))
        last = f"r{index}"
    chain.append(onnx.helper.make_node("Add", ["x", last], ["y"]))
    graph = onnx.helper.make_graph(
        chain,
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [onnx.numpy_helper.from_array(np.ones(4, np.float32), name) for name in ["c", *(f"c{i}" for i in range(50))]],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


@pytest.mark.parametrize(("nodes", "constants", "left"), [(20_000, False, 20_001), (4_000, True, 1)])
def test_many_nodes_take_seconds(nodes: int, constants: bool, left: int) -> None:
    model = _long_model(nodes, constants)
    start = time.process_time()
    Cleanup().run(model, Context())
    assert time.process_time() - start < 6, "alone on a core it takes 1.5 s; a quadratic step takes minutes"
    assert len(model.graph) == left
