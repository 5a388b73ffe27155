"""Cut channels out of a model, and refit what is left to what the original gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir

from onnxpress.ir.analysis.channels import ChannelGroup, remove, removed_indices
from onnxpress.ir.analysis.execute import ProgressLike
from onnxpress.ir.data import DataSource
from onnxpress.ir.linear import linear_ops
from onnxpress.passes.repair import layers_behind, repair_sequentially
from onnxpress.passes.selectors import Selection

__all__ = ["ChannelCuts"]

_Kept: TypeAlias = dict[str, list[int]]


class ChannelCuts:
    """Cuts of one model, made one after another, and which channels of the original's are left after them."""

    def __init__(self, model: onnx_ir.Model) -> None:
        """Keep a copy of `model` as it is, which every repair aims at."""
        self.model = model
        self.original = model.clone()
        self._kept: _Kept = {}
        self._unfit: set[str] = set()  # operators that lost rows, which no target of the original's has

    def remove(self, removals: Mapping[ChannelGroup, Sequence[int]]) -> set[str]:
        """Remove slots of groups of the model as it is; return the names of the nodes that this touched."""
        gone = {(value.name, axis): indices for (value, axis), indices in removed_indices(removals).items()}
        for op in linear_ops(self.model, subgraphs=False):
            if op.output.shape is None:
                continue
            name, channels = op.node.name or "", op.output_axis % len(op.output.shape)
            if any(value == op.output.name and axis != channels for value, axis in gone):
                self._unfit.add(name)
            indices = gone.get((op.output.name, channels))
            if indices is not None:
                held = np.asarray(self._kept.get(name, range(op.out_channels)))
                self._kept[name] = [int(channel) for channel in np.delete(held, indices)]
        touched = {op.node.name or "" for group in removals for op in (*group.producers, *group.consumers)}
        remove(self.model, removals)
        return touched

    def repair(
        self,
        touched: set[str],
        data: DataSource,
        *,
        but: Selection,
        sweeps: int,
        samples: int,
        seed: int,
        progress: ProgressLike | None,
    ) -> None:
        """Refit the touched layers and all that comes behind them: once linearly, then past the activations.

        but: what it excludes keeps its numbers.
        """
        for sweep in range(sweeps):
            layers = [op for op in layers_behind(self.model, touched, but) if (op.node.name or "") not in self._unfit]
            repair_sequentially(
                self.model, self.original, data, layers,
                kept=self._kept, rectified=sweep > 0, samples=samples, seed=seed, progress=progress,
            )  # fmt: skip
