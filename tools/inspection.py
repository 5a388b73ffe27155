"""What a model is made of: the numbers behind `onnxpress inspect`."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import onnx_ir

from onnxpress.ir import model_io
from onnxpress.ir.analysis.channels import ChannelGroup, couple
from onnxpress.ir.analysis.cost import ModelCost, cost
from onnxpress.ir.opset import default_opset
from onnxpress.ir.shapes import describe_shape
from onnxpress.passes.prune.eligibility import why_not_prunable
from onnxpress.tools.measure import source_bytes
from onnxpress.tools.metrics import Metrics
from onnxpress.tools.recipe import MANIFEST_KEY

if TYPE_CHECKING:
    import onnx

__all__ = ["Channels", "Inspection", "Interface", "inspect"]


@dataclasses.dataclass(frozen=True)
class Interface:
    """One input or output as its caller sees it, such as `input float32 [N, 3, 32, 32]`."""

    name: str
    dtype: str
    shape: str

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Channels:
    """Channels that live or die together: `size` units that can be removed one by one.

    frozen: why none may be removed, or None. producers, consumers: linear nodes that make and read them.
    members: the values that hold them, as (name, axis, indices that each unit takes). params: roughly what
    each unit holds of the model's parameters.
    """

    name: str
    size: int
    frozen: str | None
    params: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    members: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, group: ChannelGroup, model: onnx_ir.Model) -> Channels:
        """Describe a group of `model`."""
        return cls(
            name=group.name,
            size=group.size,
            frozen=why_not_prunable(group, model),
            params=sum(member.params_each for member in group.constants),
            producers=tuple(op.node.name or "" for op in group.producers),
            consumers=tuple(op.node.name or "" for op in group.consumers),
            members=tuple((m.value.name or "", m.axis, m.positions.shape[1]) for m in group.members),
        )


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a model is made of. cost: at batch 1, node by node. operators: counts, the most common first.

    channels: which of them belong together, or None where nobody asked.
    """

    model: str
    opset: int
    ir_version: int
    producer: str
    metrics: Metrics
    cost: ModelCost
    operators: dict[str, int]
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]
    manifest: str | None = None
    channels: tuple[Channels, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "model": self.model,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "params": self.metrics.params,
            "macs": self.metrics.macs,
            "bytes": self.metrics.size_bytes,
            "bits_per_weight": self.metrics.bits_per_weight,
            "weight_bytes": self.cost.weight_bytes,
            "bytes_by_type": self.cost.bytes_by_type,
            "peak_activation_bytes": self.cost.peak_activation_bytes,
            "operators": self.operators,
            "inputs": [dataclasses.asdict(one) for one in self.inputs],
            "outputs": [dataclasses.asdict(one) for one in self.outputs],
            "nodes": [dataclasses.asdict(node) for node in self.cost.nodes],
            "unknown": list(self.cost.unknown),
            "unsized": self.cost.unsized,
            "manifest": self.manifest,
            **({} if self.channels is None else {"channels": [dataclasses.asdict(one) for one in self.channels]}),
        }


def inspect(model: str | os.PathLike[str] | onnx.ModelProto | onnx_ir.Model, *, channels: bool = False) -> Inspection:
    """Count what `model` is made of. It is neither run nor changed.

    channels: find out too which channels live or die together, and which can be removed.

    Raises:
        InputError: it cannot be loaded.
    """
    loaded = model_io.load(model)
    found = cost(loaded)
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for graph in loaded.graphs()
        for node in graph
    )
    name = os.fspath(model) if isinstance(model, str | os.PathLike) else loaded.graph.name
    return Inspection(
        model=name or "model",
        opset=default_opset(loaded),
        ir_version=loaded.ir_version,
        producer=" ".join(filter(None, (loaded.producer_name, loaded.producer_version))),
        metrics=Metrics.counted(found, source_bytes(model, loaded)),
        cost=found,
        operators=dict(operators.most_common()),
        inputs=tuple(_interface(value) for value in loaded.graph.inputs if not value.is_initializer()),
        outputs=tuple(_interface(value) for value in loaded.graph.outputs),
        manifest=loaded.metadata_props.get(MANIFEST_KEY),
        channels=tuple(Channels.of(group, loaded) for group in couple(loaded).groups) if channels else None,
    )


def _interface(value: onnx_ir.Value) -> Interface:
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    return Interface(value.name or "", dtype, describe_shape(value.shape))
