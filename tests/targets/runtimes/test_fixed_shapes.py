"""Sizes come from the feeds, the model stays as it was, and what a converter loses is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.errors import InputError
from onnxpress.targets.runtimes import fixed_shapes
from onnxpress.targets.runtimes.fixed_shapes import first_node, fix_shapes, narrow
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.support import Array, text_model

_TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, S] x, int64[2] k) => (float[N, T, 3] y, int64[M] z) {
    [turn] y = Transpose <perm = [0, 2, 1]> (x)
    [keep] z = Unique (k)
}"""


def _feeds(*shape: int) -> dict[str, Array]:
    return {"x": np.zeros(shape, np.float64), "k": np.zeros(2, np.int64)}


def test_open_sizes_come_from_the_feeds() -> None:
    model = text_model(_TEXT)
    before = onnx_ir.to_onnx_text(model)
    fixed = fix_shapes(model, _feeds(2, 3, 5))
    assert {name: port.shape for name, port in fixed.inputs.items()} == {"x": (2, 3, 5), "k": (2,)}
    assert {name: output.shape for name, output in fixed.outputs.items()} == {"y": (2, 5, 3), "z": None}
    assert [list(value.shape or ()) for value in fixed.model.graph.inputs] == [[2, 3, 5], [2]]
    assert onnx_ir.to_onnx_text(model) == before


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3), (2, 3, 5, 7)])
def test_feeds_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    expected = [2, 3, shape[2] if len(shape) > 2 else 1]
    with pytest.raises(InputError) as caught:
        fix_shapes(text_model(_TEXT), _feeds(*shape))
    assert str(caught.value) == (
        f"input 'x': the model takes float32 {expected}, and the data is float32 {list(shape)}"
    )


def test_an_output_takes_the_models_type_and_keeps_its_shape() -> None:
    fixed = fix_shapes(text_model(_TEXT), _feeds(1, 3, 5))
    found = fixed.conform("z", np.zeros(7, np.int32), "It")
    assert (found.dtype.name, found.shape) == ("int64", (7,))
    with pytest.raises(RuntimeRefusalError) as caught:
        fixed.conform("y", np.zeros((5, 3), np.float32), "It")
    assert str(caught.value) == "It: gives output 'y' the shape [5, 3], the model [1, 5, 3]"


def test_numbers_are_narrowed_where_nothing_is_lost() -> None:
    assert narrow("x", np.array([1.5]), "It").dtype == np.float32
    assert narrow("x", np.array([2**31 - 1]), "It").dtype == np.int32
    with pytest.raises(InputError) as beyond:
        narrow("x", np.array([2**31]), "It")
    assert str(beyond.value) == "input 'x' holds numbers beyond 32 bits, and It takes int32"
    with pytest.raises(RuntimeRefusalError) as other:
        narrow("x", np.array([True]), "It")
    assert str(other.value) == "It: takes float32 and int32, and input 'x' is bool"


def test_the_first_node_of_a_type_is_named() -> None:
    model = text_model(_TEXT)
    assert first_node(model, ["Unique", "Conv"]) == " (node 'keep')"
    assert first_node(model, ["Conv"]) == ""


def test_an_input_that_is_an_output_keeps_its_shape() -> None:
    model = text_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }')
    model.graph.outputs.append(model.graph.inputs[0])
    fixed = fix_shapes(model, {"x": np.zeros((2, 3), np.float32)})
    assert {name: output.shape for name, output in fixed.outputs.items()} == {"y": (2, 3), "x": (2, 3)}
    assert list(fixed.model.graph.inputs[0].shape or ()) == [2, 3]


def test_a_model_too_large_for_one_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fixed = fix_shapes(text_model(_TEXT), _feeds(1, 3, 5))
    fixed.write(tmp_path / "model.onnx", "It")
    assert onnx_ir.load(tmp_path / "model.onnx").graph.name == "g"
    monkeypatch.setattr(fixed_shapes, "_PROTOBUF_LIMIT_BYTES", 10)
    with pytest.raises(RuntimeRefusalError) as caught:
        fixed.write(tmp_path / "large.onnx", "It")
    assert str(caught.value) == "It: does not convert the model: it takes more than 2 GiB"
    assert not (tmp_path / "large.onnx").exists()
