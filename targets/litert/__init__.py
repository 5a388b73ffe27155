"""LiteRT (TensorFlow Lite): .tflite files written straight from the graph, without TensorFlow."""

from onnxpress.targets.litert.emit import Emitted, emit, emit_tflite

__all__ = ["Emitted", "emit", "emit_tflite"]
