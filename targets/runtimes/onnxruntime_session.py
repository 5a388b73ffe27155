"""Sessions of onnxruntime: made from whatever holds a model, fed and run."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.errors import InputError
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line

__all__ = ["NUMPY_TYPES", "ModelLike", "fit_session", "model_source", "open_session", "run_session"]

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto | onnx_ir.Model

_PROTOBUF_LIMIT_BYTES = 2**31 - 1
_CPU = "CPUExecutionProvider"

NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
} | {f"tensor({kind})": kind for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}


def open_session(
    model: ModelLike,
    *,
    threads: int = 1,
    optimize: bool = True,
    optimized_path: pathlib.Path | None = None,
    profile_path: pathlib.Path | None = None,
    providers: Sequence[str] = (_CPU,),
) -> Any:
    """Return an InferenceSession.

    optimized_path: where the graph goes that is left after the runtime's optimizations. profile_path: what the file of
    times by node begins with. providers: the one that computes, and those that take what it has no kernel for.

    Raises:
        RuntimeRefusalError: the runtime does not load the model, or not on the first of the providers. UsageError: no
        onnxruntime is installed.
    """
    from onnxpress.ir.analysis.execute import require_runtime

    runtime = require_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal: the exception carries the message
    # A spinning pool eats the very cores that a second model, or a shared machine, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
        data = f"{optimized_path.name}.data"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", data)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "256")
    if profile_path is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_path)
    with model_source(model) as source:
        try:
            session = runtime.InferenceSession(source, options, providers=list(providers))
        except Exception as error:  # the binding raises plain RuntimeErrors and its own classes
            raise RuntimeRefusalError(
                f"onnxruntime {runtime.__version__}: does not load the model: {_one_line(error)}"
            ) from error
    # Where a provider does not start, for want of a driver or a library, the runtime goes on with the next one.
    if providers[0] not in session.get_providers():
        raise RuntimeRefusalError(
            f"onnxruntime {runtime.__version__}: does not load the model: {providers[0]} does not start here, and "
            f"{', '.join(session.get_providers())} would compute in its place"
        )
    return session


@contextlib.contextmanager
def model_source(model: ModelLike) -> Iterator[str | bytes]:
    """Give the model in a form that runtimes of ONNX open: serialized bytes, or a path where those are too many."""
    if isinstance(model, bytes):
        yield model
        return
    from onnxpress.ir import model_io
    from onnxpress.ir.container.packing import is_packed

    if isinstance(model, str | os.PathLike):
        if not is_packed(pathlib.Path(model)):
            yield os.fspath(model)
            return
        model = model_io.load(model)
    if isinstance(model, onnx.ModelProto):
        model = onnx_ir.from_proto(model)
    if model_io.size_bytes(model) <= _PROTOBUF_LIMIT_BYTES:
        yield model_io.to_proto_bytes(model)
        return
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        model_io.save(model, path)
        yield str(path)


def run_session(session: Any, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Run once and return the outputs in order.

    Raises:
        RuntimeRefusalError: the model does not run on these feeds.
    """
    try:
        return session.run(None, feeds)  # type: ignore[no-any-return]
    except Exception as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise RuntimeRefusalError(f"onnxruntime: does not run the model on {shapes}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return one_line(re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(error).strip()))


def fit_session(session: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the feeds of the session's inputs, floats cast to the type that each has.

    Raises:
        InputError: an input has no feed.
    """
    fitted = {}
    for value in session.get_inputs():
        if feeds.get(value.name) is None:
            raise InputError(f"input {value.name!r} has no data. Given: {', '.join(feeds) or 'nothing'}")
        array = np.asarray(feeds[value.name])  # indexing leaves numpy scalars, which the runtime refuses
        kind = NUMPY_TYPES.get(value.type)
        if kind is not None and kind.startswith("float") and array.dtype.kind == "f":
            array = np.asarray(array, dtype=kind, order="C")  # ascontiguousarray would give a scalar an axis
        fitted[value.name] = array
    return fitted
