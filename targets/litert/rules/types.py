"""ArgMax, ArgMin and Cast: where a file holds other numbers than reals."""

from __future__ import annotations

import onnx_ir

from onnxpress.targets.litert.layout import Demand, Touch
from onnxpress.targets.litert.rules.base import Layered, Rule, Site, Unit, first_computed, flag, rank, touch
from onnxpress.targets.litert.values import file_type

__all__ = ["ArgExtreme", "Cast"]

_CODES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4}  # schema.fbs, TensorType
_WHOLE = frozenset({"FLOAT", "INT32", "INT64"})


class ArgExtreme(Rule):
    """ARG_MAX or ARG_MIN, which drop the axis; a RESHAPE behind where ONNX keeps it. Of equals, both take the first."""

    makes = frozenset({"INT64"})

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def problem(self, node: onnx_ir.Node, opset: int) -> str | None:
        return f"select_last_index=1: {self.kind} takes the first" if flag(node, "select_last_index") else None

    def touch(self, unit: Unit, layered: Layered) -> Touch:
        keeps = flag(unit.node, "keepdims", 1) and rank(unit.result) == 4
        return touch(unit, layered, Demand.AGREE if keeps else Demand.PLAIN)

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        axis = site.axis(site.node.attributes.get_int("axis", 0), len(data.shape))
        left = [size for each, size in enumerate(data.shape) if each != axis]
        name = str(site.unit.result.name)
        made = site.graph.tensor(f"{name}/dropped" if flag(site.node, "keepdims", 1) else name, left, "int64")
        options = f"{self.kind.title().replace('_', '')}Options"
        site.operator(self.kind, [data, site.numbers("axis", axis)], made, options, outputType=_CODES["int64"])
        shape = site.values.shape(site.unit.result, site.last and len(data.shape) == 4)
        site.put(site.values.reshaped(made, shape, name))


class Cast(Rule):
    """CAST between reals and integers; nothing from reals to reals."""

    takes = _WHOLE | {"UINT8"}
    makes = _WHOLE

    def data(self, node: onnx_ir.Node) -> tuple[onnx_ir.Value, ...]:
        return first_computed(node)

    def write(self, site: Site) -> None:
        data = site.read(site.source)
        if data.dtype == file_type(site.unit.result):
            site.put(data)
            return
        result = site.new()
        fields = {"inDataType": _CODES[data.dtype], "outDataType": _CODES[result.dtype]}
        site.put(site.operator("CAST", [data], result, "CastOptions", **fields))
