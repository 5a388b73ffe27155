"""Clean up a graph: drop what does nothing, compute once what is computed twice, fold what never changes.

In rounds, until a round finds nothing:

| step | what it does | module |
|---|---|---|
| eliminate | Identity, Dropout and other nodes whose output equals an input | `no_ops` |
| share | nodes that compute the same, large initializers with the same bytes | `duplicates` |
| merge | a Slice into the Slice that feeds it | `slices` |
| fold | constant expressions, where the file does not grow | `constants` |
| remove | nodes and initializers that nothing reads | here |

Before: Constant nodes become initializers, nodes are sorted. After: imports of unused operator sets go.

Scopes: the main graph and all bodies of If, Loop and Scan. Functions are inlined when a model is loaded.
Kept: names, order, types and shapes of inputs and outputs; metadata; names of the nodes that stay; initializers
that are inputs too, for a caller may override them; QuantizeLinear and DequantizeLinear, one pair per consumer.
Order: any. Before fold-batchnorm and equalize it clears what stands between their nodes.

Legal when: each module says so for its step.
Fidelity: exact up to rounding, and but for constant folding exact in bits.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

import onnx_ir
import onnx_ir.passes.common

from onnxpress.passes.base import Amount, Context, Declined, Pass, Rewrites, Site
from onnxpress.passes.cleanup import constants, duplicates, no_ops, slices
from onnxpress.passes.cleanup.graph_edits import amount, detach, is_removable, quote_names, value_names

__all__ = ["Cleanup"]


class Cleanup(Pass):
    """Drop dead, doubled and constant computation; merge Slices. Quantized weights stay as they are stored."""

    name = "cleanup"
    fidelity = "rounding"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Clean `model` in place until nothing is left to do."""
        journal = _Journal()
        _sort(model, journal)
        journal.removed("Constant", "turned into initializers", constants.lift(model))
        _remove_unused(model, journal)
        while _round(model, journal):
            pass
        _remove_unused_opsets(model, journal)
        journal.declined += _declined_slices(model) + constants.kept(model)
        return journal.rewrites()


def _round(model: onnx_ir.Model, journal: _Journal) -> bool:
    """Take every step once. Each shrinks the graph, so rounds come to an end."""
    before = journal.count
    _eliminate_no_ops(model, journal)
    _share_duplicates(model, journal)
    _merge_slices(model, journal)
    if not journal.gave_up and constants.has_work(model):
        folded = constants.fold(model)
        journal.fold(folded)
    _remove_unused(model, journal)
    return journal.count > before


@dataclasses.dataclass
class _Journal:
    """What was done: a site per merge and fold, and one per kind for what comes in great numbers."""

    sites: list[Site] = dataclasses.field(default_factory=list)
    declined: list[Declined] = dataclasses.field(default_factory=list)
    count: int = 0
    gave_up: bool = False
    _groups: dict[tuple[str, str], _Group] = dataclasses.field(default_factory=dict)

    def removed(self, kind: str, what: str, names: Iterable[str], freed: Amount = Amount()) -> None:
        """Add things of one kind to the group that `what` was done to."""
        group = self._groups.setdefault((kind, what), _Group())
        for name in names:
            group.names.append(name)
            self.count += 1
        ...
