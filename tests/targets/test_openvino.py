"""The target openvino: its rules are what the installed OpenVINO does, and lowered models run there in integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir
import pytest

from onnxpress.ir.data import open_data
from onnxpress.ir.inference import infer_shapes
from onnxpress.passes.base import Context
from onnxpress.passes.manager import PassManager
from onnxpress.passes.pipeline import build
from onnxpress.targets.base import load_target
from onnxpress.targets.legality import Illegal, check_model
from onnxpress.targets.runtimes import openvino
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from tests.passes.residual_net import residual_data, residual_net
from tests.support import Array, fill_weights, random_feeds, run, text_model

_RNG = np.random.default_rng(7)
_CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "so": np.array(0.11, np.float32),
    "z": np.array(128, np.uint8),
    "w": _RNG.integers(-63, 64, (6, 6, 3, 3)).astype(np.int8),
    "wm": _RNG.integers(-63, 64, (54, 54)).astype(np.int8),
    "wp": _RNG.integers(-63, 64, (6, 6, 1, 1)).astype(np.int8),
    "wu": _RNG.integers(0, 256, (6, 6, 3, 3)).astype(np.uint8),
    "wf": _RNG.standard_normal((6, 6, 3, 3)).astype(np.float32),
    "ws": _RNG.uniform(0.001, 0.003, 6).astype(np.float32),
    "wz": np.full(6, 128, np.uint8),
    "lu": _RNG.integers(0, 256, (6, 9)).astype(np.uint8),
    "l": _RNG.integers(-63, 64, (6, 9)).astype(np.int8),
}
_QX = "xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
_QY = "cq = QuantizeLinear(c, so, z) y = DequantizeLinear(cq, so, z)"
_CONV = f"{_QX} wd = DequantizeLinear<axis = 0>(w, ws) c = Conv(xd, wd) {_QY}"
_ROWS = "shape = Constant<value_ints = [9, 54]>() r = Reshape(x, shape)"
_POINTWISE = f"{_QX} wd = DequantizeLinear<axis = 0>(wp, ws) y = Conv<{{}}>(xd, wd)"
_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the processor has it
_ANY_TYPE = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model that keeps every rule, and the same with one thing broken.

    refused: OpenVINO does not read it. differs: it computes other numbers than onnxruntime, `by_default` only as
    users compile it, not as this project does.
    """

    rule: str
    good: str
    bad: str
    reason: str
    refused: bool = False
    differs: bool = False
    by_default: bool = False
    opset: int = 21


_CASES = [
    _Case("unknown-domain", "y = Relu(x)", "y = acme.Relu(x)", "unknown domain 'acme'", refused=True),
    _Case("operator", "y = Selu(x)", "y = Det(x)", "Det is used", refused=True),
    _Case(
        "flattened-softmax",
        "y = Softmax<axis = 3>(x)",
        "y = Softmax(x)",
        "it goes over the axes 1, 2, 3 at once",
        differs=True,
        opset=11,
    ),
    _Case(
        "flattened-softmax",
        "p = GlobalAveragePool(x) y = Softmax<axis = -3>(p)",
        "y = Softmax<axis = -2>(x)",
        "it goes over the axes 2, 3 at once",
        differs=True,
        opset=12,
    ),
    _Case(
        "padded-average",
        f"{_QX} y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(xd)",
        f"{_QX} y = AveragePool<kernel_shape = [3, 3], pads = [1, 0, 0, 0], count_include_pad = 1>(xd)",
        "it averages quantized data and their padding",
        differs=True,
    ),
    _Case(
        "padded-average",
        f"{_QX} y = AveragePool<kernel_shape = [3, 3], count_include_pad = 1>(xd)",
        f'{_QX} y = AveragePool<kernel_shape = [3, 3], auto_pad = "SAME_UPPER", count_include_pad = 1>(xd)',
        "it averages quantized data and their padding",
        differs=True,
    ),
    _Case(
        "padded-steps",
        _POINTWISE.format("strides = [2, 1], pads = [0, 1, 0, 1]"),
        _POINTWISE.format("strides = [2, 1], pads = [0, 0, 1, 0]"),
        "its kernel of 1 steps over padding of quantized data",
        differs=True,
    ),
    _Case(
        "padded-steps",
        _CONV.replace("(xd, wd)", "<strides = [2, 2], pads = [1, 1, 1, 1]>(xd, wd)"),
        _POINTWISE.format("strides = [2, 2], pads = [1, 1, 0, 0]"),
        "its kernel of 1 steps over padding of quantized data",
        differs=True,
    ),
    _Case(
        "rounded-up",
        "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 0, 1], ceil_mode = 1>(x)",
        "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1>(x)",
        "a window that ceil_mode adds would begin in the padding at the end",
        differs=True,
    ),
    _Case(
        "rounded-up",
        "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 1, 1], ceil_mode = 1, "
        "count_include_pad = 1>(x)",
        "y = AveragePool<kernel_shape = [2, 4], strides = [2, 2], pads = [0, 0, 1, 0], ceil_mode = 1, "
        "count_include_pad = 1>(x)",
        "a window that ceil_mode adds reaches beyond the padding, which it averages",
        differs=True,
    ),
    _Case(
        "rounded-data",
        f"{_ROWS} a = Cast<to = 1>(wm) b = Sub(a, s) d = Mul(b, s) y = MatMul(r, d)",
        f"{_ROWS} a = Cast<to = 1>(wm) d = Mul(s, a) y = MatMul(r, d)",
        "its weight is decoded from int8 and its data are float",
        differs=True,
        by_default=True,
    ),
    _Case(
        "rounded-data",
        f"{_ROWS} d = Cast<to = 1>(wm) y = Gemm(r, d)",
        f"{_ROWS} d = DequantizeLinear(wm, s) t = Transpose<perm = [1, 0]>(d) y = MatMul(r, t)",
        "its weight is decoded from int8 and its data are float",
        differs=True,
        by_default=True,
    ),
    _Case(
        "weight-type",
        _CONV,
        _CONV.replace("(w, ws)", "(wu, ws, wz)"),
        "its weight goes into DequantizeLinear as uint8, must be int8",
    ),
    _Case("conv-weight-axis", _CONV, _CONV.replace("axis = 0", "axis = 1"), "its weight has scales along axis 1"),
    _Case(
        "left-weight",
        f"{_QX} ld = DequantizeLinear(l, s) c = MatMul(ld, xd) {_QY}",
        f"{_QX} ld = DequantizeLinear(lu, s, z) c = MatMul(ld, xd) {_QY}",
        "its left weight goes into DequantizeLinear as uint8, must be int8",
    ),
    _Case(
        "transposed-conv",
        "c = ConvTranspose(x, wf) y = Relu(c)",
        f"{_QX} wd = DequantizeLinear<axis = 1>(w, ws) c = ConvTranspose(xd, wd) {_QY}",
        "is quantized on both sides",
    ),
    _Case(
        "float-weight-between-integers",
        _CONV,
        f"{_QX} c = Conv(xd, wf) {_QY}",
        "its weight is float32 between integers",
    ),
]


def _model(body: str, opset: int = 21) -> onnx_ir.Model:
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : {opset}, "acme" : 1]>
        g (float[1,6,9,9] x) => (float y) {{ {body} }}
    """)
    for value in {value for node in model.graph for value in node.inputs if value is not None}:
        if value.name in _CONSTANTS:
            tensor = onnx_ir.tensor(_CONSTANTS[value.name], name=value.name)
            value.const_value, value.dtype = tensor, tensor.dtype
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"{node.op_type}_{index}"
    infer_shapes(model)
    return model


def _found(body: str, opset: int = 21) -> list[Illegal]:
    return check_model(_model(body, opset), load_target("openvino").profile)


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.rule)
def test_a_rule_fires_on_what_it_is_about_and_on_nothing_else(case: _Case) -> None:
    assert _found(case.good, case.opset) == []
    found = _found(case.bad, case.opset)
    assert {each.rule for each in found} == {case.rule}
    assert all(each.reason.startswith(case.reason) for each in found)


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in _CASES} == {rule.id for rule in load_target("openvino").profile.rules}


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.rule)
def test_the_runtime_agrees(case: _Case) -> None:
    pytest.importorskip("openvino")
    model = _model(case.bad, case.opset)
    if case.differs:
        assert _is_equal(_model(case.good, case.opset), case.by_default) and not _is_equal(model, case.by_default)
        assert not case.by_default or _is_equal(model)
        return
    if case.refused:
        with pytest.raises(RuntimeRefusalError):
            _run(model, random_feeds(model))
        return
    assert _precisions(model) == {"f32"}
    if "QuantizeLinear" in case.good:
        assert _precisions(_model(case.good)) <= {"i8", "u8"}


@pytest.mark.parametrize("opset", [5, 6, 10, 13, 22])
def test_a_softmax_of_other_opsets_is_what_onnx_says(opset: int) -> None:
    assert _found("y = Softmax<axis = 1>(x)", opset) == []


@pytest.mark.parametrize("name", ["min", "max"])
def test_the_runtime_reads_both_ends_of_the_opset_range_and_any_ir_version(name: str) -> None:
    pytest.importorskip("openvino")
    model = _model("y = Relu(x)", getattr(load_target("openvino").profile.opset, name))
    model.ir_version = 15
    assert check_model(model, load_target("openvino").profile) == []
    (got,) = _run(model, {"x": np.full((1, 6, 9, 9), -2, np.float32)})
    assert not got.any()


def _is_equal(model: onnx_ir.Model, by_default: bool = False) -> bool:
    feeds = random_feeds(model)
    expected, got = run(model, feeds)[0], (_run_by_default if by_default else _run)(model, feeds)[0]
    return expected.shape == got.shape and bool(np.allclose(expected, got, atol=1e-3))


def _run_by_default(model: onnx_ir.Model, feeds: dict[str, Array]) -> list[Array]:
    import openvino as runtime

    core = runtime.Core()
    compiled = core.compile_model(core.read_model(onnx_ir.to_proto(model).SerializeToString()), "CPU", _FLOAT32)
    return list(compiled(feeds).values())


def _run(model: onnx_ir.Model, feeds: dict[str, Array]) -> list[Array]:
    return openvino.CompiledModel(model, feeds).run(feeds)


def _precisions(model: onnx_ir.Model) -> set[str]:
    """Return the precisions in which OpenVINO computes products."""
    counted = openvino.count_precisions(model, random_feeds(model))
    return {precision for kind in _ANY_TYPE for precision in counted.get(kind, {})}


@pytest.mark.parametrize("pipeline", ["quantize-int8", "ternarize, quantize-int8", "palettize, quantize-int8"])
def test_a_quantized_network_runs_in_integers_and_computes_what_it_says(pipeline: str) -> None:
    """Weights of few bits are unpacked as it compiles, and are int8 then."""
    pytest.importorskip("openvino")
    target = load_target("openvino")
    context = Context(constraints=target.constraints, data=residual_data())
    model, _ = PassManager(build(f"cleanup, fold-batchnorm, {pipeline}")).run(residual_net(), context)
    target.lower(model)
    feeds = random_feeds(model)
    counted = openvino.count_precisions(model, feeds)
    assert counted["Convolution"] == {"u8": 3} and counted["FullyConnected"] == {"u8": 1}
    (expected,), (got,) = run(model, feeds), _run(model, feeds)
    # A sum that lies between two integers is rounded to either: a step of one in a hundred of the range.
    assert np.square(expected - got).sum() < 1e-3 * np.square(expected).sum()


_PADDED = """<ir_version: 8, opset_import: ["" : 17]>
padded (float[N,3,8,8] x) => (float[N,6,4,4] y) {
    [first] a = Conv<pads = [1, 1, 1, 1]> (x, w1)
    [pool] p = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (a)
    [steps] s = Conv<strides = [2, 2], pads = [0, 0, 1, 1]> (p, w2)
    [last] y = Conv (s, w3)
}"""


def test_padding_that_its_integer_kernels_get_wrong_is_a_pad_of_its_own() -> None:
    pytest.importorskip("openvino")
    model, target = text_model(_PADDED), load_target("openvino")
    shapes = {"w1": (4, 3, 3, 3), "w2": (5, 4, 1, 1), "w3": (6, 5, 2, 2)}
    fill_weights(model, {name: _RNG.standard_normal(shape) for name, shape in shapes.items()})
    data = open_data({"x": _RNG.standard_normal((16, 3, 8, 8)).astype(np.float32)}, model=model)
    result, _ = PassManager(build("quantize-int8")).run(model, Context(constraints=target.constraints, data=data))
    report = target.lower(result)
    note = "its padding is a Pad of its own, since the runtime's is not zero"
    assert [line for line in report.notes if "padding" in line] == [f"{name!r}: {note}" for name in ("pool", "steps")]
    assert target.check(result) == []
    feeds = random_feeds(model)
    (expected,), (got,) = run(result, feeds), _run(result, feeds)
    np.testing.assert_allclose(expected, got, atol=0.01 * np.abs(expected).max())
    np.testing.assert_allclose(run(model, feeds)[0], got, atol=0.05 * np.abs(expected).max())


def test_a_model_beyond_what_a_message_holds_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("openvino").Core
    read = core.read_model

    def read_file(self: object, source: object) -> object:
        assert isinstance(source, str)
        return read(self, source)

    monkeypatch.setattr(core, "read_model", read_file)
    monkeypatch.setattr("onnxpress.targets.runtimes.onnxruntime_session._PROTOBUF_LIMIT_BYTES", 0)
    model = _model("y = Conv(x, wf)")
    feeds = random_feeds(model)
    np.testing.assert_allclose(_run(model, feeds)[0], run(model, feeds)[0], atol=1e-4)
