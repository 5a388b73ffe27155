"""The runtime `ncnn`: ncnn on the CPU, which models reach through pnnx (see `pnnx`).

ncnn of today has an axis for the batch. pnnx says of each input and output which axis that is, and 233 of those whose
leading axis is like any other, such as a lone MatMul's.

It computes in float32, as agreement with the model asks for: by default ncnn would take float16 and bfloat16 where the
processor has them. With one thread it computes on the calling thread, whose CPU time was measured to be the process's.

ncnn's binding has no profiler, but an extractor computes only what it has not computed yet. So steps are timed by
asking for their outputs one after the other. On mobilenetv2 their sum is a tenth above what the whole takes at once:
each question costs a call, and caches cool.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir

from onnxpress.ir.errors import UsageError
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, Prepared, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import FixedModel, narrow
from onnxpress.targets.runtimes.pnnx import FILES, convert, find_pnnx, read_batch_axes
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line
from onnxpress.targets.runtimes.rehearsal import prepare_converted
from onnxpress.targets.runtimes.timing import bursts, undisturbed

__all__ = ["NCNN", "Ncnn", "NcnnNet"]

_TITLE = "ncnn"
_WARMUP = 3  # runs that no median sees
_HALF_PRECISION = (
    "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage",
)  # fmt: skip
_AS_IT_LIES = 1  # of Extractor.extract: hand out what was computed without converting it


class NcnnNet:
    """A converted model, for feeds of one set of shapes."""

    def __init__(self, fixed: FixedModel, folder: Path, threads: int) -> None:
        """Errors: see `Converter.open`."""
        self._ncnn, self._fixed, self._threads = _require(), fixed, threads
        self.ports = fixed.inputs
        self._axes = read_batch_axes(folder)
        self.size_bytes = sum((folder / name).stat().st_size for name in FILES)
        self._net = _load(self._ncnn, folder, threads)
        self._pool = self._ncnn.UnlockedPoolAllocator()  # outlives the extractors that are given it
        self._steps = [layer for layer in self._net.layers() if layer.type != "Input"]
        self._mats: dict[str, Any] = {}
        self._results: list[Any] = []

    def feed(self, feeds: Feeds) -> None:
        fitted = fit_feeds(feeds, self.ports)
        self._mats = {f"in{index}": self._mat(index, *item) for index, item in enumerate(fitted.items())}

    def _mat(self, index: int, name: str, array: Array) -> Any:
        try:
            mat = self._ncnn.Mat(narrow(name, array, _TITLE), batch_index=self._axes[f"in{index}"])
        except RuntimeError as error:  # more axes than it has
            raise RuntimeRefusalError(f"{_TITLE}: does not take input {name!r}: {one_line(error)}") from error
        return mat.clone()  # until now it was a view

    def compute(self, *, timed: bool = True) -> None:
        extractor = self._extractor()
        self._results = []
        for index, name in enumerate(self._fixed.outputs):
            code, mat = extractor.extract(f"out{index}")
            if code != 0:
                raise RuntimeRefusalError(f"{_TITLE}: does not compute output {name!r} (code {code})")
            self._results.append(mat)

    def fetch(self) -> dict[str, Array]:
        return {
            name: self._fixed.conform(name, mat.numpy(batch_index=self._axes[f"out{index}"]), _TITLE)
            for index, (name, mat) in enumerate(zip(self._fixed.outputs, self._results, strict=True))
        }

    def layers(self) -> collections.Counter[str]:
        return collections.Counter(str(layer.type) for layer in self._steps)

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        spread = bursts(rounds + _WARMUP, seconds)
        runs = [self._time_steps() for size in spread for _ in range(size)][_WARMUP:]
        return [
            NodeTime(str(layer.name), str(layer.type), undisturbed(times))
            for layer, times in zip(self._steps, zip(*runs, strict=True), strict=True)
        ]

    def _time_steps(self) -> list[float]:
        """Return what each step takes in milliseconds, from one run."""
        clock = time.thread_time if self._threads == 1 else time.perf_counter
        extractor = self._extractor()
        extractor.set_blob_allocator(self._pool)  # results are copied out of the extractor's own, and that costs more
        times = []
        for layer in self._steps:
            start = clock()
            codes = [extractor.extract(top, _AS_IT_LIES)[0] for top in layer.tops]
            times.append((clock() - start) * 1e3)
            if any(codes):
                raise RuntimeRefusalError(f"{_TITLE}: does not compute layer {str(layer.name)!r} (codes {codes})")
        return times

    def _extractor(self) -> Any:
        extractor = self._net.create_extractor()
        for name, mat in self._mats.items():
            extractor.input(name, mat)
        return extractor


class Ncnn:
    """ncnn on the CPU."""

    name = "ncnn"
    title = "ncnn on the CPU"
    single_thread_clock: Callable[[], float] = staticmethod(time.thread_time)
    node_clock: NodeClock | None = "CPU"

    def version(self) -> str:
        ncnn = _require()
        find_pnnx()
        return str(ncnn.__version__)

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> Prepared:
        self.version()
        return prepare_converted(self, model, feeds, threads)

    def convert(self, fixed: FixedModel, folder: Path) -> None:
        for name, output in fixed.outputs.items():
            if output.dtype.kind != "f":
                raise RuntimeRefusalError(f"{_TITLE}: gives float32 only, and output {name!r} is {output.dtype}")
        convert(fixed, folder)

    def open(self, fixed: FixedModel, folder: Path, threads: int) -> NcnnNet:
        return NcnnNet(fixed, folder, threads)


NCNN = Ncnn()


def _load(ncnn: Any, folder: Path, threads: int) -> Any:
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for option in _HALF_PRECISION:
        setattr(net.opt, option, False)
    param, weights = (str(folder / name) for name in FILES)
    if net.load_param(param) or net.load_model(weights):
        raise RuntimeRefusalError(f"{_TITLE}: does not load the model")
    return net


def _require() -> Any:
    try:
        import ncnn
    except ImportError:
        raise UsageError('ncnn is not installed: pip install "onnxpress[ncnn]" && pip install --no-deps pnnx') from None
    return ncnn
