"""Selectors: what each form picks, which of two wins, and what one that picks nothing is told."""

from __future__ import annotations

import fnmatch

import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpress.ir.errors import UsageError
from onnxpress.passes.base import SiteOptions
from onnxpress.passes.selectors import Selection


def _model(*nodes: tuple[str, str] | tuple[str, str, str]) -> onnx_ir.Model:
    """Return a model of nodes given as (name, op_type) or (name, op_type, domain)."""
    value = onnx_ir.val("x", onnx_ir.DataType.FLOAT, [1])
    made = [onnx_ir.Node(rest[0] if rest else "", op_type, [value], name=name) for name, op_type, *rest in nodes]
    graph = onnx_ir.Graph([value], [], nodes=made, opset_imports={"": 18}, name="g")
    return onnx_ir.Model(graph, ir_version=10)


_MODEL = _model(
    ("/conv1/Conv", "Conv"),
    ("/conv1/Relu", "Relu"),
    ("/conv2/Conv", "Conv"),
    ("/up/ConvTranspose", "ConvTranspose"),
    ("block[1]", "Add"),
    ("block1", "Add"),
    ("*", "Gemm"),
    ("type:Conv", "Identity"),
    ("gelu", "Gelu", "com.microsoft"),
)
_NAMES = [node.name for node in _MODEL.graph]


def _selection(model: onnx_ir.Model = _MODEL, **options: tuple[str, ...]) -> Selection:
    return Selection.from_options(SiteOptions(**options), model, "my-pass")


def _picked(selection: Selection, model: onnx_ir.Model = _MODEL) -> list[str | None]:
    return [node.name for node in model.graph.all_nodes() if selection.has(node)]


def test_without_options_every_node_is_in() -> None:
    selection = _selection()
    assert _picked(selection) == _NAMES
    assert [selection.reason(node) for node in _MODEL.graph] == [None] * len(_NAMES)
    assert selection.has(onnx_ir.Node("", "Relu", [], name="added later"))


@pytest.mark.parametrize(
    ("selector", "picked"),
    [
        ("/conv1/Conv", ["/conv1/Conv"]),
        ("/conv1/*", ["/conv1/Conv", "/conv1/Relu"]),
        ("*Conv", ["/conv1/Conv", "/conv2/Conv", "type:Conv"]),
        ("/conv?/Conv", ["/conv1/Conv", "/conv2/Conv"]),
        ("/conv[!1]/Conv", ["/conv2/Conv"]),
        ("/*", ["/conv1/Conv", "/conv1/Relu", "/conv2/Conv", "/up/ConvTranspose"]),
        ("block[1]", ["block[1]"]),  # the exact name, although the glob means block1
        ("block[1-2]", ["block1"]),
        ("*", ["*"]),
        ("?*", list(_NAMES)),
        ("type:Conv", ["type:Conv"]),
        ("type:Con[v]", ["/conv1/Conv", "/conv2/Conv"]),
        ("type:Conv*", ["/conv1/Conv", "/conv2/Conv", "/up/ConvTranspose"]),
        ("type:Gelu", ["gelu"]),
        ("type:com.microsoft::*", ["gelu"]),
        ("type:ai.onnx::Conv", ["/conv1/Conv", "/conv2/Conv"]),
    ],
)
def test_selector_forms(selector: str, picked: list[str]) -> None:
    assert _picked(_selection(include=(selector,))) == picked
    assert _picked(_selection(exclude=(selector,))) == [name for name in _NAMES if name not in picked]


def test_type_selector_where_no_node_has_that_name() -> None:
    model = _model(("a", "Conv"), ("b", "ConvTranspose"), ("c", "Relu"))
    assert _picked(_selection(model, include=("type:Conv",)), model) == ["a"]


def test_exclude_beats_include_and_the_first_selector_is_named() -> None:
    selection = _selection(include=("type:Con[v]",), exclude=("/conv2/*", "/conv2/Conv"))
    reasons = {node.name: selection.reason(node) for node in _MODEL.graph}
    assert reasons == {
        **dict.fromkeys(_NAMES, "not in include"),
        "/conv1/Conv": None,
        "/conv2/Conv": "excluded by '/conv2/*'",
    }
    assert not selection.has(onnx_ir.Node("", "Relu", [], name="added later"))


def test_nodes_of_subgraphs_are_selected_too() -> None:
    model = onnx_ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 18]>
        main (bool c, float[2] x) => (float[2] y) {
            [choose] y = If (c) <then_branch = yes () => (float[2] a) { [inner_relu] a = Relu (x) },
                                 else_branch = no () => (float[2] b) { [inner_neg] b = Neg (x) }>
        }
    """)
    assert _picked(_selection(model, include=("inner_*",)), model) == ["inner_relu", "inner_neg"]
    assert _picked(_selection(model, exclude=("type:Neg",)), model) == ["choose", "inner_relu"]


@pytest.mark.parametrize(
    ("selector", "advice"),
    [
        ("/conv1/Con", "Did you mean '/conv1/Conv' or '/conv2/Conv' or '/conv1/Relu'?"),
        ("Conv", "Did you mean 'type:Conv'?"),
        ("com.microsoft::Gelu", "Did you mean 'type:com.microsoft::Gelu'?"),
        (
            "type:conv",
            "Did you mean 'Conv'? The model has the operators Add, Conv, ConvTranspose, Gelu, Gemm, Identity, Relu",
        ),
        ("zzz*", "A selector is a node's name, a glob over names, or type:Conv"),
        ("", "A selector is a node's name, a glob over names, or type:Conv"),
    ],
)
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_selector_that_matches_nothing(selector: str, advice: str, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        Selection.from_options(SiteOptions(**{option: ("type:Relu", selector)}), _MODEL, "my-pass")
    assert str(caught.value) == f"my-pass: {option}={selector!r} matches no node. {advice}"


def test_selector_on_an_empty_model() -> None:
    with pytest.raises(UsageError) as caught:
        _selection(_model(), exclude=("type:Conv",))
    assert str(caught.value) == ("my-pass: exclude='type:Conv' matches no node. The model has the operators none")


_WORDS = st.text(alphabet="ab/*?[]!.", min_size=1, max_size=5)


@given(st.lists(_WORDS, min_size=1, max_size=6, unique=True), _WORDS)
def test_any_selector_is_exact_first_then_a_glob(names: list[str], selector: str) -> None:
    model = _model(*((name, "Relu") for name in names))
    globbed = [name for name in names if fnmatch.fnmatchcase(name, selector)]
    expected = [selector] if selector in names else globbed
    if not expected:
        with pytest.raises(UsageError):
            _selection(model, include=(selector,))
        return
    assert _picked(_selection(model, include=(selector,)), model) == expected
