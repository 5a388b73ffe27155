"""Run and time .tflite files on LiteRT with XNNPACK, as on a phone's CPU: the runtime `litert`.

An ONNX model is written as a .tflite file first (`targets/litert`). A file has fixed sizes, those of the feeds, so
samples run one batch at a time. With one thread LiteRT computes on the calling thread, so that it is timed as
onnxruntime is (`timing`). It tells no times by operator: one delegate computes them all.
"""

from __future__ import annotations

import collections
import importlib.metadata
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.targets.litert.install import require_interpreter
from onnxpress.targets.runtimes.base import Array, Feeds, NodeClock, NodeTime, Port, fit_feeds
from onnxpress.targets.runtimes.fixed_shapes import fix_shapes
from onnxpress.targets.runtimes.quiet import quiet
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["LITERT", "LiteRt", "LiteRtSession"]

_DELEGATE = "DELEGATE"  # what the list of operators calls XNNPACK's part, which stands beside what it replaced


class LiteRtSession:
    """A loaded .tflite file.

    Inputs and outputs go by the names of the file's signature, which are those of the ONNX model.
    """

    def __init__(self, source: bytes | str | os.PathLike[str], *, threads: int = 1, xnnpack: bool = True) -> None:
        """source: the file's content, or its path. xnnpack: False computes with the kernels of LiteRT itself.

        Raises:
            UsageError: LiteRT is not installed. RuntimeRefusalError: it does not load the file.
        """
        runtime = require_interpreter()
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        self.size_bytes = len(content)
        kinds = runtime.OpResolverType
        resolver = kinds.AUTO if xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            with quiet():  # it tells of XNNPACK there
                self._interpreter = runtime.Interpreter(
                    model_content=content, num_threads=threads, experimental_op_resolver_type=resolver
                )
                self._interpreter.allocate_tensors()
                ((_, names),) = self._interpreter._get_full_signature_list().items()
        except (RuntimeError, ValueError) as error:
            raise RuntimeRefusalError(f"LiteRT: does not load the model: {one_line(error)}") from error
        taken, made = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs = _in_order(names["inputs"], [each["index"] for each in taken])
        self._outputs = _in_order(names["outputs"], [each["index"] for each in made])
        ports = {each["index"]: Port(tuple(map(int, each["shape"])), np.dtype(each["dtype"])) for each in taken}
        self.ports = {name: ports[index] for name, index in self._inputs.items()}

    def feed(self, feeds: Feeds) -> None:
        """Copy one batch into the file's inputs; floats are cast to the file's.

        Raises:
            InputError: an input has no feed, or one of another shape or kind.
        """
        for name, array in fit_feeds(feeds, self.ports).items():
            self._interpreter.set_tensor(self._inputs[name], array)

    def compute(self, *, timed: bool = True) -> None:
        """Compute, from what was fed last. timed: makes no difference.

        Raises:
            RuntimeRefusalError: the runtime fails.
        """
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise RuntimeRefusalError(f"LiteRT: does not run the model: {one_line(error)}") from error

    def fetch(self) -> dict[str, Array]:
        """Return copies of the outputs."""
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def layers(self) -> collections.Counter[str]:
        """Return the operators of the file by LiteRT's names."""
        names = (each["op_name"] for each in self._interpreter._get_ops_details())
        return collections.Counter(str(name) for name in names if name != _DELEGATE)

    def node_times(self, rounds: int, *, seconds: float = 0.0) -> list[NodeTime]:
        """None: see above."""
        return []

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs for one batch. Errors: see `feed` and `compute`."""
        self.feed(feeds)
        self.compute()
        return self.fetch()


def _in_order(names: Mapping[str, int], indices: list[int]) -> dict[str, int]:
    """Return tensors by the signature's names, which come sorted, in the order of the file."""
    return dict(sorted(names.items(), key=lambda item: indices.index(item[1])))


class LiteRt:
    """LiteRT with XNNPACK."""

    name = "litert"
    title = "LiteRT with XNNPACK"
    single_thread_clock: Callable[[], float] = staticmethod(time.thread_time)
    node_clock: NodeClock | None = None

    def version(self) -> str:
        require_interpreter()
        return importlib.metadata.version("ai-edge-litert")

    def prepare(self, model: onnx_ir.Model, feeds: Feeds, *, threads: int = 1) -> LiteRtSession:
        from onnxpress.targets.litert import emit

        require_interpreter()
        fixed = fix_shapes(model, feeds)
        try:
            content = emit(fixed.model).content
        except InputError as error:
            raise RuntimeRefusalError(f"LiteRT: does not take the model: {error}") from error
        session = LiteRtSession(content, threads=threads)
        session.feed(feeds)
        return session


LITERT = LiteRt()
