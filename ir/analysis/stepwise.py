"""Run a model over its data piece by piece, while later pieces of it change.

Layer-by-layer repair asks for the values around each layer in turn, with everything before it already repaired. Running
the model from its start each time costs the square of its depth. A `Stepwise` run keeps, for all samples, the values
that cross the place it has come to, where they fit its memory, so that each node runs about once; where they do not
fit, it starts from the last place where they did, or from the data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from onnxpress.ir.analysis.execute import Session, batch_size_within
from onnxpress.ir.data import Batch, DataSource, bind
from onnxpress.ir.errors import InputError
from onnxpress.ir.linear import constant_tensor
from onnxpress.ir.shapes import batch_dimension, has_shared_batch

__all__ = ["Stepwise", "ancestors", "stepwise_batch_size"]

_Array: TypeAlias = npt.NDArray[Any]


class Stepwise:
    """One model, the same batches at every step.

    `read` the values of one step after the other, in graph order. Between steps, weights may change in nodes from the
    last `stop` on, and only there: what was computed before it is not computed again.
    """

    def __init__(
        self,
        model: onnx_ir.Model,
        data: DataSource,
        *,
        batch_size: int,
        samples: int | None = None,
        cache_bytes: int = 128 << 20,
    ) -> None:
        """batch_size: see `stepwise_batch_size`. samples: at most so many. cache_bytes: for the values kept.

        Raises:
            InputError: the data does not fit the model.
        """
        self._model = model
        self._source = bind(data, model)
        self._size, self._samples, self._limit = batch_size, samples, cache_bytes
        self._fixed = batch_dimension(model)
        self._ranks = {str(value.name): len(value.shape) for value in model.graph.inputs if value.shape is not None}
        first = self._source.head(1).feeds
        self._whole = {name for name, array in first.items() if array.ndim == self._ranks.get(name, array.ndim) + 1}
        if self._whole:
            self._size = 1  # each sample is all that the model takes at once
        self._kept: list[dict[str, _Array]] | None = None  # one dict a batch; None: the data itself
        self._counts: list[int] = []  # samples in each batch, once a step was made

    def read(
        self, values: Sequence[str], *, stop: onnx_ir.Node, after: bool = False, later: Iterable[str]
    ) -> Iterator[tuple[int, dict[str, _Array]]]:
        """Yield (samples, arrays by name) for each batch, then keep what `later` values need of the part before `stop`.

        values: of the main graph. stop: the node from which on weights may change before the next step; with `after`,
        the node behind it. later: the values of all later steps. Go through the whole iterator before the next step.

        Raises:
            InputError: the model fails on the data.
        """
        wanted = list(dict.fromkeys(values))
        held = None if self._kept is None else set(self._kept[0])
        place = self._crossing(stop, after, later)
        session = self._session(wanted, place, held)
        batches = self._feeds() if self._kept is None else self._replay(self._kept)
        counts: list[int] = []
        kept: list[dict[str, _Array]] | None = []
        for samples, feeds in batches:
            arrays = {**feeds, **session.run(feeds)} if session is not None else feeds
            counts.append(samples)
            if kept is not None:
                kept.append({name: arrays[name] for name in place})
                kept = self._within(kept)
                if kept and self._kept is not None:
                    self._kept[len(counts) - 1] = {}  # the new ones take the room of the old
            yield samples, {name: self._cut(arrays[name], samples) for name in wanted}
        self._counts = counts
        if kept is not None:
            self._kept = kept

    def take(self, value: str, indices: Sequence[int], axis: int) -> None:
        """Keep only some of the channels of a value that is held, after the model lost the others."""
        for arrays in self._kept or ():
            if value in arrays:
                arrays[value] = np.ascontiguousarray(np.take(arrays[value], np.asarray(indices, np.int64), axis=axis))

    # Batches.

    def _feeds(self) -> Iterator[tuple[int, dict[str, _Array]]]:
        for batch in self._source.batches(self._size, limit=self._samples):
            yield batch.size, self._fed(batch)

    def _fed(self, batch: Batch) -> dict[str, _Array]:
        fed: dict[str, _Array] = {}
        for name, array in batch.feeds.items():
            if name in self._whole:
                fed[name] = array[0, ...]  # an array, also of no axis
            elif self._fixed is not None and len(array) < self._fixed:
                fed[name] = np.concatenate([array, np.repeat(array[-1:], self._fixed - len(array), axis=0)])
            else:
                fed[name] = array
        return fed

    def _replay(self, kept: Sequence[Mapping[str, _Array]]) -> Iterator[tuple[int, dict[str, _Array]]]:
        for index, samples in enumerate(self._counts):
            yield samples, dict(kept[index])

    def _cut(self, array: _Array, samples: int) -> _Array:
        """Drop the repeats that filled up a fixed batch."""
        filled = (
            not self._whole
            and self._fixed is not None
            and samples < self._fixed
            and array.ndim > 0
            and len(array) == self._fixed
        )
        return array[:samples] if filled else array

    def _within(self, kept: list[dict[str, _Array]]) -> list[dict[str, _Array]] | None:
        """Return `kept`, or None where not all will fit; the first batch tells, where the number of them is known."""
        total = sum(array.nbytes for arrays in kept for array in arrays.values())
        if len(kept) == 1:
            total *= self._batch_count()
        elif self._kept is not None:
            return kept  # the old ones are given up by now, so there is no way back
        return kept if total <= self._limit else None

    def _batch_count(self) -> int:
        """Return how many batches there will be, at least 1."""
        counts = [count for count in (self._source.count, self._samples) if count is not None]
        known = self._source.count is not None
        return len(self._counts) or (-(-min(counts) // self._size) if known else 1)

    # Pieces of the graph.

    def _crossing(self, stop: onnx_ir.Node, after: bool, later: Iterable[str]) -> list[str]:
        """Return the values that nodes from the stop on need for `later`, and that come from before it."""
        places = {node: index for index, node in enumerate(self._model.graph)}
        border = places[stop] + after
        produced = {value.name: value for node in self._model.graph for value in node.outputs}
        produced.update((value.name, value) for value in self._model.graph.inputs)
        wanted = [produced[name] for name in later if name in produced]
        needed = ancestors(wanted)
        crossing: dict[str, None] = {}
        for value in wanted:
            if self._comes_before(value, places, border):
                crossing[value.name or ""] = None
        for node in needed:
            if places.get(node, -1) >= border:
                for value in _used_values(node):
                    if self._comes_before(value, places, border):
                        crossing[value.name or ""] = None
        return list(crossing)

    def _comes_before(self, value: onnx_ir.Value, places: Mapping[onnx_ir.Node, int], border: int) -> bool:
        """Whether `value` is computed before the border, or fed; constants are part of every piece."""
        if not value.name or constant_tensor(value) is not None or value.is_initializer():
            return False
        node = value.producer()
        if node is None:  # an input, of the model or of a body
            return value.graph is self._model.graph
        return places.get(node, border) < border

    def _session(self, wanted: Sequence[str], place: Sequence[str], held: Collection[str] | None) -> Session | None:
        """Return a session from what is held to `wanted` and `place`; None where all of it is held."""
        outputs = list(dict.fromkeys([*wanted, *place]))
        if held is None:
            return Session(self._model, outputs=outputs, optimize=True)
        computed = [name for name in outputs if name not in held]
        if not computed:
            return None
        assert self._kept is not None
        return _PieceSession(_piece(self._model, self._kept, computed), computed)


class _PieceSession(Session):
    """A session that takes what it needs of the arrays it is offered."""

    def __init__(self, model: onnx_ir.Model, outputs: Sequence[str]) -> None:
        super().__init__(model, outputs=outputs, optimize=True)

    def run(self, feeds: Mapping[str, _Array]) -> dict[str, _Array]:
        """Run on those of `feeds` that this piece takes."""
        return super().run({name: feeds[name] for name in self.input_names})


def stepwise_batch_size(
    models: Sequence[onnx_ir.Model], data: DataSource, values: Iterable[str], limit_bytes: int
) -> int:
    """Return a batch size at which all `models` take the data: what fits the limit, unless their inputs fix it.

    values: those that are read together.
    """
    names = list(values)
    size = min(batch_size_within(model, names, limit_bytes) for model in models)
    free = [model for model in models if batch_dimension(model) is None]
    if len(free) < len(models) or size == 1:
        return size
    return size if all(_takes_batches(model, data) for model in free) else 1


def ancestors(values: Iterable[onnx_ir.Value]) -> set[onnx_ir.Node]:
    """Return the nodes of the values' graph that they depend on, through bodies of control flow too."""
    pending = [node for value in values if (node := value.producer()) is not None]
    found = set(pending)
    while pending:
        for value in _used_values(pending.pop()):
            node = value.producer()
            if node is not None and node not in found:
                found.add(node)
                pending.append(node)
    return found


def _takes_batches(model: onnx_ir.Model, data: DataSource) -> bool:
    """Whether two samples at once give two rows of every output."""
    if not has_shared_batch(model):
        return False
    batch = bind(data, model).head(2)
    ranks = {str(value.name): len(value.shape) for value in model.graph.inputs if value.shape is not None}
    if any(array.ndim != ranks.get(name, array.ndim) for name, array in batch.feeds.items()):
        return False
    session = Session(model, optimize=True)
    try:
        return all(array.ndim > 0 and len(array) == batch.size for array in session.run(batch.feeds).values())
    except InputError:
        return False


def _used_values(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == onnx_ir.AttributeType.GRAPH:
            graphs: Sequence[onnx_ir.Graph] = [attribute.as_graph()]
        elif attribute.type == onnx_ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        else:
            continue
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from _used_values(inner)


def _piece(model: onnx_ir.Model, kept: Sequence[Mapping[str, _Array]], outputs: Sequence[str]) -> onnx_ir.Model:
    """Return the part of `model` that computes `outputs` from the values kept; tensors are shared."""
    graph = onnx_ir.convenience.extract(model.graph, list(kept[0]), list(outputs))
    needed = {value for node in graph.all_nodes() for value in node.inputs if value is not None}
    unused = [value for value in graph.inputs if value not in needed]
    for value in unused:
        graph.inputs.remove(value)
    for value in graph.inputs:
        arrays = [batch[value.name or ""] for batch in kept]
        value.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(arrays[0].dtype))
        value.shape = onnx_ir.Shape(_common_dims([array.shape for array in arrays]))
    return onnx_ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _common_dims(shapes: Sequence[tuple[int, ...]]) -> list[int | None]:
    """Return what all batches have in common; what differs between them stays open."""
    return [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)]
