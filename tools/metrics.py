"""One model's numbers: what every before/after table and every JSON report is made of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxpress.ir.analysis.cost import ModelCost

__all__ = ["SQNR_CEILING_DB", "Metrics"]

# Equal results have no error to take a ratio of. Unequal float32 results stay near 150 dB.
SQNR_CEILING_DB = 200.0


@dataclasses.dataclass(frozen=True)
class Metrics:
    """One model's numbers. None: not measured, because there was nothing to measure it on.

    params: numbers stored in weights. macs: multiply-accumulates at batch 1. size_bytes: of the file with its
    external data. bits_per_weight: of the stored weights. accuracy: top-1 in percent, as the runtime runs it.
    agreement: percent of samples with the original's top-1 class. sqnr_db: of the worst output against the
    original's. latency_ms: median at batch 1, CPU time of one thread. has_unknown_macs: whether nodes of unknown shapes
    count as 0 in `macs`.
    """

    params: int
    macs: int
    size_bytes: int
    bits_per_weight: float | None = None
    accuracy: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: float | None = None
    has_unknown_macs: bool = False

    @classmethod
    def counted(cls, cost: ModelCost, size_bytes: int) -> Metrics:
        """Return the numbers that need no run: `cost` as counted, `size_bytes` as stored."""
        bits = 8 * cost.weight_bytes / cost.params if cost.params else None
        return cls(cost.params, cost.macs, size_bytes, bits, has_unknown_macs=bool(cost.unknown))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers under the keys that programs read. Equal outputs have `SQNR_CEILING_DB`."""
        sqnr = None if self.sqnr_db is None else min(self.sqnr_db, SQNR_CEILING_DB)
        return {
            "params": self.params,
            "macs": self.macs,
            "bytes": self.size_bytes,
            "bits_per_weight": self.bits_per_weight,
            "accuracy": self.accuracy,
            "agreement": self.agreement,
            "sqnr_db": sqnr,
            "latency_ms": self.latency_ms,
        }
