"""Ask the installed onnxruntime which operators its CPU provider has a kernel for, and for which types.

The runtime refuses a model with "Could not find an implementation" when a node has none; that is known here
before anything is written, and with the node's name. The registry is the runtime's own, so it is right for
the installed version and for no other.

Not every node needs a kernel of its own type: float16 is computed in float32 through inserted Casts, and
operators that ONNX defines as functions are expanded into others.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import onnx
import onnx_ir

__all__ = ["KernelTable", "installed_kernels"]

_PROVIDER = "CPUExecutionProvider"
_NEVER_RUN = frozenset({"Constant"})  # becomes an initializer
_LAST = 2**31 - 1  # "and all later versions" in the registry


@dataclasses.dataclass(frozen=True)
class _Kernel:
    first: int
    last: int
    types: dict[str, frozenset[str]]

    def serves(self, since_version: int) -> bool:
        # As the runtime decides: an open end stands for the version the kernel was written for, none later.
        return self.first == since_version or (self.last != _LAST and self.first <= since_version <= self.last)


class KernelTable:
    """The CPU kernels of one onnxruntime."""

    def __init__(self, version: str, definitions: list[Any]) -> None:
        """definitions: what `get_all_opkernel_def` of the runtime's Python binding returns."""
        self.version = version
        self._kernels: dict[tuple[str, str], list[_Kernel]] = {}
        for found in definitions:
            if found.provider != _PROVIDER:
                continue
            first, last = found.version_range
            types = {name: frozenset(kinds) for name, kinds in found.type_constraints.items()}
            self._kernels.setdefault((found.domain, found.op_name), []).append(_Kernel(first, last, types))

    def missing(self, node: onnx_ir.Node, opset: int) -> str | None:
        """Return why the runtime has no kernel for `node`, or None where it has one or nobody can tell.

        opset: version of the node's domain that the model imports.
        """
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, domain)
        except onnx.defs.SchemaError:
            return None  # not an ONNX operator: the rule on domains speaks about it
        if node.op_type in _NEVER_RUN or _is_function(schema):
            return None
        kernels = [
            kernel for kernel in self._kernels.get((domain, node.op_type), ()) if kernel.serves(schema.since_version)
        ]
        if not kernels:
            return f"no kernel for {node.op_type} of opset {schema.since_version}"
        types = _bound_types(node, schema)
        if any(all(_accepts(kernel, types[name], name) for name in types) for kernel in kernels):
            return None
        shown = ", ".join(sorted({kind.removeprefix("tensor(").removesuffix(")") for kind in types.values()}))
        return f"no kernel for {node.op_type} of opset {schema.since_version} on {shown}"


def _is_function(schema: onnx.defs.OpSchema) -> bool:
    # The type stubs of onnx do not know these two.
    return bool(getattr(schema, "has_function", False) or getattr(schema, "has_context_dependent_function", False))


def _accepts(kernel: _Kernel, kind: str, name: str) -> bool:
    allowed = kernel.types.get(name)
    if allowed is None or kind in allowed:
        return True
    return kind == "tensor(float16)" and "tensor(float)" in allowed


def _bound_types(node: onnx_ir.Node, schema: onnx.defs.OpSchema) -> dict[str, str]:
    """Map type parameters of the schema to the element types that `node` binds them to, where known."""
    types = {}
    for values, formal in ((node.outputs, schema.outputs), (node.inputs, schema.inputs)):
        for index, value in enumerate(values):
            if formal and value is not None and isinstance(value.type, onnx_ir.TensorType):
                parameter = formal[min(index, len(formal) - 1)]  # the last one may be variadic
                types[parameter.type_str] = _type_string(value.type.dtype)
    return types


def _type_string(dtype: onnx_ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"


@functools.cache
def installed_kernels() -> KernelTable | None:
    """Return the kernels of the installed onnxruntime, or None where there is none or it does not tell."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as binding

        return KernelTable(onnxruntime.__version__, binding.get_all_opkernel_def())
    except (ImportError, AttributeError):  # not installed, or a build without the registry
        return None
