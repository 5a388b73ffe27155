"""Run an exact pass the way every test wants it run: loaded, verified, compared with before, and run again."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir

from onnxpress.ir.model_io import load, to_proto_bytes
from onnxpress.ir.verify import interface, verify
from onnxpress.passes.base import Context, Pass, Rewrites
from onnxpress.passes.cleanup.cleanup import Cleanup
from tests.support import random_feeds, run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a pass made of a model."""

    before: onnx_ir.Model
    after: onnx_ir.Model
    rewrites: Rewrites

    @property
    def ops(self) -> list[str]:
        """Operators of all graphs, in order."""
        return [node.op_type for node in self.after.graph.all_nodes()]

    @property
    def names(self) -> list[str | None]:
        """Node names of all graphs, in order."""
        return [node.name for node in self.after.graph.all_nodes()]

    @property
    def told(self) -> list[tuple[str, str, str]]:
        """The sites: name, kind, detail."""
        return [(site.name, site.kind, site.detail) for site in self.rewrites.sites]

    @property
    def declined(self) -> list[tuple[str, str]]:
        """The declined places: name, reason."""
        return [(one.name, one.reason) for one in self.rewrites.declined]

    @property
    def unchanged(self) -> bool:
        """Whether the model is what it was, byte for byte, and no site says otherwise."""
        return to_proto_bytes(self.before) == to_proto_bytes(self.after) and not self.rewrites.modified


def apply(
    source: str | onnx_ir.Model | onnx.ModelProto,
    one: Pass | None = None,
    *,
    tolerance: float = 0.0,
    runs: bool = True,
) -> Outcome:
    """Run `one` (cleanup) on the model and check what holds for every exact pass.

    tolerance: of outputs, relative and absolute; 0 asks for equal bits. runs: False for models that
    onnxruntime does not take.
    """
    one = one or Cleanup()
    before = load(onnx.parser.parse_model(source) if isinstance(source, str) else source)
    after = before.clone()
    rewrites = one.run(after, Context())
    verify(after)
    assert interface(after) == interface(before)
    if runs:
        feeds = random_feeds(before)
        outputs = (run(to_proto_bytes(model), feeds) for model in (before, after))
        for expected, actual in zip(*outputs, strict=True):
            assert expected.dtype == actual.dtype
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    outcome = Outcome(before, after, rewrites)
    again = after.clone()
    assert not one.run(again, Context()).modified
    assert to_proto_bytes(again) == to_proto_bytes(after)
    assert rewrites.modified or outcome.unchanged
    return outcome
