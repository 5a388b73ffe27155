"""Running models: any value, any batch that the model takes, and errors that say which node and why."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpress.ir.analysis import execute, partial_graph
from onnxpress.ir.analysis.execute import (
    BatchRunner,
    Session,
    batch_size_within,
    fetchable,
    require_runtime,
    stream,
)
from onnxpress.ir.data import Batch, open_data
from onnxpress.ir.encodings import Affine, encode
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError
from tests.support import Array, random_feeds, run_named, text_model

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

CHAIN = (
    HEADER
    + """
net (float[N,3,5,7] x) => (float[N,2,3,5] y)
  <float[1,2,1,1] shift = {0.5, -1.5}> {
  [conv] a = Conv(x, w)
  [relu] b = Relu(a)
  [add] y = Add(b, shift)
}"""
)

BRANCH = (
    HEADER
    + """
net (float[N,3] x, bool flag) => (float[N,3] y) <float[3] k = {1.0, 2.0, 3.0}, float[3] d = {4.0, 5.0, 6.0}> {
  [before] a = Relu(x)
  [if] b = If(flag) <
    then_branch = one () => (float[N,3] t) { [inner] t = Mul(a, k) },
    else_branch = two () => (float[N,3] e) { [other] e = Neg(a) }
  >
  [after] y = Add(b, d)
}"""
)


def floats(values: npt.ArrayLike) -> Array:
    return np.asarray(values, np.float32)


def chain() -> onnx_ir.Model:
    model = text_model(CHAIN)
    fill(model, "w", np.random.default_rng(1).standard_normal((2, 3, 3, 3)).astype(np.float32))
    return model


def fill(model: onnx_ir.Model, name: str, array: Array) -> None:
    """Make `name`, which nodes of the text use, an initializer."""
    value = next(value for node in model.graph for value in node.inputs if value and value.name == name)
    tensor = onnx_ir.tensor(array, name=name)
    value.const_value, value.type = tensor, onnx_ir.TensorType(tensor.dtype)
    value.shape = onnx_ir.Shape(array.shape)
    model.graph.register_initializer(value)


def refused(kind: type[OnnxpressError], message: str, action: Callable[[], object]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        action()


# Sessions


def test_outputs_of_the_model() -> None:
    model = chain()
    feeds = random_feeds(model)
    session = Session(model)
    assert (session.input_names, session.output_names, session.constant_names) == (
        ("x",),
        ("y",),
        frozenset(),
    )
    np.testing.assert_array_equal(session.run(feeds)["y"], run_named(model, feeds)["y"])


@pytest.mark.parametrize("optimize", [False, True])
def test_inner_values_inputs_and_initializers(optimize: bool) -> None:
    model = chain()
    before = onnx_ir.to_proto(model).SerializeToString()
    feeds = random_feeds(model)
    session = Session(model, outputs=["b", "x", "shift", "a", "b"], optimize=optimize)
    outputs = session.run(feeds)
    assert list(outputs) == ["b", "x", "shift", "a"] and session.constant_names == {"shift"}
    np.testing.assert_array_equal(outputs["x"], feeds["x"])
    np.testing.assert_array_equal(outputs["shift"].reshape(-1), [0.5, -1.5])
    np.testing.assert_array_equal(outputs["b"], np.maximum(outputs["a"], 0))
    np.testing.assert_allclose(outputs["b"] + outputs["shift"], run_named(model, feeds)["y"], rtol=1e-5, atol=1e-5)
    assert onnx_ir.to_proto(model).SerializeToString() == before


def test_only_values_that_need_no_computation() -> None:
    feeds = random_feeds(chain())
    outputs = Session(chain(), outputs=["x", "w"]).run(feeds)
    assert outputs["x"] is feeds["x"] and outputs["w"].shape == (2, 3, 3, 3)


def test_only_what_the_outputs_need_is_loaded() -> None:
    model = text_model(
        HEADER
        + """
    net (float[N,6] x, float[N,2] z) => (float[5,5] y) <int64[2] s = {5, 5}> {
      a = Relu(x)
      y = Reshape(a, s)
    }"""
    )
    x = np.ones((2, 6), np.float32)
    assert Session(model, outputs=["a"]).run({"x": x, "z": x[:, :2]})["a"].shape == (2, 6)
    content = partial_graph.serialize_partial(model, ["a"], Path())
    assert isinstance(content, bytes)
    proto = onnx.load_from_string(content)
    assert [node.op_type for node in proto.graph.node] == ["Relu"] and not proto.graph.initializer
    assert [value.name for value in proto.graph.input] == ["x", "z"]


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("fold", [None, False, True])
def test_what_the_runtime_may_rewrite(optimize: bool, fold: bool | None) -> None:
    session = Session(chain(), optimize=optimize, fold_quantization=fold)
    options = session._session.get_session_options()
    off = require_runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
    assert (options.graph_optimization_level == off) is not optimize
    folds = optimize if fold is None else fold
    with contextlib.suppress(RuntimeError):  # raised for an entry that is not set
        assert folds is not (options.get_session_config_entry("session.disable_quant_qdq") == "1")
    assert options.intra_op_num_threads == 1


def test_quantized_weights_are_computed_as_written() -> None:
    """The runtime's own rewrite of weight-only Q/DQ into integer kernels must not touch the reference."""
    model = text_model(
        HEADER
        + """
    net (float[N,64] x) => (float[N,16] y) <float s = {0.01}> {
      w = DequantizeLinear(q, s)
      y = MatMul(x, w)
    }"""
    )
    codes = np.random.default_rng(0).integers(-127, 128, (64, 16), np.int8)
    fill(model, "q", codes)
    feeds = random_feeds(model)
    expected = feeds["x"].astype(np.float64) @ (codes * np.float64(np.float32(0.01)))
    np.testing.assert_allclose(Session(model).run(feeds)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [True, False])
def test_bodies_use_values_from_outside(value: bool) -> None:
    model = text_model(BRANCH)
    feeds = {"x": floats([[1, -2, 3]]), "flag": np.array(value)}
    outputs = Session(model, outputs=["b", "y"]).run(feeds)
    np.testing.assert_array_equal(outputs["b"], [[1, 0, 9]] if value else [[-1, 0, -3]])
    np.testing.assert_array_equal(outputs["y"], run_named(model, feeds)["y"])


def test_what_a_body_gives_from_outside_is_needed() -> None:
    model = text_model(BRANCH)
    outer = model.graph.node("before").outputs[0]
    body = model.graph.node("if").attributes["then_branch"].as_graph()
    body.outputs[:] = [outer]
    body.remove(body[0])
    model.graph.node("if").attributes["else_branch"].as_graph()[0].replace_input_with(0, model.graph.inputs[0])
    content = partial_graph.serialize_partial(model, ["b"], Path())
    assert isinstance(content, bytes)
    assert [node.name for node in onnx.load_from_string(content).graph.node] == ["before", "if"]


def test_functions_of_the_model() -> None:
    model = text_model("""<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    net (float[N,3] x) => (float[N,3] y) { y = local.Twice(x) }
    <domain: "local", opset_import: ["" : 21]>
    Twice (a) => (b) { b = Add(a, a) }""")
    feeds = random_feeds(model)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], feeds["x"] * 2)


def test_input_with_a_default() -> None:
    model = text_model(HEADER + "net (float[N,3] x, float[3] k) => (float[N,3] y) { y = Mul(x, k) }")
    model.graph.inputs[1].const_value = onnx_ir.tensor(floats([1, 2, 3]), name="k")
    model.graph.register_initializer(model.graph.inputs[1])
    session = Session(model, outputs=["y", "k"])
    x, other = np.ones((1, 3), np.float32), floats([4, 5, 6])
    assert session.input_names == ("x",) and not session.constant_names
    assert session.run({"x": x})["y"].tolist() == [[1, 2, 3]]
    assert session.run({"x": x})["k"].tolist() == [1, 2, 3]
    assert session.run({"x": x, "k": other})["y"].tolist() == [[4, 5, 6]]
    assert session.run({"x": x, "k": other})["k"].tolist() == [4, 5, 6]
    assert Session(model, outputs=["x"]).run({"x": x})["x"] is x


def test_default_of_an_input_that_is_not_needed() -> None:
    model = text_model(HEADER + "net (float[N,3] x, float[3] k) => (float[N,3] y) { a = Relu(x) y = Mul(a, k) }")
    model.graph.inputs[1].const_value = onnx_ir.tensor(floats([1, 2, 3]), name="k")
    model.graph.register_initializer(model.graph.inputs[1])
    assert Session(model, outputs=["a"]).run({"x": np.ones((1, 3), np.float32)})["a"].tolist() == [[1, 1, 1]]


def test_path_and_bytes(tmp_path: Path) -> None:
    model = chain()
    feeds = random_feeds(model)
    content = onnx_ir.to_proto(model).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    for source in (content, path, str(path)):
        session = Session(source)
        assert (session.input_names, session.output_names) == (("x",), ("y",))
        np.testing.assert_array_equal(session.run(feeds)["y"], run_named(model, feeds)["y"])
    refused(
        UsageError,
        "inner values of a serialized model cannot be fetched. Load it first",
        lambda: Session(content, outputs=["a"]),
    )


# Weights


@pytest.fixture
def through_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every initializer goes through a file in the folder that this returns."""
    monkeypatch.setattr(partial_graph, "_MAPPED_MODEL_BYTES", 0)
    monkeypatch.setattr(partial_graph, "_MAPPED_TENSOR_BYTES", 0)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("optimize", [False, True])
def test_weights_through_a_file(through_a_file: Path, optimize: bool) -> None:
    model = chain()
    feeds = random_feeds(model)
    written: list[list[str]] = []
    offsets: list[int] = []
    create = execute._create

    def watched(runtime: Any, source: str, options: Any) -> Any:
        written.append(sorted(path.name for path in Path(source).parent.iterdir()))
        for tensor in onnx.load(source, load_external_data=False).graph.initializer:
            offsets.extend(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
        return create(runtime, source, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "_create", watched)
        session = Session(model, optimize=optimize)
    assert written == [["model.onnx", "weights"]] and not list(through_a_file.iterdir())
    assert len(offsets) == 2 and all(offset % 4096 == 0 for offset in offsets)
    np.testing.assert_allclose(session.run(feeds)["y"], run_named(model, feeds)["y"], rtol=1e-5, atol=1e-5)


TYPES = [np.float32, np.float16, np.float64, np.int8, np.uint16, np.int64, np.bool_, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", [*TYPES, ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("file", [True, False])
def test_weights_of_every_type(dtype: Any, file: bool, request: pytest.FixtureRequest) -> None:
    if file:
        request.getfixturevalue("through_a_file")
    array = np.array([[0, 1, 1], [1, 0, 3], [5, 0, 7]]).astype(dtype)  # an odd count: 4 bits end in half a byte
    tensor = onnx_ir.tensor(array, name="w")
    weight = onnx_ir.val("w", const_value=tensor)
    cast = onnx_ir.node("Cast", [weight], attributes={"to": onnx_ir.DataType.FLOAT}, name="cast")
    cast.outputs[0].name = "y"
    graph = onnx_ir.Graph([], cast.outputs, nodes=[cast], initializers=[weight], opset_imports={"": 21})
    result = Session(onnx_ir.Model(graph, ir_version=10)).run({})["y"]
    np.testing.assert_array_equal(result, array.astype(np.float32))


@pytest.mark.parametrize("file", [True, False])
def test_encoded_weights_run_as_their_dense_values(file: bool, request: pytest.FixtureRequest) -> None:
    if file:
        request.getfixturevalue("through_a_file")
    model, plain = chain(), chain()
    weight = plain.graph.initializers["w"].const_value
    assert weight is not None
    encoded = Affine.quantize(weight.numpy(), bits=4, axis=0)
    encode(model.graph.initializers["w"], encoded)
    fill(plain, "w", encoded.dense())
    feeds = random_feeds(model)
    np.testing.assert_array_equal(Session(model).run(feeds)["y"], Session(plain).run(feeds)["y"])


@pytest.mark.parametrize("file", [True, False])
def test_weights_in_external_files(tmp_path: Path, file: bool, request: pytest.FixtureRequest) -> None:
    if file:
        request.getfixturevalue("through_a_file")
    model = chain()
    feeds = random_feeds(model)
    expected = run_named(model, feeds)["y"]
    onnx_ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    loaded = onnx_ir.load(tmp_path / "m.onnx")
    assert isinstance(loaded.graph.initializers["w"].const_value, onnx_ir.ExternalTensor)
    np.testing.assert_array_equal(Session(loaded).run(feeds)["y"], expected)


def test_external_weights_inside_a_body(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(floats([1, 2, 3]).tobytes())
    model = text_model(BRANCH)
    body = model.graph.node("if").attributes["then_branch"].as_graph()
    tensor = onnx_ir.ExternalTensor(
        "data", 0, 12, onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape([3]), name="local", base_dir=tmp_path
    )
    local = onnx_ir.Value(
        name="local", const_value=tensor, shape=tensor.shape, type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    )
    body.register_initializer(local)
    body[0].replace_input_with(1, local)
    feeds = {"x": floats([[1, -2, 3]]), "flag": np.array(True)}
    np.testing.assert_array_equal(Session(model, outputs=["b"]).run(feeds)["b"], [[1, 0, 9]])


def test_text_weights() -> None:
    model = text_model(HEADER + "net (float[1] x) => (string[2] y) { y = Identity(w) }")
    fill(model, "w", np.zeros(2, np.float32))
    model.graph.initializers["w"].const_value = onnx_ir.StringTensor([b"ab", b"c"], shape=onnx_ir.Shape([2]), name="w")
    assert Session(model).run({"x": np.zeros(1, np.float32)})["y"].tolist() == ["ab", "c"]


# What is refused, and how


def test_values_that_cannot_be_fetched() -> None:
    model = text_model(BRANCH)
    assert [fetchable(model, name) for name in ("x", "k", "a", "y", "t", "nothing")] == [True] * 4 + [False] * 2
    refused(
        UsageError,
        "value 't' lies in the body of a control-flow node and cannot be fetched",
        lambda: Session(model, outputs=["t"]),
    )
    refused(
        UsageError,
        "the model has no value 'relu_out'. Did you mean 'relu_output'?",
        lambda: Session(
            text_model(HEADER + "net (float[N] x) => (float[N] relu_output) { relu_output = Relu(x) }"),
            outputs=["relu_out"],
        ),
    )
    sequence = text_model(HEADER + "net (float[N] x) => (float[N] y) { s = SequenceConstruct(x) y = Relu(x) }")
    for node in sequence.graph:
        if node.op_type == "SequenceConstruct":
            node.outputs[0].type = onnx_ir.SequenceType(onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    assert not fetchable(sequence, "s")
    refused(UsageError, "value 's' is no tensor and cannot be fetched", lambda: Session(sequence, outputs=["s"]))


def test_feeds_that_do_not_match() -> None:
    session = Session(text_model(BRANCH))
    x = np.zeros((1, 3), np.float32)
    refused(
        InputError,
        "cannot run the model: no array for the input 'flag', got 'x'",
        lambda: session.run({"x": x}),
    )
    refused(InputError, "cannot run the model: no array for the input 'x'", lambda: session.run({}))
    refused(
        InputError,
        "cannot run the model: it has no input 'flags'. Did you mean 'flag'?",
        lambda: session.run({"x": x, "flag": np.array(True), "flags": x}),
    )


def test_model_that_does_not_load() -> None:
    wrong_type = text_model(HEADER + "net (int8[N,3,4,4] x, int8[2,3,3,3] w) => (int8[N,2,2,2] y) { y = Conv(x, w) }")
    for source in (wrong_type, b"no model"):
        with pytest.raises(InputError, match=r"^onnxruntime cannot load the model: [^\[\n]+[^.\s]$"):
            Session(source)


def test_node_that_fails_is_named() -> None:
    model = text_model(
        HEADER
        + """
    net (float[N,6] x) => (float[M,5] y) <int64[2] s = {-1, 5}> { [reshape_1] y = Reshape(x, s) }"""
    )
    session = Session(model)
    with pytest.raises(InputError, match=r"^onnxruntime cannot run node 'reshape_1' \(Reshape\): [^/\n]*\{2,6\}"):
        session.run({"x": np.zeros((2, 6), np.float32)})


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. "
            "Name:'resh' "
            "Status Message: /onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91 "
            "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) "
            "input_shape_size == "
            "requested_shape_size was false. The input tensor cannot be reshaped. Input shape:{2,6}\n",
            "node 'resh' (Reshape): The input tensor cannot be reshaped. Input shape:{2,6}",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
            "Name:'mm' "
            "Status Message: matmul_helper.h:59 Compute MatMul dimension mismatch",
            "node 'mm' (MatMul): Compute MatMul dimension mismatch",
        ),
        (
            "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x for the "
            "following "
            "indices\n index: 1 Got: 5 Expected: 6\n Please fix either the inputs/outputs or the model.",
            "the model: Got invalid dimensions for input: x for the following indices index: 1 Got: 5 "
            "Expected: 6 "
            "Please fix either the inputs/outputs or the model",
        ),
    ],
)
def test_what_the_runtime_raises_is_told_on_one_line(raised: str, said: str) -> None:
    class Broken:
        def run(self, *_: Any) -> None:
            raise RuntimeError(raised)

    session = Session(chain())
    session._session = Broken()
    refused(InputError, f"onnxruntime cannot run {said}", lambda: session.run(random_feeds(chain())))


def test_initializer_without_data() -> None:
    model = chain()
    model.graph.initializers["w"].const_value = None
    refused(InputError, "initializer 'w' has no data", lambda: Session(model))
    refused(InputError, "initializer 'w' has no data", lambda: Session(model, outputs=["w"]))


def test_no_room_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute, "serialize_partial", full)
    refused(
        UsageError,
        f"cannot put the weights into the temporary folder {tempfile.gettempdir()!r} (No space left on "
        "device). "
        "Set TMPDIR to a folder with room",
        lambda: Session(chain()),
    )


def test_no_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(
        UsageError,
        "no onnxruntime is installed, and running a model needs one: pip install 'onnxpress[cpu]', "
        "or 'onnxpress[gpu]' for CUDA",
        require_runtime,
    )


# Batches

SCALES = """net (float[{N},3] x) => (float[{N},3] y) <float[3] k = {{1.0, 2.0, 3.0}}> {{
  a = Mul(x, k)
  y = Relu(a)
}}"""


def rows(samples: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((samples, 3)).astype(np.float32)


@given(
    fixed=st.sampled_from(["N", 1, 2, 3, 4]),
    samples=st.integers(1, 9),
    batch_size=st.integers(1, 5),
    limit=st.none() | st.integers(1, 9),
)
@settings(max_examples=40)
def test_result_does_not_depend_on_batches(fixed: str | int, samples: int, batch_size: int, limit: int | None) -> None:
    model = text_model(HEADER + SCALES.format(N=fixed))
    runner = BatchRunner(model, Session(model, outputs=["y", "a", "k", "x"]))
    x = rows(samples)
    data = open_data(x, model=model)
    results = [runner.run(batch) for batch in data.batches(batch_size, limit=limit)]
    used = x[:limit]
    np.testing.assert_array_equal(np.concatenate([result["x"] for result in results]), used)
    np.testing.assert_array_equal(np.concatenate([result["a"] for result in results]), used * floats([1, 2, 3]))
    np.testing.assert_array_equal(
        np.concatenate([result["y"] for result in results]), np.maximum(used * floats([1, 2, 3]), 0)
    )
    assert all(result["k"].shape == (3,) for result in results)


def one_batch(text: str, feeds: dict[str, Array], outputs: list[str] | None = None) -> dict[str, Array]:
    model = text_model(HEADER + text)
    return BatchRunner(model, Session(model, outputs=outputs)).run(Batch(feeds))


def test_batch_of_one_written_into_the_graph() -> None:
    """Exporters write Reshape to [1, ...] and still call the input's batch N."""
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    text = "net (float[N,6] x) => (float[M,2,3] y) <int64[3] s = {1, 2, 3}> { y = Reshape(x, s) }"
    np.testing.assert_array_equal(one_batch(text, {"x": x})["y"], x.reshape(2, 2, 3))


def test_batch_that_failed_once_is_not_tried_again() -> None:
    text = "net (float[N,6] x) => (float[M,6] y) <int64[2] s = {1, 6}> { y = Reshape(x, s) }"
    model = text_model(HEADER + text)
    session = Session(model)
    sizes: list[int] = []
    run = session.run

    def counted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        sizes.append(len(feeds["x"]))
        return run(feeds)

    session.run = counted  # type: ignore[method-assign]
    runner = BatchRunner(model, session)
    for _ in range(2):
        runner.run(Batch({"x": np.zeros((2, 6), np.float32)}))
    assert sizes == [2, 1, 1, 1, 1]


def test_output_that_mixes_samples_runs_them_alone() -> None:
    x = rows(4)
    text = "net (float[N,3] x) => (float[M,3] y) { y = ReduceMean <keepdims = 1> (x, axis) }"
    text = text.replace("{ y", "<int64[1] axis = {0}> { y")
    np.testing.assert_array_equal(one_batch(text, {"x": x})["y"], x)
    scalar = "net (float[N,3] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }"
    np.testing.assert_allclose(one_batch(scalar, {"x": x})["y"], x.sum(axis=1), rtol=1e-6)
    assert one_batch(scalar, {"x": x[:1]})["y"].shape == (1,)


def test_detections_of_changing_number_are_strung_together() -> None:
    x = floats([[1, 0, 2], [0, 0, 3]])
    text = "net (float[N,3] x) => (int64[2,M] y) { y = NonZero(x) }"
    np.testing.assert_array_equal(one_batch(text, {"x": x})["y"], [0, 0, 0, 2, 0, 2])


def test_model_without_batch() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
    text = "net (float[3,5] x) => (float[3] y) <int64[1] axis = {1}> { y = ReduceSum <keepdims = 0> (x, axis) }"
    for samples in (4, 1):
        y = one_batch(text, {"x": x[:samples]})["y"]
        np.testing.assert_allclose(y, x[:samples].sum(axis=2), rtol=1e-5)


def test_inputs_without_shared_batch() -> None:
    text = """net (float[N,3] x, float[2,N,3] state, float gain) => (float[N,3] y) <int64[1] axis = {0}> {
      total = ReduceSum <keepdims = 0> (state, axis)
      sum = Add(x, total)
      y = Mul(sum, gain)
    }"""
    x, state, gain = (
        rows(4)[:, None],
        np.stack([rows(4, 1), rows(4, 2)], 1)[:, :, None],
        floats([1, 2, 3, 4]),
    )
    y = one_batch(text, {"x": x, "state": state, "gain": gain})["y"]
    np.testing.assert_allclose(y, ((x + state.sum(1)) * gain[:, None, None])[:, 0], rtol=1e-5)


def test_failure_that_a_smaller_batch_does_not_cure_is_the_first_one() -> None:
    x = np.zeros((2, 6), np.float32)
    text = "net (float[N,6] x) => (float[M,5] y) <int64[2] s = {-1, 5}> { [bad] y = Reshape(x, s) }"
    with pytest.raises(InputError, match=r"^onnxruntime cannot run node 'bad' \(Reshape\): .*\{2,6\}.*"):
        one_batch(text, {"x": x})


# Streams


class Recorder:
    """A progress display that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    @contextlib.contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Recorder]:
        self.told.append((label, total))
        yield self
        self.told.append("end")

    def advance(self, n: int = 1) -> None:
        self.told.append(n)


def test_stream_of_chosen_values() -> None:
    model = chain()
    x = np.random.default_rng(3).standard_normal((7, 3, 5, 7)).astype(np.float32)
    progress = Recorder()
    data = open_data({"images": x})  # not bound to the model yet
    found = list(stream(model, data, ["a", "x"], limit_bytes=4000, samples=6, optimize=False, progress=progress))
    # per sample: a 2*3*5*4 bytes, twice; and twice the largest value, a: 480; the input is not computed
    assert [batch["a"].shape for batch in found] == [(6, 2, 3, 5)]
    assert progress.told == [("running the model", 6), 6, "end"]
    np.testing.assert_array_equal(found[0]["a"], Session(model, outputs=["a"]).run({"x": x[:6]})["a"])
    sizes = [len(batch["a"]) for batch in stream(model, data, ["a"], limit_bytes=1000)]
    assert sizes == [2, 2, 2, 1]


def test_stream_without_known_count() -> None:
    progress = Recorder()
    model = chain()
    items = [{"x": random_feeds(model)["x"]}] * 2
    assert sum(len(batch["y"]) for batch in stream(model, open_data(items), ["y"], progress=progress)) == 4
    assert progress.told == [("running the model", None), 4, "end"]


def test_batch_size_within_limits() -> None:
    model = chain()
    assert batch_size_within(model, ["a"], 480) == 1
    assert batch_size_within(model, ["a"], 960) == 2
    assert batch_size_within(model, ["a", "b", "y"], 960) == 1
    assert batch_size_within(model, ["x"], 960) == 4
    assert batch_size_within(model, ["a"], 1) == 1
    assert batch_size_within(model, ["a"], 1 << 40) == 32
    assert batch_size_within(text_model(HEADER + SCALES.format(N=4)), ["a"], 1) == 4


@pytest.mark.assets("models/resnet20_cifar10.onnx", "datasets/cifar10_calib.npz")
def test_stream_on_a_real_model(assets: Path) -> None:
    model = onnx_ir.load(assets / "models/resnet20_cifar10.onnx")
    with np.load(assets / "datasets/cifar10_calib.npz") as archive:
        pixels = archive["images"][:40]
    x = np.ascontiguousarray((pixels / np.float32(128) - 1).transpose(0, 3, 1, 2).astype(np.float32))
    values = [value.name or "" for node in model.graph if node.op_type == "Conv" for value in node.outputs]
    seen = list(stream(model, open_data(x, model=model), values))
    assert [sum(len(batch[name]) for batch in seen) for name in values] == [40] * 19
    exact = Session(model, outputs=values).run({"input": x})
    for name in values:
        joined = np.concatenate([batch[name] for batch in seen])
        np.testing.assert_allclose(joined, exact[name], rtol=1e-3, atol=1e-3)
