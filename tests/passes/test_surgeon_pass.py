"""Passes made of graphsurgeon functions: options, equivalence, the record, and what comes back untouched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import onnx_ir
import pydantic
import pytest

from onnxpress.ir import model_io
from onnxpress.ir.encodings import Affine, encode, is_encoded
from onnxpress.ir.errors import InputError, InternalError, UsageError
from onnxpress.ir.quantization import Quantization, note, quantization_of
from onnxpress.passes import registry
from onnxpress.passes.base import Amount, Context, Pass, Rewrites, Site
from onnxpress.passes.manager import PassManager, PassRecord
from onnxpress.passes.pipeline import build
from onnxpress.passes.registry import describe, get_pass
from onnxpress.passes.surgeon_pass import surgeon_pass
from tests.support import random_feeds, run, text_model

gs = pytest.importorskip("onnx_graphsurgeon")
if TYPE_CHECKING:
    from nowhere import Unimportable  # type: ignore[import-not-found]


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = registry._Registry()
    fresh.plugins_loaded = True
    monkeypatch.setattr(registry, "_registry", fresh)


def _model() -> onnx_ir.Model:
    return model_io.load(
        text_model("""
        <ir_version: 10, opset_import: ["": 18], producer_name: "test">
        main (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
            [id] a = Identity (x)
            [mm] b = MatMul (a, w)
            [relu] y = Relu (b)
        }
    """)
    )


def _drop_identity(graph: Any) -> None:
    """Bypass Identity nodes.

    As written for graphsurgeon: unhooks nodes and leaves the rest to whoever exports.
    """
    for node in [node for node in graph.nodes if node.op == "Identity"]:
        for user in list(node.outputs[0].outputs):
            user.inputs[user.inputs.index(node.outputs[0])] = node.inputs[0]
        node.outputs.clear()


def _run(made: type[Pass], model: onnx_ir.Model, **options: Any) -> tuple[onnx_ir.Model, PassRecord]:
    result, records = PassManager([made(**options)], verify_each=True).run(model, Context())
    return result, records[0]


def test_script_becomes_a_pass_that_keeps_the_function() -> None:
    made = surgeon_pass(name="drop-identity", fidelity="bits")(_drop_identity)
    assert get_pass("drop-identity") is made
    model = _model()
    result, record = _run(made, model)
    assert [(node.name, node.op_type) for node in result.graph] == [("mm", "MatMul"), ("relu", "Relu")]
    feeds = random_feeds(model)
    assert np.array_equal(run(model, feeds)[0], run(result, feeds)[0])
    weight = Amount(params=12, macs=12, size_bytes=48)
    assert record.rewrites.sites == [
        Site("id", "Identity", detail="removed"),
        Site("mm", "MatMul", weight, weight, detail="inputs changed"),
    ]
    assert _run(made, result)[1].rewrites == Rewrites()


def test_a_function_that_does_nothing_leaves_the_very_graph() -> None:
    made = surgeon_pass(name="nothing", fidelity="bits")(lambda graph: None)
    model = _model()
    graph = model.graph
    assert made().run(model, Context()) == Rewrites()
    assert model.graph is graph


def test_left_out_inputs_are_no_change() -> None:
    model = model_io.load(
        text_model("""
        <ir_version: 10, opset_import: ["": 18]>
        main (float[N, 3] x, float low) => (float[N, 3] y) {
            [upper] h = Clip (x, , low)
            [lower] y = Clip (h, low, )
        }
    """)
    )
    made = surgeon_pass(name="nothing", fidelity="bits")(lambda graph: None)
    assert _run(made, model)[1].rewrites == Rewrites()


def test_what_the_script_leaves_alone_comes_back_as_it_was() -> None:
    model = _model()
    value = next(node for node in model.graph if node.name == "mm").outputs[0]
    note(value, Quantization(0.0, 6.0))
    value.metadata_props["k"] = "v"
    model.metadata_props["author"] = "me"
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    encode(model.graph.initializers["w"], Affine.quantize(weight.numpy(), axis=1))
    result, _ = _run(surgeon_pass(name="drop-identity", fidelity="bits")(_drop_identity), model)
    kept = next(node for node in result.graph if node.name == "mm").outputs[0]
    assert quantization_of(kept) == Quantization(0.0, 6.0)
    assert kept.metadata_props["k"] == "v"
    assert (result.metadata_props["author"], result.producer_name) == ("me", "test")
    assert is_encoded(result.graph.initializers["w"])
    assert str(result.graph.inputs[0].shape) == "[N,3]"


def test_added_changed_and_removed_sites() -> None:
    def edit(graph: Any) -> Any:
        by_name = {node.name: node for node in graph.nodes}
        by_name["relu"].op = "LeakyRelu"
        by_name["relu"].attrs["alpha"] = 0.5
        weight = by_name["mm"].inputs[1]
        weight.values = weight.values * np.float32(2)
        bias = gs.Constant("bias", np.ones(4, np.float32))
        summed = gs.Variable("summed", np.float32)
        graph.nodes.append(gs.Node("Add", "add", inputs=[by_name["mm"].outputs[0], bias], outputs=[summed]))
        by_name["relu"].inputs = [summed]
        return graph

    result, record = _run(surgeon_pass(name="edit", fidelity="lossy")(edit), _model())
    assert [node.op_type for node in result.graph] == ["Identity", "MatMul", "Add", "LeakyRelu"]
    assert [(site.name, site.kind, site.detail) for site in record.rewrites.sites] == [
        ("relu", "LeakyRelu", "was Relu"),
        ("add", "Add", "added"),
        ("w", "constant", "changed"),
        ("bias", "constant", "added"),
    ]
    sizes = [(site.before.size_bytes, site.after.size_bytes) for site in record.rewrites.sites]
    assert sizes == [(0, 0), (0, 16), (48, 48), (0, 16)]


def test_attributes_and_subgraphs_are_compared() -> None:
    model = model_io.load(
        text_model("""
        <ir_version: 10, opset_import: ["": 18]>
        main (bool c, float[N, 3] x) => (float[N, 3] y) {
            [choose] z = If (c) <
                then_branch = yes () => (float[N, 3] a) { [inner] a = LeakyRelu <alpha = 0.1> (x) },
                else_branch = no () => (float[N, 3] b) { [other] b = Identity (x) }>
            [last] y = Softmax <axis = 1> (z)
        }
    """)
    )

    def edit(graph: Any, alpha: float = 0.1) -> None:
        branch = next(node for node in graph.nodes if node.op == "If").attrs["then_branch"]
        branch.nodes[0].attrs["alpha"] = alpha

    made = surgeon_pass(name="edit", fidelity="lossy")(edit)
    assert _run(made, model)[1].rewrites == Rewrites()
    assert _run(made, model, alpha=0.5)[1].rewrites.sites == [Site("inner", "LeakyRelu", detail="attributes changed")]


def test_parameters_are_options() -> None:
    seen: list[dict[str, Any]] = []

    def tune(  # type: ignore[no-untyped-def]
        graph: Any,
        ratio: float,
        method: Literal["a", "b"] = "a",
        *,
        names: tuple[str, ...] = (),
        bound: Annotated[int, pydantic.Field(ge=1, description="at least one")] = 1,
        untyped=3,
        unimportable: Unimportable = 0.5,
        anything: Any = None,
        **ignored: Any,
    ) -> None:
        """Tune it."""
        seen.append({key: value for key, value in locals().items() if key not in ("graph", "seen")})

    made = surgeon_pass(name="tune", fidelity="lossy", after=("cleanup",), tolerance=(1e-3, 0.0))(tune)
    assert (made.after, made.tolerance, made.fidelity) == (("cleanup",), (1e-3, 0.0), "lossy")
    info = describe(made)
    assert info.summary == "Tune it."
    assert [(option.name, option.type, option.default, option.description) for option in info.options] == [
        ("ratio", "float", None, ""),
        ("method", "a | b", "a", ""),
        ("names", "list of text", "[]", ""),
        ("bound", "int, >= 1", "1", "at least one"),
        ("untyped", "int", "3", ""),
        ("unimportable", "float", "0.5", ""),
        ("anything", "Any", "none", ""),
    ]
    build("tune{ratio=1,method=b,names=[x,y],bound=2,untyped=4}")[0].run(_model(), Context())
    assert seen == [
        {
            "ratio": 1.0,
            "method": "b",
            "names": ("x", "y"),
            "bound": 2,
            "untyped": 4,
            "unimportable": 0.5,
            "anything": None,
            "ignored": {},
        }
    ]
    for text, message in {
        "tune": "tune: option 'ratio' has no default. Give it: tune{ratio=...}",
        "tune{ratio=1,bound=0}": "tune: option bound=0: input should be greater than or equal to 1",
        "tune{ratio=1,method=c}": "tune: option method='c': input should be 'a' or 'b'",
    }.items():
        with pytest.raises(UsageError) as caught:
            build(text)
        assert str(caught.value) == message


def test_partial_functions_and_callable_objects() -> None:
    class Scale:
        """Scale all weights."""

        def __call__(self, graph: Any, gain: float = 1.0, power: int = 1) -> None:
            for tensor in graph.tensors().values():
                if isinstance(tensor, gs.Constant):
                    tensor.values = tensor.values * np.float32(gain**power)

    functions: list[Callable[..., Any]] = [Scale(), functools.partial(Scale(), power=2)]
    for index, function in enumerate(functions):
        made = surgeon_pass(name=f"scale-{index}", fidelity="lossy")(function)
        result, record = _run(made, _model(), gain=3)
        assert [site.name for site in record.rewrites.sites] == ["w"]
        weight = result.graph.initializers["w"].const_value
        assert weight is not None and weight.numpy()[0, 0] == 3 * 3**index


def _underscored(graph: Any, _hidden: int = 0) -> None: ...


def _unreadable(graph: Any, table: np.ndarray[Any, Any] | None = None) -> None: ...


def _graphless(*, ratio: float = 0.5) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            _underscored,
            "surgeon_pass 'mine': parameter '_hidden' cannot be an option. Give it a name without a leading underscore",
        ),
        (_graphless, "surgeon_pass 'mine': the function must take a gs.Graph as its first argument"),
        (
            _unreadable,
            "surgeon_pass 'mine': its parameters cannot be options: Unable to generate pydantic-core schema "
            "for numpy.ndarray[typing.Any, typing.Any]. "
            "Annotate them as numbers, text, true or false, or lists of these",
        ),
        (lambda: None, "surgeon_pass 'mine': the function must take a gs.Graph as its first argument"),
    ],
)
def test_function_that_cannot_be_a_pass(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        surgeon_pass(name="mine", fidelity="bits")(function)
    assert str(caught.value) == message
    with pytest.raises(UsageError, match=r"^pass name 'cleanup' is taken: "):
        surgeon_pass(name="cleanup", fidelity="bits")(_drop_identity)


def test_function_that_returns_something_else() -> None:
    made = surgeon_pass(name="mine", fidelity="bits")(lambda graph: graph.nodes)
    with pytest.raises(UsageError) as caught:
        _run(made, _model())
    assert str(caught.value) == (
        "mine: test_function_that_returns_something_else.<locals>.<lambda> returned list. "
        "Return a gs.Graph, or None after editing in place"
    )


def test_function_that_breaks_the_graph_or_itself() -> None:
    def cut(graph: Any) -> None:
        graph.nodes[1].inputs[1] = gs.Variable("nowhere", np.float32, [3, 4])

    model = _model()
    before = model_io.to_proto_bytes(model)
    with pytest.raises(InputError, match=r"^cut: .*nowhere"):
        _run(surgeon_pass(name="cut", fidelity="bits")(cut), model)

    def fail(graph: Any) -> None:
        raise LookupError("no such layer")

    with pytest.raises(InternalError) as caught:
        _run(surgeon_pass(name="fail", fidelity="bits")(fail), model)
    assert str(caught.value).startswith("fail: failed: LookupError: no such layer. ")
    assert model_io.to_proto_bytes(model) == before
