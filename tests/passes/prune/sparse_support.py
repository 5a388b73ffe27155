"""What the tests of prune-weights and prune-nm share: small networks, correlated data, and one way to run a pass."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir

from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.encodings import Sparse, encoding_of
from onnxpress.ir.linear import Linear, as_linear
from onnxpress.ir.model_io import load
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Rewrites
from onnxpress.passes.registry import get_pass
from tests.support import Array, text_model

__all__ = ["BODY", "data_of", "layer_of", "model_of", "net", "prune", "reasons", "relative_error", "sparse_of"]

HEADER = '<ir_version: 8, opset_import: ["": 17]>'

# w1 [8, 4, 3, 3]; w2 [8, 4, 3, 3], in two groups; w3 [8, 8, 3, 3], on a shortcut; w4 [16, 8]; w5 [16, 12].
BODY = """
    [stem] s = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    [relu] r = Relu (s)
    [grouped] g = Conv <group = 2, pads = [1, 1, 1, 1]> (r, w2)
    [relu2] h = Relu (g)
    [branch] c = Conv <pads = [1, 1, 1, 1]> (h, w3)
    [add] a = Add (c, r)
    [pool] p = GlobalAveragePool (a)
    [flat] f = Flatten (p)
    [hidden] q = Gemm <transB = 1> (f, w4, b4)
    [relu3] t = Relu (q)
    [head] out = MatMul (t, w5)
"""


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {
        "w1": (8, 4, 3, 3), "b1": (8,), "w2": (8, 4, 3, 3), "w3": (8, 8, 3, 3), "w4": (16, 8), "b4": (16,),
        "w5": (16, 12),
    }  # fmt: skip
    return {name: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) for name, shape in shapes.items()}


def model_of(
    body: str, constants: dict[str, Array], *, inputs: str = "float[N, 4, 5, 7] x", out: str = "N, M"
) -> onnx_ir.Model:
    """A model from ONNX text whose `constants` become its initializers, in the types they have; float64: FLOAT."""
    extra = "".join(f", float {name}" for name in constants)
    model = text_model(f"{HEADER}\nnet ({inputs}{extra}) => (float[{out}] out)\n{{ {body} }}")
    for value in [value for value in model.graph.inputs if value.name in constants]:
        model.graph.inputs.remove(value)
        array = constants[str(value.name)]
        tensor = onnx_ir.tensor(array.astype(np.float32) if array.dtype == np.float64 else array, name=value.name)
        value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(array.shape)
        value.const_value = tensor
        model.graph.register_initializer(value)
    return load(model)


def net(seed: int = 0) -> onnx_ir.Model:
    return model_of(BODY, weights(seed))


def data_of(model: onnx_ir.Model, count: int = 48, seed: int = 1) -> DataSource:
    """Seeded samples whose channels are correlated, so that some weights can stand in for others."""
    rng = np.random.default_rng(seed)
    value = model.graph.inputs[0]
    assert value.shape is not None and value.name is not None
    dims = [dim for dim in value.shape.dims[1:] if isinstance(dim, int)]
    samples = rng.standard_normal((count, *dims)).astype(np.float32)
    mixed = np.tensordot(samples, np.random.default_rng(99).standard_normal((dims[0], dims[0])), axes=(1, 0))
    return open_data({value.name: np.moveaxis(mixed, -1, 1).astype(np.float32)}, model=model)


def prune(name: str, model: onnx_ir.Model, data: DataSource | None = None, **options: object) -> Rewrites:
    """Run the pass, with data unless the method needs none, and check what holds after every run."""
    before = interface(model)
    if data is None and options.get("method") != "magnitude":
        data = data_of(model)
    rewrites = get_pass(name)(**options).run(model, Context(data=data))
    verify(model)
    assert interface(model) == before
    for site in rewrites.sites:
        sparse = sparse_of(model, site.name)
        assert site.detail.startswith(f"{sparse.size - sparse.stored:,} of {sparse.size:,} weights are zero")
        assert site.before.macs == site.after.macs
        assert site.error
    return rewrites


def reasons(rewrites: Rewrites) -> dict[str, str]:
    return {declined.name: declined.reason for declined in rewrites.declined}


def layer_of(model: onnx_ir.Model, name: str) -> Linear:
    (found,) = (as_linear(node) for node in model.graph if node.name == name)
    assert isinstance(found, Linear)
    return found


def sparse_of(model: onnx_ir.Model, name: str) -> Sparse:
    found = encoding_of(layer_of(model, name).weight_value)
    assert isinstance(found, Sparse)
    return found


def relative_error(expected: Array, got: Array) -> float:
    """Squared error relative to the energy of what was expected."""
    return float(np.square(expected - got, dtype=np.float64).sum() / np.square(expected, dtype=np.float64).sum())
