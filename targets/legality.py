"""Check a model against a target's rules: what its runtime refuses, runs badly, or silently changes.

The rules are data, in the profile's tables `rules`; each names a check and carries its source
and advice. A check looks at one node, or at one input of the model, and answers with the reason why it breaks
the rule, or None. The main graph, the bodies of If, Loop and Scan, and functions are visited. A few checks look at the
whole model at once.

Nothing is executed here, so a model for a device far away is checked in a moment.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir

from onnxpress.targets.fusion_checks import FUSION_CHECKS
from onnxpress.targets.input_checks import INPUT_CHECKS, SHAPES, given_inputs, open_shapes
from onnxpress.targets.operator_checks import OPERATOR_CHECKS
from onnxpress.targets.scale_checks import SCALE_CHECKS
from onnxpress.targets.schema import Profile, Rule, Severity
from onnxpress.targets.site import Check, Site, is_meant
from onnxpress.targets.window_checks import WINDOW_CHECKS

__all__ = ["CHECKS", "MODEL_CHECKS", "Illegal", "check_model", "model_check"]


# Every check that looks at a node, by the name that rules give it.
CHECKS: dict[str, Check] = {**FUSION_CHECKS, **OPERATOR_CHECKS, **SCALE_CHECKS, **WINDOW_CHECKS}

# And those that look at a whole model: functions that return places with node, op_type and reason. Each is loaded where
# a profile names it.
MODEL_CHECKS = {
    "litert": "onnxpress.targets.litert.check:find_problems",
}


@dataclasses.dataclass(frozen=True)
class Illegal:
    """One place where a model breaks a rule of a target.

    node: name of the node, or "" where the whole model or an input of it is meant. severity: "illegal" (the runtime
    refuses the model), "slow" (it runs, but misses the fast kernels), "inexact" (the runtime changes its numbers) or
    "setup" (it runs once whoever builds it says more than the file does). reason: what was found there, with its
    values. at: the node itself, since two may have one name.
    """

    node: str
    op_type: str
    rule: str
    severity: Severity
    reason: str
    source: str
    advice: str
    at: onnx_ir.Node | None = dataclasses.field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.op_type})" if self.node else "the model"
        return f"{where}: {self.reason} [{self.rule}, {self.source}]. {self.advice}"

    def to_json(self) -> dict[str, str]:
        """Return what can be written down: everything but the node itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "at"}


def check_model(model: onnx_ir.Model, profile: Profile) -> list[Illegal]:
    """Return every place where `model` breaks a rule of `profile`: versions and inputs first, then in graph order.

    A node that the runtime refuses is reported once, by the first rule that says so. A node of a function is reported
    once, however often the function is called.
    """
    found = [*_check_versions(model, profile), *_check_whole(model, profile.rules)]
    found += _check_inputs(model.graph, profile.rules)
    rules = [rule for rule in profile.rules if rule.check in CHECKS]
    scopes: list[onnx_ir.Model | onnx_ir.Function] = [model, *model.functions.values()]
    for scope in scopes:
        for node in scope.graph.all_nodes():
            if node.op_identifier() not in model.functions:  # a call is what the function's body is
                found += _check_node(node, rules, scope.opset_imports.get(node.domain, 1))
    return found


def _check_node(node: onnx_ir.Node, rules: Sequence[Rule], opset: int) -> Iterator[Illegal]:
    name = node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
    refused = False
    for rule in rules:
        if (rule.ops and node.op_type not in rule.ops) or (refused and rule.severity == "illegal"):
            continue
        site = Site(node, rule, opset)
        reason = CHECKS[rule.check].ask(site) if is_meant(site) else None
        if reason is not None:
            refused = refused or rule.severity == "illegal"
            yield Illegal(name, node.op_type, rule.id, rule.severity, reason, rule.source, rule.advice, node)


def _check_whole(model: onnx_ir.Model, rules: Sequence[Rule]) -> Iterator[Illegal]:
    named = {node.name: node for node in model.graph}
    for rule in rules:
        if rule.check in MODEL_CHECKS:
            for found in model_check(rule.check)(model):
                at = named.get(found.node) if found.node else None
                yield Illegal(
                    found.node, found.op_type, rule.id, rule.severity, found.reason, rule.source, rule.advice, at
                )


def model_check(name: str) -> Callable[[onnx_ir.Model], Any]:
    """Return one of `MODEL_CHECKS`."""
    module, _, function = MODEL_CHECKS[name].partition(":")
    found: Callable[[onnx_ir.Model], Any] = getattr(importlib.import_module(module), function)
    return found


def _check_inputs(graph: onnx_ir.Graph, rules: Sequence[Rule]) -> Iterator[Illegal]:
    for rule in rules:
        for value in given_inputs(graph) if rule.check in INPUT_CHECKS else ():
            reason = INPUT_CHECKS[rule.check](value)
            if reason is not None:
                advice = rule.advice.replace(SHAPES, open_shapes(graph))
                yield Illegal("", "", rule.id, rule.severity, reason, rule.source, advice)


def _check_versions(model: onnx_ir.Model, profile: Profile) -> Iterator[Illegal]:
    limits, newest = profile.opset, profile.ir_version
    opset = model.opset_imports.get("", limits.min)
    if not limits.min <= opset <= limits.max:
        reason = f"opset {opset} lies outside {limits.min} to {limits.max}"
        advice = f"Convert it with onnx.version_converter to opset {min(max(opset, limits.min), limits.max)}."
        yield Illegal("", "", "opset", "illegal", reason, limits.source, advice)
    if newest is not None and model.ir_version > newest.max:
        reason = f"IR version {model.ir_version} lies above {newest.max}"
        advice = f"Export it with ir_version={newest.max}."
        yield Illegal("", "", "ir-version", "illegal", reason, newest.source, advice)
