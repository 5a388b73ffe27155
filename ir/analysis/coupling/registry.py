"""Where operators' rules meet: by operator name, what each ties and how it is rewritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import onnx_ir

from onnxpress.ir.analysis.coupling.change import Change
from onnxpress.ir.analysis.coupling.relation import Relation

__all__ = ["RULES", "Rewrite", "Rule", "rule"]

Couple: TypeAlias = Callable[[Relation, onnx_ir.Node], None]
Rewrite: TypeAlias = Callable[[Change, onnx_ir.Node], None]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is known of an operator.

    couple: writes what it ties into the relation, and says something of every axis of what it reads and
        makes; raises NoRule where it cannot. rewrite: sets attributes and constant inputs that hold sizes or
        positions, for nodes whose activations lose indices.
    """

    couple: Couple
    rewrite: Rewrite | None = None


RULES: dict[str, Rule] = {}


def rule(*operators: str, rewrite: Rewrite | None = None) -> Callable[[Couple], Couple]:
    """Register a function as the rule of standard operators."""

    def register(couple: Couple) -> Couple:
        for operator in operators:
            assert operator not in RULES, operator
            RULES[operator] = Rule(couple, rewrite)
        return couple

    return register
