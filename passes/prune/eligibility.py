"""Which channel groups of a model may lose channels, and why the others may not."""

from __future__ import annotations

import onnx_ir

from onnxpress.ir.analysis.channels import ChannelGroup, Coupling
from onnxpress.ir.analysis.patches import why_no_patches
from onnxpress.ir.linear import as_linear
from onnxpress.passes.base import Declined
from onnxpress.passes.prune.channel_paths import reading_consumers
from onnxpress.passes.prune.scores import Score, why_no_score
from onnxpress.passes.selectors import Selection

__all__ = ["divide", "why_not_prunable"]

_RECURRENT = ("LSTM", "GRU", "RNN")


def divide(
    coupling: Coupling, model: onnx_ir.Model, selection: Selection, score: Score
) -> tuple[list[ChannelGroup], list[Declined]]:
    """Return the groups of `model` that may be cut, and why others may not. selection: of producers, else readers."""
    groups: list[ChannelGroup] = []
    declined: list[Declined] = []
    for group in coupling.groups:
        reason = why_not_prunable(group, model) or _why_not_chosen(group, selection) or why_no_score(group, score)
        if reason is None:
            groups.append(group)
        else:
            declined.append(Declined(group.name, "channels", reason))
    return groups, declined


def why_not_prunable(group: ChannelGroup, model: onnx_ir.Model) -> str | None:
    """Return why no channel of `group` can go in any way that is repaired behind it, or None."""
    if group.frozen is not None:
        return group.frozen
    readers = reading_consumers(group)
    if (reason := _why_not_refittable(group)) is not None:
        return reason
    if not readers:
        return "no operator with weights reads them, so that nothing could make good for their loss"
    for op in (*readers, *group.producers):
        if op.node.graph is not model.graph:
            return f"node {op.node.name!r} lies in the body of a control flow node"
    for op in readers:
        if (reason := why_no_patches(op)) is not None:
            return f"node {op.node.name!r}: {reason}"
        if len(op.weight_value.uses()) > 1:
            return f"node {op.node.name!r} shares its weight {op.weight_value.name!r}, which a refit would untie"
    return None


def _why_not_refittable(group: ChannelGroup) -> str | None:
    """Return which node with weights reads the channels and is no linear operator, so that nothing tells its loss."""
    linear = {op.node for op in (*group.producers, *group.consumers)}
    for member in group.constants:
        for node in dict.fromkeys(use.node for use in member.value.uses()):
            found = as_linear(node)
            if node in linear or not (isinstance(found, str) or node.op_type in _RECURRENT) or not _reads(node, group):
                continue
            because = f": {found}" if isinstance(found, str) else ""
            return f"node {node.name!r} ({node.op_type}) reads them and cannot be refitted{because}"
    return None


def _reads(node: onnx_ir.Node, group: ChannelGroup) -> bool:
    """Whether one of the activations that `node` reads holds the group's channels."""
    inputs = {value for value in node.inputs if value is not None}
    return any(not member.constant and member.value in inputs for member in group.members)


def _why_not_chosen(group: ChannelGroup, selection: Selection) -> str | None:
    for op in group.producers or reading_consumers(group):
        if (reason := selection.reason(op.node)) is not None:
            return f"node {op.node.name!r}: {reason}"
    return None
