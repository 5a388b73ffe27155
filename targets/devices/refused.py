"""What is said of a model that a device's runtime refuses: the runtime's own message, and the node that it is about."""

from __future__ import annotations

import re

import onnx
import onnx_ir

from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["refusal"]

_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : |Load model from \S+ failed:\s*")
_NO_OPERATOR = re.compile(r"([\w.]*):(\w+)\(-?\d+\) is not a registered")


def refusal(
    device: str, runtime: str, act: str, name: str, message: str, model: onnx_ir.Model | bytes
) -> RuntimeRefusalError:
    """Return the error. runtime: its name and version. act: `load` or `run`, which it does not. name: the model's."""
    text = one_line(_PREFIX.sub("", message.strip()))
    node = _node_of(message, model)
    told = "" if node is None or node in text else f" (node {node!r})"
    return RuntimeRefusalError(f"{device}: {runtime}: does not {act} model {name!r}: {text}{told}")


def _node_of(message: str, model: onnx_ir.Model | bytes) -> str | None:
    """Return the name of the node that a message is about: named in it, or the first of an operator named in it."""
    nodes = _nodes(model)
    for name, _, _ in nodes:
        if name and re.search(rf"['(\"]{re.escape(name)}['\")]", message):
            return name
    unknown = _NO_OPERATOR.search(message)
    if unknown is None:
        return None
    return next((name for name, domain, kind in nodes if (domain, kind) == unknown.groups()), None)


def _nodes(model: onnx_ir.Model | bytes) -> list[tuple[str, str, str]]:
    """Return (name, domain, operator) of each node; none where the bytes are no model."""
    if isinstance(model, bytes):
        try:
            model = onnx_ir.from_proto(onnx.load_model_from_string(model))
        except Exception:  # what cannot be parsed has no nodes to name
            return []
    return [(node.name or "", node.domain, node.op_type) for node in model.graph.all_nodes()]
