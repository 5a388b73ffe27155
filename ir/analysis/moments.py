"""Moments: mean and second moment of what each linear operator multiplies its weight with, over calibration data.

For a column x [K] of group g (see `patches`) and, in the cross form, the output y that it should give:

    mean  = E[x]        [groups, K]                 target_mean   = E[y]      [out]
    gram  = E[x x^T]    [groups, K, K]              target_energy = E[y^2]    [out]
    cross = E[y x^T]    [groups, out/groups, K]

From these follows the squared output error of any weight and bias, and the weight and bias of the least error, without
the data (`passes/repair.py`). Symmetric form: x and y of one model; then y = W x + b, so that nothing needs to be
observed but x, and `Moments.with_target` fills in the rest. Cross (asymmetric) form: x of a compressed model, y of its
original at the same samples and positions.

Products are taken in float32 over some hundred columns at a time and summed in float64. Memory is bounded by the Gram
matrices, and those by a limit: where all of them take more, the data is streamed several times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.blas import one_blas_thread
from onnxpress.ir.analysis.execute import BatchRunner, ProgressLike, Session, batch_size_within, track
from onnxpress.ir.analysis.patches import Patches, why_no_patches
from onnxpress.ir.data import DataSource, bind
from onnxpress.ir.errors import InputError, UsageError
from onnxpress.ir.linear import Linear, as_linear

__all__ = ["DEFAULT_GRAM_BYTES", "Moments", "MomentsSum", "collect", "gram_bytes", "parts_within"]

_Array: TypeAlias = npt.NDArray[Any]
_Float64: TypeAlias = npt.NDArray[np.float64]
_Item = TypeVar("_Item")

DEFAULT_GRAM_BYTES = 1 << 30
_LIMIT_BYTES = 24 << 20  # of inner values at a time
_FEW_GROUPS = 32  # so many products one by one; more of them are small, and go in one call
_COLUMNS = 512  # gathered before a product: fewer, and adding it in float64 costs more than the product


@dataclasses.dataclass(frozen=True)
class Moments:
    """Moments of one linear operator's columns x, and of the outputs y that they should give where those were seen.

    count: columns seen, per group. Everything is float64; K = in/groups * prod(kernel), in the order of the weight's
    rows, `linear.weight().reshape(groups, out // groups, K)`.
    mean: [groups, K]. gram: [groups, K, K]. cross: [groups, out/groups, K]. target_mean, target_energy: [out].
    """

    count: int
    mean: _Float64
    gram: _Float64
    cross: _Float64 | None = None
    target_mean: _Float64 | None = None
    target_energy: _Float64 | None = None

    @property
    def groups(self) -> int:
        """Independent groups of channels."""
        return len(self.gram)

    @property
    def width(self) -> int:
        """K, the length of a column."""
        return int(self.gram.shape[-1])

    def covariance(self) -> _Float64:
        """Return E[(x - mean)(x - mean)^T], [groups, K, K], a new array."""
        result: _Float64 = self.gram - self.mean[:, :, None] * self.mean[:, None, :]
        return result

    def cross_covariance(self) -> _Float64:
        """Return E[(y - E y)(x - mean)^T], [groups, out/groups, K], a new array. The targets must be known."""
        cross, target_mean, _ = self._targets()
        result: _Float64 = cross - target_mean.reshape(self.groups, -1, 1) * self.mean[:, None, :]
        return result

    def with_target(self, weight: _Array, bias: _Array | None = None) -> Moments:
        """Return the moments with y = weight @ x + bias as the target: what the operator itself gives, exactly.

        weight: [out, in/groups, *kernel], as `linear.weight()`. bias: [out].
        """
        rows = self._weight_rows(weight)
        offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        grouped = offset.reshape(self.groups, -1, 1)
        product = rows @ self.gram
        cross = product + grouped * self.mean[:, None, :]
        moved = (rows @ self.mean[:, :, None]).reshape(-1)
        energy = (product * rows).sum(axis=2).reshape(-1) + 2 * offset * moved + offset**2
        return dataclasses.replace(self, cross=cross, target_mean=moved + offset, target_energy=energy)

    def shift_target(self, offset: _Array) -> Moments:
        """Return the moments with y + offset as the target. offset: [out]."""
        cross, target_mean, energy = self._targets()
        moved = offset.astype(np.float64)
        return dataclasses.replace(
            self,
            cross=cross + moved.reshape(self.groups, -1, 1) * self.mean[:, None, :],
            target_mean=target_mean + moved,
            target_energy=energy + 2 * moved * target_mean + moved**2,
        )

    def keep_inputs(self, columns: npt.ArrayLike) -> Moments:
        """Return the moments of the given elements of x alone, in that order, with the same targets.

        columns: [kept], for all groups alike, or [groups, kept].
        """
        chosen = np.broadcast_to(np.asarray(columns, np.int64), (self.groups, np.shape(columns)[-1]))
        cross = None if self.cross is None else np.take_along_axis(self.cross, chosen[:, None, :], axis=2)
        group = np.arange(self.groups)[:, None, None]
        gram = self.gram[group, chosen[:, :, None], chosen[:, None, :]]
        return dataclasses.replace(self, mean=np.take_along_axis(self.mean, chosen, axis=1), gram=gram, cross=cross)

    def keep_input_channels(self, channels: npt.ArrayLike, kernel_size: int) -> Moments:
        """Return the moments with only the given input channels (of each group); kernel_size: prod(kernel)."""
        kept = np.asarray(channels, np.int64)
        return self.keep_inputs((kept[..., None] * kernel_size + np.arange(kernel_size)).reshape(*kept.shape[:-1], -1))

    def squared_errors(self, weight: _Array, bias: _Array | None = None) -> _Float64:
        """Return E[(weight @ x + bias - y)^2], [out], for any weight [out, in/groups, *kernel]. Never negative.

        The targets must be known: from the cross form, or `with_target`.
        """
        cross, target_mean, energy = self._targets()
        rows = self._weight_rows(weight)
        offset = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        moved = (rows @ self.mean[:, :, None]).reshape(-1)
        quadratic = ((rows @ self.gram - 2 * cross) * rows).sum(axis=2).reshape(-1)
        result: _Float64 = np.maximum(0.0, quadratic + energy + 2 * offset * (moved - target_mean) + offset**2)
        return result

    def error_of(self, weight: _Array, bias: _Array | None = None) -> float:
        """Return the squared error of `weight` and `bias` over all outputs, relative to the target's energy.

        0 is exact; 1 is what giving zeros would do; the signal-to-noise ratio in dB is -10 log10 of it. What is
        below about 1e-6 is rounding.
        """
        errors = self.squared_errors(weight, bias).sum()
        energy = self._targets()[2].sum()
        return float(errors / energy) if energy > 0 else float(errors > 0)

    def _targets(self) -> tuple[_Float64, _Float64, _Float64]:
        assert self.cross is not None and self.target_mean is not None and self.target_energy is not None, (
            "these moments have no target: give collect() a reference, or use with_target()"
        )
        return self.cross, self.target_mean, self.target_energy

    def _weight_rows(self, weight: _Array) -> _Float64:
        return weight.reshape(self.groups, -1, self.width).astype(np.float64)


def gram_bytes(linear: Linear) -> int:
    """Return what the Gram matrices of `linear` take, float64."""
    width = linear.in_channels // linear.groups * _product(linear.kernel)
    return linear.groups * width * width * 8


class MomentsSum:
    """Sums up moments piece by piece, for whoever runs the models: `add` arrays, then ask for the `result`."""

    def __init__(self, linear: Linear, *, positions: int | None = None, seed: int = 0) -> None:
        """positions: how many output positions of each sample are drawn; None for all. Raises UsageError."""
        reason = why_no_patches(linear)
        if reason is not None:
            raise UsageError(f"moments: node {linear.node.name!r} ({linear.node.op_type}): {reason}")
        self.patches = Patches(linear, positions=positions, seed=seed)
        self._node = linear.node
        groups, width = self.patches.groups, self.patches.width
        self._first = 0
        self._count = 0
        self._pending: list[tuple[_Array, _Array | None]] = []
        self._sum = np.zeros((groups, width))
        self._gram = np.zeros((groups, width, width))
        self._cross: _Float64 | None = None
        self._target_sum: _Float64 | None = None
        self._target_energy: _Float64 | None = None

    def add(
        self, data: _Array, target: _Array | None = None, *, samples: int, correction: Sequence[_Array] = ()
    ) -> None:
        """Add a batch.

        data: the operator's activation. target: the outputs wanted, as the operator's output but with any channels
        that the caller chose. samples: how many the batch holds. correction: (plus, minus), of the target's shape: the
        target becomes target + plus - minus.

        Raises:
            InputError: NaN or infinity, or arrays that do not fit the operator.
        """
        outputs = [] if target is None else [target, *correction]
        try:
            for columns, wanted in self.patches.cut(data, outputs, samples=samples, first=self._first):
                if len(wanted) == 3:
                    wanted = [wanted[0] + wanted[1] - wanted[2]]
                self._pending.append((columns, wanted[0] if wanted else None))
                if sum(columns.shape[2] for columns, _ in self._pending) >= _COLUMNS:
                    self._flush()
        except ValueError as error:
            raise InputError(f"moments: node {self._node.name!r} ({self._node.op_type}): {error}") from None
        self._first += data.shape[0] if data.ndim else 1

    def result(self) -> Moments:
        """Return the moments of all that was added.

        Raises:
            InputError: nothing was, or NaN or infinity came up.
        """
        self._flush()
        if self._count == 0:
            raise InputError(f"moments: node {self._node.name!r} ({self._node.op_type}) got no data")
        if not (np.isfinite(self._sum).all() and np.isfinite(self._gram).all()):
            raise InputError(
                f"moments: the input of node {self._node.name!r} ({self._node.op_type}) turns NaN or infinite on the "
                "calibration data. Check the samples' preprocessing"
            )
        order = self.patches.weight_order
        mean = self._sum[:, order] / self._count
        gram = self._gram[:, order[:, None], order[None, :]]
        gram /= self._count
        if self._cross is None or self._target_sum is None or self._target_energy is None:
            return Moments(self._count, mean, gram)
        cross = self._cross[:, :, order] / self._count
        return Moments(
            self._count, mean, gram, cross, self._target_sum / self._count, self._target_energy / self._count
        )

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = _join([columns for columns, _ in self._pending], axis=2)
        targets = [target for _, target in self._pending if target is not None]
        self._pending = []
        self._count += columns.shape[2]
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked
            self._sum += columns.sum(axis=2, dtype=np.float64)
            self._add_products(columns)
            if targets:
                self._add_targets(columns, _join(targets, axis=1))

    def _add_products(self, columns: _Array) -> None:
        if self.patches.groups > _FEW_GROUPS:
            self._gram += columns @ columns.transpose(0, 2, 1)
            return
        for group, block in enumerate(columns):
            self._gram[group] += block @ block.T  # which numpy hands to BLAS as half the product

    def _add_targets(self, columns: _Array, target: _Array) -> None:
        grouped = target.reshape(self.patches.groups, -1, target.shape[1])
        cross = grouped @ columns.transpose(0, 2, 1)
        energy = np.einsum("ij,ij->i", target, target, dtype=np.float64)
        total = target.sum(axis=1, dtype=np.float64)
        if self._cross is None or self._target_sum is None or self._target_energy is None:
            self._cross, self._target_sum, self._target_energy = cross.astype(np.float64), total, energy
            return
        self._cross += cross
        self._target_sum += total
        self._target_energy += energy


def collect(
    model: onnx_ir.Model,
    layers: Sequence[Linear],
    data: DataSource,
    *,
    reference: onnx_ir.Model | None = None,
    kept: Mapping[str, Sequence[int]] | None = None,
    samples: int | None = None,
    positions: int | None = 64,
    seed: int = 0,
    limit_bytes: int = _LIMIT_BYTES,
    gram_limit_bytes: int = DEFAULT_GRAM_BYTES,
    progress: ProgressLike | None = None,
) -> dict[str, Moments]:
    """Return the moments of `layers` of `model` by node name, from one pass over the data, or a few for large layers.

    reference: the original model. Then the targets are the outputs of its nodes of the same names (the cross form); see
        also `passes/repair.py`, which repairs layer after layer.
    kept: node name -> which output channels of the reference's node are left in `model`; all for names that it lacks.
    samples: at most so many. positions: output positions drawn per sample; None for all. seed: of the draw.
    limit_bytes: roughly what inner values may take at once. gram_limit_bytes: what the Gram matrices of one pass may; a
        larger layer gets a pass of its own.

    Raises:
        InputError: the data does not fit the model, or turns into NaN or infinity in it.
        UsageError: a layer in a subgraph, with a name that is not unique, or that `why_no_patches` speaks of.
    """
    _require_unique_names(layers)
    results: dict[str, Moments] = {}
    for part in parts_within(layers, gram_bytes, gram_limit_bytes):
        run = _Collection(model, part, reference, kept or {}, positions, seed)
        with one_blas_thread():
            run.stream(data, samples, limit_bytes, progress)
        results.update(run.results())
    return {layer.node.name or "": results[layer.node.name or ""] for layer in layers}


class _Collection:
    """One pass over the data for some layers."""

    def __init__(
        self,
        model: onnx_ir.Model,
        layers: Sequence[Linear],
        reference: onnx_ir.Model | None,
        kept: Mapping[str, Sequence[int]],
        positions: int | None,
        seed: int,
    ) -> None:
        self._model, self._layers, self._reference, self._kept = model, layers, reference, kept
        self._originals = {} if reference is None else _originals(reference, layers)
        # Layers that cut equal columns from one activation share their sums, as query, key and value do.
        self._sums: dict[object, MomentsSum] = {}
        self._sum_of: dict[str, MomentsSum] = {}
        for layer in layers:
            name = layer.node.name or ""
            fresh = MomentsSum(layer, positions=positions, seed=seed)
            key = name if reference is not None else (layer.data.name, fresh.patches.key)
            self._sum_of[name] = self._sums.setdefault(key, fresh)

    def stream(self, data: DataSource, samples: int | None, limit_bytes: int, progress: ProgressLike | None) -> None:
        source = bind(data, self._model)
        values = list(dict.fromkeys(layer.data.name or "" for layer in self._layers))
        runner = BatchRunner(self._model, Session(self._model, outputs=values, optimize=True))
        size = batch_size_within(self._model, values, limit_bytes)
        reference_runner = None
        if self._reference is not None:
            bind(data, self._reference)
            outputs = list(dict.fromkeys(value.name or "" for value in self._originals.values()))
            reference_runner = BatchRunner(self._reference, Session(self._reference, outputs=outputs, optimize=True))
            size = min(size, batch_size_within(self._reference, outputs, limit_bytes))
        with track(progress, "collecting moments", source, samples) as task:
            for batch in source.batches(size, limit=samples):
                arrays = runner.run(batch)
                wanted = {} if reference_runner is None else reference_runner.run(batch)
                self._add(arrays, wanted, batch.size)
                task.advance(batch.size)

    def _add(self, arrays: Mapping[str, _Array], wanted: Mapping[str, _Array], samples: int) -> None:
        done: set[int] = set()
        for layer in self._layers:
            name = layer.node.name or ""
            total = self._sum_of[name]
            if id(total) in done:
                continue
            done.add(id(total))
            target = None
            if self._originals:
                target = wanted[self._originals[name].name or ""]
                if name in self._kept:
                    target = np.take(target, np.asarray(self._kept[name], np.int64), axis=layer.output_axis)
            total.add(arrays[layer.data.name or ""], target, samples=samples)

    def results(self) -> dict[str, Moments]:
        made = {key: total.result() for key, total in self._sums.items()}
        of_sum = {id(total): made[key] for key, total in self._sums.items()}
        return {name: of_sum[id(total)] for name, total in self._sum_of.items()}


def _originals(reference: onnx_ir.Model, layers: Iterable[Linear]) -> dict[str, onnx_ir.Value]:
    """Return the output of the reference's node of the same name, for each layer."""
    nodes = {node.name: node for node in reference.graph}
    found: dict[str, onnx_ir.Value] = {}
    for layer in layers:
        name = layer.node.name or ""
        node = nodes.get(name)
        if node is None or not isinstance(as_linear(node), Linear):
            raise UsageError(f"moments: the reference has no linear operator {name!r} in its main graph")
        found[name] = node.outputs[0]
    return found


def _require_unique_names(layers: Iterable[Linear]) -> None:
    seen: set[str | None] = set()
    for layer in layers:
        name = layer.node.name
        if not name or name in seen:
            raise UsageError(f"moments: node name {name!r} is not unique. Give every node a name of its own")
        seen.add(name)


def parts_within(items: Iterable[_Item], size: Callable[[_Item], int], limit: int) -> Iterator[list[_Item]]:
    """Split `items`, in their order, so that the sizes of each part add up to the limit at most, where they can."""
    part: list[_Item] = []
    held = 0
    for item in items:
        needed = size(item)
        if part and held + needed > limit:
            yield part
            part, held = [], 0
        part.append(item)
        held += needed
    if part:
        yield part


def _join(arrays: Sequence[_Array], axis: int) -> _Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=axis)


def _product(extents: Iterable[int]) -> int:
    total = 1
    for extent in extents:
        total *= extent
    return total
