"""How each ONNX operator is written for LiteRT: one rule an operator, one subject a file."""

from onnxpress.targets.litert.rules.base import Rule, Site, Unit
from onnxpress.targets.litert.rules.table import rule_of

__all__ = ["Rule", "Site", "Unit", "rule_of"]
