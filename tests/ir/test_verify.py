"""The checks of a model: each kind of damage is found, named with its node, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io, onnx_file
from onnxpress.ir.errors import InputError, InternalError
from onnxpress.ir.verify import (
    Interface,
    InterfaceValue,
    VerifyError,
    check_finite,
    checker_complaint,
    interface,
    verify,
)
from tests.support import text_model

_MODEL = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3] x, bool c) => (float[N,3] y)
<float[3] w = {1, 2, 3}>
{
   [add] a = Add (x, w)
   [relu] r = Relu (a)
   [if] y = If (c) <then_branch = t () => (float[N,3] p) { [neg] p = Neg (r) },
                    else_branch = e () => (float[N,3] q) { [mul] q = Mul (r, w) }>
}"""


def _model(text: str = _MODEL) -> onnx_ir.Model:
    return model_io.load(text_model(text))


def _node(model: onnx_ir.Model, name: str) -> onnx_ir.Node:
    return next(node for node in model.graph.all_nodes() if node.name == name)


def test_a_whole_model_passes() -> None:
    for full in (False, True):
        verify(_model(), full=full)
        verify(_model().clone(), full=full)


def _rename_node(model: onnx_ir.Model) -> None:
    _node(model, "neg").name = "add"


def _unname_node(model: onnx_ir.Model) -> None:
    _node(model, "relu").name = ""


def _rename_value(model: onnx_ir.Model) -> None:
    _node(model, "relu").outputs[0].name = "a"


def _shadow_value(model: onnx_ir.Model) -> None:
    _node(model, "neg").outputs[0].name = "x"


def _remove_node(model: onnx_ir.Model) -> None:
    model.graph.remove(_node(model, "relu"))


def _move_node(model: onnx_ir.Model) -> None:
    node = _node(model, "add")
    model.graph.remove(node)
    model.graph.append(node)


def _dangle(model: onnx_ir.Model) -> None:
    _node(model, "mul").replace_input_with(1, onnx_ir.Value(name="gone"))


def _confuse(model: onnx_ir.Model) -> None:
    _node(model, "add").replace_input_with(1, onnx_ir.Value(name="w"))


def _leak(model: onnx_ir.Model) -> None:
    _node(model, "if").replace_input_with(0, _node(model, "neg").outputs[0])
    node = onnx_ir.node("Abs", [_node(model, "neg").outputs[0]], name="late")
    node.outputs[0].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    node.outputs[0].name = "late_out"
    model.graph.append(node)


def _drop_type(model: onnx_ir.Model) -> None:
    _node(model, "relu").outputs[0].type = None


def _drop_input_type(model: onnx_ir.Model) -> None:
    model.graph.inputs[1].type = None


def _drop_weight(model: onnx_ir.Model) -> None:
    model.graph.initializers["w"].const_value = None


def _foreign_output(model: onnx_ir.Model) -> None:
    model.graph.outputs.append(onnx_ir.Value(name="z", type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_rename_node, "node 'add' (Neg): another node has this name"),
        (_unname_node, "a node (Relu) that makes ['r'] has no name"),
        (_rename_value, "node 'relu' (Relu): output 'a': another value has this name"),
        (_shadow_value, "node 'neg' (Neg): output 'x': another value has this name"),
        (
            _remove_node,
            "node 'neg' (Neg): input 0 'r' is made by no node, and is neither graph input nor initializer; "
            "node 'mul' (Mul): input 0 'r' is made by no node, and is neither graph input nor initializer",
        ),
        (_move_node, "node 'relu' (Relu): input 0 'a' is made by node 'add', which does not come before it"),
        (
            _dangle,
            "node 'mul' (Mul): input 1 'gone' is made by no node, and is neither graph input nor initializer",
        ),
        (
            _confuse,
            "node 'add' (Add): input 1 'w' is not the value that has this name: "
            "the node refers to one that was replaced",
        ),
        (
            _leak,
            "node 'if' (If): input 0 'p' is made by node 'neg', which does not come before it; "
            "node 'late' (Abs): input 0 'p' is made by node 'neg', which does not come before it",
        ),
        (_drop_type, "node 'relu' (Relu): output 'r' has no type"),
        (_drop_input_type, "graph input 'c' has no type"),
        (_drop_weight, "initializer 'w' has no numbers"),
        (_foreign_output, "graph output 'z' is made by no node"),
    ],
    ids=lambda case: case.__name__ if callable(case) else "",
)
def test_each_damage_is_named(damage: Callable[[onnx_ir.Model], None], problem: str) -> None:
    model = _model()
    damage(model)
    with pytest.raises(VerifyError) as caught:
        verify(model, full=False)
    assert str(caught.value) == f"the model is not whole: {problem}."
    assert isinstance(caught.value, InternalError) and caught.value.exit_code == 70


def test_damage_in_bulk_is_counted() -> None:
    model = _model()
    for node in model.graph.all_nodes():
        node.name = "same"
    model.graph.remove(next(iter(model.graph)))
    with pytest.raises(VerifyError) as caught:
        verify(model)
    message = str(caught.value)
    assert message.count("; ") == 3 and "more" not in message
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = None
    with pytest.raises(VerifyError, match=r"; and 2 more\.$"):
        verify(model)


def test_only_the_full_check_knows_the_operators() -> None:
    model = _model()
    _node(model, "relu").op_type = "Relux"
    verify(model, full=False)
    with pytest.raises(VerifyError) as caught:
        verify(model)
    assert str(caught.value) == (
        "the model is not whole: onnx's checker says: No Op registered for Relux with domain_version of 17 "
        "(Bad node spec for node. Name: relu OpType: Relux)."
    )


def test_the_checker_is_quoted_with_its_node() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { [add] y = Add(x, b) }'
    )
    assert checker_complaint(onnx_file.of_proto(proto, "the model"), strict=False) == (
        "onnx's checker says: Nodes in a graph must be topologically sorted, however input 'b' of node: "
        "name: add OpType: Add is not output of any previous nodes"
    )


def test_the_full_check_infers_types() -> None:
    model = _model()
    model.graph.initializers["w"].const_value = onnx_ir.tensor(np.arange(3), name="w")
    verify(model, full=False)
    with pytest.raises(VerifyError, match=r"onnx's checker says: .*InferenceError.* node name: add\)"):
        verify(model)


def test_operators_that_nobody_knows_may_stay_untyped() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[N] x) => (float[N] y) { a = com.example.Odd (x)  b = Relu (a)  y = com.example.Odd (b) }"""
    )
    assert model.graph.node(1).outputs[0].type is None
    verify(model)


def test_subgraphs_that_nobody_infers_may_stay_untyped() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[N] x) => (float[N] y)
        { y = com.example.Map <body = b () => (float[N] p) { a = Relu (x)  p = Neg (a) }> (x) }"""
    )
    inner = next(node for node in model.graph.all_nodes() if node.op_type == "Relu")
    assert inner.outputs[0].type is None
    verify(model.clone())


def test_names_are_free_again_outside_their_subgraph() -> None:
    verify(
        _model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N] x, bool c) => (float[N] y)
            {
               i = If (c) <then_branch = t () => (float[N] p) { a = Neg (x)  p = Relu (a) },
                           else_branch = e () => (float[N] q) { a = Abs (x)  q = Relu (a) }>
               a = Relu (i)
               y = Relu (a)
            }"""
        )
    )


# Interface.


def test_the_interface_is_comparable_and_readable() -> None:
    model = _model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,?] x, seq(int64[2]) s, optional(bool) o) => (float[N,3,?] y, int64 l)
        { y = Relu (x)  l = SequenceLength (s) }"""
    )
    found = interface(model)
    assert found == interface(model.clone())
    assert found.inputs[0] == InterfaceValue("x", "float", ("N", 3, None))
    assert str(found) == (
        "(x: float[N,3,?], s: sequence(int64)[2], o: optional(bool)[]) -> (y: float[N,3,?], l: int64[])"
    )
    model.graph.inputs[0].shape = onnx_ir.Shape([1, 3, None])
    assert interface(model) != found
    assert Interface(found.inputs[::-1], found.outputs) != found


# Numbers.


def _gemm(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> onnx_ir.Model:
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[N,{array.shape[0]}] x) => (float[N,{array.shape[1]}] y)
        <float[{array.shape[0]},{array.shape[1]}] w> {{ [gemm] y = Gemm (x, w) }}"""
    )
    value = next(value for node in model.graph for value in node.inputs if value is not None and value.name == "w")
    value.const_value = onnx_ir.tensor(array, name="w")
    model.graph.register_initializer(value)
    return model


@pytest.mark.parametrize("rows", [3, 600_000])  # one chunk and several
def test_weights_that_are_not_finite_are_refused(rows: int) -> None:
    array = np.zeros((rows, 4), np.float32)
    check_finite(_gemm(array))
    array[0, 0] = array[-1, -1] = np.nan
    with pytest.raises(InputError) as caught:
        check_finite(_gemm(array))
    assert str(caught.value) == (
        f"weight 'w' [{rows}, 4] float holds 2 NaN of {4 * rows} numbers. No pass can mend that: retrain the model."
    )
    array[1, 1] = -np.inf
    with pytest.raises(InputError, match=f" holds 2 NaN and 1 infinite of {4 * rows} numbers"):
        check_finite(_gemm(array))
    array[0, 0] = array[-1, -1] = 0
    with pytest.raises(InputError, match=f" holds 1 infinite of {4 * rows} numbers"):
        check_finite(_gemm(array))


def _constant(op: str, number: float) -> onnx_ir.Model:
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[2,2] x) => (float[2,2] y)
        {{ k = Constant <value = float[2,2] {{1, 2, 3, 4}}> ()  y = {op} (x, k) }}"""
    )
    tensor = onnx_ir.tensor(np.array([[1, 2], [3, number]], np.float32))
    model.graph.node(0).attributes["value"] = onnx_ir.AttrTensor("value", tensor)
    return model


def test_infinity_is_lawful_outside_weights() -> None:
    check_finite(_constant("Add", -np.inf))  # a mask
    for op, number in (("Add", np.nan), ("MatMul", np.nan), ("MatMul", np.inf)):
        with pytest.raises(InputError, match=r"^weight 'k' \[2, 2\] float holds 1 "):
            check_finite(_constant(op, number))


@pytest.mark.parametrize("dtype", ["FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_every_floating_type_is_looked_at(dtype: str) -> None:
    kind = onnx_ir.DataType[dtype]
    for number in (1.0, np.nan):
        model = _constant("Add", 0)
        tensor = onnx_ir.tensor(np.array([1.0, number]).astype(kind.numpy()), dtype=kind)
        model.graph.node(0).attributes["value"] = onnx_ir.AttrTensor("value", tensor)
        if np.isnan(number):
            with pytest.raises(InputError, match=f"{dtype.lower()} holds 1 NaN of 2 numbers"):
                check_finite(model)
        else:
            check_finite(model)


def test_integers_and_strings_have_no_nan() -> None:
    check_finite(
        _model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (int64[2] x) => (int64[2] y, string[2] z) <int64[2] w = {1, 2}, string[2] s = {"a", "b"}>
            { y = Add (x, w)  z = Identity (s) }"""
        )
    )
