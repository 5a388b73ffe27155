"""Which nodes a pass may touch: the `include` and `exclude` options that every node-by-node pass shares.

A selector is tried in this order: the exact name of a node, also one that holds glob characters; `type:Conv`,
an operator, or `type:com.microsoft::Gelu` with its domain, globs allowed; a glob over node names, where `*`
also runs over `/`. Case counts. Nodes of subgraphs (If, Loop and Scan bodies) are selected like all others.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

import onnx_ir

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.passes.base import SiteOptions

__all__ = ["Selection"]

_TYPE = "type:"


class Selection:
    """The nodes that `include` and `exclude` leave to a pass. `exclude` wins over `include`.

    Names are looked up once, so a node added later under a new name is outside of a non-empty `include`.
    """

    def __init__(self, include: dict[str, str] | None, exclude: dict[str, str]) -> None:
        """Keep node names with the selector that named them. include: None where every node is included."""
        self._include = include
        self._exclude = exclude

    @classmethod
    def from_options(cls, options: SiteOptions, model: onnx_ir.Model, pass_name: str) -> Selection:
        """Look the selectors of `options` up in `model`, subgraphs included.

        Raises:
            UsageError: a selector matches no node of the model as it is at this point of the pipeline.
        """
        if not options.include and not options.exclude:
            return cls(None, {})
        nodes = _Nodes(model.graph.all_nodes())
        include = nodes.select(options.include, pass_name, "include") if options.include else None
        return cls(include, nodes.select(options.exclude, pass_name, "exclude"))

    def has(self, node: onnx_ir.Node) -> bool:
        """Whether the pass may touch `node`."""
        return self.reason(node) is None

    def excludes(self, node: onnx_ir.Node) -> bool:
        """Whether `exclude` names `node`: then nothing of it may change, its numbers included."""
        return (node.name or "") in self._exclude

    def reason(self, node: onnx_ir.Node) -> str | None:
        """Say why `node` is left out, as the reason of a `Declined`; None where it is not."""
        name = node.name or ""
        if name in self._exclude:
            return f"excluded by {self._exclude[name]!r}"
        if self._include is not None and name not in self._include:
            return "not in include"
        return None


class _Nodes:
    """Names and operators of a model's nodes, indexed for selectors."""

    def __init__(self, nodes: Iterable[onnx_ir.Node]) -> None:
        self._names: dict[str, None] = {}
        self._by_type: dict[str, list[str]] = {}
        for node in nodes:
            name = node.name or ""
            self._names[name] = None
            self._by_type.setdefault(node.op_type, []).append(name)
            self._by_type.setdefault(f"{node.domain or 'ai.onnx'}::{node.op_type}", []).append(name)

    def select(self, selectors: Iterable[str], pass_name: str, option: str) -> dict[str, str]:
        """Return the name of every selected node with the first selector that named it."""
        selected: dict[str, str] = {}
        for selector in selectors:
            names = self._match(selector)
            if not names:
                advice = self._advice(selector)
                raise UsageError(f"{pass_name}: {option}={selector!r} matches no node.{advice}")
            for name in names:
                selected.setdefault(name, selector)
        return selected

    def _match(self, selector: str) -> list[str]:
        if selector in self._names:
            return [selector]
        if selector.startswith(_TYPE):
            kinds = _glob(selector.removeprefix(_TYPE), self._by_type)
            return [name for kind in kinds for name in self._by_type[kind]]
        return _glob(selector, self._names)

    def _advice(self, selector: str) -> str:
        if selector.startswith(_TYPE):
            kinds = sorted(kind for kind in self._by_type if "::" not in kind)
            near = near_names(selector.removeprefix(_TYPE), kinds)
            return f"{near} The model has the operators {', '.join(kinds) or 'none'}"
        if selector in self._by_type:
            return f" Did you mean {_TYPE + selector!r}?"
        near = near_names(selector, self._names)
        return near or f" A selector is a node's name, a glob over names, or {_TYPE}Conv"


def _glob(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names equal to `pattern`, or else those that it matches as a glob."""
    known = list(names)
    if pattern in known:
        return [pattern]
    matches = re.compile(fnmatch.translate(pattern)).match
    return [name for name in known if matches(name)]
