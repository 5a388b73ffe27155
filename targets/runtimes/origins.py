"""Which nodes of the given model a step of onnxruntime's optimized graph computes.

The runtime keeps names where it rewrites: a fused node has the name of one of the nodes that it replaced, or of the
value that it makes, with `_token_3` where that was taken and `_nchwc` where the layout is blocked. That node anchors
the step. The others are found from there: a Conv, Gemm or MatMul goes with the first anchor behind it, a
DequantizeLinear with what reads it, and what is left (activations, sums, QuantizeLinear) with what it reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx_ir

from onnxpress.targets.patterns import computed_nodes

__all__ = ["find_origins"]

_ADDED = re.compile(r"(_nchwc)?(/MatMulAddFusion|_token_\d+)*(_nchwc)?$")
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LONGEST_CHAIN = 8  # nodes that one kernel replaces behind a Conv


def find_origins(model: onnx_ir.Model, optimized: onnx_ir.Model) -> dict[str, tuple[str, ...]]:
    """Return, by the name of each node of `optimized`, the names of the nodes of `model` that it stands for.

    The node that does most of the work comes first. Steps that the runtime put in, such as changes of layout, stand for
    none; nodes that it computed as it loaded belong to no step.
    """
    nodes = computed_nodes(model.graph)
    by_name = {node.name: node for node in nodes if node.name}
    by_output = {value.name: node for node in nodes for value in node.outputs if value.name}
    anchors: dict[onnx_ir.Node, str] = {}
    for step in optimized.graph:
        anchor = _anchor(step, by_name, by_output)
        if anchor is not None:
            anchors.setdefault(anchor, step.name or "")
    steps = dict(anchors)
    _assign_layers(nodes, anchors, steps)
    _assign_rest(nodes, steps)
    found: dict[str, list[onnx_ir.Node]] = {step.name or "": [] for step in optimized.graph}
    for node in nodes:
        if node in steps:
            found[steps[node]].append(node)
    return {step: tuple(node.name or "" for node in sorted(mine, key=_importance)) for step, mine in found.items()}


def _anchor(
    step: onnx_ir.Node, by_name: dict[str, onnx_ir.Node], by_output: dict[str, onnx_ir.Node]
) -> onnx_ir.Node | None:
    names = [step.name or "", *(value.name or "" for value in step.outputs)]
    for name in [*names, *(_ADDED.sub("", name) for name in names)]:
        found = by_name.get(name) or by_output.get(name)
        if found is not None:
            return found
    return None


def _assign_layers(
    nodes: Iterable[onnx_ir.Node], anchors: dict[onnx_ir.Node, str], steps: dict[onnx_ir.Node, str]
) -> None:
    """Give layers without an anchor of their own to the first one behind them, and what lies between as well."""
    for node in nodes:
        if node in anchors or node.op_type not in _LINEAR:
            continue
        chain = [node]
        while chain[-1] not in anchors and len(chain) < _LONGEST_CHAIN:
            readers = list(chain[-1].outputs[0].consumers())
            if len(readers) != 1 or readers[0].op_type in _LINEAR:
                break
            chain.append(readers[0])
        if chain[-1] in anchors:
            steps.update(dict.fromkeys(chain, anchors[chain[-1]]))


def _assign_rest(nodes: list[onnx_ir.Node], steps: dict[onnx_ir.Node, str]) -> None:
    for node in reversed(nodes):
        if node not in steps and node.op_type == "DequantizeLinear":
            readers = [steps[reader] for reader in node.outputs[0].consumers() if reader in steps]
            if readers:
                steps[node] = readers[0]
    place = {node: index for index, node in enumerate(nodes)}
    for node in nodes:
        if node in steps:
            continue
        found = (value.producer() for value in node.inputs if value is not None)
        producers = [producer for producer in found if producer is not None and producer in steps]
        if producers:  # a sum goes into the later of its two layers, which starts from the other's result
            steps[node] = steps[max(producers, key=lambda each: place[each])]


def _importance(node: onnx_ir.Node) -> int:
    if node.op_type in _LINEAR:
        return 0
    return 2 if node.op_type in ("QuantizeLinear", "DequantizeLinear") else 1
