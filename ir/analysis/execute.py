"""Run models in onnxruntime: any inner value, any batch that the model takes, memory bounded.

A session is made from the part of the graph that the wanted values need. Weights above 4 MiB in all are
handed over in a temporary file that onnxruntime maps, so that a session holds one copy of them, and models
above the 2 GiB of a protobuf need no special case. (On a 192 MiB model, loading took 240 MiB through a file,
410 MiB through `add_external_initializers` and 580 MiB through serialized bytes.)

Sessions run on one thread unless told otherwise: equal numbers everywhere, and the least CPU time.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.partial_graph import serialize_partial
from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.ir.errors import InputError, UsageError, near_names
from onnxpress.ir.shapes import batch_dimension, has_shared_batch, required_inputs, size_bytes

__all__ = [
    "DEFAULT_LIMIT_BYTES",
    "BatchRunner",
    "ProgressLike",
    "Session",
    "SessionLike",
    "TaskLike",
    "batch_size_within",
    "fetchable",
    "require_runtime",
    "stream",
    "track",
]

_Array = npt.NDArray[Any]

# More than a few samples at once gain no speed (1 to 64 samples of four conv nets stay within 10 % of each
# other, only the smallest gains 25 % from 1 to 4), so that a low limit costs nothing.
DEFAULT_LIMIT_BYTES = 16 << 20
_LARGEST_BATCH = 32


class TaskLike(Protocol):
    """A long step under way."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more samples are done."""
        ...


class ProgressLike(Protocol):
    """Where long steps report how far they are."""

    def task(self, label: str, total: int | None = None) -> AbstractContextManager[TaskLike]:
        """Open a step for a `with` block. total: samples to come, or None where nobody knows."""
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
            "or 'onnxpress[gpu]' for CUDA"
        ) from error
    return onnxruntime  # type: ignore[no-any-return]


class Session:
    """A loaded model.

    input_names: what `run` must be fed. output_names: what it returns. constant_names: those outputs that are
    initializers, which no feed changes.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    constant_names: frozenset[str]

    def __init__(
        self,
        model: onnx_ir.Model | bytes | str | os.PathLike[str],
        *,
        outputs: Sequence[str] | None = None,
        optimize: bool = False,
        fold_quantization: bool | None = None,
        threads: int = 1,
    ) -> None:
        """Load `model`, without changing it.

        outputs: any values of the main graph, inputs and initializers too; None for the model's own that are
            tensors. Only an `onnx_ir.Model` can show inner values.
        optimize: False runs what is written, and is the reference. True fuses as it does for a user.
        fold_quantization: whether onnxruntime may turn Q/DQ into integer kernels, and Q/DQ of weights alone
            into less exact ones; None: where it optimizes.
        threads: within one operator; they wait without spinning.

        Raises:
            InputError: onnxruntime refuses the model.
            UsageError: an output that cannot be fetched; no onnxruntime; no room for the weights.
        """
        runtime = require_runtime()
        fold = optimize if fold_quantization is None else fold_quantization
        options = _session_options(runtime, optimize=optimize, fold_quantization=fold, threads=threads)
        self._session: Any = None
        # Outputs that take no computation: None for an input, or what an initializer holds.
        self._passed: dict[str, _Array | None] = {}
        if isinstance(model, onnx_ir.Model):
            self._load(runtime, options, model, outputs)
            return
        if outputs is not None:
            raise UsageError("inner values of a serialized model cannot be fetched. Load it first")
        self._session = _create(runtime, model if isinstance(model, bytes) else os.fspath(model), options)
        self.input_names = tuple(entry.name for entry in self._session.get_inputs())
        self.output_names = tuple(
            entry.name for entry in self._session.get_outputs() if entry.type.startswith("tensor(")
        )
        self.constant_names = frozenset()
        optional = (entry.name for entry in self._session.get_overridable_initializers())
        self._known_inputs = {*self.input_names, *optional}

    def _load(self, runtime: ModuleType, options: Any, model: onnx_ir.Model, outputs: Sequence[str] | None) -> None:
        graph = model.graph
        names = _tensor_outputs(model) if outputs is None else _require_fetchable(model, outputs)
        self.input_names = tuple(str(value.name) for value in required_inputs(model))
        self.output_names = tuple(dict.fromkeys(names))
        self._known_inputs = {str(value.name) for value in graph.inputs}
        for name in self.output_names:
            if name in graph.initializers:
                self._passed[name] = _constant(graph.initializers[name])
            elif name in self._known_inputs:
                self._passed[name] = None
        self.constant_names = frozenset(self._passed) - self._known_inputs
        computed = [name for name in self.output_names if name not in self._passed]
        if computed:
            self._session = _create_from_graph(runtime, model, computed, options)

    def run(self, feeds: Mapping[str, _Array]) -> dict[str, _Array]:
        """Run once.

        Raises:
            InputError: a feed is missing or unknown, or the model fails on these numbers; it names the node.
        """
        for name in self.input_names:
            if name not in feeds:
                raise InputError(f"cannot run the model: no array for the input {name!r}{_got(feeds)}")
        for name in feeds:
            if name not in self._known_inputs:
                raise InputError(f"cannot run the model: it has no input {name!r}{_hint(name, self._known_inputs)}")
        computed = [name for name in self.output_names if name not in self._passed]
        results = dict(zip(computed, self._compute(computed, feeds), strict=True))
        return {name: results[name] if name in results else self._pass_on(name, feeds) for name in self.output_names}

    def _compute(self, names: list[str], feeds: Mapping[str, _Array]) -> list[_Array]:
        if not names:
            return []
        try:
            return self._session.run(names, dict(feeds))  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime has no common base for what it raises
            raise InputError(_explain("run", error)) from error

    def _pass_on(self, name: str, feeds: Mapping[str, _Array]) -> _Array:
        constant = self._passed[name]
        return feeds[name] if name in feeds or constant is None else constant


class SessionLike(Protocol):
    """A loaded model of any runtime; see `Session`."""

    @property
    def output_names(self) -> tuple[str, ...]: ...

    @property
    def constant_names(self) -> frozenset[str]: ...

    def run(self, feeds: Mapping[str, _Array]) -> dict[str, _Array]:
        """Run once."""
        ...


class BatchRunner:
    """Runs batches of samples through a session, whatever batch the model takes.

    - A free batch takes all samples at once. Where that fails, or an output of the model then does not lead
      with the samples (a batch written into a Reshape, a mean over the batch, detections), each runs alone.
    - A fixed batch is filled up with repeats of the last sample, and the results are cut.
    - Feeds with one axis more than the model's input, or inputs without a shared batch, run sample by sample.
    """

    def __init__(self, model: onnx_ir.Model, session: SessionLike, *, batch: int | None = None) -> None:
        """session: of `model`, with any outputs. batch: the one that it takes, where the model leaves it free."""
        self._session = session
        self._ranks = {str(value.name): len(value.shape) for value in model.graph.inputs if value.shape is not None}
        self._fixed = batch_dimension(model) or batch
        outputs = {str(value.name): value for value in model.graph.outputs}
        self._leading = [name for name in session.output_names if name in outputs]
        own_lengths = any(map(_has_own_length, outputs.values()))
        self._alone = not has_shared_batch(model) or (self._fixed is None and own_lengths)

    def run(self, batch: Batch) -> dict[str, _Array]:
        """Return the session's outputs for all samples of `batch`.

        A value that leads with the batch comes as [samples, ...]. Of other values there is one of each run:
        they are stacked, or strung together in one axis where their shapes differ. A free batch is a single
        run and leaves them as they are. Initializers come once.

        Raises:
            InputError: the model fails on these samples.
        """
        whole = {name for name, array in batch.feeds.items() if array.ndim == self._ranks.get(name, array.ndim) + 1}
        if whole or self._alone:
            return self._run_alone(batch, whole)
        if self._fixed is not None:
            return self._run_filled(batch, self._fixed)
        return self._run_together(batch)

    def _run_together(self, batch: Batch) -> dict[str, _Array]:
        try:
            outputs = self._session.run(batch.feeds)
        except InputError as error:
            if batch.size == 1:
                raise
            return self._run_alone_from_now(batch, error)
        if all(_leads_with(outputs[name], batch.size) for name in self._leading):
            return outputs
        return self._run_alone_from_now(batch, None)

    def _run_alone_from_now(self, batch: Batch, error: InputError | None) -> dict[str, _Array]:
        try:
            outputs = self._run_alone(batch, ())
        except InputError as alone:
            raise (error or alone) from None
        self._alone = True
        return outputs

    def _run_alone(self, batch: Batch, whole: Collection[str]) -> dict[str, _Array]:
        runs = []
        for index in range(batch.size):
            one = batch.part(index, index + 1).feeds
            feeds = {name: array[0, ...] if name in whole else array for name, array in one.items()}
            runs.append(self._session.run(feeds))
        return self._join(runs, 1)

    def _run_filled(self, batch: Batch, size: int) -> dict[str, _Array]:
        runs = []
        for start in range(0, batch.size, size):
            part = batch.part(start, start + size)
            outputs = self._session.run({name: _filled(array, size) for name, array in part.feeds.items()})
            runs.append({name: self._cut(name, array, size, part.size) for name, array in outputs.items()})
        return self._join(runs, size)

    def _cut(self, name: str, array: _Array, size: int, samples: int) -> _Array:
        follows = name not in self._session.constant_names and _leads_with(array, size)
        return array[:samples] if follows else array

    def _join(self, runs: Sequence[Mapping[str, _Array]], size: int) -> dict[str, _Array]:
        constant = self._session.constant_names
        return {
            name: runs[0][name] if name in constant else _joined([run[name] for run in runs], size)
            for name in self._session.output_names
        }


def fetchable(model: onnx_ir.Model, value: str) -> bool:
    """Whether a session of `model` can show `value`: a tensor of the main graph, not of a node's body."""
    found = _main_values(model).get(value)
    return found is not None and _is_tensor(found)


def batch_size_within(model: onnx_ir.Model, values: Iterable[str], limit_bytes: int) -> int:
    """Return how many samples to run at once, so that `values` and the runtime's own stay in `limit_bytes`.

    The fetched values count twice, because their user still holds them while the next batch runs; the
    runtime's own count as two of the model's largest value. A fixed batch is what it is, and 1 is the least.
    """
    fixed = batch_dimension(model)
    if fixed is not None:
        return fixed
    known = _main_values(model)
    sizes = {name: size_bytes(value) or 0 for name, value in known.items() if value.producer() is not None}
    largest = max(sizes.values(), default=0)
    fetched = sum(sizes.get(name) or largest for name in values if name in sizes)
    return max(1, min(_LARGEST_BATCH, limit_bytes // max(1, 2 * fetched + 2 * largest)))


def stream(
    model: onnx_ir.Model,
    data: DataSource,
    values: Sequence[str],
    *,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    samples: int | None = None,
    optimize: bool = True,
    threads: int = 1,
    label: str = "running the model",
    progress: ProgressLike | None = None,
) -> Iterator[dict[str, _Array]]:
    """Run `model` once over `data` and yield the named values, a batch at a time; see `BatchRunner.run`.

    limit_bytes: roughly what the values and the runtime may take at once; one sample, or the model's fixed
    batch, runs whatever its size. samples: at most so many.

    Raises:
        InputError: the data does not fit the model, or the model fails on it.
        UsageError: a value that cannot be fetched.
    """
    source = bind(data, model)
    runner = BatchRunner(model, Session(model, outputs=values, optimize=optimize, threads=threads))
    size = batch_size_within(model, values, limit_bytes)

    def run() -> Iterator[dict[str, _Array]]:
        with track(progress, label, source, samples) as task:
            for batch in source.batches(size, limit=samples):
                yield runner.run(batch)
                task.advance(batch.size)

    return run()  # what is wrong with the arguments is said before the first batch is asked for


@contextlib.contextmanager
def track(progress: ProgressLike | None, label: str, data: DataSource, samples: int | None) -> Iterator[TaskLike]:
    """Open a step that counts the samples of `data`, at most `samples`; it is silent without `progress`."""
    counts = [count for count in (data.count, samples) if count is not None]
    total = None if data.count is None else min(counts)
    if progress is None:
        yield _Silent()
        return
    with progress.task(label, total) as task:
        yield task


class _Silent:
    def advance(self, n: int = 1) -> None:
        """Show nothing."""


# Batches.


def _has_own_length(value: onnx_ir.Value) -> bool:
    """Whether a model's output declares a leading dimension that no free batch can have."""
    return value.shape is not None and (len(value.shape) == 0 or isinstance(value.shape[0], int))


def _leads_with(array: _Array, size: int) -> bool:
    return array.ndim > 0 and len(array) == size


def _filled(array: _Array, size: int) -> _Array:
    """Return `array` with its last row repeated up to `size` rows."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _joined(arrays: Sequence[_Array], size: int) -> _Array:
    """Join one value of runs of `size` samples each, but for the last, which may have fewer."""
    follows = all(_leads_with(array, size) for array in arrays[:-1]) and arrays[-1].ndim > 0
    if follows and len(arrays[-1]) <= size and len({array.shape[1:] for array in arrays}) == 1:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return np.concatenate([array.reshape(-1) for array in arrays])


# What can be fetched.


def _main_values(model: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    graph = model.graph
    values = [
        *graph.inputs,
        *graph.initializers.values(),
        *(value for node in graph for value in node.outputs),
    ]
    return {value.name: value for value in values if value.name}


def _is_tensor(value: onnx_ir.Value) -> bool:
    return value.type is None or isinstance(value.type, onnx_ir.TensorType)


def _tensor_outputs(model: onnx_ir.Model) -> list[str]:
    return [str(value.name) for value in model.graph.outputs if _is_tensor(value)]


def _require_fetchable(model: onnx_ir.Model, names: Sequence[str]) -> Sequence[str]:
    values = _main_values(model)
    for name in names:
        if name not in values:
            if any(value.name == name for node in model.graph.all_nodes() for value in node.outputs):
                raise UsageError(f"value {name!r} lies in the body of a control-flow node and cannot be fetched")
            raise UsageError(f"the model has no value {name!r}{_hint(name, values)}")
        if not _is_tensor(values[name]):
            raise UsageError(f"value {name!r} is no tensor and cannot be fetched")
    return names


def _constant(value: onnx_ir.Value) -> _Array:
    if value.const_value is None:
        raise InputError(f"initializer {value.name!r} has no data")
    return value.const_value.numpy()


# Loading.


def _session_options(runtime: ModuleType, *, optimize: bool, fold_quantization: bool, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; the log would say them twice
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not fold_quantization:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _create(runtime: ModuleType, source: bytes | str, options: Any) -> Any:
    try:
        return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common base for what it raises
        raise InputError(_explain("load", error)) from error


def _create_from_graph(runtime: ModuleType, model: onnx_ir.Model, outputs: Sequence[str], options: Any) -> Any:
    with tempfile.TemporaryDirectory(prefix="onnxpress-", ignore_cleanup_errors=True) as folder:
        try:
            source = serialize_partial(model, outputs, Path(folder))
        except OSError as error:
            raise UsageError(
                f"cannot put the weights into the temporary folder {tempfile.gettempdir()!r} "
                f"({error.strerror}). Set TMPDIR to a folder with room"
            ) from error
        return _create(runtime, source if isinstance(source, bytes) else str(source), options)


# Errors.


def _hint(name: str, known: Iterable[str]) -> str:
    near = near_names(name, known)
    return f".{near}" if near else ""


def _got(feeds: Mapping[str, _Array]) -> str:
    return f", got {', '.join(map(repr, feeds))}" if feeds else ""


def _explain(verb: str, error: Exception) -> str:
    """Say what onnxruntime refuses, with the node where it names one, on one line."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    where = "the model"
    failed = re.match(r"Non-zero status code returned while running (\S+) node\. Name:'(.*?)' Status Message: ", text)
    if failed:
        where = f"node {failed[2]!r} ({failed[1]})"
        text = text[failed.end() :]
    text = re.sub(r"\S+\.(?:h|cc|cpp):\d+ (?:[^()]*::[^()]*\([^()]*\)(?: const)? )?", "", text)
    text = re.sub(r"^.*? was false\. (?=.)", "", text)
    return f"onnxruntime cannot {verb} {where}: {text.strip().rstrip('.')}"
