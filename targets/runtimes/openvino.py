"""Run and time models on OpenVINO's CPU plugin, where it is installed (the extra `openvino`).

A model is compiled for the shapes of its feeds, for one thread and one stream, and computes in float32 what is not
quantized: by default the plugin would take bfloat16 where the processor has it, and a comparison would be of that.

Timing: see `timing`. The plugin computes on a thread of its own, so it is the process's CPU time that is read; nothing
else may run in the process meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.errors import InputError, UsageError
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line
from onnxpress.targets.runtimes.timing import Latency, take_turns

__all__ = ["Runner", "count_precisions", "interleaved_latency", "run"]

_Array = npt.NDArray[Any]
_SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "PERFORMANCE_HINT": "LATENCY",
}


class Runner:
    """A model compiled for feeds of one set of shapes.

    Raises:
        RuntimeRefusalError: OpenVINO does not read, compile or run it. UsageError: it is not installed.
    """

    def __init__(self, model: onnx_ir.Model, feeds: Mapping[str, _Array]) -> None:
        """feeds: arrays of the shapes that will be run."""
        self._compiled = _compile(model, feeds)

    def run(self, feeds: Mapping[str, _Array]) -> list[_Array]:
        """Return the outputs in order, as new arrays."""
        try:
            found = self._compiled(dict(feeds))
        except RuntimeError as error:
            raise _refusal("run", error) from error
        return [np.array(found[output]) for output in self._compiled.outputs]


def run(model: onnx_ir.Model, feeds: Mapping[str, _Array]) -> list[_Array]:
    """Run `model` once and return its outputs in order. Errors: see `Runner`."""
    return Runner(model, feeds).run(feeds)


def interleaved_latency(
    models: Mapping[str, onnx_ir.Model],
    feeds: Mapping[str, _Array],
    *,
    rounds: int = 60,
    warmup: int = 10,
    seed: int = 0,
    max_seconds: float | None = None,
) -> dict[str, Latency]:
    """Time the models side by side on the same feeds, on one thread. `Latency.cpu_ms` is of the whole process.

    max_seconds: stop early after this time, warm-up not counted, but never before 5 rounds.

    Raises:
        RuntimeRefusalError, UsageError: see `Runner`.
    """
    requests = {name: _compile(model, feeds).create_infer_request() for name, model in models.items()}
    for request in requests.values():
        request.infer(dict(feeds))  # these inputs stay set
    return take_turns(
        {name: request.infer for name, request in requests.items()},
        rounds=rounds, warmup=warmup, seed=seed, max_seconds=max_seconds, cpu_clock=time.process_time,
    )  # fmt: skip


def count_precisions(model: onnx_ir.Model, feeds: Mapping[str, _Array]) -> dict[str, dict[str, int]]:
    """Return what the plugin made of `model`: by layer type, how many run in each precision, such as "i8" or "f32".

    Raises:
        RuntimeRefusalError, UsageError: see `Runner`.
    """
    counts: dict[str, dict[str, int]] = {}
    for node in _compile(model, feeds).get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))
        by_precision = counts.setdefault(kind, {})
        by_precision[precision] = by_precision.get(precision, 0) + 1
    return counts


def _compile(model: onnx_ir.Model, feeds: Mapping[str, _Array]) -> Any:
    openvino = _require()
    missing = [value.name for value in model.graph.inputs if value.name not in feeds]
    if missing:
        raise InputError(f"OpenVINO: no data for the input {missing[0]!r}. Give an array for each input by name")
    core = openvino.Core()
    try:
        read = core.read_model(onnx_ir.to_proto(model).SerializeToString())
        read.reshape({name: list(array.shape) for name, array in feeds.items()})
        return core.compile_model(read, "CPU", _SETTINGS)
    except RuntimeError as error:
        raise _refusal("load", error) from error


def _require() -> Any:
    try:
        import openvino
    except ImportError:
        raise UsageError('OpenVINO is not installed: pip install "onnxpress[openvino]"') from None
    return openvino


def _refusal(what: str, error: Exception) -> RuntimeRefusalError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if not line.startswith(("Exception from", "Check"))), str(error))
    return RuntimeRefusalError(f"OpenVINO: does not {what} the model: {one_line(cause)}")
