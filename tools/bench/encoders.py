"""Pipelines that make weights of few bits: our own passes, the same without data, and int8 to hold them against."""

from __future__ import annotations

__all__ = ["ENCODERS", "TUNED"]

ENCODERS = {
    "int8": "quantize-int8",
    "ternary": "ternarize",
    "ternary-2-scales": "ternarize{scales=2}",
    "ternary-rtn": "ternarize{method=rtn}",
    "ternary+int8": "ternarize, quantize-int8",
    "binary": "binarize",
    "binary-2": "binarize{bases=2}",
    "codebook-2": "palettize{bits=2}",
    "codebook-3": "palettize{bits=3}",
    "codebook-3-rtn": "palettize{bits=3,method=rtn}",
    "codebook-4": "palettize{bits=4}",
    "codebook-4+int8": "palettize{bits=4}, quantize-int8",
    "codebook-mixed": "palettize{bytes=0.11}",
    "power-of-two": "power-of-two",
    "int4": "quantize-weights",
    "int4-rtn": "quantize-weights{method=rtn}",
    "int4-hqq": "quantize-weights{method=hqq}",
    "int4+int8": "quantize-weights{block=0}, quantize-int8",
    "float16": "float16",
    "pack": "pack",
}
# Pipelines at strengths that a network bears, by how its name starts: Deep Compression's without its fine-tuning, and
# a low-rank split below a codebook.
TUNED = {
    "deep-compression": {
        "lenet300": "prune-weights{ratio=0.83,allocation=global}, palettize{bits=3,sensitive=same,sweeps=2}",
        "lenet5": "prune-weights{ratio=0.9,allocation=global}, palettize{bits=3,sensitive=same}",
        "vgg_small": "prune-weights{ratio=0.8,allocation=global}, palettize{bits=3,sensitive=same}",
        "squeezenet": "prune-weights{ratio=0.67,allocation=global}, palettize{bits=5,sensitive=same}",
    },
    "low-rank+codebook": {
        "lenet5": "low-rank{params=0.17}, palettize{bits=3,sensitive=same}",
    },
}
