"""How a target's rules cut a model into parts: islands that run there, and what stands between them.

A node is off the target where a rule refuses it, or says that the runtime has no such operator (check `known`, whatever
its severity: onnxruntime runs it on the CPU). An island is what a runtime can take as one piece: nodes on the target,
joined by values, none of which waits for another through a node that is off it.

Every node gets a level, such that a node is not below what it reads and lies above it where one of the two is off the
target and the other is not. Nodes of one level that values join are an island. Levels are counted from the inputs, and
again from the outputs, and the fewer islands are taken: a branch that meets others behind a cut belongs there.

Nodes that follow from constants alone are not counted: they go with their reader; those that the target refuses have to
be folded first. A node with a body, or that calls a function, is off the target as soon as one node of the body is.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir

from onnxpress.targets.legality import Illegal
from onnxpress.targets.schema import Profile

__all__ = ["Change", "Partition", "partition"]

_SHOWN = 3  # names of nodes in a verdict


@dataclasses.dataclass(frozen=True)
class Change:
    """What would follow if every node of one operator, refused by one rule, ran on the target.

    nodes: their names. islands, on_target: as in `Partition`, then.
    """

    op_type: str
    rule: str
    advice: str
    nodes: tuple[str, ...]
    islands: int
    on_target: int


@dataclasses.dataclass(frozen=True)
class Partition:
    """nodes: of the main graph, those from constants left out. on_target: how many run there, in `islands` pieces.

    refused: why the model is refused as a whole, empty where it is not. changes: what cuts it, what helps most first.
    whole_models: whether the target takes it whole or not at all.
    unfolded: how many of the nodes from constants are refused.
    """

    target: str
    nodes: int
    on_target: int
    islands: int
    refused: str
    changes: tuple[Change, ...]
    whole_models: bool = False
    unfolded: int = 0

    @property
    def verdict(self) -> str:
        """Return it in plain words, in one or two sentences."""
        return self._say(reasons=True)

    @property
    def brief(self) -> str:
        """Return it without reasons and advice, for where those stand already."""
        return self._say(reasons=False)

    def _say(self, *, reasons: bool) -> str:
        if self.refused:
            return f"{self.target} refuses the model as a whole{f': {self.refused}' if reasons else ''}."
        constant = f"{_count(self.unfolded, 'constant node')} must be folded first: --passes cleanup."
        if not self.changes:
            pieces = "" if self.islands <= 1 else f", in {self.islands} pieces that share nothing"
            end = f", but {constant}" if self.unfolded else "."
            return f"The whole model runs on {self.target}: {_count(self.nodes, 'node')}{pieces}{end}"
        if self.whole_models:
            return self._whole_verdict()
        best = self.changes[0]
        advice = f"{best.advice} " if reasons else ""
        return (
            f"{self.on_target} of {_count(self.nodes, 'node')} run on {self.target}, "
            f"in {_count(self.islands, 'island')}; the rest needs another runtime, with copies between. "
            f"What helps most: {best.op_type} ({_names(best.nodes)}, rule {best.rule}). {advice}"
            f"Then {best.on_target} run there, in {_count(best.islands, 'island')}."
            f"{f' But {constant}' if self.unfolded else ''}"
        )

    def _whole_verdict(self) -> str:
        off = self.nodes - self.on_target
        causes = [f"{change.op_type} ({_names(change.nodes)})" for change in self.changes[:_SHOWN]]
        more = len(self.changes) - len(causes)
        if more:
            causes.append(f"and {_count(more, 'more operator')}")
        return (
            f"{self.target} takes whole models only: nothing can be written until {off} of "
            f"{_count(self.nodes, 'node')} {'is' if off == 1 else 'are'} gone: {'; '.join(causes)}. "
            f"{self.changes[0].advice}"
        )

    def to_json(self) -> dict[str, object]:
        """Return everything as plain values."""
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def partition(model: onnx_ir.Model, findings: Iterable[Illegal], profile: Profile) -> Partition:
    """Return how `findings` of `check_model` cut the main graph of `model`. Linear in its nodes for each cause."""
    absent = {rule.id for rule in profile.rules if rule.check == "known"}
    cutting = [found for found in findings if found.severity == "illegal" or found.rule in absent]
    graph = _Graph(model)
    refused = "; ".join(_of_no_node(cutting, graph, whole_models=profile.whole_models))
    by_cause: dict[tuple[str, str], list[Illegal]] = collections.defaultdict(list)
    off: dict[onnx_ir.Node, set[tuple[str, str]]] = collections.defaultdict(set)
    unfolded: set[onnx_ir.Node] = set()
    for found in cutting:
        nodes = graph.outer.get(found.at, []) if found.at is not None else []
        if nodes:
            by_cause[found.op_type, found.rule].append(found)
        elif found.at is not None and found.severity == "illegal":  # what is only slow is computed once, as it loads
            unfolded.add(found.at)
        for node in nodes:
            off[node].add((found.op_type, found.rule))
    changes = [_change(graph, off, cause, same) for cause, same in by_cause.items()]
    changes.sort(key=lambda change: (change.islands, -change.on_target))
    return Partition(
        profile.name,
        len(graph.nodes),
        len(graph.nodes) - len(off),
        graph.count_islands(off),
        refused,
        tuple(changes),
        profile.whole_models,
        len(unfolded),
    )


def _of_no_node(cutting: Iterable[Illegal], graph: _Graph, *, whole_models: bool) -> Iterator[str]:
    """Yield why a model is refused as a whole; where it is taken whole, nodes that follow from constants count too."""
    for found in cutting:
        if not found.node:
            yield found.reason
        elif whole_models and found.at not in graph.outer:
            yield f"node {found.node!r} ({found.op_type}): {found.reason}"


def _change(
    graph: _Graph,
    off: Mapping[onnx_ir.Node, Collection[tuple[str, str]]],
    cause: tuple[str, str],
    found: Sequence[Illegal],
) -> Change:
    left = {node for node, causes in off.items() if set(causes) != {cause}}
    names = tuple(dict.fromkeys(each.node for each in found))
    islands = graph.count_islands(left)
    return Change(cause[0], cause[1], found[0].advice, names, islands, len(graph.nodes) - len(left))


class _Graph:
    """The nodes of a main graph that compute from its inputs, in order, and which of them reads which.

    outer: for each of them, and each node in a body or a called function, the nodes of the main graph that run it.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        self.nodes: list[onnx_ir.Node] = []
        self.sources: dict[onnx_ir.Node, list[onnx_ir.Node]] = {}
        self.outer: dict[onnx_ir.Node, list[onnx_ir.Node]] = collections.defaultdict(list)
        for node in model.graph:
            read = [value for each in _with_bodies(node) for value in each.inputs if value is not None]
            producers = [value.producer() for value in read]
            sources = [each for each in producers if each is not None and each in self.sources]
            if sources or any(value.is_graph_input() and not value.is_initializer() for value in read):
                self.nodes.append(node)
                self.sources[node] = list(dict.fromkeys(sources))
                for each in _with_functions(node, model):
                    self.outer[each].append(node)

    def count_islands(self, off: Collection[onnx_ir.Node]) -> int:
        """Return how many pieces the nodes that are not `off` form."""
        early = self._levels(off)
        return min(self._count(early, off), self._count(self._late(early, off), off))

    def _levels(self, off: Collection[onnx_ir.Node]) -> dict[onnx_ir.Node, int]:
        levels: dict[onnx_ir.Node, int] = {}
        for node in self.nodes:
            steps = (levels[source] + ((source in off) != (node in off)) for source in self.sources[node])
            levels[node] = max(steps, default=0)
        return levels

    def _late(self, early: Mapping[onnx_ir.Node, int], off: Collection[onnx_ir.Node]) -> dict[onnx_ir.Node, int]:
        """Return the highest levels at which each node still lies below what reads it."""
        bounds: dict[onnx_ir.Node, int] = {}
        levels: dict[onnx_ir.Node, int] = {}
        for node in reversed(self.nodes):
            levels[node] = bounds.get(node, early[node])
            for source in self.sources[node]:
                step = levels[node] - ((source in off) != (node in off))
                bounds[source] = min(bounds.get(source, step), step)
        return levels

    def _count(self, levels: Mapping[onnx_ir.Node, int], off: Collection[onnx_ir.Node]) -> int:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        place = {node: index for index, node in enumerate(node for node in self.nodes if node not in off)}
        joined = [
            (place[source], index)
            for node, index in place.items()
            for source in self.sources[node]
            if source in place and levels[source] == levels[node]
        ]
        ends = np.asarray(joined, np.int64).reshape(-1, 2)
        graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), (len(place), len(place)))
        return int(connected_components(graph, directed=False)[0])


def _with_bodies(node: onnx_ir.Node) -> Iterator[onnx_ir.Node]:
    yield node
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()


def _with_functions(node: onnx_ir.Node, model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Yield a node, the nodes in its bodies, and those of the functions that any of them calls, each function once."""
    called: set[onnx_ir.OperatorIdentifier] = set()
    waiting = list(_with_bodies(node))
    while waiting:
        each = waiting.pop()
        yield each
        name = each.op_identifier()
        if name in model.functions and name not in called:
            called.add(name)
            waiting += model.functions[name].all_nodes()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
