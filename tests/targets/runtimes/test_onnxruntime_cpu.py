"""The CPU runtime: does it run, which kernels did it get, how fast is it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.errors import BudgetError, InputError
from onnxpress.targets.runtimes import onnxruntime_session
from onnxpress.targets.runtimes.onnxruntime_cpu import (
    example_feeds,
    inspect_kernels,
    interleaved_latency,
    smoke_run,
)
from onnxpress.targets.runtimes.onnxruntime_session import ModelLike
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.timing import Latency, speedup
from tests.support import Array, text_model

_RNG = np.random.default_rng(3)


def _constants(model: onnx_ir.Model, **arrays: Array) -> onnx_ir.Model:
    for value in {value for node in model.graph for value in node.inputs if value is not None}:
        if value.name in arrays:
            tensor = onnx_ir.tensor(arrays[value.name], name=value.name)
            value.const_value, value.dtype = tensor, tensor.dtype
            value.shape = onnx_ir.Shape(tensor.shape.numpy())
            model.graph.register_initializer(value)
    return model


def _two_convs(relu_zero_point: int = 0, last_weight: str = "vd") -> onnx_ir.Model:
    """Two quantized Convs with a Relu between them. last_weight: "v" leaves the second one's in float."""
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N,6,9,9] x) => (float[N,6,9,9] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear<axis = 0>(w, ws)
            [first] c = Conv<pads = [1, 1, 1, 1]>(xd, wd)
            [relu] r = Relu(c)
            rq = QuantizeLinear(r, s, rz)
            rd = DequantizeLinear(rq, s, rz)
            vd = DequantizeLinear<axis = 0>(w, ws)
            [second] e = Conv<pads = [1, 1, 1, 1]>(rd, {last_weight})
            eq = QuantizeLinear(e, s, z)
            y = DequantizeLinear(eq, s, z)
        }}
    """)
    return _constants(
        model,
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
        rz=np.array(relu_zero_point, np.uint8),
        w=_RNG.integers(-127, 128, (6, 6, 3, 3)).astype(np.int8),
        v=_RNG.standard_normal((6, 6, 3, 3)).astype(np.float32),
        ws=np.full(6, 0.002, np.float32),
    )


def _dense(width: int, depth: int = 1) -> onnx_ir.Model:
    body = "\n".join(f"v{i + 1} = MatMul(v{i}, w)" for i in range(depth))
    model = text_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,{width}] v0) => (float[1,{width}] v{depth}) {{ {body} }}
    """)
    return _constants(model, w=np.eye(width, dtype=np.float32))


def _saved(model: onnx_ir.Model, folder: Path) -> Path:
    onnx_ir.save(model, folder / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    return folder / "model.onnx"


@pytest.mark.parametrize("form", ["model", "proto", "bytes", "path", "text path", "packed"])
def test_models_come_in_every_form(form: str, tmp_path: Path) -> None:
    model = _two_convs()
    proto = onnx_ir.to_proto(model)
    path = _saved(_two_convs(), tmp_path)
    forms: dict[str, ModelLike] = {
        "model": model,
        "proto": proto,
        "bytes": proto.SerializeToString(),
        "path": path,
        "text path": str(path),
        "packed": tmp_path / "model.onnxp",
    }
    model_io.save(model, tmp_path / "model.onnxp")
    assert smoke_run(forms[form])
    assert inspect_kernels(forms[form]).integer == ("first", "second")


def test_a_model_beyond_the_protobuf_limit_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "_PROTOBUF_LIMIT_BYTES", 16)
    model = _two_convs()
    assert smoke_run(model)
    assert inspect_kernels(model).integer == ("first", "second")


def test_a_missing_kernel_is_one_line_with_the_node() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bfloat16[2] x) => (bfloat16[2] y) { [guilty] y = Sigmoid(x) }
    """)
    with pytest.raises(RuntimeRefusalError) as caught:
        smoke_run(model)
    assert re.fullmatch(
        r"onnxruntime [\d.]+: does not load the model: NOT_IMPLEMENTED : "
        r"Could not find an implementation for Sigmoid\(13\) node with name 'guilty'",
        str(caught.value),
    )
    assert isinstance(caught.value, BudgetError) and caught.value.exit_code == 1
    assert caught.value.__cause__ is not None


def test_a_failing_run_names_the_shapes_and_stays_short() -> None:
    model = _constants(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[2,3] x) => (float[a,b] y) { y = Reshape(x, shape) }
        """),
        shape=np.array([4, 2]),
    )
    with pytest.raises(RuntimeRefusalError) as caught:
        smoke_run(model, {"x": np.ones((2, 3), np.float32)})
    message = str(caught.value)
    assert message.startswith("onnxruntime: does not run the model on x [2, 3]: ")
    assert "Reshape" in message and "\n" not in message and len(message) < 400


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(RuntimeRefusalError, match=r"^onnxruntime [\d.]+: does not load the model: "):
        smoke_run(b"no model")


def test_open_dimensions_are_guessed_until_one_runs() -> None:
    """A kernel of 20 does not fit into the first guess."""
    model = _constants(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[n,1,h,w] x) => (float[n,1,p,q] y) { y = Conv(x, k) }
        """),
        k=np.ones((1, 1, 20, 20), np.float32),
    )
    assert smoke_run(model)


def test_a_size_that_no_guess_meets_is_no_refusal() -> None:
    model = _constants(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (float[n,k] x) => (float[n,2] y) { y = MatMul(x, w) }
        """),
        w=np.ones((37, 2), np.float32),
    )
    assert not smoke_run(model)
    assert smoke_run(model, {"x": np.ones((5, 37), np.float32)})
    with pytest.raises(RuntimeRefusalError, match=r"on x \[5, 36\]: "):
        smoke_run(model, {"x": np.ones((5, 36), np.float32)})


def test_failing_on_made_up_input_is_no_refusal() -> None:
    """An index beyond its table: the number is wrong, and not the model."""
    model = _constants(
        text_model("""
            <ir_version: 8, opset_import: ["" : 17]>
            g (int64[2] i) => (float[2] y) { y = Gather(t, i) }
        """),
        t=np.ones(1, np.float32),
    )
    assert not smoke_run(model)
    assert smoke_run(model, {"i": np.zeros(2, np.int64)})
    with pytest.raises(RuntimeRefusalError, match=r"on i \[2\]: "):
        smoke_run(model, {"i": np.ones(2, np.int64)})


def test_made_up_integers_are_good_as_divisors_and_sizes() -> None:
    """A hop of 0 ends the whole process in onnxruntime's STFT, so the numbers are looked at first."""
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,16,1] x, int64 hop, int64 size, uint8[1] n, bool b) =>
          (float[1,f,c,2] y, int64 q, uint8[1] m, bool e)
        { y = STFT(x, hop, , size) q = Div(size, hop) m = Identity(n) e = Not(b) }
    """)
    feeds = example_feeds(model)
    assert {name: array.reshape(-1)[0].item() for name, array in feeds.items()} == {
        "x": 0.5,
        "hop": 1,
        "size": 1,
        "n": 1,
        "b": False,
    }
    assert smoke_run(model)


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("seq(float[2])", "SequenceLength"),
        ("optional(float[2])", "OptionalHasElement"),
        ("float8e4m3fn[2]", "Identity"),
        ("float[2000000,3000000]", "Shape"),
    ],
)
def test_inputs_that_cannot_be_made_up_leave_it_at_loading(kind: str, node: str) -> None:
    made = {"SequenceLength": "int64", "OptionalHasElement": "bool", "Identity": kind, "Shape": "int64[2]"}[node]
    model = text_model(f'<ir_version: 10, opset_import: ["" : 19]> g ({kind} x) => ({made} y) {{ y = {node}(x) }}')
    assert not smoke_run(model)


@pytest.mark.parametrize(
    ("kind", "node"), [("bool", "Not"), ("int64", "Neg"), ("float", "Neg"), ("float16", "Identity")]
)
def test_numpy_scalars_are_fed_as_arrays_without_axes(kind: str, node: str) -> None:
    model = text_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({kind} x) => ({kind} y) {{ y = {node}(x) }}')
    samples = np.ones(3, {"float": "float32"}.get(kind, kind))
    assert smoke_run(model)
    assert smoke_run(model, {"x": samples[0]}) and smoke_run(model, {"x": samples[0, ...]})


def test_example_feeds_fit_every_type_and_open_dimension() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,h] a, int64[2] b, bool[1] c, float16[2] d, string[1] e) =>
          (float[N,3,h] o, int64[2] p, bool[1] q, float16[2] r, string[1] s)
        { o = Identity(a) p = Identity(b) q = Identity(c) r = Identity(d) s = Identity(e) }
    """)
    feeds = example_feeds(model, batch=4, free_size=7)
    assert {name: (array.dtype.name, array.shape) for name, array in feeds.items()} == {
        "a": ("float32", (4, 3, 7)),
        "b": ("int64", (2,)),
        "c": ("bool", (1,)),
        "d": ("float16", (2,)),
        "e": ("object", (1,)),
    }
    assert smoke_run(model)


def test_an_input_that_cannot_be_made_up_is_no_refusal() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bfloat16[2] x) => (bfloat16[2] y) { y = Identity(x) }
    """)
    assert not smoke_run(model)
    with pytest.raises(InputError) as caught:
        example_feeds(model)
    assert str(caught.value) == ("no input can be made up for this model: 'x' is tensor(bfloat16). Give real data")


def test_external_weights_of_a_loaded_model_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx_ir.load(_saved(_two_convs(), tmp_path))
    monkeypatch.chdir("/")
    weights = [value.const_value for value in model.graph.initializers.values()]
    assert any(isinstance(weight, onnx_ir.ExternalTensor) for weight in weights)
    assert smoke_run(model)
    assert inspect_kernels(model).integer == ("first", "second")


def test_kernels_of_a_fused_model() -> None:
    kernels = inspect_kernels(_two_convs())
    assert kernels.integer == ("first", "second")
    assert kernels.unfused == () and kernels.left_float == ()
    assert kernels.operators["QLinearConv"] == 2
    assert kernels.operators["QuantizeLinear"] == kernels.operators["DequantizeLinear"] == 1


def test_an_unfused_conv_is_named_though_the_runtime_renamed_it() -> None:
    """A wrong zero point behind Relu makes a float FusedConv of the first one."""
    kernels = inspect_kernels(_two_convs(relu_zero_point=128))
    assert kernels.operators["FusedConv"] == 1
    assert kernels.unfused == ("first",)
    assert kernels.integer == ("second",)


def _quantized_product(body: str, zero_point: int) -> onnx_ir.Model:
    model = text_model(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[3,6] x) => (float[3,4] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear<axis = 1>(w, ws, wz)
            {body}
            rq = QuantizeLinear(r, s, rz)
            y = DequantizeLinear(rq, s, rz)
        }}
    """)
    return _constants(
        model,
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
        rz=np.array(zero_point, np.uint8),
        w=_RNG.integers(-127, 128, (6, 4)).astype(np.int8),
        ws=np.full(4, 0.002, np.float32),
        wz=np.zeros(4, np.int8),
        b=np.ones(4, np.float32),
    )


def test_a_fused_gemm_is_known_by_its_weight_and_a_fused_sum_by_its_name() -> None:
    gemm = "[product] c = Gemm(xd, wd) [relu] r = Relu(c)"
    assert inspect_kernels(_quantized_product(gemm, zero_point=128)).unfused == ("product",)
    total = "[product] c = MatMul(xd, wd) [sum] r = Add(c, b)"
    assert inspect_kernels(_quantized_product(total, zero_point=128)).integer == ("product",)


def test_a_packed_weight_counts_as_quantized() -> None:
    model = _constants(
        text_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            g (float[1,6,9,9] x) => (float[1,6,7,7] y) {
                p = Cast<to = 3>(w)
                q = Mul(p, m)
                d = DequantizeLinear<axis = 0>(q, ws)
                [conv] y = Conv(x, d)
            }
        """),
        w=_RNG.integers(-127, 128, (6, 6, 3, 3)).astype(np.int32),
        m=np.array(1, np.int8),
        ws=np.full(6, 0.002, np.float32),
    )
    kernels = inspect_kernels(model)
    assert (kernels.unfused, kernels.left_float) == (("conv",), ())


def test_a_conv_left_in_float_on_purpose_is_told_apart() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,6,9,9] x) => (float[1,6,7,7] y) { [conv] c = Conv(x, w) y = Relu(c) }
    """)
    kernels = inspect_kernels(_constants(model, w=np.ones((6, 6, 3, 3), np.float32)))
    assert (kernels.integer, kernels.unfused, kernels.left_float) == ((), (), ("conv",))


def test_a_float_weight_that_the_runtime_quantizes_itself_counts_as_integer() -> None:
    kernels = inspect_kernels(_two_convs(last_weight="v"))
    assert kernels.integer == ("first", "second")
    assert kernels.left_float == ()


def test_nodes_without_a_name_are_known_by_their_output() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[3,6] x) => (float[3,6] y) { y = MatMul(x, w) }
    """)
    assert inspect_kernels(_constants(model, w=np.eye(6, dtype=np.float32))).left_float == ("y",)


def test_bodies_of_control_flow_are_counted() -> None:
    model = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (bool c, float[2,2] x) => (float[2,2] y) {
            y = If (c) <
                then_branch = t () => (float[2,2] a) { [inner] a = MatMul(x, x) },
                else_branch = e () => (float[2,2] b) { b = Sigmoid(x) }
            >
        }
    """)
    kernels = inspect_kernels(model)
    assert kernels.left_float == ("inner",)
    assert kernels.operators == {"If": 1, "MatMul": 1, "Sigmoid": 1}


def test_latency_has_an_entry_for_each_round_and_clock() -> None:
    feeds = {"v0": np.ones((1, 8), np.float32)}
    found = interleaved_latency({"a": _dense(8), "b": _dense(8, 2)}, feeds, rounds=7, warmup=2)
    assert {name: (len(each.wall_ms), len(each.cpu_ms)) for name, each in found.items()} == {
        "a": (7, 7),
        "b": (7, 7),
    }
    two = interleaved_latency({"a": _dense(8)}, feeds, rounds=3, warmup=1, threads=2)["a"]
    assert len(two.wall_ms) == 3 and two.cpu_ms == ()


def test_much_more_work_takes_longer() -> None:
    feeds = {"v0": np.ones((1, 256), np.float32)}
    found = interleaved_latency({"one": _dense(256), "forty": _dense(256, 40)}, feeds, rounds=15)
    assert speedup(found["forty"], found["one"]) > 3
    assert speedup(found["one"], found["forty"]) < 1 / 3


def test_a_time_limit_keeps_at_least_five_rounds() -> None:
    feeds = {"v0": np.ones((1, 8), np.float32)}
    found = interleaved_latency({"a": _dense(8)}, feeds, rounds=10_000, max_seconds=0.0)
    assert len(found["a"].wall_ms) == 5


def test_feeds_are_cast_to_what_each_model_takes() -> None:
    half = text_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float16[1,8] v0) => (float16[1,8] y) { y = Identity(v0) }
    """)
    found = interleaved_latency({"a": _dense(8), "half": half}, {"v0": np.ones((1, 8), np.float32)}, rounds=5)
    assert set(found) == {"a", "half"}


def test_a_missing_feed_is_said() -> None:
    with pytest.raises(InputError) as caught:
        interleaved_latency({"a": _dense(8)}, {"x": np.ones((1, 8), np.float32)})
    assert str(caught.value) == "input 'v0' has no data. Given: x"


def test_speedup_prefers_the_clock_that_a_busy_machine_does_not_stretch() -> None:
    before = Latency(wall_ms=(10.0, 40.0, 10.0), cpu_ms=(8.0, 8.0, 9.0))
    after = Latency(wall_ms=(20.0, 10.0, 20.0), cpu_ms=(4.0, 4.0, 4.0))
    assert speedup(before, after) == 2.0
    assert before.median_ms == 8.0
    assert speedup(Latency(before.wall_ms), Latency(after.wall_ms)) == 0.5
    assert Latency(before.wall_ms).median_ms == 10.0


def test_the_given_model_is_not_touched() -> None:
    model = _two_convs()
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    smoke_run(model)
    inspect_kernels(model)
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert isinstance(onnx_ir.to_proto(model), onnx.ModelProto)
