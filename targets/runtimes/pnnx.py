"""Convert a model for ncnn by the program `pnnx`, which writes ncnn's two files and an example of their use.

The Python package `pnnx` holds that program, which needs nothing; importing the package would need torch, so it is
found and run, never imported. pnnx calls inputs `in0`, `in1` ... and outputs `out0`, `out1` ..., in the model's order.
Where it meets something that ncnn has no layer for it prints a line and goes on, now with a layer that ncnn will not
know, now with one that computes something else. So any such line is a refusal.

Slices that step, as in the shortcuts of CIFAR resnets, are rewritten first: ncnn's Crop has no steps, its Pooling has
strides.

    Y = Slice(X, starts, ends, axes, steps)   =>   Y = MaxPool<1x1, strides = steps>(Slice(X, starts, ends, axes, 1))

Legal when: X is [N, C, H, W] float32, the bounds are constant, and steps other than 1 are positive and along H or W.
Both keep ceil(length / step) elements, so the outputs are equal.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir.errors import UsageError
from onnxpress.passes.cleanup.graph_edits import constant_ints, is_default_domain
from onnxpress.targets.lowering.emit import Emitter
from onnxpress.targets.runtimes.base import Port
from onnxpress.targets.runtimes.fixed_shapes import FixedModel, first_node
from onnxpress.targets.runtimes.programs import run_program
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError, one_line
from onnxpress.targets.runtimes.rehearsal import CONVERSION_SECONDS, MODEL_FILE

__all__ = ["FILES", "convert", "find_pnnx", "read_batch_axes"]

FILES = ("model.ncnn.param", "model.ncnn.bin")  # layers, and their weights
_USAGE_FILE = "model_ncnn.py"
_PROGRAM = "pnnx.exe" if os.name == "nt" else "pnnx"
_REMARK = re.compile(r"^todo |not supported|unsupported|fallback to")
_TODO = re.compile(r"^todo (\w+)")
# In the example of use that pnnx writes: `ncnn.Mat(in0.numpy(), batch_index=0)`, `out0.numpy(batch_index=0)`.
_BATCH_AXIS = re.compile(r"\b(in\d+|out\d+)\.numpy\((?:\), )?batch_index=(\d+)\)")
_TYPES = {"float64": "f64", "float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32"}


def find_pnnx() -> Path:
    """Return the path of the program: that of the package if it is installed, else that on PATH.

    Raises:
        UsageError: there is none.
    """
    spec = importlib.util.find_spec("pnnx")  # imports nothing
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    inside = [Path(folder) / _PROGRAM for folder in folders if (Path(folder) / _PROGRAM).is_file()]
    on_path = shutil.which(_PROGRAM)  # may be the package's own wrapper, which imports torch: hence last
    if not inside and on_path is None:
        raise UsageError("ncnn needs the converter pnnx, which is not installed: pip install --no-deps pnnx")
    return inside[0] if inside else Path(str(on_path))


def convert(fixed: FixedModel, folder: Path) -> None:
    """Write ncnn's files into `folder`. The model of `fixed` may be changed.

    pnnx runs the model on numbers of its own to learn shapes, so indices into a short table may end it.

    Raises:
        RuntimeRefusalError: pnnx fails or leaves something out. UsageError: there is none, or it is too old.
    """
    program = find_pnnx()
    shapes = ",".join(_describe(name, port) for name, port in fixed.inputs.items())
    _stride_by_pooling(fixed.model)
    fixed.write(folder / MODEL_FILE, "ncnn")
    ended = run_program(
        [program, MODEL_FILE, f"inputshape={shapes}", "fp16=0"], folder, limit_seconds=CONVERSION_SECONDS
    )
    remarks = dict.fromkeys(_with_node(line, fixed.model) for line in ended.lines if _REMARK.search(line))
    if remarks:
        raise _refusal("; ".join(remarks))
    if ended.failure or not all((folder / name).is_file() for name in (*FILES, _USAGE_FILE)):
        last = ended.lines[-1] if ended.lines else "it wrote nothing"
        raise _refusal(f"{last} ({ended.failure or 'no file written'})")
    if len(read_batch_axes(folder)) != len(fixed.inputs) + len(fixed.outputs):
        raise UsageError(f"{program} does not tell batches apart: pip install --no-deps 'pnnx>=20261020'")


def read_batch_axes(folder: Path) -> dict[str, int]:
    """Return the axis of the batch by ncnn's names of inputs and outputs; 233 where there is none."""
    usage = (folder / _USAGE_FILE).read_text(encoding="utf-8")
    return {name: int(axis) for name, axis in _BATCH_AXIS.findall(usage)}


def _describe(name: str, port: Port) -> str:
    if port.dtype.name not in _TYPES:
        raise RuntimeRefusalError(f"ncnn: takes float32 and int32, and input {name!r} is {port.dtype}")
    return f"[{','.join(map(str, port.shape))}]{_TYPES[port.dtype.name]}"


def _with_node(line: str, model: onnx_ir.Model) -> str:
    todo = _TODO.match(line)
    return line if todo is None else line + first_node(model, [todo[1]])


def _refusal(cause: str) -> RuntimeRefusalError:
    return RuntimeRefusalError(f"ncnn: pnnx does not convert the model: {one_line(cause)}")


def _stride_by_pooling(model: onnx_ir.Model) -> None:
    found = [(node, strides) for node in model.graph if (strides := _strides(node)) is not None]
    emitter = Emitter(model.graph)
    for node, strides in found:
        _insert_pooling(emitter, node, strides)


def _insert_pooling(emitter: Emitter, node: onnx_ir.Node, strides: list[int]) -> None:
    sliced = node.outputs[0]
    name = str(sliced.name)
    pooled = emitter.value(f"{name}/whole", onnx_ir.DataType.FLOAT, sliced.shape)
    sliced.replace_all_uses_with(pooled, replace_graph_outputs=True)
    pool = emitter.node("MaxPool", [sliced], pooled, {"kernel_shape": [1, 1], "strides": strides})
    emitter.graph.insert_after(node, pool)
    pooled.name, sliced.name, sliced.shape = name, pooled.name, None
    steps = np.ones(len(constant_ints(node, 4) or ()), np.int64)
    emitter.swap(node, 4, emitter.constant(f"{name}/steps", steps))


def _strides(node: onnx_ir.Node) -> list[int] | None:
    """Return what MaxPool must stride along H and W in place of a Slice, None where it cannot or need not."""
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "Slice" or not is_default_domain(node) or value is None or len(node.inputs) < 5:
        return None
    bounds = [constant_ints(node, index) for index in range(1, 5)]
    if value.shape is None or len(value.shape) != 4 or value.dtype != onnx_ir.DataType.FLOAT or None in bounds:
        return None
    along = {axis % 4: step for axis, step in zip(bounds[2] or (), bounds[3] or (), strict=True)}
    if all(step == 1 for step in along.values()) or any(step < 1 for step in along.values()):
        return None
    if any(along.get(axis, 1) != 1 for axis in (0, 1)):
        return None
    return [along.get(axis, 1) for axis in (2, 3)]
