"""Checks of the inputs of a model: what its file leaves open, and whoever builds it has to say.

Each looks at one input and answers with the reason why it breaks the rule, or None.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir

__all__ = ["INPUT_CHECKS", "SHAPES", "given_inputs", "open_shapes", "show_shape"]

SHAPES = "{shapes}"  # in a rule's advice: stands for `open_shapes` of the model


def open_shapes(graph: onnx_ir.Graph) -> str:
    """Return the inputs of open shape as trtexec is told them in a shell, with 1 for what is open: "x:1x3x224x224"."""
    return ",".join(_option(value) for value in given_inputs(graph) if _is_open(value.shape))


def _option(value: onnx_ir.Value) -> str:
    name = str(value.name)
    if ":" in name or "," in name:
        name = rf"\'{name}\'"  # trtexec --help: input names can be wrapped with escaped single quotes
    sizes = (str(size) if isinstance(size, int) else "1" for size in value.shape or ())
    return f"{name}:{'x'.join(sizes)}"


def given_inputs(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """Return what a caller has to give: not initializers, which old models list among their inputs."""
    return [value for value in graph.inputs if not value.is_initializer()]


def _is_open(shape: onnx_ir.Shape | None) -> bool:
    """Whether a size is not written. Without a shape it is not known."""
    return shape is not None and not all(isinstance(size, int) for size in shape)


def show_shape(shape: onnx_ir.Shape) -> str:
    """Return a shape for a message: "[N, 3, ?, 224]"."""
    sizes = (str(size if isinstance(size, int) else size.value or "?") for size in shape)
    return f"[{', '.join(sizes)}]"


def _check_open_input(value: onnx_ir.Value) -> str | None:
    """An input of the model has the shape that is written in the file."""
    if value.shape is None or not _is_open(value.shape):
        return None
    return f"the shape of the input {value.name!r} is open: {show_shape(value.shape)}"


INPUT_CHECKS: dict[str, Callable[[onnx_ir.Value], str | None]] = {"open-input": _check_open_input}
