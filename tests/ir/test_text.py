"""Models as text: what a reader sees, that equal models look equal, and that the text parses back."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir import model_io, quantization
from onnxpress.ir.encodings import Affine
from onnxpress.ir.text import diff, to_text, type_text
from tests.support import tensor_of, text_model

_MODEL = """<ir_version: 8, opset_import: ["com.ex": 1, "": 17], producer_name: "a \\"trainer\\"",
            metadata_props: ["size": "large", "color": "red"]>
main (float[N,3] x, bool c) => (float[N,3] y)
<int64[2] shape = {-1, 3}, float[1,9] w = {1, 2, 3, 4, 5, 6, 7, 8, 9.5}, string[1] s = {"it's"}>
{
   ["/0/r"] "/0/out" = Reshape <allowzero = 0> (x, shape)
   [odd] a, "", b = com.ex.Odd <f = 1.0, l = [0.5, 2.0], none: ints = [], t = float {7}, m = "a#b"> (x, "")
   [if] y = If (c) <then_branch = t () => (float[N,3] p) <float[1] k = {0.1}> { [mul] p = Mul (x, k) },
                    else_branch = e () => (float[N,3] q) { [relu] q = Relu ("/0/out") }>
}"""

_TEXT = """<
   ir_version: 8,
   opset_import: ["": 17, "com.ex": 1],
   producer_name: "a \\"trainer\\"",
   metadata_props: ["color": "red", "size": "large"]
>
main (float[N,3] x, bool c) => (float[N,3] y)
<
   int64[2] shape = {-1, 3},
   float[1,9] w,  # sha256 af1556bd8f66
   string[1] s = {"it's"}
>
{
   ["/0/r"] "/0/out" = Reshape <allowzero = 0> (x, shape)  # float[?,3]
   [odd] a, "", b = com.ex.Odd <f = 1.0, l = [0.5, 2.0], none: ints = [], t = float {7.0}, m = "a#b"> (x, "")  # undefined, undefined, undefined
   [if] y = If <
      then_branch = t () => (float[N,3] p)
      <
         float[1] k = {0.1}
      >
      {
         [mul] p = Mul (x, k)  # float[N,3]
      },
      else_branch = e () => (float[N,3] q)
      {
         [relu] q = Relu ("/0/out")  # float[N,3]
      }
   > (c)  # float[N,3]
}
"""  # noqa: E501


def _model() -> onnx_ir.Model:
    return model_io.load(text_model(_MODEL))


def test_what_a_reader_sees() -> None:
    assert to_text(_model()) == _TEXT


def test_equal_models_look_equal() -> None:
    model = _model()
    again = model_io.load(onnx.load_from_string(model_io.to_proto_bytes(model)))
    assert to_text(again) == to_text(model) == to_text(model.clone())


def test_one_changed_weight_is_one_changed_line() -> None:
    model = _model()
    before = to_text(model)
    weight = model.graph.initializers["w"]
    weight.const_value = onnx_ir.tensor(np.full((1, 9), 2, np.float32), name="w")
    assert diff(before, to_text(model)) == (
        "@@ -8,5 +8,5 @@\n"
        " <\n"
        "    int64[2] shape = {-1, 3},\n"
        "-   float[1,9] w,  # sha256 af1556bd8f66\n"
        "+   float[1,9] w,  # sha256 1056a135e0c6\n"
        '    string[1] s = {"it\'s"}\n'
        " >\n"
    )


def test_encodings_and_notes_are_shown() -> None:
    model = _model()
    weight = model.graph.initializers["w"]
    weight.const_value = Affine.quantize(tensor_of(model, "w").numpy(), axis=0)
    quantization.note(model.graph.inputs[0], quantization.Quantization(-1.0, 2.5))
    quantization.note(model.graph.node(0).outputs[0], quantization.Quantization(0.0, 6.0, 4, "add_1"))
    lines = to_text(model).splitlines()
    assert "main (float[N,3] x, bool c) => (float[N,3] y)  # x clip [-1, 2.5] 8 bits" in lines
    assert "   float[1,9] w,  # affine8, 11.56 bits/weight, sha256 1490226f36b7" in lines
    reshape = next(line for line in lines if "Reshape" in line)
    assert reshape.endswith(" (x, shape)  # float[?,3] clip [0, 6] 4 bits group add_1")


@pytest.mark.parametrize("weights", [False, True])
def test_the_text_parses(weights: bool) -> None:
    onnx.parser.parse_model(to_text(_model(), weights=weights))


def test_with_weights_the_text_parses_back_to_the_same_model() -> None:
    model = model_io.load(
        text_model(_MODEL.replace('[odd] a, "", b =', "[odd] a, b =").replace("float[1,9]", "double[3,3]"))
    )
    again = model_io.load(text_model(to_text(model, weights=True)))
    assert to_text(again, weights=True) == to_text(model, weights=True)
    np.testing.assert_array_equal(tensor_of(again, "w").numpy(), tensor_of(model, "w").numpy())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_float_is_spelled_exactly(numbers: list[float]) -> None:
    model = text_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[{len(numbers)}] x) => (float[{len(numbers)}] y) {{ y = Add (x, w) }}"""
    )
    value = next(value for value in model.graph.node(0).inputs if value is not None and value.name == "w")
    value.const_value = onnx_ir.tensor(np.array(numbers, np.float32), name="w")
    model.graph.register_initializer(value)
    again = text_model(to_text(model, weights=True))
    np.testing.assert_array_equal(tensor_of(again, "w").numpy(), np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (onnx_ir.TensorType(onnx_ir.DataType.FLOAT), ["N", 3, None], "float[N,3,?]"),
        (onnx_ir.TensorType(onnx_ir.DataType.INT64), [], "int64"),
        (onnx_ir.TensorType(onnx_ir.DataType.BFLOAT16), None, "bfloat16[]"),
        (onnx_ir.TensorType(onnx_ir.DataType.FLOAT), ["batch size"], 'float["batch size"]'),
        (onnx_ir.SequenceType(onnx_ir.TensorType(onnx_ir.DataType.INT8)), [2], "seq(int8[2])"),
        (onnx_ir.OptionalType(onnx_ir.TensorType(onnx_ir.DataType.BOOL)), None, "optional(bool[])"),
        (onnx_ir.SparseTensorType(onnx_ir.DataType.FLOAT), [3], "sparse_tensor(float[3])"),
        (None, [3], "undefined"),
    ],
)
def test_types(kind: onnx_ir.TypeProtocol | None, shape: list[int | str | None] | None, expected: str) -> None:
    dims = (
        None
        if shape is None
        else onnx_ir.Shape([onnx_ir.SymbolicDim(dim) if isinstance(dim, str) else dim for dim in shape])
    )
    assert type_text(onnx_ir.Value(name="v", type=kind, shape=dims)) == expected


# Diffs.

_LINES = st.lists(st.sampled_from("abcdefghij"), max_size=14)


def _patch(old: list[str], patch: str) -> list[str]:
    """Apply a unified diff, and check what it says about the old text."""
    new: list[str] = []
    at = 0
    for line in patch.splitlines():
        if line.startswith("@@"):
            start = int(line.split()[1].split(",")[0].lstrip("-")) - 1
            new += old[at:start]
            at = start
            continue
        if line[0] in " -":
            assert old[at] == line[1:]
            at += 1
        if line[0] in " +":
            new.append(line[1:])
    return new + old[at:]


@given(_LINES, _LINES)
def test_a_diff_leads_from_one_text_to_the_other(old: list[str], new: list[str]) -> None:
    patch = diff("\n".join(old), "\n".join(new))
    assert _patch(old, patch) == new
    assert (patch == "") == (old == new)


def test_a_diff_of_long_texts_with_changes_everywhere_is_quick() -> None:
    old = [f"line {index}" for index in range(40_000)]
    new = [f"{line}!" if index % 2 else line for index, line in enumerate(old)]
    patch = diff("\n".join(old), "\n".join(new))  # half a minute with difflib alone
    assert patch.count("\n+") == 20_000
