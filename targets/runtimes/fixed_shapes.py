"""What runtimes that convert a model share: a copy of it with one size for each axis, and what goes in and out.

Their converters fold shapes into the file, and some know float32 and int32 only. So inputs get the sizes of the feeds,
integers are narrowed where their values allow it, and outputs are held against what the model says of them: a
converter that lost an axis must not pass for a fast one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.errors import InputError
from onnxpress.ir.inference import infer_shapes
from onnxpress.ir.shapes import required_inputs
from onnxpress.targets.runtimes.base import Array, Feeds, Port, fit_feeds
from onnxpress.targets.runtimes.refusal import RuntimeRefusalError

__all__ = ["FixedModel", "Output", "first_node", "fix_shapes", "input_ports", "narrow"]

_PROTOBUF_LIMIT_BYTES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Output:
    """An output as the model declares it. shape: None where it does not follow from the inputs' shapes."""

    shape: tuple[int, ...] | None
    dtype: np.dtype[np.generic]


@dataclasses.dataclass(frozen=True)
class FixedModel:
    """A copy of a model for feeds of one set of shapes; inputs and outputs are by name, in order."""

    model: onnx_ir.Model
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Output]

    def write(self, path: Path, title: str) -> None:
        """Write the model as one file, which `title` is to read.

        Raises:
            RuntimeRefusalError: it is too large for that.
        """
        if model_io.size_bytes(self.model) > _PROTOBUF_LIMIT_BYTES:
            raise RuntimeRefusalError(f"{title}: does not convert the model: it takes more than 2 GiB")
        path.write_bytes(model_io.to_proto_bytes(self.model))

    def conform(self, name: str, array: Array, title: str) -> Array:
        """Return a new array, what a runtime gave as output `name`, in the type that the model declares.

        Raises:
            RuntimeRefusalError: its shape is another one.
        """
        output = self.outputs[name]
        if output.shape not in (None, array.shape):
            raise RuntimeRefusalError(
                f"{title}: gives output {name!r} the shape {list(array.shape)}, the model {list(output.shape or ())}"
            )
        return np.array(array, dtype=output.dtype)


def fix_shapes(model: onnx_ir.Model, feeds: Feeds) -> FixedModel:
    """Return a copy of `model`, which is not changed, whose inputs have the shapes of `feeds`.

    Raises:
        InputError: an input has no feed, or one of another shape or kind.
    """
    ports = input_ports(model, feeds)
    copy = model.clone()
    for value in copy.graph.outputs:
        value.shape = None  # what the file says of it was said for an open batch
    for value in required_inputs(copy):  # of which one may be an output
        value.shape = onnx_ir.Shape(ports[str(value.name)].shape)
    infer_shapes(copy)
    return FixedModel(copy, ports, {str(value.name): _output(value) for value in copy.graph.outputs})


def input_ports(model: onnx_ir.Model, feeds: Feeds) -> dict[str, Port]:
    """Return the inputs that must be fed, in order: as the model has them, with open sizes as in `feeds`.

    Raises:
        InputError: an input has no feed, or one of another shape or kind.
    """
    ports = {str(value.name): _port(value, feeds) for value in required_inputs(model)}
    fit_feeds(feeds, ports)
    return ports


def _port(value: onnx_ir.Value, feeds: Feeds) -> Port:
    """Return the input with its open sizes taken from the feed; 1 where the feed has no such axis, or is missing."""
    given = np.shape(feeds.get(str(value.name), ()))
    dtype = np.dtype(value.dtype.numpy() if value.dtype is not None else np.float32)
    if value.shape is None:
        return Port(given, dtype)
    sizes = given + (1,) * len(value.shape)
    return Port(tuple(dim if isinstance(dim, int) else sizes[axis] for axis, dim in enumerate(value.shape)), dtype)


def _output(value: onnx_ir.Value) -> Output:
    dtype = np.dtype(value.dtype.numpy() if value.dtype is not None else np.float32)
    if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
        return Output(None, dtype)
    return Output(tuple(value.shape.numpy()), dtype)


def narrow(name: str, array: Array, title: str) -> Array:
    """Return what is fed to input `name` as float32 or int32, the two types that `title` takes.

    Raises:
        RuntimeRefusalError: it is of another kind. InputError: its integers need more than 32 bits.
    """
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind != "i":
        raise RuntimeRefusalError(f"{title}: takes float32 and int32, and input {name!r} is {array.dtype}")
    narrowed = array.astype(np.int32, copy=False)
    if not np.array_equal(narrowed, array):
        raise InputError(f"input {name!r} holds numbers beyond 32 bits, and {title} takes int32")
    return narrowed


def first_node(model: onnx_ir.Model, op_types: Iterable[str]) -> str:
    """Return ` (node 'a')` for the first node of one of these types, to go behind a converter's message, or ""."""
    wanted = set(op_types)
    found = next((node for node in model.graph.all_nodes() if node.op_type in wanted), None)
    return "" if found is None else f" (node {found.name!r})"
