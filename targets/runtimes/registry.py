"""The runtimes by name. Each is imported when it is asked for."""

from __future__ import annotations

import importlib

from onnxpress.ir.errors import UsageError, near_names
from onnxpress.targets.runtimes.base import Runtime

__all__ = ["RUNTIMES", "load_runtime"]

_PACKAGE = "onnxpress.targets.runtimes"
RUNTIMES = {
    "onnxruntime-cpu": "onnxruntime:CPU",
    "onnxruntime-cuda": "onnxruntime:CUDA",
    "litert": "litert:LITERT",
    "openvino": "openvino:OPENVINO",
    "ncnn": "ncnn:NCNN",
    "mnn": "mnn:MNN",
    "tensorrt": "tensorrt:TENSORRT",
}


def load_runtime(name: str) -> Runtime:
    """Return the runtime of that name; whether it is installed is told by its `version`.

    Raises:
        UsageError: there is no such runtime (with near names).
    """
    if name not in RUNTIMES:
        raise UsageError(f"unknown runtime {name!r}.{near_names(name, RUNTIMES)} There are: {', '.join(RUNTIMES)}")
    module, constant = RUNTIMES[name].split(":")
    runtime: Runtime = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), constant)
    return runtime
