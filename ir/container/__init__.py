"""The .onnxp container: any ONNX model, entropy coded, restored to the last bit.

`packing` is the door: a model to a file and back. `layout` is the file, `methods` chooses how each tensor is coded,
and every method lies in a file of its own over one coder.
"""
