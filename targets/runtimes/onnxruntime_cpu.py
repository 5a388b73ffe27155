"""Run, inspect and time models on onnxruntime's CPU provider.

Three questions are answered here, each by the runtime itself and none by assumption:

* Does the model load and run? `smoke_run`.
* Which kernels did it get? `inspect_kernels` reads the graph after the runtime's own optimizations. A
  quantized Conv that shows up there as a float Conv behind a DequantizeLinear is slower than the float model
  ever was, so it is named: that check catches every placement mistake without a clock.
* How fast is it, beside another model? `interleaved_latency`.

Timing: see `timing`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import InputError
from onnxpress.targets.patterns import MOVES, dequantize_of, is_stored
from onnxpress.targets.runtimes.onnxruntime_session import (
    NUMPY_TYPES,
    ModelLike,
    fit_session,
    open_session,
    run_session,
)
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError
from onnxpress.targets.runtimes.timing import Latency, take_turns

__all__ = [
    "Kernels",
    "example_feeds",
    "inspect_kernels",
    "interleaved_latency",
    "is_quantized_on_paper",
    "smoke_run",
]

# Operators that hold the multiply-accumulates, by what the runtime made of them.
_FLOAT_LINEAR = {
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "Gemm",
    "MatMul",
    "NhwcFusedConv",
}
_INTEGER_LINEAR = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "NhwcQLinearConv",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}

# Sizes tried for dimensions that the model leaves open, when it is run on made-up input: a conv net needs
# room for its strides, and some models accept only one side length or a multiple of 32.
_GUESSED_SIZES = (1, 32, 224, 640)
_MADE_UP_LIMIT_BYTES = 1 << 30  # of one input: a guess for five open dimensions could take all memory

_RENAMED = re.compile(r"/MatMulAddFusion|_token_\d+$")  # what the runtime's rewrites add to names


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What a runtime made of a model, read from its optimized graph; empty where it does not tell.

    operators: count by operator type of everything that is left to run, subgraphs included.
    integer, unfused, left_float: names of the Conv/Gemm/MatMul family, as the given model calls them where
    the runtime kept a trace of that. integer: runs on integers. unfused: quantized on paper (its weight, or
    every operand, comes out of a DequantizeLinear) but computed in float. left_float: no quantized weight, so
    float on purpose.
    """

    operators: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    integer: tuple[str, ...] = ()
    unfused: tuple[str, ...] = ()
    left_float: tuple[str, ...] = ()


def smoke_run(model: ModelLike, feeds: Mapping[str, np.ndarray] | None = None) -> bool:
    """Load `model` with the runtime's default optimizations and run it once.

    feeds: real input where there is some; else deterministic made-up input (see `example_feeds`), with
    several sizes tried for dimensions that the model leaves open.

    Returns: True when it ran. False when it loaded, but made-up input was no use: none can be made up, or the
    model does not run on it. That says nothing, for numbers may be wrong where they are indices or sizes.
    Real feeds would tell.

    Raises:
        RuntimeRefusalError: it does not load, or it does not run on `feeds`.
    """
    session = open_session(model)
    if feeds is not None:
        run_session(session, fit_session(session, feeds))
        return True
    for size in _GUESSED_SIZES if _has_open_dimensions(session) else _GUESSED_SIZES[:1]:
        made_up = _made_up(session, size)
        if made_up is None:
            return False
        try:
            run_session(session, made_up)
            return True
        except RuntimeRefusalError:
            continue
    return False


def example_feeds(model: ModelLike, *, free_size: int = 1, batch: int = 1) -> dict[str, np.ndarray]:
    """Return deterministic input for `model`: floats 1/2, integers 1, False and empty strings.

    batch: size of an open leading dimension. free_size: size of every other open dimension.

    Raises:
        InputError: an input has a type that numpy lacks, is no tensor, or takes more than 1 GiB.
        RuntimeRefusalError: the model does not load.
    """
    session = open_session(model, optimize=False)
    feeds = _made_up(session, free_size, batch=batch)
    if feeds is None:
        kinds = ", ".join(f"{value.name!r} is {value.type}" for value in session.get_inputs())
        raise InputError(f"no input can be made up for this model: {kinds}. Give real data")
    return feeds


def inspect_kernels(model: ModelLike, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Kernels:
    """Load `model` on one thread with all optimizations and report what is left to run.

    providers: see `open_session`.

    Raises:
        RuntimeRefusalError: it does not load.
    """
    with tempfile.TemporaryDirectory(prefix="onnxpress-") as folder:
        path = pathlib.Path(folder) / "optimized.onnx"
        open_session(model, optimized_path=path, providers=providers)
        # Weights lie in a file beside it that is never read: this stays small whatever the model weighs.
        optimized = onnx_ir.load(path)
    given = _given(model)
    names = _NodeNames(given)
    operators: collections.Counter[str] = collections.Counter()
    integer, unfused = [], []
    for node in _nodes(optimized):
        operators[node.op_type] += 1
        if node.op_type in _INTEGER_LINEAR:
            integer.append(names.find(node))
        elif node.op_type in _FLOAT_LINEAR and is_quantized_on_paper(node):
            unfused.append(names.find(node))
    left_float = [
        names.find(node) for node in _nodes(given) if node.op_type in _FLOAT_LINEAR and not is_quantized_on_paper(node)
    ]
    # The runtime quantizes a float weight by itself where data and output are quantized.
    taken = set(integer)
    left_float = [name for name in left_float if name not in taken]
    return Kernels(operators, tuple(integer), tuple(unfused), tuple(left_float))


def interleaved_latency(
    models: Mapping[str, ModelLike],
    feeds: Mapping[str, np.ndarray],
    *,
    rounds: int = 60,
    threads: int = 1,
    warmup: int = 10,
    seed: int = 0,
    max_seconds: float | None = None,
) -> dict[str, Latency]:
    """Time the models side by side on the same feeds.

    feeds: one batch by input name; floats are cast to the type that each model's input has.
    max_seconds: stop early after this time, warm-up not counted, but never before 5 rounds.

    Raises:
        RuntimeRefusalError: a model does not load or run. InputError: an input has no feed.
    """
    sessions = {name: open_session(model, threads=threads) for name, model in models.items()}
    fitted = {name: fit_session(session, feeds) for name, session in sessions.items()}
    for name, session in sessions.items():
        run_session(session, fitted[name])
    return take_turns(
        {name: functools.partial(session.run, None, fitted[name]) for name, session in sessions.items()},
        rounds=rounds, warmup=warmup - 1, seed=seed, max_seconds=max_seconds,
        cpu_clock=time.thread_time if threads == 1 else None,
    )  # fmt: skip


# Integers are 1: as a divisor, a hop or a size, 0 fails, and ends the process in some of onnxruntime's kernels.
_FILLS: dict[str, Any] = {"object": "", "bool": False}


def _made_up(session: Any, size: int, *, batch: int = 1) -> dict[str, np.ndarray] | None:
    """Return made-up input, or None where an input is of no type that can be made up, or too large."""
    feeds = {}
    for value in session.get_inputs():
        kind = NUMPY_TYPES.get(value.type)
        if kind is None:
            return None
        shape = [
            dim if isinstance(dim, int) else (batch if position == 0 else size)
            for position, dim in enumerate(value.shape)
        ]
        if math.prod(shape) * np.dtype(kind).itemsize > _MADE_UP_LIMIT_BYTES:
            return None
        feeds[value.name] = np.full(shape, _FILLS.get(kind, 0.5 if kind.startswith("float") else 1), dtype=kind)
    return feeds


def _has_open_dimensions(session: Any) -> bool:
    return any(not isinstance(dim, int) for value in session.get_inputs() for dim in value.shape[1:])


def _given(model: ModelLike) -> onnx_ir.Model:
    if isinstance(model, onnx_ir.Model):
        return model
    if isinstance(model, bytes):
        return onnx_ir.from_proto(onnx.load_from_string(model))
    if isinstance(model, onnx.ModelProto):
        return onnx_ir.from_proto(model)
    return model_io.load(model)


def _nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    for graph in model.graphs():
        yield from graph


def is_quantized_on_paper(node: onnx_ir.Node) -> bool:
    """Whether a float operator's weight, or each of its two operands, comes out of a DequantizeLinear."""
    operands = [_dequantize_behind(value) for value in node.inputs[:2]]
    return all(operands) or any(found is not None and is_stored(found.inputs[0]) for found in operands)


def _dequantize_behind(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    """Return the DequantizeLinear that the numbers of `value` come from, through operators that move them."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return dequantize_of(value)


class _NodeNames:
    """Finds the given model's name for an optimized node: by name, else by its quantized weight."""

    def __init__(self, given: onnx_ir.Model) -> None:
        self._named: dict[str, str] = {}
        self._by_weight: dict[str, str] = {}  # apart: a node may have the name of the value that it unpacks
        for node in _nodes(given):
            name = node.name or node.outputs[0].name or ""
            self._named.setdefault(node.name or "", name)
            for weight in _weight_names(node):
                self._by_weight.setdefault(weight, name)

    def find(self, node: onnx_ir.Node) -> str:
        plain = _RENAMED.sub("", node.name or "")
        for key in (node.name or "", plain):
            if key and key in self._named:
                return self._named[key]
        for key in _weight_names(node):
            if key in self._by_weight:
                return self._by_weight[key]
        return plain or node.outputs[0].name or node.op_type


def _weight_names(node: onnx_ir.Node) -> Iterator[str]:
    for value in node.inputs[1:2]:
        found = _dequantize_behind(value)
        if found is not None and found.inputs[0] is not None:
            yield found.inputs[0].name or ""  # of unpacked codes too: the runtime keeps their name
