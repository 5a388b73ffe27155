"""Encodings: how the numbers of a weight are represented, apart from where they are stored.

An encoded weight stands in a graph as any other tensor (it meets onnx-ir's `TensorProtocol`): code that asks
for `.numpy()` gets dense float32, code that knows encodings gets codes and parameters. It survives
`Model.clone()` and onnx-ir's passes; saving it writes the dense values, so lowering replaces it by real
nodes first.

    Affine      real = (code - zero_point) * scale
    Levels      real = one of a short table of numbers: Codebook, Ternary, Binary, PowerOfTwo
    Float16     real = float32(code); BFloat16 and Float8 (with a scale) alike
    Dense       real = code
    Sparse      real = what another encoding stores where the mask is set, 0 elsewhere

The packed form is that of `bitpack`; `unpack(packed(), shape, parameters)` gives back the same bits.
"""

from onnxpress.ir.encodings.affine import Affine
from onnxpress.ir.encodings.base import Encoded, Parameter, encode, encoding_of, is_encoded, kind_named
from onnxpress.ir.encodings.floats import BFloat16, Dense, Float8, Float16
from onnxpress.ir.encodings.integer_grid import IntegerTable, as_levels, integer_table, on_integer_grid
from onnxpress.ir.encodings.levels import Binary, Codebook, Levels, PowerOfTwo, Ternary
from onnxpress.ir.encodings.sparse import Sparse
from onnxpress.ir.grid import grid_scale

__all__ = [
    "Affine",
    "BFloat16",
    "Binary",
    "Codebook",
    "Dense",
    "Encoded",
    "Float8",
    "Float16",
    "IntegerTable",
    "Levels",
    "Parameter",
    "PowerOfTwo",
    "Sparse",
    "Ternary",
    "as_levels",
    "encode",
    "encoding_of",
    "grid_scale",
    "integer_table",
    "is_encoded",
    "kind_named",
    "on_integer_grid",
]
