"""onnxpress: a compiler that makes trained ONNX models smaller and faster, and proves it."""
