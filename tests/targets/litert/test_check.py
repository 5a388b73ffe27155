"""The target's check: it refuses what the writer refuses, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir
import pytest

from onnxpress.ir.errors import InputError
from onnxpress.ir.model_io import load
from onnxpress.targets.base import load_target
from onnxpress.targets.partition import partition
from onnxpress.tools.legality import check
from tests.support import Array
from tests.targets.litert.files import body, named_graph

_TARGET = "mobile-cpu-litert"
_ADVICE = "Replace what is named, or choose a target that runs ONNX, such as mobile-cpu."


def _chain() -> onnx_ir.Model:
    return body("s = Shape(x) i = Constant<value_ints = [0]>() n = Gather(s, i) m = Constant<value_ints = [-1]>() "
                "t = Concat<axis = 0>(n, m) y = Reshape(x, t)")  # fmt: skip


def _foreign() -> onnx_ir.Model:
    model = body("y = Relu(x)")
    (node,) = model.graph
    node.domain, node.op_type = "acme", "Thing"
    model.opset_imports["acme"] = 1
    return model


_NONE: dict[str, Array] = {}
_MODELS: dict[str, Callable[[], onnx_ir.Model]] = {
    "plain": lambda: body("y = Relu(x)"),
    "constants": lambda: body("l = Constant<value_float = 0.0>() c = Clip(x, l) y = Add(c, l)"),
    "shapes": _chain,
    "an open batch": lambda: named_graph("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", _NONE),
    "an attribute": lambda: body("y = Elu<alpha = 0.5>(x)"),
    "integers": lambda: named_graph("g (int64[2,3] x) => (int64[2,3] y) { y = Abs(x) }", _NONE),
    "another domain": _foreign,
    "open sizes": lambda: named_graph("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }", _NONE),
    "an unknown operator": lambda: body("y = Det(x)", shape=(2, 3, 3)),
    "quantized": lambda: body("s = Constant<value_float = 0.1>() q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)"),
}


@pytest.mark.parametrize("name", _MODELS)
def test_check_and_the_writer_agree(name: str) -> None:
    from onnxpress.targets.litert import emit

    model = _MODELS[name]()
    found = load_target(_TARGET).check(model)
    assert all(each.severity == "illegal" and each.rule == "litert-file" for each in found)
    if not found:
        assert emit(model).content[4:8] == b"TFL3"
        return
    with pytest.raises(InputError) as caught:
        emit(model)
    assert all(each.reason in str(caught.value) for each in found)


def test_a_finding_names_node_and_cure() -> None:
    (found,) = load_target(_TARGET).check(body("[low] y = Elu<alpha = 0.5>(x)"))
    assert str(found) == (
        "node 'low' (Elu): alpha=0.5: that of LiteRT's ELU is 1 [litert-file, targets/litert: the writer of .tflite "
        f"files itself]. {_ADVICE}"
    )


def test_the_verdict_tells_that_nothing_can_be_written() -> None:
    model = body("r = Relu(x) [a] s = LpNormalization(r) t = Relu(s) [b] u = LpNormalization(t) "
                 "[c] v = Elu<alpha = 0.5>(u) y = Relu(v)")  # fmt: skip
    assert check(model, target=_TARGET).partition.verdict == (
        "mobile-cpu-litert takes whole models only: nothing can be written until 3 of 6 nodes are gone: "
        f"LpNormalization ('a', 'b'); Elu ('c'). {_ADVICE}"
    )


def test_only_the_operator_is_named_whose_result_nobody_knows() -> None:
    model = _foreign()
    (node,) = model.graph
    reader = onnx_ir.Node("", "Relu", [node.outputs[0]], outputs=[onnx_ir.Value(name="z", type=node.outputs[0].type)])
    model.graph.append(reader)
    model.graph.outputs[0] = reader.outputs[0]
    assert [each.op_type for each in load_target(_TARGET).check(model)] == ["Thing"]


def test_the_verdict_tells_what_is_open() -> None:
    model = named_graph("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }", {})
    assert check(model, target=_TARGET).partition.verdict == (
        "mobile-cpu-litert refuses the model as a whole: input 'x' has the open sizes ['N', '3', 'H', 'W'], and a "
        ".tflite file fixes all of them: export the model with fixed sizes; only the batch may be open."
    )


def test_the_verdict_counts_nodes_that_follow_from_constants() -> None:
    model = load(body("c = Constant<value_float = 1.0>() [e] d = Exp(c) y = Add(x, d)"))
    target = load_target(_TARGET)
    assert partition(model, target.check(model), target.profile).verdict == (
        "mobile-cpu-litert refuses the model as a whole: node 'e' (Exp): its data are constant: fold constants first "
        "(pass cleanup)."
    )


def test_a_model_that_is_written_is_legal_whole() -> None:
    assert check(_chain(), target=_TARGET).partition.verdict == "The whole model runs on mobile-cpu-litert: 4 nodes."


def test_the_profile_stands_by_itself() -> None:
    profile = load_target(_TARGET).profile
    assert profile.roofline is not None and profile.roofline.source.startswith("estimate for one Cortex-A76")
    assert (profile.channel_multiple, profile.whole_models, [rule.check for rule in profile.rules]) == (
        1, True, ["litert"],
    )  # fmt: skip
    for op in profile.quantization.carry:
        assert profile.roofline.elements[op].kernel("int8") is not None, op
    assert "onnxruntime" not in profile.opset.source
