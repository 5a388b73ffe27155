"""The embedded model and data of `onnxpress demo`."""
