"""Whether a model may run on a target: the findings behind `onnxpress check`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import BudgetError
from onnxpress.targets.base import Target, load_target
from onnxpress.targets.legality import Illegal
from onnxpress.targets.partition import Partition, partition

if TYPE_CHECKING:
    import onnx

__all__ = ["Check", "check", "first_of"]


@dataclasses.dataclass(frozen=True)
class Check:
    """What a target has against a model: what it refuses first, then what runs slowly or inexactly there, or once more
    is said to whoever builds it.

    partition: how that cuts the model into parts that run there.
    """

    model: str
    target: str
    findings: tuple[Illegal, ...]
    partition: Partition

    @property
    def illegal(self) -> tuple[Illegal, ...]:
        """The findings that keep the model from running."""
        return tuple(found for found in self.findings if found.severity == "illegal")

    @property
    def by_rule(self) -> dict[str, list[Illegal]]:
        """The findings of each rule, those that keep the model from running first."""
        rules: dict[str, list[Illegal]] = {}
        for found in self.findings:
            rules.setdefault(found.rule, []).append(found)
        return rules

    @property
    def summary(self) -> str:
        """Return whether the target runs the model, in one line that leaves what is wrong to the findings."""
        if self.legal:
            return f"{self.model} is legal on {self.target}"
        count, rules = len(self.illegal), list(dict.fromkeys(found.rule for found in self.illegal))
        places = "1 place" if count == 1 else f"{count} places"
        named = f"{'rule' if len(rules) == 1 else 'rules'} {', '.join(rules)}"
        return f"{self.model} is illegal on {self.target}: {places}, {named}"

    @property
    def legal(self) -> bool:
        """Whether the target runs the model."""
        return not self.illegal

    def require(self) -> None:
        """Do nothing when the target runs the model.

        Raises:
            BudgetError: it does not.
        """
        if self.legal:
            return
        raise BudgetError(f"{self.model} is illegal on {self.target}: {first_of(self.illegal)}")

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "model": self.model,
            "target": self.target,
            "legal": self.legal,
            "findings": [found.to_json() for found in self.findings],
            "partition": self.partition.to_json(),
        }


def first_of(illegal: Sequence[Illegal]) -> str:
    """Return the first place, and how many more there are."""
    count = len(illegal) - 1
    more = f" And {count} more {'places' if count > 1 else 'place'}." if count else ""
    return f"{illegal[0]}{more}"


def check(
    model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model,
    *,
    target: str | os.PathLike[str] | Target = "host-cpu",
) -> Check:
    """Find what in `model` the target cannot run, or runs badly. The model is neither run nor changed.

    Raises:
        UsageError: there is no such target. InputError: the model cannot be loaded.
    """
    chosen = target if isinstance(target, Target) else load_target(target)
    loaded = model_io.load(model)
    findings = sorted(chosen.check(loaded), key=lambda found: found.severity != "illegal")
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else loaded.graph.name
    return Check(name or "model", chosen.name, tuple(findings), partition(loaded, findings, chosen.profile))
