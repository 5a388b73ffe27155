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
    if not readers:
        return _why_no_reader(group)
    for op in (*readers, *group.producers):
        if op.node.graph is not model.graph:
            return f"node {op.node.name!r} lies in the body of a control flow node"
    for op in readers:
        if (reason := why_no_patches(op)) is not None:
            return f"node {op.node.name!r}: {reason}"
    return None


def _why_no_reader(group: ChannelGroup) -> str:
    """Return what reads the channels, where no linear operator that can be refitted does."""
    made = {op.node for op in group.producers}
    for member in group.constants:
        for node in dict.fromkeys(use.node for use in member.value.uses()):
            found = as_linear(node)
            if isinstance(found, str):
                return f"node {node.name!r} ({node.op_type}) reads them and cannot be refitted: {found}"
            if found is None and node not in made and node.op_type in _RECURRENT:
                return f"node {node.name!r} ({node.op_type}) reads them and cannot be refitted"
    return "no operator with weights reads them, so that nothing could make good for their loss"


_RECURRENT = ("LSTM", "GRU", "RNN")


def _why_not_chosen(group: ChannelGroup, selection: Selection) -> str | None:
    for op in group.producers or reading_consumers(group):
        if (reason := selection.reason(op.node)) is not None:
            return f"node {op.node.name!r}: {reason}"
    return None
