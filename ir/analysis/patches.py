"""The vectors that a linear operator multiplies its weight with, cut from its activation; im2col in general.

With W = `linear.weight()` reshaped to [groups, out/groups, K], K = in/groups * prod(kernel), and a column x [K] of
group g, the operator's output there is W[g] @ x + bias. There is one column per group and output position:

| operator | positions | column |
|---|---|---|
| Conv | spatial positions of the output | the inputs under the kernel, zero in the padding |
| ConvTranspose | the same | the inputs that reach this output, zero where a tap meets none: the stride's gaps too |
| Gemm, MatMul | what lies on the other axes of the activation | the input itself |

Columns leave here taps first, [kernel, in/groups] flattened, because that is how they lie in memory;
`Patches.weight_order` says how K is ordered in the weight.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxpress.ir.linear import Linear

__all__ = ["Patches", "why_no_patches"]

_Array = npt.NDArray[Any]

_PIECE_BYTES = 4 << 20  # of columns at a time: about what a core's cache holds
_TABLE_ROWS = 64  # samples that draw different positions before the draw repeats


def why_no_patches(linear: Linear) -> str | None:
    """Return why the columns of `linear` cannot be cut, or None where they can."""
    if linear.node.op_type == "ConvTranspose" and "output_shape" in linear.node.attributes:
        return "its output_shape attribute leaves the padding to the operator"
    return None


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Where columns lie in one sample's padded input, flattened.

    lengths: spatial extents of the padded input. begin: where the data starts in it. spread: distance of neighbours.
    bases: [positions] of each output position. taps: [prod(kernel)] what each tap adds to it.
    """

    lengths: tuple[int, ...]
    begin: tuple[int, ...]
    spread: tuple[int, ...]
    bases: npt.NDArray[np.int64]
    taps: npt.NDArray[np.int64]


class Patches:
    """Cuts the columns of one linear operator, all of them or a seeded draw, a piece at a time.

    Equal geometry, `positions` and `seed` give equal draws, whatever the batches: the original's output can be
    read at the positions where the compressed model's input was.
    """

    def __init__(self, linear: Linear, *, positions: int | None = None, seed: int = 0) -> None:
        """positions: how many output positions of each sample are drawn; None for all."""
        self.groups = linear.groups
        self.kernel = linear.kernel
        self.taps = math.prod(linear.kernel)
        self.width = linear.in_channels // linear.groups * self.taps  # K
        self._channels = linear.in_channels
        self._data_axis, self._output_axis = linear.data_axis, linear.output_axis
        self._transposed = linear.node.op_type == "ConvTranspose"
        self._attributes = _spatial_attributes(linear)
        self._positions, self._seed = positions, seed
        self._geometries: dict[tuple[int, ...], _Geometry] = {}
        self._tables: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for operators that cut equal columns from equal activations."""
        layout = (self.groups, self.kernel, self._channels, self._data_axis, self._transposed)
        return (*layout, tuple(self._attributes.items()), self._positions, self._seed)

    @property
    def weight_order(self) -> npt.NDArray[np.int64]:
        """[K]: for each element of a weight's row, its place in a column as `cut` gives it."""
        order = np.arange(self.width).reshape(self.taps, self.width // self.taps)
        return np.ascontiguousarray(order.T).reshape(-1)

    def cut(
        self, data: _Array, outputs: Sequence[_Array], *, samples: int, first: int
    ) -> Iterator[tuple[_Array, list[_Array]]]:
        """Yield pieces: columns [groups, K, n] float32, and [out_channels, n] float32 of each of `outputs` there.

        data: the operator's activation. outputs: arrays of its output's shape, with any number of channels. samples:
        how many the batch holds. first: how many came before.

        Raises:
            ValueError: the arrays do not fit the operator or each other.
        """
        if self.kernel:
            yield from self._cut_spatial(data, outputs, first)
        else:
            yield from self._cut_dense(data, outputs, samples, first)

    # Gemm and MatMul.

    def _cut_dense(
        self, data: _Array, outputs: Sequence[_Array], samples: int, first: int
    ) -> Iterator[tuple[_Array, list[_Array]]]:
        rows = _rows(data, self._data_axis, samples)
        if rows.shape[2] != self._channels:
            raise ValueError(f"the activation {list(data.shape)} has no {self._channels} channels")
        targets = [_rows(output, self._output_axis, samples) for output in outputs]
        for target in targets:
            if target.shape[:2] != rows.shape[:2]:
                raise ValueError(f"activation {list(data.shape)} and target do not have the same positions")
        count, length, _ = rows.shape
        step = max(1, _PIECE_BYTES // max(1, 4 * self.width * min(length, self._positions or length)))
        for start in range(0, count, step):
            stop = min(count, start + step)
            chosen = self._chosen(length, first + start, stop - start)
            x = _columns(rows[start:stop], chosen)
            yield x[None], [_columns(target[start:stop], chosen) for target in targets]

    # Conv and ConvTranspose.

    def _cut_spatial(
        self, data: _Array, outputs: Sequence[_Array], first: int
    ) -> Iterator[tuple[_Array, list[_Array]]]:
        rank = len(self.kernel)
        data = data.reshape(-1, *data.shape[-rank - 1 :])  # runs of a fixed batch may come stacked
        if data.shape[1] != self._channels:
            raise ValueError(f"the activation {list(data.shape)} does not have {self._channels} channels")
        outputs = [output.reshape(-1, *output.shape[-rank - 1 :]) for output in outputs]
        geometry = self._geometry(data.shape[2:])
        length = len(geometry.bases)
        for output in outputs:
            if len(output) != len(data) or math.prod(output.shape[2:]) != length:
                raise ValueError(f"an output {list(output.shape)} does not belong to the activation {list(data.shape)}")
        step = max(1, _PIECE_BYTES // max(1, 4 * self.width * self.groups * min(length, self._positions or length)))
        for start in range(0, len(data), step):
            part = data[start : start + step]
            chosen = self._chosen(length, first + start, len(part))
            x = self._gather(part, geometry, chosen)
            yield x, [_spatial_columns(output[start : start + step], chosen) for output in outputs]

    def _gather(self, data: _Array, geometry: _Geometry, chosen: npt.NDArray[np.int64] | None) -> _Array:
        """Return [groups, K, n] of the samples `data` [S, C, *spatial]."""
        count, size = len(data), math.prod(geometry.lengths)
        padded = np.zeros((self._channels, count, *geometry.lengths), np.float32)
        inside = tuple(
            slice(begin, begin + (extent - 1) * spread + 1, spread)
            for begin, extent, spread in zip(geometry.begin, data.shape[2:], geometry.spread, strict=True)
        )
        padded[(slice(None), slice(None), *inside)] = np.moveaxis(data, 1, 0)
        bases = geometry.bases if chosen is None else geometry.bases[chosen]
        flat = (np.broadcast_to(bases, (count, bases.shape[-1])) + np.arange(count)[:, None] * size).reshape(-1)
        source = padded.reshape(self._channels, count * size)
        share = self._channels // self.groups
        columns = np.empty((self.groups, self.taps, share, flat.size), np.float32)
        for tap, offset in enumerate(geometry.taps):
            if self.groups == 1:
                np.take(source, flat + offset, axis=1, out=columns[0, tap], mode="clip")  # "raise" would buffer
            else:
                columns[:, tap] = source[:, flat + offset].reshape(self.groups, share, -1)
        return columns.reshape(self.groups, self.width, -1)

    def _geometry(self, extents: tuple[int, ...]) -> _Geometry:
        if extents not in self._geometries:
            build = _transposed_geometry if self._transposed else _conv_geometry
            self._geometries[extents] = build(extents, self.kernel, **self._attributes)
        return self._geometries[extents]

    def _chosen(self, length: int, first: int, count: int) -> npt.NDArray[np.int64] | None:
        """Return [count, positions] of samples `first`, ..., or None for all of the `length` positions."""
        if self._positions is None or self._positions >= length:
            return None
        if length not in self._tables:
            keys = np.random.default_rng((self._seed, length)).random((_TABLE_ROWS, length), np.float32)
            self._tables[length] = np.sort(np.argpartition(keys, self._positions, axis=1)[:, : self._positions], axis=1)
        return self._tables[length][np.arange(first, first + count) % _TABLE_ROWS]


def _rows(array: _Array, axis: int, samples: int) -> _Array:
    """Return [samples, positions, channels], or [rows, 1, channels] where the rows do not divide into samples."""
    channels = array.shape[axis]
    last = np.moveaxis(array, axis, -1)
    if array.ndim > 2:
        return last.reshape(len(last), -1, channels)
    rows = last.reshape(-1, channels)
    count = samples if len(rows) > samples and len(rows) % samples == 0 else len(rows)
    return rows.reshape(count, -1, channels)


def _columns(rows: _Array, chosen: npt.NDArray[np.int64] | None) -> _Array:
    """[S, L, C] -> [C, n] float32, contiguous."""
    picked = rows if chosen is None else np.take_along_axis(rows, chosen[:, :, None], axis=1)
    return np.ascontiguousarray(picked.reshape(-1, rows.shape[2]).T, np.float32)


def _spatial_columns(output: _Array, chosen: npt.NDArray[np.int64] | None) -> _Array:
    """[S, M, *spatial] -> [M, n] float32, contiguous."""
    flat = output.reshape(len(output), output.shape[1], -1)
    picked = flat if chosen is None else np.take_along_axis(flat, chosen[:, None, :], axis=2)
    return np.ascontiguousarray(np.moveaxis(picked, 1, 0), np.float32).reshape(output.shape[1], -1)


def _spatial_attributes(linear: Linear) -> dict[str, Any]:
    rank = len(linear.kernel)
    attributes = linear.node.attributes
    ones, zeros = (1,) * rank, (0,) * rank
    found: dict[str, Any] = {
        "strides": tuple(attributes.get_ints("strides", ones) or ones),
        "dilations": tuple(attributes.get_ints("dilations", ones) or ones),
        "pads": tuple(attributes.get_ints("pads", zeros + zeros) or zeros + zeros),
        "auto_pad": attributes.get_string("auto_pad", "NOTSET"),
    }
    if linear.node.op_type == "ConvTranspose":
        found["output_padding"] = tuple(attributes.get_ints("output_padding", zeros) or zeros)
    return found


def _conv_geometry(
    extents: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
) -> _Geometry:
    """ONNX Conv, opset 11 and later: how `pads` and `auto_pad` place the kernel."""
    rank = len(kernel)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begin, lengths, counts = [], [], []
    for axis in range(rank):
        extent, stride = extents[axis], strides[axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, (-(-extent // stride) - 1) * stride + reach[axis] - extent)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        elif auto_pad == "VALID":
            total = before = 0
        else:
            before, total = pads[axis], pads[axis] + pads[axis + rank]
        begin.append(before)
        lengths.append(extent + total)
        counts.append((extent + total - reach[axis]) // stride + 1)
    bases = _grid(counts, strides, lengths)
    return _Geometry(tuple(lengths), tuple(begin), (1,) * rank, bases, _grid(kernel, dilations, lengths))


def _transposed_geometry(
    extents: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    pads: tuple[int, ...],
    auto_pad: str,
    output_padding: tuple[int, ...],
) -> _Geometry:
    """ConvTranspose as a convolution of stride 1, with the taps reversed, over the input spread by its stride.

    output = stride * (input - 1) + output_padding + reach - pads (ONNX ConvTranspose, opset 11).
    """
    rank = len(kernel)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    begin, starts, lengths, counts = [], [], [], []
    for axis in range(rank):
        extent, stride = extents[axis], strides[axis]
        whole = stride * (extent - 1) + output_padding[axis] + reach[axis]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, whole - extent * stride)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        elif auto_pad == "VALID":
            total = before = 0
        else:
            before, total = pads[axis], pads[axis] + pads[axis + rank]
        count = whole - total
        begin.append(max(0, reach[axis] - 1 - before))
        starts.append(max(0, before - reach[axis] + 1))  # pads beyond the kernel's reach cut into the input
        lengths.append(max(begin[-1] + stride * (extent - 1) + 1, starts[-1] + count + reach[axis] - 1))
        counts.append(count)
    bases = _grid(counts, (1,) * rank, lengths, starts)
    taps = _grid(kernel, dilations, lengths)[::-1].copy()
    return _Geometry(tuple(lengths), tuple(begin), strides, bases, taps)


def _grid(
    counts: Sequence[int], steps: Sequence[int], lengths: Sequence[int], starts: Sequence[int] | None = None
) -> npt.NDArray[np.int64]:
    """Return the flat places in an array of `lengths` of a grid of `counts` points, `steps` apart, from `starts` on."""
    places = np.zeros((), np.int64)
    for count, step, length, start in zip(counts, steps, lengths, starts or (0,) * len(counts), strict=True):
        places = places[..., None] * length + start + np.arange(count, dtype=np.int64) * step
    return places.reshape(-1)
