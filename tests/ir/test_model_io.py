"""Models in and out: what is kept, what is changed knowingly, what is refused, and that files stay whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxpress.ir import inference, model_io, onnx_file
from onnxpress.ir.encodings import Affine
from onnxpress.ir.errors import InputError, InternalError, UsageError
from onnxpress.ir.text import to_text
from onnxpress.ir.verify import interface, verify
from tests.support import Array, growth, random_feeds, run, tensor_of

_CONV = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,3,H,W] x) => (float[N,16,H,W] y)
<float[16,3,3,3] w, float[16] b>
{
   [conv] c = Conv <pads = [1,1,1,1]> (x, w, b)
   [relu] y = Relu (c)
}"""


def _conv_proto(seed: int = 0) -> onnx.ModelProto:
    """A Conv whose weight (1728 bytes) travels apart from the skeleton and whose bias (64 bytes) does not."""
    rng = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(_CONV)
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.ClearField("domain")  # which the parser spells out
    for name, shape in (("w", (16, 3, 3, 3)), ("b", (16,))):
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def _conv_file(folder: Path, proto: onnx.ModelProto | None = None) -> Path:
    path = folder / "model.onnx"
    path.write_bytes((proto or _conv_proto()).SerializeToString())
    return path


def _external_file(folder: Path, **entries: str) -> Path:
    """The Conv with its weight in `weights.bin`; `entries` replace those of its external_data."""
    proto = _conv_proto()
    weight = proto.graph.initializer[0]
    (folder / "weights.bin").write_bytes(b"\0" * 64 + weight.raw_data)
    declared = {"location": "weights.bin", "offset": "64", "length": "1728", **entries}
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in declared.items():
        weight.external_data.add(key=key, value=value)
    return _conv_file(folder, proto)


def _refusal(action: Callable[[], object], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Kept.


def _documented_proto() -> onnx.ModelProto:
    proto = _conv_proto()
    proto.producer_name, proto.producer_version = "trainer", "1.2"
    proto.domain, proto.model_version, proto.doc_string = "org.example", 7, "about the model"
    proto.graph.doc_string = "about the graph"
    proto.graph.node[0].doc_string = "about the node"
    proto.graph.input[0].doc_string = "about the input"
    proto.graph.initializer[0].doc_string = "about the weight"
    info = helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 16, "H", "W"], "about the value")
    proto.graph.value_info.append(info)
    holders = (proto, proto.graph, proto.graph.node[0], proto.graph.input[0], proto.graph.initializer[0])
    for holder in (*holders, proto.graph.initializer[1], proto.graph.value_info[0]):
        for key in ("color", "size"):
            holder.metadata_props.add(key=key, value=f"{key}!")
    proto.opset_import.append(helper.make_opsetid("com.example", 3))
    return proto


def test_everything_a_model_says_comes_back_bit_by_bit() -> None:
    proto = _documented_proto()
    once = model_io.to_proto_bytes(model_io.load(proto))
    assert once == proto.SerializeToString(deterministic=True)


def test_metadata_is_not_doubled_by_round_trips(tmp_path: Path) -> None:
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    model_io.save(model_io.load(_documented_proto()), first)
    model_io.save(model_io.load(first), second)
    assert first.read_bytes() == second.read_bytes()
    metadata = onnx.load(second).graph.initializer[1].metadata_props
    assert [(entry.key, entry.value) for entry in metadata] == [("color", "color!"), ("size", "size!")]


def test_bytes_are_those_of_protobuf_itself() -> None:
    model = model_io.load(_conv_proto())
    proto = onnx_ir.to_proto(model)
    del proto.graph.value_info[:]
    assert model_io.to_proto_bytes(model) == proto.SerializeToString(deterministic=True)
    assert model_io.size_bytes(model) == proto.ByteSize()


def test_inferred_shapes_are_not_written_but_the_file_s_own_are() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "com.example": 1]>
        g (float[N,4] x) => (float[N,4] y) <float[N,4] b>
        { a = com.example.Odd (x)  b = com.example.Odd (a)  c = Relu (b)  y = Relu (c) }"""
    )
    model = model_io.load(proto)
    types = {node.outputs[0].name: node.outputs[0].type for node in model.graph}
    assert types["a"] is None and types["c"] == onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    saved = onnx.load_from_string(model_io.to_proto_bytes(model))
    assert [info.name for info in saved.graph.value_info] == ["b"]


def test_symbolic_dimensions_and_interface_order_are_kept() -> None:
    model = model_io.load(_conv_proto())
    assert str(interface(model)) == "(x: float[N,3,H,W]) -> (y: float[N,16,H,W])"
    again = model_io.load(onnx.load_from_string(model_io.to_proto_bytes(model)))
    assert interface(again) == interface(model)


@pytest.mark.parametrize("shift", range(4))  # protobuf aligns nothing
def test_weights_are_views_of_the_file(tmp_path: Path, shift: int) -> None:
    proto = _conv_proto()
    proto.producer_name = "p" * (shift + 1)
    model = model_io.load(_conv_file(tmp_path, proto))
    for tensor in proto.graph.initializer:
        array = tensor_of(model, tensor.name).numpy()
        np.testing.assert_array_equal(array, numpy_helper.to_array(tensor))
        assert array.flags.aligned and not array.flags.writeable


@pytest.mark.parametrize(
    "name",
    ["FLOAT16", "BFLOAT16", "INT8", "UINT4", "INT64", "DOUBLE", "BOOL", "FLOAT8E4M3FN", "COMPLEX64"],
)
def test_weights_of_every_type_survive(tmp_path: Path, name: str) -> None:
    dtype = TensorProto.DataType.Value(name)
    values = np.arange(4097) % 2  # odd, so that 4-bit types need padding
    weight = helper.make_tensor("w", dtype, [4097], values)
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["w"], ["y"])],
            "g",
            [],
            [helper.make_tensor_value_info("y", dtype, [4097])],
            [numpy_helper.from_array(numpy_helper.to_array(weight), "w")],
        ),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )
    plain, split = tmp_path / "plain.onnx", tmp_path / "split.onnx"
    model = model_io.load(proto)
    model_io.save(model, plain)
    model_io.save(model, split, external_from_bytes=0)
    for path in (plain, split):
        loaded = tensor_of(model_io.load(path), "w")
        np.testing.assert_array_equal(loaded.numpy(), numpy_helper.to_array(weight))


def test_weights_in_typed_fields_survive(tmp_path: Path) -> None:
    proto = _conv_proto()
    array = numpy_helper.to_array(proto.graph.initializer[0])
    typed = helper.make_tensor("w", TensorProto.FLOAT, array.shape, array.ravel())  # in float_data
    proto.graph.initializer[0].CopyFrom(typed)
    model = model_io.load(_conv_file(tmp_path, proto))
    np.testing.assert_array_equal(tensor_of(model, "w").numpy(), array)


def test_large_files_are_mapped_and_outlive_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_READ_WHOLE_BYTES", 0)
    path = _conv_file(tmp_path, _conv_proto(seed=1))
    model = model_io.load(path)
    before = tensor_of(model, "w").tobytes()
    model_io.save(model_io.load(_conv_proto(seed=2)), path, overwrite=True)
    assert tensor_of(model, "w").tobytes() == before


# The source never changes.


def test_a_model_proto_is_never_changed() -> None:
    proto = _conv_proto()
    before = proto.SerializeToString(deterministic=True)
    model = model_io.load(proto)
    for name in ("w", "b"):
        model.graph.initializers[name].name = f"{name}_renamed"
    model.graph.node(0).name = "renamed"
    model_io.to_proto_bytes(model)
    assert proto.SerializeToString(deterministic=True) == before


def test_an_onnx_ir_model_is_never_changed() -> None:
    source = onnx_ir.from_proto(_conv_proto())
    before = to_text(source)
    model = model_io.load(source)
    model.graph.initializers["w"].name = "renamed"
    model.graph.remove(model.graph.node(1), safe=False)
    assert to_text(source) == before


def test_an_onnx_ir_model_is_checked_and_named_as_a_file_is() -> None:
    source = onnx_ir.from_proto(_conv_proto())
    source.graph.node(0).name = ""
    assert [node.name for node in model_io.load(source).graph] == ["Conv_0", "relu"]
    assert source.graph.node(0).name == ""


def test_external_tensors_of_an_onnx_ir_model_are_taken_in(tmp_path: Path) -> None:
    path = _external_file(tmp_path)
    model = model_io.load(onnx_ir.load(path))
    assert model_io.digest(model) == model_io.digest(_conv_proto())


# Changed knowingly.


def test_functions_are_inlined_and_unused_ones_dropped() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N,3] x, bool c) => (float[N,3] y)
        {
           [call] t = local.Double (x)
           [if] y = If (c) <then_branch = a () => (float[N,3] p) { [inner] p = local.Double (t) },
                            else_branch = b () => (float[N,3] q) { [keep] q = Relu (t) }>
        }
        <domain: "local", opset_import: ["": 17]>
        Double (v) => (sum) { [add] half = Identity (v)  sum = Add (half, half) }
        <domain: "local", opset_import: ["": 17]>
        Unused (v) => (w) { w = Relu (v) }"""
    )
    model = model_io.load(proto)
    verify(model)
    assert not model.functions
    assert [node.name for node in model.graph.all_nodes()] == ["add", "Add", "if", "add_2", "Add_2", "keep"]
    feeds: dict[str, Array] = {"x": np.array([[1, -2, 3]], np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(run(model, feeds)[0], 4 * feeds["x"])


def test_inlined_values_do_not_shadow_those_of_subgraphs() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N,3] x, bool c) => (float[N,3] y)
        {
           t = local.Double (x)
           y = If (c) <then_branch = a () => (float[N,3] p) { half = Neg (t)  p = Add (half, half) },
                       else_branch = b () => (float[N,3] q) <float[1] half = {2}> { q = Mul (t, half) }>
        }
        <domain: "local", opset_import: ["": 17]>
        Double (v) => (sum) { half = Identity (v)  sum = Add (half, half) }"""
    )
    model = model_io.load(proto)
    verify(model)
    for condition, factor in ((True, -4), (False, 4)):
        feeds: dict[str, Array] = {"x": np.array([[1, -2, 3]], np.float32), "c": np.array(condition)}
        np.testing.assert_array_equal(run(model, feeds)[0], factor * feeds["x"])


def test_functions_that_cannot_be_inlined_are_refused() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N] x, bool c) => (float[N] y)
        { y = local.F <body = t () => (float[N] p) { p = Relu (x) }> (c) }
        <domain: "local", opset_import: ["": 17]>
        F <body> (v) => (w) { w = If <then_branch: graph = @body, else_branch: graph = @body> (v) }"""
    )
    message = _refusal(lambda: model_io.load(proto))
    assert message.startswith("the model: its functions cannot be inlined: ")
    assert message.endswith(". Inline them first: onnx.inliner.inline_local_functions(model, convert_version=True).")


def test_functions_of_another_but_equal_opset_are_inlined() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N] x) => (float[N] y) { y = local.F (x) }
        <domain: "local", opset_import: ["": 16]>
        F (v) => (w) { w = Relu (v) }"""
    )
    model = model_io.load(proto)
    assert [(node.name, node.op_type) for node in model.graph] == [("Relu", "Relu")]
    assert model.opset_imports[""] == 17


def test_nodes_get_unique_names_and_unique_ones_keep_theirs() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N] x) => (float[N] y)
        { a = Relu (x)  [same] b = Relu (a)  [same] c = Relu (b)  [same_2] d = Relu (c)  [Relu_5] e = Relu (d)
          y = Relu (e) }"""
    )
    names = [node.name for node in model_io.load(proto).graph]
    assert names == ["Relu_0", "same", "same_3", "same_2", "Relu_5", "Relu_5_2"]


def _with_listed_initializers(ir_version: int, *listed: str) -> onnx.ModelProto:
    proto = _conv_proto()
    proto.ir_version = ir_version
    shapes: dict[str, list[int]] = {"w": [16, 3, 3, 3], "b": [16]}
    for name in listed:
        proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]))
    return proto


@pytest.mark.parametrize(
    ("ir_version", "listed", "inputs", "ir_after"),
    [
        (3, ("w", "b"), ["x"], 4),  # the format asked for it
        (4, ("w", "b"), ["x"], 4),  # keep_initializers_as_inputs of old exporters
        (8, ("b",), ["x", "b"], 8),  # one that the caller may override
        (8, (), ["x"], 8),
    ],
)
def test_initializers_listed_as_inputs(
    ir_version: int, listed: tuple[str, ...], inputs: list[str], ir_after: int
) -> None:
    proto = _with_listed_initializers(ir_version, *listed)
    model = model_io.load(proto)
    verify(model)
    assert [value.name for value in model.graph.inputs] == inputs
    assert model.ir_version == ir_after
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(model, feeds)[0], run(proto, feeds)[0])


def test_defaults_that_callers_may_override_are_no_constants() -> None:
    model = model_io.load(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[2,6] x, int64[2] shape) => (float[A,B] y) <int64[2] shape = {2, 6}, float k = {2}>
            { r = Reshape (x, shape)  y = Mul (r, k) }"""
        )
    )
    assert "Reshape (x, shape)  # float[?,?]" in to_text(model)
    verify(model)
    feeds: dict[str, Array] = {"x": np.ones((2, 6), np.float32), "shape": np.array([3, 4])}
    assert run(model_io.to_proto_bytes(model), feeds)[0].shape == (3, 4)


@pytest.mark.parametrize("layout", ["linear", "coordinates"])
def test_sparse_initializers_become_dense(layout: str) -> None:
    dense = np.zeros((16, 3, 3, 3), np.float32)
    dense[2, 1, 0, 2], dense[15, 2, 2, 2] = 5, -7
    places = np.argwhere(dense) if layout == "coordinates" else np.flatnonzero(dense)
    proto = _conv_proto()
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(dense[np.nonzero(dense)], "w"),
        numpy_helper.from_array(places.astype(np.int64)),
        dense.shape,
    )
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(sparse)
    np.testing.assert_array_equal(tensor_of(model_io.load(proto), "w").numpy(), dense)


@pytest.mark.parametrize(
    ("dims", "index", "problem"),
    [
        (
            [2**44],
            3,
            "takes 70368744177664 bytes when it is dense, more than the 2147483647 of one protobuf message. "
            "Export it dense, with external data.",
        ),
        ([4], -1, "has the dimension or index -1, and both count from 0. The model is damaged: export it again."),
        ([-4], 1, "has the dimension or index -4, and both count from 0. The model is damaged: export it again."),
    ],
)
def test_sparse_initializers_that_cannot_be_are_refused(
    tmp_path: Path, dims: list[int], index: int, problem: str
) -> None:
    proto = _conv_proto()
    sparse = proto.graph.sparse_initializer.add(dims=dims)
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([index])))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert _refusal(lambda: model_io.load(proto)) == f"the model: sparse initializer 's' {dims} float {problem}"
    assert _refusal(lambda: model_io.load(path)) == f"{path}: sparse initializer 's' {dims} float {problem}"


def test_sparse_initializers_in_files_are_refused() -> None:
    proto = _conv_proto()
    sparse = proto.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64)))
    sparse.values.data_location = TensorProto.EXTERNAL
    assert _refusal(lambda: model_io.load(proto)) == (
        "the model: sparse initializer 's' keeps its data in a file. Export it dense."
    )


def test_stale_inner_shapes_are_inferred_anew() -> None:
    proto = _conv_proto()
    proto.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 8, 5, 5]))
    model = model_io.load(proto)
    assert to_text(model).count("float[N,16,?,?]") == 1
    assert inference.is_consistent(model)
    verify(model)


def test_stale_outputs_of_subgraphs_are_inferred_anew() -> None:
    model = model_io.load(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["": 17]>
            g (float[N,3] x, bool c) => (float[N,3] y)
            { y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg (x) },
                          else_branch = e () => (float[N,5] q) { q = Abs (x) }> }"""
        )
    )
    assert to_text(model).count("float[N,3]") == 7
    assert inference.is_consistent(model)
    verify(model)


def test_contradictions_at_the_interface_are_tolerated_and_kept() -> None:
    proto = _conv_proto()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    model = model_io.load(proto)
    assert str(interface(model)) == "(x: float[N,3,H,W]) -> (y: float[N,8,H,W])"
    assert not inference.is_consistent(model)
    verify(model)
    verify(model.clone())


# External data.


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    model = model_io.load(_external_file(tmp_path))
    assert model_io.digest(model) == model_io.digest(_conv_proto())


def test_external_data_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _external_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    model = model_io.load("model.onnx")
    monkeypatch.chdir("/")
    assert model_io.digest(model) == model_io.digest(_conv_proto())


def test_external_data_in_subgraphs_and_attributes_is_taken_in(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, bool c) => (float[2] y)
        {
           k = Constant <value = float[2] {1, 2}> ()
           y = If (c) <then_branch = a () => (float[2] p) <float[2] s = {3, 4}> { p = Add (k, s) },
                       else_branch = b () => (float[2] q) { q = Relu (x) }>
        }"""
    )
    (tmp_path / "d.bin").write_bytes(np.array([1, 2, 3, 4], np.float32).tobytes())
    tensors = [proto.graph.node[0].attribute[0].t, proto.graph.node[1].attribute[0].g.initializer[0]]
    for offset, tensor in zip(("0", "8"), tensors, strict=True):
        del tensor.float_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="d.bin")
        tensor.external_data.add(key="offset", value=offset)
    path = _conv_file(tmp_path, proto)
    feeds: dict[str, Array] = {"x": np.zeros(2, np.float32), "c": np.array(True)}
    for source in (path, onnx_ir.load(path)):
        saved = tmp_path / "saved.onnx"
        model_io.save(model_io.load(source), saved, overwrite=True)
        np.testing.assert_array_equal(run(saved.read_bytes(), feeds)[0], [4, 6])


def test_large_models_keep_their_weights_in_one_data_file(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    path = tmp_path / "m.onnx"
    written = model_io.save(model, path, external_from_bytes=1024)
    assert _names(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert written == path.stat().st_size + (tmp_path / "m.onnx.data").stat().st_size
    assert model_io.digest(path) == model_io.digest(model)
    feeds = random_feeds(model)
    np.testing.assert_array_equal(run(str(path), feeds)[0], run(model, feeds)[0])


def test_models_below_the_limit_stay_in_one_file(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    size = model_io.size_bytes(model)
    model_io.save(model, tmp_path / "m.onnx", external_from_bytes=size + 1)
    assert _names(tmp_path) == ["m.onnx"]
    model_io.save(model, tmp_path / "n.onnx", external_from_bytes=size)
    assert _names(tmp_path) == ["m.onnx", "n.onnx", "n.onnx.data"]


@pytest.mark.parametrize("read_whole_bytes", [0, 1 << 20])
def test_saving_over_the_source_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_whole_bytes: int) -> None:
    monkeypatch.setattr(onnx_file, "_READ_WHOLE_BYTES", read_whole_bytes)
    path = tmp_path / "m.onnx"
    model_io.save(model_io.load(_conv_proto()), path, external_from_bytes=0)
    model = model_io.load(path)
    weight = model.graph.initializers["w"]
    expected = tensor_of(model, "w").numpy().copy()
    weight.const_value = onnx_ir.tensor(2 * expected, name="w")
    bias = tensor_of(model, "b").tobytes()
    model_io.save(model, path, overwrite=True, external_from_bytes=0)
    assert tensor_of(model, "b").tobytes() == bias
    np.testing.assert_array_equal(tensor_of(model_io.load(path), "w").numpy(), 2 * expected)


def test_the_hub_s_cache_layout_is_accepted(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    _external_file(blobs).rename(blobs / "aaaa")
    (blobs / "weights.bin").rename(blobs / "bbbb")
    (snapshot / "model.onnx").symlink_to(blobs / "aaaa")
    (snapshot / "weights.bin").symlink_to(blobs / "bbbb")
    assert model_io.digest(snapshot / "model.onnx") == model_io.digest(_conv_proto())


# Refused: data files.


def _outside(location: str, folder: Path) -> str:
    return (
        f"{folder / 'model.onnx'}: weight 'w' keeps its data in {location!r}, outside the model's folder "
        f"{folder}: refused, because a model could read any file that way. "
        "Move the data file into that folder and save the model with its plain name."
    )


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "C:\\w.bin", "sub/../../w", "..\\w", "w\0"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\0" * 2000)
    path = _external_file(folder, location=location)
    assert _refusal(lambda: model_io.load(path)) == _outside(location, folder)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    folder, elsewhere = tmp_path / "inner", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "w.bin").write_bytes(b"\0" * 2000)
    location = "w.bin" if link == "file" else "sub/w.bin"
    if link == "file":
        (folder / "w.bin").symlink_to(elsewhere / "w.bin")
    else:
        (folder / "sub").symlink_to(elsewhere)
    path = _external_file(folder, location=location)
    assert _refusal(lambda: model_io.load(path)) == _outside(location, folder)
    source = onnx_ir.load(path)
    assert _refusal(lambda: model_io.load(source)) == _outside(location, folder).replace(
        str(folder / "model.onnx"), "the model"
    )


def test_a_pipe_instead_of_a_data_file_is_refused(tmp_path: Path) -> None:
    path = _external_file(tmp_path, location="pipe")
    os.mkfifo(tmp_path / "pipe")
    assert _refusal(lambda: model_io.load(path)) == (
        f"{tmp_path / 'pipe'}: is a device or pipe, not a data file. Name a file."
    )


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = _external_file(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert _refusal(lambda: model_io.load(path)) == (
        f"{path}: weight 'w' keeps its data in 'weights.bin', which is not in {tmp_path}. "
        "Put the data file beside the model, under that name."
    )


@pytest.mark.parametrize("location", ["w" * 5000, "w/" * 2500])
def test_external_data_of_an_impossible_name_is_refused(tmp_path: Path, location: str) -> None:
    path = _external_file(tmp_path, location=location)
    assert _refusal(lambda: model_io.load(path)) == (
        f"{path}: weight 'w' keeps its data in '{location[:300]}... (5000 characters)', which cannot be read "
        "(File name too long). Move the data file beside the model and save it with its plain name."
    )


def test_short_external_data_is_refused(tmp_path: Path) -> None:
    path = _external_file(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 1000)
    assert _refusal(lambda: model_io.load(path)) == (
        f"{path}: weight 'w' [16, 3, 3, 3] float needs 1728 bytes at offset 64 of 'weights.bin', "
        "which has 1000. The data file is cut off or belongs to another model: copy or export both again."
    )


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"length": "1000"}, "needs 1728 bytes and holds 1000. The model is damaged: export it again."),
        (
            {"offset": "much"},
            "declares external data that cannot be read: {'location': 'weights.bin', 'offset': 'much', "
            "'length': '1728'}. The model is damaged: export it again.",
        ),
    ],
)
def test_damaged_declarations_are_refused(tmp_path: Path, entries: dict[str, str], problem: str) -> None:
    path = _external_file(tmp_path, **entries)
    assert _refusal(lambda: model_io.load(path)) == f"{path}: weight 'w' [16, 3, 3, 3] float {problem}"


def test_external_data_of_a_proto_needs_its_path(tmp_path: Path) -> None:
    proto = onnx.load(_external_file(tmp_path), load_external_data=False)
    assert _refusal(lambda: model_io.load(proto)) == (
        "the model: weight 'w' keeps its data in a file, and a ModelProto does not say in which folder. "
        "Give the model's path instead, or read it with onnx.load(path)."
    )


# Refused: files that are no models.


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "the model file is empty (0 bytes). Copy or export it again."),
        (b"hello, world", "is not an ONNX model, or is damaged (12 bytes). Export it again."),
        (b"\x08\x08", "is not an ONNX model, or is damaged (2 bytes). Export it again."),
        (b"\xff" * 30, "is not an ONNX model, or is damaged (30 bytes). Export it again."),
        (
            b"\x08\x08\x3a\x03\x2a\x70\0" + b"\x42\x7e" + bytes(126),
            "is not an ONNX model, or is damaged (135 bytes). Export it again.",
        ),
        (
            b"\x08\x08\x3a\x7f\x2a\x70\0",
            "the model is cut off or damaged: it needs at least 131 bytes and has 7. "
            "Copy it again, or export it again.",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is not an ONNX model but looks like a Git LFS pointer. Fetch the model itself: git lfs pull.",
        ),
        (
            b"PK\x03\x04rest",
            "is not an ONNX model but looks like a zip archive, such as a PyTorch or Keras checkpoint. "
            "Export it to ONNX first.",
        ),
        (
            b"\x1c\0\0\0TFL3rest",
            "is not an ONNX model but looks like a file for LiteRT (TensorFlow Lite), written already. Give the "
            "ONNX model that it was made from.",
        ),
        (
            b"<!DOCTYPE html>",
            "is not an ONNX model but looks like a web page or XML. Download the model file itself.",
        ),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert _refusal(lambda: model_io.load(path)) == f"{path}: {problem}"


def test_a_model_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = _conv_proto().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(4, len(content), 7):
        path.write_bytes(content[:size])
        assert _refusal(lambda: model_io.load(path)).startswith(f"{path}: ")
    path.write_bytes(content[:100])
    graph_end = len(content) - 6  # where the opset import begins
    assert _refusal(lambda: model_io.load(path)) == (
        f"{path}: the model is cut off or damaged: it needs at least {graph_end} bytes and has 100. "
        "Copy it again, or export it again."
    )


def test_missing_files_and_folders(tmp_path: Path) -> None:
    missing = tmp_path / "no.onnx"
    assert _refusal(lambda: model_io.load(missing)) == (f"{missing}: there is no such model file. Check the path.")
    assert _refusal(lambda: model_io.load(tmp_path)) == (
        f"{tmp_path}: is a folder, not a model file. Name the file inside it."
    )
    assert _refusal(lambda: model_io.load("w" * 5000)) == (
        f"{'w' * 300}... (5000 characters): the model file cannot be read: File name too long."
    )
    assert _refusal(lambda: model_io.load("w\0")) == "w\0: the model file cannot be read: embedded null byte."


# Refused: models that cannot be used.


def test_opsets_and_ir_versions_beyond_the_installed_onnx() -> None:
    newest = onnx.defs.onnx_opset_version()
    proto = _conv_proto()
    proto.opset_import[0].version = newest + 1
    assert _refusal(lambda: model_io.load(proto)) == (
        f"the model: uses opset {newest + 1}, and the installed onnx {onnx.__version__} knows opsets up to "
        f"{newest}. Install a newer onnx, or export with opset {newest} or lower."
    )
    proto = _conv_proto()
    proto.ir_version = onnx.IR_VERSION + 1
    assert _refusal(lambda: model_io.load(proto)) == (
        f"the model: has IR version {onnx.IR_VERSION + 1}, and the installed onnx {onnx.__version__} knows "
        f"versions up to {onnx.IR_VERSION}. Install a newer onnx, or export with an older one."
    )


def test_models_that_the_checker_refuses() -> None:
    proto = _conv_proto()
    proto.graph.node[1].op_type = "Relux"
    expected = (
        "the model: is not a valid model: onnx's checker says: No Op registered for Relux with "
        "domain_version of 17 (Bad node spec for node. Name: relu OpType: Relux). Export it again."
    )
    assert _refusal(lambda: model_io.load(proto)) == expected
    assert _refusal(lambda: model_io.load(onnx_ir.from_proto(proto))) == expected


@pytest.mark.parametrize(("kind", "name"), [("input", "x"), ("output", "y")])
@pytest.mark.parametrize("missing", ["type", "shape"])
def test_inputs_and_outputs_without_a_shape_are_named(tmp_path: Path, kind: str, name: str, missing: str) -> None:
    proto = _conv_proto()
    (info,) = [info for info in getattr(proto.graph, kind) if info.name == name]
    info.ClearField("type") if missing == "type" else info.type.tensor_type.ClearField("shape")
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    problem = (
        f"graph {kind} {name!r} declares no {missing}, which ONNX asks of every input and output. "
        "Export it with a type and a shape; sizes in the shape may stay open."
    )
    assert _refusal(lambda: model_io.load(proto)) == f"the model: {problem}"
    assert _refusal(lambda: model_io.load(path)) == f"{path}: {problem}"


def test_inputs_and_outputs_that_are_no_tensors_need_no_shape() -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["y"])],
        "g",
        [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert model_io.load(proto).graph.inputs[0].name == "s"


def test_models_with_nodes_out_of_order() -> None:
    proto = _conv_proto()
    nodes = list(proto.graph.node)[::-1]
    unsorted = onnx.ModelProto()
    unsorted.CopyFrom(proto)
    del unsorted.graph.node[:]
    unsorted.graph.node.extend(nodes)
    assert "Nodes in a graph must be topologically sorted" in _refusal(lambda: model_io.load(unsorted))
    message = _refusal(lambda: model_io.load(onnx_ir.from_proto(unsorted)))
    assert message.startswith("the model: cannot be copied: Value ")
    assert message.endswith("Check that its nodes are sorted: model.graph.sort().")


def test_training_steps_are_refused() -> None:
    proto = _conv_proto()
    proto.training_info.add()
    assert _refusal(lambda: model_io.load(proto)) == (
        "the model: carries training steps (training_info), which would be lost. "
        "Export the model for inference, without them."
    )


def test_types_that_cannot_be_represented_are_refused() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (float[N,2] x) => (seq(map(int64, float)) y)
        { y = ai.onnx.ml.ZipMap <classlabels_int64s = [0, 1]> (x) }"""
    )
    assert _refusal(lambda: model_io.load(proto)) == (
        "the model: cannot be represented: Map types are not supported yet. "
        "Please contribute by creating a PR at https://github.com/onnx/onnx-ir. Export the model without it."
    )


def test_weights_whose_bytes_do_not_fit_their_shape_are_refused(tmp_path: Path) -> None:
    proto = _conv_proto()
    proto.graph.initializer[0].dims[0] = 15
    problem = (
        "weight 'w' [15, 3, 3, 3] float needs 1620 bytes and holds 1728. " + "The model is damaged: export it again."
    )
    path = _conv_file(tmp_path, proto)
    assert _refusal(lambda: model_io.load(path)) == f"{path}: {problem}"
    assert _refusal(lambda: model_io.load(proto)) == f"the model: {problem}"


def test_an_initializer_without_numbers_is_refused() -> None:
    source = onnx_ir.from_proto(_conv_proto())
    source.graph.initializers["w"].const_value = None
    assert _refusal(lambda: model_io.load(source)) == ("the model: initializer 'w' has no tensor. Set its const_value.")
    assert _refusal(lambda: model_io.to_proto_bytes(source), InternalError) == (
        "initializer 'w' has no tensor: a pass removed its numbers."
    )


# Saving.


def test_equal_models_give_equal_bytes_and_digests(tmp_path: Path) -> None:
    first, second, third = (model_io.load(_conv_proto(seed)) for seed in (0, 0, 1))
    assert model_io.to_proto_bytes(first) == model_io.to_proto_bytes(second)
    assert model_io.digest(first) == model_io.digest(second) == model_io.digest(first.clone())
    assert model_io.digest(first) != model_io.digest(third)
    written = model_io.save(first, tmp_path / "m.onnx")
    assert written == model_io.size_bytes(first) == (tmp_path / "m.onnx").stat().st_size
    assert model_io.digest(tmp_path / "m.onnx") == model_io.digest(_conv_proto()) == model_io.digest(first)


def test_the_digest_does_not_depend_on_inner_shapes() -> None:
    proto = _conv_proto()
    proto.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 16, "H", "W"]))
    assert model_io.digest(proto) == model_io.digest(_conv_proto())


def test_encoded_weights_are_written_dense(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    weight = model.graph.initializers["w"]
    encoded = Affine.quantize(tensor_of(model, "w").numpy(), axis=0)
    weight.const_value = encoded
    model_io.save(model, tmp_path / "m.onnx")
    model_io.save(model, tmp_path / "n.onnx", external_from_bytes=0)
    for name in ("m.onnx", "n.onnx"):
        loaded = tensor_of(model_io.load(tmp_path / name), "w")
        np.testing.assert_array_equal(loaded.numpy(), encoded.dense())
    assert weight.const_value is encoded


def test_taken_paths_are_refused_and_left_alone(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    path = tmp_path / "m.onnx"
    path.write_bytes(b"mine")
    assert _refusal(lambda: model_io.save(model, path), UsageError) == (
        f"output {path}: exists already. Choose another name, or replace it with --force."
    )
    assert path.read_bytes() == b"mine"
    model_io.save(model, path, overwrite=True)
    assert model_io.digest(path) == model_io.digest(model)


def test_a_taken_data_path_is_refused(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    (tmp_path / "m.onnx.data").write_bytes(b"mine")
    path = tmp_path / "m.onnx"
    assert _refusal(lambda: model_io.save(model, path, external_from_bytes=0), UsageError) == (
        f"output {tmp_path / 'm.onnx.data'}: exists already. Choose another name, or replace it with --force."
    )
    assert _names(tmp_path) == ["m.onnx.data"]


def test_a_data_file_goes_with_the_model_that_kept_its_weights_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model_io.save(model_io.load(_conv_proto()), path, external_from_bytes=0)
    assert _names(tmp_path) == ["m.onnx", "m.onnx.data"]
    model = model_io.load(path)  # its weights are those of the file that goes
    model_io.save(model, path, overwrite=True)
    assert _names(tmp_path) == ["m.onnx"]
    assert model_io.digest(path) == model_io.digest(model) == model_io.digest(_conv_proto())


@pytest.mark.parametrize("replaced", [None, b"mine", "a model of its own", "weights in another file"])
def test_a_data_file_that_the_replaced_model_did_not_use_stays(tmp_path: Path, replaced: str | bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if isinstance(replaced, bytes):
        path.write_bytes(replaced)
    elif replaced == "weights in another file":
        _external_file(tmp_path)
    elif replaced is not None:
        _conv_file(tmp_path)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"mine")
    model_io.save(model_io.load(_conv_proto(seed=1)), path, overwrite=True)
    assert data.read_bytes() == b"mine"


def test_planned_files_are_those_that_are_written(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    path, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    size = model_io.size_bytes(model)
    assert model_io.planned_files(path, size) == [path]
    assert model_io.planned_files(path) == [path, data]
    assert model_io.planned_files(path, 2**31) == [path, data]
    for limit in (size, size + 1):
        model_io.save(model, path, overwrite=True, external_from_bytes=limit)
        planned = model_io.planned_files(path, size, external_from_bytes=limit)
        assert sorted(file.name for file in planned) == _names(tmp_path)
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    assert model_io.planned_files(tmp_path / "link.onnx", size) == [path]


def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_io.load(_conv_proto())
    assert _refusal(lambda: model_io.save(model, tmp_path), UsageError) == (
        f"output {tmp_path}: is a folder. Name a file in it, such as {tmp_path / 'model.onnx'}."
    )
    path = tmp_path / "no" / "m.onnx"
    assert _refusal(lambda: model_io.save(model, path), UsageError) == (
        f"output {path}: there is no folder {tmp_path / 'no'}. Create it first."
    )
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert _refusal(lambda: model_io.save(model, pipe, overwrite=True), UsageError) == (
        f"output {pipe}: is a device or pipe, not a file. Name a file."
    )
    path = tmp_path / f"{'long' * 60}.onnx"
    assert _refusal(lambda: model_io.save(model, path), UsageError) == (
        f"output {path}: cannot be written: File name too long. Choose another place."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    path = tmp_path / "m.onnx"
    try:
        assert _refusal(lambda: model_io.save(model_io.load(_conv_proto()), path), UsageError) == (
            f"output {path}: cannot be written: Permission denied. Choose another place."
        )
    finally:
        tmp_path.chmod(0o700)


class _Breaking(Affine):
    """A weight that cannot be written; without a kind of its own, so that it is not registered."""

    def numpy(self) -> Array:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("external_from_bytes", [0, 1 << 30])
def test_a_failed_save_leaves_nothing_behind(tmp_path: Path, external_from_bytes: int) -> None:
    model = model_io.load(_conv_proto())
    path = tmp_path / "m.onnx"
    path.write_bytes(b"mine")
    weight = model.graph.initializers["w"]
    weight.const_value = _Breaking.quantize(tensor_of(model, "w").numpy(), axis=0)
    failed = path if external_from_bytes else tmp_path / "m.onnx.data"

    def save() -> None:
        model_io.save(model, path, overwrite=True, external_from_bytes=external_from_bytes)

    assert _refusal(save, UsageError) == (
        f"output {failed}: cannot be written: No space left on device. Choose another place."
    )
    assert _names(tmp_path) == ["m.onnx"]
    assert path.read_bytes() == b"mine"


def test_links_stay_links_and_permissions_stay(tmp_path: Path) -> None:
    model = model_io.load(_conv_proto())
    target, link = tmp_path / "target.onnx", tmp_path / "link.onnx"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    model_io.save(model, link, overwrite=True)
    assert link.is_symlink() and model_io.digest(target) == model_io.digest(model)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_model_beyond_protobuf_is_refused_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", 1000)
    model = model_io.load(_conv_proto())
    assert _refusal(lambda: model_io.to_proto_bytes(model)) == (
        f"the model takes {model_io.size_bytes(model)} bytes, more than the 1000 of one protobuf message. "
        "Save it to a path, which keeps the weights in a file of their own."
    )


# Whole models.


@st.composite
def _models(draw: st.DrawFn) -> onnx.ModelProto:
    """Chains of small operators with weights of all sizes, shared or not, named or not, and a subgraph."""
    width = draw(st.sampled_from([1, 3, 300]))
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, onnx.TensorProto] = {}
    value = "x"
    for index in range(draw(st.integers(1, 6))):
        op = draw(st.sampled_from(["Relu", "Add", "Mul", "If"]))
        name = draw(st.sampled_from(["", "same", f"n{index}"]))
        inputs, attributes = [value], {}
        if op in ("Add", "Mul"):
            weight = draw(st.sampled_from(["w", f"w{index}"]))
            seed = draw(st.integers(0, 9))
            array = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
            initializers.setdefault(weight, numpy_helper.from_array(array, weight))
            inputs.append(weight)
        elif op == "If":
            inputs = ["c"]
            for branch, inner in (("then_branch", "Relu"), ("else_branch", "Neg")):
                result = f"{branch}{index}"
                info = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
                body = helper.make_graph([helper.make_node(inner, [value], [result])], branch, [], [info])
                attributes[branch] = body
        value = f"v{index}"
        nodes.append(helper.make_node(op, inputs, [value], name=name, **attributes))
        if draw(st.booleans()):
            nodes[-1].metadata_props.add(key="k", value=str(index))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", width])],
        list(initializers.values()),
    )
    opset = draw(st.sampled_from([13, 17, 21]))
    return helper.make_model(
        graph, ir_version=draw(st.sampled_from([8, 10])), opset_imports=[helper.make_opsetid("", opset)]
    )


@settings(max_examples=30)
@given(_models(), st.sampled_from([0, 1 << 30]))
def test_models_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, proto: onnx.ModelProto, external_from_bytes: int
) -> None:
    model = model_io.load(proto)
    verify(model)
    path = tmp_path_factory.mktemp("round") / "m.onnx"
    model_io.save(model, path, external_from_bytes=external_from_bytes)
    again = model_io.load(path)
    assert model_io.digest(again) == model_io.digest(model)
    assert to_text(again) == to_text(model)
    feeds = random_feeds(model)
    for node in proto.graph.node:
        node.name = ""  # onnxruntime refuses what load mends
    np.testing.assert_array_equal(run(again, feeds)[0], run(proto, feeds)[0])


_BUNDLED = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


@pytest.mark.parametrize("path", sorted(_BUNDLED.glob("*.onnx")), ids=lambda path: path.stem)
def test_onnx_s_own_models_survive_the_round_trip(path: Path) -> None:
    model = model_io.load(path)
    verify(model)
    again = model_io.load(onnx.load_from_string(model_io.to_proto_bytes(model)))
    assert model_io.digest(again) == model_io.digest(model)


@pytest.mark.assets("models/ultraface_rfb320.onnx")
def test_a_published_detector_of_opset_9(assets: Path) -> None:
    path = assets / "models" / "ultraface_rfb320.onnx"
    model = model_io.load(path)
    verify(model)
    assert (model.ir_version, model.opset_imports[""]) == (4, 9)
    assert str(interface(model)) == ("(input: float[1,3,240,320]) -> (scores: float[1,4420,2], boxes: float[1,4420,4])")
    feeds = random_feeds(model)
    for ours, theirs in zip(run(model, feeds), run(str(path), feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _long_proto(pairs: int) -> onnx.ModelProto:
    """A chain of `pairs` times Add and Relu, with a weight for each Add."""
    nodes, weights, value = [], [], "x"
    for index in range(pairs):
        weights.append(numpy_helper.from_array(np.full((1, 8), index, np.float32), f"w{index}"))
        nodes.append(helper.make_node("Add", [value, f"w{index}"], [f"a{index}"]))
        nodes.append(helper.make_node("Relu", [f"a{index}"], [f"r{index}"]))
        value = f"r{index}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    y = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", 8])
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), ir_version=8)
    proto.opset_import[0].version = 17
    return proto


def test_time_grows_with_the_nodes_and_not_with_their_square(tmp_path: Path) -> None:
    def prepare(pairs: int) -> Callable[[], object]:
        path = tmp_path / f"{pairs}.onnx"
        path.write_bytes(_long_proto(pairs).SerializeToString())

        def work() -> None:
            model = model_io.load(path)
            verify(model)
            model_io.save(model, tmp_path / "out.onnx", overwrite=True)

        return work

    assert growth(prepare, 500) < 8
