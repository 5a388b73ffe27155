"""To onnx-graphsurgeon and back: nothing is lost, weights stay where they are, scripts see real numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir import model_io, quantization
from onnxpress.ir.encodings import Affine
from onnxpress.ir.errors import InputError
from onnxpress.ir.surgeon import from_surgeon, to_surgeon
from onnxpress.ir.text import to_text
from onnxpress.ir.verify import interface, verify
from tests.support import random_feeds, run, tensor_of, text_model

gs = pytest.importorskip("onnx_graphsurgeon")

_MODEL = """<ir_version: 8, opset_import: ["": 17, "com.example": 2], producer_name: "trainer",
            doc_string: "about the model", metadata_props: ["color": "red"]>
g (float[N,3] x, bool c) => (float[N,3] y)
<float[3] w = {1, 2, 3}, float[1] v = {3}, float[3] u = {4, 5, 6}>
{
   [add] a = Add (x, w)
   [if] i = If (c) <then_branch = t () => (float[N,3] p) <float[1] z = {2}> { [in1] p = Add (a, z) },
                    else_branch = e () => (float[N,3] q) { [in2] s = Add (x, w)  [in3] q = Mul (s, v) }>
   [clip] k = Clip (i, , v)
   [last] y = Mul (k, u)
}"""


def _model(text: str = _MODEL) -> onnx_ir.Model:
    return model_io.load(text_model(text.replace("(i, , v)", '(i, "", v)')))


def test_nothing_is_lost() -> None:
    model = _model()
    model.domain, model.model_version = "org.example", 3
    model.graph.metadata_props["graph"] = "g"
    for node in model.graph.all_nodes():
        node.doc_string, node.metadata_props["node"] = f"about {node.name}", str(node.name)
        node.outputs[0].metadata_props["value"] = str(node.name)
    before = model_io.to_proto_bytes(model)
    again = from_surgeon(to_surgeon(model))
    verify(again)
    assert to_text(again) == to_text(model)
    assert model_io.to_proto_bytes(again) == model_io.to_proto_bytes(model) == before


def test_weights_are_carried_not_copied() -> None:
    model = _model()
    weight = model.graph.initializers["u"]
    weight.const_value = Affine.quantize(tensor_of(model, "u").numpy(), bits=4)
    graph = to_surgeon(model)
    constants = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    assert constants["u"].shape == [3] and constants["u"].dtype == np.float32
    again = from_surgeon(graph)
    for name in ("w", "v", "u"):
        assert tensor_of(again, name) is tensor_of(model, name)


def test_notes_return_to_their_values() -> None:
    model = _model()
    notes = {name: quantization.Quantization(-1.0, float(index + 1)) for index, name in enumerate("xay")}
    values = {value.name: value for node in model.graph for value in (*node.outputs, *model.graph.inputs)}
    for name, note in notes.items():
        quantization.note(values[name], note)
    graph = to_surgeon(model)
    graph.nodes[0].outputs[0].name = "renamed"
    again = from_surgeon(graph)
    found = {value.name: value for node in again.graph for value in (*node.outputs, *again.graph.inputs)}
    assert quantization.quantization_of(found["x"]) == notes["x"]
    assert quantization.quantization_of(found["y"]) == notes["y"]
    assert quantization.quantization_of(found["renamed"]) is None


def test_notes_can_come_from_a_named_source() -> None:
    model = _model()
    quantization.note(model.graph.node(0).outputs[0], quantization.Quantization(0.0, 1.0))
    copy = to_surgeon(model).copy()  # which forgets where it came from
    assert quantization.quantization_of(from_surgeon(copy).graph.node(0).outputs[0]) is None
    kept = from_surgeon(copy, source=model)
    assert quantization.quantization_of(kept.graph.node(0).outputs[0]) is not None


def test_scripts_see_shapes_and_numbers_and_may_change_both() -> None:
    model = _model()
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.array([1, 2, 3], np.float32), name="w")
    before = to_text(model)
    graph = to_surgeon(model)
    add = graph.nodes[0]
    assert add.outputs[0].shape == ["N", 3] and add.outputs[0].dtype == np.float32
    np.testing.assert_array_equal(add.inputs[1].values, [1, 2, 3])
    add.inputs[1].values *= 2  # a script may write in place
    graph.nodes[-1].inputs[1].values = np.array([7], np.float32)
    graph.nodes[-1].op = "Div"
    again = from_surgeon(graph)
    verify(again)
    np.testing.assert_array_equal(tensor_of(again, "w").numpy(), [2, 4, 6])
    np.testing.assert_array_equal(tensor_of(again, "u").numpy(), [7])
    assert again.graph.node(-1).op_type == "Div"
    assert to_text(model) == before


def test_graphsurgeon_s_own_folding_works() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}, float[2] v = {3, 4}>
        { [sum] s = Add (w, v)  [mul] y = Mul (x, s) }"""
    )
    feeds = random_feeds(model)
    graph = to_surgeon(model)
    graph.fold_constants().cleanup()
    again = from_surgeon(graph)
    assert [node.name for node in again.graph] == ["mul"]
    np.testing.assert_array_equal(run(again, feeds)[0], run(model, feeds)[0])


def test_stale_shapes_do_not_survive_a_script() -> None:
    graph = to_surgeon(_two_layers())
    first, second = graph.nodes
    first.inputs[1].values = first.inputs[1].values[:, :5]
    second.inputs[1].values = second.inputs[1].values[:5]
    again = from_surgeon(graph)
    verify(again)
    assert again.graph.node(0).outputs[0].shape == ["N", 5]


def test_stale_shapes_are_not_mistaken_for_knowledge() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,M] y) { h = Relu (x)  y = Relu (h) }"""
    )
    graph = to_surgeon(model)
    graph.inputs[0].shape = ["N", "M"]
    assert from_surgeon(graph).graph.node(0).outputs[0].shape == ["N", "M"]


def _two_layers() -> onnx_ir.Model:
    model = text_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,D] y) { [one] h = MatMul (x, w)  [two] y = MatMul (h, v) }"""
    )
    for node, shape in zip(model.graph, ((4, 6), (6, 2)), strict=True):
        value = node.inputs[1]
        assert value is not None
        value.const_value = onnx_ir.tensor(np.ones(shape, np.float32))
        model.graph.register_initializer(value)
    return model_io.load(model)


def test_a_graph_made_by_hand_gets_versions_that_runtimes_know() -> None:
    x = gs.Variable("x", np.float32, ["N", 2])
    y = gs.Variable("y", np.float32, ["N", 2])
    graph = gs.Graph([gs.Node("Relu", inputs=[x], outputs=[y])], [x], [y], opset=13)
    model = from_surgeon(graph)
    verify(model)
    assert (model.ir_version, model.opset_imports[""]) == (7, 13)
    assert str(interface(model)) == "(x: float[N,2]) -> (y: float[N,2])"
    assert [node.name for node in model.graph] == ["Relu_0"]


_REFUSED = """<ir_version: 8, opset_import: ["": 18, "com.example": 1]>
g (float[N,3] x, {kind} s) => (float[N,3] y, {result})
{{ y = Relu (x)  {nodes} }}"""


@pytest.mark.parametrize(
    ("kind", "result", "nodes", "problem"),
    [
        ("seq(float[2])", "int64 l", "l = SequenceLength (s)", "graph input 's', which is of type sequence"),
        (
            "optional(int8)",
            "bool l",
            "l = OptionalHasElement (s)",
            "graph input 's', which is of type optional",
        ),
        (
            "float[2]",
            "int64 l",
            "[make] q = SequenceConstruct (x, x)  l = SequenceLength (q)",
            "node 'make' (SequenceConstruct), output 'q', which is of type sequence",
        ),
        (
            "float[2]",
            "bool l",
            "[opt] q = Optional <type: type_proto = float[2]> ()  l = OptionalHasElement (q)",
            "node 'opt' (Optional), output 'q', which is of type optional",
        ),
        (
            "float[2]",
            "float l",
            "[odd] l = com.example.Odd <none: ints = []> (s)",
            "node 'odd' (Odd), attribute 'none', which is an empty list",
        ),
        (
            "float[2]",
            "float l",
            "[odd] l = com.example.Odd <t: type_proto = float[2]> (s)",
            "node 'odd' (Odd), attribute 't' of type TYPE_PROTO",
        ),
    ],
)
def test_what_graphsurgeon_cannot_carry_is_refused(kind: str, result: str, nodes: str, problem: str) -> None:
    text = _REFUSED.format(kind=kind, result=result, nodes=nodes)
    model = _model(text)
    with pytest.raises(InputError) as caught:
        to_surgeon(model)
    assert str(caught.value) == (f"graphsurgeon cannot carry {problem}. Leave this model out of graphsurgeon passes.")


def test_an_initializer_as_graph_output_is_refused() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y, float[1] w) <float[1] w = {1}> { y = Add (x, w) }"""
    )
    with pytest.raises(InputError, match=r"^graphsurgeon cannot carry graph output 'w', which is an init"):
        to_surgeon(model)


def _untype(graph: object) -> None:
    graph.outputs[0].dtype = None  # type: ignore[attr-defined]


def _misspell(graph: object) -> None:
    graph.nodes[0].op = "Addd"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            _untype,
            "cannot be exported: Graph input and output tensors must include dtype information. "
            "Please set the dtype attribute for: Variable (y): (shape=['N', 3], dtype=None). "
            "Mend the script.",
        ),
        (
            _misspell,
            "is not a valid model: onnx's checker says: No Op registered for Addd with domain_version of 17 "
            "(Bad node spec for node. Name: add OpType: Addd). Export it again.",
        ),
    ],
)
def test_what_a_script_broke_is_refused(
    damage: Callable[[object], None], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = to_surgeon(_model())
    damage(graph)
    with pytest.raises(InputError) as caught:
        from_surgeon(graph)
    assert str(caught.value) == f"graphsurgeon graph 'g': {problem}"
    assert capsys.readouterr().out == ""


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["Relu", "Add", "Clip", "Concat", "Split"]), min_size=1, max_size=6),
    st.booleans(),
)
def test_models_survive_the_round_trip(operators: list[str], shared: bool) -> None:
    lines, weights, value, width = [], {}, "x", 4
    for index, operator in enumerate(operators):
        weight = "w" if shared else f"w{index}"
        if operator in ("Add", "Clip"):
            weights[weight] = f"float {weight} = {{{index}.5}}"
        calls = {
            "Relu": f"v{index} = Relu ({value})",
            "Add": f"v{index} = Add ({weight}, {value})",
            "Clip": f'v{index} = Clip ({value}, "", {weight})',
            "Concat": f"v{index} = Concat <axis = 1> ({value}, {value})",
            "Split": f"v{index}, u{index} = Split <axis = 1> ({value})",
        }
        if operator == "Split" and width % 2:
            continue
        width = {"Concat": width * 2, "Split": width // 2}.get(operator, width)
        lines.append(calls[operator])
        value = f"v{index}"
    model = _model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x) => (float[N,{width}] y) {f"<{', '.join(weights.values())}>" if weights else ""}
        {{ {"  ".join(lines)}  y = Relu ({value}) }}"""
    )
    again = from_surgeon(to_surgeon(model))
    assert model_io.to_proto_bytes(again) == model_io.to_proto_bytes(model)
    assert to_text(again) == to_text(model)


_BUNDLED = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("name", ["light_inception_v1", "light_shufflenet", "light_squeezenet"])
def test_onnx_s_own_models_survive_the_round_trip(name: str) -> None:
    model = model_io.load(_BUNDLED / f"{name}.onnx")
    assert model_io.digest(from_surgeon(to_surgeon(model))) == model_io.digest(model)
