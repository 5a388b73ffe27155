"""How each ONNX operator is written for LiteRT: one rule an operator, one subject a file (`table`)."""
