"""What tests share: models from ONNX text, seeded feeds, one way to run a model as it stands, and growth of time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir

from onnxpress.ir.inference import infer_shapes

__all__ = ["Array", "fill_weights", "growth", "random_feeds", "run", "run_named", "tensor_of", "text_model"]

Array = npt.NDArray[Any]
AnyModel = onnx_ir.Model | onnx.ModelProto | bytes | str | os.PathLike[str]

# Sizes for symbolic dimensions that do not lead: all different, so that a wrong axis cannot pass.
_SYMBOL_SIZES = (5, 7, 3, 11, 13)


def text_model(text: str) -> onnx_ir.Model:
    """Return the model of an ONNX text form; weights belong in the text or are set by the test."""
    return onnx_ir.from_onnx_text(text)


def fill_weights(model: onnx_ir.Model, arrays: Mapping[str, Array]) -> None:
    """Make the values that nodes read by these names float32 initializers, one for each name, and infer shapes."""
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            if value is None or value.name is None or value.name not in arrays:
                continue
            held = model.graph.initializers.get(value.name)
            if held is None:
                array = np.asarray(arrays[value.name], np.float32)
                value.const_value = onnx_ir.tensor(array, name=value.name)
                value.shape, value.dtype = onnx_ir.Shape(array.shape), onnx_ir.DataType.FLOAT
                model.graph.register_initializer(value)
            elif held is not value:
                node.replace_input_with(index, held)
    infer_shapes(model)


def tensor_of(model: onnx_ir.Model, name: str) -> onnx_ir.TensorProtocol:
    """Return the tensor of the main graph's initializer `name`."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None, name
    return tensor


def run_named(model: AnyModel, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run `model` in onnxruntime with nothing rewritten, and return its outputs by name.

    Graph optimizations are off and so is onnxruntime's own removal of Q/DQ pairs: what is written runs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_runnable(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def run(model: AnyModel, feeds: Mapping[str, Array]) -> list[Array]:
    """Run `model` as `run_named` does, and return its outputs in order."""
    return list(run_named(model, feeds).values())


def random_feeds(model: onnx_ir.Model, seed: int = 0, batch: int = 2) -> dict[str, Array]:
    """Return seeded values for every input that is not an initializer.

    A symbolic or unknown leading dimension becomes `batch`; other symbols get sizes that all differ, equal
    symbols the same one. Floats are standard normal, integers in [0, 4), booleans fair.
    """
    rng = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None, value
        if value.name in model.graph.initializers:
            continue
        shape = tuple(_size(axis, dim, sizes, batch) for axis, dim in enumerate(value.shape))
        feeds[value.name] = _draw(rng, value.dtype, shape)
    return feeds


def growth(prepare: Callable[[int], Callable[[], object]], size: int) -> float:
    """Return how many times longer four times the work takes: 4 where time is linear, 16 where it is quadratic.

    `prepare(n)` returns the work of size n, which is timed. CPU time, the best of three runs each: other work
    shares the machine.
    """
    return _best_seconds(prepare(4 * size)) / _best_seconds(prepare(size))


def _best_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _size(axis: int, dim: int | onnx_ir.SymbolicDim, sizes: dict[str, int], batch: int) -> int:
    if isinstance(dim, int):
        return dim
    symbol = dim.value or f"?{len(sizes)}"
    if symbol not in sizes:
        others = sum(1 for size in sizes.values() if size != batch)
        sizes[symbol] = batch if axis == 0 else _SYMBOL_SIZES[others % len(_SYMBOL_SIZES)]
    return sizes[symbol]


def _draw(rng: np.random.Generator, dtype: onnx_ir.DataType, shape: tuple[int, ...]) -> Array:
    kind = dtype.numpy()
    if dtype.is_floating_point():
        return rng.standard_normal(shape).astype(kind)
    if dtype == onnx_ir.DataType.BOOL:
        return rng.integers(0, 2, shape).astype(kind)
    return rng.integers(0, 4, shape).astype(kind)


def _runnable(model: AnyModel) -> bytes | str:
    if isinstance(model, onnx_ir.Model):
        model = onnx_ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        content: bytes = model.SerializeToString()
        return content
    return model if isinstance(model, bytes) else os.fspath(model)
