"""Which built-in passes come before which others: those that change operators, then those that change their numbers."""

from __future__ import annotations

__all__ = ["BEFORE_ENCODING", "LOW_BIT", "STRUCTURE"]

STRUCTURE = ("cleanup", "fold-batchnorm", "prune-channels", "prune-blocks", "low-rank", "separable")
BEFORE_ENCODING = (*STRUCTURE, "prune-weights", "prune-nm", "equalize")
LOW_BIT = ("quantize-weights", "ternarize", "binarize", "palettize", "power-of-two")
