"""Encoded weights for the tests of lowering, and what onnxruntime makes of a lowered model."""

from __future__ import annotations

import collections
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.encodings import (
    Affine,
    BFloat16,
    Binary,
    Codebook,
    Dense,
    Encoded,
    Float8,
    Float16,
    PowerOfTwo,
    Sparse,
    Ternary,
)

__all__ = ["KINDS", "encoded_weight", "optimized_operators", "stored_bytes"]


def _scales(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    return (0.05 + rng.random(shape)).astype(np.float32)


def _codes(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int, kind: Any) -> npt.NDArray[Any]:
    return rng.integers(low, high + 1, shape).astype(kind)


def _affine(rng: np.random.Generator, shape: tuple[int, ...], axis: int | None, kind: str) -> Encoded:
    options: dict[str, Any] = {"bits": int(kind.split("-")[0].removeprefix("affine"))}
    if "asymmetric" in kind:
        options |= {"symmetric": False, "signed": "unsigned" not in kind}
    if "blocks" in kind:
        options |= {"block_size": 4, "axis": 0 if axis is None else axis}
    return Affine.quantize(rng.standard_normal(shape) + 0.3, **{"axis": axis, **options})


def encoded_weight(kind: str, shape: tuple[int, ...], axis: int | None = 0, seed: int = 0) -> Encoded:
    """Return a seeded weight of one of `KINDS`. axis: along which parameters differ, None for one of each."""
    rng = np.random.default_rng(seed)
    each = () if axis is None else (shape[axis],)
    if kind.startswith("affine"):
        return _affine(rng, shape, axis, kind)
    if kind.startswith("ternary"):
        negative = _scales(rng, *each) if kind == "ternary-two-scales" else None
        return Ternary(_codes(rng, shape, -1, 1, np.int8), _scales(rng, *each), negative, axis=axis)
    if kind.startswith("binary"):
        bases = int(kind.removeprefix("binary"))
        return Binary(_codes(rng, shape, 0, 2**bases - 1, np.uint8), _scales(rng, bases, *each), axis=axis)
    if kind.startswith("power"):
        bits = int(kind.removeprefix("power"))
        largest = 2 ** (bits - 1) - 1
        exponent = rng.integers(-3, 3, each)
        return PowerOfTwo(_codes(rng, shape, -largest, largest, np.int8), exponent, bits=bits, axis=axis)
    if kind.startswith("codebook"):
        levels = int(kind.removeprefix("codebook"))
        codebook = rng.standard_normal((*each, levels)).astype(np.float32)
        codes = _codes(rng, shape, 0, levels - 1, np.uint8 if levels <= 256 else np.uint16)
        return Codebook(codes, codebook, axis=axis)
    if kind.startswith("sparse+"):
        return Sparse(rng.random(shape) < 0.4, encoded_weight(kind.removeprefix("sparse+"), shape, axis, seed))
    weights = rng.standard_normal(shape).astype(np.float32)
    if kind.startswith("float8"):
        return Float8.quantize(weights, format=kind.removeprefix("float8"), axis=axis)
    return {"float16": Float16.quantize, "bfloat16": BFloat16.quantize, "dense": Dense}[kind](weights)


KINDS = (
    *("affine2", "affine4", "affine8", "affine16", "affine4-asymmetric", "affine8-asymmetric-unsigned"),
    *("affine2-asymmetric-unsigned", "affine16-asymmetric", "affine2-blocks", "affine4-blocks", "affine8-blocks"),
    *("affine4-blocks-asymmetric", "affine16-blocks-asymmetric", "ternary", "ternary-two-scales", "binary1"),
    *("binary2", "binary3", "power2", "power3", "power4", "power5", "power6", "codebook2", "codebook3", "codebook5"),
    *("codebook8", "codebook12", "codebook16", "codebook17", "codebook100", "codebook300", "float16", "bfloat16"),
    *("float8e4m3fn", "float8e5m2", "sparse+affine4", "sparse+affine8-asymmetric-unsigned", "sparse+codebook3"),
    *("sparse+affine4-blocks-asymmetric", "sparse+ternary", "sparse+float16"),
)


def optimized_operators(model: onnx_ir.Model) -> tuple[dict[str, int], dict[str, npt.NDArray[Any]]]:
    """Return the operators that onnxruntime has left to run, and the constants that it holds then."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        proto = onnx_ir.to_proto(model).SerializeToString()
        onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        optimized = onnx_ir.load(path)
        held = {
            str(value.name): np.array(value.const_value.numpy())
            for value in optimized.graph.initializers.values()
            if value.const_value is not None
        }
    return dict(collections.Counter(node.op_type for node in optimized.graph)), held


def stored_bytes(tensors: Iterable[onnx_ir.Value]) -> int:
    """Return the bytes of the constants."""
    return sum(value.const_value.nbytes for value in tensors if value.const_value is not None)
