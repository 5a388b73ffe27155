"""The kernel table says what the runtime will say, without asking it to load a model."""

from __future__ import annotations

import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper

from onnxpress.targets.runtimes.onnxruntime_cpu import smoke_run
from onnxpress.targets.runtimes.onnxruntime_kernels import KernelTable, installed_kernels
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError

_UNARY = ("Abs", "Erf", "Neg", "Relu", "Sigmoid", "Sign", "Softmax", "Tanh")
_BINARY = ("Add", "Mul", "Max", "Sub")
_TYPES = ("FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64")


def _model(op: str, kind: str, opset: int = 17) -> onnx_ir.Model:
    dtype = TensorProto.DataType.Value(kind)
    inputs = ["x", "z"] if op in _BINARY else ["x"]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"], name="node")],
        "g",
        [helper.make_tensor_value_info(name, dtype, [2, 3]) for name in inputs],
        [helper.make_tensor_value_info("y", dtype, [2, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx_ir.from_proto(proto)


def _loads(model: onnx_ir.Model) -> bool:
    try:
        smoke_run(model)
    except RuntimeRefusalError as error:
        assert "NOT_IMPLEMENTED" in str(error), error
        return False
    return True


def _legal(op: str, kind: str, opset: int) -> bool:
    """Whether ONNX itself has the operator on that type: the checker speaks about the others."""
    schema = onnx.defs.get_schema(op, opset)
    allowed = schema.inputs[0].types
    return f"tensor({kind.lower()})" in allowed


def _is_function(op: str, opset: int) -> bool:
    schema = onnx.defs.get_schema(op, opset)
    return any(getattr(schema, name) for name in ("has_function", "has_context_dependent_function"))


@pytest.mark.parametrize("opset", [8, 13, 17, 22])
@pytest.mark.parametrize("op", [*_UNARY, *_BINARY])
def test_the_table_agrees_with_the_runtime(op: str, opset: int) -> None:
    table = installed_kernels()
    assert table is not None
    if op in ("Erf", "Sign") and opset < 9:
        pytest.skip("came with opset 9")
    for kind in _TYPES:
        if not _legal(op, kind, opset):
            continue
        model = _model(op, kind, opset)
        reason, loads = table.missing(model.graph[0], opset), _loads(model)
        # A function may expand into operators without a kernel: there the table keeps silent.
        assert (reason is None) == loads or (reason is None and _is_function(op, opset)), (kind, reason)


def test_reasons_name_operator_version_and_types() -> None:
    table = installed_kernels()
    assert table is not None
    assert table.missing(_model("Erf", "INT8").graph[0], 17) == "no kernel for Erf of opset 13 on int8"
    node = _model("Abs", "FLOAT", 5).graph[0]
    assert table.missing(node, 5) == "no kernel for Abs of opset 1"


class _Definition:
    """A kernel as the runtime's binding shows it."""

    domain, op_name = "", "Sigmoid"

    def __init__(self, first: int, last: int, provider: str = "CPUExecutionProvider") -> None:
        self.version_range = (first, last)
        self.type_constraints = {"T": ["tensor(float)"]}
        self.provider = provider


@pytest.mark.parametrize(
    ("definition", "served"),
    [
        (_Definition(13, 2**31 - 1), True),
        (_Definition(6, 12), False),
        (_Definition(6, 13), True),
        # An open end means: written for 6, before 13 changed the operator.
        (_Definition(6, 2**31 - 1), False),
        (_Definition(13, 13, "CUDAExecutionProvider"), False),
    ],
)
def test_versions_match_as_the_runtime_matches_them(definition: _Definition, served: bool) -> None:
    table = KernelTable("0", [definition])
    assert (table.missing(_model("Sigmoid", "FLOAT").graph[0], 17) is None) == served


def test_what_needs_no_kernel_is_not_missed() -> None:
    table = KernelTable("0", [])
    constant = onnx_ir.Node("", "Constant", [])
    assert table.missing(constant, 17) is None
    function = onnx_ir.Node("", "Softmax", [onnx_ir.val("x")])
    assert table.missing(function, 17) is None
    unknown = onnx_ir.Node("acme", "Thing", [onnx_ir.val("x")])
    assert table.missing(unknown, 1) is None
    add = onnx_ir.Node("", "Add", [onnx_ir.val("x"), onnx_ir.val("y")])
    assert table.missing(add, 17) == "no kernel for Add of opset 14"
