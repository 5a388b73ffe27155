"""Run and time models on OpenVINO's CPU plugin, the runtime `openvino`, where it is installed (the extra `openvino`).

A model is compiled for the shapes of its feeds, for one stream, and computes in float32 what is not quantized. By
default the plugin would take bfloat16 where the processor has it, and round the data of products whose weights are
stored as integers (measured: 53 dB where it need lose nothing); a comparison would be of that.

Timing: see `timing`. The plugin computes on a thread of its own, so it is the process's CPU time that is read; nothing
else may run in the process meanwhile.
"""

from __future__ import annotations

import collections
import math
import re
import time
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.cost import node_macs
from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import input_ports
from onnxpress.targets.runtimes.onnxruntime_cpu import Kernels, is_quantized_on_paper
from onnxpress.targets.runtimes.onnxruntime_session import model_source
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["OPENVINO", "PRODUCTS", "CompiledModel", "OpenVino", "count_precisions", "inspect_kernels"]

# Layer types that hold the multiply-accumulates.
PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
_ADDED = re.compile(r"/(WithoutBiases|Dequantization|DequantizeLinear).*$")

_NUMBER = re.compile(r"\d+")
_WARMUP = 3  # runs that do not count
_COMPILATIONS, _LEAST_RUNS = 5, 10  # for times by node, and runs of each
_SETTINGS = {
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "PERFORMANCE_HINT": "LATENCY",
}


class CompiledModel:
    """A model compiled for feeds of one set of shapes."""

    def __init__(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> None:
        """Errors: see `Runtime.prepare`."""
        self._model, self._threads = model, threads
        self.ports = input_ports(model, feeds)
        self._request = _compile(model, feeds, threads).create_infer_request()
        self._names = [str(value.name) for value in model.graph.outputs]
        self.size_bytes = model_io.size_bytes(model)
        self.feed(feeds)

    def feed(self, feeds: Feeds) -> None:
        self._feeds = fit_feeds(feeds, self.ports)
        for name, array in self._feeds.items():
            self._request.set_tensor(name, _require().Tensor(array))

    def compute(self, *, timed: bool = True) -> None:
        try:
            self._request.infer()
        except RuntimeError as error:
            raise _refusal("run", error) from error

    def fetch(self) -> dict[str, Array]:
        outputs = [np.array(self._request.get_output_tensor(index).data) for index in range(len(self._names))]
        return dict(zip(self._names, outputs, strict=True))

    def layers(self) -> collections.Counter[str]:
        """Return layer types with the precision that each runs in, such as `Convolution in u8`."""
        counts: collections.Counter[str] = collections.Counter()
        for kind, by_precision in count_precisions(self._model, self._feeds).items():
            counts.update({f"{kind} in {precision}": count for precision, count in by_precision.items()})
        return counts

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        """Each layer's counter tells the mean of all runs since the model was compiled, in whole microseconds.

        So it is compiled several times, and each time tells one mean, less the first runs; the least of them counts.
        """
        told: dict[object, NodeTime] = {}
        runs = max(_LEAST_RUNS, math.ceil(rounds / _COMPILATIONS))
        started = time.perf_counter()
        for done in range(_COMPILATIONS):
            time.sleep(max(0.0, started + seconds * done / _COMPILATIONS - time.perf_counter()))
            compiled = _compile(self._model, self._feeds, self._threads, PERF_COUNT=True)
            origins = _origins(self._model, compiled)
            request = compiled.create_infer_request()
            for _ in range(_WARMUP):
                request.infer(self._feeds)
            first = _executed(request.get_profiling_info())
            for _ in range(runs):
                request.infer(self._feeds)
            for (name, kind), mean in _executed(request.get_profiling_info()).items():
                behind = (mean * (_WARMUP + runs) - first.get((name, kind), mean) * _WARMUP) / runs
                step = NodeTime(name, kind, max(0.0, behind), origins.get(name, ()))
                # Names of layers that it puts in are numbered, and anew each time.
                key = (step.origins or _NUMBER.sub("", name), kind)
                told[key] = min(step, told.get(key, step), key=lambda each: each.milliseconds)
        return list(told.values())

    def run(self, feeds: Feeds) -> list[Array]:
        """Return the outputs for one batch, in order."""
        self.feed(feeds)
        self.compute()
        return list(self.fetch().values())


class OpenVino:
    """OpenVINO's CPU plugin. It computes on threads of its own, so the clock is that of the whole process."""

    name = "openvino"
    title = "OpenVINO on the CPU"
    single_thread_clock: Callable[[], float] = staticmethod(time.process_time)
    node_clock: NodeClock | None = "elapsed"

    def version(self) -> str:
        return str(_require().__version__)

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> CompiledModel:
        return CompiledModel(model, feeds, threads=threads)


OPENVINO = OpenVino()


def count_precisions(model: onnx_ir.Model, feeds: Feeds) -> dict[str, dict[str, int]]:
    """Return what the plugin made of `model`: by layer type, how many run in each precision, such as "i8" or "f32".

    Raises:
        RuntimeRefusalError, UsageError: see `Runtime.prepare`.
    """
    counts: dict[str, dict[str, int]] = {}
    for node in _compile(model, feeds).get_runtime_model().get_ordered_ops():
        kind, precision = (_told(node, key) for key in ("layerType", "runtimePrecision"))
        by_precision = counts.setdefault(kind, {})
        by_precision[precision] = by_precision.get(precision, 0) + 1
    return counts


def inspect_kernels(model: onnx_ir.Model, feeds: Feeds) -> Kernels:
    """Return what the plugin made of `model`, with the layers that hold the multiply-accumulates by the model's names.

    Raises:
        RuntimeRefusalError, UsageError: see `Runtime.prepare`.
    """
    nodes = {node.name: node for node in model.graph}
    compiled = _compile(model, feeds)
    origins = _origins(model, compiled)
    operators: collections.Counter[str] = collections.Counter()
    found: dict[str, list[str]] = {"integer": [], "unfused": [], "left_float": []}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        kind, precision = (_told(layer, key) for key in ("layerType", "runtimePrecision"))
        operators[kind] += 1
        if kind in PRODUCTS:
            mine = origins[layer.get_friendly_name()]
            group = "left_float"
            if precision in ("i8", "u8"):
                group = "integer"
            elif mine and is_quantized_on_paper(nodes[mine[0]]):
                group = "unfused"
            found[group].append(mine[0] if mine else layer.get_friendly_name())
    return Kernels(operators, **{group: tuple(names) for group, names in found.items()})


def _executed(told: Iterable[Any]) -> dict[tuple[str, str], float]:
    """Return the milliseconds of each layer of one run by its name and type, of those that share both together."""
    taken: dict[tuple[str, str], float] = {}
    for each in told:
        if each.status.name == "EXECUTED":
            key = (each.node_name, each.exec_type)
            taken[key] = taken.get(key, 0.0) + each.real_time.total_seconds() * 1e3
    return taken


def _origins(model: onnx_ir.Model, compiled: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the model's nodes that each layer computes, those with weights first.

    A layer tells the names of nodes or of their outputs, but not of all: of a Conv with the BatchNormalization that it
    took over, the latter's. So a node that no layer names belongs to the one that its result goes into alone.
    """
    named = {name: node.name or "" for node in model.graph for name in (node.name, node.outputs[0].name) if name}
    found: dict[str, list[str]] = {}
    for layer in compiled.get_runtime_model().get_ordered_ops():
        name = layer.get_friendly_name()
        mine = [*_find_names(name, named), *_find_names(_told(layer, "originalLayersNames"), named)]
        found[name] = list(dict.fromkeys(named[each] for each in mine))
    owner = {node: layer for layer, nodes in found.items() for node in nodes}
    for node in reversed(model.graph):
        readers = {owner.get(reader.name or "") for output in node.outputs for reader in output.consumers()}
        layer = next(iter(readers)) if len(readers) == 1 else None
        if node.name not in owner and layer is not None and not any(out.is_graph_output() for out in node.outputs):
            owner[node.name or ""] = layer
            found[layer].append(node.name or "")
    macs = {node.name or "": node_macs(node) or 0 for node in model.graph}
    return {layer: tuple(sorted(nodes, key=lambda name: -macs[name])) for layer, nodes in found.items()}


def _find_names(told: str, named: Container[str]) -> Iterator[str]:
    """Yield those of `named` in a list with commas between, which a name may hold too: of several, the longest."""
    parts = told.split(",")
    while parts:
        joined = ((size, ",".join(parts[:size])) for size in range(len(parts), 0, -1))
        size, name = next(((size, name) for size, name in joined if name in named), (1, _plain(parts[0])))
        if name in named:
            yield name
        parts = parts[size:]


def _told(layer: Any, key: str) -> str:
    return str(layer.get_rt_info()[key].astype(str))


def _plain(name: str) -> str:
    """Return the ONNX name in a layer's: what the plugin's rewrites add to it stands behind a slash."""
    return _ADDED.sub("", name)


def _compile(model: onnx_ir.Model, feeds: Feeds, threads: int = 1, **settings: Any) -> Any:
    ports = input_ports(model, feeds)
    core = _require().Core()
    with model_source(model) as source:
        try:
            read = core.read_model(source)
            read.reshape({port.get_any_name(): list(ports[port.get_any_name()].shape) for port in read.inputs})
            return core.compile_model(read, "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads, **settings})
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
