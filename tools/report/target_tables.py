"""Tables about targets: what they are, what their profiles may say, and what they have against a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from onnxpress.tools.report.facts import show_facts

if TYPE_CHECKING:
    from rich.console import Console

    from onnxpress.targets.base import Target
    from onnxpress.targets.legality import Illegal
    from onnxpress.targets.profile_keys import CheckInfo, Key
    from onnxpress.targets.schema import Integer
    from onnxpress.tools.legality import Check

__all__ = ["show_check", "show_schema", "show_target", "show_targets"]

_SHOWN = 3  # nodes in a row of a rule


def show_targets(console: Console, targets: Sequence[Target]) -> None:
    """Print one line for each target."""
    table = _table("target", "runtime", "default pipeline", "what it is")
    for target in targets:
        table.add_row(target.name, target.profile.runtime, target.default_pipeline, target.summary)
    console.print(table)
    console.print("The whole profile: onnxpress targets NAME. Your own: --target PROFILE.toml, see --schema")


def show_target(console: Console, target: Target) -> None:
    """Print what a target asks for and how it is served."""
    profile = target.profile
    scheme = profile.quantization
    facts = {
        "target": target.name,
        "is": target.summary,
        "runtime": profile.runtime,
        "pipeline": target.default_pipeline,
        "lowering": ", ".join(profile.lowering) or "none",
        "opset": f"{profile.opset.min} to {profile.opset.max}",
        "IR version": f"up to {profile.ir_version.max}" if profile.ir_version else "any",
        "channels": f"in multiples of {profile.channel_multiple}",
        "encodings": ", ".join(profile.encodings),
        "activations": _describe_integer(scheme.activation),
        "weights": _describe_integer(scheme.weight) + (", per channel" if scheme.weight_per_channel else ""),
        "integer": ", ".join(sorted(scheme.compute)),
        "carried": ", ".join(sorted(scheme.carry)) or "none",
        "roofline": "none" if profile.roofline is None else profile.roofline.source,
    }
    if profile.runtime == "litert":
        from onnxpress.targets.litert.rules.table import operators

        facts["operators"] = ", ".join(operators())
    show_facts(facts)
    table = _table("rule", "severity", "operators", "advice")
    for rule in profile.rules:
        table.add_row(rule.id, rule.severity, ", ".join(sorted(rule.ops)) or "all", rule.advice)
    console.print(table)


def show_schema(console: Console, keys: Sequence[Key], checks: Sequence[CheckInfo]) -> None:
    """Print every key of a profile, and every check that a rule may name."""
    table = _table("key", "value", "default", "meaning")
    for key in keys:
        table.add_row(key.name, key.type, "required" if key.is_required else key.default, key.description)
    console.print(table)
    table = _table("check of a rule", "keys that it needs", "what it asks for")
    for check in checks:
        table.add_row(check.name, ", ".join(check.needs), check.summary)
    console.print(table)


def show_check(console: Console, found: Check, *, all_nodes: bool = False) -> None:
    """Print what a target has against a model, rule by rule, and how that cuts it. all_nodes: and node by node."""
    if not found.findings:
        console.print(f"{found.model}: nothing against it on {found.target}")
        console.print(found.partition.brief)
        return
    table = _table("severity", "rule", "places", "where", "found first")
    for same in found.by_rule.values():
        table.add_row(same[0].severity, same[0].rule, str(len(same)), _places(same), same[0].reason)
    console.print(table)
    if all_nodes:
        table = _table("node", "operator", "rule", "found")
        for one in found.findings:
            table.add_row(_place(one), one.op_type, one.rule, one.reason)
        console.print(table)
    for rule, same in found.by_rule.items():
        # On one line each, however long: what they say to type is copied.
        console.print(f"{rule}: {same[0].advice}", soft_wrap=True)
        console.print(f"{' ' * len(rule)}  {same[0].source}", soft_wrap=True, style="dim")
    console.print(found.partition.brief)


def _places(found: Sequence[Illegal]) -> str:
    """Return the first few nodes, and how many there are besides."""
    names = list(dict.fromkeys(map(_place, found)))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _place(found: Illegal) -> str:
    return found.node or "the model"


def _table(*columns: str) -> Table:
    """Return an empty table of text."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _describe_integer(kind: Integer) -> str:
    zero_point = "symmetric" if kind.symmetric else "with a zero point"
    return f"{'int' if kind.signed else 'uint'}{kind.bits}, {zero_point}"
