"""What lowering made of a model, for people and for the record."""

from __future__ import annotations

import collections
import dataclasses

__all__ = ["LoweringReport"]


@dataclasses.dataclass
class LoweringReport:
    """forms: how often each (encoding or note -> stored form) was chosen, such as "affine8 -> DequantizeLinear".

    notes: one line each for what a user should know, such as a weight that had to be stored dense.
    """

    forms: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: LoweringReport) -> None:
        """Add what a further lowering step did."""
        self.forms.update(other.forms)
        self.notes.extend(other.notes)
