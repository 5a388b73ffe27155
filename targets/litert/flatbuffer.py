"""Write a .tflite file: tensors, operators and their constants, as one flatbuffer.

The classes of the format come with the runtime (`ai_edge_litert.schema_py_generated`); TensorFlow is not needed.
Constants lie at multiples of 16 bytes, as the schema asks (`force_align: 16`), so that the runtime reads them where
they are mapped; the generated classes would not see to that.
Source: tensorflow/compiler/mlir/lite/schema/schema.fbs, version 3.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.ir.errors import InputError
from onnxpress.targets.litert.install import require_schema
from onnxpress.targets.litert.versions import operator_version

__all__ = ["FlatGraph", "Grid", "Tensor"]

_Array = npt.NDArray[Any]

_VERSION = 3  # of the file format
_IDENTIFIER = b"TFL3"
_ALIGNMENT_BYTES = 16
_LARGEST_BYTES = 2**31 - 1  # offsets inside a flatbuffer have 32 bits, one of them for the sign
_GRID_BYTES = 12  # of a scale and its zero point, float32 and int64
_LAST_OLD_CODE = 127  # operators above it are named by the newer, wider field alone
_SIGNATURE = "serving_default"  # the key that other tools write and look for

_TYPES = {
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """What integers stand for: `real = (integer - zero_point) * scale`.

    scale: one number, > 0, or one for each index of `axis`, then with zero point 0.
    """

    scale: tuple[float, ...]
    zero_point: int = 0
    axis: int = 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its place in the list, and what it is."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    grid: Grid | None = None
    is_constant: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether it holds quantized reals in 8 bits."""
        return self.dtype == "int8"


class FlatGraph:
    """The graph of a .tflite file under construction. Operators run in the order in which they are added."""

    def __init__(self) -> None:
        self._schema = require_schema()
        self._tensors: list[Any] = []
        self._buffers: list[_Array] = [np.zeros(0, np.uint8)]  # the first one is that of what is computed
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._names: set[str] = set()
        self.constant_bytes = 0  # of all constants, with their scales and zero points
        self.counts: dict[str, int] = {}  # operators by name

    def tensor(self, name: str, shape: Sequence[int], dtype: str = "float32", grid: Grid | None = None) -> Tensor:
        """Add a tensor that an operator or the caller fills."""
        return self._add(name, shape, dtype, grid, buffer=0)

    def constant(self, name: str, array: _Array, grid: Grid | None = None) -> Tensor:
        """Add a constant; an equal one that is there already is returned instead."""
        array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
        key = (array.dtype.str, array.shape, grid, hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            self._buffers.append(array.reshape(-1).view(np.uint8))
            found = self._add(name, array.shape, array.dtype.name, grid, buffer=len(self._buffers) - 1)
            self._constants[key] = dataclasses.replace(found, is_constant=True)
            self.constant_bytes += array.nbytes + (0 if grid is None else _GRID_BYTES * len(grid.scale))
        return self._constants[key]

    def operator(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        options: str | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator. kind: its name in `BuiltinOperator`. options: its table there, without the T, and fields."""
        key = (kind, operator_version(kind, inputs, outputs, fields or {}))
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(key, len(self._codes))
        operator.inputs = [-1 if each is None else each.index for each in inputs]
        operator.outputs = [each.index for each in outputs]
        if options is not None:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")(**(fields or {}))
        self._operators.append(operator)
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def finish(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], description: str) -> bytes:
        """Return the file. inputs, outputs: by the names that callers use, in order.

        Raises:
            InputError: it would be larger than the format can address.
        """
        import flatbuffers

        size = sum(buffer.size + _ALIGNMENT_BYTES for buffer in self._buffers)
        if size > _LARGEST_BYTES:
            raise InputError(
                f"the weights take {size:,} bytes, and a .tflite file holds at most {_LARGEST_BYTES:,}. "
                "Store them smaller, such as with quantize-int8 or float16"
            )
        model = self._model(inputs, outputs, description)
        builder = flatbuffers.Builder(size + (1 << 16) + 512 * (len(self._tensors) + len(self._operators)))
        builder.Finish(model.Pack(builder), _IDENTIFIER)
        return bytes(builder.Output())

    def _model(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], description: str) -> Any:
        schema = self._schema
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = [each.index for each in inputs.values()]
        graph.outputs = [each.index for each in outputs.values()]
        model = schema.ModelT()
        model.version, model.description = _VERSION, description
        model.operatorCodes = [self._code(kind, version) for kind, version in self._codes]
        model.subgraphs = [graph]
        kind = _buffer_class(schema)
        model.buffers = [kind(data=buffer if buffer.size else None) for buffer in self._buffers]
        signature = schema.SignatureDefT()
        signature.signatureKey = _SIGNATURE
        signature.inputs = [schema.TensorMapT(name=name, tensorIndex=each.index) for name, each in inputs.items()]
        signature.outputs = [schema.TensorMapT(name=name, tensorIndex=each.index) for name, each in outputs.items()]
        model.signatureDefs = [signature]
        return model

    def _code(self, kind: str, version: int) -> Any:
        code = self._schema.OperatorCodeT()
        code.builtinCode = getattr(self._schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, _LAST_OLD_CODE)
        code.version = version
        return code

    def _add(self, name: str, shape: Sequence[int], dtype: str, grid: Grid | None, buffer: int) -> Tensor:
        tensor = self._schema.TensorT()
        tensor.name = name = self._fresh(name)
        tensor.shape = np.asarray(shape, np.int32)
        tensor.type = getattr(self._schema.TensorType, _TYPES[dtype])
        tensor.buffer = buffer
        tensor.hasRank = True
        if grid is not None:
            parameters = self._schema.QuantizationParametersT()
            parameters.scale = np.asarray(grid.scale, np.float32)
            parameters.zeroPoint = np.full(len(grid.scale), grid.zero_point, np.int64)
            parameters.quantizedDimension = grid.axis
            tensor.quantization = parameters
        self._tensors.append(tensor)
        return Tensor(len(self._tensors) - 1, name, tuple(shape), dtype, grid)

    def _fresh(self, stem: str) -> str:
        name, count = stem, 0
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name


def _buffer_class(schema: Any) -> Any:
    """Return the schema's class of buffers, but for one that writes its bytes at once, and aligned."""

    class _Buffer(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802, the name that the generated classes call
            offset = None if self.data is None else _write_bytes(builder, self.data.tobytes())
            schema.BufferStart(builder)
            if offset is not None:
                schema.BufferAddData(builder, offset)
            return schema.BufferEnd(builder)

    return _Buffer


def _write_bytes(builder: Any, content: bytes) -> Any:
    builder.StartVector(1, len(content), _ALIGNMENT_BYTES)
    builder.head -= len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return builder.EndVector()
