"""Clean up a graph: drop what does nothing, compute once what is computed twice, fold what never changes.

In rounds, until a round finds nothing:

| step | what it does | module |
|---|---|---|
| eliminate | Identity, Dropout and other nodes whose output equals an input | `no_ops` |
| share | nodes that compute the same, large initializers with the same bytes | `duplicates` |
| merge | a Slice into the Slice that feeds it | `slices` |
| settle | the shape of a Reshape, where inference knows it | `reshapes` |
| fold | constant expressions, where the file does not grow | `constants`, `constant_rules` |
| remove | nodes and initializers that nothing reads | here |

Before: Constant nodes become initializers, nodes are sorted. After: imports of unused operator sets go.

Scopes: the main graph and all bodies of If, Loop and Scan. Functions are inlined when a model is loaded.
Kept: names, order, types and shapes of inputs and outputs; metadata; names of the nodes that stay;
initializers that are inputs too, for a caller may override them; QuantizeLinear and DequantizeLinear, as many
as there are, and weights as they are stored.
Order: any. Before fold-batchnorm and equalize it clears what stands between their nodes.

Legal when: each module says so for its step.
Fidelity: exact up to rounding, and but for constant folding exact in bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir
import onnx_ir.passes.common

from onnxpress.ir.inference import is_consistent
from onnxpress.passes.base import Amount, Context, Declined, Pass, Rewrites, Site
from onnxpress.passes.cleanup import constant_rules, constants, duplicates, no_ops, reshapes, slices
from onnxpress.passes.cleanup.graph_edits import (
    amount,
    detach,
    is_removable,
    quote_names,
    subgraphs_of,
    value_names,
)

__all__ = ["Cleanup"]

_NOTHING = Amount()


class Cleanup(Pass):
    """Drop dead, doubled and constant computation; merge Slices. Quantized weights stay as stored."""

    name = "cleanup"
    fidelity = "rounding"

    def run(self, model: onnx_ir.Model, context: Context) -> Rewrites:
        """Clean `model` in place until nothing is left to do."""
        journal = _Journal()
        _sort(model, journal)
        journal.add("Constant", "turned into an initializer", constants.lift(model))
        _remove_unused(model, journal)
        while _round(model, journal):
            pass
        _remove_unused_opsets(model, journal)
        journal.declined += _declined(model, gave_up=not journal.can_fold)
        return Rewrites(journal.sites + journal.grouped(), journal.declined)


@dataclasses.dataclass
class _Journal:
    """What was done: a site for each fold and merge, and one per kind for what comes in numbers."""

    sites: list[Site] = dataclasses.field(default_factory=list)
    declined: list[Declined] = dataclasses.field(default_factory=list)
    count: int = 0
    can_fold: bool = True
    _groups: dict[tuple[str, str], list[str]] = dataclasses.field(default_factory=dict)
    _freed: dict[tuple[str, str], Amount] = dataclasses.field(default_factory=dict)

    def add(self, kind: str, deed: str, names: Sequence[str], freed: Amount = _NOTHING) -> None:
        """Add things of one kind, by name, to those that the same deed was done to."""
        if not names:
            return
        self.count += len(names)
        self._groups.setdefault((kind, deed), []).extend(names)
        total = self._freed.get((kind, deed), _NOTHING)
        self._freed[kind, deed] = Amount(
            params=total.params + freed.params, size_bytes=total.size_bytes + freed.size_bytes
        )

    def add_sites(self, sites: Sequence[Site]) -> None:
        """Add sites that stand for themselves."""
        self.count += len(sites)
        self.sites += sites

    def grouped(self) -> list[Site]:
        """Return a site per kind and deed, named for the first thing it was done to."""
        return [
            Site(names[0], kind, before=self._freed[kind, deed], detail=_tell(deed, names))
            for (kind, deed), names in self._groups.items()
        ]


def _tell(deed: str, names: Sequence[str]) -> str:
    return deed if len(names) == 1 else f"{deed}, and {len(names) - 1} more: {quote_names(names[1:])}"


def _round(model: onnx_ir.Model, journal: _Journal) -> bool:
    """Take every step once, and say whether one found something. Each shrinks the graph, so rounds end."""
    before = journal.count
    _eliminate_no_ops(model, journal)
    _share_duplicates(model, journal)
    _merge_slices(model, journal)
    _settle_reshapes(model, journal)
    _fold_constants(model, journal)
    _remove_unused(model, journal)
    return journal.count > before


def _sort(model: onnx_ir.Model, journal: _Journal) -> None:
    if onnx_ir.passes.common.TopologicalSortPass()(model).modified:
        journal.add("Graph", "nodes sorted, producers first", [model.graph.name or ""])


def _eliminate_no_ops(model: onnx_ir.Model, journal: _Journal) -> None:
    opset = model.opset_imports.get("", 1)
    for graph in model.graphs():
        for node in graph:
            found = no_ops.match(node, opset)
            if found is not None:
                no_ops.eliminate(found)
                journal.add(node.op_type, "removed, it passes its input through", [node.name or ""])


def _share_duplicates(model: onnx_ir.Model, journal: _Journal) -> None:
    for graph in model.graphs():
        for value, earlier in duplicates.duplicate_initializers(graph):
            duplicates.share_initializer(value, earlier)
            journal.add("initializer", "shared with an equal one", [value.name or ""], amount([value]))
        for node, earlier_node in duplicates.duplicate_nodes(graph):
            duplicates.share_node(node, earlier_node)
            journal.add(node.op_type, "removed, an earlier node computes the same", [node.name or ""])


def _merge_slices(model: onnx_ir.Model, journal: _Journal) -> None:
    opset = model.opset_imports.get("", 1)
    names = None
    for graph in model.graphs():
        for node in graph:
            found = slices.match(node, opset)
            if isinstance(found, slices.Merge):
                names = value_names(model) if names is None else names
                added = slices.merge(found, model, names)
                detail = f"cuts what Slice {found.inner.name!r} cut too"
                journal.add_sites([Site(node.name or "", "Slice", after=amount(added), detail=detail)])


def _settle_reshapes(model: onnx_ir.Model, journal: _Journal) -> None:
    found = [match for match in _match_reshapes(model) if isinstance(match, reshapes.Settle)]
    names = value_names(model) if found else set()
    for one in found:
        shape = reshapes.settle(one, model, names)
        detail = f"takes the constant shape {list(one.shape)}"
        journal.add_sites([Site(one.node.name or "", "Reshape", after=amount([shape]), detail=detail)])


def _match_reshapes(model: onnx_ir.Model) -> list[reshapes.Settle | Declined | None]:
    consistent = is_consistent(model)
    return [reshapes.match(node, consistent=consistent) for node in model.graph.all_nodes()]


def _fold_constants(model: onnx_ir.Model, journal: _Journal) -> None:
    if not journal.can_fold or not constant_rules.has_work(model):
        return
    folded = constants.fold(model)
    journal.add_sites(folded.sites)
    if folded.failure is not None:
        journal.can_fold = False
        journal.declined.append(folded.failure)


def _remove_unused(model: onnx_ir.Model, journal: _Journal) -> None:
    for node in _remove_unused_nodes(model.graph):
        journal.add(node.op_type, "removed, nothing reads it", [node.name or ""])
    for graph in model.graphs():
        unused = {name: value for name, value in graph.initializers.items() if _is_unused(value)}
        for name in unused:
            graph.initializers.pop(name)
        journal.add("initializer", "removed, nothing reads it", list(unused), amount(unused.values()))


def _remove_unused_nodes(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Remove nodes that nothing reads, last first, bodies before what they read; yield each."""
    for node in reversed(graph):
        if is_removable(node):
            detach(node)
            yield node
            continue
        for body in subgraphs_of(node):
            yield from _remove_unused_nodes(body)


def _is_unused(value: onnx_ir.Value) -> bool:
    return not (value.uses() or value.is_graph_input() or value.is_graph_output())


def _remove_unused_opsets(model: onnx_ir.Model, journal: _Journal) -> None:
    before = list(model.opset_imports)
    onnx_ir.passes.common.RemoveUnusedOpsetsPass()(model)
    gone = [domain for domain in before if domain not in model.opset_imports]
    journal.add("opset import", "removed, no node is of this domain", gone)


def _declined(model: onnx_ir.Model, *, gave_up: bool) -> list[Declined]:
    """Return what the finished graph still holds of the patterns, with the clause that failed."""
    opset = model.opset_imports.get("", 1)
    matches = [*_match_reshapes(model), *(slices.match(node, opset) for node in model.graph.all_nodes())]
    return [one for one in matches if isinstance(one, Declined)] + constant_rules.kept(model, gave_up=gave_up)
