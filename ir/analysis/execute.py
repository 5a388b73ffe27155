"""Run models in onnxruntime: any inner value, any batch that the model takes, memory bounded.

A session is made from the graph that the wanted values need, and nothing else. Weights above 4 MiB in all are
handed over in a temporary file that onnxruntime maps, so that a session holds one copy of them and models above
the 2 GiB of a protobuf need no special case. (Measured on a 192 MiB model: serialized bytes cost 480 MiB more
while loading, `add_external_initializers` 160 MiB.)

Sessions run on one thread unless told otherwise: equal numbers on every machine, and the least CPU time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir

from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.ir.errors import InputError, OnnxpressError, UsageError, near_names
from onnxpress.ir.shapes import batch_dimension, has_shared_batch, required_inputs, size_bytes

__all__ = [
    "DEFAULT_LIMIT_BYTES",
    "BatchRunner",
    "ProgressLike",
    "Session",
    "TaskLike",
    "batch_size_within",
    "fetchable",
    "require_runtime",
    "stream",
    "track",
]

Array = npt.NDArray[Any]

# Batches beyond a few samples gain no speed (measured: 1 to 64 samples of five conv nets are within 5 %, except
# that the smallest net gains 30 % up to 4), so that a small limit costs nothing and keeps memory low.
DEFAULT_LIMIT_BYTES = 32 << 20
_LARGEST_BATCH = 32

_MAPPED_WEIGHTS_BYTES = 4 << 20  # above this, weights go through a file
_MAPPED_TENSOR_BYTES = 16 << 10  # tensors below this stay in the graph: shapes and scales, which optimizers read
_PAGE_BYTES = 4096


class TaskLike(Protocol):
    """A long step under way."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more samples are done."""
        ...


class ProgressLike(Protocol):
    """Where long steps report how far they are; `passes/instrument.py` has one."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[TaskLike]:
        """Open a step. total: samples to come, or None where nobody knows."""
        ...


def require_runtime() -> ModuleType:
    """Return onnxruntime.

    Raises:
        UsageError: it is not installed; no flavour of it is a dependency.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "no onnxruntime is installed, and running a model needs one: pip install 'onnxpress[cpu]', "
            "or 'onnxpress[gpu]' for the CUDA flavour"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


class Session:
    """A model that is loaded and can be run.

    input_names: what `run` needs. output_names: what it returns.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(
        self,
        model: onnx_ir.Model | bytes | str | os.PathLike[str],
        *,
        outputs: Sequence[str] | None = None,
        optimize: bool = False,
        fold_quantization: bool | None = None,
        threads: int = 1,
    ) -> None:
        """Load `model`, which is only read; it must not change while the session lives.

        outputs: any values of the main graph, inputs and initializers too; None for the model's own outputs.
        optimize: False runs what is written, and is the reference. True runs as a user would: fused kernels.
        fold_quantization: whether onnxruntime may rewrite Q/DQ into integer (and for weights alone, less exact)
            kernels; None: where it optimizes.
        threads: of one operator; they wait without spinning.

        Raises:
            InputError: onnxruntime refuses the model.
            UsageError: an output that is no value, or lies in a subgraph; no onnxruntime; no room for weights.
        """
        runtime = require_runtime()
        options = _session_options(runtime, optimize, optimize if fold_quantization is None else fold_quantization)
        options.intra_op_num_threads = threads
        self._constants: dict[str, Array] = {}
        self._files = contextlib.ExitStack()
        source: bytes | str
        if isinstance(model, onnx_ir.Model):
            names = _output_names(model) if outputs is None else _check_fetchable(model, outputs)
            self.input_names = tuple(str(value.name) for value in required_inputs(model))
            self._constants = _constants_among(model, names)
            computed = [name for name in dict.fromkeys(names) if name not in self._passed_on(model)]
            source = _serialize(model, computed, self._files)
        else:
            if outputs is not None:
                raise UsageError("inner values of a serialized model cannot be fetched: load it first")
            names, computed = (), []
            source = model if isinstance(model, bytes) else os.fspath(model)
        self._session = _create(runtime, source, options, skip=isinstance(model, onnx_ir.Model) and not computed)
        self._files.close()
