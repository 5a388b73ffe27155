"""Train the demo's model and write the demo's files.

    python -m onnxpress.tools.demo.train_digits          # needs the extra `dev`; a minute on two cores

A residual conv net on scikit-learn's digits (8 x 8 pixels, each drawn 2 x 2), in numpy alone, so that the
demo needs no training framework. Activations are NHWC here, because then a 3 x 3 convolution is one matrix
product; the written model is NCHW and keeps its BatchNormalization nodes, so that `fold-batchnorm` has
something to do.

Writes beside this file: digits.onnx, calibration.npz (256 of the 1000 training images) and evaluation.npz
(the other 797 images). Same seed, same machine: same files.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = [
    "BatchNorm",
    "Classifier",
    "Conv",
    "Digits",
    "Graph",
    "Layer",
    "MaxPool",
    "Parameter",
    "Relu",
    "Residual",
    "export",
    "load_digits",
    "main",
    "network",
    "predict",
    "train",
]

_Floats = npt.NDArray[np.float32]

_TRAINING_IMAGES = 1000
_CALIBRATION_IMAGES = 256
_EPSILON = 1e-5  # ONNX BatchNormalization default
_STATISTICS_MOMENTUM = 0.9
_PEAK_RATE, _MOMENTUM, _WEIGHT_DECAY, _BATCH = 0.1, 0.9, 5e-4, 50


@dataclasses.dataclass(frozen=True)
class Digits:
    """images: [count, 16, 16, 1] float32 in 0..1. labels: [count] int64."""

    images: _Floats
    labels: npt.NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write the set as the command line takes it: `input` [count, 1, 16, 16] and `labels`."""
        np.savez_compressed(path, input=np.moveaxis(self.images, -1, 1), labels=self.labels)


def load_digits(seed: int) -> tuple[Digits, Digits]:
    """Return the training set and the held-out set, shuffled by `seed`."""
    from sklearn.datasets import load_digits as load

    pixels, labels = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    small = (pixels[order] / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    images = small.repeat(2, axis=1).repeat(2, axis=2)
    digits = labels[order].astype(np.int64)
    cut = _TRAINING_IMAGES
    return Digits(images[:cut], digits[:cut]), Digits(images[cut:], digits[cut:])


@dataclasses.dataclass
class Parameter:
    """A trained array, its gradient from the last `backward`, and the optimizer's velocity."""

    data: _Floats
    decayed: bool = True
    gradient: _Floats = dataclasses.field(init=False)
    velocity: _Floats = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.gradient, self.velocity = np.zeros_like(self.data), np.zeros_like(self.data)


class Graph:
    """The ONNX graph under construction: nodes in order and initializers by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name: str, data: _Floats) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(data, np.float32), name))
        return name

    def node(self, op_type: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Append a node called `name` and return its only output, `name_out`."""
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"


class Layer(Protocol):
    """What the network is made of. `backward` follows the `forward` whose inputs it remembers."""

    def forward(self, x: _Floats, *, training: bool) -> _Floats: ...
    def backward(self, gradient: _Floats) -> _Floats: ...
    def parameters(self) -> Iterator[Parameter]: ...
    def export(self, graph: Graph, source: str) -> str: ...


class Conv:
    """3 x 3 convolution without bias, padded by one. weight: [9 * in, out], rows ordered kH, kW, in."""

    def __init__(self, name: str, in_channels: int, out_channels: int, stride: int, rng: np.random.Generator):
        fan_in = 9 * in_channels
        scale = np.sqrt(2.0 / fan_in)  # He et al. 2015, equation 10
        self.name, self.stride, self.in_channels = name, stride, in_channels
        self.weight = Parameter((rng.standard_normal((fan_in, out_channels)) * scale).astype(np.float32))

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        self.shape = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        windows = windows[:, :: self.stride, :: self.stride].transpose(0, 1, 2, 4, 5, 3)
        self.columns = windows.reshape(-1, self.weight.data.shape[0])
        return (self.columns @ self.weight.data).reshape(*windows.shape[:3], -1)

    def backward(self, gradient: _Floats) -> _Floats:
        batch, height, width, channels = gradient.shape
        flat = gradient.reshape(-1, channels)
        self.weight.gradient = self.columns.T @ flat
        columns = (flat @ self.weight.data.T).reshape(batch, height, width, 3, 3, self.in_channels)
        padded = np.zeros((batch, self.shape[1] + 2, self.shape[2] + 2, self.in_channels), gradient.dtype)
        for row, column in np.ndindex(3, 3):
            rows = slice(row, row + self.stride * height, self.stride)
            across = slice(column, column + self.stride * width, self.stride)
            padded[:, rows, across] += columns[:, :, :, row, column]
        return padded[:, 1:-1, 1:-1]

    def parameters(self) -> Iterator[Parameter]:
        yield self.weight

    def export(self, graph: Graph, source: str) -> str:
        weight = self.weight.data.reshape(3, 3, self.in_channels, -1).transpose(3, 2, 0, 1)
        name = graph.weight(f"{self.name}_weight", weight)
        strides = [self.stride, self.stride]
        return graph.node("Conv", [source, name], self.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=strides)


class BatchNorm:
    """Batch normalization over all axes but the last (Ioffe and Szegedy 2015)."""

    def __init__(self, name: str, channels: int):
        self.name = name
        self.scale = Parameter(np.ones(channels, np.float32), decayed=False)
        self.bias = Parameter(np.zeros(channels, np.float32), decayed=False)
        self.mean, self.variance = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            self.mean += (1 - _STATISTICS_MOMENTUM) * (mean - self.mean)
            self.variance += (1 - _STATISTICS_MOMENTUM) * (variance - self.variance)
        self.deviation: _Floats = np.sqrt(variance + _EPSILON)
        self.normal: _Floats = (x - mean) / self.deviation
        result: _Floats = self.normal * self.scale.data + self.bias.data
        return result

    def backward(self, gradient: _Floats) -> _Floats:
        self.bias.gradient = gradient.sum(axis=(0, 1, 2))
        self.scale.gradient = (gradient * self.normal).sum(axis=(0, 1, 2))
        count = gradient.size // gradient.shape[-1]
        shared = (self.bias.gradient + self.normal * self.scale.gradient) / count
        result: _Floats = (gradient - shared) * (self.scale.data / self.deviation)
        return result

    def parameters(self) -> Iterator[Parameter]:
        yield self.scale
        yield self.bias

    def export(self, graph: Graph, source: str) -> str:
        arrays = {
            "scale": self.scale.data,
            "bias": self.bias.data,
            "mean": self.mean,
            "variance": self.variance,
        }
        names = [graph.weight(f"{self.name}_{key}", data) for key, data in arrays.items()]
        return graph.node("BatchNormalization", [source, *names], self.name, epsilon=_EPSILON)


class Relu:
    def __init__(self, name: str):
        self.name = name

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        self.mask = x > 0
        return np.where(self.mask, x, np.float32(0))

    def backward(self, gradient: _Floats) -> _Floats:
        return gradient * self.mask

    def parameters(self) -> Iterator[Parameter]:
        yield from ()

    def export(self, graph: Graph, source: str) -> str:
        return graph.node("Relu", [source], self.name)


class MaxPool:
    """2 x 2 with stride 2. Equal maxima share the gradient."""

    def __init__(self, name: str):
        self.name = name

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        batch, height, width, channels = x.shape
        tiles = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        largest: _Floats = tiles.max(axis=(2, 4), keepdims=True)
        mask = tiles == largest
        self.share: _Floats = mask / mask.sum(axis=(2, 4), keepdims=True, dtype=np.float32)
        return largest.reshape(batch, height // 2, width // 2, channels)

    def backward(self, gradient: _Floats) -> _Floats:
        batch, height, width, channels = gradient.shape
        spread = self.share * gradient[:, :, None, :, None]
        return spread.reshape(batch, 2 * height, 2 * width, channels)

    def parameters(self) -> Iterator[Parameter]:
        yield from ()

    def export(self, graph: Graph, source: str) -> str:
        return graph.node("MaxPool", [source], self.name, kernel_shape=[2, 2], strides=[2, 2])


class Residual:
    """x + layers(x)."""

    def __init__(self, name: str, layers: Sequence[Layer]):
        self.name, self.layers = name, layers

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        return x + _forward(self.layers, x, training=training)

    def backward(self, gradient: _Floats) -> _Floats:
        return gradient + _backward(self.layers, gradient)

    def parameters(self) -> Iterator[Parameter]:
        yield from _parameters(self.layers)

    def export(self, graph: Graph, source: str) -> str:
        return graph.node("Add", [source, _export(self.layers, graph, source)], self.name)


class Classifier:
    """Mean over the image, then a linear layer. weight: [in, classes]."""

    def __init__(self, name: str, channels: int, classes: int, rng: np.random.Generator):
        self.name = name
        scale = np.sqrt(1.0 / channels)
        self.weight = Parameter((rng.standard_normal((channels, classes)) * scale).astype(np.float32))
        self.bias = Parameter(np.zeros(classes, np.float32), decayed=False)

    def forward(self, x: _Floats, *, training: bool) -> _Floats:
        self.shape = x.shape
        self.mean: _Floats = x.mean(axis=(1, 2))
        result: _Floats = self.mean @ self.weight.data + self.bias.data
        return result

    def backward(self, gradient: _Floats) -> _Floats:
        self.weight.gradient = self.mean.T @ gradient
        self.bias.gradient = gradient.sum(axis=0)
        pooled = gradient @ self.weight.data.T / np.float32(self.shape[1] * self.shape[2])
        return np.broadcast_to(pooled[:, None, None], self.shape)

    def parameters(self) -> Iterator[Parameter]:
        yield self.weight
        yield self.bias

    def export(self, graph: Graph, source: str) -> str:
        weight = graph.weight(f"{self.name}_weight", self.weight.data.T)
        bias = graph.weight(f"{self.name}_bias", self.bias.data)
        pooled = graph.node("GlobalAveragePool", [source], "pool")
        flat = graph.node("Flatten", [pooled], "flatten")
        return graph.node("Gemm", [flat, weight, bias], self.name, transB=1)


def _forward(layers: Sequence[Layer], x: _Floats, *, training: bool) -> _Floats:
    for layer in layers:
        x = layer.forward(x, training=training)
    return x


def _backward(layers: Sequence[Layer], gradient: _Floats) -> _Floats:
    for layer in reversed(layers):
        gradient = layer.backward(gradient)
    return gradient


def _parameters(layers: Sequence[Layer]) -> Iterator[Parameter]:
    for layer in layers:
        yield from layer.parameters()


def _export(layers: Sequence[Layer], graph: Graph, source: str) -> str:
    for layer in layers:
        source = layer.export(graph, source)
    return source


def network(rng: np.random.Generator) -> list[Layer]:
    """Return the untrained net: 16x16x32 with one residual block, 8x8x64 after the pool, 4x4x64 at the end.

    Wide and large enough that int8 halves its time on onnxruntime; with 16 channels the overheads win.
    """

    def convolve(name: str, source: int, out: int, stride: int = 1) -> list[Layer]:
        return [Conv(f"{name}_conv", source, out, stride, rng), BatchNorm(f"{name}_norm", out)]

    return [
        *convolve("stem", 1, 32),
        Relu("stem_relu"),
        Residual(
            "block_add",
            [*convolve("block_1", 32, 32), Relu("block_1_relu"), *convolve("block_2", 32, 32)],
        ),
        Relu("block_relu"),
        *convolve("widen", 32, 64),
        Relu("widen_relu"),
        MaxPool("widen_pool"),
        *convolve("middle", 64, 64),
        Relu("middle_relu"),
        *convolve("reduce", 64, 64, stride=2),
        Relu("reduce_relu"),
        Classifier("classifier", 64, 10, rng),
    ]


def train(layers: Sequence[Layer], digits: Digits, *, epochs: int, rng: np.random.Generator) -> None:
    """Minimize cross entropy by SGD with momentum; the rate rises for a quarter of the steps, then falls."""
    parameters = list(_parameters(layers))
    count = len(digits.labels)
    steps = epochs * (count // _BATCH)
    for step in range(steps):
        if step % (count // _BATCH) == 0:
            order = rng.permutation(count)
        chosen = order[step * _BATCH % count :][:_BATCH]
        images, labels = _shift(digits.images[chosen], rng), digits.labels[chosen]
        gradient = _softmax(_forward(layers, images, training=True))
        gradient[np.arange(_BATCH), labels] -= 1
        _backward(layers, gradient / np.float32(_BATCH))
        rate = np.float32(_PEAK_RATE * np.interp(step / steps, [0, 0.25, 1], [0.1, 1, 0]))
        for parameter in parameters:
            _descend(parameter, rate)


def _descend(parameter: Parameter, rate: np.float32) -> None:
    decay = np.float32(_WEIGHT_DECAY if parameter.decayed else 0)
    parameter.velocity *= np.float32(_MOMENTUM)
    parameter.velocity -= rate * (parameter.gradient + decay * parameter.data)
    parameter.data += parameter.velocity


def _shift(images: _Floats, rng: np.random.Generator) -> _Floats:
    """Move the batch by up to two pixels each way; the net would learn the digits' place in the frame."""
    down, right = rng.integers(-2, 3, size=2)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return padded[:, 2 + down : 18 + down, 2 + right : 18 + right]


def _softmax(logits: _Floats) -> _Floats:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def predict(layers: Sequence[Layer], images: _Floats) -> _Floats:
    """Return the logits [count, 10] with the running statistics in place of the batch's."""
    return np.concatenate([_forward(layers, part, training=False) for part in np.array_split(images, 8)])


def export(layers: Sequence[Layer]) -> onnx.ModelProto:
    """Return the network as ONNX: opset 17, batch dimension `N`, names made from the layers' names."""
    graph = Graph()
    _export(layers, graph, "input")
    graph.nodes[-1].output[0] = "logits"
    proto = helper.make_graph(
        graph.nodes,
        "digits",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 10])],
        graph.initializers,
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the three files and print the held-out accuracy in percent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    training, held_out = load_digits(options.seed)
    rng = np.random.default_rng(options.seed)
    layers = network(rng)
    train(layers, training, epochs=options.epochs, rng=rng)
    accuracy = np.mean(predict(layers, held_out.images).argmax(axis=1) == held_out.labels)

    onnx.save(export(layers), options.out / "digits.onnx")
    chosen = slice(0, _CALIBRATION_IMAGES)
    Digits(training.images[chosen], training.labels[chosen]).save(options.out / "calibration.npz")
    held_out.save(options.out / "evaluation.npz")
    print(f"{100 * accuracy:.2f} % of {len(held_out.labels)} held-out digits")


if __name__ == "__main__":
    main()
